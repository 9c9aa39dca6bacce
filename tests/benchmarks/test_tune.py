"""The benchmark of choices: regret on made-up times, what is drawn, when there is a bar."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensure.benchmarks import _tune
from tensure.benchmarks._records import Bar, Case, Measured, NotMeasured, Row
from tensure.benchmarks._statistics import spread
from tensure.benchmarks._tune import (
    LIMIT_FLOPS,
    MOST_REGRET,
    REGRET,
    SHAPES,
    TUNING,
    ChoiceEngine,
    Seconds,
    draw_problem,
    regret_bars,
    regrets,
)
from tensure.kernels import Conv
from tensure.planning import Candidate, ConvProblem, MachineNumbers, candidates, choose_conv

PROBLEM = ConvProblem(Conv(64, 64, (3, 3), padding=(1, 1, 1, 1)), 1, 28, 28)


def seen() -> list[Candidate]:
    """The ways the chooser asks the times of; not all that there are."""
    asked: list[Candidate] = []

    def measure(_: ConvProblem, way: Candidate) -> float:
        asked.append(way)
        return 1.0

    choose_conv(PROBLEM, MachineNumbers(), measure=measure)
    return asked


def times(fastest: Candidate, problem: ConvProblem = PROBLEM) -> dict[tuple[str, Candidate], float]:
    """One way takes 1 ms, each other 2 ms."""
    return {(problem.key(), way): 1e-3 if way == fastest else 2e-3 for way in candidates(problem)}


def test_no_regret_where_the_sweeps_agree() -> None:
    for way in seen():
        assert regrets([PROBLEM], times(way), times(way)) == [0.0]


def test_times_that_mislead_the_chooser_are_regretted() -> None:
    first, second = seen()[:2]
    assert regrets([PROBLEM], times(first), times(second)) == [pytest.approx(1.0)]
    slower = {key: 1.1 * taken for key, taken in times(first).items()}
    assert regrets([PROBLEM], times(first), slower) == [0.0], "only the order misleads"


def test_a_way_the_chooser_never_asks_for_is_regretted() -> None:
    """Also where both sweeps agree: the model left out what was fastest."""
    asked = seen()
    left_out = [way for way in candidates(PROBLEM) if way not in asked]
    assert left_out, "the chooser times everything, and this test shows nothing"
    assert regrets([PROBLEM], times(left_out[0]), times(left_out[0])) == [pytest.approx(1.0)]


def test_each_problem_has_its_own_regret() -> None:
    other = ConvProblem(Conv(32, 64, (3, 3)), 1, 14, 14)
    first, second = seen()[:2]
    agree = times(Candidate("direct", "NHWC"), other)
    found = regrets([other, PROBLEM], agree | times(first), agree | times(second))
    assert found == [0.0, pytest.approx(1.0)]


@given(st.integers(0, 2**32))
def test_what_is_drawn_stays_within_the_limit(seed: int) -> None:
    problem = draw_problem(random.Random(seed))
    assert 0 < problem.flops <= LIMIT_FLOPS
    assert problem == draw_problem(random.Random(seed))


def test_the_limit_is_what_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: without it the same seeds draw larger ones."""
    monkeypatch.setattr(_tune, "LIMIT_FLOPS", 1 << 62)
    assert any(draw_problem(random.Random(seed)).flops > LIMIT_FLOPS for seed in range(100))


@pytest.mark.parametrize("quick", [False, True])
def test_every_way_is_timed_twice(quick: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge's times are measured anew: the second sweep of this clock makes another way the fastest."""
    calls: dict[tuple[str, Candidate], int] = {}
    handed: list[Seconds] = []

    def measure(problem: ConvProblem, way: Candidate) -> float:
        calls[problem.key(), way] = calls.get((problem.key(), way), 0) + 1
        return float(calls[problem.key(), way])

    def judged(problems: list[ConvProblem], chooser: Seconds, judge: Seconds) -> list[float]:
        handed.extend((chooser, judge))
        return [0.0 for _ in problems]

    monkeypatch.setattr(_tune, "measure_conv", measure)
    monkeypatch.setattr(_tune, "regrets", judged)
    engine = ChoiceEngine(quick)
    assert engine.facts() == {}
    engine.run(Case(REGRET, 1))
    assert engine.facts()["num_shapes"] == SHAPES[1 if quick else 0]
    chooser, judge = handed
    assert chooser.keys() == judge.keys() == calls.keys()
    assert all(judge[key] > chooser[key] for key in judge)


@pytest.mark.parametrize(("mean", "met"), [(MOST_REGRET / 2, True), (MOST_REGRET * 2, False)])
def test_the_bar_is_held_against_the_mean_of_all_shapes(mean: float, met: bool) -> None:
    (bar,) = regret_bars(cases_of(), found(num_shapes=SHAPES[0], regret_mean=mean))
    assert isinstance(bar, Bar)
    assert bar.met == met


@pytest.mark.parametrize("num_shapes", [SHAPES[1], SHAPES[0] - 1, None])
def test_fewer_shapes_have_no_bar(num_shapes: int | None) -> None:
    facts = {} if num_shapes is None else {"num_shapes": num_shapes, "regret_mean": 0.0}
    (item,) = regret_bars(cases_of(), found(**facts))
    assert isinstance(item, NotMeasured)


def cases_of() -> list[Case]:
    return [Case(TUNING, 1), Case(REGRET, 1)]


def found(**facts: Any) -> Measured:
    """Rows of both cases; the facts belong to the second."""
    own: dict[str, dict[str, Any]] = {TUNING: {}, REGRET: facts}
    return Measured(
        rows=[Row(name, "tensure", 1, "ms", spread([1.0]), 1.0, {}, None, fact) for name, fact in own.items()]
    )
