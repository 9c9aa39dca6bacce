"""Bugs of data parallelism: replicas that drift, accumulation, gradients that a reducer loses."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from tensure.capture import ParallelStep

from ._entry import Entry, Site
from ._llama import Llama, MaskedLlama, llama, masked_llama
from ._parallel import data_parallel_step, reduce_gradients, reduce_scatter

__all__ = ["ENTRIES"]

DP = {"dp": 2}


# --- replicas of shards ------------------------------------------------------------------------------


def _sharded_replicas(net: Llama, mesh: DeviceMesh, replicas: bool) -> ParallelStep:
    """Weights sharded by FSDP over one axis; replicas: it also averages gradients over the other."""
    for module in (*net.blocks, net):
        fully_shard(module, mesh=mesh if replicas else mesh["shard"])

    def step(tokens: Tensor, targets: Tensor) -> Tensor:
        loss = net(tokens, targets)
        loss.backward()
        return loss.detach() / dist.get_world_size()

    rows = {"replicate": Shard(0), "shard": Shard(0)}
    return ParallelStep(step, inputs=[rows, rows], outputs=[{"replicate": Partial(), "shard": Partial()}])


# --- accumulation ------------------------------------------------------------------------------------


def _accumulated(net: MaskedLlama, mesh: DeviceMesh, by_all_tokens: bool) -> ParallelStep:
    """Two micro-batches a rank. By all tokens: losses are divided by the unmasked ones of the whole batch."""
    group = mesh.get_group("dp")
    num_micro_batches = 2

    def step(tokens: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
        count = mask.sum()
        dist.all_reduce(count, group=group)
        total = torch.zeros(())
        pieces = (whole.chunk(num_micro_batches) for whole in (tokens, targets, mask))
        for some_tokens, some_targets, some_mask in zip(*pieces, strict=True):
            summed = (net.token_losses(some_tokens, some_targets) * some_mask.flatten()).sum()
            if by_all_tokens:
                loss = summed / count
            else:
                loss = summed / some_mask.sum() / num_micro_batches / group.size()
            loss.backward()
            total += loss.detach()
        reduce_gradients(net, group)
        return total

    return data_parallel_step(net, mesh, step, inputs=[{"dp": Shard(0)}] * 3)


# --- one layer used twice, with a reducer in its backward --------------------------------------------


class _Recurrent(nn.Module):
    """One layer applied twice, then another."""

    hidden = 10

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(self.hidden, self.hidden, bias=False)
        self.out = nn.Linear(self.hidden, 8, bias=False)

    def linear(self, layer: nn.Linear, x: Tensor) -> Tensor:
        return layer(x)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        for _ in range(2):
            x = x + F.silu(self.linear(self.layer, x))
        return (self.linear(self.out, x) - target).pow(2).mean()


def _recurrent() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return _Recurrent(), (torch.randn(6, _Recurrent.hidden), torch.randn(6, 8))


class _ReducedLinear(torch.autograd.Function):
    """A linear layer that hands its weight's gradient to a reducer as soon as there is one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, reducer: Callable[[Tensor], None]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.reducer = reducer
        return x @ weight.t()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        x, weight = ctx.saved_tensors
        ctx.reducer(gradient.t() @ x)
        return gradient @ weight, None, None


def _partitioned(net: _Recurrent, mesh: DeviceMesh, accumulates: bool) -> ParallelStep:
    """ZeRO-2: every rank keeps the summed gradients of its rows, zeros elsewhere."""
    group = mesh.get_group("dp")
    kept: dict[nn.Parameter, Tensor] = {}

    def reduce(weight: nn.Parameter, gradient: Tensor) -> None:
        mine = reduce_scatter(gradient, 0, group)
        kept[weight] = kept[weight] + mine if accumulates and weight in kept else mine

    net.linear = lambda layer, x: _ReducedLinear.apply(x, layer.weight, partial(reduce, layer.weight))

    def step(x: Tensor, target: Tensor) -> Tensor:
        x.requires_grad_()
        loss = net(x, target) / group.size()
        loss.backward()
        for weight, mine in kept.items():
            weight.grad = torch.zeros_like(weight)
            weight.grad.chunk(group.size())[group.rank()].copy_(mine)
        return loss.detach()

    own_rows = {name: {"dp": Partial()} for name, _ in net.named_parameters()}
    return data_parallel_step(net, mesh, step, gradients=own_rows)


