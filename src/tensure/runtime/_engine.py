"""Many sequences over one decoder core: submit, step, cancel, and look between the steps.

Knows the order of a decode loop: let in, plan, compute, choose, show, look. Does not know how rows are chosen
(`_scheduler.py`), pages kept (`_pages.py`) or logits made (a `DecoderCore`); nor text: stop strings are
found by the caller's `watch`.

A token depends on its own sequence alone: the core's bits do not depend on what else a step holds, and each
stream draws from a random stream of its own. So tokens are the same whoever else is served, however prompts
are cut, and whatever was preempted, shared or cancelled meanwhile.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import SupportsIndex, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tensure.errors import EvaluationError, InputError, LimitError
from tensure.text import SamplingParams

from ._pages import PagePool
from ._scheduler import Request, Scheduler
from ._step import DecoderCore, StepRows
from ._stream import EndReason, Stream, Watch

__all__ = ["BetweenSteps", "Engine", "EngineStats", "StepHook"]

MAX_SIBLINGS = 128


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counts for a metrics page. Now: running to rows; since the engine was made: the others.

    `pages_used` are held by running sequences, `pages_cached` wait to be found or evicted. `rows` are those
    of the last step. `prefix_hit_tokens` were found in the cache instead of computed, after a preemption
    too.
    """

    running: int
    waiting: int
    pages_used: int
    pages_cached: int
    pages_free: int
    rows: int
    steps: int
    computed_tokens: int
    prefix_hit_tokens: int
    made_tokens: int
    preemptions: int
    evictions: int


@dataclass(frozen=True, slots=True, eq=False)
class BetweenSteps:
    """What a hook sees after a step: its number, its rows, and the pages that became full and final in it.

    A page in `sealed` is not written again until it is evicted: the time to hash it. `pages()` gives every
    such page with the digest of its chain of tokens, for checks in turn; a page that is missing there was
    evicted. `Engine.distrust` is what to do about a page whose hash has changed.
    """

    engine: Engine
    number: int
    rows: StepRows
    sealed: tuple[int, ...]

    def pages(self) -> dict[int, bytes]:
        """Every page that is full and final, with the digest of the tokens up to its end."""
        return self.engine.pool.sealed_pages()


StepHook: TypeAlias = Callable[[BetweenSteps], None]


