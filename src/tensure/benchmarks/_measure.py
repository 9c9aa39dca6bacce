"""Run a declaration: set up, compare outputs, warm up, take turns, summarise.

Order matters here: an engine is timed only after its output agreed with the reference's, and engines take
turns (ours, peer A, peer B, ours, ...) so that a disturbance of the machine meets all of them. Ratios are
taken inside a round. Does not know any engine, nor where results go.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Final

from tensure.errors import InputError

from ._declare import Benchmark
from ._records import (
    OURS,
    RATES,
    AbsentError,
    Bar,
    Case,
    Engine,
    EngineError,
    Json,
    Measured,
    Metric,
    NotMeasured,
    Progress,
    Row,
    Scope,
    Timing,
    is_ours,
    share_name,
)
from ._statistics import median_ratio, spread

__all__ = ["measure"]

QUICK_S: Final = 40.0
"""From the start of the benchmark; what is under way then has the rest of the minute."""
FULL_S: Final = 600.0
"""After this a full run begins no round beyond the third of a case, so that it ends on a busy machine too."""
FEWEST_ROUNDS: Final = 3
_LATE: Final = "the time of a quick run was over"


def measure(
    benchmark: Benchmark,
    scope: Scope,
    *,
    clock: Callable[[], float] = time.monotonic,
    progress: Progress | None = None,
) -> Measured:
    """Everything the declaration asks for, as far as this machine has it.

    A peer that is absent, stops, or gives another output is in `not_measured` with the reason. Our own
    engine stopping is an error; our own output differing is `wrong`.

    Raises:
        EngineError: our own engine cannot be set up or stops.
        TensureError: the cases cannot be made (a model is missing), or `scope.only` names none of them.
    """
    say = progress or (lambda _: None)
    deadline = clock() + (QUICK_S if scope.quick else FULL_S)
    found = Measured()
    cases = _wanted(benchmark.cases(scope), scope)
    _measure_limits(benchmark, scope, cases, found, say)
    with ExitStack() as stack:
        oracle = None
        if benchmark.oracle is not None:
            oracle = benchmark.oracle(scope)
            stack.callback(oracle.close)
        engines = _set_up(benchmark, scope, stack, found, say)
        pace = None if benchmark.pace is None else _Pace(benchmark.pace(scope))
        if pace is not None:
            stack.callback(pace.engine.close)
        for number, case in enumerate(cases):
            now = clock()
            late = _late_after(now + (deadline - now) / (len(cases) - number), clock)
            _one_case(benchmark, scope, case, engines, oracle, pace, found, late, say)
    # Again, since a busy moment at the start would make a limit that is none.
    _measure_limits(benchmark, scope, cases, found, say)
    rates = {limit.threads: limit.rate for limit in found.limits}
    found.rows = [
        replace(row, of_limit=row.spread.median / rates[row.threads])
        if row.of_limit is None and row.threads in rates
        else row
        for row in found.rows
    ]
    for item in () if benchmark.bars is None else benchmark.bars(cases, found):
        if isinstance(item, Bar):
            found.bars.append(item)
        else:
            found.not_measured.append(item)
    _share_bars(cases, found)
    return found


def _wanted(cases: Sequence[Case], scope: Scope) -> Sequence[Case]:
    """The cases whose name has one of `scope.only` among its words; all when it names none."""
    if not scope.only:
        return cases
    kept = [case for case in cases if set(case.name.replace(",", " ").split()) & set(scope.only)]
    if not kept:
        raise InputError(
            f"no case is called {', '.join(scope.only)[:80]}",
            wanted=f"a word of {'; '.join(case.name for case in cases)}"[:400],
        )
    return kept


def _share_bars(cases: Sequence[Case], found: Measured) -> None:
    """The bars on our share of the limit; without a limit there is none to meet."""
    shares = {case.name: case.share for case in cases if case.share is not None}
    for row in found.rows:
        if row.engine == OURS and row.case in shares and row.of_limit is not None:
            found.bars.append(Bar(share_name(row.case), row.of_limit, "x", shares[row.case], "higher"))


def _measure_limits(
    benchmark: Benchmark, scope: Scope, cases: Sequence[Case], found: Measured, say: Progress
) -> None:
    """Keep the best of what was measured so far."""
    if benchmark.limits is None:
        return
    say("measuring the machine's limits")
    best = {limit.threads: limit for limit in found.limits}
    for limit in benchmark.limits(scope, cases):
        if limit.threads not in best or limit.rate > best[limit.threads].rate:
            best[limit.threads] = limit
    found.limits = list(best.values())


def _late_after(share: float, clock: Callable[[], float]) -> Callable[[], bool]:
    return lambda: clock() >= share


def _set_up(
    benchmark: Benchmark, scope: Scope, stack: ExitStack, found: Measured, say: Progress
) -> dict[str, Engine]:
    engines: dict[str, Engine] = {}
    say(f"starting {OURS}")
    engines[OURS] = benchmark.setup(scope)
    stack.callback(engines[OURS].close)
    for peer in benchmark.peers:
        reason = peer.available()
        if reason is None:
            say(f"starting {peer.name}")
            try:
                engines[peer.name] = peer.setup(scope)
                stack.callback(engines[peer.name].close)
            except EngineError as error:
                reason = f"cannot be set up: {error}"
        if reason is not None:
            say(f"{peer.name} is not measured: {reason}")
            found.not_measured.append(NotMeasured(peer.name, reason, wrong=is_ours(peer.name)))
    return engines


def _one_case(
    benchmark: Benchmark,
    scope: Scope,
    case: Case,
    engines: Mapping[str, Engine],
    oracle: Engine | None,
    pace: _Pace | None,
    found: Measured,
    late: Callable[[], bool],
    say: Progress,
) -> None:
    right = _compare(benchmark, scope, case, engines, oracle, found, late, say)
    samples: dict[str, list[Timing]] = {name: [] for name in right}
    wanted = benchmark.rounds[1 if scope.quick else 0]
    rounds = wanted if case.rounds is None else min(wanted, case.rounds)
    # The warm-up is a round whose figures are dropped. A quick run has the comparison for that, and what is
    # asked for once only is measured cold, by design.
    for turn in range(0 if scope.quick or rounds == 1 else -1, rounds):
        if turn >= (1 if scope.quick else FEWEST_ROUNDS) and late():
            say(f"{case.name}: {turn} of {rounds} rounds, the time is over")
            break
        say(f"{case.name}: {'warm-up' if turn < 0 else f'round {turn + 1} of {rounds}'}")
        if pace is not None:
            pace.take(case, counted=turn >= 0)
        for name in list(samples):
            # A round is whole or it is not counted, but for the first: whom it does not reach has no figure.
            timing = None
            if scope.quick and turn == 0 and name != OURS and late():
                found.not_measured.append(NotMeasured(f"{name}, {case.name}", _LATE))
            else:
                timing = _attempt(right[name], name, case, found)
            if timing is None:
                del samples[name]
            elif turn >= 0:
                samples[name].append(timing)
    limit = None if pace is None else pace.values(benchmark.metric, case, scope.cpu_time)
    _summarise(benchmark, scope, case, engines, samples, limit, found)


class _Pace:
    """The limit's timings of the case at hand; when it cannot be measured the case has none."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._timings: list[Timing] = []
        self._case = ""

    def take(self, case: Case, *, counted: bool) -> None:
        if case.name != self._case:
            self._case, self._timings = case.name, []
        try:
            timing = self.engine.run(case)
        except EngineError:
            return
        if counted:
            self._timings.append(timing)

    def values(self, metric: Metric, case: Case, cpu_time: bool) -> list[float]:
        return [_value(metric, case, timing, cpu_time) for timing in self._timings]


