"""Whatever else is served, every stream is what it is alone; and planted faults turn that red."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from tensure.runtime import StepRows, Stream, _engine, _pages, _scheduler
from tensure.text import Sampler, SamplingParams

from .paged_core import CONTEXT, VOCAB, Job, Outcome, Scenario, simulate

BASES = (
    tuple(random.Random(1).choices(range(VOCAB), k=CONTEXT)),
    tuple(random.Random(2).choices(range(VOCAB), k=CONTEXT)),
)


@st.composite
def jobs(draw: st.DrawFn) -> Job:
    """Prompts that share beginnings, in part or in full, now and then one too long."""
    base = draw(st.sampled_from(BASES))
    shared = draw(st.integers(0, 14))
    own = draw(st.lists(st.integers(0, VOCAB - 1), min_size=0 if shared else 1, max_size=8))
    return Job(
        at=draw(st.integers(0, 20)),
        prompt=(*base[:shared], *own),
        params=SamplingParams(
            temperature=draw(st.sampled_from([0.0, 1.0])),
            seed=draw(st.integers(0, 5)),
            max_tokens=draw(st.integers(1, 30)),
        ),
        n=draw(st.sampled_from([1, 1, 1, 2, 3])),
        eos_ids=draw(st.sampled_from([frozenset[int](), frozenset({3})])),
        cancel_after=draw(st.sampled_from([None, None, None, 0, 1, 3, 9])),
    )


SCENARIOS = st.builds(
    Scenario,
    num_pages=st.integers(2, 24),
    page_tokens=st.integers(1, 5),
    max_rows=st.integers(1, 64),
    max_running=st.integers(1, 8),
    jobs=st.lists(jobs(), min_size=1, max_size=9).map(tuple),
    is_eager=st.booleans(),
    preempt_at=st.frozensets(st.integers(1, 60), max_size=5),
    damage_at=st.frozensets(st.integers(1, 60), max_size=3),
)


@settings(max_examples=max(250, settings.default.max_examples if settings.default else 0))
@given(SCENARIOS)
def test_every_stream_is_what_it_is_alone(scenario: Scenario) -> None:
    outcome = simulate(scenario)
    event(f"preemptions: {min(outcome.preemptions, 3)}")
    event(f"prefix hits: {outcome.hit_tokens > 0}")


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("max_rows", [1, 3, 7, 64])
def test_batch_and_chunking_change_nothing(batch: int, max_rows: int) -> None:
    params = SamplingParams(temperature=1.0, max_tokens=12)
    jobs = [Job(at=0, prompt=BASES[at % 2][at:30], params=params) for at in range(8)]
    simulate(Scenario(100, 4, max_rows, batch, tuple(jobs)))


# --- a fixed set of scenarios, known to do all that can be done ---------------------------------------------


def drawn(seed: int) -> Scenario:
    """A scenario with pressure on its pages."""
    rng = random.Random(seed)
    page_tokens = rng.randint(1, 5)

    def job() -> Job:
        shared = rng.randint(1, 12)
        own = rng.choices(range(VOCAB), k=rng.choice([0, 0, 3, 6]))
        params = SamplingParams(
            temperature=rng.choice([0.0, 1.0]), seed=rng.randint(0, 5), max_tokens=rng.randint(4, 30)
        )
        return Job(
            at=rng.randint(0, 10),
            prompt=(*rng.choice(BASES)[:shared], *own),
            params=params,
            n=rng.choice([1, 1, 2, 3]),
            eos_ids=rng.choice([frozenset[int](), frozenset({3})]),
            cancel_after=rng.choice([None, None, None, None, 0, 1, 3, 9, 20]),
        )

    return Scenario(
        num_pages=-(-rng.randint(48, 80) // page_tokens),
        page_tokens=page_tokens,
        max_rows=rng.choice([1, 3, 8, 16, 64]),
        max_running=rng.randint(2, 8),
        jobs=tuple(job() for _ in range(10)),
        is_eager=seed % 2 == 1,
        preempt_at=frozenset(rng.sample(range(60), 3 if seed % 4 == 2 else 0)),
        damage_at=frozenset(rng.sample(range(60), 2 if seed % 4 == 3 else 0)),
    )


def run_all() -> list[Outcome]:
    return [simulate(drawn(seed)) for seed in range(40)]


def test_fixed_scenarios_do_all_that_can_be_done() -> None:
    outcomes = run_all()
    assert sum(outcome.preemptions for outcome in outcomes) > 40
    assert sum(outcome.hit_tokens for outcome in outcomes) > 400
    assert sum(outcome.evictions for outcome in outcomes) > 100
    assert sum(outcome.cancelled for outcome in outcomes) > 40
    assert sum(outcome.preemptions > 0 and outcome.hit_tokens > 0 for outcome in outcomes) > 10


Patch = Callable[[pytest.MonkeyPatch], None]


def share_before_full(patch: pytest.MonkeyPatch) -> None:
    """A page is sealed while its last position is still open."""
    real = _scheduler.Scheduler.commit

    def commit(self: _scheduler.Scheduler, request: _scheduler.Request) -> list[int]:
        sealed = real(self, request)
        at = request.num_sealed
        if at < len(request.pages) and len(request.ids) >= (at + 1) * self.pool.page_tokens:
            self.pool.extend_keys(request.keys, request.ids, at + 1)
            parent = request.pages[at - 1] if at else None
            request.pages[at] = self.pool.seal(request.pages[at], request.keys[at], parent)
        return sealed

    patch.setattr(_scheduler.Scheduler, "commit", commit)


def stale_table(patch: pytest.MonkeyPatch) -> None:
    """After a preemption the old table, and what it was thought to hold, are used again."""

    def drop(self: _scheduler.Scheduler, request: _scheduler.Request) -> None:
        self.pool.release(request.pages)

    def find(self: _pages.PagePool, keys: Sequence[_pages.PageKey]) -> list[int]:
        return []

    patch.setattr(_scheduler.Scheduler, "_drop_pages", drop)
    patch.setattr(_pages.PagePool, "find", find)
    # The invariants see it at once; here the answers must show it on their own.
    patch.setattr(_scheduler.Scheduler, "check_state", lambda self: None)
    patch.setattr(_pages.PagePool, "check", lambda self, holders=None: None)


def parent_before_child(patch: pytest.MonkeyPatch) -> None:
    """A chain is released from its head, so that its head is evicted first."""
    real = _pages.PagePool.release

    def release(self: _pages.PagePool, pages: Sequence[int]) -> None:
        real(self, pages[::-1])

    patch.setattr(_pages.PagePool, "release", release)


def most_recent_evicted(patch: pytest.MonkeyPatch) -> None:
    """The page used last is evicted first: the head of the chain that was released last."""

    def allocate(self: _pages.PagePool) -> int | None:
        if not self._free and self._idle:
            self._idle.move_to_end(next(reversed(self._idle)), last=False)
        return real(self)

    real = _pages.PagePool.allocate
    patch.setattr(_pages.PagePool, "allocate", allocate)


def last_token_from_cache(patch: pytest.MonkeyPatch) -> None:
    """A full hit leaves nothing to compute, hence no logits."""

    def num_findable(self: _scheduler.Scheduler, request: _scheduler.Request) -> int:
        return len(request.ids) // self.pool.page_tokens

    patch.setattr(_scheduler.Scheduler, "_num_findable", num_findable)


def chain_ignored(patch: pytest.MonkeyPatch) -> None:
    """A page is found by its own tokens, whatever stands before it."""

    def standing(self: _pages.PagePool, key: _pages.PageKey, parent: int | None) -> int | None:
        return self._by_digest.get(key.digest)

    patch.setattr(_pages, "chain_digest", lambda parent, token_bytes: token_bytes)
    patch.setattr(_pages.PagePool, "_standing", standing)
    patch.setattr(_scheduler.Scheduler, "check_state", lambda self: None)
    patch.setattr(_pages.PagePool, "check", lambda self, holders=None: None)


def collisions_believed(patch: pytest.MonkeyPatch) -> None:
    """Digests of 6 bits, and whoever has the same one is taken for the same."""

    def standing(self: _pages.PagePool, key: _pages.PageKey, parent: int | None) -> int | None:
        page = self._by_digest.get(key.digest)
        return page if page is not None and self._sealed[page].parent == parent else None

    short_digests(patch)
    patch.setattr(_pages.PagePool, "_standing", standing)


def one_sampler_for_all(patch: pytest.MonkeyPatch) -> None:
    """The random stream is that of the engine, so that a token depends on who else is served."""
    shared = Sampler(SamplingParams(temperature=1.0))

    def choose(self: Stream, logits: np.ndarray) -> int:
        return shared.next(logits)

    patch.setattr(Stream, "choose", choose)


def tokens_lost(patch: pytest.MonkeyPatch) -> None:
    """A preempted request forgets what it has made."""
    real = _scheduler.Scheduler._preempt

    def preempt(self: _scheduler.Scheduler, request: _scheduler.Request) -> None:
        del request.ids[request.num_prompt :]
        real(self, request)

    patch.setattr(_scheduler.Scheduler, "_preempt", preempt)


def oldest_preempted(patch: pytest.MonkeyPatch) -> None:
    """The oldest gives up its pages instead of the youngest."""
    real = _scheduler.Scheduler._preempt

    def preempt(self: _scheduler.Scheduler, request: _scheduler.Request) -> None:
        real(self, self.running[0])

    patch.setattr(_scheduler.Scheduler, "_preempt", preempt)


def pages_leaked(patch: pytest.MonkeyPatch) -> None:
    """A sequence that ends keeps its last page."""
    real = _scheduler.Scheduler.finish

    def finish(self: _scheduler.Scheduler, request: _scheduler.Request, *, distrust: bool = False) -> None:
        request.pages = request.pages[:-1]
        real(self, request, distrust=distrust)

    patch.setattr(_scheduler.Scheduler, "finish", finish)


def cancel_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A cancel that comes while the stream waits is not seen."""
    patch.setattr(_engine.Engine, "_let_go", lambda self: None)


