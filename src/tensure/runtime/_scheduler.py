"""Which tokens each step computes: continuous batching, chunked prefill, preemption by page, shared prefixes.

Knows requests, their order of arrival, the pages they hold and the room in a step. Does not know how logits
are made or chosen: it is told which token a request goes on with.

One rule keeps every request moving: *those running are always the oldest of the living*. Requests are
admitted in order of arrival, none past another that waits, and when a page is wanting the youngest running
one gives up its own. So the oldest is admitted first, is never preempted, and gets at least one row of
every step; a step without it finished is one row nearer to its end. The price is that a request that waits
(for memory, or for its sibling's prompt) holds up those behind it.
"""

from __future__ import annotations

import operator
from array import array
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, SupportsIndex, TypeAlias

import numpy as np

from tensure.errors import InputError, LimitError

from ._pages import PageKey, PagePool
from ._step import CoreLimits, StepRows

__all__ = ["Request", "Scheduler"]

State: TypeAlias = Literal["waiting", "running", "finished"]


@dataclass(slots=True, eq=False)
class Request:
    """One sequence: its tokens, how many of them are stored, and the pages they are stored in.

    `ids` are the prompt's tokens and those made since; `num_computed` of them have keys and values in
    `pages`, of which the first `num_sealed` are full and offered to others.
    """

    ids: list[int]
    num_prompt: int
    max_tokens: int
    siblings: list[Request]
    state: State = "waiting"
    num_computed: int = 0
    num_sealed: int = 0
    has_prompt: bool = False
    pages: array[int] = field(default_factory=lambda: array("i"))
    keys: list[PageKey] = field(default_factory=list)

    @property
    def num_left(self) -> int:
        """Tokens that must be computed before the next one can be chosen; never 0 between steps."""
        return len(self.ids) - self.num_computed

    @property
    def num_made(self) -> int:
        """Tokens made since the prompt."""
        return len(self.ids) - self.num_prompt


