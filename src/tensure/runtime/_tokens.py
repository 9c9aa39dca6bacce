"""Where a generation's tokens come from: an engine's stream, or the Program run through torch.

Knows how each makes a token after a token and what a receipt says of it. Does not know text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

from tensure.bundle import Scalar
from tensure.errors import EvaluationError
from tensure.text import Sampler, SamplingParams

from ._decoder import PREFILL_CHUNK, DecoderRun
from ._engine import Engine
from ._machine import Ran, ran_through_torch
from ._stream import Stream

__all__ = ["EngineTokens", "TokenSource", "TorchTokens"]


class TokenSource(Protocol):
    """Tokens of one sequence, made as they are asked for."""

    @property
    def ran(self) -> Ran:
        """What made them, for the receipt."""

    @property
    def settings(self) -> Mapping[str, Scalar]:
        """What else their bits depend on, for the receipt."""

    def __iter__(self) -> Iterator[int]: ...

    def close(self) -> None:
        """No further token is wanted."""


class EngineTokens:
    """A stream of an engine."""

    def __init__(self, engine: Engine, stream: Stream, ran: Ran) -> None:
        self.ran = ran
        self.settings: Mapping[str, Scalar] = MappingProxyType({})
        self._engine = engine
        self._stream = stream

    def __iter__(self) -> Iterator[int]:
        return self._stream

    def close(self) -> None:
        """Frees the stream's pages at the next step."""
        if self._stream.finish_reason is None:
            self._engine.cancel(self._stream)


class TorchTokens:
    """A Program with the entries of a decoder that no engine of ours knows, op by op through torch."""

    settings: Mapping[str, Scalar] = MappingProxyType({"prefill_chunk": PREFILL_CHUNK})

    def __init__(
        self, start: Callable[[], DecoderRun], prompt: Sequence[int], params: SamplingParams
    ) -> None:
        self._run = start()
        self._prompt = prompt
        self._sampler = Sampler(params)

    @property
    def ran(self) -> Ran:
        """Torch is loaded by now."""
        return ran_through_torch()

    def __iter__(self) -> Iterator[int]:
        logits = self._run.prefill(self._prompt)
        while True:
            try:
                token = self._sampler.next(logits)
            except EvaluationError as error:
                raise error.at(place=f"token {self._sampler.step}") from None
            yield token
            logits = self._run.decode(token)

    def close(self) -> None:
        """The cache goes with the object."""