def rows_reversed(patch: pytest.MonkeyPatch) -> None:
    """The rows of a sequence stand in the wrong order."""
    real = _scheduler.Scheduler._rows

    def rows(self: _scheduler.Scheduler) -> StepRows:
        made = real(self)
        tokens, positions = made.tokens.copy(), made.positions.copy()
        for slot in range(len(made.tables)):
            its = np.flatnonzero(made.slots == slot)
            tokens[its], positions[its] = tokens[its[::-1]], positions[its[::-1]]
        return StepRows(tokens, positions, made.slots, made.tables, made.wanted)

    patch.setattr(_scheduler.Scheduler, "_rows", rows)


def victims_rows_kept(patch: pytest.MonkeyPatch) -> None:
    """The rows of a request that is preempted while a step is planned stay in the step."""
    real = _scheduler.Scheduler._preempt

    def preempt(self: _scheduler.Scheduler, request: _scheduler.Request) -> None:
        rows, room, pages = self._planned.get(request), self._room, array("i", request.pages)
        computed = request.num_computed
        real(self, request)
        if rows is not None:
            self._planned[request], self._room = rows, room
            request.pages, request.num_computed = pages, computed

    patch.setattr(_scheduler.Scheduler, "_preempt", preempt)
    patch.setattr(_scheduler.Scheduler, "check_state", lambda self: None)
    patch.setattr(_pages.PagePool, "check", lambda self, holders=None: None)


