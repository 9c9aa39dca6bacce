"""Training steps on flat memory: parameters one after another, filled up, and cut into equal parts anywhere.

As DeepSpeed's ZeRO, Megatron's distributed optimizer and apex do it. `fault` names the mistake of a twin.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import Partial, Shard
from torch.nn.utils import clip_grad_norm_, clip_grads_with_norm_

from tensure.capture import ParallelStep

from .optimizer_steps import MAX_NORM, Make, adamw, data_parallel


def sgd(parameters: Any) -> Any:
    return torch.optim.SGD(parameters, lr=0.1)


def momentum(parameters: Any) -> Any:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01)


def flattened(tensors: Sequence[Any], size: int) -> Tensor:
    """One after another, with zeros to a multiple of `size`."""
    flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
    return torch.cat([flat, flat.new_zeros(-len(flat) % size)])


def bucketed(make: Make = adamw, *, fault: str = "") -> Any:
    """Gradients reduced in one bucket and handed out again; every rank steps all parameters."""

    def parallel(net: Any, mesh: DeviceMesh) -> ParallelStep:
        parameters, optimizer = list(net.parameters()), make(net.parameters())

        def step(x: Tensor, target: Tensor) -> Tensor:
            loss: Tensor = net(x, target)
            loss.backward()  # type: ignore[no-untyped-call]
            flat, at = flattened([p.grad for p in parameters], 8), 0
            dist.all_reduce(flat, group=mesh.get_group("dp"))
            if fault != "sum for mean":
                flat /= mesh.size()
            for parameter in parameters:
                count = parameter.numel()
                first = at + (fault == "off by one" and parameter is net.up.bias)
                parameter.grad.copy_(flat[first : first + count].view_as(parameter))
                at += count
            optimizer.step()
            return loss

        return data_parallel(step, optimizer=optimizer)

    return parallel


def sharded(make: Make = adamw, *, clip: bool = False, scattered: bool = True, fault: str = "") -> Any:
    """Each rank steps one part of the flat memory; what becomes of it is gathered and handed out.

    Args:
        scattered: gradients are reduced part by part; else all of them, and each rank takes its part.
    """

    def parallel(net: Any, mesh: DeviceMesh) -> ParallelStep:
        group, rank, size = mesh.get_group("dp"), mesh.get_local_rank("dp"), mesh["dp"].size()
        parameters = list(net.parameters())
        shard = nn.Parameter(flattened(parameters, size).chunk(size)[rank].clone())
        optimizer = make([shard])

        def step(x: Tensor, target: Tensor) -> Tensor:
            loss: Tensor = net(x, target)
            loss.backward()  # type: ignore[no-untyped-call]
            grads = [p.grad for p in parameters]
            if fault == "pieces swapped":
                grads[1], grads[3] = grads[3], grads[1]
            flat = flattened(grads, size)
            op = dist.ReduceOp.SUM if fault == "sum for mean" else dist.ReduceOp.AVG
            if scattered:
                shard.grad = torch.empty_like(shard)
                dist.reduce_scatter_tensor(shard.grad, flat, op=op, group=group)
            else:
                dist.all_reduce(flat, op=op, group=group)
                mine = (rank + 1) % size if fault == "a neighbour's part" else rank
                shard.grad = flat.chunk(size)[mine]
            if clip:
                assert shard.grad is not None
                square = shard.grad.pow(2).sum()
                if fault != "norm of own part":
                    dist.all_reduce(square, group=group)
                clip_grads_with_norm_([shard], MAX_NORM, square.sqrt())
            old = shard.detach().clone()
            optimizer.step()
            with torch.no_grad():
                whole, at = torch.empty_like(flat), 0
                dist.all_gather_into_tensor(
                    whole, old if fault == "stale part" else shard.detach(), group=group
                )
                for parameter in parameters:
                    first = at + (fault == "off by one" and parameter is net.up.weight)
                    parameter.copy_(whole[first : first + parameter.numel()].view(parameter.shape))
                    at += parameter.numel()
            return loss

        return data_parallel(step, optimizer=optimizer)

    return parallel


def viewed(make: Make = adamw, *, align: int = 1, fault: str = "") -> Any:
    """Parameters are views of one buffer and gradients of another, each at a multiple of `align`."""

    def parallel(net: Any, mesh: DeviceMesh) -> ParallelStep:
        group, rank, size = mesh.get_group("dp"), mesh.get_local_rank("dp"), mesh["dp"].size()
        parameters, spots, end = list(net.parameters()), list[int](), 0
        for parameter in parameters:
            spots.append(end)
            end += -(-parameter.numel() // align) * align
        end += -end % size
        flat = torch.zeros(end)
        for parameter, at in zip(parameters, spots, strict=True):
            stretch = flat[at : at + parameter.numel()]
            stretch.copy_(parameter.detach().view(-1))
            parameter.data = stretch.view(parameter.shape)
        shard = nn.Parameter(flat.chunk(size)[rank])  # a view as well: the step is taken in place
        optimizer = make([shard])

        def step(x: Tensor, target: Tensor) -> Tensor:
            grads = torch.zeros(end)
            for parameter, at in zip(parameters, spots, strict=True):
                first = at + (fault == "gradient off by one" and parameter is net.up.bias)
                parameter.grad = grads[first : first + parameter.numel()].view(parameter.shape)
            loss: Tensor = net(x, target)
            loss.backward()  # type: ignore[no-untyped-call]
            shard.grad = torch.empty_like(shard)
            dist.reduce_scatter_tensor(shard.grad, grads, op=dist.ReduceOp.AVG, group=group)
            optimizer.step()
            dist.all_gather_into_tensor(flat, shard.detach(), group=group)
            return loss

        return data_parallel(step, optimizer=optimizer)

    return parallel


def replicated_shards(make: Make = adamw) -> Any:
    """Parts are cut over one axis of the mesh and replicated over the other."""

    def parallel(net: Any, mesh: DeviceMesh) -> ParallelStep:
        group, rank, size = mesh.get_group("dp"), mesh.get_local_rank("dp"), mesh["dp"].size()
        parameters = list(net.parameters())
        shard = nn.Parameter(flattened(parameters, size).chunk(size)[rank].clone())
        optimizer = make([shard])

        def step(x: Tensor, target: Tensor) -> Tensor:
            loss: Tensor = net(x, target)
            loss.backward()  # type: ignore[no-untyped-call]
            grads = flattened([p.grad for p in parameters], size)
            shard.grad = torch.empty_like(shard)
            dist.reduce_scatter_tensor(shard.grad, grads, group=group)
            dist.all_reduce(shard.grad, group=mesh.get_group("replica"))
            shard.grad /= mesh.size()
            optimizer.step()
            with torch.no_grad():
                whole, at = torch.empty_like(grads), 0
                dist.all_gather_into_tensor(whole, shard.detach(), group=group)
                for parameter in parameters:
                    parameter.copy_(whole[at : at + parameter.numel()].view(parameter.shape))
                    at += parameter.numel()
            return loss

        rows = {"replica": Shard(0), "dp": Shard(0)}
        means = {"replica": Partial("avg"), "dp": Partial("avg")}
        return ParallelStep(step, inputs=(rows, rows), outputs=(means,), optimizer=optimizer)

    return parallel


def fsdp_1(make: Make = adamw, *, original: bool = True, clip: bool = False, fault: str = "") -> Any:
    """torch's FullyShardedDataParallel, one around a module and one around the rest.

    Args:
        original: the optimizer steps stretches of parameters; else the flat memory itself.
    """

    def parallel(net: Any, mesh: DeviceMesh) -> ParallelStep:
        given = {"process_group": mesh.get_group("dp"), "use_orig_params": original}
        net.up = FullyShardedDataParallel(net.up, device_id=torch.device("cpu"), **given)  # type: ignore[arg-type]
        module = FullyShardedDataParallel(net, device_id=torch.device("cpu"), **given)  # type: ignore[arg-type]
        optimizer = make(module.parameters())

        def step(x: Tensor, target: Tensor) -> Any:
            loss = module(x, target)
            (loss * 2 if fault == "twice the loss" else loss).backward()
            if fault == "norm of own part":
                clip_grad_norm_(module.parameters(), MAX_NORM)
            elif clip:
                module.clip_grad_norm_(MAX_NORM)
            optimizer.step()
            return loss

        return data_parallel(step, module=module, optimizer=optimizer)

    return parallel
