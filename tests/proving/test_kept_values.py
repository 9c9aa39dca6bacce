"""A Program's run for a few values: the same as a whole run, and no more of it than asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from tensure.errors import LimitError
from tensure.program import Program, TensorType, evaluate_program, leaves, parse_program
from tensure.proving import _kept
from tensure.proving._kept import kept_values
from tensure.proving._replay import DRAWS, Real, widened_program
from tests.golden.tp_block import golden

CASE = golden()
PROGRAM = CASE.program
ENTRY = next(iter(PROGRAM.entries))
X = TensorType((32,), "f64")


def whole_run(seed: int) -> Mapping[str, Any]:
    wide = widened_program(PROGRAM)
    drawn = {
        label: Real((seed, number), DRAWS[0]).draw(label, want)
        for number, (label, want, _) in enumerate(leaves(wide, ENTRY, dict(wide.axes)))
    }
    return evaluate_program(wide, drawn, entry=ENTRY).values


def test_values_are_those_of_a_whole_run() -> None:
    whole = whole_run(1)
    found = kept_values(PROGRAM, ENTRY, {}, 1, set(whole))
    assert found.keys() == whole.keys()
    for label, want in whole.items():
        np.testing.assert_array_equal(found[label], want)
    other = kept_values(PROGRAM, ENTRY, {}, 2, set(whole))
    assert any(not np.array_equal(other[label], want) for label, want in whole.items())


def test_a_value_is_the_same_whatever_else_is_asked_for() -> None:
    whole = whole_run(1)
    for label, want in whole.items():
        found = kept_values(PROGRAM, ENTRY, {}, 1, {label})
        assert list(found) == [label]
        np.testing.assert_array_equal(found[label], want)


def test_only_the_steps_that_are_needed_are_run(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    run = _kept.run_step

    def counted(step: Any, operands: list[Any]) -> list[Any]:
        ran.extend(map(str, step.outs))
        return run(step, operands)

    monkeypatch.setattr(_kept, "run_step", counted)
    kept_values(PROGRAM, ENTRY, {}, 1, set(whole_run(1)))
    every = list(ran)
    ran.clear()
    kept_values(PROGRAM, ENTRY, {}, 1, {every[0]})
    assert ran == every[:1] and len(every) > 1


def test_what_is_read_no_more_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last value is made with room for less than all values, and not with room for itself alone."""
    whole = whole_run(1)
    last = list(whole)[-1]
    monkeypatch.setattr(_kept, "MAX_LIVE", sum(value.size for value in whole.values()) - 1)
    kept_values(PROGRAM, ENTRY, {}, 1, {last})
    monkeypatch.setattr(_kept, "MAX_LIVE", whole[last].size)
    with pytest.raises(LimitError, match="kept at once"):
        kept_values(PROGRAM, ENTRY, {}, 1, {last})


def test_too_much_work_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_kept, "MAX_WORK", 10)
    with pytest.raises(LimitError, match="are made"):
        kept_values(PROGRAM, ENTRY, {}, 1, set(whole_run(1)))


def exponent(times: int) -> Program:
    """exp of many times a number."""
    text = f"""tensure program 1
entry step():
  input x
  y = mul(x, {times})
  z = exp(y)
  output z
"""
    lines = text.splitlines()
    return parse_program("\n".join([lines[0], "value x : f64[32]", *lines[1:], ""]))


def test_what_overflows_is_made_of_smaller_numbers() -> None:
    with np.errstate(over="ignore"):
        whole = evaluate_program(exponent(2000), {"x": Real((1, 0), DRAWS[0]).draw("x", X)}).values
    assert np.isinf(whole["z"]).any()
    found = kept_values(exponent(2000), "step", {}, 1, {"z", "x"})
    assert np.isfinite(found["z"]).all()
    np.testing.assert_array_equal(found["x"], whole["x"] / 8)
    alone = kept_values(exponent(2000), "step", {}, 1, {"x"})
    np.testing.assert_array_equal(alone["x"], whole["x"])


def test_where_smaller_numbers_do_not_help_they_are_as_drawn() -> None:
    found = kept_values(exponent(10**7), "step", {}, 1, {"z", "x"})
    np.testing.assert_array_equal(found["x"], Real((1, 0), DRAWS[0]).draw("x", X))
    assert np.isposinf(found["z"]).any()


def test_the_least_number_there_is_is_no_overflow() -> None:
    """Masks are made of it."""
    assert not _kept._overflows({"mask": np.array([0.0, -np.inf])})
    assert _kept._overflows({"x": np.array([0.0, np.nan])})
    assert not _kept._overflows({"index": np.array([1, 2])})
