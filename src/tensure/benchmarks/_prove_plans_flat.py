"""Correct steps on flat memory: parameters one after another, cut into equal parts wherever that is.

As DeepSpeed's ZeRO, Megatron's distributed optimizer and apex lay them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.utils import clip_grads_with_norm_

from tensure.capture import ParallelStep

from ._prove_parts import Mesh, ParallelPlan, run
from ._prove_plans_data import rows
from ._prove_plans_optimizer import MAX_NORM, Make, adamw, nesterov, stepped
from ._prove_plans_tensor import llama, mlp

__all__ = ["plans"]


def _laid(tensors: Sequence[Any], size: int) -> Tensor:
    """One after another, and zeros to a multiple of `size`."""
    flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
    return torch.cat([flat, flat.new_zeros(-len(flat) % size)])


def _handed_out(flat: Tensor, tensors: Sequence[Any]) -> None:
    """Back into each, in its own shape."""
    at = 0
    for tensor in tensors:
        tensor.copy_(flat[at : at + tensor.numel()].view_as(tensor))
        at += tensor.numel()


def _bucket(net: Any, mesh: Mesh) -> ParallelStep:
    """All gradients are reduced at once."""
    parameters, optimizer = list(net.parameters()), adamw(net.parameters())

    def step(*given: Tensor) -> Any:
        loss = run(net, given, 1 / mesh.size())
        grads = [p.grad for p in parameters]
        flat = _laid(grads, mesh.size())
        dist.all_reduce(flat, group=mesh.get_group("dp"))
        _handed_out(flat, grads)
        optimizer.step()
        return loss

    return rows(step, optimizer=optimizer)


def _part(net: Any, mesh: Mesh, make: Make = adamw, clip: bool = False) -> ParallelStep:
    """Each rank steps one part, which begins and ends within parameters, and sends it to the others."""
    group, size = mesh.get_group("dp"), mesh["dp"].size()
    parameters = list(net.parameters())
    shard = nn.Parameter(_laid(parameters, size).chunk(size)[group.rank()].clone())
    optimizer = make([shard])

    def step(*given: Tensor) -> Any:
        loss = run(net, given, 1 / mesh.size())
        flat = _laid([p.grad for p in parameters], size)
        shard.grad = torch.empty_like(shard)
        dist.reduce_scatter_single(shard.grad, flat, group=group)
        if clip:
            square = shard.grad.pow(2).sum()
            dist.all_reduce(square, group=group)
            clip_grads_with_norm_([shard], MAX_NORM, square.sqrt())
        optimizer.step()
        with torch.no_grad():
            dist.all_gather_single(flat, shard.detach(), group=group)
            _handed_out(flat, parameters)
        return loss

    return rows(step, optimizer=optimizer)


def _views(net: Any, mesh: Mesh, align: int) -> ParallelStep:
    """Parameters are views of one buffer, gradients of another; the step is taken in place."""
    group, size = mesh.get_group("dp"), mesh["dp"].size()
    parameters, spots, end = list(net.parameters()), list[int](), 0
    for parameter in parameters:
        spots.append(end)
        end += -(-parameter.numel() // align) * align
    flat = torch.zeros(end - end % -size)
    for parameter, at in zip(parameters, spots, strict=True):
        stretch = flat[at : at + parameter.numel()]
        stretch.copy_(parameter.detach().view(-1))
        parameter.data = stretch.view(parameter.shape)
    shard = nn.Parameter(flat.chunk(size)[group.rank()])
    optimizer = adamw([shard])

    def step(*given: Tensor) -> Any:
        grads = torch.zeros_like(flat)
        for parameter, at in zip(parameters, spots, strict=True):
            parameter.grad = grads[at : at + parameter.numel()].view(parameter.shape)
        loss = run(net, given, 1 / mesh.size())
        shard.grad = torch.empty_like(shard)
        dist.reduce_scatter_single(shard.grad, grads, group=group)
        optimizer.step()
        dist.all_gather_single(flat, shard.detach(), group=group)
        return loss

    return rows(step, optimizer=optimizer)


def _fsdp_1(net: Any, mesh: Mesh) -> ParallelStep:
    """The first of torch, which lays a module's parameters in one `FlatParameter`."""
    named: dict[str, Any] = {
        "process_group": mesh.get_group("dp"),
        "use_orig_params": True,
        "device_id": torch.device("cpu"),
    }
    net.up = FullyShardedDataParallel(net.up, **named)
    module = FullyShardedDataParallel(net, **named)
    optimizer = adamw(module.parameters())

    def step(*given: Tensor) -> Any:
        loss = run(module, given)
        optimizer.step()
        return loss / mesh.size()

    return replace(rows(step, optimizer=optimizer), module=module)


def plans() -> Iterator[ParallelPlan]:
    """In the order of the campaign."""
    dp, four, small = {"dp": 2}, {"dp": 4}, partial(stepped, mlp)
    yield ParallelPlan("AdamW after one flat bucket", small, _bucket, four)
    yield ParallelPlan("AdamW on parts of flat memory", small, _part, four)
    momentum = partial(stepped, mlp, nesterov)
    yield ParallelPlan(
        "Nesterov momentum on parts of flat memory", momentum, partial(_part, make=nesterov), dp
    )
    uneven = partial(stepped, partial(mlp, batch=3, hidden=7, inner=8), clip=True)
    yield ParallelPlan("clipped AdamW on parts of flat memory", uneven, partial(_part, clip=True), {"dp": 3})
    blocks = partial(stepped, partial(llama, batch=4))
    yield ParallelPlan("AdamW on parts of flat memory of Llama", blocks, _part, dp)
    yield ParallelPlan("AdamW on views of flat memory", small, partial(_views, align=16), dp)
    yield ParallelPlan("AdamW under FSDP1", small, _fsdp_1, four)
