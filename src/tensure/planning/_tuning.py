"""Measured seconds of convolutions on this machine, kept in a JSON file between runs.

A time is a property of a machine (its processor's name), an instruction set, a number of threads, a version
of the kernels and a problem; the file's keys hold all of them. A file that is missing, broken or from
elsewhere is simply no help: times are then measured again. Knows how to time a candidate. Does not choose.
"""

from __future__ import annotations

import json
import math
import os
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import numpy as np

from tensure import kernels
from tensure.bundle import write_file_atomic
from tensure.errors import TensureError
from tensure.kernels import aligned_bytes, aligned_floats, conv2d, pack_conv2d

from ._conv_choice import Candidate, ConvProblem

__all__ = ["TuningCache", "default_cache_path", "measure_conv", "measure_move"]

FORMAT: Final = "tensure/tuning/1"
MAX_FILE_BYTES: Final = 16 << 20
MAX_ENTRIES: Final = 100_000
BUDGET_S: Final = 0.012
"""Of one candidate, beyond the first run: a stable minimum of short layers, and two runs of long ones."""
MIN_RUNS, MAX_RUNS = 2, 20


class TuningCache:
    """Seconds by problem and candidate; measures what it does not know.

    Args:
        path: the file; None keeps times in memory alone.
        threads: that the times are for.
        budget_s: seconds for each candidate that must be measured.
    """

    def __init__(self, path: Path | None = None, *, threads: int = 1, budget_s: float = BUDGET_S) -> None:
        self._path, self._threads, self._budget_s = path, threads, budget_s
        self._prefix = f"{_processor()}|{kernels.isa()}|{threads}|{_version()}|"
        self._seconds: dict[str, float] = {} if path is None else _read(path)
        self.num_measured = 0

    def measure(self, problem: ConvProblem, candidate: Candidate) -> float:
        """Seconds of one run, from the file or measured now."""
        key = f"{self._prefix}{problem.key()}|{candidate}"
        if key not in self._seconds:
            self._seconds[key] = measure_conv(problem, candidate, self._threads, self._budget_s)
            self.num_measured += 1
        return self._seconds[key]

    def move(self, source: str, target: str, shape: tuple[int, int, int, int]) -> float:
        """Seconds to bring images of shape [N, C, H, W] into another layout."""
        key = f"{self._prefix}{'x'.join(map(str, shape))}|{source}>{target}"
        if key not in self._seconds:
            self._seconds[key] = measure_move(source, target, shape, self._threads, self._budget_s / 4)
            self.num_measured += 1
        return self._seconds[key]

    def save(self) -> bool:
        """Write the file; False if it cannot be written: times are a convenience."""
        if self._path is None or not self.num_measured:
            return False
        kept = dict(list(self._seconds.items())[-MAX_ENTRIES:])
        text = json.dumps({"format": FORMAT, "seconds": kept}, indent=0, sort_keys=True)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_file_atomic(self._path, text.encode(), replace=True)
        except (OSError, TensureError):
            return False
        return True


def default_cache_path() -> Path:
    """`$XDG_CACHE_HOME/tensure/tuning.json`."""
    base = os.environ.get("XDG_CACHE_HOME")
    folder = Path(base) if base and os.path.isabs(base) else Path.home() / ".cache"
    return folder / "tensure" / "tuning.json"


def measure_conv(
    problem: ConvProblem, candidate: Candidate, threads: int = 1, budget_s: float = BUDGET_S
) -> float:
    """The least seconds of a few runs, weights packed and memory warm beforehand."""
    conv = problem.conv
    packed = pack_conv2d(_floats(conv.weight_shape), conv, candidate.algorithm, candidate.layout)
    shape = kernels.image_shape(
        candidate.layout, problem.num_images, conv.in_channels, problem.height, problem.width
    )
    x, out = _floats(shape), _floats(packed.output_shape(shape))
    workspace = aligned_bytes(packed.workspace_bytes(shape, threads))

    def run() -> None:
        conv2d(x, packed, out=out, workspace=workspace, threads=threads)

    run()
    best, runs, deadline = math.inf, 0, time.perf_counter() + budget_s
    while runs < MIN_RUNS or (runs < MAX_RUNS and time.perf_counter() < deadline):
        begin = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - begin)
        runs += 1
    return best


def measure_move(
    source: str, target: str, shape: tuple[int, int, int, int], threads: int = 1, budget_s: float = BUDGET_S
) -> float:
    """The least seconds of a few conversions."""
    x = _floats(kernels.image_shape(source, *shape))
    out = _floats(kernels.image_shape(target, *shape))
    best, runs, deadline = math.inf, 0, time.perf_counter() + budget_s
    while runs < MIN_RUNS or (runs < MAX_RUNS and time.perf_counter() < deadline):
        begin = time.perf_counter()
        kernels.convert_layout(x, source, target, num_images=shape[0], out=out, threads=threads)
        best = min(best, time.perf_counter() - begin)
        runs += 1
    return best


def _floats(shape: tuple[int, ...]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Ordinary numbers: zeros may be quicker than what will really run, and subnormals slower."""
    found = aligned_floats(shape)
    found.fill(0.5)
    return found


def _read(path: Path) -> dict[str, float]:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            return {}
        record = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    seconds = record.get("seconds") if isinstance(record, dict) and record.get("format") == FORMAT else None
    if not isinstance(seconds, dict):
        return {}
    return {
        key: float(value)
        for key, value in seconds.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e6
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return "unknown"


def _version() -> str:
    try:
        return version("tensure")
    except PackageNotFoundError:
        return "0"
