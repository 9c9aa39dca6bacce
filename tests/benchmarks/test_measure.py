"""The order of things: compare, warm up, take turns; what is absent, wrong or stopped has no figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.benchmarks.fakes import FULL, QUICK, FakeEngine, World

from tensure.benchmarks._declare import Benchmark
from tensure.benchmarks._measure import FULL_S, QUICK_S, measure
from tensure.benchmarks._records import (
    AbsentError,
    Bar,
    Case,
    EngineError,
    Limit,
    Measured,
    NotMeasured,
    Scope,
    Timing,
)
from tensure.errors import InputError, RecordError

REASONS = "not timed, since its output is not that of tensure"


def test_engines_are_compared_then_warmed_up_then_take_turns() -> None:
    world = World()
    for name in ("tensure", "a", "b"):
        world.add(name, 1.0)
    measure(world.benchmark(), FULL, clock=world.clock)
    turn = ["tensure", "a", "b"]
    assert world.log == [f"check {name}" for name in turn] + turn * 4
    assert all(engine.closed for engine in world.engines.values())


def test_medians_spread_and_ratios_by_round() -> None:
    """The warm-up (100 s) is in no figure; a disturbance that meets a whole round leaves the ratio alone."""
    world = World()
    ours, peer = [100.0, 1.0, 2.0, 50.0], [100.0, 2.0, 4.0, 100.0]
    world.add("tensure", *ours)
    world.add("peer", *peer)
    found = measure(world.benchmark(), FULL, clock=world.clock)
    row, other = found.rows
    assert (row.engine, row.spread.median, row.spread.min, row.spread.max) == ("tensure", 5.0, 0.2, 10.0)
    assert row.spread.num == 3
    assert dict(row.ratios) == {"peer": 2.0} and dict(other.ratios) == {"tensure": 0.5}
    assert row.cpu_s == 4.0


@given(st.lists(st.floats(0.01, 100.0), min_size=1, max_size=9), st.floats(0.1, 10.0))
def test_ratio_is_exact_where_the_peer_is_always_as_much_slower(times: list[float], factor: float) -> None:
    world = World(rounds=(len(times), 1))
    world.add("tensure", 1.0, *times)
    world.add("peer", 1.0, *(factor * t for t in times))
    if len(times) == 1:  # what is asked for once only has no warm-up
        world.engines["tensure"].seconds, world.engines["peer"].seconds = times, [factor * times[0]]
    found = measure(world.benchmark(), FULL, clock=world.clock)
    assert found.rows[0].ratios["peer"] == pytest.approx(factor)
    five = found.rows[0].spread
    assert five.min <= five.q1 <= five.median <= five.q3 <= five.max


def test_processor_time_and_milliseconds() -> None:
    world = World(metric="ms", better="lower")
    world.add("tensure", 0.5)
    found = measure(world.benchmark(), replace(FULL, cpu_time=True), clock=world.clock)
    assert found.rows[0].spread.median == pytest.approx(100.0)  # 2 x 0.5 s over 10 units of work
    assert found.rows[0].unit == "ms"


def test_floating_point_operations_a_second() -> None:
    world = World(metric="GFLOP/s")
    world.add("tensure", 0.5)
    found = measure(world.benchmark(Case("c", 1, work=3e9)), FULL, clock=world.clock)
    assert found.rows[0].spread.median == pytest.approx(6.0) and found.rows[0].unit == "GFLOP/s"


def test_peer_with_another_output_is_refused() -> None:
    world = World()
    world.add("tensure", 1.0)
    world.add("fast", 0.001, output=41)
    found = measure(world.benchmark(), FULL, clock=world.clock)
    assert [row.engine for row in found.rows] == ["tensure"]
    assert "fast" not in world.log
    (item,) = found.not_measured
    assert item.name == "fast, c" and item.reason == f"{REASONS}: 41 is not 42" and not item.wrong


def test_our_own_wrong_output_is_a_failure_and_is_not_timed() -> None:
    world = World(reference="peer")
    world.add("tensure", 0.001, output=41)
    world.add("peer", 1.0)
    found = measure(world.benchmark(), FULL, clock=world.clock)
    assert [row.engine for row in found.rows] == ["peer"]
    assert found.not_measured[0].wrong and "tensure" not in world.log


def test_oracle_judges_every_engine_and_is_never_timed() -> None:
    world = World(reference="exact sums")
    world.oracle = FakeEngine("oracle", [], world.log, world.clock)
    world.add("tensure", 1.0)
    world.add("wrong", 0.001, output=41)
    found = measure(world.benchmark(), FULL, clock=world.clock)
    assert found.reference == "exact sums" and [row.engine for row in found.rows] == ["tensure"]
    assert world.log[0] == "check oracle" and "oracle" not in world.log and world.oracle.closed
    world.engines["tensure"].output = world.engines["wrong"].output  # both agree, and both are wrong
    found = measure(world.benchmark(), FULL, clock=world.clock)
    assert not found.rows and [item.wrong for item in found.not_measured] == [True, False]


def test_only_the_cases_that_are_asked_for() -> None:
    world = World()
    world.add("tensure", 1.0)
    cases = [Case("conv1, N=1", 1), Case("conv12, N=1", 1), Case("conv1, N=8", 1)]
    for words, names in (
        (("conv1",), ["conv1, N=1", "conv1, N=8"]),
        (("N=1", "conv12"), ["conv1, N=1", "conv12, N=1"]),
    ):
        found = measure(world.benchmark(*cases), replace(FULL, only=words), clock=world.clock)
        assert [row.case for row in found.rows] == names
    with pytest.raises(InputError, match=r"no case is called conv;.*conv12, N=1"):
        measure(world.benchmark(*cases), replace(FULL, only=("conv",)), clock=world.clock)


def test_bars_over_cases_see_everything() -> None:
    def bars(cases: Sequence[Case], found: Measured) -> list[Bar | NotMeasured]:
        shares = [row.of_limit for row in found.rows]
        assert [case.name for case in cases] == ["c", "d"] and shares == [0.5, 0.5]
        return [Bar("lowest share", 0.5, "of the limit", 0.6, "higher"), NotMeasured("x", "no peer")]

    world = World(bars=bars, limits=lambda scope, cases: [Limit("speed", 1, 1.0, "B/s", 20.0, "x")])
    world.add("tensure", 1.0)
    found = measure(world.benchmark(Case("c", 1, 10.0), Case("d", 1, 10.0)), FULL, clock=world.clock)
    assert [(bar.name, bar.met) for bar in found.bars] == [("lowest share", False)]
    assert found.not_measured == [NotMeasured("x", "no peer")]


def test_without_the_reference_ours_takes_its_place() -> None:
    world = World(reference="peer")
    world.add("tensure", 1.0)
    world.absent["peer"] = "not installed"
    found = measure(world.benchmark(), FULL, clock=world.clock)
    assert found.reference == "tensure" and len(found.rows) == 1


def test_limit_is_the_best_of_before_and_after() -> None:
    """A busy moment while one of them is measured does not lower it."""
    rates = iter([4.0, 20.0, 10.0, 3.0])
    world = World(
        limits=lambda scope, cases: [Limit("speed", t, 1.0, "B/s", next(rates), "x") for t in (1, 2)]
    )
    world.add("tensure", 2.0)
    found = measure(world.benchmark(Case("c", 1, 10.0), Case("d", 2, 10.0)), FULL, clock=world.clock)
    assert [limit.rate for limit in found.limits] == [10.0, 20.0]
    assert [row.of_limit for row in found.rows] == [0.5, 0.25]


def test_absent_peer_is_not_measured() -> None:
    world = World()
    world.add("tensure", 1.0)
    world.absent["peer"] = "peer is not installed"
    found = measure(world.benchmark(), FULL, clock=world.clock)
    assert [(i.name, i.reason) for i in found.not_measured] == [("peer", "peer is not installed")]
    assert [row.engine for row in found.rows] == ["tensure"] and found.rows[0].ratios == {}


@pytest.mark.parametrize("stops_at", [0, 2])
def test_peer_that_stops_has_no_figure_and_the_rest_goes_on(stops_at: int) -> None:
    world = World()
    world.add("tensure", 1.0)
    world.add("peer", 1.0, stops_at=stops_at)
    found = measure(world.benchmark(), FULL, clock=world.clock)
    assert [row.engine for row in found.rows] == ["tensure"] and found.rows[0].spread.num == 3
    assert found.not_measured[0].reason == "stopped: out of memory"


def test_ours_stopping_is_an_error_and_everything_is_closed() -> None:
    world = World()
    world.add("tensure", 1.0, stops_at=1)
    world.add("peer", 1.0)
    with pytest.raises(EngineError, match="out of memory"):
        measure(world.benchmark(), FULL, clock=world.clock)
    assert all(engine.closed for engine in world.engines.values())


def test_bar_is_on_our_median() -> None:
    world = World(metric="ms", better="lower")
    world.add("tensure", 1.0)
    cases = [Case("good", 1, target=1000.0), Case("bad", 1, target=999.0), Case("free", 1)]
    found = measure(world.benchmark(*cases), FULL, clock=world.clock)
    assert [(bar.name, bar.value, bar.met) for bar in found.bars] == [
        ("good", 1000.0, True),
        ("bad", 1000.0, False),
    ]


def test_what_checks_itself_and_fails_is_wrong_but_absent_is_a_gap() -> None:
    for error, wrong in ((EngineError("help loads torch"), True), (AbsentError("no Makefile"), False)):
        world = World(metric="ms", better="lower")
        world.add("tensure", 1.0, output=error)
        found = measure(world.benchmark(Case("c", 1, target=1.0)), FULL, clock=world.clock)
        assert not found.rows and not found.bars
        assert [item.wrong for item in found.not_measured] == [wrong]


def test_best_peer_bar_needs_all_peers() -> None:
    world = World(best_peer=1.5)
    world.add("tensure", 1.0)
    world.add("a", 2.0)
    world.add("b", 1.4)
    found = measure(world.benchmark(), FULL, clock=world.clock)
    (bar,) = found.bars
    assert bar.value == pytest.approx(1.4) and not bar.met
    world.absent["b"] = "not installed"
    found = measure(world.benchmark(), FULL, clock=world.clock)
    assert not found.bars and "needs all peers; without b" in found.not_measured[-1].reason


def test_our_other_mode_is_nobodys_rival_and_its_faults_are_ours() -> None:
    world = World(best_peer=1.5)
    world.add("tensure", 1.0)
    world.add("tensure fast", 0.5)
    world.add("a", 2.0)
    found = measure(world.benchmark(), FULL, clock=world.clock)
    (bar,) = found.bars
    assert bar.value == 2.0 and bar.met and not found.not_measured
    assert found.rows[0].ratios == {"tensure fast": 0.5, "a": 2.0}
    world.engines["tensure fast"].output = 43
    found = measure(world.benchmark(), FULL, clock=world.clock)
    assert [bar.value for bar in found.bars] == [2.0]
    assert [(item.name, item.wrong) for item in found.not_measured] == [("tensure fast, c", True)]


def test_quick_run_stops_between_rounds_and_says_whom_it_did_not_reach() -> None:
    world = World(rounds=(9, 9))
    world.add("tensure", QUICK_S / 3)
    world.add("slow", QUICK_S)
    world.add("last", 1.0)
    found = measure(world.benchmark(), QUICK, clock=world.clock)
    assert world.log[3:] == ["tensure", "slow"]  # no warm-up, one round, cut
    assert [row.engine for row in found.rows] == ["tensure", "slow"]
    assert [item.name for item in found.not_measured] == ["last, c"]


def test_full_run_on_a_busy_machine_ends_after_three_whole_rounds() -> None:
    world = World(rounds=(9, 2))
    world.add("tensure", FULL_S)
    world.add("peer", FULL_S)
    found = measure(world.benchmark(), FULL, clock=world.clock)
    assert [row.spread.num for row in found.rows] == [3, 3] and not found.not_measured


@pytest.mark.parametrize(
    "wrong",
    [
        {"reference": "nobody"},
        {"better": "lower"},
        {"metric": "ms"},
        {"metric": "GFLOP/s", "better": "lower"},
    ],
)
def test_declaration_that_cannot_be_meant_is_refused(wrong: dict[str, str]) -> None:
    world = World(**wrong)
    world.add("tensure", 1.0)
    with pytest.raises(RecordError):
        world.benchmark()


def test_engine_named_twice_is_refused() -> None:
    world = World()
    made = (world.add("tensure", 1.0), world.benchmark())[1]
    twice = (world._peer("a"), world._peer("a"))
    with pytest.raises(RecordError, match="twice"):
        replace(made, peers=twice)
    with pytest.raises(RecordError, match="compares no outputs"):
        replace(made, peers=twice[:1], agree=None)


def test_a_pace_is_asked_in_every_round_and_shares_are_of_it() -> None:
    """The machine slows down to half: shares stay, where a limit measured once would halve them."""
    speeds = [1.0, 1.0, 1.0, 0.5, 0.5]

    class Slowing:
        def __init__(self, rate: float) -> None:
            self.rate, self.turn = rate, -1

        def check(self, case: Case) -> object:
            return None

        def run(self, case: Case) -> Timing:
            self.turn += 1
            seconds = case.work / (self.rate * speeds[max(self.turn - 1, 0)])
            return Timing(seconds, seconds)

        def facts(self) -> dict[str, object]:
            return {}

        def close(self) -> None:
            pass

    declared = Benchmark(
        name="paced",
        about="",
        metric="GFLOP/s",
        better="higher",
        setup=lambda scope: Slowing(8e9),
        cases=lambda scope: [Case("one", 1, 1e9)],
        rounds=(5, 3),
        pace=lambda scope: Slowing(10e9),
    )
    (row,) = measure(declared, Scope()).rows
    assert row.of_limit == pytest.approx(0.8)
    assert row.spread.min == pytest.approx(4.0)
