"""What a benchmark is made of and what it leaves: cases, engines, timings, rows, bars, the report.

Knows the records and their one JSON form. Does not know how anything is timed (`_measure.py`) nor how a
table looks (`_table.py`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Protocol, TypeAlias

from tensure.errors import TensureError

from ._statistics import Spread

__all__ = [
    "FORMAT",
    "OURS",
    "RATES",
    "AbsentError",
    "Bar",
    "Better",
    "Case",
    "Engine",
    "EngineError",
    "Json",
    "Limit",
    "Measured",
    "Metric",
    "NotMeasured",
    "Peer",
    "Progress",
    "Report",
    "Row",
    "Scope",
    "Timing",
    "is_ours",
    "share_name",
]

Json: TypeAlias = Any
Metric: TypeAlias = Literal["tok/s", "GFLOP/s", "GB/s", "ms"]
Better: TypeAlias = Literal["higher", "lower"]
Progress: TypeAlias = Callable[[str], None]

FORMAT: Final = "tensure/bench/1"
OURS: Final = "tensure"
#: Metrics that are work over time, with what a second's units of work are multiplied by. The others are
#: milliseconds per unit of work.
RATES: Final[Mapping[Metric, float]] = {"tok/s": 1.0, "GFLOP/s": 1e-9, "GB/s": 1e-9}


class EngineError(TensureError):
    """An engine stopped, or could not be set up; the rest of the benchmark goes on without it."""


class AbsentError(EngineError):
    """What a case needs is not on this machine: a gap, not a failure."""


@dataclass(frozen=True, slots=True)
class Scope:
    """What this run may do: a slice or everything, with how many threads, on which clock.

    `batches` is empty for what has no batch; `only` keeps the cases whose name has one of these as a word.
    """

    quick: bool = False
    threads: tuple[int, ...] = (1,)
    cpu_time: bool = False
    batches: tuple[int, ...] = ()
    only: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Case:
    """One thing to time.

    Args:
        name: unique in its benchmark; engines and tables use it.
        threads: what every engine is limited to.
        work: how many units (tokens, FLOPs, calls) one run does.
        params: what the engines need to know; plain JSON, since it may cross to another process.
        target: the bar for our median, when an issue names one.
        share: the bar for our median as a share of the machine's limit.
        rounds: a cap below the benchmark's own number, for what takes long.
    """

    name: str
    threads: int
    work: float = 1.0
    params: Mapping[str, Json] = field(default_factory=dict[str, Json])
    target: float | None = None
    rounds: int | None = None
    share: float | None = None


@dataclass(frozen=True, slots=True)
class Timing:
    """One run of one case: elapsed seconds, and processor seconds summed over threads."""

    wall_s: float
    cpu_s: float


class Engine(Protocol):
    """Something that can be asked for its output and then timed."""

    def check(self, case: Case) -> Json:
        """The case's output, for comparison; never timed. EngineError when it is wrong in itself."""

    def run(self, case: Case) -> Timing:
        """Do the case once and say how long it took."""

    def facts(self) -> Mapping[str, Json]:
        """What the table says about the engine: `weight_bytes`, `peak_rss_bytes`, `version`, ..."""

    def close(self) -> None:
        """Let go of everything; may be called twice."""


@dataclass(frozen=True, slots=True)
class Peer:
    """An engine that may be absent: `available` gives the reason, or None when it can be set up."""

    name: str
    available: Callable[[], str | None]
    setup: Callable[[Scope], Engine]


@dataclass(frozen=True, slots=True)
class Limit:
    """What the machine allows at most, measured: `value` in `unit`, which makes `rate` in the metric."""

    name: str
    threads: int
    value: float
    unit: str
    rate: float
    how: str


