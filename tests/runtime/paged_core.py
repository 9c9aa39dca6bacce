"""A decoder core that is nothing but its cache; what a stream is alone; and runs that compare the two.

A cell of the cache holds a token, its position and a number made of every token up to it, as real keys and
values depend on the whole chain. Whoever reads a cell that was never written, or was written by another
sequence, is told so at once; logits come from that number, so that a wrong chain gives wrong tokens as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tensure.errors import LimitError
from tensure.runtime import BetweenSteps, DecoderCore, Engine, StepRows, Stream
from tensure.text import Sampler, SamplingParams

VOCAB = 24
CONTEXT = 48
UNWRITTEN = (-1, -1, -1)
Cell = tuple[int, int, int]


class CacheError(AssertionError):
    """A row read or wrote where it must not."""


def next_link(link: int, token: int) -> int:
    """The number of a chain, one token longer."""
    return (link * 6364136223846793005 + token + 1442695040888963407) % (1 << 64)


def logits_of(link: int) -> NDArray[np.float32]:
    """The logits [VOCAB] after a chain."""
    digest = hashlib.blake2b(link.to_bytes(8, "little"), digest_size=2 * VOCAB).digest()
    return np.frombuffer(digest, "<u2").astype(np.float32) / np.float32(8192)


class PagedCore:
    """Computes steps and trusts nobody."""

    def __init__(self, num_pages: int, page_tokens: int, vocab: int = VOCAB, context: int = CONTEXT) -> None:
        self.vocab, self.context = vocab, context
        self.num_pages, self.page_tokens = num_pages, page_tokens
        self.cells: list[Cell] = [UNWRITTEN] * (num_pages * page_tokens)
        self.poison: set[int] = set()  # a chain that ends in one of these numbers has a NaN in its logits
        self.failures = 0  # so many steps raise after half of their work
        self.num_rows = 0
        self._logits = np.empty((0, vocab), np.float32)

    def step(self, rows: StepRows) -> NDArray[np.float32]:
        """The logits of the wanted rows."""
        size = rows.num_rows
        assert [a.dtype for a in (rows.tokens, rows.positions, rows.slots, rows.tables, rows.wanted)] == [
            np.dtype(np.int32)
        ] * 5
        assert size > 0 and len(rows.positions) == len(rows.slots) == size
        assert (np.diff(rows.wanted) > 0).all()
        self.num_rows += size
        links: dict[int, int] = {}
        starts = [0, *(np.flatnonzero(np.diff(rows.slots)) + 1).tolist(), size]
        if len(starts) - 1 != len(rows.tables) or set(rows.slots.tolist()) != set(range(len(rows.tables))):
            raise CacheError("the rows of a slot do not stand together")
        self._check_pages(rows)
        for begin, end in zip(starts, starts[1:], strict=False):
            if self.failures and 2 * begin >= size:
                break
            self._compute(rows, begin, end, links)
        if self.failures:
            self.failures -= 1
            raise RuntimeError("a bit fell over")
        self._logits.fill(np.nan)  # a result lasts until the next call
        self._logits = np.empty((len(rows.wanted), self.vocab), np.float32)
        for logits_V, row in zip(self._logits, rows.wanted.tolist(), strict=True):
            logits_V[:] = logits_of(links[row])
            if links[row] in self.poison:
                logits_V[7] = np.nan
        return self._logits

    def _check_pages(self, rows: StepRows) -> None:
        """What is written is written by one slot, and read by no other."""
        readers: dict[int, set[int]] = {}
        for slot, table in enumerate(rows.tables.tolist()):
            for page in table:
                readers.setdefault(page, set()).add(slot)
        for slot, position in zip(rows.slots.tolist(), rows.positions.tolist(), strict=True):
            page = int(rows.tables[slot, position // self.page_tokens])
            if not 0 <= page < self.num_pages:
                raise CacheError(f"position {position} has no page")
            if readers[page] != {slot}:
                raise CacheError(f"page {page} is written by slot {slot} and read by {readers[page]}")

    def _compute(self, rows: StepRows, begin: int, end: int, links: dict[int, int]) -> None:
        table = rows.tables[rows.slots[begin]].tolist()
        first = int(rows.positions[begin])
        link = 0
        for position in range(first):
            token, where, stored = self.cells[self._cell(table, position)]
            link = next_link(link, token)
            if where != position or stored != link:
                raise CacheError(f"position {position} holds what another sequence or nobody wrote")
        for row in range(begin, end):
            position, token = int(rows.positions[row]), int(rows.tokens[row])
            if position != first + row - begin:
                raise CacheError("the rows of a sequence are not in order")
            link = links[row] = next_link(link, token)
            self.cells[self._cell(table, position)] = (token, position, link)

    def _cell(self, table: Sequence[int], position: int) -> int:
        page = table[position // self.page_tokens]
        if not 0 <= page < self.num_pages:
            raise CacheError(f"position {position} has no page")
        return page * self.page_tokens + position % self.page_tokens

    def page(self, page: int) -> tuple[Cell, ...]:
        """The contents of a page."""
        return tuple(self.cells[page * self.page_tokens : (page + 1) * self.page_tokens])


def alone(
    prompt: Sequence[int], params: SamplingParams, eos_ids: frozenset[int] = frozenset()
) -> tuple[tuple[int, ...], tuple[bytes, ...], str]:
    """Tokens, bits of the logits and reason of the end, from the chain itself."""
    link = 0
    for token in prompt:
        link = next_link(link, token)
    sampler = Sampler(params)
    made: list[int] = []
    bits: list[bytes] = []
    while True:
        logits = logits_of(link)
        bits.append(logits.tobytes())
        made.append(sampler.next(logits))
        if made[-1] in eos_ids:
            return tuple(made), tuple(bits), "eos"
        if len(made) == params.max_tokens:
            return tuple(made), tuple(bits), "length"
        link = next_link(link, made[-1])


@dataclass(frozen=True)
class Job:
    """One submission: when, what, and perhaps when it is cancelled."""

    at: int
    prompt: tuple[int, ...]
    params: SamplingParams
    n: int = 1
    eos_ids: frozenset[int] = frozenset()
    cancel_after: int | None = None  # steps after the submission


@dataclass(frozen=True)
class Scenario:
    """A core, an engine and what happens to it."""

    num_pages: int
    page_tokens: int
    max_rows: int
    max_running: int
    jobs: tuple[Job, ...]
    is_eager: bool = False  # admit whatever memory there is, so that preemptions abound
    preempt_at: frozenset[int] = frozenset()  # steps before which the youngest is preempted for no reason
    damage_at: frozenset[int] = frozenset()  # steps before which a page is overwritten and distrusted


@dataclass
class Outcome:
    """What a run did, beside being right."""

    steps: int = 0
    refused: int = 0
    preemptions: int = 0
    hit_tokens: int = 0
    evictions: int = 0
    cancelled: int = 0
    streams: list[Stream] = field(default_factory=list)


Alone = Callable[
    [Sequence[int], SamplingParams, frozenset[int]], tuple[tuple[int, ...], tuple[bytes, ...], str]
]


def simulate(
    scenario: Scenario,
    make_core: Callable[[int, int], DecoderCore] = PagedCore,
    answer_alone: Alone = alone,
) -> Outcome:
    """Run a scenario and check, after each step and at the end, all that an engine promises.

    Args:
        make_core: from a number of pages and their size, the core; another than PagedCore has a vocabulary of
            VOCAB at least, and its pages are not damaged.
        answer_alone: tokens, bits of the logits and reason of the end of one sequence that nothing disturbs.

    Raises:
        AssertionError: it broke a promise (`CacheError`: to the core).
    """
    core = make_core(scenario.num_pages, scenario.page_tokens)
    engine = Engine(
        core,
        salt=b"test",
        max_rows_per_step=scenario.max_rows,
        max_running=scenario.max_running,
        on_step=[PageWatch(core)] if isinstance(core, PagedCore) else [],
    )
    scheduler = engine._scheduler
    if scenario.is_eager:
        scheduler._has_memory = lambda request, hits: True  # type: ignore[method-assign]
    outcome = Outcome()
    alive: list[tuple[Job, Stream]] = []
    cancels: dict[Stream, int] = {}
    # Each step without an idle engine brings the oldest one row nearer to its end.
    bound = 0
    jobs = sorted(scenario.jobs, key=lambda job: job.at)
    clock = 0
    while jobs or engine.stats.running or engine.stats.waiting:
        while jobs and jobs[0].at <= clock:
            job = jobs.pop(0)
            longest = len(job.prompt) + job.params.max_tokens
            fits = longest <= core.context and longest - 1 <= scenario.num_pages * scenario.page_tokens
            try:
                streams = engine.submit(job.prompt, job.params, job.n, eos_ids=job.eos_ids, keep_logits=True)
            except LimitError:
                assert not fits, "refused what fits"
                outcome.refused += 1
                continue
            assert fits, "took what cannot fit"
            bound += job.n * longest
            alive += [(job, stream) for stream in streams]
            outcome.streams += streams
        for job, stream in alive:
            if job.cancel_after is not None and clock >= job.at + job.cancel_after and stream not in cancels:
                engine.cancel(stream)
                cancels[stream] = clock
        if clock in scenario.preempt_at and len(scheduler.running) > 1:
            scheduler._preempt(scheduler.running[-1])
        if clock in scenario.damage_at and isinstance(core, PagedCore):
            page = clock * 7 % scenario.num_pages
            first = page * scenario.page_tokens
            core.cells[first : first + scenario.page_tokens] = [(5, 5, 5)] * scenario.page_tokens
            bound += CONTEXT * len(engine.distrust([page]))
        arrival = {id(stream): at for at, stream in enumerate(outcome.streams)}
        if engine.step():
            outcome.steps += 1
        assert outcome.steps <= bound, "somebody starves"
        scheduler.check_state()
        order = [arrival[id(engine._streams[r])] for r in (*scheduler.running, *scheduler.waiting)]
        assert order == sorted(order), "those running are not the oldest"
        for stream, when in cancels.items():
            assert stream.finish_reason is not None or clock <= when, "a cancel took more than 2 steps"
        clock += 1
    engine.run()
    engine.pool.check([])
    assert engine.pool.num_held == 0, "a page is held by nobody alive"
    for job, stream in alive:
        params = SamplingParams(
            temperature=job.params.temperature,
            max_tokens=job.params.max_tokens,
            seed=job.params.seed + stream.index,
        )
        tokens, bits, reason = answer_alone(job.prompt, params, job.eos_ids)
        count = len(stream.tokens)
        if stream.finish_reason == "cancelled":
            outcome.cancelled += 1
        else:
            assert stream.finish_reason == reason and count == len(tokens), stream.error
        assert stream.tokens == tokens[:count], "another answer than alone"
        assert tuple(logits.tobytes() for logits in stream.logits) == bits[:count], "other logits than alone"
        assert stream.finish_reason == "cancelled" or list(stream) == list(tokens)
    stats = engine.stats
    outcome.preemptions, outcome.hit_tokens = stats.preemptions, stats.prefix_hit_tokens
    outcome.evictions = stats.evictions
    assert not isinstance(core, PagedCore) or stats.computed_tokens == core.num_rows
    return outcome


class PageWatch:
    """A hook that keeps the contents of sealed pages and compares them after every step."""

    def __init__(self, core: PagedCore) -> None:
        self.core = core
        self.kept: dict[int, tuple[bytes, tuple[Cell, ...]]] = {}

    def changed(self, state: BetweenSteps) -> list[int]:
        """The sealed pages that are not what they were when they were sealed."""
        for page in state.sealed:
            self.kept.pop(page, None)
        changed = []
        for page, digest in state.pages().items():
            now = (digest, self.core.page(page))
            if self.kept.setdefault(page, now)[0] != digest:
                raise AssertionError(f"page {page} was sealed again and not announced")
            if self.kept[page] != now:
                changed.append(page)
        return changed

    def __call__(self, state: BetweenSteps) -> None:
        changed = self.changed(state)
        if changed:
            raise CacheError(f"pages {changed} were written after they were full")
