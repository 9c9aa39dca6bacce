"""A part without elements is any other without elements, of the same shape; and of no other shape."""

from __future__ import annotations

import json

import pytest

from tensure.bundle import Local, Place, Plan, Track, plan_digest
from tensure.bundle._json import canonical_json
from tensure.program import Entry, Name, Op, Program, Ref, Value, digest, op
from tensure.proving import check_certificate, prove_plan

PROGRAM = Program(
    values={"x": Value((4, 3), "f64", "value")},
    entries={"step": Entry((Name("x"),), (op("mul", "x", 2.0, out="y"),), (Name("y"),))},
)


def rows(lo: int, hi: int, of: str) -> Local:
    return Local((), Place(Name(of), ((0, ((lo, hi, 1),)),)))


def plan(size: tuple[int, int], row: int = 4) -> Plan:
    """One rank has all rows, the other makes zeros of some shape and says that it has none."""
    zeros = Op("full", (), (Name("z"),), (("dtype", "f64"), ("fill_value", 0.0), ("size", size)))
    copy = Op("copy", (Ref(Name("z")),), (Name("y"),))
    all_of = Track(
        locals={"x": rows(0, 4, "x"), "y": rows(0, 4, "y")}, bodies={"step": (op("mul", "x", 2.0, out="y"),)}
    )
    none = Track(locals={"y": rows(row, row, "y")}, bodies={"step": (zeros, copy)})
    return Plan(digest(PROGRAM), tracks={"all": all_of, "none": none})


@pytest.mark.parametrize("row", [0, 2, 4])
def test_nothing_is_any_rows_that_are_none(row: int) -> None:
    found = prove_plan(plan((0, 3), row), PROGRAM)
    assert found.proof.values.status == "proved", found.proof.values


@pytest.mark.parametrize("size", [(1, 3), (0, 2), (4, 3)])
def test_something_is_not_nothing(size: tuple[int, int]) -> None:
    assert prove_plan(plan(size), PROGRAM).proof.values.status != "proved"
    right = prove_plan(plan((0, 3)), PROGRAM).certificate
    assert right is not None
    row = json.loads(right)
    row["plan"] = plan_digest(plan(size))
    assert not check_certificate(canonical_json(row), plan(size), PROGRAM).accepted
