"""Our own engine as decode and prefill time it: steps of the decoder over its paged cache, as an engine's.

One `PagedDecoder.step` a token, its rows made anew each time. Tokenizing, sampling beyond greedy, digests and
the receipt are outside: they cost the same however fast the model runs. Runs in a process of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Final

import numpy as np

from tensure import kernels
from tensure.errors import InputError
from tensure.kernels import Arithmetic, StepRows
from tensure.program import DecoderConfig, Weights, read_decoder
from tensure.program.from_gguf import from_gguf
from tensure.runtime import MODE_ARITHMETIC, MODES, PagedDecoder

from ._quality_engine import QualityEngine
from ._records import Json
from ._text_engine import Floats, TextEngine

__all__ = ["PagedModel", "arithmetic_of", "decoder_facts", "read_model", "setup", "setup_quality"]

COMPUTES: Final[Mapping[Arithmetic, str]] = {
    "fine": "activations of 15 bits",
    "fast": "activations of 8 bits",
    "exact": "activations in f32",
}


class PagedModel:
    """A decoder and one sequence in slot 0, with a cache for a whole context."""

    def __init__(self, path: str, mode: str) -> None:
        config, weights = read_model(path)
        arithmetic = arithmetic_of(mode)
        self._decoder = PagedDecoder(config, weights, arithmetic=arithmetic)
        self._table = np.arange(self._decoder.num_pages, dtype=np.int32)[None]
        self._facts = decoder_facts(weights, arithmetic)
        self._position = 0

    def set_threads(self, threads: int) -> None:
        """Of the kernels' pool."""
        self._decoder.threads = threads

    def prefill(self, tokens: Sequence[int]) -> Floats:
        """The whole prompt in one step."""
        self._position = 0
        logits: Floats = self._step(tokens, [len(tokens) - 1])[0]
        return logits

    def step(self, token: int) -> Floats:
        """One token."""
        logits: Floats = self._step([token], [0])[0]
        return logits

    def score(self, tokens: Sequence[int]) -> Floats:
        """All logits of one step."""
        self._position = 0
        return self._step(tokens, range(len(tokens)))

    def best(self, logits: Floats) -> int:
        """Greedy."""
        return int(logits.argmax())

    def to_array(self, logits: Floats) -> Floats:
        """A copy: a result lasts until the next step."""
        return logits.copy()

    def facts(self) -> Mapping[str, Json]:
        """Weights as the file stores them: repacking keeps their bytes."""
        return self._facts

    def _step(self, tokens: Sequence[int], wanted: Sequence[int]) -> Floats:
        num = len(tokens)
        rows = StepRows(
            tokens=np.array(tokens, np.int32),
            positions=np.arange(self._position, self._position + num, dtype=np.int32),
            slots=np.zeros(num, np.int32),
            tables=self._table,
            wanted=np.array(wanted, np.int32),
        )
        self._position += num
        return self._decoder.step(rows)


def read_model(path: str) -> tuple[DecoderConfig, Weights]:
    """The decoder of a GGUF file and its mapped weights."""
    model = from_gguf(path)
    config = read_decoder(model.program)
    if config is None:
        raise InputError("no decoder that our kernels run", file=path)
    return config, model.weights


def arithmetic_of(mode: str) -> Arithmetic:
    """What the engine's mode of this name computes with."""
    if mode not in MODE_ARITHMETIC:
        raise InputError(f"mode is {mode!r:.40}", wanted=" or ".join(MODES))
    return {str(key): value for key, value in MODE_ARITHMETIC.items()}[mode]


def decoder_facts(weights: Weights, arithmetic: Arithmetic) -> dict[str, Json]:
    """Size, arithmetic and version, for the table."""
    features = ", ".join((kernels.isa(), *kernels.features()))
    return {
        "weight_bytes": sum(weights[name].data.nbytes for name in weights),
        "computes": COMPUTES[arithmetic],
        "version": f"{version('tensure')} (kernels {features})",
        "through": "PagedDecoder",
    }


def setup(path: str, mode: str) -> TextEngine:
    """The engine for a GGUF file, in mode exact or fast."""
    return TextEngine(PagedModel(path, mode))


def setup_quality(path: str, mode: str) -> QualityEngine:
    """The same, for all logits of a text."""
    return QualityEngine(PagedModel(path, mode))
