"""What hand-written parallel steps are made of: collectives with a backward, cut layers, reductions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
import torch.nn.functional as F
from torch import Tensor, nn

from tensure.capture import ModelFunction, ParallelFunction

__all__ = [
    "ColumnLinear",
    "Mesh",
    "ParallelPlan",
    "RowLinear",
    "all_gather",
    "all_reduce",
    "copy_to",
    "exchange",
    "gather_from",
    "part",
    "place",
    "reduce_all",
    "reduce_from",
    "reduce_scatter",
    "run",
    "scatter_to",
]

Mesh: TypeAlias = Any
"""A torch DeviceMesh."""
Group: TypeAlias = Any


_wait: Any = funcol.wait_tensor


@dataclass(frozen=True)
class ParallelPlan:
    """A correct parallel training step: name, what it must compute, how it is made parallel, and where."""

    name: str
    model: ModelFunction
    parallel: ParallelFunction
    mesh: dict[str, int]


def all_reduce(x: Tensor, group: Group, op: str = "sum") -> Any:
    """A new tensor, reduced."""
    return _wait(funcol.all_reduce(x.contiguous(), op, group))


def all_gather(x: Tensor, dim: int, group: Group) -> Any:
    """Joined along a dim, in the order of ranks."""
    return _wait(funcol.all_gather_single(x.contiguous(), dim, group))


def reduce_scatter(x: Tensor, dim: int, group: Group) -> Any:
    """Summed, and cut along a dim."""
    return _wait(funcol.reduce_scatter_single(x.contiguous(), "sum", dim, group))


def _all_to_all(x: Tensor, cut: int, join: int, group: Group) -> Tensor:
    """Cut along one dim, a piece to every rank; what came is joined along another."""
    pieces = torch.stack(x.chunk(group.size(), cut)).contiguous()
    came = _wait(funcol.all_to_all_single(pieces, None, None, group))
    return torch.cat(came.unbind(), join)


class _CopyTo(torch.autograd.Function):
    """The same on every rank; gradients are summed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Any:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return all_reduce(grad, ctx.group), None


class _ReduceFrom(torch.autograd.Function):
    """Summed over ranks; the gradient is already the same on all."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Any:
        return all_reduce(x, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _GatherFrom(torch.autograd.Function):
    """Joined along a dim; what every rank's use of the whole gives back is summed and cut again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, group: Group) -> Any:
        ctx.dim, ctx.group = dim, group
        return all_gather(x, dim, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return reduce_scatter(grad, ctx.dim, ctx.group), None, None


class _ScatterTo(torch.autograd.Function):
    """Summed and cut along a dim; gradients are joined."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, group: Group) -> Any:
        ctx.dim, ctx.group = dim, group
        return reduce_scatter(x, dim, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return all_gather(grad, ctx.dim, ctx.group), None, None


class _Exchange(torch.autograd.Function):
    """All-to-all; its backward goes the other way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cut: int, join: int, group: Group) -> Any:
        ctx.back, ctx.group = (join, cut), group
        return _all_to_all(x, cut, join, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return (_all_to_all(grad, ctx.back[0], ctx.back[1], ctx.group), None, None, None)


# torch does not say what `apply` takes.
copy_to: Any = _CopyTo.apply
reduce_from: Any = _ReduceFrom.apply
gather_from: Any = _GatherFrom.apply
scatter_to: Any = _ScatterTo.apply
exchange: Any = _Exchange.apply


def part(whole: Tensor, dim: int, group: Group) -> nn.Parameter:
    """This rank's chunk of a parameter."""
    return nn.Parameter(whole.detach().chunk(group.size(), dim)[group.rank()].clone())


class ColumnLinear(nn.Module):
    """A linear layer cut along its outputs; enters by `enter` (CopyTo unless said otherwise)."""

    def __init__(
        self, linear: nn.Linear, group: Group, enter: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        self.weight = part(linear.weight, 0, group)
        self.bias = None if linear.bias is None else part(linear.bias, 0, group)
        self.enter = enter or (lambda x: copy_to(x, group))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.enter(x), self.weight, self.bias)


class RowLinear(nn.Module):
    """A linear layer cut along its inputs; leaves by `leave` (ReduceFrom unless said otherwise)."""

    def __init__(
        self, linear: nn.Linear, group: Group, leave: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        self.weight = part(linear.weight, 1, group)
        self.bias = linear.bias
        self.leave = leave or (lambda x: reduce_from(x, group))

    def forward(self, x: Tensor) -> Tensor:
        out = self.leave(F.linear(x, self.weight))
        return out if self.bias is None else out + self.bias


def run(net: Any, inputs: Sequence[Tensor], scale: float = 1.0) -> Any:
    """Forward, backward of the scaled loss; the scaled loss."""
    loss = net(*inputs) * scale if scale != 1.0 else net(*inputs)
    loss.backward()
    return loss.detach()


def reduce_all(net: nn.Module, group: Group) -> None:
    """Sum every gradient over a group, in place."""
    for parameter in net.parameters():
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad, group=group)


def place(mesh: Mesh, **elsewhere: int) -> int:
    """The number of the rank that stands where this one does, but for the named axes."""
    number = 0
    for axis in mesh.mesh_dim_names:
        number = number * mesh[axis].size() + elsewhere.get(axis, mesh.get_local_rank(axis))
    return number
