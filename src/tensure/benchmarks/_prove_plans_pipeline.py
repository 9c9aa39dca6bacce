"""Correct pipelines: by hand with sends and receives, and torch's own schedules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, schedules
from torch.distributed.tensor import Partial, Shard

from tensure.capture import ParallelStep, Placements

from ._prove_models import HIDDEN, SEQUENCE, VOCABULARY
from ._prove_parts import Mesh, ParallelPlan, place, reduce_all
from ._prove_plans_tensor import llama, megatron

__all__ = ["plans"]


def _cut(pieces: Sequence[nn.Module], stages: int, stage: int) -> list[nn.Module]:
    """The pieces of one stage; the first and last stages have the embedding and the head besides."""
    inner = pieces[1:-2]
    size = len(inner) // stages
    first = list(pieces[:1]) if stage == 0 else []
    last = list(pieces[-2:]) if stage == stages - 1 else []
    return [*first, *inner[stage * size : (stage + 1) * size], *last]


def _loss(logits: Tensor, targets: Tensor) -> Any:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def _shares(axes: Sequence[str]) -> Placements:
    return {axis: Partial() for axis in axes}


# --- by hand -----------------------------------------------------------------------------------------


class _Lane:
    """One rank of a pipeline: its stage, its neighbours, and what it keeps of each micro-batch."""

    def __init__(self, net: Any, mesh: Mesh, share: float) -> None:
        self.stage, self.stages = mesh.get_local_rank("pp"), mesh["pp"].size()
        self.layers = nn.Sequential(*_cut(net.pieces(), self.stages, self.stage))
        self.before = place(mesh, pp=self.stage - 1)
        self.after = place(mesh, pp=self.stage + 1)
        self.share = share
        self.entered: dict[int, Tensor] = {}
        self.left: dict[int, Tensor] = {}
        self.sent: list[Any] = []
        self.total = torch.zeros(())

    @property
    def is_last(self) -> bool:
        return bool(self.stage == self.stages - 1)

    def forward(self, at: int, tokens: Tensor, targets: Tensor) -> None:
        x = tokens
        if self.stage:
            x = torch.empty(len(tokens), SEQUENCE, HIDDEN)
            dist.recv(x, self.before)
            x.requires_grad_()
        y = self.layers(x)
        if self.is_last:
            y = _loss(y, targets) * self.share
            self.total = self.total + y.detach()
        else:
            self._send(y.detach(), self.after)
        self.entered[at], self.left[at] = x, y

    def _send(self, x: Tensor, to: int) -> None:
        """Without waiting: two neighbours that send to each other would wait for ever."""
        self.sent.append((dist.isend(x, to), x))

    def finish(self) -> None:
        """Once everything is sent."""
        for work, _ in self.sent:
            work.wait()

    def backward(self, at: int) -> None:
        x: Any = self.entered.pop(at)
        y: Any = self.left.pop(at)
        if self.is_last:
            y.backward()
        else:
            grad = torch.empty(y.shape)
            dist.recv(grad, self.after)
            y.backward(grad)
        if self.stage:
            self._send(x.grad, self.before)


def _order(stage: int, stages: int, count: int, alternating: bool) -> list[tuple[str, int]]:
    """All forwards first, or one forward and one backward in turn once the pipe is full."""
    warm = min(stages - stage - 1, count) if alternating else count
    order = [("forward", at) for at in range(warm)]
    for at in range(count - warm):
        order += [("forward", warm + at), ("backward", at)]
    return order + [("backward", at) for at in range(count - warm, count)]


def _by_hand(
    net: Any, mesh: Mesh, count: int, alternating: bool = False, tied: bool = False, tp: bool = False
) -> ParallelStep:
    """`count` micro-batches; replicas of the pipeline and tensor parallelism inside as the mesh has axes."""
    replicas = mesh["dp"].size() if "dp" in mesh.mesh_dim_names else 1
    placed = megatron(net, mesh.get_group("tp")) if tp else {}
    order = _order(mesh.get_local_rank("pp"), mesh["pp"].size(), count, alternating)

    def step(tokens: Tensor, targets: Tensor) -> Any:
        lane = _Lane(net, mesh, 1.0 / (count * replicas))
        pieces = list(zip(tokens.chunk(count), targets.chunk(count), strict=True))
        for what, at in order:
            if what == "forward":
                lane.forward(at, *pieces[at])
            else:
                lane.backward(at)
        lane.finish()
        if tied:
            dist.all_reduce(net.embedding.weight.grad, group=mesh.get_group("pp"))
        if replicas > 1:
            reduce_all(net, mesh.get_group("dp"))
        return lane.total

    split: Placements = {"dp": Shard(0)} if replicas > 1 else {}
    axes = [axis for axis in mesh.mesh_dim_names if axis != "tp"]
    return ParallelStep(step, inputs=[split, split], outputs=[_shares(axes)], parameters=placed)


# --- torch's schedules -----------------------------------------------------------------------------------


def _scheduled(net: Any, mesh: Mesh, schedule: str, count: int, per_rank: int = 1) -> ParallelStep:
    """Torch's stages and schedules; per_rank: stages a rank has, dealt out in turns (or there and back)."""
    ranks, rank = mesh["pp"].size(), mesh.get_local_rank("pp")
    stages = ranks * per_rank
    replicas = mesh["dp"].size() if "dp" in mesh.mesh_dim_names else 1
    folded = schedule in ("ScheduleZBVZeroBubble", "ScheduleDualPipeV")
    mine = [rank, stages - 1 - rank] if folded else [rank + turn * ranks for turn in range(per_rank)]

    def stage_of(number: int, batch: int) -> PipelineStage:
        hidden = torch.empty(batch, SEQUENCE, HIDDEN)
        tokens = torch.zeros(batch, SEQUENCE, dtype=torch.long)
        last = number == stages - 1
        out = torch.empty(batch, SEQUENCE, VOCABULARY) if last else hidden
        return PipelineStage(
            nn.Sequential(*_cut(net.pieces(), stages, number)),
            number,
            stages,
            torch.device("cpu"),
            input_args=hidden.clone().requires_grad_() if number else tokens,
            output_args=out.clone().requires_grad_(),
            input_grads=hidden if number else None,
            output_grads=None if last else hidden,
            group=mesh.get_group("pp"),
        )

    def step(tokens: Tensor, targets: Tensor) -> Any:
        made = [stage_of(number, len(tokens) // count) for number in mine]
        kind: Any = getattr(schedules, schedule)
        single = issubclass(kind, schedules.PipelineScheduleSingle)
        runs = kind(made[0] if single else made, count, loss_fn=_loss)
        losses: list[Tensor] = []
        first = (tokens,) if 0 in mine else ()
        last = {"target": targets, "losses": losses} if stages - 1 in mine else {}
        runs.step(*first, **last)
        if replicas > 1:
            for parameter in net.parameters():
                if parameter.grad is not None:
                    parameter.grad /= replicas
            reduce_all(net, mesh.get_group("dp"))
        return torch.stack(losses).mean().detach() / replicas if losses else torch.zeros(())

    split: Placements = {"dp": Shard(0)} if replicas > 1 else {}
    return ParallelStep(step, inputs=[split, split], outputs=[_shares(mesh.mesh_dim_names)])


def plans() -> Iterator[ParallelPlan]:
    """All of this file's."""
    two, four = partial(llama, batch=4, blocks=2), partial(llama, batch=4, blocks=4)
    eight = partial(llama, batch=8, blocks=2)
    pp: dict[str, int] = {"pp": 2}
    yield ParallelPlan("2 stages, 1 micro-batch", two, partial(_by_hand, count=1), pp)
    yield ParallelPlan("2 stages, 2 micro-batches", two, partial(_by_hand, count=2), pp)
    yield ParallelPlan(
        "2 stages, 4 micro-batches, 1F1B", two, partial(_by_hand, count=4, alternating=True), pp
    )
    yield ParallelPlan(
        "4 stages, 4 micro-batches, 1F1B", four, partial(_by_hand, count=4, alternating=True), {"pp": 4}
    )
    yield ParallelPlan("replicas of 2 stages", eight, partial(_by_hand, count=2), {"dp": 2, "pp": 2})
    tied = partial(llama, batch=4, blocks=2, tied=True)
    yield ParallelPlan("2 stages with tied weights", tied, partial(_by_hand, count=2, tied=True), pp)
    yield ParallelPlan("2 stages of TP2", two, partial(_by_hand, count=2, tp=True), {"pp": 2, "tp": 2})
    full = {"dp": 2, "pp": 2, "tp": 2}
    yield ParallelPlan("replicas of 2 stages of TP2", eight, partial(_by_hand, count=2, tp=True), full)
    yield ParallelPlan("torch GPipe", two, partial(_scheduled, schedule="ScheduleGPipe", count=2), pp)
    yield ParallelPlan("torch 1F1B", two, partial(_scheduled, schedule="Schedule1F1B", count=4), pp)
    yield ParallelPlan(
        "torch 1F1B over 4 stages", four, partial(_scheduled, schedule="Schedule1F1B", count=4), {"pp": 4}
    )
    many = partial(_scheduled, count=4, per_rank=2)
    yield ParallelPlan("torch interleaved 1F1B", four, partial(many, schedule="ScheduleInterleaved1F1B"), pp)
    yield ParallelPlan("torch looped breadth first", four, partial(many, schedule="ScheduleLoopedBFS"), pp)
    yield ParallelPlan(
        "torch interleaved zero bubble", four, partial(many, schedule="ScheduleInterleavedZeroBubble"), pp
    )
    yield ParallelPlan(
        "torch V-shaped zero bubble", four, partial(many, schedule="ScheduleZBVZeroBubble"), pp
    )
    gpipe = partial(_scheduled, schedule="ScheduleGPipe", count=2)
    yield ParallelPlan("replicas of torch GPipe", eight, gpipe, {"dp": 2, "pp": 2})
