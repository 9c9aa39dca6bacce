"""The float model: the Program itself in f32 on torch, which knows none of the decoder's kernels.

The oracle of `decode-batch` and `decode-quality`; never timed. Runs in a process of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from tensure import host
from tensure.program.from_gguf import from_gguf

from ._records import Json
from ._text_engine import Floats, pack

__all__ = ["setup"]


class FloatModel:
    """Checks only: logits after prompts, or after every token of a text."""

    def __init__(self, path: str) -> None:
        model = from_gguf(path)
        self._program = model.program
        self._runner = host.Runner(self._program, host.load_weights(model.weights))

    def check(self, case: Json) -> Json:
        """A text (`tokens`): its logits into the file `expected`. Prompts: logits after each prompt and
        after its forced token, packed.
        """
        params = case["params"]
        if "prompts" not in params:
            logits = self._score(params["tokens"])
            np.save(Path(params["expected"]), logits)
            return {"shape": list(logits.shape)}
        rows = [
            self._score([*prompt, forced])[-2:]
            for prompt, forced in zip(params["prompts"], params["forced"], strict=True)
        ]
        return [pack(row) for pair in rows for row in pair]

    def facts(self) -> Json:
        """Nothing is measured here."""
        return {}

    def _score(self, tokens: Sequence[int]) -> Floats:
        with torch.inference_mode():
            outputs, _ = self._runner.run(
                {"tokens": torch.tensor(tokens, dtype=torch.int64)},
                entry="score",
                params={"n": len(tokens), "pos": 0},
                states=dict(host.zero_states(self._program, "decode", {"pos": 0})),
                in_place=True,
            )
        logits: Floats = outputs["logits"].numpy()
        return logits


def setup(path: str) -> FloatModel:
    """The oracle for a GGUF file."""
    return FloatModel(path)
