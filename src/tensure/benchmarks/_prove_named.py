"""What it costs to prove public models as they are cut over hundreds and thousands of ranks, by name.

Each plan is captured and proved in a process of its own, `_prove_named_case.py`, so that its time begins with
nothing made and its peak memory is its own. Then a fault is planted in one layer of one micro-batch on one
rank. Knows what is asked; the plans are `tensure.capture`'s, the fault is `_prove_named_fault.py`'s.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

from ._records import Bar, Json, NotMeasured

__all__ = ["FAULTS", "MAX_GB", "MAX_S", "QUICK", "Planted", "judged", "named_bars"]

MAX_S: Final = {
    "llama3-8b@dp512": 30.0,
    "llama3-70b@dp16-tp8-pp4-mb32": 120.0,
    "llama3-405b@dp64-tp8-pp16-mb16": 300.0,
    "deepseek-v3-16b@dp16-tp4-pp2-mb16": 60.0,
    "deepseek-v3-236b@dp16-tp8-pp4-mb16": 120.0,
    "deepseek-v3-671b@dp32-tp8-pp8-mb16": 300.0,
}
"""Seconds of the clock that each plan may take, capture included."""
MAX_GB: Final = 8.0
QUICK: Final = ("llama3-8b@dp512", 2)
"""A plan and how many of its layers: no bar on its time."""
_CHILD_S: Final = 1800.0


@dataclass(frozen=True)
class Planted:
    """A plan with a fault.

    Args:
        name: of the plan; its mesh is kept, the model's sizes are not.
        layers: how many of the model's.
        layer, rank, microbatch: where the fault is.
        at: the rank and micro-batch as the plan's text calls them.
    """

    name: str
    layers: int
    layer: int
    rank: int
    microbatch: int
    at: str


FAULTS: Final = (
    Planted("llama3-405b@dp32-tp2-pp2-mb4", 2, 1, 65, 3, "pp1_dp0_tp1_mb3"),
    Planted("llama3-405b@dp64-tp2-pp2-mb16", 4, 2, 200, 11, "pp1_dp36_tp0_mb11"),
    Planted("llama3-405b@dp64-tp8-pp16-mb16", 126, 57, 3585, 11, "pp7_dp0_tp1_mb11"),
)
"""The first is the one of a quick run; it stands at the ends of axes, so that it cuts them once."""

Case: TypeAlias = Callable[..., "dict[str, Json] | NotMeasured"]
"""Runs one case by its words, `NAME LAYERS [LAYER RANK MICROBATCH]`."""


def named_bars(*, quick: bool, case: Case | None = None) -> Iterator[Bar | NotMeasured]:
    """Every named plan's time, memory and outputs that are only probable; and whether a fault is found.

    Args:
        quick: a few layers of one plan and one small fault, and no bar on time.
        case: runs one case; in a process of its own if not given.
    """
    run = case or _measured
    name, layers = QUICK
    for at in [name] if quick else MAX_S:
        yield from _plan_bars(at, run(at, layers if quick else 0), quick)
    caught, faults = 0, FAULTS[:1] if quick else FAULTS
    for fault in faults:
        said = judged(fault, run(fault.name, fault.layers, fault.layer, fault.rank, fault.microbatch))
        caught += said == "refuted"
        if said != "refuted":
            yield NotMeasured(f"{fault.name}, a fault on {fault.at}", said, wrong=True)
    what = f"{len(faults)} faults of one layer, rank and micro-batch: refuted with their place"
    yield Bar(what, float(caught), "faults", float(len(faults)), "higher")


def _plan_bars(name: str, found: dict[str, Json] | NotMeasured, quick: bool) -> Iterator[Bar | NotMeasured]:
    if isinstance(found, NotMeasured):
        yield found
        return
    name = f"{name}, {QUICK[1]} layers" if quick else name
    if found["status"] == "probable":
        yield Bar(f"{name}: probable outputs", float(found["probable"]), "outputs", 0.0, "lower")
    if found["status"] != "proved":
        yield NotMeasured(name, f"{found['status']}: {found['where']}"[:600], wrong=True)
        return
    if not quick:
        limit = MAX_S[name]
        yield Bar(f"{name}: captured and proved in", float(found["wall_s"]), "s", limit, "lower")
    yield Bar(f"{name}: peak memory", float(found["peak_gb"]), "GB", MAX_GB, "lower")
    yield Bar(f"{name}: probable outputs", float(found["probable"]), "outputs", 0.0, "lower")


def judged(fault: Planted, found: dict[str, Json] | NotMeasured) -> str:
    """`refuted` where the fault was found for what it is; what was said instead otherwise."""
    if isinstance(found, NotMeasured):
        return found.reason
    place = rf"first astray on {re.escape(fault.at)}: relu_\d+ = relu"
    named = re.search(place, str(found["where"])) and str(found["source"]).startswith(
        f"layers.{fault.layer}."
    )
    return (
        "refuted" if found["status"] == "refuted" and named else f"{found['status']}: {found['where']}"[:600]
    )


def _measured(*words: object) -> dict[str, Json] | NotMeasured:
    command = [sys.executable, "-m", "tensure.benchmarks._prove_named_case", *map(str, words)]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=_CHILD_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return NotMeasured(str(words[0]), f"did not finish: {type(error).__name__}")
    if done.returncode:
        return NotMeasured(str(words[0]), f"ended with {done.returncode}", wrong=True)
    row: dict[str, Json] = json.loads(done.stdout.strip().splitlines()[-1])
    return row
