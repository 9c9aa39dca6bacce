"""Ways between parts of the sequence and parts of weights, by functional collectives that have a backward.

No function here reads which rank it is: what a rank gets follows from its place in the group.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
import torch.distributed._functional_collectives as funcol
from torch import Tensor

from ._layers import Ways

__all__ = ["GroupWays"]

Group: TypeAlias = Any

_wait: Any = funcol.wait_tensor


def _gather(x: Tensor, group: Group) -> Any:
    """The sequence, dim 1, joined."""
    return _wait(funcol.all_gather_single(x.contiguous(), 1, group))


def _reduce_scatter(x: Tensor, group: Group) -> Any:
    """The sum, cut along dim 1."""
    return _wait(funcol.reduce_scatter_single(x.contiguous(), "sum", 1, group))


def _all_to_all(x: Tensor, cut: int, join: int, group: Group) -> Tensor:
    """Cut along one dim, a piece to every rank; what came is joined along another."""
    pieces = torch.cat(x.chunk(group.size(), cut))
    came = _wait(funcol.all_to_all_single(pieces, None, None, group))
    return torch.cat(came.chunk(group.size()), join)


class _Whole(torch.autograd.Function):
    """Gathers the sequence; gradients are summed and cut."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Any:
        ctx.group = group
        return _gather(x, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _reduce_scatter(grad, ctx.group), None


class _Summed(torch.autograd.Function):
    """Sums and cuts the sequence; gradients are gathered."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Any:
        ctx.group = group
        return _reduce_scatter(x, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _gather(grad, ctx.group), None


class _Exchanged(torch.autograd.Function):
    """Cuts along one dim and joins along another; gradients go the other way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cut: int, join: int, group: Group) -> Tensor:
        ctx.back, ctx.group = (join, cut), group
        return _all_to_all(x, cut, join, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return _all_to_all(grad, ctx.back[0], ctx.back[1], ctx.group), None, None, None


class GroupWays(Ways):
    """Among the ranks of a tensor-parallel group."""

    def __init__(self, group: Group) -> None:
        self.group = group

    def whole(self, x_BSX: Tensor) -> Tensor:
        """All-gather; reduce-scatter of gradients."""
        return _Whole.apply(x_BSX, self.group)  # type: ignore[no-any-return, no-untyped-call]

    def summed(self, x_BSX: Tensor) -> Tensor:
        """Reduce-scatter; all-gather of gradients."""
        return _Summed.apply(x_BSX, self.group)  # type: ignore[no-any-return, no-untyped-call]

    def columns(self, x_BSX: Tensor) -> Tensor:
        """All-to-all."""
        return _Exchanged.apply(x_BSX, x_BSX.ndim - 1, 1, self.group)  # type: ignore[no-any-return, no-untyped-call]

    def rows(self, x_BSX: Tensor) -> Tensor:
        """All-to-all."""
        return _Exchanged.apply(x_BSX, 1, x_BSX.ndim - 1, self.group)  # type: ignore[no-any-return, no-untyped-call]
