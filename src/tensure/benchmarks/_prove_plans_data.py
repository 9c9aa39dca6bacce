"""Correct data-parallel steps: replicas, weights in shards, accumulation, and meshes of both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed._composable.replicate import replicate
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Partial, Shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from tensure.capture import ParallelStep, Placements

from ._prove_models import SGDStep
from ._prove_parts import (
    ColumnLinear,
    Mesh,
    ParallelPlan,
    RowLinear,
    all_gather,
    all_reduce,
    reduce_all,
    reduce_scatter,
    run,
)
from ._prove_plans_tensor import cnn, llama, megatron, mlp, tensor_parallel

__all__ = ["plans", "rows"]


def rows(
    step: Any, net: nn.Module | None = None, axes: Sequence[str] = ("dp",), inputs: int = 2, **rest: Any
) -> ParallelStep:
    """A step on this rank's rows of the batch, whose loss is its share of the whole."""
    cut: Placements = {axis: Shard(0) for axis in axes}
    shares: Placements = {axis: Partial() for axis in axes}
    return ParallelStep(step, net, [cut] * inputs, [shares], **rest)


# --- replicas ------------------------------------------------------------------------------------------


def _replicas(net: Any, mesh: Mesh) -> ParallelStep:
    def step(*inputs: Tensor) -> Any:
        loss = run(net, inputs, 1 / mesh.size())
        reduce_all(net, mesh.get_group("dp"))
        return loss

    return rows(step)


def _averaged(net: Any, mesh: Mesh) -> ParallelStep:
    """Sums first, then divides."""

    def step(*inputs: Tensor) -> Any:
        loss = run(net, inputs)
        for parameter in net.parameters():
            dist.all_reduce(parameter.grad, group=mesh.get_group("dp"))
            parameter.grad /= mesh.size()
        return loss / mesh.size()

    return rows(step)


def _flat(net: Any, mesh: Mesh) -> ParallelStep:
    """All gradients in one flat buffer, reduced at once, and taken apart again."""

    def step(*inputs: Tensor) -> Any:
        loss = run(net, inputs, 1 / mesh.size())
        parameters = list(net.parameters())
        flat: Any = torch.cat([parameter.grad.flatten() for parameter in parameters])
        dist.all_reduce(flat, group=mesh.get_group("dp"))
        for parameter, piece in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = piece.view_as(parameter).clone()
        return loss

    return rows(step)


def _ddp(net: Any, mesh: Mesh, accumulate: int = 1, inputs: int = 2, **options: Any) -> ParallelStep:
    """torch's; accumulate: so many micro-batches, of which the last one alone is reduced."""
    wrapped = DistributedDataParallel(net, process_group=mesh.get_group("dp"), **options)

    def step(*whole: Tensor) -> Any:
        total = torch.zeros(())
        for at, some in enumerate(zip(*(item.chunk(accumulate) for item in whole), strict=True)):
            with nullcontext() if at == accumulate - 1 else wrapped.no_sync():
                total = total + run(wrapped, some, 1 / accumulate)
        return total / mesh.size()

    return rows(step, inputs=inputs)


def _composable(net: Any, mesh: Mesh) -> ParallelStep:
    replicate(net, process_group=mesh.get_group("dp"))
    return rows(lambda *inputs: run(net, inputs) / mesh.size())


def _uneven(net: Any, mesh: Mesh) -> ParallelStep:
    """A batch that does not divide: losses are summed and divided by the whole batch."""

    def step(x: Tensor, target: Tensor) -> Any:
        loss = (net.output(x) - target).pow(2).sum() / 30
        loss.backward()
        reduce_all(net, mesh.get_group("dp"))
        return loss.detach()

    return rows(step)


def _tokens(net: Any, mesh: Mesh, micro_batches: int = 1) -> ParallelStep:
    """Losses of unmasked tokens over their number in the whole batch."""
    group = mesh.get_group("dp")

    def step(tokens: Tensor, targets: Tensor, mask: Tensor) -> Any:
        count = all_reduce(mask.sum(), group)
        total = torch.zeros(())
        pieces = (item.chunk(micro_batches) for item in (tokens, targets, mask))
        for some_tokens, some_targets, some_mask in zip(*pieces, strict=True):
            loss = (net.losses(some_tokens, some_targets) * some_mask.flatten()).sum() / count
            loss.backward()
            total = total + loss.detach()
        reduce_all(net, group)
        return total

    return rows(step, inputs=3)