class Engine:
    """Continuous batching over one core.

    Any thread may submit, cancel, step or iterate a stream; steps run one at a time, under one lock. Nobody
    need call `step`: a stream that is iterated runs the steps it needs, and those serve the other streams
    as well.

    Args:
        core: computes the rows; used by this engine alone.
        salt: what cached pages depend on beside tokens: the model's digest, its mode of arithmetic.
        max_rows_per_step: rows of one step, decoding and prompts together: bounds the time of a step.
        max_running: sequences in one step.
        max_waiting: sequences that may queue.
        on_step: the first of `between_steps`.

    `between_steps` is a list of callables, each called with a `BetweenSteps` after every step and before the
    next: a scrub step, page hashes, metrics. They run under the lock and their time is added to the step's.
    When one raises, the others still run, and its error comes out of that `step`; the step's tokens stand,
    and further steps may run.
    """

    def __init__(
        self,
        core: DecoderCore,
        *,
        salt: bytes,
        max_rows_per_step: int = 128,
        max_running: int = 64,
        max_waiting: int = 1024,
        on_step: Iterable[StepHook] = (),
    ) -> None:
        self._core = core
        self.pool = PagePool(core.num_pages, core.page_tokens, salt)
        self._scheduler = Scheduler(
            core, self.pool, max_rows_per_step=max_rows_per_step, max_running=max_running
        )
        self._max_waiting = max_waiting
        self.between_steps: list[StepHook] = list(on_step)
        self._lock = threading.RLock()
        self._is_inside = False
        # Filled without the lock, so that nobody who submits or cancels waits for a step to end.
        self._arrivals: deque[tuple[list[int], tuple[Stream, ...]]] = deque()
        self._cancelled: deque[Stream] = deque()
        self._streams: dict[Request, Stream] = {}
        self._requests: dict[Stream, Request] = {}
        self._sealed: list[int] = []  # not told to the hooks yet
        self._num_steps = self._num_rows = self._num_computed = self._num_made = 0

    # --- at the door --------------------------------------------------------------------------------

    def submit(
        self,
        prompt_ids: Sequence[SupportsIndex],
        params: SamplingParams,
        n: int = 1,
        *,
        eos_ids: Collection[int] = (),
        watch: Watch | None = None,
        keep_logits: bool = False,
    ) -> list[Stream]:
        """`n` streams for one prompt, stream i with seed + i; refused here, before any work, or not at all.

        Args:
            prompt_ids: token ids.
            params: how to choose; `stop` is for `watch` to find, since text is not known here.
            n: how many answers; their prompt is computed once.
            eos_ids: tokens that end a stream.
            watch: asked after each token whether the stream is over (`stop`); when it raises, its stream ends
                with that error and the others go on.
            keep_logits: keep the logits of every token in `Stream.logits`.

        Raises:
            InputError: the prompt is empty or holds an unknown id; `n` is out of range; stop strings
                without a `watch` that could find them.
            LimitError: the context or the cache is too small for it, the queue is full, or a seed too large.
        """
        if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= MAX_SIBLINGS:
            raise InputError(f"n is {n!r:.40}", wanted=f"an integer from 1 to {MAX_SIBLINGS}")
        if params.stop and watch is None:
            raise InputError(
                f"{len(params.stop)} stop strings and nothing that finds them",
                wanted="a watch",
                next_step="Pass watch=, or leave stop empty",
            )
        ids = self._scheduler.check(prompt_ids, params.max_tokens)
        # Counted without the lock: threads that submit at once may pass the bound by what they bring.
        queued = self.stats.waiting
        if queued + n > self._max_waiting:
            raise LimitError(
                f"{queued} sequences wait already and {n} more are asked for",
                wanted=f"at most {self._max_waiting}",
                next_step="Try again when some have ended",
            )
        streams = [
            Stream(
                index=index,
                prompt=tuple(ids),
                params=replace(params, seed=params.seed + index),
                eos_ids=frozenset(eos_ids),
                watch=watch,
                keep_logits=keep_logits,
                advance=self._advance,
            )
            for index in range(n)
        ]
        self._arrivals.append((ids, tuple(streams)))  # the list is the caller's
        return streams

    def cancel(self, stream: Stream) -> None:
        """End a stream with reason "cancelled": no token comes after the step that runs now.

        Its pages are freed by the end of that step, or at the begin of the next. A stream that has ended
        stays as it is.

        Raises:
            InputError: the stream is another engine's.
        """
        if not stream.is_advanced_by(self._advance):
            raise InputError("the stream is another engine's", next_step="Cancel it where it was submitted")
        self._cancelled.append(stream)
        stream.cancel_requested = True  # after it stands in the queue: who sees the flag finds it there

    def distrust(self, pages: Iterable[int]) -> list[Stream]:
        """The contents of these pages are damaged (a hash has changed): nobody finds them in the cache any
        more, and each running stream that reads one computes all of its keys and values again.

        Gives those streams: tokens that they made since the damage were made from it, and stand.
        """
        with self._lock:
            return [self._streams[request] for request in self._scheduler.distrust(pages)]

    @property
    def stats(self) -> EngineStats:
        """The counts now; taken without the lock, so that they may lie a step apart."""
        arriving = sum(len(streams) for _, streams in tuple(self._arrivals))
        idle, held = self.pool.num_idle, self.pool.num_held
        return EngineStats(
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting) + arriving,
            pages_used=held,
            pages_cached=idle,
            pages_free=self.pool.num_pages - held - idle,
            rows=self._num_rows,
            steps=self._num_steps,
            computed_tokens=self._num_computed,
            prefix_hit_tokens=self._scheduler.num_hit_tokens,
            made_tokens=self._num_made,
            preemptions=self._scheduler.num_preemptions,
            evictions=self.pool.evictions,
        )

    # --- the loop -----------------------------------------------------------------------------------

    def run(self) -> None:
        """Steps until no stream is left."""
        while self.step():
            pass

    def step(self) -> bool:
        """One step; False when there was nothing to compute.

        Raises:
            EvaluationError: the core gave something else than logits [Q, V].
            Exception: whatever the core or a hook raised. After the core, nothing of the step has happened,
                and the next step computes it again.
        """
        with self._lock:
            if self._is_inside:
                raise InputError(
                    "a step was asked for from inside a step",
                    next_step="In a watch or a hook neither step nor iterate a stream",
                )
            self._is_inside = True
            try:
                return self._step()
            finally:
                self._is_inside = False

    def _step(self) -> bool:
        self._let_in()
        self._let_go()
        rows = self._scheduler.plan_step()
        if rows is None:
            return False
        logits_QV = self._compute(rows)
        self._deliver(logits_QV)
        self._let_go()
        self._num_steps += 1
        self._num_rows = rows.num_rows
        self._num_computed += rows.num_rows
        self._look(rows)
        return True

    def _let_in(self) -> None:
        """Queue what was submitted since the last step."""
        while self._arrivals:
            ids, streams = self._arrivals[0]
            requests = self._scheduler.submit(ids, streams[0].params.max_tokens, len(streams))
            self._streams.update(zip(requests, streams, strict=True))
            self._requests.update(zip(streams, requests, strict=True))
            self._arrivals.popleft()

    def _let_go(self) -> None:
        """End what was cancelled."""
        for _ in range(len(self._cancelled)):
            stream = self._cancelled.popleft()
            if stream in self._requests:
                self._end(stream, "cancelled")
            elif stream.finish_reason is None:
                self._cancelled.append(stream)  # submitted since the step began: ended by the next

    def _compute(self, rows: StepRows) -> NDArray[np.float32]:
        logits_QV = self._core.step(rows)
        wanted = (len(rows.wanted), self._core.vocab)
        if logits_QV.shape != wanted or logits_QV.dtype != np.float32:
            raise EvaluationError(
                f"the core gave {logits_QV.dtype} {list(logits_QV.shape)}", wanted=f"float32 {list(wanted)}"
            )
        return logits_QV

    def _deliver(self, logits_QV: NDArray[np.float32]) -> None:
        """Take over what the core computed, request by request.

        A token is chosen before its request is committed: what interrupts the choice leaves the request to be
        planned again.
        """
        row = iter(logits_QV)
        for request, is_wanted in self._scheduler.planned:
            logits_V = next(row) if is_wanted else None
            if not self._scheduler.is_planned(request):
                continue  # a watch of this step distrusts its pages
            stream = self._streams[request]
            if stream.cancel_requested:
                self._end(stream, "cancelled")
                continue
            token = None
            if logits_V is not None:
                try:
                    token = stream.choose(logits_V)
                except EvaluationError as error:
                    # Its keys and values may be what is not finite: nobody shall find them.
                    self._end(stream, "error", error)
                    continue
            self._sealed += self._scheduler.commit(request)
            if token is not None:
                self._go_on(request, stream, token)

    def _go_on(self, request: Request, stream: Stream, token: int) -> None:
        """Hand a token to its request and its stream, and end both when it was the last."""
        self._scheduler.append(request, token)
        self._num_made += 1
        try:
            reason = stream.take(token)
        except BaseException as error:
            self._end(stream, "error", error)
            if not isinstance(error, Exception):
                raise  # an interrupt; streams that are not committed yet are planned again
            return
        if reason is not None:
            self._end(stream, reason)

    def _end(self, stream: Stream, reason: EndReason, error: BaseException | None = None) -> None:
        request = self._requests.pop(stream)
        del self._streams[request]
        self._scheduler.finish(request, distrust=isinstance(error, EvaluationError))
        stream.end(reason, error)

    def _look(self, rows: StepRows) -> None:
        """Call the hooks, every one in order, also when one before it raises."""
        sealed = tuple(page for page in self._sealed if self.pool.is_sealed(page))
        self._sealed.clear()
        state = BetweenSteps(self, self._num_steps, rows, sealed)
        with ExitStack() as stack:
            for hook in reversed(self.between_steps):
                stack.callback(hook, state)

    def _advance(self, stream: Stream) -> None:
        """Run a step for a stream that has no token, unless another thread has done so meanwhile."""
        with self._lock:
            if not stream.has_news and not self.step() and not stream.has_news:
                raise AssertionError("a stream goes on and no step serves it")
