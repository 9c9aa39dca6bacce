"""Two spellings of one product become one, with the same values."""

from __future__ import annotations

import numpy as np
import pytest

from tensure.bundle import Plan, Track
from tensure.capture._spelling import spelled
from tensure.program import Entry, Name, Op, Program, Value, digest, evaluate_program, op
from tensure.proving import prove_plan

VALUES = {"g": Value((5, 3), "f64", "value"), "x": Value((5, 4), "f64", "value")}
ONE = [op("t", "x", out="a"), op("mm", "a", "g", out="b"), op("t", "b", out="y")]
OTHER = [op("t", "g", out="a"), op("mm", "a", "x", out="y")]


def program(steps: list[Op]) -> Program:
    return Program(values=VALUES, entries={"step": Entry((Name("g"), Name("x")), tuple(steps), (Name("y"),))})


def outcome(steps: list[Op]) -> np.ndarray:
    rng = np.random.default_rng(0)
    inputs = {name: rng.standard_normal(value.shape) for name, value in VALUES.items()}  # type: ignore[arg-type]
    return evaluate_program(program(steps), inputs).outputs["y"]


@pytest.mark.parametrize("steps", [ONE, OTHER, [*ONE[:-1], op("t", "b", out="c"), op("copy", "c", out="y")]])
def test_the_values_stay(steps: list[Op]) -> None:
    assert np.allclose(outcome(spelled(steps)), outcome(steps), rtol=1e-15)


def test_both_come_out_as_one() -> None:
    products = [step for step in spelled(ONE) if step.outs == (Name("y"),)]
    assert [step.op for step in products] == ["mm"]
    assert [step.op for step in spelled(OTHER)] == ["t", "mm"]


def test_a_product_without_a_transpose_inside_stays_as_it_is() -> None:
    steps = [op("mm", "x", "g", out="b"), op("t", "b", out="y")]
    assert spelled(steps) == steps


def test_what_it_makes_is_proved_of_the_other() -> None:
    whole = program(OTHER)
    track = Track(bodies={"step": tuple(spelled(ONE))}, locals=claims())
    assert prove_plan(Plan(digest(whole), tracks={"r": track}), whole).proof.values.status == "proved"


def test_another_product_is_not_proved() -> None:
    """The control: operands exchanged without a transpose."""
    whole = program([op("t", "g", out="a"), op("mm", "a", "x", out="y")])
    wrong = [op("t", "g", out="a"), op("mul", "x", 2.0, out="z"), op("mm", "a", "z", out="y")]
    track = Track(bodies={"step": tuple(wrong)}, locals=claims())
    assert prove_plan(Plan(digest(whole), tracks={"r": track}), whole).proof.values.status == "refuted"


def claims() -> dict[str, object]:
    from tensure.bundle import Local, Place

    return {name: Local((), Place(Name(name))) for name in ("g", "x", "y")}
