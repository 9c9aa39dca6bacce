"""What it costs to prove a plan of 8,192 ranks, and whether its faults are found there.

Each plan is proved in a process of its own, `_prove_gate_case.py`; the plans are `_prove_gate_plan.py`'s.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Final

from ._prove_gate_plan import FAULTS, Shape, place_of
from ._records import Bar, Json, NotMeasured

__all__ = ["FULL", "FEW", "REPLAYED", "gate_bars", "judged"]

FULL: Final = Shape(126, 64, 8, 16, 16)
FEW: Final = Shape(126, 2, 2, 16, 16)
"""64 ranks that do as many different things as the 8,192."""
REPLAYED: Final = Shape(4, 64, 4, 2, 2)
"""512 ranks, with a model small enough to be run in numpy."""
QUICK: Final = (Shape(4, 64, 8, 4, 2), Shape(4, 2, 2, 4, 2))
MAX_S: Final = 60.0
MAX_GB: Final = 1.0
MAX_RATIO: Final = 2.0
MAX_FAULT_S: Final = 60.0
_CHILD_S: Final = 3600.0


def judged(shape: Shape, fault: str, found: dict[str, Json]) -> str:
    """`refuted`, or `named` where it is doubted at its place; what was said instead otherwise."""
    status, where = str(found["status"]), str(found["where"])
    if status in ("proved", "probable") or not re.match(place_of(shape, fault), where):
        return f"{status}: {where}"[:300]
    return "refuted" if status == "refuted" else "named"


def gate_bars(*, quick: bool) -> Iterator[Bar | NotMeasured]:
    """Cost of a plan of many ranks, against few of them; and its faults."""
    many, few = QUICK if quick else (FULL, FEW)
    found, base = _measured(many), _measured(few)
    for item in (found, base):
        if isinstance(item, NotMeasured) or item["status"] != "proved":
            yield item if isinstance(item, NotMeasured) else NotMeasured("gate", item["where"], wrong=True)
            return
    assert not isinstance(found, NotMeasured) and not isinstance(base, NotMeasured)
    name = f"{found['ranks']} ranks, {many.layers} layers"
    yield Bar(f"{name}: proved in", found["cpu_s"], "CPU s", MAX_S, "lower")
    yield Bar(f"{name}: peak memory", found["peak_gb"], "GB", MAX_GB, "lower")
    ratio = found["cpu_s"] / base["cpu_s"]
    yield Bar(f"{name}: time against {base['ranks']} ranks", ratio, "times", MAX_RATIO, "lower")
    for shape in (REPLAYED,) if quick else (REPLAYED, FULL):
        yield from _fault_bars(shape)


def _fault_bars(shape: Shape) -> Iterator[Bar | NotMeasured]:
    """Faults refuted where they are, and what the dearest of them costs; of a model that a replay can run."""
    caught, seconds, gigabytes = 0, 0.0, 0.0
    for fault in FAULTS:
        found = _measured(shape, fault)
        said = found.reason if isinstance(found, NotMeasured) else judged(shape, fault, found)
        caught += said == "refuted"
        if said != "refuted":
            yield NotMeasured(f"fault in {shape.ranks} ranks: {fault}", said, wrong=True)
        if not isinstance(found, NotMeasured):
            seconds, gigabytes = max(seconds, found["cpu_s"]), max(gigabytes, found["peak_gb"])
    name = f"{shape.ranks} ranks, {shape.layers} layers, {len(FAULTS)} faults"
    yield Bar(f"{name}: refuted with their place", float(caught), "faults", float(len(FAULTS)), "higher")
    yield Bar(f"{name}: the slowest in", seconds, "CPU s", MAX_FAULT_S, "lower")
    yield Bar(f"{name}: peak memory", gigabytes, "GB", MAX_GB, "lower")


def _measured(shape: Shape, fault: str | None = None) -> dict[str, Json] | NotMeasured:
    words = [shape.layers, shape.dp, shape.tp, shape.pp, shape.micro_batches]
    command = [sys.executable, "-m", "tensure.benchmarks._prove_gate_case", *map(str, words)]
    try:
        done = subprocess.run(
            [*command, *([fault] if fault else [])],
            stdout=subprocess.PIPE,
            text=True,
            timeout=_CHILD_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return NotMeasured("gate", f"did not finish: {type(error).__name__}")
    if done.returncode:
        return NotMeasured("gate", f"ended with {done.returncode}", wrong=True)
    row: dict[str, Json] = json.loads(done.stdout.strip().splitlines()[-1])
    return row
