"""Correct context-parallel and expert-parallel steps: cut sequences, and experts apart from their tokens."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import Partial, Shard

from tensure.capture import ParallelStep, Placements

from ._prove_models import Experts
from ._prove_parts import (
    Mesh,
    ParallelPlan,
    all_reduce,
    copy_to,
    exchange,
    gather_from,
    part,
    place,
    reduce_all,
    reduce_from,
    run,
)
from ._prove_plans_tensor import cnn, llama, megatron

__all__ = ["plans"]


def _parts(mesh: Mesh, step: Any, cut: Placements, inputs: int = 2, **rest: Any) -> ParallelStep:
    """A step on cut inputs, whose loss is its share."""
    shares: Placements = {axis: Partial() for axis in cut}
    return ParallelStep(step, inputs=[cut] * inputs, outputs=[shares], **rest)


def _cut_tables(net: Any, group: Any, keep: Any) -> None:
    """Every attention gets the rows of its tables that are this rank's positions."""
    for block in net.blocks:
        whole = block.attention.tables()
        block.attention.tables = lambda whole=whole: tuple(keep(table) for table in whole)


def _gathered(net: Any, mesh: Mesh, masked: bool = False, tp: bool = False) -> ParallelStep:
    """Keys and values are gathered over the sequence."""
    group = mesh.get_group("cp")
    placed = megatron(net, mesh.get_group("tp")) if tp else {}
    _cut_tables(net, group, lambda table: table.chunk(group.size())[group.rank()])
    for block in net.blocks:
        block.attention.whole = lambda x: gather_from(x, 2, group)
    axes = [axis for axis in mesh.mesh_dim_names if axis != "tp"]
    everyone = mesh.get_group("cp") if len(axes) == 1 else None
    ranks = mesh["cp"].size() * (mesh["dp"].size() if "dp" in axes else 1)

    def step(tokens: Tensor, targets: Tensor, *mask: Tensor) -> Any:
        losses = net.losses(tokens, targets)
        if masked:
            loss = (losses * mask[0].flatten()).sum() / all_reduce(
                mask[0].sum(), everyone or dist.group.WORLD
            )
        else:
            loss = losses.sum() / (tokens.numel() * ranks)
        loss.backward()
        reduce_all(net, everyone)
        return loss.detach()

    cut: Placements = {axis: Shard(1 if axis == "cp" else 0) for axis in axes}
    return _parts(mesh, step, cut, 3 if masked else 2, parameters=placed)


def _zig_zag(net: Any, mesh: Mesh) -> ParallelStep:
    """A rank has the chunk of its number from the front, and the one from the back: equal work under a mask.

    Inputs come whole and are cut by every rank; gathered keys are put in order again.
    """
    group = mesh.get_group("cp")
    ranks, rank = group.size(), group.rank()
    order = [at for other in range(ranks) for at in (other, 2 * ranks - 1 - other)]

    def own(x: Tensor, dim: int = 0) -> Any:
        chunks = x.chunk(2 * ranks, dim)
        return torch.cat((chunks[rank], chunks[2 * ranks - 1 - rank]), dim)

    def whole(x: Tensor) -> Any:
        chunks = gather_from(x, 2, group).chunk(2 * ranks, 2)
        return torch.cat([chunks[order.index(at)] for at in range(2 * ranks)], 2)

    _cut_tables(net, group, own)
    for block in net.blocks:
        block.attention.whole = whole

    def step(tokens: Tensor, targets: Tensor) -> Any:
        loss = net.losses(own(tokens, 1), own(targets, 1)).sum() / tokens.numel()
        loss.backward()
        reduce_all(net, group)
        return all_reduce(loss.detach(), group)

    return ParallelStep(step)


def _ulysses(net: Any, mesh: Mesh) -> ParallelStep:
    """Sequences are cut, but inside attention heads are: two exchanges."""
    group = mesh.get_group("cp")
    for block in net.blocks:
        block.attention.enter = lambda x: exchange(x, 1, 2, group)
        block.attention.leave = lambda x: exchange(x, 2, 1, group)

    def step(tokens: Tensor, targets: Tensor) -> Any:
        loss = net.losses(tokens, targets).sum() / (tokens.numel() * mesh.size())
        loss.backward()
        reduce_all(net, None)
        return loss.detach()

    cut: Placements = {axis: Shard(1 if axis == "cp" else 0) for axis in mesh.mesh_dim_names}
    return _parts(mesh, step, cut)


