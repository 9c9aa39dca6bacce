"""Bugs of sequence parallelism: norms see a part of the sequence, and partial gradients go unsummed."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import SequenceParallel, parallelize_module

from tensure.capture import ParallelStep

from ._entry import Entry, Site
from ._parallel import all_gather, part, reduce_scatter

__all__ = ["ENTRIES"]

TP = {"tp": 2}
BATCH, SEQUENCE, HIDDEN, INNER = 3, 10, 9, 14


class _Perceptrons(nn.Module):
    """Norm, two layers, final norm, and a head that is compared with a target."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(HIDDEN)
        self.w1 = nn.Linear(HIDDEN, INNER, bias=False)
        self.w2 = nn.Linear(INNER, HIDDEN, bias=False)
        self.final_norm = nn.LayerNorm(HIDDEN)
        self.head = nn.Linear(HIDDEN, 8, bias=False)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        x = x + self.w2(F.silu(self.w1(self.norm(x))))
        return (self.head(self.final_norm(x)) - target).pow(2).mean()


def _perceptrons() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return _Perceptrons(), (torch.randn(BATCH, SEQUENCE, HIDDEN), torch.randn(BATCH, SEQUENCE, 8))


# --- Megatron's operators by hand --------------------------------------------------------------------


class _EnterTensorParallel(torch.autograd.Function):
    """Gathers the sequence; gradients are summed and cut."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return all_gather(x, 1, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return reduce_scatter(gradient, 1, ctx.group), None


class _LeaveTensorParallel(torch.autograd.Function):
    """Sums and cuts the sequence; gradients are gathered."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return reduce_scatter(x, 1, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return all_gather(gradient, 1, ctx.group), None


def _norms_summed(net: _Perceptrons, mesh: DeviceMesh, names: tuple[str, ...]) -> ParallelStep:
    """The sequence is cut outside the two layers; gradients of the named norms are summed afterwards."""
    group = mesh.get_group("tp")
    net.w1.weight, net.w2.weight = part(net.w1.weight, 0, group), part(net.w2.weight, 1, group)
    net.head.weight = part(net.head.weight, 0, group)

    def step(x: Tensor, target: Tensor) -> Tensor:
        inner = net.w1(_EnterTensorParallel.apply(net.norm(x), group))
        x = x + _LeaveTensorParallel.apply(net.w2(F.silu(inner)), group)
        out = net.head(_EnterTensorParallel.apply(net.final_norm(x), group))
        loss = (out - target).pow(2).mean() / group.size()
        loss.backward()
        for name in names:
            for parameter in net.get_submodule(name).parameters():
                dist.all_reduce(parameter.grad, group=group)
        return loss.detach()

    return ParallelStep(
        step,
        inputs=[{"tp": Shard(1)}, {"tp": Shard(2)}],
        outputs=[{"tp": Partial()}],
        parameters={
            "w1.weight": {"tp": Shard(0)},
            "w2.weight": {"tp": Shard(1)},
            "head.weight": {"tp": Shard(0)},
        },
    )


# --- distributed tensors that leave and come back ----------------------------------------------------


