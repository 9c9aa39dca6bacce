"""Correct steps with an optimizer: torch's AdamW and SGD on replicas, on shards, under ZeRO, and clipped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_, clip_grads_with_norm_
from torch.optim import Optimizer

from tensure.capture import ParallelStep, TrainingStep

from ._prove_parts import Mesh, ParallelPlan, part, place, reduce_scatter, run
from ._prove_plans_data import rows
from ._prove_plans_tensor import llama, megatron, mlp, tensor_parallel

__all__ = ["MAX_NORM", "Make", "adamw", "nesterov", "plans", "stepped"]

MAX_NORM: Final = 0.5
Make = Callable[[Iterable[Any]], Optimizer]


def adamw(parameters: Iterable[Any], **options: Any) -> Optimizer:
    """torch's, with a learning rate."""
    return torch.optim.AdamW(parameters, lr=1e-3, **options)


def nesterov(parameters: Iterable[Any]) -> Optimizer:
    """Momentum, looked ahead, and decay."""
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True)


def stepped(build: Any, make: Make = adamw, *, clip: bool = False) -> TrainingStep:
    """The step of one device."""
    net, inputs = build()
    optimizer = make(net.parameters())

    def step(*given: Tensor) -> Any:
        loss = run(net, given)
        if clip:
            clip_grad_norm_(net.parameters(), MAX_NORM)
        optimizer.step()
        return loss

    return TrainingStep(net, inputs, step, optimizer)


def _replicas(net: Any, mesh: Mesh, make: Make = adamw, clip: bool = False) -> ParallelStep:
    wrapped = DistributedDataParallel(net, process_group=mesh.get_group("dp"))
    optimizer = make(wrapped.parameters())

    def step(*given: Tensor) -> Any:
        loss = run(wrapped, given)
        if clip:
            clip_grad_norm_(wrapped.parameters(), MAX_NORM)
        optimizer.step()
        return loss / mesh.size()

    return rows(step, wrapped, optimizer=optimizer)


def _sharded(net: Any, mesh: Mesh, modules: tuple[str, ...] = (), make: Make = adamw) -> ParallelStep:
    """FSDP2, clipped over all shards."""
    for name in modules:
        fully_shard(net.get_submodule(name), mesh=mesh["dp"])
    fully_shard(net, mesh=mesh["dp"])
    optimizer = make(net.parameters())

    def step(*given: Tensor) -> Any:
        loss = run(net, given)
        clip_grad_norm_(net.parameters(), MAX_NORM)
        optimizer.step()
        return loss / mesh.size()

    return rows(step, optimizer=optimizer)


def _zero(net: Any, mesh: Mesh, stage: int) -> ParallelStep:
    """Rows of each parameter are stepped on one rank, clipped by the norm of all, and gathered."""
    group, parameters = mesh.get_group("dp"), list(net.parameters())
    shards = [part(parameter, 0, group) for parameter in parameters]
    optimizer = adamw(shards)

    def step(*given: Tensor) -> Any:
        loss = run(net, given, 1 / mesh.size())
        for whole, shard in zip(parameters, shards, strict=True):
            if stage == 1:
                dist.all_reduce(whole.grad, group=group)
                shard.grad = whole.grad.chunk(mesh.size())[group.rank()]
            else:
                shard.grad, whole.grad = reduce_scatter(whole.grad, 0, group), None
        square: Any = torch.stack([shard.grad.pow(2).sum() for shard in shards if shard.grad is not None])
        square = square.sum()
        dist.all_reduce(square, group=group)
        clip_grads_with_norm_(shards, MAX_NORM, square.sqrt())
        optimizer.step()
        with torch.no_grad():
            for whole, shard in zip(parameters, shards, strict=True):
                dist.all_gather(list(whole.chunk(mesh.size())), shard.detach(), group=group)
        return loss

    return rows(step, optimizer=optimizer)


def _owned(net: Any, mesh: Mesh) -> ParallelStep:
    """Each parameter is stepped on one rank, which sends it to the others."""
    group, mine, parameters = mesh.get_group("dp"), mesh.get_local_rank("dp"), list(net.parameters())
    optimizer = adamw([p for at, p in enumerate(parameters) if at % mesh.size() == mine])

    def step(*given: Tensor) -> Any:
        loss = run(net, given, 1 / mesh.size())
        for parameter in parameters:
            dist.all_reduce(parameter.grad, group=group)
        optimizer.step()
        for at, parameter in enumerate(parameters):
            dist.broadcast(parameter.detach(), place(mesh, dp=at % mesh.size()), group=group)
        return loss

    return rows(step, optimizer=optimizer)


