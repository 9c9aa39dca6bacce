"""What `bench net` does to a network, the same for every engine: one image in, logits out, repeated calls.

Runs in the engine's own process. Does not know any engine: `_engine_net_*.py` adapt theirs to `NetModel`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final, Protocol

import numpy as np

from tensure.errors import InputError

from ._records import Json
from ._text_engine import Floats, memory_facts, pack

__all__ = ["INPUT_SHAPE", "NetEngine", "NetModel", "make_input"]

INPUT_SHAPE: Final = (1, 3, 224, 224)
MAX_REPEATS: Final = 10_000


def make_input(seed: int = 0) -> Floats:
    """One image as a network sees it, [1, 3, 224, 224]: normal noise."""
    return np.random.default_rng(seed).standard_normal(INPUT_SHAPE, np.float32)


class NetModel(Protocol):
    """An engine's way to hold one network at a time, ready for a number of threads."""

    def load(self, network: str) -> None:
        """Take up a network and let go of the one before."""

    def set_input(self, x: Floats, threads: int) -> None:
        """Be ready for calls on this image with this many threads; never timed."""

    def infer(self) -> None:
        """One call, until its output is there."""

    def output(self) -> Floats:
        """The output of the last call."""

    def facts(self) -> Mapping[str, Json]:
        """`weight_bytes` (in memory, as computed with), `computes`, `version`."""


class NetEngine:
    """`check` and `run` of the cases of `bench net`, and `facts`."""

    def __init__(self, model: NetModel, clock: Callable[[], float] = time.perf_counter) -> None:
        self._model = model
        self._clock = clock
        self._network = ""
        self._threads = 0

    def check(self, case: Json) -> Json:
        """The output: packed f32."""
        self._prepare(case)
        self._model.infer()
        return pack(self._model.output())

    def run(self, case: Json) -> Json:
        """Time `repeats` calls after one that is not timed: another engine had the caches until now."""
        repeats = self._prepare(case)
        self._model.infer()
        begin, cpu = self._clock(), time.process_time()
        for _ in range(repeats):
            self._model.infer()
        return {"wall_s": self._clock() - begin, "cpu_s": time.process_time() - cpu}

    def facts(self) -> Json:
        """What the model says of itself, and this process's memory."""
        return {**self._model.facts(), **memory_facts()}

    def _prepare(self, case: Json) -> int:
        """Have the case's network ready; how often to repeat the call."""
        params, threads = case["params"], case["threads"]
        network, repeats = params["network"], params["repeats"]
        if not isinstance(repeats, int) or not 1 <= repeats <= MAX_REPEATS:
            raise InputError(f"repeats {repeats!r:.40}", wanted=f"1 to {MAX_REPEATS}")
        if network != self._network:
            self._model.load(network)
            self._network, self._threads = network, 0
        if threads != self._threads:
            self._model.set_input(make_input(), threads)
            self._threads = threads
        return repeats
