"""One sequence being made: iterate it for tokens, whoever runs the steps.

Knows the tokens that have come, the sampler that chooses them and why they ended. Does not know other
streams, pages or steps; a stream that has no token asks its engine for one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tensure.errors import EvaluationError
from tensure.text import Sampler, SamplingParams

__all__ = ["EndReason", "Stream", "Watch"]

EndReason: TypeAlias = Literal["eos", "stop", "length", "cancelled", "error"]

Watch: TypeAlias = "Callable[[Stream, int], EndReason | None]"
"""Called with a stream and its new token, within the step; what it gives ends the stream after that token."""


class Stream(Iterator[int]):
    """The tokens of one sequence. Several threads may iterate it: each token goes to one of them.

    Iterating gives the tokens as they come, the end token included, and raises `error` at the end of a stream
    that has one. `tokens`, `finish_reason` and `logits` tell what is known now and run nothing.
    """

    def __init__(
        self,
        *,
        index: int,
        prompt: tuple[int, ...],
        params: SamplingParams,
        eos_ids: frozenset[int],
        watch: Watch | None,
        keep_logits: bool,
        advance: Callable[[Stream], None],
    ) -> None:
        self.index = index
        self.prompt = prompt
        self.params = params
        self.error: BaseException | None = None
        self._sampler = Sampler(params)
        self._eos_ids = eos_ids
        self._watch = watch
        self._logits: list[NDArray[np.float32]] | None = [] if keep_logits else None
        self._advance = advance
        self._made: list[int] = []
        self._logprobs: list[float] = []
        self._fresh: deque[int] = deque()
        self._reason: EndReason | None = None
        self.cancel_requested = False

    def __next__(self) -> int:
        while True:
            # Asked before looking: what was made before the end is then in the queue.
            is_over = self._reason is not None
            try:
                return self._fresh.popleft()
            except IndexError:
                pass
            if is_over:
                if self.error is not None:
                    raise self.error
                raise StopIteration
            self._advance(self)

    @property
    def tokens(self) -> tuple[int, ...]:
        """The tokens made so far."""
        return tuple(self._made)

    @property
    def logprobs(self) -> tuple[float, ...]:
        """Natural log-probability of each token under the model's own, unfiltered distribution."""
        return tuple(self._logprobs)

    @property
    def finish_reason(self) -> EndReason | None:
        """Why it ended; None while it goes on."""
        return self._reason

    @property
    def logits(self) -> tuple[NDArray[np.float32], ...]:
        """The logits [V] that each token was chosen from; the last may be those that were refused.

        Empty unless the stream was submitted with `keep_logits`.
        """
        return tuple(self._logits or ())

    @property
    def has_news(self) -> bool:
        """Whether iterating would give something, or end, without a step."""
        return bool(self._fresh) or self._reason is not None

    def is_advanced_by(self, advance: Callable[[Stream], None]) -> bool:
        """Whether this is what makes its tokens."""
        return self._advance == advance

    # --- for the engine -----------------------------------------------------------------------------

    def choose(self, logits_V: NDArray[np.float32]) -> int:
        """The next token.

        Raises:
            EvaluationError: a logit is not finite; it names the stream and the token that could not be made.
        """
        if self._logits is not None:
            self._logits.append(logits_V.copy())
        finite_V = np.isfinite(logits_V)
        if not finite_V.all():
            bad = int(np.argmin(finite_V))
            raise EvaluationError(
                f"the logit of id {bad} is {logits_V[bad]}",
                file=f"stream {self.index}",
                place=f"token {len(self._made)}",
                wanted="finite logits",
                next_step="Submit it again; if that fails at the same token, check the weights",
            )
        return self._sampler.next(logits_V)

    def take(self, token: int) -> EndReason | None:
        """Note a token that was chosen, ask whether the sequence is over, and only then show the token.

        Raises:
            Exception: whatever the caller's `watch` raised.
        """
        self._made.append(token)
        if self._sampler.last is not None:
            self._logprobs.append(self._sampler.last.logprob)
        try:
            reason = self._watch(self, token) if self._watch is not None else None
        finally:
            self._fresh.append(token)
        if reason is None and token in self._eos_ids:
            reason = "eos"
        if reason is None and len(self._made) >= self.params.max_tokens:
            reason = "length"
        return reason

    def end(self, reason: EndReason, error: BaseException | None = None) -> None:
        """No token comes after those that have come."""
        self.error = error
        self._reason = reason
