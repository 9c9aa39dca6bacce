"""Calls among ranks: the captured plan, evaluated in numpy, gives what the calls are defined to give."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as fc
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Partial, Replicate, Shard

from tensure.bundle import collect, evaluate_plan
from tensure.capture import ParallelStep, capture_model, capture_parallel
from tensure.errors import InputError, LimitError, TensureError, UnsupportedError
from tensure.program import Name, evaluate_program

from .steps import differences, drawn, wrong_claims

F64 = torch.float64
ROWS = 12


class Whole(nn.Module):
    """`made(x)` beside a loss that does not matter."""

    def __init__(self, made: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones((), dtype=F64))
        self.made = made

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.w * 1, self.made(x)


@dataclass(frozen=True)
class Case:
    """What every rank makes of its part, and what that is of the whole.

    Args:
        local: of this rank's part of x and the mesh.
        whole: of x, [12, 6].
        stands: where the result stands.
        mesh: sizes of the axes.
        cut: where x stands.
    """

    local: Callable[[Tensor, DeviceMesh], Tensor]
    whole: Callable[[Tensor], Tensor]
    stands: Mapping[str, Any]
    mesh: Mapping[str, int]
    cut: Mapping[str, Any]

    def wrong(self) -> list[str]:
        """Where plan and program differ: by assembled values, and by claims on each rank."""

        def model() -> tuple[nn.Module, tuple[Tensor, ...]]:
            return Whole(self.whole), (torch.randn(ROWS, 6, dtype=F64),)

        def parallel(net: nn.Module, mesh: DeviceMesh) -> ParallelStep:
            return ParallelStep(
                lambda x: (net.w * 1, self.local(x, mesh)), inputs=[self.cut], outputs=[None, self.stands]
            )

        captured = capture_model(model)
        plan = capture_parallel(model, parallel, self.mesh, captured)
        given = drawn(captured.program)
        want = {"out_1": evaluate_program(captured.program, given).outputs["out_1"]}
        have = collect(evaluate_plan(plan, captured.program, given), captured.program, (Name("out_1"),))
        return [*differences(have, want), *wrong_claims(captured, plan)]


LINE: Mapping[str, int] = {"a": 3}
FLAT: Mapping[str, int] = {"a": 2, "b": 3}
CUBE: Mapping[str, int] = {"a": 2, "b": 1, "c": 2}
BY_A: Mapping[str, Any] = {"a": Shard(0)}
BY_B: Mapping[str, Any] = {"b": Shard(0)}
NOT: Mapping[str, Any] = {}


def _into(x: Tensor, run: Callable[[Tensor], Any]) -> Tensor:
    """What is in a tensor after a call that writes into it."""
    made = x.clone()
    run(made)
    return made


def _into_new(shape: Sequence[int], run: Callable[[Tensor], Any]) -> Tensor:
    made = torch.empty(*shape, dtype=F64)
    run(made)
    return made


def _list_gather(x: Tensor, group: Any, count: int) -> Tensor:
    parts = [torch.empty_like(x) for _ in range(count)]
    dist.all_gather(parts, x, group=group)
    return torch.cat([part * (at + 1) for at, part in enumerate(parts)])


def _weighted(x: Tensor, count: int) -> Tensor:
    return torch.cat([part * (at + 1) for at, part in enumerate(x.chunk(count))])


def _list_scatter(x: Tensor, group: Any, count: int) -> Tensor:
    made = torch.empty_like(x.chunk(count)[0])
    dist.reduce_scatter(made, [part.contiguous() for part in x.chunk(count)], group=group)
    return made


def _list_all_to_all(x: Tensor, group: Any, count: int) -> Tensor:
    parts = [torch.empty_like(part) for part in x.chunk(count)]
    dist.all_to_all(parts, [part.contiguous() for part in x.chunk(count)], group=group)
    return torch.cat(parts)


def _scatter(x: Tensor, group: Any, count: int, source: int) -> Tensor:
    made = torch.empty_like(x.chunk(count)[0])
    parts = [part.contiguous() * 2 for part in x.chunk(count)]
    dist.scatter(made, parts if dist.get_rank(group) == source else None, group=group, group_src=source)
    return made


def _waited(work: Any) -> None:
    work.wait()


def _ring(x: Tensor, mesh: DeviceMesh, axis: str, *, batched: bool) -> Tensor:
    """The next member's part; by a batch, or in two turns that cannot block."""
    group = mesh.get_group(axis)
    members = dist.get_process_group_ranks(group)
    at, count = dist.get_rank(group), len(members)
    before, after = members[(at - 1) % count], members[(at + 1) % count]
    made = torch.empty_like(x)
    if batched:
        calls = [dist.P2POp(dist.isend, x, before, group), dist.P2POp(dist.irecv, made, after, group)]
        for work in dist.batch_isend_irecv(calls):
            work.wait()
    elif at % 2 == 0:
        dist.send(x, before, group=group)
        dist.recv(made, after, group=group)
    else:
        dist.recv(made, after, group=group)
        dist.send(x, before, group=group)
    return made