def _micro_batches(net: Any, mesh: Mesh, count: int) -> ParallelStep:
    def step(*whole: Tensor) -> Any:
        total = torch.zeros(())
        for some in zip(*(item.chunk(count) for item in whole), strict=True):
            total = total + run(net, some, 1 / (count * mesh.size()))
        reduce_all(net, mesh.get_group("dp"))
        return total

    return rows(step)


# --- weights in shards, by torch ---------------------------------------------------------------------


def _fsdp(
    net: nn.Module,
    mesh: Mesh,
    modules: Sequence[str] = (),
    micro_batches: int = 1,
    recompute: bool = False,
    **options: Any,
) -> ParallelStep:
    """Torch's FSDP2: the named modules as groups of their own, then the rest."""
    for name in modules:
        module = net.get_submodule(name)
        if recompute:
            inner = module.forward
            module.forward = lambda x, inner=inner: checkpoint(inner, x, use_reentrant=False)
        fully_shard(module, mesh=mesh, **options)
    fully_shard(net, mesh=mesh, **options)

    def step(*whole: Tensor) -> Any:
        total = torch.zeros(())
        wrapped: Any = net
        for at, some in enumerate(zip(*(item.chunk(micro_batches) for item in whole), strict=True)):
            wrapped.set_requires_gradient_sync(at == micro_batches - 1)
            total = total + run(net, some, 1 / micro_batches)
        return total / mesh.size()

    return rows(step, axes=mesh.mesh_dim_names)


def _fsdp_summed(net: Any, mesh: Mesh) -> ParallelStep:
    """Gradients are summed, not averaged; the loss is a share from the start."""
    wrapped: Any = fully_shard(net, mesh=mesh)
    wrapped.set_gradient_divide_factor(1.0)
    wrapped.set_force_sum_reduction_for_comms(True)
    return rows(lambda *inputs: run(net, inputs, 1 / mesh.size()))


def _fsdp_tp(net: Any, mesh: Mesh, shards: Sequence[str] = ("dp",), sequence: bool = False) -> ParallelStep:
    """Tensor parallel inside, weights in shards (and replicas) outside."""
    tensor_parallel(net, mesh["tp"], sequence)
    outer = mesh[tuple(shards)]
    for block in net.blocks:
        fully_shard(block, mesh=outer)
    fully_shard(net, mesh=outer)
    return rows(lambda *inputs: run(net, inputs) / outer.size(), axes=shards)


# --- by hand: ZeRO ---------------------------------------------------------------------------------------


def _zero(net: Any, mesh: Mesh, stage: int) -> ParallelStep:
    """Gradients reduced whole, of which a rank keeps a part (1), or reduced into parts at once (2)."""
    group = mesh.get_group("dp")

    def step(*inputs: Tensor) -> Any:
        loss = run(net, inputs, 1 / mesh.size())
        for parameter in net.parameters():
            grad: Any = parameter.grad
            if stage == 1:
                kept = all_reduce(grad, group).chunk(group.size())[group.rank()]
            else:
                kept = reduce_scatter(grad, 0, group)
            parameter.grad = torch.zeros_like(parameter)
            parameter.grad.chunk(group.size())[group.rank()].copy_(kept)
        return loss

    sums: Placements = {"dp": Partial()}
    return rows(step, gradients={name: sums for name, _ in net.named_parameters()})