class _Ring(torch.autograd.Function):
    """Parts go round a ring of two until all have all; gradients go back to where the parts came from."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mesh: Mesh) -> Any:
        ctx.mesh = mesh
        rank = mesh.get_local_rank("cp")
        other = _swapped(x, mesh)
        return torch.cat((x, other) if rank == 0 else (other, x), 2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        rank = ctx.mesh.get_local_rank("cp")
        own, other = grad.chunk(2, 2)[:: 1 if rank == 0 else -1]
        return own + _swapped(other, ctx.mesh), None


_ring_of: Any = _Ring.apply


def _swapped(x: Tensor, mesh: Mesh) -> Any:
    """What the other of two ranks has."""
    rank = mesh.get_local_rank("cp")
    peer = place(mesh, cp=1 - rank)
    found = torch.empty(x.shape)
    x = x.contiguous()
    if rank == 0:
        dist.send(x, peer)
        dist.recv(found, peer)
    else:
        dist.recv(found, peer)
        dist.send(x, peer)
    return found


def _ring(net: Any, mesh: Mesh) -> ParallelStep:
    """Keys and values by messages in the place of a gather."""
    group = mesh.get_group("cp")
    _cut_tables(net, group, lambda table: table.chunk(group.size())[group.rank()])
    for block in net.blocks:
        block.attention.whole = lambda x: _ring_of(x, mesh)

    def step(tokens: Tensor, targets: Tensor) -> Any:
        loss = net.losses(tokens, targets).sum() / (tokens.numel() * group.size())
        loss.backward()
        reduce_all(net, group)
        return loss.detach()

    return _parts(mesh, step, {"cp": Shard(1)})


def _image_rows(net: Any, mesh: Mesh) -> ParallelStep:
    """Images are cut along their rows; each convolution joins all rows first, and keeps its own after."""
    group = mesh.get_group("cp")

    def rows_of(convolution: nn.Conv2d, x: Tensor) -> Any:
        whole = gather_from(x, 2, group)
        size = whole.shape[2] // group.size()
        first = group.rank() * size
        padded = F.pad(whole, (1, 1, 1, 1))[:, :, first : first + size + 2]
        return F.conv2d(padded, convolution.weight, convolution.bias)

    def features(x: Tensor) -> Any:
        own = rows_of(net.conv2, F.relu(rows_of(net.conv1, x)))
        return reduce_from(own.mean((2, 3)) / group.size(), group)

    net.features = features

    def step(x: Tensor, labels: Tensor) -> Any:
        loss = run(net, (x, labels))
        for convolution in (net.conv1, net.conv2):
            reduce_all(convolution, group)
        return loss

    return ParallelStep(step, inputs=[{"cp": Shard(2)}, None])


# --- experts -----------------------------------------------------------------------------------------


def _experts(shared: bool = False) -> tuple[Experts, tuple[Tensor, ...]]:
    size = (Experts.TOKENS, Experts.HIDDEN)
    return Experts(shared), (
        torch.randn(size),
        torch.ones(Experts.TOKENS, Experts.EXPERTS),
        torch.randn(size),
    )


EXPERTS: dict[str, Placements] = {"w1": {"ep": Shard(0)}, "w2": {"ep": Shard(0)}}


def _own_experts(net: Experts, group: Any) -> None:
    net.w1, net.w2 = part(net.w1, 0, group), part(net.w2, 0, group)


def _tokens_whole(net: Any, mesh: Mesh) -> ParallelStep:
    """All tokens on every rank, which runs its own experts; outputs are summed."""
    group = mesh.get_group("ep")
    _own_experts(net, group)

    def mixed(x: Tensor, chosen: Tensor) -> Any:
        entered = copy_to(x, group)
        share = (chosen * net.router(entered).softmax(-1)).chunk(group.size(), 1)[group.rank()]
        sent = torch.einsum("te,th->eth", chosen.chunk(group.size(), 1)[group.rank()], entered)
        return reduce_from(torch.einsum("te,eth->th", share, net.experts(sent)), group)

    net.mixed = mixed

    def step(*inputs: Tensor) -> Any:
        loss = run(net, inputs)
        dist.all_reduce(net.router.weight.grad, group=group)
        return loss

    return ParallelStep(step, parameters=EXPERTS)


def _exchanged(net: Any, mesh: Mesh) -> ParallelStep:
    """Tokens and experts are both cut: tokens go to their experts' ranks, as many as fit all, and back."""
    group = mesh.get_group("ep")
    _own_experts(net, group)
    inner = net.experts
    net.experts = lambda x: exchange(inner(exchange(x, 0, 1, group)), 1, 0, group)
    dp = mesh.get_group("dp") if "dp" in mesh.mesh_dim_names else None

    def step(*inputs: Tensor) -> Any:
        loss = run(net, inputs, 1 / mesh.size())
        for name, parameter in net.named_parameters():
            if name not in EXPERTS:
                dist.all_reduce(parameter.grad)
            elif dp is not None:
                dist.all_reduce(parameter.grad, group=dp)
        return loss

    cut: Placements = {axis: Shard(0) for axis in mesh.mesh_dim_names}
    return _parts(mesh, step, cut, 3, parameters=EXPERTS)


