"""Bugs of the gradient's norm: gradients are right, and what they are clipped by is not.

The single device has the norm as a second output: its module differentiates the loss on its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Partial, Shard

from tensure.capture import ParallelStep

from ._entry import Entry, Site
from ._llama import RMSNorm
from ._parallel import ColumnParallelLinear, RowParallelLinear, part, sharded

__all__ = ["ENTRIES"]

TP = {"tp": 2}
BATCH, SEQUENCE, HIDDEN, INNER = 8, 5, 10, 14
HEADS, HEAD_SIZE = 4, 6


def _squares(gradients: Iterable[Tensor | None]) -> Tensor:
    return torch.stack([gradient.pow(2).sum() for gradient in gradients if gradient is not None]).sum()


class _WithNorm(nn.Module):
    """Gives the loss and the norm of all its gradients."""

    predicted: Callable[[Tensor], Tensor]

    def loss(self, x: Tensor, target: Tensor) -> Tensor:
        return (self.predicted(x) - target).pow(2).mean()

    def forward(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        loss = self.loss(x, target)
        gradients = torch.autograd.grad(loss, list(self.parameters()), retain_graph=True)
        return loss, _squares(gradients).sqrt()


class _Perceptron(_WithNorm):
    def __init__(self) -> None:
        super().__init__()
        self.norm = RMSNorm(HIDDEN)
        self.w1 = nn.Linear(HIDDEN, INNER, bias=False)
        self.w2 = nn.Linear(INNER, HIDDEN, bias=False)

    def predicted(self, x: Tensor) -> Tensor:
        return x + self.w2(F.silu(self.w1(self.norm(x))))


class _SinkAttention(_WithNorm):
    """Attention whose heads may also look at nothing: a sink of each takes a share of the softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.wqkv = nn.ModuleList(nn.Linear(HIDDEN, HEADS * HEAD_SIZE, bias=False) for _ in range(3))
        self.sinks = nn.Parameter(torch.empty(HEADS))
        self.wo = nn.Linear(HEADS * HEAD_SIZE, HIDDEN, bias=False)

    def predicted(self, x: Tensor) -> Tensor:
        q, k, v = (cut(x).unflatten(-1, (-1, HEAD_SIZE)).transpose(1, 2) for cut in self.wqkv)
        scores = torch.matmul(q, k.transpose(-1, -2)) * HEAD_SIZE**-0.5
        sinks = self.sinks.view(1, -1, 1, 1).expand(x.shape[0], -1, x.shape[1], 1)
        share = torch.cat((scores, sinks), dim=-1).softmax(-1)[..., :-1]
        return self.wo(torch.matmul(share, v).transpose(1, 2).flatten(2))


def _model(kind: type[_WithNorm]) -> tuple[nn.Module, tuple[Tensor, ...]]:
    return kind(), (torch.randn(BATCH, SEQUENCE, HIDDEN), torch.randn(BATCH, SEQUENCE, HIDDEN))


def _cut(net: _WithNorm, mesh: DeviceMesh, summed: tuple[str, ...]) -> ParallelStep:
    """Tensor parallelism; the squares of the named parameters' gradients are summed over the ranks."""
    group = mesh.get_group("tp")
    parameters = {}
    if isinstance(net, _SinkAttention):
        net.wqkv = nn.ModuleList(ColumnParallelLinear(linear, group) for linear in net.wqkv)
        net.wo = RowParallelLinear(net.wo, group)
        net.sinks = part(net.sinks, 0, group)
        parameters["sinks"] = {"tp": Shard(0)}
    elif isinstance(net, _Perceptron):
        net.w1, net.w2 = ColumnParallelLinear(net.w1, group), RowParallelLinear(net.w2, group)

    def step(x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        loss = net.loss(x, target)
        loss.backward()
        gradients = {name: parameter.grad for name, parameter in net.named_parameters()}
        total = _squares(gradient for name, gradient in gradients.items() if name in summed)
        dist.all_reduce(total, group=group)
        others = [gradient for name, gradient in gradients.items() if name not in summed]
        if others:
            total = total + _squares(others)
        return loss.detach(), total.sqrt()

    return ParallelStep(step, parameters={**sharded(net), **parameters})


def _replicated(net: _WithNorm, mesh: DeviceMesh, averaged_first: bool) -> ParallelStep:
    """Data parallelism; averaged first: before the norm is taken, not after."""
    group = mesh.get_group("dp")

    def average() -> None:
        for parameter in net.parameters():
            parameter.grad /= group.size()

    def step(x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        loss = net.loss(x, target)
        loss.backward()
        for parameter in net.parameters():
            dist.all_reduce(parameter.grad, group=group)
        if averaged_first:
            average()
        norm = _squares(parameter.grad for parameter in net.parameters()).sqrt()
        if not averaged_first:
            average()
        return loss.detach() / group.size(), norm

    rows = {"dp": Shard(0)}
    return ParallelStep(step, inputs=[rows, rows], outputs=[{"dp": Partial()}])


LAYERS = ("w1.weight", "w2.weight")
PROJECTIONS = ("wqkv.0.weight", "wqkv.1.weight", "wqkv.2.weight", "wo.weight")

ENTRIES = (
    Entry(
        "norm_before_averaging",
        "torchtitan#2318",
        "The norm is taken of gradients that are summed over DP and not yet averaged: it is DP-fold.",
        {"dp": 4},
        partial(_model, _Perceptron),
        partial(_replicated, averaged_first=True),
        partial(_replicated, averaged_first=False),
        Site(("output 1",), "div"),
    ),
    Entry(
        "norm_counts_replicated_weight_twice",
        "ROCm/TransformerEngine PR#715",
        "A replicated weight is taken for a cut one, and its squares are summed over the ranks.",
        TP,
        partial(_model, _Perceptron),
        partial(_cut, summed=LAYERS),
        partial(_cut, summed=(*LAYERS, "norm.weight")),
        Site(("output 1",), "all_reduce"),
    ),
    Entry(
        "norm_counts_own_sinks_only",
        "Megatron-LM#7452 (norm of attention sinks)",
        "The sinks of all heads are cut, and a rank adds the squares of its own alone to the norm.",
        TP,
        partial(_model, _SinkAttention),
        partial(_cut, summed=(*PROJECTIONS, "sinks")),
        partial(_cut, summed=PROJECTIONS),
        Site(("output 1",), "all_reduce"),
    ),
)