def _compare(
    benchmark: Benchmark,
    scope: Scope,
    case: Case,
    engines: Mapping[str, Engine],
    oracle: Engine | None,
    found: Measured,
    late: Callable[[], bool],
    say: Progress,
) -> dict[str, Engine]:
    """The engines whose output is right, with the reasons against the others noted."""
    expected = None
    if oracle is not None:
        say(f"{case.name}: the right output")
        expected = oracle.check(case)
    outputs: dict[str, Json] = {}
    for name, engine in engines.items():
        label = f"{name}, {case.name}"
        if scope.quick and name not in (OURS, benchmark.reference) and late():
            found.not_measured.append(NotMeasured(label, _LATE))
            continue
        say(f"{case.name}: output of {name}")
        try:
            outputs[name] = engine.check(case)
        except AbsentError as error:
            found.not_measured.append(NotMeasured(label, error.found))
        except EngineError as error:
            if name == OURS and benchmark.peers:
                raise
            found.not_measured.append(NotMeasured(label, str(error), wrong=is_ours(name)))
    known = oracle is not None or benchmark.reference in outputs
    reference = benchmark.reference if known else OURS
    found.reference = reference
    for name in list(outputs):
        if benchmark.agree is None or (oracle is None and name == reference):
            continue
        right = outputs[reference] if oracle is None else expected
        difference = benchmark.agree(case, name, right, outputs[name])
        if difference is not None:
            reason = f"not timed, since its output is not that of {reference}: {difference}"
            found.not_measured.append(NotMeasured(f"{name}, {case.name}", reason, wrong=is_ours(name)))
            del outputs[name]
    return {name: engines[name] for name in outputs}


