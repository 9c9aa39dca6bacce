"""The parallel twin of a named model: replicas, tensor and sequence parallelism, a pipeline by hand.

Parameters are placed and not cut, so that the code of a layer reads no coordinate of the mesh; what does is
which layers a stage has, and whom it sends to. A micro-batch runs forward and backward by itself; gradients
of all are summed, and reduced once at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Partial, Shard

from .._step import ParallelStep, Placements
from ._config import PlanSizes
from ._exchange import GroupWays
from ._model import Decoder

__all__ = ["Stage", "by_microbatch", "layers_of", "looped", "place"]


def layers_of(layers: int, stages: int, stage: int) -> range:
    """The layers of a stage: embedding and head count as one each where there is enough for all stages."""
    end = 1 if layers + 2 >= 2 * stages else 0
    cut = [at * (layers + 2 * end) // stages for at in range(stages + 1)]
    return range(max(cut[stage] - end, 0), min(cut[stage + 1] - end, layers))


def place(net: nn.Module, cut: Mapping[str, int], tp: int) -> dict[str, Placements]:
    """Replaces every parameter that is cut by one that holds a part, and says along which dim it is."""
    placed: dict[str, Placements] = {}
    for path, module in net.named_modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            label = f"{path}.{name}"
            dim = next((dim for end, dim in cut.items() if f".{label}".endswith(f".{end}")), None)
            if dim is None:
                continue
            shape = list(parameter.shape)
            shape[dim] //= tp
            module.register_parameter(name, nn.Parameter(parameter.new_empty(shape)))
            placed[label] = {"tp": Shard(dim)}
    return placed


class Stage:
    """What one rank does: `microbatch` for each, then `finish`.

    Args:
        net: the whole model, fresh; what other stages have is put away.
        mesh: with axes among dp, tp and pp.
        sizes: of the plan.
        cut: the dim along which a parameter is cut, by the end of its name.
    """

    def __init__(self, net: Decoder, mesh: DeviceMesh, sizes: PlanSizes, cut: Mapping[str, int]) -> None:
        self.net, self.mesh, self.sizes = net, mesh, sizes
        self.axes = tuple(mesh.mesh_dim_names or ())
        self.stage = mesh.get_local_rank("pp") if "pp" in self.axes else 0
        self.is_last = self.stage == sizes.pp - 1
        self.hidden: int = net.norm.weight.shape[0]  # type: ignore[union-attr, index, assignment]
        kept = layers_of(len(net.layers), sizes.pp, self.stage)
        for at in range(len(net.layers)):
            if at not in kept:
                del net.layers[str(at)]
        if self.stage:
            net.embedding = None
        if not self.is_last:
            net.norm = net.head = None
        self.parameters = dict[str, Placements]()
        if "tp" in self.axes:
            net.ways = GroupWays(mesh.get_group("tp"))
            self.parameters = place(net, cut, sizes.tp)

    @property
    def inputs(self) -> list[Placements]:
        """Every replica has its own sequences, every tensor-parallel rank its own part of the targets."""
        rows: dict[str, Any] = {"dp": Shard(0)} if "dp" in self.axes else {}
        return [rows, rows | ({"tp": Shard(1)} if "tp" in self.axes else {})]

    @property
    def outputs(self) -> list[Placements]:
        """The loss adds up, over whatever tokens are cut and over stages, of which one has it."""
        return [{axis: Partial() for axis in self.axes}]

    def microbatch(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Forward and backward of one micro-batch; this rank's share of the loss, zero but on the last stage.

        Args:
            tokens: [B, S].
            targets: [B, S], or this rank's part of the sequence.
        """
        if self.stage:
            entered = torch.empty(*targets.shape, self.hidden)
            self._receive(entered, self.stage - 1)
            x = self.net.run(entered.requires_grad_())
        else:
            entered = x = self.net.enter(tokens)
            x = self.net.run(x)
        share = torch.zeros(())
        if self.is_last:
            count = targets.numel() * self.sizes.tp * self.sizes.mb
            loss = self.net.losses(x, targets).sum() / count
            loss.backward()  # type: ignore[no-untyped-call]
            share = loss.detach() / self.sizes.dp
        else:
            self._send(x.detach(), self.stage + 1)
            grad = torch.empty_like(x)
            self._receive(grad, self.stage + 1)
            x.backward(grad)  # type: ignore[no-untyped-call]
        if self.stage:
            assert entered.grad is not None
            self._send(entered.grad, self.stage - 1)
        return share

    def finish(self) -> None:
        """Gradients of what is not cut are summed, each rank having its part or heads; all are averaged."""
        for label, parameter in self.net.named_parameters():
            if parameter.grad is None:
                continue
            if "tp" in self.axes and label not in self.parameters:
                self.sum_over_tp(label, parameter.grad)
            if "dp" in self.axes:
                self.average_over_dp(label, parameter.grad)

    def sum_over_tp(self, label: str, grad: Tensor) -> None:
        """Of one parameter, in place."""
        dist.all_reduce(grad, group=self.mesh.get_group("tp"))

    def average_over_dp(self, label: str, grad: Tensor) -> None:
        """Of one parameter, in place."""
        dist.all_reduce(grad, group=self.mesh.get_group("dp"))
        grad /= self.sizes.dp

    def _send(self, x: Tensor, stage: int) -> None:
        dist.send(x.contiguous(), group=self.mesh.get_group("pp"), group_dst=stage)

    def _receive(self, x: Tensor, stage: int) -> None:
        dist.recv(x, group=self.mesh.get_group("pp"), group_src=stage)


def by_microbatch(stage: Stage) -> ParallelStep:
    """The step with its micro-batches as a mesh axis, which come out of a replica's own sequences."""
    rows: dict[str, Any] = {"mb": Shard(0)}
    given: dict[str, Any] = {"microbatch": stage.microbatch, "microbatches": stage.sizes.mb}
    return ParallelStep(
        stage.finish,
        module=stage.net,
        inputs=[{**placed, **rows} for placed in stage.inputs],
        outputs=[{**placed, "mb": Partial()} for placed in stage.outputs],
        parameters=stage.parameters,
        **given,
    )


def looped(stage: Stage) -> ParallelStep:
    """The step with a loop over its micro-batches."""
    count = stage.sizes.mb

    def step(tokens: Tensor, targets: Tensor) -> Tensor:
        total = torch.zeros(())
        for some, of_some in zip(tokens.chunk(count), targets.chunk(count), strict=True):
            total = total + stage.microbatch(some, of_some)
        stage.finish()
        return total

    return ParallelStep(
        step, module=stage.net, inputs=stage.inputs, outputs=stage.outputs, parameters=stage.parameters
    )
