"""All-to-alls with splits: ranks that get unlike numbers of rows; proved, refuted and run for real."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Partial, Shard

import tensure
from tensure.capture import ParallelStep, capture_model, capture_parallel
from tensure.errors import InputError, UnsupportedError

ROWS, WIDTH = 6, 4
TWO, THREE = ((4, 2), (1, 5)), ((3, 0, 3), (1, 4, 1), (2, 2, 2))
"""How many of its rows each rank gives to each: as a router without places for every row has it."""

Table = tuple[tuple[int, ...], ...]


class Rows(nn.Module):
    """Two layers, row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def inner(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x)))  # type: ignore[no-any-return]

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (self.inner(x) - y).pow(2).mean()


def model(table: Table) -> Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]:
    count = ROWS * len(table)
    return lambda: (Rows(), (torch.randn(count, WIDTH), torch.randn(count, WIDTH)))


class InPlace(torch.autograd.Function):
    """`dist.all_to_all_single` with its gradient by hand."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, takes: list[int], gives: list[int], group: Any) -> Tensor:
        ctx.args = gives, takes, group
        made = x.new_empty(sum(takes), *x.shape[1:])
        dist.all_to_all_single(made, x.contiguous(), takes, gives, group=group)
        return made

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        gives, takes, group = ctx.args
        return InPlace.apply(grad, gives, takes, group), None, None, None


class Listed(InPlace):
    """The same by `dist.all_to_all`, a tensor for each rank."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, takes: list[int], gives: list[int], group: Any) -> Tensor:
        ctx.args = gives, takes, group
        made = [x.new_empty(count, *x.shape[1:]) for count in takes]
        dist.all_to_all(made, [part.contiguous() for part in x.split(gives)], group=group)
        return torch.cat(made)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        gives, takes, group = ctx.args
        return Listed.apply(grad, gives, takes, group), None, None, None


def dispatched(table: Table, *, by: Any = None, fault: str = "") -> Callable[[Any, DeviceMesh], ParallelStep]:
    """Rows go to other ranks, are computed there, and come back."""

    def parallel(net: Rows, mesh: DeviceMesh) -> ParallelStep:
        group, rank = mesh.get_group("ep"), mesh.get_local_rank("ep")
        gives, takes = list(table[rank]), [counts[rank] for counts in table]
        if fault == "greedy" and rank == 1:
            takes[0] += 1

        def exchange(x: Tensor, takes: list[int], gives: list[int]) -> Tensor:
            if fault == "skips" and rank == 2:
                return x
            if by is not None:
                return by.apply(x, takes, gives, group)  # type: ignore[no-any-return]
            return funcol.wait_tensor(funcol.all_to_all_single(x, takes, gives, group))

        def step(x: Tensor, y: Tensor) -> Tensor:
            there = net.inner(exchange(x, takes, gives))
            if fault == "rotated" and rank == 1:
                there = there.roll(1, 0)
            loss = (exchange(there, gives, takes) - y).pow(2).mean()
            (loss / (1 if fault == "scaled" else mesh.size())).backward()
            for weight in net.parameters():
                dist.all_reduce(weight.grad, group=group)
            return loss.detach()

        rows = {"ep": Shard(0)}
        return ParallelStep(step, inputs=(rows, rows), outputs=({"ep": Partial("avg")},))

    return parallel


@pytest.mark.parametrize("table", [TWO, THREE], ids=["two", "three"])
@pytest.mark.parametrize("by", [None, InPlace, Listed], ids=["functional", "in place", "listed"])
def test_uneven_dispatch_is_proved(table: Table, by: Any) -> None:
    mesh = {"ep": len(table)}
    result = tensure.prove(dispatched(table, by=by), model(table), mesh=mesh, replay=True)
    assert result.proof.values.status == "proved", result.proof.values
    assert result.replay is not None and result.replay.confirms("proved"), result.replay
    ops = {step.op for track in result.plan.tracks.values() for step in track.bodies["step"]}  # type: ignore[union-attr]
    assert {"send", "recv"} <= ops and "all_to_all" not in ops


@pytest.mark.parametrize("fault", ["rotated", "scaled"])
def test_a_wrong_dispatch_is_refuted(fault: str) -> None:
    result = tensure.prove(dispatched(TWO, fault=fault), model(TWO), mesh={"ep": 2})
    assert result.proof.values.status == "refuted"
    assert result.replay is not None and result.replay.confirms("refuted"), result.replay


def test_even_splits_are_one_collective() -> None:
    """And that of ranks whose own splits are even, where those of others are not, is none."""
    even = ((3, 3), (3, 3))
    captured = capture_model(model(even))
    plan = capture_parallel(model(even), dispatched(even), {"ep": 2}, captured)
    steps = [step for track in plan.tracks.values() for step in track.bodies["step"]]
    (found, *_) = [step for step in steps if step.op == "all_to_all"]  # type: ignore[union-attr]
    assert dict(found.attrs) == {"axes": ("ep",), "cat": 0, "split": 0}  # type: ignore[union-attr]
    assert tensure.prove(dispatched(even), model(even), mesh={"ep": 2}).proof.values.status == "proved"


def test_more_taken_than_given() -> None:
    with pytest.raises(InputError, match=r"rank 0 gives rank 1 a part of 2, and that takes one of 3"):
        tensure.prove(dispatched(TWO, fault="greedy"), model(TWO), mesh={"ep": 2})


def test_classes_of_ranks_take_even_splits_only() -> None:
    even = ((3, 3), (3, 3))
    captured = capture_model(model(even))
    capture_parallel(model(even), dispatched(even), {"ep": 2}, captured, classes=True)
    captured = capture_model(model(TWO))
    with pytest.raises(
        UnsupportedError, match="an all-to-all of uneven splits where ranks are taken as classes"
    ):
        capture_parallel(model(TWO), dispatched(TWO), {"ep": 2}, captured, classes=True)


THROUGH_TWO = ((4, 2, 0), (2, 4, 0), (0, 0, 6))
"""Rank 2 gives nobody else a row, and takes none."""


def test_a_rank_without_rows_for_others_is_waited_for() -> None:
    """`if no tokens: return` around an all-to-all: whoever calls it waits for those who do not."""
    result = tensure.prove(dispatched(THROUGH_TWO, by=InPlace), model(THROUGH_TWO), mesh={"ep": 3})
    assert result.proof.values.status == "proved", result.proof.values
    skipping = dispatched(THROUGH_TWO, by=InPlace, fault="skips")
    result = tensure.prove(skipping, model(THROUGH_TWO), mesh={"ep": 3}, replay=False)
    assert result.proof.values.status == "refuted"
    example = result.proof.values.counterexample
    assert example is not None and not example.claim, example
    assert "test_exchanges.py" in example.source and "ep1: all_gather along dim 0" in example.step, example
