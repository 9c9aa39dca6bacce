"""Declaring a benchmark, once: its cases, our runner, its peers, how outputs are compared.

    @benchmark("decode", metric="tok/s", better="higher", cases=..., peers=[...], agree=...)
    def decode(scope: Scope) -> Engine: ...

The decorated function sets up our own engine. Knows the register of declarations. Does not know how they
are run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from tensure.errors import RecordError

from ._records import (
    OURS,
    RATES,
    Bar,
    Better,
    Case,
    Engine,
    Json,
    Limit,
    Measured,
    Metric,
    NotMeasured,
    Peer,
    Scope,
)

__all__ = ["Benchmark", "Setup", "benchmark", "register"]

Setup: TypeAlias = Callable[[Scope], Engine]
Cases: TypeAlias = Callable[[Scope], Sequence[Case]]
#: (case, engine, the reference's output, the engine's output) -> how they differ, or None
Agree: TypeAlias = Callable[[Case, str, Json, Json], str | None]
Limits: TypeAlias = Callable[[Scope, Sequence[Case]], Sequence[Limit]]
#: bars over several cases, or on shares of a limit, from everything that was found; or why there is none
Bars: TypeAlias = Callable[[Sequence[Case], Measured], Sequence[Bar | NotMeasured]]

_REGISTER: dict[str, Benchmark] = {}


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One declaration.

    Args:
        name: what `tensure bench` is asked for.
        about: one sentence for the report: the setting of the measurement.
        metric: "tok/s", "GFLOP/s" and "GB/s" are work over time, "ms" is time per unit of work.
        setup: our engine.
        cases: what to time, given the scope.
        peers: the engines beside ours, in the order they take turns.
        agree: compares outputs before anything is timed; None when each engine checks its own.
        reference: the engine whose output is right; ours where it is absent.
        oracle: knows the right outputs and is never timed; then every engine is compared with it, ours too,
            and `reference` is what to call it.
        rounds: turns of the full run, and of a quick one.
        limits: what the machine allows, measured.
        pace: an engine that works at that limit, in turn with the others; shares are then of it.
        best_peer: the bar on our ratio to the best peer, in the metric's direction, when an issue sets one.
        bars: bars that need more than one case's figures.
        threads: numbers of threads when none are asked for.
        batches: batch sizes when none are asked for; empty for what has none.
        settings: added to the report's; `table` chooses how it is shown (`_table.py`).
    """

    name: str
    about: str
    metric: Metric
    better: Better
    setup: Setup
    cases: Cases
    peers: tuple[Peer, ...] = ()
    agree: Agree | None = None
    reference: str = OURS
    rounds: tuple[int, int] = (7, 3)
    limits: Limits | None = None
    best_peer: float | None = None
    settings: Mapping[str, Json] | None = None
    oracle: Setup | None = None
    bars: Bars | None = None
    threads: tuple[int, ...] | None = None
    batches: tuple[int, ...] = ()
    pace: Setup | None = None

    def __post_init__(self) -> None:
        names = [OURS, *(peer.name for peer in self.peers)]
        if len(set(names)) != len(names):
            raise RecordError(f"benchmark {self.name!r} names an engine twice", wanted="unique names")
        if self.oracle is None and self.reference not in names:
            raise RecordError(f"benchmark {self.name!r} refers to {self.reference!r}", wanted=str(names))
        if (self.peers or self.oracle is not None) and self.agree is None:
            raise RecordError(f"benchmark {self.name!r} compares no outputs", wanted="agree=")
        if self.better != ("higher" if self.metric in RATES else "lower"):
            raise RecordError(f"benchmark {self.name!r}: {self.better} {self.metric} is not better")


def benchmark(
    name: str,
    *,
    about: str,
    metric: Metric,
    better: Better,
    cases: Cases,
    peers: Sequence[Peer] = (),
    agree: Agree | None = None,
    reference: str = OURS,
    rounds: tuple[int, int] = (7, 3),
    limits: Limits | None = None,
    best_peer: float | None = None,
    settings: Mapping[str, Json] | None = None,
    oracle: Setup | None = None,
    bars: Bars | None = None,
    threads: tuple[int, ...] | None = None,
    batches: tuple[int, ...] = (),
    pace: Setup | None = None,
) -> Callable[[Setup], Benchmark]:
    """Declare a benchmark; the decorated function sets up our engine. The fields are `Benchmark`'s."""

    def declare(setup: Setup) -> Benchmark:
        if name in _REGISTER:
            raise RecordError(f"benchmark {name!r} is declared twice")
        made = Benchmark(
            name, about, metric, better, setup, cases, tuple(peers), agree, reference, rounds, limits,
            best_peer, settings, oracle, bars, threads, batches, pace,
        )  # fmt: skip
        _REGISTER[name] = made
        return made

    return declare


def register() -> Mapping[str, Benchmark]:
    """The declarations by name, in the order they were made."""
    return _REGISTER
