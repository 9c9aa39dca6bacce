"""A Program's run for a few values: the same as a whole run, and no more of it than asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from tensure.errors import LimitError
from tensure.program import evaluate_program, leaves
from tensure.proving import _kept
from tensure.proving._kept import kept_values
from tensure.proving._replay import DRAWS, Real, widened_program
from tests.golden.tp_block import golden

CASE = golden()
PROGRAM = CASE.program
ENTRY = next(iter(PROGRAM.entries))


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
