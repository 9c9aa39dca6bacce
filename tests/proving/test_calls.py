"""Calls whose members differ in what no value shows: the source, the type, a barrier; read or not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

import tensure
from tensure.capture import ParallelStep

AXIS, SIZE = "dp", 4
CLASSES = pytest.mark.parametrize("classes", [False, True], ids=["ranks", "classes"])
Call = Callable[[Any, Any, Tensor], None]
"""What a rank does besides, of its number, its group and the loss."""


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.w).square().sum()


def model() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return Net(), (torch.randn(3, 6),)


def proved(call: Call, classes: bool) -> Any:
    def parallel(net: Any, mesh: DeviceMesh) -> Callable[..., Tensor]:
        def step(x: Tensor) -> Tensor:
            loss: Tensor = net(x)
            loss.backward()
            call(mesh.get_local_rank(AXIS), mesh.get_group(AXIS), loss.detach().clone())
            return loss

        return step

    return tensure.prove(parallel, model, mesh={AXIS: SIZE}, classes=classes, replay=False).proof.values


def numbers(count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(count, dtype=dtype)


def one_source(rank: Any, group: Any, loss: Tensor) -> None:
    dist.broadcast(loss, group=group, group_src=1)


def a_source_each(rank: Any, group: Any, loss: Tensor) -> None:
    dist.broadcast(loss, group=group, group_src=rank)


def two_sources(rank: Any, group: Any, loss: Tensor) -> None:
    dist.broadcast(loss, group=group, group_src=0 if rank < 2 else 1)


def a_gather_for_a_broadcast(rank: Any, group: Any, loss: Tensor) -> None:
    if rank == 0:
        dist.all_gather_single(numbers(SIZE), loss.view(1), group=group)
    else:
        dist.broadcast(loss, group=group, group_src=0)


def types_alike(rank: Any, group: Any, loss: Tensor) -> None:
    dist.all_reduce(numbers(2), group=group)


def a_shape_each(rank: Any, group: Any, loss: Tensor) -> None:
    dist.all_reduce(numbers(rank + 1), group=group)


def another_shape_on_the_last(rank: Any, group: Any, loss: Tensor) -> None:
    dist.all_reduce(numbers(3 if rank == SIZE - 1 else 2), group=group)


def another_dtype(rank: Any, group: Any, loss: Tensor) -> None:
    dist.all_reduce(numbers(2, torch.float32 if rank else torch.int64), group=group)


def another_float(rank: Any, group: Any, loss: Tensor) -> None:
    dist.all_reduce(numbers(2, torch.float32 if rank else torch.bfloat16), group=group)


def another_order(rank: Any, group: Any, loss: Tensor) -> None:
    for count in (2, 3) if rank == 0 else (3, 2):
        dist.all_reduce(numbers(count), group=group)


def barriers(rank: Any, group: Any, loss: Tensor) -> None:
    if rank == 0:
        dist.barrier(group=group)
    dist.barrier()  # of the same ranks, whatever the group is called
    if rank != 0:
        dist.barrier(group=group)


def a_barrier_of_one(rank: Any, group: Any, loss: Tensor) -> None:
    if rank == 0:
        dist.barrier(group=group)


def a_barrier_out_of_turn(rank: Any, group: Any, loss: Tensor) -> None:
    if rank == 0:
        dist.barrier(group=group)
    dist.all_reduce(loss, group=group)
    if rank != 0:
        dist.barrier(group=group)


@CLASSES
@pytest.mark.parametrize("call", [one_source, types_alike, barriers], ids=lambda call: call.__name__)
def test_members_that_do_the_same_are_proved(call: Call, classes: bool) -> None:
    assert proved(call, classes).status == "proved"


@CLASSES
@pytest.mark.parametrize(
    ("call", "words"),
    [
        (a_source_each, ("broadcast from member 0", "broadcast from member 1")),
        (two_sources, ("broadcast from member 0", "broadcast from member 1")),
        (a_gather_for_a_broadcast, ("all_gather", "broadcast from member 0")),
        (a_shape_each, ("f32[1]", "f32[2]")),
        (another_shape_on_the_last, ("f32[2]", "f32[3]")),
        (another_dtype, ("f32[2]", "i64[2]")),
        (another_float, ("f32[2]", "bf16[2]")),
        (another_order, ("f32[2]", "f32[3]")),
        (a_barrier_of_one, ("barrier", "no such call")),
        (a_barrier_out_of_turn, ("barrier", "all_reduce (sum)")),
    ],
    ids=lambda found: getattr(found, "__name__", ""),
)
def test_members_that_do_not_are_refuted_with_what_each_calls(
    call: Call, words: tuple[str, str], classes: bool
) -> None:
    verdict = proved(call, classes)
    assert verdict.status == "refuted"
    said = verdict.counterexample.step
    assert "ranks do not make the same calls over dp" in said
    assert all(word in said for word in words), said
    assert "test_calls.py:" in said


@CLASSES
@pytest.mark.parametrize(("one", "status"), [(torch.float32, "proved"), (torch.bfloat16, "refuted")], ids=str)
def test_floats_that_are_summed_must_be_of_one_type(one: torch.dtype, status: str, classes: bool) -> None:
    """Over the reals they are the same numbers; the bytes are not."""

    def parallel(net: Any, mesh: DeviceMesh) -> Callable[..., Tensor]:
        def step(x: Tensor) -> Tensor:
            loss: Tensor = net(x)
            loss.backward()
            total = net.w.grad.to(one if mesh.get_local_rank(AXIS) == 0 else torch.float32)
            dist.all_reduce(total, op=dist.ReduceOp.AVG, group=mesh.get_group(AXIS))
            net.w.grad = total.float()
            return loss

        return step

    found = tensure.prove(parallel, model, mesh={AXIS: SIZE}, classes=classes, replay=False)
    assert found.proof.values.status == status


@CLASSES
@pytest.mark.parametrize(("kind", "status"), [("one", "proved"), ("each", "refuted"), ("sent", "refuted")])
def test_groups_of_the_same_ranks_are_not_one(kind: str, status: str, classes: bool) -> None:
    def parallel(net: Any, mesh: DeviceMesh) -> Callable[..., Tensor]:
        groups = [dist.new_group(list(range(SIZE))) for _ in range(2)]

        def step(x: Tensor) -> Tensor:
            rank = mesh.get_local_rank(AXIS)
            loss: Tensor = net(x)
            loss.backward()
            if kind != "sent":
                own = groups[1] if kind == "each" and rank == 1 else groups[0]
                dist.all_reduce(net.w.grad, op=dist.ReduceOp.AVG, group=own)
            elif rank == 0:
                dist.send(numbers(2), 1, group=groups[0])
            elif rank == 1:
                dist.recv(numbers(2), 0, group=groups[1])
            return loss

        return step

    found = tensure.prove(parallel, model, mesh={AXIS: SIZE}, classes=classes, replay=False)
    assert found.proof.values.status == status


def test_an_output_of_another_dtype_is_an_error() -> None:
    def into(rank: Any, group: Any, loss: Tensor) -> None:
        dist.all_gather_single(numbers(SIZE, torch.bfloat16), loss.view(1), group=group)

    with pytest.raises(tensure.TensureError, match="a collective of f32 into bf16"):
        proved(into, False)


@CLASSES
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (torch.float32, ""),
        (torch.bfloat16, r"bf16\[2\], sent .* f32\[2\]"),
        (None, r"f32\[2\], sent .* f32\[3\]"),
    ],
    ids=str,
)
def test_a_message_is_of_the_type_that_is_received(kind: Any, words: str, classes: bool) -> None:
    def around(rank: Any, group: Any, loss: Tensor) -> None:
        got = torch.zeros(2 if kind else 3)
        if rank == 0:
            dist.send(torch.zeros(2, dtype=kind), 1)
        elif rank == 1:
            dist.recv(got, 0)

    if words:
        with pytest.raises(tensure.TensureError, match=words):
            proved(around, classes)
    else:
        assert proved(around, classes).status == "proved"


# --- gathers of parts of several sizes --------------------------------------------------------------


def rows(count: int) -> list[int]:
    """Of the matrix of six rows, on each rank: 2, 1, 2, 1."""
    return [2 - at % 2 for at in range(count)]


def gathered(fault: str) -> Callable[..., Any]:
    def parallel(net: Any, mesh: DeviceMesh) -> ParallelStep:
        def step(x: Tensor) -> Tensor:
            rank, sizes = int(mesh.get_local_rank(AXIS)), rows(SIZE)
            if fault == "other lists" and rank == 1:
                sizes[2:] = sizes[:1:-1]
            start = sum(sizes[:rank])
            own = net.w.detach()[start : start + (1 if fault == "input" else sizes[rank])]
            parts = [torch.empty(size, 4) for size in sizes]
            dist.all_gather(parts, own.contiguous(), group=mesh.get_group(AXIS))
            if fault == "order":
                parts[0], parts[2] = parts[2], parts[0]
            whole = torch.cat(parts).requires_grad_()
            loss = (x @ whole).square().sum()
            loss.backward()
            net.w.grad = whole.grad
            return loss.detach()

        return ParallelStep(step)

    return parallel


@CLASSES
def test_a_gather_of_uneven_parts_is_proved(classes: bool) -> None:
    verdict = tensure.prove(gathered(""), model, mesh={AXIS: SIZE}, classes=classes, replay=False)
    assert verdict.proof.values.status == "proved"


def test_a_replay_gathers_them_too() -> None:
    found = tensure.prove(gathered(""), model, mesh={AXIS: SIZE}, replay=True)
    assert found.replay is not None and found.replay.status == "agrees"


@CLASSES
def test_parts_in_another_order_are_refuted(classes: bool) -> None:
    verdict = tensure.prove(gathered("order"), model, mesh={AXIS: SIZE}, classes=classes, replay=False)
    assert verdict.proof.values.status == "refuted"


@CLASSES
def test_lists_that_differ_between_members_are_refuted(classes: bool) -> None:
    found = tensure.prove(gathered("other lists"), model, mesh={AXIS: SIZE}, classes=classes, replay=False)
    verdict = found.proof.values
    assert verdict.status == "refuted" and verdict.counterexample is not None
    assert "gather of 8, 4, 8, 4 elements" in verdict.counterexample.step
    assert "gather of 8, 4, 4, 8 elements" in verdict.counterexample.step


def test_an_input_that_is_no_part_of_the_list_is_an_error() -> None:
    with pytest.raises(tensure.TensureError, match="an all_gather of 4 elements into a part of 8 on rank 0"):
        tensure.prove(gathered("input"), model, mesh={AXIS: SIZE}, replay=False)
