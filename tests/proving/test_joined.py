"""Products of joined weights, of joined gradients, zeros among them; and each seam, order and part astray."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tensure.bundle import canonical_json, plan_digest
from tensure.program import op
from tensure.proving import check_certificate, prove_plan

from .test_spellings import Spelling, agrees, plan, program

CASES: dict[str, Spelling] = {
    "one product with joined weights": Spelling(
        {"x": (4, 6), "a": (6, 4), "b": (6, 2)},
        (
            op("mm", "x", "a", out="p"),
            op("mm", "x", "b", out="q"),
            op("sum", "q", out="s", dim=[1], keepdim=True),
            op("sub", "p", "s", out="y"),
        ),
        (
            op("cat", "a", "b", out="w", dim=1),
            op("mm", "x", "w", out="h"),
            op("view", "h", out="v", size=[2, 1, 6]),
            op("slice", "v", out="p1", dim=2, start=0, end=4),
            op("slice", "v", out="q1", dim=2, start=4, end=6),
            op("view", "p1", out="p", size=[2, 4]),
            op("view", "q1", out="q", size=[2, 2]),
            op("sum", "q", out="s", dim=[1], keepdim=True),
            op("sub", "p", "s", out="y"),
        ),
        {"x": 0, "y": 0},
        faults={
            "w": op("cat", "b", "a", out="w", dim=1),
            "q1": op("slice", "v", out="q1", dim=2, start=3, end=5),
            "h": op("mm", "x", "ww", out="h"),
        },
    ),
    "weights joined along rows, and turned": Spelling(
        {"x": (4, 6), "a": (4, 6), "b": (4, 6)},
        (
            op("t", "a", out="at"),
            op("t", "b", out="bt"),
            op("mm", "x", "at", out="p"),
            op("mm", "x", "bt", out="q"),
            op("silu", "p", out="g"),
            op("mul", "g", "q", out="y"),
        ),
        (
            op("cat", "a", "b", out="w", dim=0),
            op("t", "w", out="wt"),
            op("mm", "x", "wt", out="h"),
            op("slice", "h", out="p", dim=1, start=0, end=2),
            op("slice", "h", out="q", dim=1, start=2, end=4),
            op("silu", "p", out="g"),
            op("mul", "g", "q", out="y"),
        ),
        {"a": 0, "b": 0, "y": 1},
        faults={"w": op("cat", "b", "a", out="w", dim=0)},
    ),
    "a product over what is joined": Spelling(
        {"g": (4, 6), "h": (4, 2), "a": (6, 4), "b": (2, 4)},
        (op("mm", "g", "a", out="p"), op("mm", "h", "b", out="q"), op("add", "p", "q", out="y")),
        (op("cat", "g", "h", out="gh", dim=1), op("cat", "a", "b", out="w"), op("mm", "gh", "w", out="y")),
        {"g": 0, "h": 0, "y": 0},
        faults={
            "w": op("cat", "b", "a", out="w"),
            "gh": op("cat", "h", "g", out="gh", dim=1),
        },
    ),
    "a product over what is joined with zeros": Spelling(
        {"g": (4, 6), "a": (6, 4), "b": (2, 4)},
        (
            op("mm", "g", "a", out="p"),
            op("exp", "b", out="e"),
            op("sum", "e", out="s"),
            op("add", "p", "s", out="y"),
        ),
        (
            op("full", out="zero", size=[2, 2], fill_value=0.0, dtype="f64"),
            op("cat", "g", "zero", out="gh", dim=1),
            op("cat", "a", "b", out="w"),
            op("mm", "gh", "w", out="p"),
            op("exp", "b", out="e"),
            op("sum", "e", out="s"),
            op("add", "p", "s", out="y"),
        ),
        {"g": 0, "y": 0},
        faults={"zero": op("full", out="zero", size=[2, 2], fill_value=0.5, dtype="f64")},
    ),
}


@pytest.mark.parametrize("label", CASES)
def test_joined_step_is_proved_and_its_faults_are_not(label: str) -> None:
    case = CASES[label]
    made = plan(case, case.local)
    assert agrees(case, made)
    result = prove_plan(made, program(case))
    assert result.proof.values.status == "proved", result.proof.values
    assert result.certificate is not None
    for out, wrong in case.faults.items():
        body = tuple(
            replace(wrong, outs=step.outs) if str(step.outs[0]) == out else step for step in case.local
        )
        if out == "h":
            body = (op("cat", "b", "a", out="ww", dim=1), *body)
        faulty = plan(case, body)
        assert not agrees(case, faulty)
        assert prove_plan(faulty, program(case)).proof.values.status == "refuted"
        row = json.loads(result.certificate)
        row["plan"] = plan_digest(faulty)
        assert not check_certificate(canonical_json(row), faulty, program(case)).accepted


def test_zero_divided_is_not_zero() -> None:
    """0 / b is 0 only where b is not 0: what a division makes of zeros is not taken for zeros."""
    case = Spelling(
        {"b": (4, 6)},
        (op("exp", "b", out="e"), op("copy", "e", out="y")),
        (
            op("exp", "b", out="e"),
            op("full", out="zero", size=[2, 6], fill_value=0.0, dtype="f64"),
            op("div", "zero", "b", out="q"),
            op("add", "e", "q", out="y"),
        ),
        {"b": 0, "y": 0},
    )
    assert prove_plan(plan(case, case.local), program(case)).proof.values.status == "unknown"
