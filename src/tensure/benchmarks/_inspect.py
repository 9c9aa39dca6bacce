"""`inspect`: what looking at every tensor costs, whether planted faults are found, and the front doors.

Timed: a real model as eager torch code, plain, with our statistics, with digests, under torch's DebugMode
with and without hashes, under torchlens. Then, not timed: a campaign of planted faults, the page of a run
in a browser, Keras models and ONNX models held against their own run-times, and onnx's node tests. Knows
what is asked of each; how it is found out is in `_inspect_campaign.py`, `_inspect_page.py` and
`_inspect_doors.py`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.util import find_spec
from typing import Final, TypeAlias

from ._child import ChildEngine, child_environment, engine_command
from ._declare import benchmark
from ._records import Bar, Case, Engine, Json, Measured, NotMeasured, Peer, Scope

__all__ = ["inspect", "inspect_bars"]

PLAIN: Final = "plain eager"
STATISTICS: Final = "tensure"
DIGESTS: Final = "tensure digests"
DEBUG: Final = "DebugMode"
DEBUG_HASHES: Final = "DebugMode, hashes"
TORCHLENS: Final = "torchlens"

SUBJECT: Final = "EfficientNet-Lite0"
SPARE_MIB: Final = 64.0
_MIB: Final = 1 << 20
_CHILD_S: Final = 3600.0
NUM_FAULTS: Final = 100
QUICK_FAULTS: Final = 9

_Reader: TypeAlias = Callable[[Json], Iterable[Bar | NotMeasured]]


def same_result(case: Case, engine: str, reference: Json, output: Json) -> str | None:
    """Why a run under an inspector is not the plain run, or None."""
    if output["shape"] != reference["shape"]:
        return f"a result of shape {output['shape']}, not {reference['shape']}"
    return None if output["same"] else "another result than the plain run's"


def inspect_bars(cases: Sequence[Case], found: Measured) -> Sequence[Bar | NotMeasured]:
    """Every bar of the issue, the campaign and the doors included."""
    bars: list[Bar | NotMeasured] = []
    for case in cases:
        bars += _cost_bars(case, found)
    quick = any(case.params["quick"] for case in cases)
    bars += _child_bars("_inspect_campaign", [str(QUICK_FAULTS if quick else NUM_FAULTS), "0"], _campaign)
    bars += _child_bars("_inspect_page", [], _page)
    bars += _child_bars("_inspect_doors", ["quick"] if quick else [], _doors)
    return bars


def _cost_bars(case: Case, found: Measured) -> Iterator[Bar | NotMeasured]:
    rows = {row.engine: row for row in found.rows if row.case == case.name}
    plain = rows.get(PLAIN)
    for engine, what, most in ((STATISTICS, "statistics", 4.0), (DIGESTS, "digests", 8.0)):
        name = f"{case.name}: {what} over plain eager"
        if plain is None or engine not in rows:
            yield NotMeasured(name, f"without {engine if plain is not None else PLAIN}")
            continue
        yield Bar(name, rows[engine].ratios[PLAIN], "x", most, "lower")
        memory = (rows[engine].facts["peak_rss_bytes"] - plain.facts["peak_rss_bytes"]) / _MIB
        yield Bar(f"{case.name}: memory of {what} beyond plain", memory, "MiB", SPARE_MIB, "lower")


def _child_bars(module: str, args: list[str], read: _Reader) -> list[Bar | NotMeasured]:
    """What a module of this room prints as JSON, as bars."""
    command = [sys.executable, "-m", f"tensure.benchmarks.{module}", *args]
    name = module.removeprefix("_inspect_")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_CHILD_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [NotMeasured(name, f"did not finish: {type(error).__name__}")]
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no word"]
        return [NotMeasured(name, f"ended with {done.returncode}: {lines[-1][:300]}")]
    return list(read(json.loads(done.stdout.strip().splitlines()[-1])))


def _campaign(found: Json) -> Iterator[Bar | NotMeasured]:
    share = 100.0 * found["found"] / max(found["faults"], 1)
    yield Bar(f"{found['faults']} planted faults: found at the right op", share, "%", 100.0, "higher")
    name = f"{found['equal_runs']} pairs of equal runs, NaNs in half of them: alarms"
    yield Bar(name, float(found["alarms"]), "alarms", 0.0, "lower")
    # DebugMode stands beside ours; no bar is set on it, so ours is held to be no worse.
    share = found["found_by_debug_mode"] / max(found["found"], 1)
    yield Bar("faults that DebugMode finds, over ours", share, "x", 1.0, "lower")


def _page(found: Json) -> Iterator[Bar | NotMeasured]:
    name = f"page of {found['steps']} steps"
    yield Bar(name, found["bytes"] / 1e6, "MB", 5.0, "lower")
    if found["usable_s"] is None:
        yield NotMeasured(f"{name}: usable in Chromium after", found["reason"])
    else:
        yield Bar(f"{name}: usable in Chromium after", found["usable_s"], "s", 2.0, "lower")


def _doors(found: Json) -> Iterator[Bar | NotMeasured]:
    for item in found:
        if "reason" in item:
            yield NotMeasured(item["name"], item["reason"])
        else:
            yield Bar(item["name"], item["value"], item["unit"], item["target"], item["better"])


def _cases(scope: Scope) -> list[Case]:
    params = {"subject": SUBJECT, "repeats": 1, "quick": scope.quick}
    return [
        Case(f"{SUBJECT}, {threads} thread{'s' * (threads > 1)}", threads, 1.0, params)
        for threads in scope.threads
    ]


def _engine(kind: str, scope: Scope) -> Engine:
    return ChildEngine(engine_command("inspect", kind), child_environment(scope))


def _torchlens_missing() -> str | None:
    return None if find_spec("torchlens") is not None else "torchlens is not installed"


@benchmark(
    "inspect",
    about=f"{SUBJECT} as eager torch code, one image: plain, and with every tensor looked at",
    metric="ms",
    better="lower",
    cases=_cases,
    peers=(
        Peer(PLAIN, lambda: None, lambda scope: _engine("plain", scope)),
        Peer(DIGESTS, lambda: None, lambda scope: _engine("digests", scope)),
        Peer(DEBUG, lambda: None, lambda scope: _engine("debug", scope)),
        Peer(DEBUG_HASHES, lambda: None, lambda scope: _engine("debug-hashes", scope)),
        Peer(TORCHLENS, _torchlens_missing, lambda scope: _engine("torchlens", scope)),
    ),
    agree=same_result,
    reference=PLAIN,
    rounds=(9, 3),
    threads=(1,),
    bars=inspect_bars,
)
def inspect(scope: Scope) -> Engine:
    """Ours, with statistics."""
    return _engine("statistics", scope)
