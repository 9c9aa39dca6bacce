"""Parallel steps that are wrong in ways a trace might miss: none may be proved."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard

import tensure
from tensure.capture import ParallelStep

AXIS = "dp"
INPUTS = ({AXIS: Shard(0)}, {AXIS: Shard(0)})


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (self.down(torch.relu(self.up(x))) - y).square().mean()


def model() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return Net(), (torch.randn(8, 4), torch.randn(8, 2))


def averaged(net: nn.Module, mesh: DeviceMesh, after: Callable[[int], None] | None = None) -> ParallelStep:
    """A right data-parallel step; `after` is done at its end, with the number of the rank."""
    group = mesh.get_group(AXIS)

    def step(x: Tensor, y: Tensor) -> Tensor:
        loss = net(x, y)
        loss.backward()
        for parameter in net.parameters():
            held = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            dist.all_reduce(held, group=group)
            held /= 2
        whole = loss.detach().clone()
        dist.all_reduce(whole, group=group)
        if after is not None:
            after(mesh.get_local_rank(AXIS))
        return whole / 2

    return ParallelStep(step, inputs=INPUTS)


def right(net: Any, mesh: DeviceMesh) -> ParallelStep:
    return averaged(net, mesh)


def a_gradient_dropped_on_one_rank(net: Any, mesh: DeviceMesh) -> ParallelStep:
    def after(rank: int) -> None:
        if rank == 1:
            net.up.weight.grad = None

    return averaged(net, mesh, after)


def frozen_on_one_rank(net: Any, mesh: DeviceMesh) -> ParallelStep:
    net.up.bias.requires_grad_(mesh.get_local_rank(AXIS) == 0)
    return averaged(net, mesh)


def a_rank_told_by_the_environment(net: Any, mesh: DeviceMesh) -> ParallelStep:
    if os.environ.get("RANK", "0") != "0":
        net.up.weight.register_hook(lambda gradient: gradient * 2)
    return averaged(net, mesh)


def a_place_that_is_not_so(net: Any, mesh: DeviceMesh) -> ParallelStep:
    net.up.weight = nn.Parameter(net.up.weight.detach() * 2)
    found = averaged(net, mesh)
    return ParallelStep(found.step, inputs=INPUTS, parameters={"up.weight": {}})


def a_collective_of_one_rank_that_nobody_reads(net: Any, mesh: DeviceMesh) -> ParallelStep:
    def after(rank: int) -> None:
        if rank == 0:
            dist.all_reduce(torch.zeros(3), group=mesh.get_group(AXIS))

    return averaged(net, mesh, after)


def a_message_nobody_sends(net: Any, mesh: DeviceMesh) -> ParallelStep:
    def after(rank: int) -> None:
        if rank == 1:
            dist.recv(torch.zeros(3), 0)

    return averaged(net, mesh, after)


WRONG = [
    a_gradient_dropped_on_one_rank,
    frozen_on_one_rank,
    a_rank_told_by_the_environment,
    a_place_that_is_not_so,
    a_collective_of_one_rank_that_nobody_reads,
    a_message_nobody_sends,
]


def test_the_right_step_is_proved_and_leaves_the_environment_as_it_was() -> None:
    before = dict(os.environ)
    assert tensure.prove(right, model, mesh={AXIS: 2}).proof.values.status == "proved"
    assert dict(os.environ) == before


@pytest.mark.parametrize("parallel", WRONG, ids=lambda parallel: parallel.__name__)
def test_a_wrong_step_is_refuted(parallel: Any) -> None:
    assert tensure.prove(parallel, model, mesh={AXIS: 2}).proof.values.status == "refuted"