class _Experts(nn.Module):
    """All experts on all tokens, weighted by a router; a norm before, a residual around."""

    num_experts = 4

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(HIDDEN)
        self.router = nn.Linear(HIDDEN, self.num_experts, bias=False)
        self.w1 = nn.Parameter(torch.empty(self.num_experts, HIDDEN, INNER))
        self.w2 = nn.Parameter(torch.empty(self.num_experts, INNER, HIDDEN))

    def experts(self, x: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
        share = self.router(x).softmax(-1)
        inner = F.silu(torch.einsum("bsh,ehf->bsef", x, w1))
        return torch.einsum("bsef,efh,bse->bsh", inner, w2, share)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return (x + self.experts(self.norm(x), self.w1, self.w2) - target).pow(2).mean()


def _experts() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return _Experts(), (torch.randn(BATCH, SEQUENCE, HIDDEN), torch.randn(BATCH, SEQUENCE, HIDDEN))


def _experts_twin(net: _Experts, mesh: DeviceMesh, placements: Any) -> ParallelStep:
    """Every expert is cut along its inner size; the norm's output is gathered and made plain.

    `placements` says where its gradient stands; None: where the tensor itself does.
    """
    group = mesh.get_group("tp")
    parallelize_module(net.norm, mesh, SequenceParallel(use_local_output=False))
    net.w1, net.w2 = part(net.w1, 2, group), part(net.w2, 1, group)

    def step(x: Tensor, target: Tensor) -> Tensor:
        x = DTensor.from_local(x, mesh, [Shard(1)])
        whole = net.norm(x).redistribute(placements=[Replicate()]).to_local(grad_placements=placements)
        y = DTensor.from_local(net.experts(whole, net.w1, net.w2), mesh, [Partial()])
        y = y.redistribute(placements=[Shard(1)])
        loss = (x + y - DTensor.from_local(target, mesh, [Shard(1)])).pow(2).mean()
        loss.backward()
        dist.all_reduce(net.router.weight.grad, group=group)
        return loss.detach()

    return ParallelStep(
        step,
        inputs=[{"tp": Shard(1)}, {"tp": Shard(1)}],
        parameters={"w1": {"tp": Shard(2)}, "w2": {"tp": Shard(1)}},
    )


def _layers_twin(net: _Perceptrons, mesh: DeviceMesh, inward: Any, outward: Any) -> ParallelStep:
    """Two cut layers on plain tensors between distributed ones.

    Args:
        net: with its norms and its head replicated, as distributed tensors.
        mesh: of one axis.
        inward: where the gradient stands of what enters the two layers.
        outward: where it stands of their partial output, which leaves and comes back once more.
    """
    group = mesh.get_group("tp")
    w1, w2 = part(net.w1.weight, 0, group), part(net.w2.weight, 1, group)
    for module in (net.norm, net.final_norm, net.head):
        for name, parameter in list(module.named_parameters()):
            setattr(module, name, nn.Parameter(distribute_tensor(parameter.detach(), mesh, [Replicate()])))
    net.w1.weight, net.w2.weight = w1, w2

    def step(x: Tensor, target: Tensor) -> Tensor:
        x, target = (DTensor.from_local(whole, mesh, [Replicate()]) for whole in (x, target))
        inner = net.norm(x).to_local(grad_placements=inward)
        y = DTensor.from_local(net.w2(F.silu(net.w1(inner))), mesh, [Partial()])
        y = DTensor.from_local(y.to_local(grad_placements=outward), mesh, [Partial()])
        out = net.head(net.final_norm(x + y.redistribute(placements=[Replicate()])))
        loss = (out - target).pow(2).mean()
        loss.backward()
        return loss.detach()

    return ParallelStep(step, parameters={"w1.weight": {"tp": Shard(0)}, "w2.weight": {"tp": Shard(1)}})


_layers_fixed = partial(_layers_twin, inward=[Partial()], outward=[Replicate()])

ENTRIES = (
    Entry(
        "final_norm_gradient_not_summed",
        "Megatron-LM#1446",
        "The final norm sees a part of the sequence on every rank, and its gradients are not summed.",
        TP,
        _perceptrons,
        partial(_norms_summed, names=("norm", "final_norm")),
        partial(_norms_summed, names=("norm",)),
        Site(("final_norm.weight", "final_norm.bias"), "all_reduce"),
    ),
    Entry(
        "to_local_without_grad_placements",
        "torchtitan#1805",
        "A gathered tensor leaves as a plain one, and its partial gradient is taken for a whole one.",
        TP,
        _experts,
        partial(_experts_twin, placements=[Partial()]),
        partial(_experts_twin, placements=None),
        Site(("norm.weight", "norm.bias"), "reduce_scatter"),
    ),
    Entry(
        "partial_gradient_not_redistributed",
        "pytorch PR#167686",
        "A partial gradient on the way back to a replicated tensor is not summed.",
        TP,
        _perceptrons,
        _layers_fixed,
        partial(_layers_twin, inward=[Replicate()], outward=[Replicate()]),
        Site(("norm.weight", "norm.bias"), "all_reduce"),
    ),
    Entry(
        "partial_leaves_and_comes_back",
        "pytorch#172932",
        "A partial tensor leaves and comes back; its gradient, the same on all ranks, is taken for partial.",
        TP,
        _perceptrons,
        _layers_fixed,
        partial(_layers_twin, inward=[Partial()], outward=[Partial()]),
        Site(("w1.weight", "w2.weight"), "all_reduce"),
    ),
)
