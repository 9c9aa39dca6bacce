"""Uneven parts padded to one size, exchanged, and cut again; every way to take padding for data."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from tensure.bundle import Local, Place, Plan, Track, collect, evaluate_plan, validate_plan
from tensure.program import Entry, Op, Program, Value, digest, evaluate_program, name, op
from tensure.proving import _check_index, _check_padded, _padded, prove_plan
from tensure.proving._check_index import Index
from tensure.proving._index import index_of, members

N, D = 7, 3


def program(rows: int = N) -> Program:
    steps = (op("exp", "x", out="y"),)
    return Program({}, {"x": Value((rows, D), "f64")}, {}, {"run": Entry((name("x"),), steps, (name("y"),))})


PROGRAM = program()


def body(
    *,
    rows: tuple[int, int] = (4, 7),
    pad: tuple[int, ...] = (0, 0, 0, 1),
    value: float = 0.0,
    order: tuple[str, str] = ("a", "p"),
    kept: tuple[int, int] = (0, 7),
    first: int = 4,
) -> list[Op]:
    """Rows 0:4, and the rest padded to four; joined, cut to seven again, and through exp."""
    return [
        op("slice", "x", out="a", dim=0, start=0, end=first, step=1),
        op("slice", "x", out="b", dim=0, start=rows[0], end=rows[1], step=1),
        op("constant_pad_nd", "b", out="p", pad=list(pad), value=value),
        op("cat", *order, out="j", dim=0),
        op("slice", "j", out="s", dim=0, start=kept[0], end=kept[1], step=1),
        op("exp", "s", out="y"),
    ]


def plan(steps: list[Op], of: Program = PROGRAM) -> Plan:
    locals_ = {base: Local((), Place(name(base))) for base in ("x", "y")}
    track = Track((), (), None, {}, {"run": tuple(steps)})
    return Plan(digest(of), None, {}, {}, locals_, {}, {"t": track})


def agrees(made: Plan) -> bool:
    values = {"x": np.random.default_rng(0).standard_normal((N, D))}
    want = evaluate_program(PROGRAM, values, entry="run").outputs["y"]
    return bool(np.allclose(collect(evaluate_plan(made, PROGRAM, values), PROGRAM, (name("y"),))["y"], want))


RIGHT: dict[str, dict[str, Any]] = {"after": {}, "with another number": {"value": 5.0}}


@pytest.mark.parametrize("form", RIGHT)
def test_uneven_rows_are_proved(form: str) -> None:
    made = plan(body(**RIGHT[form]))
    validate_plan(made, PROGRAM)
    assert agrees(made)
    assert prove_plan(made, PROGRAM).proof.values.status == "proved"


def test_real_sizes_are_proved() -> None:
    by = 1 << 24
    large = program(N * by)
    steps = body(rows=(4 * by, 7 * by), pad=(0, 0, 0, by), kept=(0, 7 * by), first=4 * by)
    assert prove_plan(plan(steps, large), large).proof.values.status == "proved"


FAULTS = {
    "padding kept": body(kept=(1, 8)),
    "padded before": body(pad=(0, 0, 1, 0)),
    "other rows": body(rows=(3, 6)),
    "parts exchanged": body(order=("p", "a")),
    "one part twice": body(order=("a", "a")),
    "exchanged and cut": body(pad=(0, 0, 1, 0), order=("p", "a"), kept=(1, 8)),
    "columns shifted": body(pad=(1, -1, 0, 1)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_not_proved(fault: str) -> None:
    made = plan(FAULTS[fault])
    validate_plan(made, PROGRAM)
    assert not agrees(made)
    assert prove_plan(made, PROGRAM).proof.values.status != "proved"


def test_both_say_what_the_numbers_say() -> None:
    inner, answered = (3, 2), 0
    data = np.arange(6).reshape(inner)
    for pad in itertools.product((0, 1, 2), repeat=4):
        full = np.pad(data, ((pad[2], pad[3]), (pad[0], pad[1])), constant_values=-1)
        for rows, columns in itertools.product(
            itertools.permutations(range(full.shape[0]), 2), [(i,) for i in range(full.shape[1])]
        ):
            seen = full[np.ix_(rows, columns)]
            mine = _check_padded.inside_padding(
                {"pad": pad}, inner, tuple(map(_check_index.index_of, (rows, columns)))
            )
            theirs = _padded.unpadded(pad, inner, (index_of(rows), index_of(columns)))
            assert (mine is None) == (theirs is None) == bool((seen < 0).any())
            if mine is not None and theirs is not None:
                answered += 1
                places = [index.members() for index in mine]
                assert places == [members(index) for index in theirs]
                assert np.array_equal(data[np.ix_(*places)], seen)
    assert answered > 500


def test_both_tell_apart_what_was_joined() -> None:
    widths, starts = (2, 0, 3, 1), (0, 2, 2, 5)
    for at in itertools.product(range(6), repeat=3):
        runs = _check_padded.by_part(_check_index.index_of(at), widths)
        same = _padded.stretches(index_of(at), widths)
        assert [starts[part] + i for part, places in runs for i in places.members()] == list(at)
        assert [(part, places.runs) for part, places in runs] == same
    assert _check_padded.by_part(Index(((0, 1), (6, 7))), (2, 4)) == []
    assert _padded.stretches(((0, 1), (6, 7)), (2, 4)) == []
    assert _check_padded.by_part(Index(((0, 1),)), ()) == [] == _check_padded.by_part(Index(()), (2, 4))


def test_what_spans_much_costs_what_its_runs_cost() -> None:
    half = 1 << 40
    assert _check_padded.by_part(Index(((half - 5, half + 7),)), (half, half)) == [
        (0, Index(((half - 5, half),))),
        (1, Index(((0, 7),))),
    ]
    shifted = _check_padded.inside_padding({"pad": (3, 0)}, (half,), (Index(((3, half + 3),)),))
    assert shifted == (Index(((0, half),)),)
    assert _check_padded.inside_padding({"pad": (3, 0)}, (half,), (Index(((2, half),)),)) is None
