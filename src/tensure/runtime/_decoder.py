"""A Program that decodes text: prefill and decode over one key-value cache.

Knows the entries' form (`prefill(n, pos)` and `decode(pos)`, input `tokens`, output `logits`, axis `C`
for the context) and how to feed a prompt in chunks. Does not know tokenizers, sampling or receipts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from tensure.errors import LimitError, UnsupportedError
from tensure.program import Program

from ._tensors import Array

if TYPE_CHECKING:
    from ._execution import HostExecution, States

__all__ = ["PREFILL_CHUNK", "Decoder", "DecoderRun"]

PREFILL_CHUNK: Final = 256
"""Tokens in one prefill call: bounds the memory of attention scores. Another number may give other bits."""


class Decoder:
    """The text entries of a Program.

    Raises:
        UnsupportedError: the Program has none.
    """

    def __init__(self, program: Program, name: str) -> None:
        for label, params in (("prefill", {"n", "pos"}), ("decode", {"pos"})):
            entry = program.entries.get(label)
            if (
                entry is None
                or {key for key, _, _ in entry.params} != params
                or [str(item) for item in entry.inputs] != ["tokens"]
                or [str(item) for item in entry.outputs] != ["logits"]
                or "C" not in program.axes
            ):
                raise UnsupportedError(
                    f"{name} does not generate text",
                    wanted="entries prefill(n, pos) and decode(pos) from tokens to logits",
                    next_step="Give it input tensors instead of a prompt",
                )
        self.context: int = program.axes["C"]

    def check_room(self, num_prompt: int, max_tokens: int) -> None:
        """Refuse, before any work, what cannot fit the context.

        Raises:
            LimitError: with the numbers.
        """
        if num_prompt + max_tokens > self.context:
            room = self.context - num_prompt
            step = f"Ask for at most {room} new tokens" if room > 0 else "Shorten the prompt"
            raise LimitError(
                f"{num_prompt} prompt tokens and up to {max_tokens} new ones make {num_prompt + max_tokens}",
                wanted=f"at most the context of {self.context}",
                next_step=step,
            )


class DecoderRun:
    """One text in the making: its cache and its position."""

    def __init__(self, execution: HostExecution) -> None:
        self._execution = execution
        self._states: States = execution.zero_states("decode", {"pos": 0})
        self.position = 0

    def prefill(self, ids: Sequence[int]) -> Array:
        """The logits [V] after a prompt, taken in chunks."""
        logits = np.empty(0, np.float32)
        for start in range(0, len(ids), PREFILL_CHUNK):
            chunk = ids[start : start + PREFILL_CHUNK]
            logits = self._step("prefill", {"n": len(chunk), "pos": self.position}, chunk)
        return logits

    def decode(self, token: int) -> Array:
        """The logits [V] after one more token."""
        return self._step("decode", {"pos": self.position}, [token])

    def _step(self, entry: str, params: dict[str, int], ids: Sequence[int]) -> Array:
        tokens = {"tokens": np.asarray(ids, np.int64)}
        outputs, self._states = self._execution.step(entry, params, tokens, self._states, in_place=True)
        self.position += len(ids)
        return outputs["logits"]
