"""Bugs of single ops and collectives in TrainVerify's study, on a Llama block cut over two ranks."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from tensure.capture import ParallelStep

from ._entry import Entry, Site
from ._llama import FeedForward, Llama, llama, rotate
from ._parallel import (
    ColumnParallelLinear,
    CopyToGroup,
    RowParallelLinear,
    all_gather,
    all_reduce,
    part,
    sharded,
    step_of,
    tensor_parallel,
)

__all__ = ["ENTRIES"]

MESH = {"tp": 2}
ATTENTION, FEED_FORWARD = "blocks.0.attention", "blocks.0.feed_forward"


def _twin(net: Llama, mesh: DeviceMesh, layers: dict[str, type[nn.Module]] | None = None) -> ParallelStep:
    tensor_parallel(net, mesh.get_group("tp"), layers)
    return ParallelStep(step_of(net), parameters=sharded(net))


# --- 1 to 3: the sum over ranks after a row-parallel layer -------------------------------------------


class _NoReduce(RowParallelLinear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


class _ReduceDropped(RowParallelLinear):
    """The functional collective is called as if it worked in place."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight)
        all_reduce(y.detach(), self.group)
        return y


class _GatherFromGroup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        return all_gather(x, 0, group)[: x.shape[0]]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _Gathered(RowParallelLinear):
    def forward(self, x: Tensor) -> Tensor:
        return _GatherFromGroup.apply(F.linear(x, self.weight), self.group)


# --- 4: weights kept in parts and gathered where they are used ---------------------------------------


class _GatherWeight(torch.autograd.Function):
    """The whole weight of all ranks' parts; every rank computes the same, so its gradient is cut again."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, dim: int, group: Any) -> Tensor:
        ctx.dim, ctx.group = dim, group
        return all_gather(weight, dim, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient.chunk(ctx.group.size(), ctx.dim)[ctx.group.rank()], None, None


class _SumWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, dim: int, group: Any) -> Tensor:
        return all_reduce(weight, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient, None, None


class _GatheredLinear(nn.Module):
    def __init__(self, linear: nn.Linear, cut: int, group: Any, collective: Any) -> None:
        super().__init__()
        self.weight = part(linear.weight, cut, group)
        self.cut, self.group, self.collective = cut, group, collective

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.collective.apply(self.weight, self.cut, self.group))


def _gathered_feed_forward(net: Llama, mesh: DeviceMesh, collective: Any) -> ParallelStep:
    group = mesh.get_group("tp")
    for name, cut in (("w1", 0), ("w3", 0), ("w2", 1)):
        owner = net.blocks[0].feed_forward
        setattr(owner, name, _GatheredLinear(getattr(owner, name), cut, group, collective))
    return ParallelStep(step_of(net), parameters=sharded(net))


# --- 5: a fused op whose backward must sum the gradient of its input ---------------------------------


class _FusedSwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w1: Tensor, w3: Tensor, group: Any, reduced: bool) -> Tensor:
        ctx.group, ctx.reduced = group, reduced
        gate, up = x @ w1.t(), x @ w3.t()
        ctx.save_for_backward(x, w1, w3, gate, up)
        return F.silu(gate) * up

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, w1, w3, gate, up = ctx.saved_tensors
        sigmoid = torch.sigmoid(gate)
        d_gate = gradient * up * (sigmoid + gate * sigmoid * (1 - sigmoid))
        d_up = gradient * gate * sigmoid
        d_x = d_gate @ w1 + d_up @ w3
        if ctx.reduced:
            d_x = all_reduce(d_x, ctx.group)
        flat = x.flatten(0, -2)
        return d_x, d_gate.flatten(0, -2).t() @ flat, d_up.flatten(0, -2).t() @ flat, None, None


class _FusedFeedForward(nn.Module):
    def __init__(self, whole: FeedForward, group: Any, reduced: bool) -> None:
        super().__init__()
        self.w1 = ColumnParallelLinear(whole.w1, group)
        self.w3 = ColumnParallelLinear(whole.w3, group)
        self.w2 = RowParallelLinear(whole.w2, group)
        self.group, self.reduced = group, reduced

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(_FusedSwiGLU.apply(x, self.w1.weight, self.w3.weight, self.group, self.reduced))


def _fused(net: Llama, mesh: DeviceMesh, reduced: bool) -> ParallelStep:
    block = net.blocks[0]
    block.feed_forward = _FusedFeedForward(block.feed_forward, mesh.get_group("tp"), reduced)
    return _twin(net, mesh)


# --- 7 to 9, 12, 13: constants -----------------------------------------------------------------------


def _constants(
    net: Llama, mesh: DeviceMesh, *, ranks: tuple[int, ...] = (0, 1), eps: float = 1.0, scale: float = 1.0
) -> ParallelStep:
    """The twin with the norm's epsilon and the attention's scale multiplied, on some ranks."""
    if mesh.get_rank() in ranks:
        net.blocks[0].feed_forward_norm.eps *= eps
        net.blocks[0].attention.scale *= scale
    return _twin(net, mesh)


def _cubed(net: Llama, mesh: DeviceMesh) -> ParallelStep:
    net.blocks[0].attention_norm.power = 3
    return _twin(net, mesh)


# --- 10: one value with several consumers ------------------------------------------------------------


class _Fork(torch.autograd.Function):
    """One value for three consumers; backward adds what they hand back, picked by `order`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: tuple[int, int, int]) -> tuple[Tensor, Tensor, Tensor]:
        ctx.order = order
        return x.view_as(x), x.view_as(x), x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        first, second, third = (gradients[index] for index in ctx.order)
        return first + second + third, None


