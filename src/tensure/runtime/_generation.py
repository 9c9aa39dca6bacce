"""One answer in the making: iterate it for pieces of text, then read its tokens and its receipt.

Knows how tokens become text and when it ends. Does not know where tokens come from (`_tokens.py`) nor how
what was made is signed (`_receipt_book.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from tensure.bundle import Sampling, Scalar, stream_claim
from tensure.errors import EvaluationError
from tensure.text import SamplingParams, StopMatcher

from ._receipt_book import ReceiptBook, SignedReceipt
from ._tensors import Array
from ._text_side import Message, TextSide
from ._tokens import TokenSource

__all__ = ["FinishReason", "Generation", "Message", "Timing"]

FinishReason: TypeAlias = Literal["eos", "stop", "length"]


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds spent on the prompt (weights loaded before) and on each further token together."""

    prefill_s: float
    decode_s: float
    num_prompt: int
    num_decoded: int

    @property
    def tokens_per_s(self) -> float | None:
        """Decoded tokens per second after the first token; None when there was only one."""
        return self.num_decoded / self.decode_s if self.num_decoded and self.decode_s > 0 else None


class Generation(Iterator[str]):
    """An answer as it is made: iterating gives text, piece by piece, never more than the stop strings allow.

    `text`, `tokens`, `finish_reason`, `receipt` and `timing` make whatever is left to make, then answer.
    The receipt is for `tokens` (i64, the end token included) and `text` (u8, its UTF-8 bytes), its stream
    claim for the tokens one by one as 8 little-endian bytes each.
    """

    def __init__(
        self,
        *,
        prompt: list[int],
        params: SamplingParams,
        text_side: TextSide,
        start: Callable[[], TokenSource],
        book: ReceiptBook,
        nonce: str | None,
    ) -> None:
        self.prompt_tokens = tuple(prompt)
        self._params = params
        self._text_side = text_side
        self._start = start
        self._book = book
        self._nonce = nonce
        self._made: list[int] = []
        self._shown: list[str] = []
        self._reason: FinishReason = "length"
        self._receipt: SignedReceipt | None = None
        self._timing: Timing | None = None
        self._steps = self._generate()

    def __next__(self) -> str:
        return next(self._steps)

    @property
    def text(self) -> str:
        """The whole answer, without end token and stop string."""
        self._finish()
        return "".join(self._shown)

    @property
    def tokens(self) -> tuple[int, ...]:
        """Every token that was made, the end token included."""
        self._finish()
        return tuple(self._made)

    @property
    def finish_reason(self) -> FinishReason:
        """`eos`: the model ended its turn; `stop`: a stop string came; `length`: max_tokens were made."""
        self._finish()
        return self._reason

    @property
    def receipt(self) -> SignedReceipt:
        """The receipt, signed once, at the end."""
        self._finish()
        if self._receipt is None:
            raise _interrupted()
        return self._receipt

    @property
    def timing(self) -> Timing:
        """How long it took."""
        self._finish()
        if self._timing is None:
            raise _interrupted()
        return self._timing

    @property
    def outputs(self) -> dict[str, Array]:
        """The output tensors that the receipt is for: `tokens` and `text`."""
        self._finish()
        return self._outputs()

    # --- the loop ---------------------------------------------------------------------------------

    def _generate(self) -> Iterator[str]:
        """Take a token, show what it adds, see whether that was all."""
        stream = self._text_side.tokenizer.stream()
        stops = StopMatcher(self._params.stop)
        source = self._start()
        begin = time.perf_counter()
        first = begin
        try:
            for token in source:
                if not self._made:
                    first = time.perf_counter()
                self._made.append(token)
                yield from self._show(stops.feed(stream.push(token)))
                if self._is_over(token, stops):
                    break
        finally:
            source.close()  # also when the caller walks away
        if stops.stopped_by is None:
            yield from self._show(stops.feed(stream.flush()) + stops.flush())
        decode_s = time.perf_counter() - first
        self._close(source, Timing(first - begin, decode_s, len(self.prompt_tokens), len(self._made) - 1))

    def _show(self, piece: str) -> Iterator[str]:
        if piece:
            self._shown.append(piece)
            yield piece

    def _is_over(self, token: int, stops: StopMatcher) -> bool:
        if stops.stopped_by is not None:
            self._reason = "stop"
        elif token in self._text_side.tokenizer.eos_ids:
            self._reason = "eos"
        else:
            return len(self._made) >= self._params.max_tokens
        return True

    def _close(self, source: TokenSource, timing: Timing) -> None:
        self._timing = timing
        self._receipt = self._book.issue(
            outputs=self._outputs(),
            inputs={"prompt": np.asarray(self.prompt_tokens, np.int64)},
            ran=source.ran,
            sampling=_sampling_claim(self._params, len(self._made), source.settings),
            stream=stream_claim(token.to_bytes(8, "little") for token in self._made),
            nonce=self._nonce,
        )

    def _outputs(self) -> dict[str, Array]:
        text = np.frombuffer("".join(self._shown).encode(), np.uint8)
        return {"tokens": np.asarray(self._made, np.int64), "text": text}

    def _finish(self) -> None:
        for _ in self:
            pass


def _interrupted() -> EvaluationError:
    return EvaluationError("this generation failed before its end", next_step="Generate again")


def _sampling_claim(params: SamplingParams, num_tokens: int, settings: Mapping[str, Scalar]) -> Sampling:
    table: dict[str, Scalar] = {
        "temperature": float(params.temperature),
        "top_p": float(params.top_p),
        "top_k": params.top_k,
        "min_p": float(params.min_p),
        "max_tokens": params.max_tokens,
        "num_stops": len(params.stop),
        **settings,
    }
    # Philox is keyed by 64 bits without a sign; a receipt's integers have one.
    if params.seed < 1 << 63:
        return Sampling(params.seed, table, num_tokens, "asserted")
    return Sampling(None, {**table, "seed": str(params.seed)}, num_tokens, "asserted")
