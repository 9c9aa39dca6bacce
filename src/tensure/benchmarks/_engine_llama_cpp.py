"""llama.cpp through llama-cpp-python, on the file as it is stored.

Found in the active environment, or in folders that TENSURE_BENCH_PATH names, which come last on the path so
that they replace nothing. Defaults are kept but for the context length, which is ours. Runs in a process of
its own: its OpenMP and torch's would fight over the cores.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np

from ._quality_engine import QualityEngine
from ._records import Json
from ._text_engine import Floats, TextEngine

__all__ = ["PATH_VARIABLE", "llama_cpp_missing", "setup", "setup_quality"]

PATH_VARIABLE: Final = "TENSURE_BENCH_PATH"
_CONTEXT: Final = 2048


def llama_cpp_missing() -> str | None:
    """Why llama-cpp-python cannot be used, or None; looks for it and does not load it."""
    if find_spec("llama_cpp") is not None:
        return None
    if any((Path(folder) / "llama_cpp" / "__init__.py").is_file() for folder in _extra_folders()):
        return None
    return "llama-cpp-python is not installed (docs/benchmarks.md says how to build it)"


class LlamaCppModel:
    """A model of llama.cpp."""

    def __init__(self, path: str, *, all_logits: bool = False) -> None:
        sys.path += _extra_folders()
        self._api: Any = import_module("llama_cpp")
        threads = len(os.sched_getaffinity(0))
        self._llama = self._api.Llama(
            model_path=path,
            n_ctx=_CONTEXT,
            n_threads=threads,
            n_threads_batch=threads,
            logits_all=all_logits,
            verbose=False,
        )
        self._vocab = int(self._llama.n_vocab())

    def set_threads(self, threads: int) -> None:
        """For batches and for single tokens."""
        self._api.llama_set_n_threads(self._llama.ctx, threads, threads)

    def prefill(self, tokens: Sequence[int]) -> Floats:
        """From an empty cache."""
        self._llama.reset()
        return self._eval(tokens)

    def step(self, token: int) -> Floats:
        """One token."""
        return self._eval([token])

    def score(self, tokens: Sequence[int]) -> Floats:
        """All logits, where the model was made for them."""
        self._llama.reset()
        self._llama.eval(list(tokens))
        scores: Floats = np.asarray(self._llama.scores[: len(tokens)], np.float32)
        return scores

    def best(self, logits: Floats) -> int:
        """Greedy."""
        return int(np.argmax(logits))

    def to_array(self, logits: Floats) -> Floats:
        """A copy: the next call overwrites llama.cpp's own buffer."""
        return logits.copy()

    def facts(self) -> Mapping[str, Json]:
        """The size that llama.cpp states."""
        system = self._api.llama_print_system_info().decode("ascii", "replace").strip()
        return {
            "weight_bytes": int(self._api.llama_model_size(self._llama.model)),
            "computes": "as stored",
            "version": f"llama-cpp-python {self._api.__version__} ({system})",
        }

    def _eval(self, tokens: Sequence[int]) -> Floats:
        self._llama.eval(list(tokens))
        pointer = self._api.llama_get_logits_ith(self._llama.ctx, -1)
        return np.ctypeslib.as_array(pointer, (self._vocab,))


def _extra_folders() -> list[str]:
    return [folder for folder in os.environ.get(PATH_VARIABLE, "").split(os.pathsep) if folder]


def setup(path: str) -> TextEngine:
    """The engine for a GGUF file."""
    return TextEngine(LlamaCppModel(path))


def setup_quality(path: str) -> QualityEngine:
    """The same, for all logits of a text."""
    return QualityEngine(LlamaCppModel(path, all_logits=True))
