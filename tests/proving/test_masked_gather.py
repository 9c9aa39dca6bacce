"""A vocabulary dealt to ranks: masked gathers, a cross entropy over it, and each bound, mask, sum astray."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import pytest

from tensure.bundle import canonical_json, plan_digest
from tensure.errors import TensureError
from tensure.program import Arg, Op, expr, op
from tensure.proving import check_certificate, prove_plan

from .test_spellings import Spelling, agrees, drawn, plan, program

N, V, HALF = 24, 6, 3
LO, HI = expr(f"r*{HALF}"), expr(f"r*{HALF}+{HALF}")


def reduce(base: str, out: str, kind: str = "sum") -> Op:
    return op("all_reduce", base, out=out, axes=["r"], reduce=kind)


def masks(shifted: bool) -> list[Op]:
    """The mask of classes elsewhere: of indices as they are, or less the rank's first."""
    of, lo, hi = ("less", 0, HALF) if shifted else ("t", LO, HI)
    return [
        op("sub", "t", LO, out="less"),
        op("lt", of, lo, out="below"),
        op("ge", of, hi, out="above"),
        op("bitwise_or", "below", "above", out="mask"),
        op("masked_fill", "less", "mask", 0, out="at"),
    ]


def picked(x: str) -> list[Op]:
    return [
        op("unsqueeze", "at", out="at1", dim=1),
        op("gather", x, "at1", out="own1", dim=-1),
        op("select", "own1", out="own", dim=1, index=0),
        op("masked_fill", "own", "mask", 0.0, out="part"),
    ]


GATHER = Spelling(
    {"x": (N, V), "t": (N,)},
    (
        op("unsqueeze", "t", out="t1", dim=1),
        op("gather", "x", "t1", out="y1", dim=1),
        op("squeeze", "y1", out="y", dim=[1]),
    ),
    (*masks(True), *picked("x"), reduce("part", "y")),
    {"x": 1},
    classes={"t": V},
)
SEVERAL = Spelling(
    {"x": (N, V), "t": (N, 4)},
    (op("gather", "x", "t", out="y", dim=1),),
    (
        *masks(False)[:4],
        op("full", out="zero", size=[], fill_value=0, dtype="i64"),
        op("where", "mask", "zero", "less", out="at"),
        op("gather", "x", "at", out="own", dim=1),
        op("full", out="blank", size=[], fill_value=0.0, dtype="f64"),
        op("where", "mask", "blank", "own", out="part"),
        reduce("part", "y"),
    ),
    {"x": 1},
    classes={"t": V},
)
ENTROPY = Spelling(
    {"x": (N, V), "t": (N,)},
    (
        op("amax", "x", out="best", dim=[1]),
        op("unsqueeze", "best", out="top", dim=1),
        op("sub", "x", "top", out="d"),
        op("exp", "d", out="e"),
        op("sum", "e", out="z", dim=[1]),
        op("log", "z", out="l"),
        op("unsqueeze", "t", out="t1", dim=1),
        op("gather", "d", "t1", out="g1", dim=1),
        op("squeeze", "g1", out="g", dim=[1]),
        op("sub", "l", "g", out="own_loss"),
        op("mean", "own_loss", out="y"),
    ),
    (
        op("amax", "x", out="best", dim=[-1]),
        reduce("best", "top_", "max"),
        op("unsqueeze", "top_", out="top", dim=1),
        op("sub", "x", "top", out="d"),
        op("exp", "d", out="e"),
        op("sum", "e", out="z_", dim=[-1]),
        reduce("z_", "z"),
        op("log", "z", out="l"),
        *masks(True),
        *picked("d"),
        reduce("part", "g"),
        op("sub", "l", "g", out="own_loss"),
        op("mean", "own_loss", out="y"),
    ),
    {"x": 1},
    classes={"t": V},
)
CASES = {"one": GATHER, "several": SEVERAL, "cross entropy": ENTROPY}


@pytest.mark.parametrize("label", CASES)
def test_a_dealt_vocabulary_is_proved(label: str) -> None:
    case = CASES[label]
    made = plan(case, case.local)
    result = prove_plan(made, program(case))
    assert result.proof.values.status == "proved", result.proof.values
    assert agrees(case, made)


def neighbours(body: tuple[Op, ...]) -> Iterator[tuple[Op, ...]]:
    """One operand of one step exchanged, a bound moved by one, a collective left out or of another kind."""
    made = sorted({"x", "t", *(str(step.outs[0]) for step in body)})
    for at, step in enumerate(body):
        others: list[Op] = []
        for place, arg in enumerate(step.args):
            new: list[Arg] = [op("copy", base, out="q").args[0] for base in made]
            if str(arg) in (str(LO), str(HI)) or arg in (0, HALF):
                new = [expr(f"r*{HALF}+{by}") for by in (-1, 1, 0, HALF)] + [-1, 0, 1, 2, 3, 4]
            if isinstance(arg, float):
                new = [1.0]
            others += [
                replace(step, args=(*step.args[:place], item, *step.args[place + 1 :]))
                for item in new
                if repr(item) != repr(arg)
            ]
        swaps = {"lt": ["le", "gt"], "ge": ["gt", "lt"], "bitwise_or": ["bitwise_and"], "amax": ["amin"]}
        others += [replace(step, op=other) for other in swaps.get(step.op, [])]
        if step.op == "all_reduce":
            others.append(replace(step, op="copy", attrs=()))
            others += [
                reduce(str(step.args[0].name), str(step.outs[0]), kind) for kind in ("max", "sum", "min")
            ]  # type: ignore[union-attr]
        yield from ((*body[:at], item, *body[at + 1 :]) for item in others if item != step)


@pytest.mark.parametrize("label", CASES)
def test_what_is_proved_of_a_neighbour_is_true(label: str) -> None:
    case = CASES[label]
    right = prove_plan(plan(case, case.local), program(case)).certificate
    assert right is not None
    assert set(drawn(case)["t"].flat) == set(range(V)), "a fault at a bound must show"
    wrong = 0
    for body in islice(neighbours(case.local), 0, None, 3 if case is ENTROPY else 1):
        made = plan(case, body)
        try:
            status = prove_plan(made, program(case)).proof.values.status
        except TensureError:
            continue
        if agrees(case, made):
            continue
        wrong += 1
        assert status != "proved", body
        row = json.loads(right)
        row["plan"] = plan_digest(made)
        assert not check_certificate(canonical_json(row), made, program(case)).accepted, body
    assert wrong > 20


def test_columns_held_elsewhere_are_never_proved() -> None:
    for case in (GATHER, SEVERAL):
        for by in (1, 2):
            moved = [
                replace(
                    step,
                    args=tuple(expr(f"((r+{by})%2)*{HALF}") if str(a) == str(LO) else a for a in step.args),
                )
                for step in case.local
            ]
            made = plan(case, tuple(moved))
            if by == 1:
                assert not agrees(case, made)
            assert (prove_plan(made, program(case)).proof.values.status == "proved") <= agrees(case, made)