# --- a convolution of distributed tensors --------------------------------------------------------------


class _Convolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 5, 3, padding=1)
        self.second = nn.Conv2d(5, 2, 3)

    def forward(self, x_NCHW: Tensor, target_NCHW: Tensor) -> Tensor:
        return (self.second(torch.tanh(self.first(x_NCHW))) - target_NCHW).pow(2).mean()


def _convolution() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return _Convolution(), (torch.randn(4, 3, 8, 7), torch.randn(4, 2, 6, 5))


def _batch_cut(net: _Convolution, mesh: DeviceMesh, weight_gradient: Any) -> ParallelStep:
    """Images are cut along the batch, weights are replicated; their gradients stand as the argument says."""
    for convolution in (net.first, net.second):
        for name, parameter in list(convolution.named_parameters()):
            whole = distribute_tensor(parameter.detach(), mesh, [Replicate()])
            setattr(convolution, name, nn.Parameter(whole))

    def convolved(x: DTensor, layer: nn.Conv2d) -> DTensor:
        weight = layer.weight.to_local(grad_placements=weight_gradient)
        bias = layer.bias.to_local(grad_placements=[Partial()])
        y = F.conv2d(x.to_local(), weight, bias, layer.stride, layer.padding)
        return DTensor.from_local(y, mesh, [Shard(0)])

    def step(x: Tensor, target: Tensor) -> Tensor:
        x, target = (DTensor.from_local(images, mesh, [Shard(0)]) for images in (x, target))
        y = convolved(torch.tanh(convolved(x, net.first)), net.second)
        loss = (y - target).pow(2).mean()
        loss.backward()
        return loss.detach()

    rows = {"dp": Shard(0)}
    return ParallelStep(step, inputs=[rows, rows])


ENTRIES = (
    Entry(
        "replicas_drift",
        "NeMo Automodel PR#3822",
        "Gradients are reduced within every group of shards and not across its replicas, which drift apart.",
        {"replicate": 2, "shard": 2},
        partial(llama, batch=8),
        partial(_sharded_replicas, replicas=True),
        partial(_sharded_replicas, replicas=False),
        Site(("head.weight", "norm.weight"), "all_reduce"),
    ),
    Entry(
        "mean_of_micro_batch_means",
        "transformers PR#34191",
        "Every micro-batch averages over its own unmasked tokens, and these means count the same.",
        DP,
        partial(masked_llama, batch=8),
        partial(_accumulated, by_all_tokens=True),
        partial(_accumulated, by_all_tokens=False),
        Site(("loss", "head.weight"), "div"),
    ),
    Entry(
        "second_use_replaces_gradient",
        "DeepSpeed#8224",
        "A layer used twice hands in two gradients; the reducer keeps the last in the place of their sum.",
        DP,
        _recurrent,
        partial(_partitioned, accumulates=True),
        partial(_partitioned, accumulates=False),
        Site(("layer.weight",), "add"),
    ),
    Entry(
        "convolution_weight_gradient_taken_as_whole",
        "pytorch#191926",
        "With the batch cut, the gradient of a convolution's weight is partial and marked as replicated.",
        DP,
        _convolution,
        partial(_batch_cut, weight_gradient=[Partial()]),
        partial(_batch_cut, weight_gradient=[Replicate()]),
        Site(("first.weight", "second.weight"), "all_reduce"),
    ),
)
