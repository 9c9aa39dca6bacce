"""What correct twins are made of: Megatron's operators and layers, gradient reduction, the answer's form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Partial, Shard

from tensure.capture import ParallelStep, Placements

__all__ = [
    "ColumnParallelLinear",
    "CopyToGroup",
    "Exchange",
    "ReduceFromGroup",
    "RowParallelLinear",
    "all_gather",
    "all_reduce",
    "all_to_all",
    "data_parallel_step",
    "part",
    "rank_at",
    "reduce_gradients",
    "reduce_scatter",
    "sharded",
    "step_of",
    "tensor_parallel",
]


def all_reduce(x: Tensor, group: Any) -> Tensor:
    return funcol.wait_tensor(funcol.all_reduce(x.contiguous(), "sum", group))


def all_gather(x: Tensor, dim: int, group: Any) -> Tensor:
    return funcol.wait_tensor(funcol.all_gather_single(x.contiguous(), dim, group))


def reduce_scatter(x: Tensor, dim: int, group: Any) -> Tensor:
    return funcol.wait_tensor(funcol.reduce_scatter_single(x.contiguous(), "sum", dim, group))


def all_to_all(x: Tensor, split_dim: int, join_dim: int, group: Any) -> Tensor:
    """Cuts along one dimension, sends a piece to every rank, and joins what came along another."""
    pieces = torch.stack(x.chunk(group.size(), split_dim)).contiguous()
    received = funcol.wait_tensor(funcol.all_to_all_single(pieces, None, None, group))
    return torch.cat(received.unbind(), join_dim)


def part(whole: Tensor, dim: int, group: Any) -> nn.Parameter:
    """This rank's piece of a weight."""
    return nn.Parameter(whole.detach().chunk(group.size(), dim)[group.rank()].clone())


class CopyToGroup(torch.autograd.Function):
    """Megatron's f: the same on every rank; gradients of the copies are summed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return all_reduce(gradient, ctx.group), None


class ReduceFromGroup(torch.autograd.Function):
    """Megatron's g: the sum over ranks; its gradient is the same on every rank already."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        return all_reduce(x, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class Exchange(torch.autograd.Function):
    """Cuts along one dimension and joins along another, over the ranks; backward does the reverse."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, split_dim: int, join_dim: int, group: Any) -> Tensor:
        ctx.dims, ctx.group = (join_dim, split_dim), group
        return all_to_all(x, split_dim, join_dim, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return all_to_all(gradient, *ctx.dims, ctx.group), None, None, None


class ColumnParallelLinear(nn.Module):
    """A linear layer cut along its outputs."""

    cut = 0

    def __init__(self, linear: nn.Linear, group: Any) -> None:
        super().__init__()
        self.weight = part(linear.weight, 0, group)
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(CopyToGroup.apply(x, self.group), self.weight)


class RowParallelLinear(nn.Module):
    """A linear layer cut along its inputs; the ranks' outputs are summed."""

    cut = 1

    def __init__(self, linear: nn.Linear, group: Any) -> None:
        super().__init__()
        self.weight = part(linear.weight, 1, group)
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        return ReduceFromGroup.apply(F.linear(x, self.weight), self.group)


COLUMNS, ROWS = ("wq", "wk", "wv", "w1", "w3"), ("wo", "w2")


def tensor_parallel(net: nn.Module, group: Any, layers: Mapping[str, type[nn.Module]] | None = None) -> None:
    """Replaces the linear layers of all Llama blocks, Megatron's way; `layers` names other classes."""
    for owner in list(net.modules()):
        for name, child in list(owner.named_children()):
            if isinstance(child, nn.Linear) and name in COLUMNS + ROWS:
                usual = ColumnParallelLinear if name in COLUMNS else RowParallelLinear
                setattr(owner, name, (layers or {}).get(name, usual)(child, group))


def sharded(net: nn.Module, axis: str = "tp") -> dict[str, Placements]:
    """Where the weights stand of the layers that say along which dimension they are cut."""
    return {
        f"{name}.weight": {axis: Shard(module.cut)}
        for name, module in net.named_modules()
        if hasattr(module, "cut")
    }


def step_of(net: nn.Module) -> Callable[..., Tensor]:
    """Forward and backward, nothing else."""

    def step(*inputs: Tensor) -> Tensor:
        loss = net(*inputs)
        loss.backward()
        return loss.detach()

    return step


def rank_at(mesh: DeviceMesh, **elsewhere: int) -> int:
    """The rank whose place on the mesh is this one's, but for the named axes."""
    rank = 0
    for axis in mesh.mesh_dim_names or ():
        rank = rank * mesh[axis].size() + elsewhere.get(axis, mesh.get_local_rank(axis))
    return rank


def reduce_gradients(net: nn.Module, group: Any) -> None:
    """Sums every gradient over the group, in place."""
    for parameter in net.parameters():
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad, group=group)


def data_parallel_step(
    net: nn.Module,
    mesh: DeviceMesh,
    step: Callable[..., Any],
    axis: str = "dp",
    inputs: Sequence[Placements | None] = (),
    **others: Any,
) -> ParallelStep:
    """The step with its inputs cut along the batch, and a loss that is this rank's share of the whole."""
    return ParallelStep(
        step,
        module=net,
        inputs=inputs or [{axis: Shard(0)}, {axis: Shard(0)}],
        outputs=[{axis: Partial()}],
        **others,
    )