class Scheduler:
    """Requests in, rows of a step out; then `commit` for each row's request, and `append` or `finish`.

    Args:
        limits: vocabulary and context of the core.
        pool: the pages, used by this scheduler alone.
        max_rows_per_step: rows that the core computes at once, at most.
        max_running: sequences in one step, at most; never more than rows, so that each running one gets its
            row.

    Raises:
        InputError: a setting is below 1.
    """

    def __init__(
        self, limits: CoreLimits, pool: PagePool, *, max_rows_per_step: int = 128, max_running: int = 64
    ) -> None:
        for name, size in (("max_rows_per_step", max_rows_per_step), ("max_running", max_running)):
            if size < 1:
                raise InputError(f"{name} is {size}", wanted="at least 1")
        self._limits = limits
        self.pool = pool
        self._max_rows = max_rows_per_step
        self._max_running = min(max_running, max_rows_per_step)
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []  # oldest first
        self._planned: dict[Request, int] = {}  # rows of the step that is planned and not committed
        self._room = 0
        self.num_preemptions = 0
        self.num_hit_tokens = 0

    # --- at the door --------------------------------------------------------------------------------

    def check(self, prompt: Sequence[SupportsIndex], max_tokens: int) -> list[int]:
        """The prompt as plain integers, if it can be served. Reads nothing that changes: any thread may ask.

        Raises:
            InputError: the prompt is empty, or an id is no integer or none of the vocabulary.
            LimitError: it cannot fit the context, or not even the whole cache.
        """
        if not len(prompt):
            raise InputError("the prompt holds no token", wanted="at least 1")
        num_all, context = len(prompt) + max_tokens, self._limits.context
        what = f"{len(prompt)} prompt tokens and up to {max_tokens} new ones"
        if num_all > context:
            raise LimitError(
                f"{what} make {num_all}",
                wanted=f"at most the context of {context}",
                next_step=_ask_less(context - len(prompt)),
            )
        # The last token is chosen and never computed.
        num_pages, page_tokens = self.pool.pages_for(num_all - 1), self.pool.page_tokens
        if num_pages > self.pool.num_pages:
            raise LimitError(
                f"{what} need {num_pages} pages of {page_tokens} tokens",
                wanted=f"at most the cache's {self.pool.num_pages}",
                next_step=_ask_less(self.pool.num_pages * page_tokens + 1 - len(prompt)),
            )
        return [_plain(item, at, self._limits.vocab) for at, item in enumerate(prompt)]

    def submit(self, ids: list[int], max_tokens: int, n: int = 1) -> list[Request]:
        """`n` requests for one prompt that `check` gave, at the end of the queue.

        The later ones wait until the first has computed the prompt, then share its full pages.
        """
        siblings: list[Request] = []
        siblings += [Request(list(ids), len(ids), max_tokens, siblings) for _ in range(n)]
        self.waiting += siblings
        return siblings

    # --- a step -------------------------------------------------------------------------------------

    def plan_step(self) -> StepRows | None:
        """The rows of the next step, None when no request is left; a plan that was not committed is replaced.

        First a row for each sequence that decodes, then pieces of prompts, both in order of arrival.
        """
        self._planned, self._room = {}, self._max_rows
        before = self.num_preemptions
        decoding = [request for request in self.running if request.num_left == 1]
        prefilling = [request for request in self.running if request.num_left > 1]
        for request in (*decoding, *prefilling):
            if request.state == "running":  # not preempted by an older one of this step
                self._plan(request)
        if self.num_preemptions == before:
            self._admit()
        return self._rows() if self._planned else None

    @property
    def planned(self) -> list[tuple[Request, bool]]:
        """The requests of the planned step in the order of its slots, and whether its logits are wanted."""
        return [(request, count == request.num_left) for request, count in self._planned.items()]

    def is_planned(self, request: Request) -> bool:
        """Whether the planned step has rows of this request that are not committed."""
        return request in self._planned

    def commit(self, request: Request) -> list[int]:
        """The core has computed the planned rows of this request; gives the pages this sealed.

        A request that is not committed is planned again, as if nothing had been computed.
        """
        request.num_computed += self._planned.pop(request)
        request.has_prompt = request.has_prompt or request.num_computed >= request.num_prompt
        num_full = request.num_computed // self.pool.page_tokens
        self.pool.extend_keys(request.keys, request.ids, num_full)
        sealed = []
        for at in range(request.num_sealed, num_full):
            own = request.pages[at]
            parent = request.pages[at - 1] if at else None
            request.pages[at] = self.pool.seal(own, request.keys[at], parent)
            if request.pages[at] == own and self.pool.is_sealed(own):
                sealed.append(own)
        request.num_sealed = num_full
        return sealed

    def append(self, request: Request, token: int) -> None:
        """The request goes on with this token; all before it must be committed."""
        request.ids.append(token)

    def finish(self, request: Request, *, distrust: bool = False) -> None:
        """End a request in any state and free its pages; with `distrust` nobody finds them again."""
        if request.state == "waiting":
            self.waiting.remove(request)
        elif request.state == "running":
            self.running.remove(request)
            self._planned.pop(request, None)
            if distrust:
                for page in request.pages:
                    self.pool.forget(page)
            self._drop_pages(request)
        request.state = "finished"

    def distrust(self, pages: Iterable[int]) -> list[Request]:
        """The contents of these pages are damaged: nobody finds them, and who holds one computes all of its
        own again. Gives the requests that do so; a token they have made stays made.
        """
        bad = set(pages)
        for page in bad:
            self.pool.forget(page)
        hit = [request for request in self.running if not bad.isdisjoint(request.pages)]
        for request in hit:
            self._planned.pop(request, None)
            self._drop_pages(request)
        return hit

    # --- rows and pages -----------------------------------------------------------------------------

    def _plan(self, request: Request) -> None:
        """Give the request as many rows as there is room and pages for; may be none for the youngest."""
        count = self._grow(request, min(request.num_left, self._room))
        if count > 0:
            self._planned[request] = count
            self._room -= count

    def _grow(self, request: Request, count: int) -> int:
        """See to pages for `count` more tokens, at need the youngest's; gives for how many there are."""
        num_pages = self.pool.pages_for(request.num_computed + count)
        while len(request.pages) < num_pages:
            page = self.pool.allocate()
            if page is not None:
                request.pages.append(page)
            elif self.running[-1] is not request:
                self._preempt(self.running[-1])
            else:
                break  # the youngest itself: it keeps what it has and waits for an older one to end
        return min(count, len(request.pages) * self.pool.page_tokens - request.num_computed)

    def _preempt(self, request: Request) -> None:
        """Back to the front of the queue, with its tokens and without its pages."""
        self.running.remove(request)
        self._room += self._planned.pop(request, 0)
        self._drop_pages(request)
        request.state = "waiting"
        self.waiting.appendleft(request)
        self.num_preemptions += 1

    def _drop_pages(self, request: Request) -> None:
        self.pool.release(request.pages)
        request.pages = array("i")
        request.num_computed = request.num_sealed = 0

    def _admit(self) -> None:
        """Take requests from the front of the queue while there is room for all that they hold now."""
        while self.waiting and self._room > 0 and len(self.running) < self._max_running:
            request = self.waiting[0]
            if _waits_for_sibling(request):
                break
            num_findable = self._num_findable(request)
            self.pool.extend_keys(request.keys, request.ids, num_findable)
            hits = self.pool.find(request.keys[:num_findable])
            if self.running and not self._has_memory(request, hits):
                break
            self.pool.share(hits)
            request.pages.extend(hits)
            request.num_sealed = len(hits)
            request.num_computed = len(hits) * self.pool.page_tokens
            self.num_hit_tokens += request.num_computed
            self.waiting.popleft()
            request.state = "running"
            self.running.append(request)
            self._plan(request)

    def _has_memory(self, request: Request, hits: list[int]) -> bool:
        """Whether this request is likely to run without a preemption; a guess, and nothing rests on it."""
        fresh = self.pool.pages_for(len(request.ids)) - len(hits)
        # A page for each that runs already, lest it has to preempt this one in the steps to come.
        return fresh <= self.pool.num_available - self.pool.num_idle_of(hits) - len(self.running)

    def _num_findable(self, request: Request) -> int:
        """Pages that may be taken from the cache: the last token is always computed, for its logits."""
        return (len(request.ids) - 1) // self.pool.page_tokens

    def _rows(self) -> StepRows:
        """The planned rows as arrays."""
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        wanted: list[int] = []
        width = max(len(request.pages) for request in self._planned)
        tables = np.full((len(self._planned), width), -1, np.int32)
        for slot, (request, count) in enumerate(self._planned.items()):
            start = request.num_computed
            tokens += request.ids[start : start + count]
            positions += range(start, start + count)
            slots += [slot] * count
            tables[slot, : len(request.pages)] = request.pages
            if count == request.num_left:
                wanted.append(len(tokens) - 1)
        return StepRows(
            np.array(tokens, np.int32),
            np.array(positions, np.int32),
            np.array(slots, np.int32),
            tables,
            np.array(wanted, np.int32),
        )

    # --- for tests ----------------------------------------------------------------------------------

    def check_state(self) -> None:
        """Compare requests and pages, between steps.

        Raises:
            AssertionError: a count of the pool is wrong, a page is shared that is not full for all its
                holders, or a request stands where it must not.
        """
        self.pool.check([request.pages for request in self.running])
        holder: dict[int, Request] = {}
        for request in self.running:
            if request.state != "running" or request.num_left < 1:
                raise AssertionError("a running request has nothing left to compute")
            if request.num_computed > len(request.pages) * self.pool.page_tokens:
                raise AssertionError("tokens are computed that no page holds")
            for at, page in enumerate(request.pages):
                other = holder.setdefault(page, request)
                num_full = min(request.num_computed, other.num_computed) // self.pool.page_tokens
                if other is not request and at >= num_full:
                    raise AssertionError(f"page {page} is shared before it is full")
        for request in self.waiting:
            if request.state != "waiting" or request.pages or request.num_computed:
                raise AssertionError("a waiting request holds pages")


def _waits_for_sibling(request: Request) -> bool:
    """Whether a sibling is computing the prompt that this one will find ready."""
    siblings = request.siblings
    return not any(s.has_prompt for s in siblings) and any(s.state == "running" for s in siblings)


def _plain(item: SupportsIndex, at: int, vocab: int) -> int:
    try:
        if isinstance(item, bool):
            raise TypeError
        token = operator.index(item)
    except TypeError:
        raise InputError(f"prompt token {at} is {item!r:.40}", wanted="an integer") from None
    if not 0 <= token < vocab:
        shown = token if token.bit_length() < 128 else f"an integer of {token.bit_length()} bits"
        raise InputError(f"prompt token {at} is {shown}", wanted=f"an id from 0 to {vocab - 1}")
    return token


def _ask_less(room: int) -> str:
    return f"Ask for at most {room} new tokens" if room > 0 else "Shorten the prompt"
