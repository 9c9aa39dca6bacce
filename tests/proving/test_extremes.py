"""Maxima over cut dims: a softmax whose columns are dealt to ranks, and every way to get it wrong."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tensure.bundle import canonical_json, plan_digest
from tensure.program import Op, expr, op
from tensure.proving import check_certificate, prove_plan

from .test_spellings import Spelling, agrees, plan, program


def over_ranks(base: str, out: str, kind: str) -> Op:
    return op("all_reduce", base, out=out, axes=["r"], reduce=kind)


def softmax(extreme: str) -> tuple[Op, ...]:
    return (
        op(extreme, "x", out="top", dim=[-1], keepdim=True),
        op("sub", "x", "top", out="d"),
        op("exp", "d", out="e"),
        op("sum", "e", out="z", dim=[1], keepdim=True),
        op("div", "e", "z", out="y"),
    )


def dealt(extreme: str) -> tuple[Op, ...]:
    first, *rest, total, last = softmax(extreme)
    return (
        replace(first, outs=op("copy", "x", out="own").outs),
        over_ranks("own", "top", extreme[1:]),
        *rest,
        replace(total, outs=op("copy", "x", out="part").outs),
        over_ranks("part", "z", "sum"),
        last,
    )


def columns(extreme: str) -> Spelling:
    return Spelling({"x": (3, 4)}, softmax(extreme), dealt(extreme), {"x": 1, "y": 1}, ("top", "z", "y"))


@pytest.mark.parametrize("extreme", ["amax", "amin"])
def test_softmax_over_dealt_columns_is_proved(extreme: str) -> None:
    case = columns(extreme)
    result = prove_plan(plan(case, case.local), program(case))
    assert result.proof.values.status == "proved", result.proof.values
    assert agrees(case, plan(case, case.local))


FAULTS = {
    "the other extreme": ("top", over_ranks("own", "top", "min")),
    "a sum of maxima": ("top", over_ranks("own", "top", "sum")),
    "no maximum over ranks": ("top", op("copy", "own", out="top")),
    "the maximum of another tensor": ("own", op("amax", "n", out="own", dim=[-1], keepdim=True)),
    "the least of the rank's own": ("own", op("amin", "x", out="own", dim=[-1], keepdim=True)),
    "of some of the rank's own": ("own", op("amax", "half", out="own", dim=[-1], keepdim=True)),
    "no sum over ranks": ("z", op("copy", "part", out="z")),
    "a maximum of sums": ("z", over_ranks("part", "z", "max")),
}


@pytest.mark.parametrize("label", FAULTS)
def test_fault_is_refuted_and_its_certificate_refused(label: str) -> None:
    case = columns("amax")
    right = prove_plan(plan(case, case.local), program(case)).certificate
    assert right is not None
    out, wrong = FAULTS[label]
    before = (op("neg", "x", out="n"), op("slice", "x", out="half", dim=1, start=0, end=1))
    body = (*before, *(wrong if str(step.outs[0]) == out else step for step in case.local))
    made = plan(case, body)
    assert not agrees(case, made)
    assert prove_plan(made, program(case)).proof.values.status == "refuted"
    row = json.loads(right)
    row["plan"] = plan_digest(made)
    assert not check_certificate(canonical_json(row), made, program(case)).accepted


def test_a_part_that_no_rank_has_is_missed() -> None:
    """Each rank looks at one of its two columns: the maximum of these two is not that of all four."""
    logical = (op("amax", "x", out="top", dim=[1]), op("exp", "top", out="y"))
    local = (
        op("slice", "x", out="half", dim=1, start=1, end=2),
        op("amax", "half", out="own", dim=[1]),
        over_ranks("own", "top", "max"),
        op("exp", "top", out="y"),
    )
    case = Spelling({"x": (3, 4)}, logical, local, {"x": 1}, ("top", "y"))
    assert prove_plan(plan(case, local), program(case)).proof.values.status == "refuted"


@pytest.mark.parametrize(("kind", "status"), [("amax", "proved"), ("sum", "refuted")])
def test_columns_that_two_ranks_have_count_once(kind: str, status: str) -> None:
    """Parts may overlap for a maximum; as addends of a sum they may not."""
    local = (
        op("slice", "x", out="mine", dim=1, start=expr("r"), end=expr("r+3")),
        op(kind, "mine", out="own", dim=[1]),
        over_ranks("own", "y", "max" if kind == "amax" else "sum"),
    )
    case = Spelling({"x": (3, 4)}, (op(kind, "x", out="y", dim=[1]),), local, {}, ("y",))
    assert prove_plan(plan(case, local), program(case)).proof.values.status == status


def test_rows_taken_one_after_another_are_rows_of_one_maximum() -> None:
    body: list[Op] = []
    for half in (0, 2):
        body += [
            op("slice", "x", out=f"r{half}", dim=0, start=half, end=half + 2),
            op("amax", f"r{half}", out=f"o{half}", dim=[1]),
            over_ranks(f"o{half}", f"m{half}", "max"),
        ]
    for names, status in ((("m0", "m2"), "proved"), (("m2", "m0"), "refuted")):
        local = (*body, op("cat", *names, out="y"))
        case = Spelling({"x": (4, 4)}, (op("amax", "x", out="y", dim=[1]),), local, {"x": 1}, ("y",))
        assert prove_plan(plan(case, local), program(case)).proof.values.status == status


def test_rows_and_columns_do_not_mix() -> None:
    """Maxima of other rows are no part of this maximum, though they are of the same op."""
    logical = (op("amax", "x", out="y", dim=[1]),)
    local = (
        op("amax", "x", out="own", dim=[1]),
        over_ranks("own", "y", "max"),
    )
    case = Spelling({"x": (4, 4)}, logical, local, {"x": 0}, ("y",))
    made = plan(replace(case, cut={"x": 0, "y": 0}), local)
    assert not agrees(case, made)
    assert prove_plan(made, program(case)).proof.values.status == "refuted"
