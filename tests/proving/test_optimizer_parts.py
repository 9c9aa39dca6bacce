"""What an optimizer steps in the parameters' stead: shards, master copies, one parameter in several parts.

The next step begins with it: it must hold the new value too, as must the states of each part.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Partial, Shard

import tensure
from tensure.capture import ParallelStep

TWO = {"dp": 2}
ROWS = {"dp": Shard(0)}
CLASSES = pytest.mark.parametrize("classes", [False, True], ids=["ranks", "classes"])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.w).square().mean()


def model() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return Net(), (torch.randn(4, 8),)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def momentum(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3)


def averaged(net: Any, x: Tensor, group: Any) -> tuple[Tensor, Tensor]:
    """The loss, and the mean of all ranks' gradients."""
    loss = net(x)
    loss.backward()
    grad, net.w.grad = net.w.grad, None
    dist.all_reduce(grad, op=dist.ReduceOp.AVG, group=group)
    return loss, grad


def placed(step: Any, optimizer: Any) -> ParallelStep:
    return ParallelStep(step, inputs=(ROWS,), outputs=({"dp": Partial("avg")},), optimizer=optimizer)


def sharded(make: Any, *, flat: bool, fault: str) -> Any:
    """Rows, or a stretch of flat memory, on each rank; gathered after the step."""

    def parallel(net: Any, mesh: DeviceMesh) -> ParallelStep:
        group, rank = mesh.get_group("dp"), mesh.get_local_rank("dp")
        whole = net.w.detach().reshape(-1) if flat else net.w.detach()
        size = whole.shape[0] // 2
        shard = nn.Parameter(whole[rank * size : (rank + 1) * size].clone())
        optimizer = make([shard])

        def step(x: Tensor) -> Tensor:
            loss, grad = averaged(net, x, group)
            shard.grad = grad.view_as(whole)[rank * size : (rank + 1) * size]
            optimizer.step()
            full = torch.empty_like(whole)
            dist.all_gather_single(full, shard.detach(), group=group)
            with torch.no_grad():
                net.w.copy_(full.view_as(net.w))
                if fault == "doubled":
                    shard.mul_(2)
                if fault == "the other's" and rank == 1:
                    shard.copy_(full[:size])
            return loss

        return placed(step, optimizer)

    return parallel


def with_master(make: Any, *, fault: str) -> Any:
    """A copy that is stepped, and a parameter of half precision that follows it."""

    def parallel(net: Any, mesh: DeviceMesh) -> ParallelStep:
        master = nn.Parameter(net.w.detach().clone())
        net.to(torch.bfloat16)
        optimizer = make([master])

        def step(x: Tensor) -> Tensor:
            loss, grad = averaged(net, x.bfloat16(), mesh.get_group("dp"))
            master.grad = grad.float()
            optimizer.step()
            with torch.no_grad():
                net.w.copy_(master)
                if fault == "doubled":
                    master.mul_(2)
            return loss

        return placed(step, optimizer)

    return parallel


def in_parts(
    make: Any, *, sizes: tuple[int, int], flat: bool = False, apart: bool = False, fault: str
) -> Any:
    """Two parameters of a rank's optimizer, one after another in the model's."""

    def parallel(net: Any, mesh: DeviceMesh) -> ParallelStep:
        whole = net.w.detach().reshape(-1) if flat else net.w.detach()
        parts = [nn.Parameter(part.clone()) for part in whole.split(sizes)]
        optimizers = [make([part]) for part in parts] if apart else [make(parts)]

        def step(x: Tensor) -> Tensor:
            loss, grad = averaged(net, x, mesh.get_group("dp"))
            grads = grad.view_as(whole).split(sizes)
            for part, found in zip(parts, grads[::-1] if fault == "gradients" else grads, strict=True):
                part.grad = found.clone()
            for optimizer in optimizers:
                optimizer.step()
            if fault == "states":
                states = optimizers[0].state
                states[parts[0]], states[parts[1]] = states[parts[1]], states[parts[0]]
            with torch.no_grad():
                net.w.copy_(torch.cat([part.detach() for part in parts]).view_as(net.w))
                if fault == "a part":
                    parts[1].mul_(2)
            return loss

        return placed(step, optimizers)

    return parallel


RIGHT = {
    "shards of rows": (sgd, sharded(sgd, flat=False, fault="")),
    "flat shards": (momentum, sharded(momentum, flat=True, fault="")),
    "a master": (adamw, with_master(adamw, fault="")),
    "halves": (momentum, in_parts(momentum, sizes=(4, 4), fault="")),
    "unlike parts": (adamw, in_parts(adamw, sizes=(3, 5), fault="")),
    "unlike flat parts, an optimizer each": (
        momentum,
        in_parts(momentum, sizes=(11, 21), flat=True, apart=True, fault=""),
    ),
}
WRONG = {
    "shards of rows, doubled": (sgd, sharded(sgd, flat=False, fault="doubled"), "new.w"),
    "flat shards, doubled": (momentum, sharded(momentum, flat=True, fault="doubled"), "new.w"),
    "flat shards, the other's": (momentum, sharded(momentum, flat=True, fault="the other's"), "new.w"),
    "a master, doubled": (sgd, with_master(sgd, fault="doubled"), "new.w"),
    "halves, gradients": (momentum, in_parts(momentum, sizes=(4, 4), fault="gradients"), "new.w"),
    "halves, states": (momentum, in_parts(momentum, sizes=(4, 4), fault="states"), "new.w.momentum_buffer"),
    "flat halves, states": (
        momentum,
        in_parts(momentum, sizes=(16, 16), flat=True, fault="states"),
        "new.w.momentum_buffer",
    ),
    "unlike parts, a part": (adamw, in_parts(adamw, sizes=(3, 5), fault="a part"), "new.w"),
}


@CLASSES
@pytest.mark.parametrize("name", RIGHT)
def test_right_steps_are_proved(name: str, classes: bool) -> None:
    make, parallel = RIGHT[name]
    found = tensure.prove(parallel, model, mesh=TWO, optimizer=make, classes=classes)
    assert found.proof.values.status == "proved", found.proof.values


@CLASSES
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_part_is_refuted(name: str, classes: bool) -> None:
    make, parallel, label = WRONG[name]
    values = tensure.prove(parallel, model, mesh=TWO, optimizer=make, classes=classes).proof.values
    found = values.counterexample
    assert values.status == "refuted" and found is not None and found.confirmed
    assert found.local == label or found.local.startswith(f"{label}."), found.local