def _two_messages(x: Tensor, mesh: DeviceMesh) -> Tensor:
    """Messages on one way keep their order, whatever their shapes; rank 0 sends, all others get."""
    made, more = torch.empty_like(x), torch.empty_like(x)
    if dist.get_rank() == 0:
        for other in range(1, dist.get_world_size()):
            dist.isend(x, other).wait()
            dist.isend(x * 2, other).wait()
        return x * 5
    works = [dist.irecv(made, 0), dist.irecv(more, 0)]
    for work in works:
        work.wait()
    return made + 2 * more


def _sum(parts: Tensor, count: int) -> Tensor:
    return parts.view(count, parts.shape[0] // count, *parts.shape[1:]).sum(0)


def _coalesced(x: Tensor, group: Any) -> Tensor:
    one, two = x.clone(), x * 2
    with dist._coalescing_manager(group):
        dist.all_reduce(one, group=group)
        dist.all_reduce(two, group=group)
    return one + two


def _coalesced_shards(x: Tensor, group: Any) -> Tensor:
    """Two gathers as one call, then two scatters."""
    wholes = [torch.empty(ROWS, 6, dtype=F64) for _ in range(2)]
    with dist._coalescing_manager(group):
        dist.all_gather_single(wholes[0], x, group)
        dist.all_gather_single(wholes[1], x * 2, group)
    parts = [torch.empty_like(x) for _ in range(2)]
    with dist._coalescing_manager(group):
        dist.reduce_scatter_single(parts[0], wholes[0], group=group)
        dist.reduce_scatter_single(parts[1], wholes[1], group=group)
    return parts[0] + 5 * parts[1]


CASES: dict[str, Case] = {
    # values
    "all_reduce": Case(
        lambda x, m: fc.all_reduce(x, "sum", m.get_group("a")), lambda x: _sum(x, 3), NOT, LINE, BY_A
    ),
    "all_reduce avg": Case(
        lambda x, m: fc.all_reduce(x, "avg", (m, 0)), lambda x: _sum(x, 3) / 3, NOT, LINE, BY_A
    ),
    "all_reduce max": Case(
        lambda x, m: fc.all_reduce(x, "max", (m, 1)),
        lambda x: x.view(3, 4, 6).amax(0),
        NOT,
        FLAT,
        BY_B,
    ),
    "all_reduce min": Case(
        lambda x, m: fc.all_reduce(x, "min", (m, 0)), lambda x: x.view(2, 6, 6).amin(0), NOT, FLAT, BY_A
    ),
    "all_reduce of both axes": Case(
        lambda x, m: fc.all_reduce(x, "sum", dist.group.WORLD),
        lambda x: _sum(x, 6),
        NOT,
        FLAT,
        {"a": Shard(0), "b": Shard(0)},
    ),
    "all_reduce along one of three": Case(
        lambda x, m: fc.all_reduce(x, "sum", m.get_group("c")),
        lambda x: x.view(2, 2, 3, 6).sum(1).flatten(0, 1),
        {"a": Shard(0)},
        CUBE,
        {"a": Shard(0), "c": Shard(0)},
    ),
    "all_reduce of one": Case(
        lambda x, m: fc.all_reduce(x, "avg", m.get_group("b")),
        lambda x: x,
        {"c": Shard(0)},
        CUBE,
        {"c": Shard(0)},
    ),
    "all_reduce of a flattened pair": Case(
        lambda x, m: fc.all_reduce(x, "sum", m["a", "c"]._flatten().get_group()),
        lambda x: _sum(x, 4),
        NOT,
        CUBE,
        {"a": Shard(0), "c": Shard(0)},
    ),
    "all_gather": Case(
        lambda x, m: fc.all_gather_single(x, 0, m.get_group("b")), lambda x: x, NOT, FLAT, BY_B
    ),
    "all_gather along dim 1": Case(
        lambda x, m: fc.all_gather_single(x, 1, m.get_group("b")), lambda x: x, NOT, FLAT, {"b": Shard(1)}
    ),
    "reduce_scatter": Case(
        lambda x, m: fc.reduce_scatter_single(x, "sum", 0, m.get_group("a")), lambda x: x * 3, BY_A, LINE, NOT
    ),
    "reduce_scatter avg along dim 1": Case(
        lambda x, m: fc.reduce_scatter_single(x, "avg", 1, m.get_group("b")),
        lambda x: _sum(x, 3) / 3,
        {"b": Shard(1)},
        FLAT,
        BY_B,
    ),
    "all_to_all": Case(
        lambda x, m: fc.all_to_all_single(x, None, None, m.get_group("a")),
        lambda x: x.view(2, 2, 3, 6).transpose(0, 1).reshape(12, 6),
        BY_A,
        FLAT,
        BY_A,
    ),
    "broadcast": Case(lambda x, m: fc.broadcast(x, 1, m.get_group("a")), lambda x: x[6:], NOT, FLAT, BY_A),
    "broadcast along the last axis": Case(
        lambda x, m: fc.broadcast(x, 2, m.get_group("b")), lambda x: x[8:], NOT, FLAT, BY_B
    ),
    "several all_reduces": Case(
        lambda x, m: torch.cat(fc.all_reduce_coalesced([x, x * 2], "sum", m.get_group("a"))),
        lambda x: torch.cat([_sum(x, 3), 2 * _sum(x, 3)]),
        NOT,
        LINE,
        BY_A,
    ),
    "several all_gathers": Case(
        lambda x, m: torch.cat(fc.all_gather_single_coalesced([x, x * 2], m.get_group("a"))),
        lambda x: torch.cat([x, 2 * x]),
        NOT,
        LINE,
        BY_A,
    ),
    "several reduce_scatters": Case(
        lambda x, m: sum(
            fc.reduce_scatter_single_coalesced([x, x * 2], "sum", [0, 0], m.get_group("a")),
            start=torch.zeros(4, 6, dtype=F64),
        ),
        lambda x: x * 9,
        BY_A,
        LINE,
        NOT,
    ),
    # into tensors
    "dist.all_reduce": Case(
        lambda x, m: _into(x, lambda y: dist.all_reduce(y, group=m.get_group("a"))),
        lambda x: _sum(x, 3),
        NOT,
        LINE,
        BY_A,
    ),
    "dist.all_reduce of a part": Case(
        lambda x, m: _into(x, lambda y: dist.all_reduce(y[1:3, 2:4], group=m.get_group("a"))),
        lambda x: torch.cat(
            [_into(part, lambda y: y[1:3, 2:4].copy_(_sum(x, 3)[1:3, 2:4])) for part in x.chunk(3)]
        ),
        BY_A,
        LINE,
        BY_A,
    ),
    "dist.all_reduce later": Case(
        lambda x, m: _into(
            x, lambda y: _waited(dist.all_reduce(y, dist.ReduceOp.MAX, m.get_group("a"), async_op=True))
        ),
        lambda x: x.view(3, 4, 6).amax(0),
        NOT,
        LINE,
        BY_A,
    ),
    "dist.all_reduce avg": Case(
        lambda x, m: _into(x, lambda y: dist.all_reduce(y, dist.ReduceOp.AVG, m.get_group("b"))),
        lambda x: _sum(x, 3) / 3,
        NOT,
        FLAT,
        BY_B,
    ),
    "dist.broadcast": Case(
        lambda x, m: _into(x, lambda y: dist.broadcast(y, group=m.get_group("b"), group_src=2)),
        lambda x: x[8:],
        NOT,
        FLAT,
        BY_B,
    ),
    "dist.broadcast by rank": Case(
        lambda x, m: _into(
            x,
            lambda y: dist.broadcast(
                y, dist.get_process_group_ranks(m.get_group("b"))[1], group=m.get_group("b")
            ),
        ),
        lambda x: x[4:8],
        NOT,
        FLAT,
        BY_B,
    ),
    "dist.all_gather": Case(
        lambda x, m: _list_gather(x, m.get_group("b"), 3), lambda x: _weighted(x, 3), NOT, FLAT, BY_B
    ),
    "dist.all_gather_single": Case(
        lambda x, m: _into_new((12, 6), lambda y: dist.all_gather_single(y, x, m.get_group("a"))),
        lambda x: x,
        NOT,
        FLAT,
        BY_A,
    ),
    "dist.all_gather_single, stacked": Case(
        lambda x, m: _into_new((2, 6, 6), lambda y: dist.all_gather_single(y, x, m.get_group("a"))),
        lambda x: x.view(2, 6, 6),
        NOT,
        FLAT,
        BY_A,
    ),
    "dist.reduce_scatter": Case(
        lambda x, m: _list_scatter(x, m.get_group("b"), 3), lambda x: x * 3, BY_B, FLAT, NOT
    ),
    "dist.reduce_scatter_single": Case(
        lambda x, m: _into_new((6, 6), lambda y: dist.reduce_scatter_single(y, x, group=m.get_group("a"))),
        lambda x: x * 2,
        BY_A,
        FLAT,
        NOT,
    ),
    "dist.reduce_scatter_single avg": Case(
        lambda x, m: _into_new(
            (6, 6), lambda y: dist.reduce_scatter_single(y, x, dist.ReduceOp.AVG, m.get_group("a"))
        ),
        lambda x: x,
        BY_A,
        FLAT,
        NOT,
    ),
    "dist.all_to_all": Case(
        lambda x, m: _list_all_to_all(x, m.get_group("a"), 2),
        lambda x: x.view(2, 2, 3, 6).transpose(0, 1).reshape(12, 6),
        BY_A,
        FLAT,
        BY_A,
    ),
    "dist.all_to_all_single": Case(
        lambda x, m: _into_new((6, 6), lambda y: dist.all_to_all_single(y, x, group=m.get_group("a"))),
        lambda x: x.view(2, 2, 3, 6).transpose(0, 1).reshape(12, 6),
        BY_A,
        FLAT,
        BY_A,
    ),
    "dist.scatter": Case(
        lambda x, m: _scatter(x, m.get_group("a"), 2, 1),
        lambda x: 2 * x[6:],
        BY_A,
        FLAT,
        BY_A,
    ),
    "a ring": Case(lambda x, m: _ring(x, m, "b", batched=True), lambda x: x.roll(-4, 0), BY_B, FLAT, BY_B),
    "a ring of two by turns": Case(
        lambda x, m: _ring(x, m, "a", batched=False), lambda x: x.roll(6, 0), BY_A, FLAT, BY_A
    ),
    "messages in order": Case(_two_messages, lambda x: x[:4] * 5, NOT, LINE, BY_A),
    "a barrier": Case(
        lambda x, m: (dist.barrier(), dist.barrier(m.get_group("a")), x)[2], lambda x: x, BY_A, LINE, BY_A
    ),
    "coalesced": Case(
        lambda x, m: _coalesced(x, m.get_group("a")), lambda x: 3 * _sum(x, 3), NOT, LINE, BY_A
    ),
    "coalesced gathers and scatters": Case(
        lambda x, m: _coalesced_shards(x, m.get_group("a")), lambda x: 33 * x, BY_A, LINE, BY_A
    ),
    "a group made by hand": Case(
        lambda x, m: _into(x, lambda y: dist.all_reduce(y, group=dist.new_group([0, 1, 2]))),
        lambda x: _sum(x, 3),
        NOT,
        LINE,
        BY_A,
    ),
    "without a call the parts are a sum": Case(
        lambda x, m: x, lambda x: _sum(x, 3), {"a": Partial()}, LINE, BY_A
    ),
    "without a call the parts are an average": Case(
        lambda x, m: x, lambda x: _sum(x, 3) / 3, {"a": Partial("avg")}, LINE, BY_A
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_call_among_ranks(name: str) -> None:
    assert CASES[name].wrong() == []


WRONG: dict[str, Case] = {
    "dropped": Case(lambda x, m: x.clone(), lambda x: _sum(x, 3), NOT, LINE, BY_A),
    "on the wrong axis": Case(
        lambda x, m: fc.all_reduce(x, "sum", m.get_group("a")),
        lambda x: x.view(2, 3, 2, 6).sum(1).flatten(0, 1),
        {"a": Shard(0)},
        FLAT,
        {"a": Shard(0), "b": Shard(0)},
    ),
    "an average for a sum": Case(
        lambda x, m: fc.all_reduce(x, "avg", m.get_group("a")), lambda x: _sum(x, 3), NOT, LINE, BY_A
    ),
    "the wrong source": Case(
        lambda x, m: fc.broadcast(x, 0, m.get_group("a")), lambda x: x[6:], NOT, FLAT, BY_A
    ),
    "the wrong way round": Case(
        lambda x, m: _ring(x, m, "b", batched=True), lambda x: x.roll(4, 0), BY_B, FLAT, BY_B
    ),
    "gathered along the wrong dim": Case(
        lambda x, m: fc.all_gather_single(x, 0, m.get_group("a"))[:6],
        lambda x: x[:6],
        NOT,
        FLAT,
        {"a": Shard(1)},
    ),
    "one way only": Case(
        lambda x, m: fc.all_reduce(x, "sum", m.get_group("a")) if dist.get_rank() else x.clone() * 2,
        lambda x: _sum(x, 3),
        NOT,
        LINE,
        BY_A,
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_call_is_found(name: str) -> None:
    try:
        assert WRONG[name].wrong() != []
    except TensureError as error:
        # ranks that do not all take part never meet
        assert name in ("one way only", "gathered along the wrong dim"), error


# --- what has no rule -------------------------------------------------------------------------------


def _refused(
    local: Callable[[Tensor, DeviceMesh], Any],
    mesh: Mapping[str, int],
    kind: type[InputError] = UnsupportedError,
) -> pytest.ExceptionInfo[Any]:
    case = Case(lambda x, m: (local(x, m), x)[1], lambda x: x, NOT, mesh, NOT)
    with pytest.raises(kind) as caught:
        case.wrong()
    assert "test_collectives.py:" in str(caught.value.place) and caught.value.wanted
    return caught


@pytest.mark.parametrize(
    ("ranks", "mesh"),
    [
        ([0, 3], {"a": 2, "b": 2}),
        ([0, 1], {"a": 4}),
        ([0, 1, 2], {"a": 2, "b": 2}),
        ([0, 3], {"a": 2, "b": 1, "c": 2}),
    ],
)
def test_a_group_that_is_no_product_of_axes(ranks: list[int], mesh: Mapping[str, int]) -> None:
    caught = _refused(lambda x, m: dist.all_reduce(x, group=dist.new_group(ranks)), mesh)
    assert str(ranks) in str(caught.value) and "a" in str(caught.value.wanted)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("product", lambda x, m: dist.all_reduce(x, dist.ReduceOp.PRODUCT)),
        ("functional product", lambda x, m: fc.all_reduce(x, "product", dist.group.WORLD)),
        ("reduce", lambda x, m: dist.reduce(x, 0)),
        (
            "gather",
            lambda x, m: dist.gather(x, [x.clone() for _ in range(3)] if dist.get_rank() == 0 else None),
        ),
        ("any source", lambda x, m: dist.recv(x)),
    ],
)
def test_a_call_without_a_rule_is_refused_by_line(
    name: str, call: Callable[[Tensor, DeviceMesh], Any]
) -> None:
    _refused(call, LINE)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("uneven all_to_all", lambda x, m: fc.all_to_all_single(x, [2, 4, 6], [4, 4, 4], m.get_group("a"))),
        (
            "uneven dist.all_to_all_single",
            lambda x, m: dist.all_to_all_single(torch.empty_like(x), x, [2, 4, 6], [4, 4, 4]),
        ),
        (
            "uneven dist.all_to_all",
            lambda x, m: dist.all_to_all([torch.empty(2, 6, dtype=F64)] * 3, list(x.split([2, 4, 6]))),
        ),
    ],
)
def test_who_takes_what_nobody_gives_is_named(name: str, call: Callable[[Tensor, DeviceMesh], Any]) -> None:
    caught = _refused(call, LINE, InputError)
    assert re.search(
        r"in an all-to-all rank 0 gives rank \d a part of \d+, and that takes one of \d+", str(caught.value)
    )


def test_an_unknown_op_is_refused_by_name() -> None:
    with torch.library._scoped_library("tensuretest", "DEF") as library:
        library.define("odd(Tensor x) -> Tensor")
        library.impl("odd", lambda x: x.clone(), "CompositeExplicitAutograd")
        caught = _refused(lambda x, m: torch.ops.tensuretest.odd(x), LINE)
    assert "tensuretest::odd" in str(caught.value)


def test_too_many_ranks_and_meshes_that_are_none() -> None:
    for mesh, kind in (
        ({"a": 65_537}, LimitError),
        ({}, InputError),
        ({"a": 0}, InputError),
        ({"a b": 2}, InputError),
    ):
        with pytest.raises(kind):
            Case(lambda x, m: x, lambda x: x, NOT, mesh, NOT).wrong()


def test_a_process_group_that_is_there_already() -> None:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        with pytest.raises(InputError, match="already there"):
            Case(lambda x, m: x, lambda x: x, NOT, LINE, NOT).wrong()
    finally:
        dist.destroy_process_group()


def test_an_error_in_the_step_leaves_no_group() -> None:
    def fail(x: Tensor, mesh: DeviceMesh) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(InputError, match="the step of rank 0 raises ZeroDivisionError") as caught:
        Case(fail, lambda x: x, NOT, LINE, NOT).wrong()
    assert "test_collectives.py:" in str(caught.value.place)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert not dist.is_initialized()


def test_replicates_are_the_same_as_nothing_said() -> None:
    case = Case(lambda x, m: x * 2, lambda x: x * 2, {"a": Replicate()}, LINE, {"a": Replicate()})
    assert case.wrong() == []