def _forked(net: Llama, mesh: DeviceMesh, order: tuple[int, int, int]) -> ParallelStep:
    step = _twin(net, mesh)
    attention, group = net.blocks[0].attention, mesh.get_group("tp")

    def project(x: Tensor) -> tuple[Tensor, ...]:
        copies = _Fork.apply(CopyToGroup.apply(x, group), order)
        weights = attention.wq.weight, attention.wk.weight, attention.wv.weight
        return tuple(F.linear(copy, weight) for copy, weight in zip(copies, weights, strict=True))

    attention.project = project
    return step


# --- 11: a fused op of two values --------------------------------------------------------------------


def _rotated_back(d_x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The transpose of `rotate`, whatever the tables hold: rotating by -sin would need equal halves."""
    first, second = (d_x * sin).chunk(2, dim=-1)
    return d_x * cos + torch.cat((second, -first), dim=-1)


class _FusedRotate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, swapped: bool
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        ctx.swapped = swapped
        return rotate(q, cos, sin), rotate(k, cos, sin)

    @staticmethod
    def backward(ctx: Any, d_q: Tensor, d_k: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        d_q, d_k = _rotated_back(d_q, cos, sin), _rotated_back(d_k, cos, sin)
        return (d_k, d_q, None, None, None) if ctx.swapped else (d_q, d_k, None, None, None)


def _fused_rotation(net: Llama, mesh: DeviceMesh, swapped: bool) -> ParallelStep:
    attention = net.blocks[0].attention
    attention.rotate_both = lambda *values: _FusedRotate.apply(*values, swapped)
    return _twin(net, mesh)


# --- the entries -------------------------------------------------------------------------------------


def _entry(number: int, name: str, what: str, fixed: Any, buggy: Any, at: Site) -> Entry:
    return Entry(name, f"TrainVerify bug {number}", what, MESH, llama, fixed, buggy, at)


ENTRIES = (
    _entry(
        1,
        "missing_all_reduce",
        "The attention's output projection is cut along its inputs; its partial outputs are never summed.",
        _twin,
        partial(_twin, layers={"wo": _NoReduce}),
        Site(("loss", f"{ATTENTION}.wo.weight"), "all_reduce"),
    ),
    _entry(
        2,
        "all_reduce_result_dropped",
        "The partial outputs of the feed-forward are summed, and the unsummed ones are used.",
        _twin,
        partial(_twin, layers={"w2": _ReduceDropped}),
        Site(("loss", f"{FEED_FORWARD}.w2.weight"), "all_reduce"),
    ),
    _entry(
        3,
        "all_gather_for_all_reduce",
        "Partial outputs are gathered where they must be summed; all ranks go on with those of rank 0.",
        _twin,
        partial(_twin, layers={"wo": _Gathered}),
        Site(("loss", f"{ATTENTION}.wo.weight"), "all_gather"),
    ),
    _entry(
        4,
        "all_reduce_for_all_gather",
        "Weights kept in parts are summed where they must be gathered.",
        partial(_gathered_feed_forward, collective=_GatherWeight),
        partial(_gathered_feed_forward, collective=_SumWeight),
        Site(("loss", f"{FEED_FORWARD}.w1.weight"), "all_reduce"),
    ),
    _entry(
        5,
        "fused_backward_without_reduce",
        "The hand-written backward of a fused op leaves the gradient of its input unsummed.",
        partial(_fused, reduced=True),
        partial(_fused, reduced=False),
        Site(("blocks.0.feed_forward_norm.weight",), "all_reduce"),
    ),
    _entry(
        7,
        "wrong_constant_in_add_on_one_rank",
        "A norm adds another epsilon on rank 1.",
        _constants,
        partial(_constants, ranks=(1,), eps=10.0),
        Site(("loss",), "add", (1,)),
    ),
    _entry(
        8,
        "wrong_constant_in_pow",
        "A norm averages cubes in the place of squares.",
        _twin,
        _cubed,
        Site(("loss",), "pow"),
    ),
    _entry(
        9,
        "wrong_constant_in_add_on_all_ranks",
        "A norm adds another epsilon on every rank.",
        _constants,
        partial(_constants, eps=10.0),
        Site(("loss",), "add"),
    ),
    _entry(
        10,
        "fork_backward_with_wrong_inputs",
        "Where a value has three consumers, backward adds one's gradient twice and leaves another's out.",
        partial(_forked, order=(0, 1, 2)),
        partial(_forked, order=(0, 1, 1)),
        Site(("blocks.0.attention_norm.weight",), "add"),
    ),
    _entry(
        11,
        "rope_backward_outputs_swapped",
        "The backward of a fused rotation hands the query's gradient to the key, and the other way round.",
        partial(_fused_rotation, swapped=False),
        partial(_fused_rotation, swapped=True),
        Site((f"{ATTENTION}.wq.weight", f"{ATTENTION}.wk.weight"), "mul"),
    ),
    _entry(
        12,
        "wrong_scaling_on_one_rank",
        "The attention of rank 1 scales its scores by another constant.",
        _constants,
        partial(_constants, ranks=(1,), scale=0.5),
        Site(("loss",), "mul", (1,)),
    ),
    _entry(
        13,
        "wrong_scaling_on_all_ranks",
        "The attention scales its scores by another constant on every rank.",
        _constants,
        partial(_constants, scale=0.5),
        Site(("loss",), "mul"),
    ),
)