OTHER_ANSWER = "another answer than alone|other logits than alone|None"
FAULTS: dict[Patch, str] = {
    share_before_full: "were full|before it is full|not announced|another sequence|read by",
    stale_table: "is written by slot|another sequence|written after they were full",
    parent_before_child: "before its children",
    most_recent_evicted: "before its children",
    last_token_from_cache: "nothing left to compute",
    chain_ignored: "holds what another sequence",
    collisions_believed: OTHER_ANSWER,
    one_sampler_for_all: OTHER_ANSWER,
    tokens_lost: OTHER_ANSWER,
    oldest_preempted: "those running are not the oldest|counts are not",
    pages_leaked: "counts are not those of the holders|fewer holders than its children",
    cancel_forgotten: "a cancel took more than 2 steps",
    rows_reversed: "not in order|another sequence",
    victims_rows_kept: "is written by slot",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_planted_fault_is_seen(fault: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    fault(monkeypatch)
    with pytest.raises(AssertionError, match=FAULTS[fault]):
        run_all()


def short_digests(patch: pytest.MonkeyPatch) -> None:
    """Digests of 6 bits: chains collide all the time."""
    real = _pages.chain_digest

    def short(parent: bytes, token_bytes: bytes) -> bytes:
        return bytes([real(parent, token_bytes)[0] & 63])

    patch.setattr(_pages, "chain_digest", short)


def test_collisions_cost_hits_and_change_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sum(outcome.hit_tokens for outcome in run_all())
    short_digests(monkeypatch)
    short = sum(outcome.hit_tokens for outcome in run_all())
    assert 0 < short < whole
