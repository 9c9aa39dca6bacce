"""What the convolution benchmarks do to an engine, the same for all: prepare, compare, time, say.

Runs in the engine's own process. Weights are packed and inputs laid out before anything is timed, outputs
are written where they were the last time; a figure is one call of the convolution and nothing else. Does not
know any engine: `_engine_conv_*.py` adapt theirs to `ConvModel`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from tensure.errors import InputError

from ._conv_cases import Floats, Problem, problem_of
from ._records import Json
from ._text_engine import memory_facts

__all__ = ["ConvEngine", "ConvModel", "growth_of", "poisoned"]

RUN_S: Final = 0.03
"""A run repeats the convolution until it lasts this long: far above what a clock and a call cost."""
MAX_REPEATS: Final = 100_000
LONG_S: Final = 1.0
"""A first call that took this long is repeated once a run without being tried again."""
KEEP_BYTES: Final = 256 << 20
"""What is larger is prepared again for each run, so that ten engines fit in memory beside each other."""


class ConvModel(Protocol):
    """One way of computing a convolution."""

    def prepare(self, problem: Problem, x_NCHW: Floats, w_OIHW: Floats, threads: int) -> Callable[[], object]:
        """Pack, lay out, allocate; give the call that does the convolution once. Replaces the last one."""

    def output(self) -> Floats:
        """What the last call wrote, seen as NCHW."""

    def release(self) -> None:
        """Let go of what `prepare` made."""

    def facts(self) -> Mapping[str, Json]:
        """`computes`, `version`; where known `workspace_bytes` and `weight_bytes` (as packed)."""


class ConvEngine:
    """`check`, `run` and `facts` of a convolution."""

    def __init__(self, model: ConvModel, clock: Callable[[], float] = time.perf_counter) -> None:
        self._model = model
        self._clock = clock
        self._key: tuple[Problem, int] | None = None
        self._call: Callable[[], object] = _nothing
        self._repeats = 1
        self._facts: dict[str, Json] = {}

    def check(self, case: Json) -> Json:
        """How far the output is from the file that the case names, and the shape of both."""
        problem = self._prepare(case)
        begin = self._clock()
        growth = growth_of(self._call)
        first = self._clock() - begin
        self._facts = {**self._model.facts(), "growth_bytes": growth, **_sizes(problem)}
        found = _difference(self._model.output(), Path(case["params"]["expected"]))
        self._repeats = self._enough(first)
        if found.get("max"):
            self._facts["max_error"] = found["difference"] / found["max"]
        self._drop_if_large(problem)
        return found

    def run(self, case: Json) -> Json:
        """Seconds of one convolution: the mean over as many as `check` found to be enough."""
        fresh = self._key is None
        problem = self._prepare(case)
        call, repeats = self._call, self._repeats
        if fresh or repeats > 1:
            call()  # caches and threads as they are in the middle of a network
        begin, cpu = self._clock(), time.process_time()
        for _ in range(repeats):
            call()
        wall_s, cpu_s = self._clock() - begin, time.process_time() - cpu
        self._facts.update(memory_facts())
        del call
        self._drop_if_large(problem)
        return {"wall_s": wall_s / repeats, "cpu_s": cpu_s / repeats}

    def facts(self) -> Json:
        """Of the last case."""
        return self._facts

    def _enough(self, first_s: float) -> int:
        """How often to call in a run; the first call of all did more than the later ones will."""
        once = first_s
        if first_s < LONG_S:
            begin = self._clock()
            self._call()
            once = self._clock() - begin
        return min(max(1, math.ceil(RUN_S / max(once, 1e-9))), MAX_REPEATS)

    def _prepare(self, case: Json) -> Problem:
        problem, threads = problem_of(case), int(case["threads"])
        if self._key != (problem, threads):
            self._release()
            x, w = problem.inputs()
            self._call = self._model.prepare(problem, x, w, threads)
            self._key = (problem, threads)
        return problem

    def _drop_if_large(self, problem: Problem) -> None:
        if problem.tensor_bytes > KEEP_BYTES:
            self._release()

    def _release(self) -> None:
        self._key, self._call = None, _nothing
        self._model.release()


def poisoned(shape: tuple[int, ...]) -> Floats:
    """An output buffer full of NaN: what a kernel does not write is seen in the comparison."""
    return np.full(shape, np.nan, np.float32)


def growth_of(call: Callable[[], object]) -> int | None:
    """How many bytes this process grew at most while the call ran; None where the kernel does not tell."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
    except OSError:
        call()
        return None
    before = memory_facts()["rss_bytes"]
    call()
    return max(0, memory_facts()["peak_rss_bytes"] - before)


def _difference(output: Floats, path: Path) -> dict[str, Json]:
    try:
        expected = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise InputError(f"the expected output cannot be read: {error}", file=path) from None
    shapes: dict[str, Json] = {"shape": list(output.shape), "dtype": str(output.dtype)}
    if output.shape != expected.shape:
        return {**shapes, "difference": math.nan, "max": 0.0}
    most, largest = 0.0, 0.0
    for found, right in zip(output, expected, strict=True):  # an image at a time: the outputs can be large
        difference = np.abs(found.astype(np.float64) - right)
        # NaN does not lose against a number: np.maximum keeps it.
        most = float(np.maximum(most, difference.max()))
        largest = max(largest, float(np.abs(right).max()))
    return {**shapes, "difference": most, "max": largest}


def _sizes(problem: Problem) -> dict[str, Json]:
    return {
        "tensor_bytes": problem.tensor_bytes,
        "im2win_bytes": problem.im2win_bytes,
        "im2col_bytes": problem.im2col_bytes,
    }


def _nothing() -> None:
    """Before anything is prepared."""