def _dtensors(net: Any, mesh: Mesh) -> ParallelStep:
    """Some parameters are DTensors, some plain and the same on every rank: those are counted once."""
    tensor_parallel(net, mesh["tp"])
    cut = [p for p in net.parameters() if hasattr(p, "to_local")]
    whole = [p for p in net.parameters() if not hasattr(p, "to_local")]
    optimizer = adamw([{"params": cut}, {"params": whole}], foreach=True)

    def step(*given: Tensor) -> Any:
        loss = run(net, given)
        norms: list[Any] = [nn.utils.get_total_norm([p.grad for p in some]) for some in (cut, whole)]
        norm = torch.linalg.vector_norm(torch.stack([norms[0].full_tensor(), norms[1]]))
        for some in (cut, whole):
            clip_grads_with_norm_(some, MAX_NORM, norm)
        optimizer.step()
        return loss

    return ParallelStep(step, optimizer=optimizer)


def _cut(net: Any, mesh: Mesh) -> ParallelStep:
    """Megatron's way: squares of cut gradients are summed over ranks, those of whole ones are not."""
    group = mesh.get_group("tp")
    placed = megatron(net, group)
    cut = [p for name, p in net.named_parameters() if name in placed]
    whole = [p for name, p in net.named_parameters() if name not in placed]
    optimizer = adamw(net.parameters())

    def step(*given: Tensor) -> Any:
        loss = run(net, given)
        square, rest = (torch.stack([p.grad.pow(2).sum() for p in some]).sum() for some in (cut, whole))
        dist.all_reduce(square, group=group)
        clip_grads_with_norm_(net.parameters(), MAX_NORM, (square + rest).sqrt())
        optimizer.step()
        return loss

    return ParallelStep(step, parameters=placed, optimizer=optimizer)


def _accumulated(net: Any, mesh: Mesh, count: int = 2) -> ParallelStep:
    """Micro-batches one after another, then one step."""
    optimizer = adamw(net.parameters())

    def step() -> None:
        for parameter in net.parameters():
            dist.all_reduce(parameter.grad, group=mesh.get_group("dp"))
        optimizer.step()

    def microbatch(*given: Tensor) -> Any:
        return run(net, given, 1 / (count * mesh.size()))

    axes = ("dp", "mb")
    return rows(step, axes=axes, microbatch=microbatch, microbatches=count, optimizer=optimizer)


def plans() -> Iterator[ParallelPlan]:
    """In the order of the campaign."""
    dp, four = {"dp": 2}, partial(llama, batch=4)
    clipped = partial(stepped, clip=True)
    yield ParallelPlan("AdamW on replicas", partial(stepped, mlp), _replicas, {"dp": 4})
    yield ParallelPlan("clipped AdamW on replicas", partial(clipped, mlp), partial(_replicas, clip=True), dp)
    momentum = partial(stepped, mlp, nesterov)
    yield ParallelPlan("Nesterov momentum on replicas", momentum, partial(_replicas, make=nesterov), dp)
    lists = partial(_replicas, make=partial(adamw, foreach=True))
    yield ParallelPlan("AdamW in a loop and by lists", partial(stepped, llama), lists, dp)
    yield ParallelPlan("clipped AdamW under FSDP2", partial(clipped, mlp), _sharded, {"dp": 2})
    uneven = partial(clipped, partial(mlp, batch=3, hidden=7, inner=8))
    yield ParallelPlan("clipped AdamW under uneven FSDP2", uneven, _sharded, {"dp": 3})
    blocks = partial(_sharded, modules=("blocks.0",))
    yield ParallelPlan("clipped AdamW under FSDP2 of Llama", partial(clipped, four), blocks, {"dp": 2})
    for stage in (1, 2):
        name = f"clipped AdamW under ZeRO-{stage} by hand"
        yield ParallelPlan(name, partial(clipped, mlp), partial(_zero, stage=stage), dp)
    yield ParallelPlan("AdamW of parameters that ranks own", partial(stepped, mlp), _owned, dp)
    yield ParallelPlan("clipped AdamW under TP2", partial(clipped, llama), _dtensors, {"tp": 2})
    yield ParallelPlan("clipped AdamW under TP2 by hand", partial(clipped, llama), _cut, {"tp": 2})
    batches = partial(stepped, partial(mlp, batch=8))
    yield ParallelPlan("AdamW after 2 micro-batches", batches, _accumulated, dp)