class _Unshard(torch.autograd.Function):
    """A weight, joined of all ranks' parts for its use; its gradient is reduced into parts."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, group: Any) -> Any:
        ctx.group = group
        return all_gather(weight, 0, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return reduce_scatter(grad, 0, ctx.group), None


_unshard: Any = _Unshard.apply


def _zero3(net: Any, mesh: Mesh) -> ParallelStep:
    """Every weight lives in parts; it is whole only while a layer runs."""
    group = mesh.get_group("dp")
    for layer in (net.up, net.down):
        for name, whole in list(layer.named_parameters()):
            setattr(layer, name, nn.Parameter(whole.detach().chunk(group.size())[group.rank()].clone()))
        layer.forward = lambda x, layer=layer: F.linear(
            x, _unshard(layer.weight, group), _unshard(layer.bias, group)
        )
    shards: Placements = {"dp": Shard(0)}
    placed = {name: shards for name, _ in net.named_parameters()}
    return rows(lambda *inputs: run(net, inputs, 1 / mesh.size()), parameters=placed)


# --- a whole step of descent ---------------------------------------------------------------------------


def _sgd() -> tuple[SGDStep, tuple[Tensor, ...]]:
    return SGDStep(), (torch.randn(4, 6), torch.randn(4, 6))


def _descent(net: Any, mesh: Mesh, sharded: bool) -> ParallelStep:
    """Sharded: ZeRO-1. A rank updates its part of every parameter, and all parts are gathered."""
    group = mesh.get_group("dp")
    parameters = list(net.parameters())

    def own(whole: Tensor) -> Any:
        return whole.chunk(group.size())[group.rank()]

    def step(x: Tensor, target: Tensor) -> Any:
        loss = net.net(x, target) / mesh.size()
        loss.backward()
        reduce_all(net, group)
        grads: list[Any] = [parameter.grad for parameter in parameters]
        if not sharded:
            norm = torch.stack([grad.pow(2).sum() for grad in grads]).sum().sqrt()
            rate = net.RATE / (norm + 1.0)
            return (
                loss.detach(),
                norm,
                *((p - rate * g).detach() for p, g in zip(parameters, grads, strict=True)),
            )
        squares = torch.stack([own(grad).pow(2).sum() for grad in grads]).sum()
        norm = all_reduce(squares, group).sqrt()
        rate = net.RATE / (norm + 1.0)
        new = [
            all_gather((own(p) - rate * own(g)).detach(), 0, group)
            for p, g in zip(parameters, grads, strict=True)
        ]
        return loss.detach(), norm, *new

    return rows(step)


def _norm_of_cuts(net: Any, mesh: Mesh) -> ParallelStep:
    """Tensor parallel; squares of cut gradients are summed over ranks, those of whole ones are not."""
    group = mesh.get_group("tp")
    inner = net.net
    inner.up, inner.down = ColumnLinear(inner.up, group), RowLinear(inner.down, group)
    cut, split, whole = {"tp": Shard(0)}, {"tp": Shard(1)}, None
    placements = {"net.up.weight": cut, "net.up.bias": cut, "net.down.weight": split}

    def step(x: Tensor, target: Tensor) -> Any:
        loss = run(inner, (x, target))
        own: Any = [p.grad for name, p in net.named_parameters() if name in placements]
        shared: Any = inner.down.bias.grad
        squares = all_reduce(torch.stack([grad.pow(2).sum() for grad in own]).sum(), group)
        norm = (squares + shared.pow(2).sum()).sqrt()
        rate = net.RATE / (norm + 1.0)
        return loss, norm, *((p - rate * p.grad).detach() for p in net.parameters())

    outputs: list[Placements | None] = [None, None, cut, cut, split, whole]
    return ParallelStep(step, outputs=outputs, parameters=placements)


def _megatron_ddp(net: Any, mesh: Mesh) -> ParallelStep:
    """Tensor parallel by hand inside, replicas by hand outside."""
    placed = megatron(net, mesh.get_group("tp"))

    def step(*inputs: Tensor) -> Any:
        loss = run(net, inputs, 1 / mesh["dp"].size())
        reduce_all(net, mesh.get_group("dp"))
        return loss

    return rows(step, parameters=placed)


BLOCKS = ("blocks.0", "blocks.1")


def plans() -> Iterator[ParallelPlan]:
    """All of this file's."""
    dp: dict[str, int] = {"dp": 2}
    four, pair = partial(llama, batch=4), partial(llama, batch=4, blocks=2)
    masked = partial(llama, batch=4, masked=True)
    yield ParallelPlan("replicas of an MLP", mlp, _replicas, {"dp": 4})
    yield ParallelPlan("replicas of Llama", llama, _replicas, dp)
    yield ParallelPlan("replicas of a CNN, summed then divided", cnn, _averaged, dp)
    yield ParallelPlan("replicas with one flat buffer of gradients", mlp, _flat, dp)
    yield ParallelPlan("DDP of an MLP", mlp, _ddp, dp)
    yield ParallelPlan("DDP of Llama", llama, _ddp, dp)
    yield ParallelPlan("DDP of a CNN", cnn, _ddp, dp)
    yield ParallelPlan("DDP over 4 ranks", four, _ddp, {"dp": 4})
    yield ParallelPlan("DDP with accumulation", four, partial(_ddp, accumulate=2), dp)
    yield ParallelPlan("DDP with a static graph", llama, partial(_ddp, static_graph=True), dp)
    yield ParallelPlan("DDP with small buckets", pair, partial(_ddp, bucket_cap_mb=0.001), dp)
    yield ParallelPlan(
        "DDP with gradients as views of buckets", llama, partial(_ddp, gradient_as_bucket_view=True), dp
    )
    yield ParallelPlan("replicate", llama, _composable, dp)
    yield ParallelPlan("5 rows over 2 ranks", partial(mlp, batch=5), _uneven, dp)
    yield ParallelPlan("losses over all unmasked tokens", masked, _tokens, dp)
    yield ParallelPlan(
        "micro-batches over all unmasked tokens", masked, partial(_tokens, micro_batches=2), dp
    )
    yield ParallelPlan("4 micro-batches", partial(mlp, batch=8), partial(_micro_batches, count=4), dp)
    yield ParallelPlan("2 micro-batches of Llama", four, partial(_micro_batches, count=2), dp)
    yield ParallelPlan("FSDP2 of an MLP", mlp, _fsdp, dp)
    yield ParallelPlan(
        "FSDP2 of an MLP of 7 and 9 units over 4 ranks", partial(mlp, hidden=7, inner=9), _fsdp, {"dp": 4}
    )
    yield ParallelPlan("FSDP2 of a CNN", cnn, _fsdp, dp)
    yield ParallelPlan("FSDP2 of Llama as one group", llama, _fsdp, dp)
    yield ParallelPlan("FSDP2 of blocks", pair, partial(_fsdp, modules=BLOCKS), dp)
    yield ParallelPlan("FSDP2 of blocks over 4 ranks", pair, partial(_fsdp, modules=BLOCKS), {"dp": 4})
    yield ParallelPlan(
        "FSDP2 without reshard", pair, partial(_fsdp, modules=BLOCKS, reshard_after_forward=False), dp
    )
    mixed = partial(_fsdp, modules=("embedding", "blocks.1", "head"))
    yield ParallelPlan("FSDP2 of some modules", pair, mixed, dp)
    inner = partial(_fsdp, modules=("blocks.0.attention", "blocks.0.ffn", "blocks.0"))
    yield ParallelPlan("FSDP2 of modules in modules", llama, inner, dp)
    yield ParallelPlan(
        "FSDP2 with accumulation", partial(llama, batch=4), partial(_fsdp, micro_batches=2), dp
    )
    yield ParallelPlan("FSDP2 with recomputation", pair, partial(_fsdp, modules=BLOCKS, recompute=True), dp)
    yield ParallelPlan("FSDP2 with sums of gradients", llama, _fsdp_summed, dp)
    yield ParallelPlan("FSDP2 of tied weights", partial(llama, tied=True), _fsdp, dp)
    hybrid = {"replica": 2, "shard": 2}
    yield ParallelPlan("HSDP", four, partial(_fsdp, modules=("blocks.0",)), hybrid)
    yield ParallelPlan("FSDP2 over TP2", four, _fsdp_tp, {"dp": 2, "tp": 2})
    yield ParallelPlan(
        "FSDP2 over TP2 with sequence parallelism", four, partial(_fsdp_tp, sequence=True), {"dp": 2, "tp": 2}
    )
    yield ParallelPlan(
        "HSDP over TP2", four, partial(_fsdp_tp, shards=("replica", "shard")), {**hybrid, "tp": 2}
    )
    yield ParallelPlan("replicas of TP2 by hand", four, _megatron_ddp, {"dp": 2, "tp": 2})
    for stage in (1, 2):
        yield ParallelPlan(f"ZeRO-{stage} by hand", mlp, partial(_zero, stage=stage), dp)
    yield ParallelPlan("ZeRO-2 of Llama by hand", llama, partial(_zero, stage=2), dp)
    yield ParallelPlan("ZeRO-3 by hand", mlp, _zero3, dp)
    yield ParallelPlan("a step of clipped descent on replicas", _sgd, partial(_descent, sharded=False), dp)
    yield ParallelPlan("a step of clipped descent under ZeRO-1", _sgd, partial(_descent, sharded=True), dp)
    yield ParallelPlan("a step of clipped descent under TP2", _sgd, _norm_of_cuts, {"tp": 2})
