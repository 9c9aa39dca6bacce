"""One answer in the making: iterate it for pieces of text, then read its tokens and its receipt.

Knows how tokens become text and when it ends. Does not know where tokens come from (`_tokens.py`) nor how
what was made is signed (`_receipt_book.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self, TypeAlias

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

    `text`, `tokens`, `finish_reason`, `receipt` and `timing` make whatever is left to make, then answer; once
    making it has failed they raise. A generation that is closed, or that nobody holds any more, makes no
    further token. The receipt is for `tokens` (i64, the end token included) and `text` (u8, its UTF-8
    bytes), its stream claim for the tokens one by one as 8 little-endian bytes each.
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
        self._answer = _Answer(self.prompt_tokens, params, text_side, book, nonce)
        self._steps = self._answer.steps(start)

    def __next__(self) -> str:
        return next(self._steps)

    def close(self) -> None:
        """Make no further token; what was made stays, without a receipt."""
        self._steps.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def text(self) -> str:
        """The whole answer, without end token and stop string."""
        return "".join(self._whole().shown)

    @property
    def tokens(self) -> tuple[int, ...]:
        """Every token that was made, the end token included."""
        return tuple(self._whole().made)

    @property
    def finish_reason(self) -> FinishReason:
        """`eos`: the model ended its turn; `stop`: a stop string came; `length`: max_tokens were made."""
        return self._whole().reason

    @property
    def receipt(self) -> SignedReceipt:
        """The receipt, signed once, at the end."""
        receipt = self._whole().receipt
        assert receipt is not None
        return receipt

    @property
    def timing(self) -> Timing:
        """How long it took."""
        timing = self._whole().timing
        assert timing is not None
        return timing

    @property
    def outputs(self) -> dict[str, Array]:
        """The output tensors that the receipt is for: `tokens` and `text`."""
        return self._whole().outputs()

    def _whole(self) -> _Answer:
        for _ in self:
            pass
        if self._answer.receipt is None:
            raise _interrupted()
        return self._answer


class _Answer:
    """What is made of an answer so far. It does not know its Generation, so that nobody keeps that alive."""

    def __init__(
        self,
        prompt: tuple[int, ...],
        params: SamplingParams,
        text_side: TextSide,
        book: ReceiptBook,
        nonce: str | None,
    ) -> None:
        self._prompt = prompt
        self._params = params
        self._text_side = text_side
        self._book = book
        self._nonce = nonce
        self.made: list[int] = []
        self.shown: list[str] = []
        self.reason: FinishReason = "length"
        self.receipt: SignedReceipt | None = None
        self.timing: Timing | None = None

    def steps(self, start: Callable[[], TokenSource]) -> Generator[str, None, None]:
        """Take a token, show what it adds, see whether that was all."""
        stream = self._text_side.tokenizer.stream()
        stops = StopMatcher(self._params.stop)
        source = start()
        begin = time.perf_counter()
        first = begin
        try:
            for token in source:
                if not self.made:
                    first = time.perf_counter()
                self.made.append(token)
                yield from self._show(stops.feed(stream.push(token)))
                if self._is_over(token, stops):
                    break
        finally:
            source.close()  # also when the caller walks away
        if stops.stopped_by is None:
            yield from self._show(stops.feed(stream.flush()) + stops.flush())
        decode_s = time.perf_counter() - first
        self._close(source, Timing(first - begin, decode_s, len(self._prompt), len(self.made) - 1))

    def outputs(self) -> dict[str, Array]:
        text = np.frombuffer("".join(self.shown).encode(), np.uint8)
        return {"tokens": np.asarray(self.made, np.int64), "text": text}

    def _show(self, piece: str) -> Iterator[str]:
        if piece:
            self.shown.append(piece)
            yield piece

    def _is_over(self, token: int, stops: StopMatcher) -> bool:
        if stops.stopped_by is not None:
            self.reason = "stop"
        elif token in self._text_side.tokenizer.eos_ids:
            self.reason = "eos"
        else:
            return len(self.made) >= self._params.max_tokens
        return True

    def _close(self, source: TokenSource, timing: Timing) -> None:
        self.timing = timing
        self.receipt = self._book.issue(
            outputs=self.outputs(),
            inputs={"prompt": np.asarray(self._prompt, np.int64)},
            ran=source.ran,
            sampling=_sampling_claim(self._params, len(self.made), source.settings),
            stream=stream_claim(token.to_bytes(8, "little") for token in self.made),
            nonce=self._nonce,
        )


def _interrupted() -> EvaluationError:
    return EvaluationError("this generation failed before its end, or was closed", next_step="Generate again")


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
