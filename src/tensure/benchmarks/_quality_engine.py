"""How far an engine's probabilities are from the float model's: read a text, compare every position.

Runs in the engine's own process; the reference lies in a file, since all logits of a text are a hundred
megabytes. Does not know any engine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ._records import Json
from ._text_engine import Floats, memory_facts

__all__ = ["QualityEngine", "QualityModel", "divergence", "log_softmax"]

Doubles = npt.NDArray[np.float64]


class QualityModel(Protocol):
    """What gives all logits of a text."""

    def set_threads(self, threads: int) -> None:
        """Use this many threads from now on."""

    def score(self, tokens: Sequence[int]) -> Floats:
        """Forget everything, read the tokens; f32 [n, vocab], row i after token i."""

    def facts(self) -> Mapping[str, Json]:
        """`weight_bytes`, `computes`, `version`."""


class QualityEngine:
    """`check` compares with the file that the case names, `run` times reading the text."""

    def __init__(self, model: QualityModel, clock: Callable[[], float] = time.perf_counter) -> None:
        self._model = model
        self._clock = clock
        self._found: dict[str, Json] = {}

    def check(self, case: Json) -> Json:
        """`divergence` from the reference."""
        self._model.set_threads(case["threads"])
        logits = self._model.score(case["params"]["tokens"])
        reference = np.load(Path(case["params"]["expected"]), mmap_mode="r", allow_pickle=False)
        self._found = divergence(reference, logits)
        return self._found

    def run(self, case: Json) -> Json:
        """Seconds of reading the text, all logits included."""
        self._model.set_threads(case["threads"])
        begin, cpu = self._clock(), time.process_time()
        self._model.score(case["params"]["tokens"])
        return {"wall_s": self._clock() - begin, "cpu_s": time.process_time() - cpu}

    def facts(self) -> Json:
        """What the last comparison found too."""
        return {**self._model.facts(), **self._found, **memory_facts()}


def divergence(reference: Floats, logits: Floats) -> dict[str, Json]:
    """Kullback-Leibler divergence of two [n, vocab] of logits, in nats: sum of p (log p - log q).

    `kl` is the mean over positions, `kl_max` the worst; `top1` is the share of positions where both hold
    the same token likeliest. Computed in double precision, position by position.
    """
    if reference.shape != logits.shape:
        return {"shape": list(logits.shape), "kl": float("nan"), "kl_max": float("nan"), "top1": 0.0}
    values = np.empty(len(logits))
    for i, (wanted, found) in enumerate(zip(reference, logits, strict=True)):
        p, q = log_softmax(wanted), log_softmax(found)
        values[i] = np.sum(np.exp(p) * (p - q))
    same = float(np.mean(reference.argmax(-1) == logits.argmax(-1)))
    return {
        "shape": list(logits.shape),
        "kl": float(values.mean()),
        "kl_max": float(values.max()),
        "top1": same,
    }


def log_softmax(logits: Floats) -> Doubles:
    """Log-probabilities of one vector, in double precision."""
    x = logits.astype(np.float64)
    x -= x.max()
    shifted: Doubles = x - np.log(np.exp(x).sum())
    return shifted
