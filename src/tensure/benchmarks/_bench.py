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

from . import (
    _conv,
    _conv_paper,
    _decode,
    _decode_batch,
    _decode_quality,
    _decode_start,
    _gemm,
    _gemv,
    _inspect,
    _net,
    _prove,
    _start,
    _tune,
)
from ._declare import Benchmark, register
from ._machine import commit, describe_machine, versions
from ._measure import measure
from ._records import Progress, Report, Scope

__all__ = ["bench", "names"]

MAX_BATCH: Final = 1024

_LOADED: Final = (
    _conv,
    _conv_paper,
    _decode,
    _decode_batch,
    _decode_quality,
    _decode_start,
    _gemm,
    _gemv,
    _inspect,
    _net,
    _prove,
    _start,
    _tune,
)
"""Importing a file declares its benchmarks."""

#: Names that the command line will know, and what they will measure.
COMING: Final[Mapping[str, str]] = {
    "gemm": "integer matrix products",
    "serve": "requests a second and latency of the service",
    "ecc": "protecting weights in place",
    "audit": "what checking a running model costs",
    "edge": "several edge devices",
    "pipeline": "stages over several cards",
    "mcu": "microcontrollers",
    "quantize": "integer models and what they cost",
    "series": "time series from data to device",
}


def bench(
    name: str,
    *,
    quick: bool = False,
    threads: int | Sequence[int] | None = None,
    cpu_time: bool = False,
    batches: Sequence[int] = (),
    only: Sequence[str] = (),
    progress: Progress | None = None,
) -> Report:
    """Measure one benchmark beside its peers; outputs are compared before anything is timed.

    Args:
        name: one of `names()`.
        quick: an honest slice of at most a minute: fewer rounds, shorter runs, one number of threads.
        threads: how many, or several numbers to try; when left out what the benchmark declares, else 1 and 2,
            as far as there are cores.
        cpu_time: figures from processor time (summed over threads) instead of elapsed time.
        batches: batch sizes, for a benchmark that has them; what it declares when left out.
        only: keep the cases whose name has one of these words: `conv9`, `N=1`.
        progress: called with a line of text now and then.

    Raises:
        InputError: no such benchmark; threads that this machine does not have; batches for what has none; a
            word that names no case; a model is not installed.
        NotYetError: a benchmark whose issue has not landed.
        EngineError: our own engine stopped.
    """
    declared = _declared(name)
    scope = Scope(
        quick,
        _declared_threads(declared, quick) if threads is None else _threads(threads),
        cpu_time,
        _batches(declared, batches),
        tuple(only),
    )
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
            **({"batches": list(scope.batches)} if scope.batches else {}),
            **({"only": list(scope.only)} if scope.only else {}),
            **(declared.settings or {}),
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


def _batches(declared: Benchmark, asked: Sequence[int]) -> tuple[int, ...]:
    if not asked:
        return declared.batches
    if not declared.batches:
        raise InputError(f"bench {declared.name} has no batch size", next_step="leave --batch out")
    if any(isinstance(n, bool) or not 1 <= n <= MAX_BATCH for n in asked):
        raise InputError(f"batch {list(asked)!r:.40}", wanted=f"1 to {MAX_BATCH}")
    return tuple(dict.fromkeys(asked))


def _declared_threads(declared: Benchmark, quick: bool) -> tuple[int, ...]:
    """Those it declares, the first of them in a quick run; else 1 and 2, and the larger in a quick run."""
    cores = len(os.sched_getaffinity(0))
    possible = tuple(n for n in declared.threads or (1, 2) if n <= cores)
    if not quick:
        return possible
    return possible[:1] if declared.threads else possible[-1:]


def _threads(asked: int | Sequence[int]) -> tuple[int, ...]:
    cores = len(os.sched_getaffinity(0))
    wanted = (asked,) if isinstance(asked, int) else tuple(asked)
    if not wanted or any(isinstance(n, bool) or not 1 <= n <= cores for n in wanted):
        raise InputError(f"threads {asked!r:.40}", wanted=f"1 to {cores}, the cores of this machine")
    return tuple(dict.fromkeys(wanted))
