"""Exact mode, from outside: a stream's tokens and logits bits are what they are when it is served alone.

Nothing of the schedule may show: batch, chunks, threads, arrivals, preemption, prefix hits, cancels, damage
that was repaired. Each way of changing the schedule is seen to have happened before it counts.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from tests.acceptance.engine_models import (
    BASES,
    CONTEXT,
    EIGHT,
    VOCAB,
    Alone,
    Answer,
    Ask,
    Sealed,
    random_prompt,
    serve,
)

import tensure
from tensure.runtime import Engine, EngineStats, Stream

# Every family, every way of keeping weights; GGUF blocks repacked and in place.
WEIGHTS = (
    "llama-q4_0",
    "llama-q4_0/in_place",
    "llama-q4_1/in_place",
    "granite-q8_0",
    "granite-q8_0/in_place",
    "granite-bf16",
    "qwen2-f16",
    "qwen3-f32",
)
FEW = ("llama-q4_0", "granite-q8_0/in_place", "qwen2-bf16")
ROWS = (1, 2, 3, 5, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64)


@dataclass(frozen=True)
class Way:
    """An open session, settings that decide bits, and what each ask answers alone under them."""

    session: tensure.Session
    settings: dict[str, Any]
    alone: Alone

    def serve(self, asks: Any, **schedule: Any) -> list[Answer]:
        return serve(self.session, asks, **self.settings | schedule)

    def engine(self, **schedule: Any) -> Engine:
        return self.session.engine(**{"threads": 1} | self.settings | schedule)

    def wanted(self, asks: Any) -> list[Answer]:
        return [answer for ask in asks for answer in self.alone(ask)]


@pytest.fixture(scope="module")
def way(decoder: Callable[[str], Sealed]) -> Iterator[Callable[[str, int], Way]]:
    """Ways by name of the weights and bits of the cache, each with its solo answers made once."""
    with ExitStack() as open_sessions:
        session = cache(lambda name: open_sessions.enter_context(decoder(name).open()))

        @cache
        def make(weights: str, bits: int) -> Way:
            name, _, place = weights.partition("/")
            settings = {"cache_bits": bits, "in_place": bool(place), "mode": "exact"}
            return Way(session(name), settings, Alone(session(name), **settings))

        yield make


# --- batch, chunks, threads ----------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_batch_chunks_and_threads_change_no_bit(
    way: Callable[[str, int], Way], weights: str, bits: int
) -> None:
    here = way(weights, bits)
    wanted = here.wanted(EIGHT)
    assert len({answer.logits[0] for answer in wanted}) == 8, "the asks must differ, or nothing is compared"
    rng = random.Random(f"{weights} {bits}")
    for batch, threads in [(1, 2), (3, 1), (3, 2), (8, 1), (8, 2)]:
        for rows in (256, *rng.sample(ROWS, 2)):
            chosen = rng.sample(range(8), batch)
            found = here.serve(
                [EIGHT[index] for index in chosen], max_sequences=8, threads=threads, max_rows_per_step=rows
            )
            assert found == [wanted[index] for index in chosen], (batch, threads, rows, chosen)


@pytest.mark.parametrize("weights", FEW)
def test_every_chunk_size_gives_the_same_bits(way: Callable[[str, int], Way], weights: str) -> None:
    here = way(weights, 8)
    asks = [replace(EIGHT[4], max_tokens=2), replace(EIGHT[0], max_tokens=2), replace(EIGHT[1], max_tokens=2)]
    wanted = here.wanted(asks)
    for rows in range(1, 65):
        assert here.serve(asks, max_sequences=3, max_rows_per_step=rows) == wanted, rows


def test_a_prompt_read_in_chunks_equals_its_tokens_decoded_one_by_one(
    way: Callable[[str, int], Way],
) -> None:
    """Prefill and decode share one arithmetic: a text made by decoding, read again as a prompt."""
    for weights in WEIGHTS:
        here = way(weights, 16)
        prompt = BASES[0][:9]
        (made,) = here.alone(Ask(prompt, 40))
        for cut in (1, 7, 24, 39):
            (again,) = here.alone(Ask((*prompt, *made.tokens[:cut]), 40 - cut))
            assert again.tokens == made.tokens[cut:], (weights, cut)
            assert again.logits == made.logits[cut:], (weights, cut)


# --- random arrivals, preemption, prefix hits, cancels, damage ---------------------------------------------


@dataclass
class Arrival:
    """An ask, when it comes, and when it is cancelled."""

    at: int
    ask: Ask
    cancel_after: int | None
    streams: list[Stream]


def random_arrivals(rng: random.Random, count: int) -> list[Arrival]:
    """Asks that share beginnings; some sampled, some of several answers, some cancelled."""
    found = []
    for _ in range(count):
        base = rng.choice(BASES)
        prompt = base[: rng.choice([1, 15, 16, 17, 32, 40])] + random_prompt(
            rng.randrange(99), rng.choice([0, 0, 3, 11])
        )
        ask = Ask(
            prompt,
            max_tokens=rng.randint(1, 44),
            temperature=rng.choice([0.0, 1.0]),
            seed=rng.randrange(4),
            n=rng.choice([1, 1, 2, 3]),
            eos_ids=rng.choice([frozenset[int](), frozenset({3, 77})]),
        )
        found.append(Arrival(rng.randrange(12), ask, rng.choice([None, None, None, 0, 2, 9]), []))
    return found


def play(engine: Engine, arrivals: list[Arrival], rng: random.Random, *, distrusts: bool = False) -> int:
    """Submit, step and cancel until all is served; the number of pages that were called damaged."""
    damaged = 0
    sealed: list[int] = []
    if distrusts:
        engine.between_steps.append(lambda seen: sealed.extend(seen.pages()))
    step = 0
    while True:
        for arrival in arrivals:
            if arrival.at == step:
                arrival.streams = arrival.ask.submit(engine)
            if arrival.cancel_after is not None and arrival.at + arrival.cancel_after == step:
                engine.cancel(arrival.streams[0])
        # Three times in all: damage that comes faster than it is repaired lets nobody go on.
        if distrusts and sealed and step % 7 == 3 and damaged < 3:
            page = rng.choice(sealed)
            engine.distrust([page])
            damaged += 1
        sealed.clear()
        worked = engine.step()
        step += 1
        if not worked and step > max(arrival.at + (arrival.cancel_after or 0) for arrival in arrivals):
            return damaged


def check(here: Way, arrivals: list[Arrival]) -> None:
    """Every stream is what it is alone; one that was cancelled is a beginning of it."""
    for arrival in arrivals:
        for stream, wanted in zip(arrival.streams, here.alone(arrival.ask), strict=True):
            found = Answer.of(stream)
            if found.reason == "cancelled":
                assert found.first(len(found.tokens)) == wanted.first(len(found.tokens)), arrival
            else:
                assert found == wanted, arrival


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("weights", FEW)
def test_random_arrivals_preemptions_hits_and_cancels_change_no_bit(
    way: Callable[[str, int], Way], weights: str, bits: int
) -> None:
    here = way(weights, bits)
    seen: list[EngineStats] = []
    cancelled = damaged = 0
    for seed in range(4):
        rng = random.Random(f"{seed} {weights} {bits}")
        arrivals = random_arrivals(rng, 12)
        # One context's pages for some twenty streams: they push one another out.
        engine = here.engine(
            max_sequences=1, threads=1 + seed % 2, max_rows_per_step=rng.choice([13, 48, 256])
        )
        pages = engine.stats.pages_free
        damaged += play(engine, arrivals, rng, distrusts=seed == 3)
        check(here, arrivals)
        stats = engine.stats
        assert (stats.running, stats.waiting, stats.pages_used) == (0, 0, 0)
        assert stats.pages_free + stats.pages_cached == pages, "a page is lost"
        seen.append(stats)
        cancelled += sum(
            stream.finish_reason == "cancelled" for arrival in arrivals for stream in arrival.streams
        )
    assert sum(stats.preemptions for stats in seen) > 0, "nobody was preempted: the cache is too large"
    assert sum(stats.evictions for stats in seen) > 0
    assert sum(stats.prefix_hit_tokens for stats in seen) > 0
    assert cancelled > 0 and damaged > 0


@pytest.mark.parametrize("weights", FEW)
def test_a_prefix_hit_gives_the_bits_of_a_miss(way: Callable[[str, int], Way], weights: str) -> None:
    here = way(weights, 4)
    engine = here.engine(max_sequences=4)
    turns = [Ask(BASES[0][:50], 8), Ask(BASES[0][:50], 8), Ask(BASES[0][:33] + BASES[1][:20], 8)]
    hits = []
    for ask in turns:
        before = engine.stats.prefix_hit_tokens
        (stream,) = ask.submit(engine)
        engine.run()
        hits.append(engine.stats.prefix_hit_tokens - before)
        assert [Answer.of(stream)] == here.alone(ask)
    assert hits[0] == 0 and hits[1] >= 32 and 16 <= hits[2] <= 33, hits
    # The next turn of a talk: what was answered is part of the prompt.
    longer = Ask((*turns[0].prompt, *here.alone(turns[0])[0].tokens, 7, 8, 9), 8)
    (stream,) = longer.submit(engine)
    engine.run()
    assert [Answer.of(stream)] == here.alone(longer)


# --- n, seeds ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", FEW)
@pytest.mark.parametrize("n", [2, 3, 5])
def test_n_answers_are_those_of_n_seeds(way: Callable[[str, int], Way], weights: str, n: int) -> None:
    here = way(weights, 16)
    ask = Ask(BASES[0][:37], 20, temperature=1.0, seed=11, n=n)
    found = here.serve([ask], max_sequences=n)
    assert found == here.alone(ask)
    assert len({answer.tokens for answer in found}) == n, "seeds must matter"
    assert len({answer.logits[0] for answer in found}) == 1, "the prompt is one"


def test_siblings_share_all_but_the_last_page_of_their_prompt(way: Callable[[str, int], Way]) -> None:
    engine = way("llama-q4_0", 16).engine(max_sequences=5)
    Ask(BASES[0][:80], 1, temperature=1.0, n=5).submit(engine)
    engine.run()
    assert engine.stats.computed_tokens <= 80 + 4 * 16


# --- cancellation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps_before", [0, 1, 3, 12])
def test_a_cancel_ends_its_stream_and_frees_its_pages_within_two_steps(
    way: Callable[[str, int], Way], steps_before: int
) -> None:
    here = way("llama-q4_0", 16)
    engine = here.engine(max_sequences=2, max_rows_per_step=16)
    other = Ask(BASES[1][:20], 30)
    (kept,) = other.submit(engine)
    (gone,) = Ask(BASES[0][:60], 30).submit(engine)
    for _ in range(steps_before):
        engine.step()
    engine.cancel(gone)
    made = len(gone.tokens)
    engine.step()
    engine.step()
    assert gone.finish_reason == "cancelled"
    assert len(gone.tokens) <= made + 1
    assert engine.stats.running == 1 and engine.stats.waiting == 0
    assert engine.stats.pages_used <= -(-(20 + 30) // 16), "only the other's pages are held"
    engine.run()
    assert [Answer.of(kept)] == here.alone(other)
    assert engine.stats.pages_used == 0


# --- several at once -------------------------------------------------------------------------------------


def test_engines_and_callers_in_several_threads_get_what_they_get_alone(
    way: Callable[[str, int], Way],
) -> None:
    """Two engines that compute at the same time, four callers of each who submit and pull as they like."""
    ways = way("llama-q4_0", 16), way("granite-q8_0/in_place", 8)
    wanted = [here.wanted(EIGHT) for here in ways]
    engines = [here.engine(max_sequences=2, threads=2, max_rows_per_step=24) for here in ways]

    def pull(engine: Engine, ask: Ask) -> Answer:
        (stream,) = ask.submit(engine)
        assert tuple(stream) == stream.tokens
        return Answer.of(stream)

    with ThreadPoolExecutor(8) as pool:
        coming = [[pool.submit(pull, engine, ask) for ask in EIGHT] for engine in engines]
        assert [[answer.result(timeout=60) for answer in row] for row in coming] == wanted
    assert all(engine.stats.pages_used == 0 for engine in engines)


# --- repacked and in place, fast ---------------------------------------------------------------------------


def rms_between(one: Answer, two: Answer) -> float:
    """Of the first logits, relative to `one`."""
    left, right = (np.frombuffer(answer.logits[0], np.float32) for answer in (one, two))
    return float(np.linalg.norm(left - right) / np.linalg.norm(left))


@pytest.mark.parametrize("name", ["llama-q4_0", "llama-q4_1", "granite-q8_0"])
def test_blocks_in_place_mean_what_repacked_ones_do(way: Callable[[str, int], Way], name: str) -> None:
    """Close, not equal: sums over blocks in place have an order of their own."""
    ask = Ask(BASES[0][:40], 1)
    assert rms_between(way(name, 16).alone(ask)[0], way(f"{name}/in_place", 16).alone(ask)[0]) < 2e-3


@pytest.mark.parametrize("weights", ["llama-q4_0", "granite-q8_0", "qwen3-f32"])
def test_fast_mode_answers_close_to_exact(way: Callable[[str, int], Way], weights: str) -> None:
    here = way(weights, 16)
    (exact,) = here.alone(Ask(BASES[0][:40], 1))
    (fast,) = here.serve([Ask(BASES[0][:40], 1)], mode="fast")
    assert rms_between(exact, fast) <= 0.1


# --- negative controls ----------------------------------------------------------------------------------


def test_the_comparison_sees_one_bit_of_one_logit(way: Callable[[str, int], Way]) -> None:
    (good,) = way("qwen2-bf16", 16).alone(EIGHT[0])
    for row in (0, len(good.logits) - 1):
        logits = list(good.logits)
        bits = np.frombuffer(logits[row], np.uint32).copy()
        bits[VOCAB // 2] ^= 1
        logits[row] = bits.tobytes()
        assert replace(good, logits=tuple(logits)) != good


def test_chunks_in_a_wrong_order_and_another_seed_show(way: Callable[[str, int], Way]) -> None:
    for weights in FEW:
        here = way(weights, 16)
        right = Ask(BASES[0][:48], 6)
        wrong = Ask((*BASES[0][16:32], *BASES[0][:16], *BASES[0][32:48]), 6)
        assert here.alone(right)[0].logits[0] != here.alone(wrong)[0].logits[0], weights
        sampled = Ask(BASES[0][:48], 12, temperature=1.0, seed=1)
        assert here.alone(sampled)[0].tokens != here.alone(replace(sampled, seed=2))[0].tokens, weights


def test_cache_bits_and_weights_change_the_logits(way: Callable[[str, int], Way]) -> None:
    ask = Ask(BASES[0][:48], 1)
    found = {way(weights, bits).alone(ask)[0].logits[0] for weights in FEW for bits in (16, 8, 4)}
    assert len(found) == 9, "two of nine arithmetics agree bit for bit: a setting is not honoured"


def test_the_context_is_what_these_tests_count_with(way: Callable[[str, int], Way]) -> None:
    engine = way("llama-q4_0", 16).engine(max_sequences=1)
    assert engine.stats.pages_free * 16 == CONTEXT
