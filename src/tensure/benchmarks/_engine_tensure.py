"""Our own engine as decode and prefill time it: the host Runner's loop, as a Session drives it.

One Runner call a token, the cache updated in place. Tokenizing, sampling beyond greedy, digests and the
receipt are outside: they cost the same however fast the model runs. Runs in a process of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version

import torch

from tensure import host, kernels
from tensure.program.from_gguf import from_gguf

from ._records import Json
from ._text_engine import Floats, TextEngine

__all__ = ["setup"]


class RunnerModel:
    """SmolLM2 on `host.Runner`."""

    def __init__(self, path: str) -> None:
        model = from_gguf(path)
        self._program = model.program
        weights = host.load_weights(model.weights)
        self._bytes = sum({t.data_ptr(): t.numel() * t.element_size() for t in weights.values()}.values())
        self._runner = host.Runner(self._program, weights)
        self._states: dict[str, torch.Tensor] = {}
        self._position = 0

    def set_threads(self, threads: int) -> None:
        """Of torch's pool, which is all that computes here; the Runner pins it at each call."""
        self._runner.threads = threads
        torch.set_num_threads(threads)

    def prefill(self, tokens: Sequence[int]) -> torch.Tensor:
        """The whole prompt in one call."""
        with torch.inference_mode():
            self._states = dict(host.zero_states(self._program, "decode", {"pos": 0}))
        self._position = 0
        return self._call("prefill", {"n": len(tokens), "pos": 0}, tokens)

    def step(self, token: int) -> torch.Tensor:
        """One token."""
        return self._call("decode", {"pos": self._position}, [token])

    def best(self, logits: torch.Tensor) -> int:
        """Greedy."""
        return int(logits.argmax())

    def to_array(self, logits: torch.Tensor) -> Floats:
        """Already f32."""
        array: Floats = logits.numpy()
        return array

    def facts(self) -> Mapping[str, Json]:
        """Weights are decoded to f32 when they are loaded, today."""
        return {
            "weight_bytes": self._bytes,
            "computes": "f32",
            "version": f"{version('tensure')} (torch {torch.__version__}, kernels {kernels.isa()})",
            "through": "host.Runner",
        }

    def _call(self, entry: str, params: dict[str, int], tokens: Sequence[int]) -> torch.Tensor:
        with torch.inference_mode():
            inputs = {"tokens": torch.tensor(tokens, dtype=torch.int64)}
            outputs, after = self._runner.run(
                inputs, entry=entry, params=params, states=self._states, in_place=True
            )
        self._states = dict(after)
        self._position += len(tokens)
        return outputs["logits"]


def setup(path: str) -> TextEngine:
    """The engine for a GGUF file."""
    return TextEngine(RunnerModel(path))
