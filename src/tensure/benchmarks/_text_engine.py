"""What decode and prefill do to a language model, the same for every engine: prompt, steps, logits, timing.

Runs in the engine's own process. Does not know any engine: `_engine_*.py` adapt theirs to `TextModel`.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from tensure.errors import InputError

from ._records import Json

__all__ = ["Floats", "TextEngine", "TextModel", "memory_facts", "pack", "unpack"]

Floats = npt.NDArray[np.float32]
_Logits = TypeVar("_Logits")


class TextModel(Protocol[_Logits]):
    """A language model with its cache. Logits stay in the engine's own form until they are compared."""

    def set_threads(self, threads: int) -> None:
        """Use this many threads from now on."""

    def prefill(self, tokens: Sequence[int]) -> _Logits:
        """Forget everything, read the tokens at positions 0..n, give the logits after the last."""

    def step(self, token: int) -> _Logits:
        """Read one more token, give the logits after it."""

    def best(self, logits: _Logits) -> int:
        """The greedy next token."""

    def to_array(self, logits: _Logits) -> Floats:
        """The logits as f32 [vocab]."""

    def facts(self) -> Mapping[str, Json]:
        """`weight_bytes` (in memory, as computed with), `computes`, `version`."""


class TextEngine:
    """`check` and `run` of the cases of decode and prefill, and `facts`."""

    def __init__(self, model: TextModel[Any], clock: Callable[[], float] = time.perf_counter) -> None:
        self._model = model
        self._clock = clock
        self._threads = 0

    def check(self, case: Json) -> Json:
        """Logits after the prompt, and after each of the case's forced tokens: packed f32."""
        prompt, params = self._prepare(case)
        logits = [pack(self._model.to_array(self._model.prefill(prompt)))]
        logits += [pack(self._model.to_array(self._model.step(token))) for token in params["forced"]]
        return logits

    def run(self, case: Json) -> Json:
        """Time the prompt (prefill), or the greedy tokens after an untimed prompt (decode)."""
        prompt, params = self._prepare(case)
        if params["task"] == "prefill":
            begin, cpu = self._clock(), time.process_time()
            self._model.best(self._model.prefill(prompt))
            return {"wall_s": self._clock() - begin, "cpu_s": time.process_time() - cpu}
        token = self._model.best(self._model.prefill(prompt))
        begin, cpu = self._clock(), time.process_time()
        for _ in range(params["tokens"]):
            token = self._model.best(self._model.step(token))
        return {"wall_s": self._clock() - begin, "cpu_s": time.process_time() - cpu}

    def facts(self) -> Json:
        """What the model says of itself, and this process's memory."""
        return {**self._model.facts(), **memory_facts()}

    def _prepare(self, case: Json) -> tuple[list[int], Json]:
        params = case["params"]
        if params["task"] not in ("prefill", "decode"):
            raise InputError(f"task {params['task']!r}", wanted="prefill or decode")
        if case["threads"] != self._threads:
            self._model.set_threads(case["threads"])
            self._threads = case["threads"]
        return params["prompt"], params


def pack(values: Floats) -> str:
    """f32 little-endian bytes in base64."""
    return base64.b64encode(np.ascontiguousarray(values, dtype="<f4").tobytes()).decode("ascii")


def unpack(text: str) -> Floats:
    """The inverse of `pack`."""
    return np.frombuffer(base64.b64decode(text), dtype="<f4")


def memory_facts() -> dict[str, int]:
    """`peak_rss_bytes` and `rss_bytes` of this process, loading included.

    From /proc: getrusage's maximum survives exec and would show the parent's size.
    """
    found: dict[str, int] = {}
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        for line in status:
            key, _, value = line.partition(":")
            if key in ("VmHWM", "VmRSS"):
                found["peak_rss_bytes" if key == "VmHWM" else "rss_bytes"] = int(value.split()[0]) * 1024
    return found