def _inside_experts(net: Any, mesh: Mesh) -> ParallelStep:
    """Every expert's inner units are cut over ranks: tensor parallelism inside the experts."""
    group = mesh.get_group("tp")
    net.w1, net.w2 = part(net.w1, 2, group), part(net.w2, 1, group)
    inner = net.experts
    net.experts = lambda x: reduce_from(inner(copy_to(x, group)), group)
    placed: dict[str, Placements] = {"w1": {"tp": Shard(2)}, "w2": {"tp": Shard(1)}}
    return ParallelStep(lambda *inputs: run(net, inputs), parameters=placed)


def plans() -> Iterator[ParallelPlan]:
    """All of this file's."""
    cp, ep = {"cp": 2}, {"ep": 2}
    four = partial(llama, batch=4)
    yield ParallelPlan("CP2 by gathered keys", llama, _gathered, cp)
    yield ParallelPlan("CP4 by gathered keys", llama, _gathered, {"cp": 4})
    masked = partial(_gathered, masked=True)
    yield ParallelPlan("CP2 over all unmasked tokens", partial(llama, masked=True), masked, cp)
    yield ParallelPlan("replicas of CP2", four, _gathered, {"dp": 2, "cp": 2})
    yield ParallelPlan("CP2 of TP2", llama, partial(_gathered, tp=True), {"cp": 2, "tp": 2})
    yield ParallelPlan("CP2 with grouped queries", partial(llama, kv_heads=2), _gathered, cp)
    yield ParallelPlan("zig-zag CP2", llama, _zig_zag, cp)
    yield ParallelPlan("zig-zag CP4", llama, _zig_zag, {"cp": 4})
    yield ParallelPlan("CP2 by messages", llama, _ring, cp)
    yield ParallelPlan("Ulysses over 2 ranks", llama, _ulysses, cp)
    yield ParallelPlan("Ulysses over 4 ranks", llama, _ulysses, {"cp": 4})
    yield ParallelPlan("replicas of Ulysses", four, _ulysses, {"dp": 2, "cp": 2})
    yield ParallelPlan("rows of images over 2 ranks", cnn, _image_rows, cp)
    yield ParallelPlan("EP2 with whole tokens", _experts, _tokens_whole, ep)
    yield ParallelPlan("EP4 with whole tokens", _experts, _tokens_whole, {"ep": 4})
    yield ParallelPlan("EP2 by all-to-all", _experts, _exchanged, ep)
    yield ParallelPlan("EP4 by all-to-all", _experts, _exchanged, {"ep": 4})
    yield ParallelPlan(
        "EP2 by all-to-all with a shared expert", partial(_experts, shared=True), _exchanged, ep
    )
    yield ParallelPlan("replicas of EP2 by all-to-all", _experts, _exchanged, {"dp": 2, "ep": 2})
    yield ParallelPlan("TP2 inside experts", _experts, _inside_experts, {"tp": 2})
