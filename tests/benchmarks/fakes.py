"""Engines and a clock that do as they are told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tensure.benchmarks._declare import Benchmark
from tensure.benchmarks._records import Case, Engine, EngineError, Peer, Scope, Timing

FULL = Scope(False, (1,))
QUICK = Scope(True, (1,))


@dataclass
class Clock:
    """Time that passes only when somebody works."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class FakeEngine:
    """Takes scripted seconds, gives a scripted output, writes down when it was asked."""

    name: str
    seconds: list[float]
    log: list[str]
    clock: Clock
    output: Any = 42
    stops_at: int | None = None
    closed: bool = False
    runs: int = 0
    facts_: Mapping[str, Any] = field(default_factory=dict)

    def check(self, case: Case) -> Any:
        self.log.append(f"check {self.name}")
        if isinstance(self.output, EngineError):
            raise self.output
        return self.output

    def run(self, case: Case) -> Timing:
        if self.runs == self.stops_at:
            raise EngineError("out of memory")
        self.log.append(self.name)
        seconds = self.seconds[min(self.runs, len(self.seconds) - 1)]
        self.runs += 1
        self.clock.now += seconds
        return Timing(seconds, 2 * seconds)

    def facts(self) -> Mapping[str, Any]:
        return self.facts_

    def close(self) -> None:
        self.closed = True


class World:
    """A benchmark of fake engines; the first one is ours."""

    def __init__(self, **declared: Any) -> None:
        self.clock, self.log = Clock(), []
        self.engines: dict[str, FakeEngine] = {}
        self.declared: dict[str, Any] = {"metric": "tok/s", "better": "higher", "rounds": (3, 2), **declared}
        self.absent: dict[str, str] = {}
        self.oracle: FakeEngine | None = None
        self.log: list[str] = []

    def add(self, name: str, *seconds: float, **more: Any) -> FakeEngine:
        engine = FakeEngine(name, list(seconds), self.log, self.clock, **more)
        self.engines[name] = engine
        return engine

    def benchmark(self, *cases: Case) -> Benchmark:
        peers = [name for name in {**self.engines, **self.absent} if name != "tensure"]
        return Benchmark(
            name="fake",
            about="fake engines",
            setup=lambda scope: self.engines["tensure"],
            cases=lambda scope: cases or (Case("c", 1, work=10.0),),
            peers=tuple(self._peer(name) for name in peers),
            agree=lambda case, name, wanted, found: None if wanted == found else f"{found} is not {wanted}",
            oracle=None if self.oracle is None else lambda scope: self.oracle,
            **self.declared,
        )

    def _peer(self, name: str) -> Peer:
        def setup(scope: Scope) -> Engine:
            return self.engines[name]

        return Peer(name, lambda: self.absent.get(name), setup)