@dataclass(frozen=True, slots=True)
class Row:
    """One engine on one case. `ratios` are medians of this engine's value over the other's in each round."""

    case: str
    engine: str
    threads: int
    unit: str
    spread: Spread
    cpu_s: float
    ratios: Mapping[str, float]
    of_limit: float | None
    facts: Mapping[str, Json]

    def to_json(self) -> dict[str, Json]:
        """One flat object; `value` is the median."""
        five = asdict(self.spread)
        num = five.pop("num")
        return {
            "case": self.case,
            "engine": self.engine,
            "threads": self.threads,
            "value": five.pop("median"),
            "unit": self.unit,
            **five,
            "rounds": num,
            "cpu_s": self.cpu_s,
            "ratios": dict(self.ratios),
            "of_limit": self.of_limit,
            **self.facts,
        }


@dataclass(frozen=True, slots=True)
class Bar:
    """A figure that an issue asks for, measured in this run."""

    name: str
    value: float
    unit: str
    target: float
    better: Better

    @property
    def met(self) -> bool:
        """Whether the value is as good as asked; a value that is no number is not."""
        return self.value >= self.target if self.better == "higher" else self.value <= self.target


def is_ours(engine: str) -> bool:
    """Whether an engine is ours in one of its modes, as `tensure fast` is: it is nobody's rival."""
    return engine == OURS or engine.startswith(f"{OURS} ")


def share_name(case: str) -> str:
    """The name of the bar on a case's share of the limit."""
    return f"{case}: share of the limit"


@dataclass(frozen=True, slots=True)
class NotMeasured:
    """What has no figure, and why. `wrong` marks our own wrong output: that is a failure, not a gap."""

    name: str
    reason: str
    wrong: bool = False


@dataclass(slots=True)
class Measured:
    """What was found, in the order it was found."""

    rows: list[Row] = field(default_factory=list[Row])
    limits: list[Limit] = field(default_factory=list[Limit])
    bars: list[Bar] = field(default_factory=list[Bar])
    not_measured: list[NotMeasured] = field(default_factory=list[NotMeasured])
    reference: str = OURS


@dataclass(frozen=True, slots=True)
class Report:
    """Everything one `tensure bench NAME` found out."""

    bench: str
    metric: Metric
    better: Better
    about: str
    date: str
    scope: Scope
    settings: Mapping[str, Json]
    machine: Mapping[str, Json]
    versions: Mapping[str, str]
    commit: str | None
    rows: Sequence[Row]
    limits: Sequence[Limit]
    bars: Sequence[Bar]
    not_measured: Sequence[NotMeasured]

    @property
    def exit_code(self) -> int:
        """0, or 1 when a bar is missed or our own output is wrong; what is not measured changes nothing."""
        failed = any(not bar.met for bar in self.bars) or any(item.wrong for item in self.not_measured)
        return 1 if failed else 0

    def to_json(self) -> dict[str, Json]:
        """The report as plain JSON values: what `--json` prints and a result file holds."""
        return {
            "format": FORMAT,
            "bench": self.bench,
            "about": self.about,
            "metric": self.metric,
            "better": self.better,
            "date": self.date,
            "quick": self.scope.quick,
            "clock": "cpu" if self.scope.cpu_time else "wall",
            "settings": dict(self.settings),
            "machine": dict(self.machine),
            "versions": dict(self.versions),
            "commit": self.commit,
            "rows": [row.to_json() for row in self.rows],
            "limits": [asdict(limit) for limit in self.limits],
            "bars": [asdict(bar) for bar in self.bars],
            "not_measured": [{"name": item.name, "reason": item.reason} for item in self.not_measured],
        }

    @property
    def file_name(self) -> str:
        """`<bench>_<hardware>_<date>.json`; a slice says `quick` in the first part, CPU time `cpu`."""
        kind = self.bench + ("-quick" if self.scope.quick else "") + ("-cpu" if self.scope.cpu_time else "")
        return f"{kind}_{self.machine['hardware']}_{self.date[:10]}.json"

    def save(self, folder: Path) -> Path:
        """Write the report into a folder under its `file_name`; a file of the same day is replaced."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / self.file_name
        path.write_text(json.dumps(self.to_json(), indent=1, sort_keys=False) + "\n", encoding="utf-8")
        return path
