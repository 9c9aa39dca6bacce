"""`bench`: one declared benchmark, run here, as a report.

Knows the declarations and what is still to come. Does not know how anything is timed or shown.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from tensure.errors import InputError, NotYetError

from . import _decode, _gemv, _start
from ._declare import Benchmark, register
from ._machine import commit, describe_machine, versions
from ._measure import measure
from ._records import Progress, Report, Scope

__all__ = ["bench", "names"]

_LOADED: Final = (_decode, _start, _gemv)
"""Importing a file declares its benchmarks."""

#: Names that the command line will know, and what they will measure.
COMING: Final[Mapping[str, str]] = {
    "conv": "convolutions in every layout",
    "gemm": "integer matrix products",
    "net": "whole convolutional networks",
    "serve": "requests a second and latency of the service",
    "ecc": "protecting weights in place",
    "audit": "what checking a running model costs",
    "prove": "proving parallel programs",
    "edge": "several edge devices",
    "pipeline": "stages over several cards",
    "mcu": "microcontrollers",
    "inspect": "stepping through every tensor",
    "quantize": "integer models and what they cost",
    "series": "time series from data to device",
}


def bench(
    name: str,
    *,
    quick: bool = False,
    threads: int | Sequence[int] | None = None,
    cpu_time: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Measure one benchmark beside its peers; outputs are compared before anything is timed.

    Args:
        name: one of `names()`.
        quick: an honest slice of at most a minute: fewer rounds, shorter runs, one number of threads.
        threads: how many, or several numbers to try; 1 and 2 when left out, as far as there are cores.
        cpu_time: figures from processor time (summed over threads) instead of elapsed time.
        progress: called with a line of text now and then.

    Raises:
        InputError: no such benchmark; threads that this machine does not have; a model is not installed.
        NotYetError: a benchmark whose issue has not landed.
        EngineError: our own engine stopped.
    """
    declared = _declared(name)
    scope = Scope(quick, _threads(threads, quick), cpu_time)
    date = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    machine = describe_machine()
    found = measure(declared, scope, progress=progress)
    full, slice_ = declared.rounds
    return Report(
        bench=name,
        metric=declared.metric,
        better=declared.better,
        about=declared.about,
        date=date,
        scope=scope,
        settings={
            "threads": list(scope.threads),
            "rounds": slice_ if quick else full,
            "reference": found.reference,
            "engines_in": "processes of their own" if declared.peers else "this process",
        },
        machine={**machine, "load_average_after": round(os.getloadavg()[0], 2)},
        versions=versions(),
        commit=commit(),
        rows=found.rows,
        limits=found.limits,
        bars=found.bars,
        not_measured=found.not_measured,
    )


def names() -> tuple[str, ...]:
    """The benchmarks that can be run today."""
    return tuple(register())


def _declared(name: str) -> Benchmark:
    known = register()
    if name in known:
        return known[name]
    if name in COMING:
        raise NotYetError(
            f"bench {name} is not built yet",
            wanted=f"it will measure {COMING[name]}",
            next_step=f"What stands today: {', '.join(known)}",
        )
    near = difflib.get_close_matches(name, [*known, *COMING], n=1)
    raise InputError(
        f"no benchmark {name[:40]!r}",
        wanted=f"one of {', '.join(known)}",
        next_step=f"Did you mean {near[0]!r}?" if near else None,
    )


def _threads(asked: int | Sequence[int] | None, quick: bool) -> tuple[int, ...]:
    cores = len(os.sched_getaffinity(0))
    if asked is None:
        both = (1, 2) if cores > 1 else (1,)
        return both[-1:] if quick else both
    wanted = (asked,) if isinstance(asked, int) else tuple(asked)
    if not wanted or any(isinstance(n, bool) or not 1 <= n <= cores for n in wanted):
        raise InputError(f"threads {asked!r:.40}", wanted=f"1 to {cores}, the cores of this machine")
    return tuple(dict.fromkeys(wanted))