def _attempt(engine: Engine, name: str, case: Case, found: Measured) -> Timing | None:
    try:
        return engine.run(case)
    except EngineError as error:
        if name == OURS:
            raise
        reason = f"stopped: {error}"
        found.not_measured.append(NotMeasured(f"{name}, {case.name}", reason, wrong=is_ours(name)))
        return None


def _summarise(
    benchmark: Benchmark,
    scope: Scope,
    case: Case,
    engines: Mapping[str, Engine],
    samples: Mapping[str, Sequence[Timing]],
    limit: Sequence[float] | None,
    found: Measured,
) -> None:
    values = {
        name: [_value(benchmark.metric, case, timing, scope.cpu_time) for timing in timings]
        for name, timings in samples.items()
        if timings
    }
    for name, own in values.items():
        five = spread(own)
        row = Row(
            case=case.name,
            engine=name,
            threads=case.threads,
            unit=benchmark.metric,
            spread=five,
            cpu_s=statistics.median(timing.cpu_s for timing in samples[name]),
            ratios={other: median_ratio(own, theirs) for other, theirs in values.items() if other != name},
            of_limit=median_ratio(own, limit) if limit and len(limit) == len(own) else None,
            facts=engines[name].facts(),
        )
        found.rows.append(row)
    if OURS in values and case.target is not None:
        median = statistics.median(values[OURS])
        found.bars.append(Bar(case.name, median, benchmark.metric, case.target, benchmark.better))
    if OURS in values and benchmark.best_peer is not None:
        _best_peer_bar(benchmark, case, values, found)


def _best_peer_bar(
    benchmark: Benchmark, case: Case, values: Mapping[str, Sequence[float]], found: Measured
) -> None:
    """The bar on our ratio to the best peer: it needs every named peer, since the absent one may be best."""
    assert benchmark.best_peer is not None
    name = f"{case.name}: ratio to the best peer"
    rivals = [peer.name for peer in benchmark.peers if not is_ours(peer.name)]
    absent = [rival for rival in rivals if rival not in values]
    if absent:
        found.not_measured.append(NotMeasured(name, f"needs all peers; without {', '.join(absent)}"))
        return
    ratios = [median_ratio(values[OURS], values[rival]) for rival in rivals]
    worst = min(ratios) if benchmark.better == "higher" else max(ratios)
    found.bars.append(Bar(name, worst, "x", benchmark.best_peer, benchmark.better))


def _value(metric: Metric, case: Case, timing: Timing, cpu_time: bool) -> float:
    seconds = timing.cpu_s if cpu_time else timing.wall_s
    seconds = max(seconds, 1e-9)  # a clock that did not tick
    return RATES[metric] * case.work / seconds if metric in RATES else 1e3 * seconds / case.work
