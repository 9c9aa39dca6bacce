"""The engine's promises one by one: the door, siblings, cancels, bad logits, hooks, threads."""

from __future__ import annotations

import dataclasses
import threading

import numpy as np
import pytest

from tensure.errors import EvaluationError, InputError, LimitError
from tensure.runtime import BetweenSteps, Engine, StepRows, Stream
from tensure.text import SamplingParams

from .paged_core import CacheError, PagedCore, PageWatch, alone, logits_of, next_link

PROMPT = (3, 1, 4, 1, 5, 9, 2, 6, 5, 3)


def engine_of(core: PagedCore, max_rows: int = 16, max_running: int = 4, max_waiting: int = 1024) -> Engine:
    return Engine(
        core,
        salt=b"",
        max_rows_per_step=max_rows,
        max_running=max_running,
        max_waiting=max_waiting,
        on_step=[PageWatch(core)],
    )


def link_of(ids: tuple[int, ...]) -> int:
    link = 0
    for token in ids:
        link = next_link(link, token)
    return link


# --- the door -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "message"),
    [
        ((), 4, "the prompt holds no token; wanted at least 1"),
        ((1, 24), 4, "prompt token 1 is 24; wanted an id from 0 to 23"),
        ((-1,), 4, "prompt token 0 is -1; wanted an id from 0 to 23"),
        ((1 << 200,), 4, "prompt token 0 is an integer of 201 bits; wanted an id from 0 to 23"),
        ((1.0,), 4, "prompt token 0 is 1.0; wanted an integer"),
        ((True,), 4, "prompt token 0 is True; wanted an integer"),
        (("1",), 4, "prompt token 0 is '1'; wanted an integer"),
        (np.array([True]), 4, "prompt token 0 is .*True.*; wanted an integer"),
    ],
)
def test_bad_prompts_are_refused(prompt: tuple[int, ...], max_tokens: int, message: str) -> None:
    engine = engine_of(PagedCore(8, 4))
    with pytest.raises(InputError, match=message):
        engine.submit(prompt, SamplingParams(max_tokens=max_tokens))
    assert engine.stats.waiting == 0 and not engine.step()


@pytest.mark.parametrize(
    ("num_prompt", "max_tokens", "message"),
    [
        (
            40,
            9,
            "up to 9 new ones make 49; wanted at most the context of 48. Ask for at most 8",
        ),
        (48, 1, "wanted at most the context of 48. Shorten the prompt"),
        (
            30,
            4,
            "up to 4 new ones need 9 pages of 4 tokens; wanted at most the cache's 8. Ask for at most 3 new",
        ),
        (40, 1, "need 10 pages of 4 tokens; wanted at most the cache's 8. Shorten the prompt"),
    ],
)
def test_what_cannot_fit_is_refused_with_the_numbers(num_prompt: int, max_tokens: int, message: str) -> None:
    engine = engine_of(PagedCore(8, 4))
    with pytest.raises(LimitError) as refused:
        engine.submit([1] * num_prompt, SamplingParams(max_tokens=max_tokens))
    assert message in str(refused.value)
    assert engine.stats.waiting == 0


def test_what_just_fits_is_served() -> None:
    engine = engine_of(PagedCore(8, 4))
    [stream] = engine.submit(np.full(30, 1, np.int64), SamplingParams(max_tokens=3))
    assert tuple(stream) == alone([1] * 30, SamplingParams(max_tokens=3))[0]
    assert stream.finish_reason == "length"


@pytest.mark.parametrize("n", [0, -1, 129, True, 1.5])
def test_bad_n_is_refused(n: int) -> None:
    with pytest.raises(InputError, match="wanted an integer from 1 to 128"):
        engine_of(PagedCore(8, 4)).submit(PROMPT, SamplingParams(), n)


def test_a_seed_that_siblings_would_overflow_is_refused() -> None:
    engine = engine_of(PagedCore(64, 4))
    with pytest.raises(LimitError, match="seed is 18446744073709551616"):
        engine.submit(PROMPT, SamplingParams(seed=(1 << 64) - 1, max_tokens=2), 2)
    assert engine.stats.waiting == 0


def test_stop_strings_need_somebody_who_finds_them() -> None:
    with pytest.raises(InputError, match="1 stop strings and nothing that finds them; wanted a watch"):
        engine_of(PagedCore(64, 4)).submit(PROMPT, SamplingParams(stop=("x",), max_tokens=2))


def test_a_full_queue_refuses() -> None:
    engine = engine_of(PagedCore(64, 4), max_waiting=3)
    engine.submit(PROMPT, SamplingParams(max_tokens=2), 2)
    with pytest.raises(
        LimitError, match="2 sequences wait already and 2 more are asked for; wanted at most 3"
    ):
        engine.submit(PROMPT, SamplingParams(max_tokens=2), 2)
    engine.run()
    engine.submit(PROMPT, SamplingParams(max_tokens=2), 2)


@pytest.mark.parametrize("setting", ["max_rows", "max_running"])
def test_bad_settings_are_refused(setting: str) -> None:
    with pytest.raises(InputError, match=f"{setting}.* is 0; wanted at least 1"):
        engine_of(PagedCore(8, 4), **{setting: 0})


# --- siblings and prefixes --------------------------------------------------------------------------------


def test_siblings_compute_their_prompt_once() -> None:
    core = PagedCore(64, 4)
    engine = engine_of(core, max_rows=64)
    params = SamplingParams(temperature=1.0, seed=9, max_tokens=5)
    streams = engine.submit(PROMPT, params, 4)
    engine.run()
    for index, stream in enumerate(streams):
        assert stream.tokens == alone(PROMPT, dataclasses.replace(params, seed=9 + index))[0]
    assert len({stream.tokens for stream in streams}) > 1
    # 10 prompt tokens: the first computes all, the others the 2 beyond two full pages; then 4 more of each.
    assert core.num_rows == 10 + 3 * 2 + 4 * 4
    assert engine.stats.prefix_hit_tokens == 3 * 8


def test_a_sibling_takes_the_lead_when_the_first_is_cancelled() -> None:
    engine = engine_of(PagedCore(64, 4), max_rows=3)
    first, second, third = engine.submit(PROMPT, SamplingParams(max_tokens=3), 3)
    engine.step()
    assert engine.stats.running == 1
    engine.cancel(first)
    engine.run()
    assert first.tokens == () and first.finish_reason == "cancelled"
    assert second.tokens == third.tokens == alone(PROMPT, SamplingParams(max_tokens=3))[0]


def test_a_full_hit_computes_the_last_token() -> None:
    core = PagedCore(64, 5)
    engine = engine_of(core)
    [first] = engine.submit(PROMPT, SamplingParams(max_tokens=1))
    engine.run()
    before = core.num_rows
    [again] = engine.submit(PROMPT, SamplingParams(max_tokens=1), keep_logits=True)
    engine.run()
    assert again.tokens == first.tokens
    assert core.num_rows - before == 5  # the page of the last token
    assert again.logits[0].tobytes() == logits_of(link_of(PROMPT)).tobytes()


def test_an_answer_is_found_as_the_beginning_of_the_next_turn() -> None:
    engine = engine_of(PagedCore(64, 2))
    [stream] = engine.submit(PROMPT, SamplingParams(max_tokens=7))
    engine.run()
    engine.submit((*PROMPT, *stream.tokens, 1, 2), SamplingParams(max_tokens=1))
    engine.run()
    assert engine.stats.prefix_hit_tokens == 16  # all but the last token made, which was never computed


# --- ends ---------------------------------------------------------------------------------------------------


def test_eos_and_watch_end_a_stream() -> None:
    engine = engine_of(PagedCore(64, 4))
    params = SamplingParams(max_tokens=8)
    tokens = alone(PROMPT, params)[0]
    seen: list[tuple[int, int]] = []

    def watch(stream: Stream, token: int) -> str | None:
        seen.append((stream.index, token))
        return "stop" if len(stream.tokens) == 3 and stream.index == 1 else None

    [by_eos] = engine.submit(PROMPT, params, eos_ids={tokens[4]})
    _, by_watch = engine.submit(PROMPT, params, 2, watch=watch)
    engine.run()
    assert by_eos.finish_reason == "eos" and by_eos.tokens == tokens[: tokens.index(tokens[4]) + 1]
    assert by_watch.finish_reason == "stop" and by_watch.tokens == tokens[:3]
    assert [token for index, token in seen if index == 1] == list(tokens[:3])


def test_a_watch_that_raises_ends_its_stream_alone() -> None:
    engine = engine_of(PagedCore(64, 4))

    def watch(stream: Stream, token: int) -> None:
        raise ZeroDivisionError("mine")

    [bad] = engine.submit(PROMPT, SamplingParams(max_tokens=4), watch=watch)
    [good] = engine.submit(PROMPT, SamplingParams(max_tokens=4))
    engine.run()
    assert good.tokens == alone(PROMPT, SamplingParams(max_tokens=4))[0]
    assert next(bad) == good.tokens[0]
    with pytest.raises(ZeroDivisionError, match="mine"):
        next(bad)
    assert bad.finish_reason == "error" and engine.pool.num_held == 0


def test_a_step_inside_a_step_is_refused() -> None:
    engine = engine_of(PagedCore(64, 4))
    [stream] = engine.submit(
        PROMPT, SamplingParams(max_tokens=4), watch=lambda stream, token: next(stream) and None
    )
    engine.run()
    assert isinstance(stream.error, InputError) and "inside a step" in str(stream.error)


def test_a_stream_is_cancelled_where_it_was_submitted() -> None:
    one, other = (engine_of(PagedCore(64, 4), max_rows=4, max_running=4) for _ in range(2))
    [stream] = one.submit(PROMPT, SamplingParams(max_tokens=3))
    with pytest.raises(InputError, match="another engine"):
        other.cancel(stream)
    one.run()
    assert stream.finish_reason == "length"


@pytest.mark.parametrize("when", ["before", "waiting", "prefill", "decode", "from a watch", "after"])
def test_cancel_frees_pages_within_two_steps(when: str) -> None:
    engine = engine_of(PagedCore(64, 4), max_rows=4, max_running=1 if when == "waiting" else 4)
    others = engine.submit(PROMPT[::-1], SamplingParams(max_tokens=20))
    steps = {"before": 0, "waiting": 2, "prefill": 4, "decode": 12, "from a watch": 0, "after": 0}[when]
    watch = (lambda stream, token: engine.cancel(stream)) if when == "from a watch" else None
    [stream] = engine.submit(PROMPT, SamplingParams(max_tokens=9), watch=watch)
    for _ in range(steps):
        engine.step()
    if when == "after":
        engine.run()
    if when != "from a watch":
        engine.cancel(stream)
        made = stream.tokens
        assert (len(made) > 0) == (when in ("decode", "after"))
        engine.step()
        engine.step()
        assert stream.finish_reason == ("length" if when == "after" else "cancelled")
        assert stream.tokens == made
        assert engine.stats.waiting == 0 and engine.stats.running == (0 if when == "after" else 1)
    engine.run()
    assert (
        list(stream)
        == list(stream.tokens)
        == list(alone(PROMPT, SamplingParams(max_tokens=9))[0])[: len(stream.tokens)]
    )
    assert len(stream.tokens) == 1 or when != "from a watch"
    assert others[0].tokens == alone(PROMPT[::-1], SamplingParams(max_tokens=20))[0]
    assert engine.pool.num_held == 0


class CancellingCore(PagedCore):
    """Somebody cancels while it computes."""

    victims: tuple[Stream, ...] = ()
    engine: Engine

    def step(self, rows: StepRows) -> np.ndarray:
        for victim in self.victims:
            self.engine.cancel(victim)
        return super().step(rows)


def test_a_cancel_during_a_step_lets_no_token_of_it_out() -> None:
    core = CancellingCore(64, 4)
    core.engine = engine = engine_of(core, max_running=2)
    [running] = engine.submit(PROMPT, SamplingParams(max_tokens=9))
    [other] = engine.submit(PROMPT[1:], SamplingParams(max_tokens=9))
    [waiting] = engine.submit(PROMPT[2:], SamplingParams(max_tokens=9))
    engine.step()
    engine.step()
    made = running.tokens
    core.victims = (running, waiting)
    engine.step()
    assert running.finish_reason == waiting.finish_reason == "cancelled"
    assert running.tokens == made and waiting.tokens == ()
    assert (engine.stats.running, engine.stats.waiting) == (1, 0)
    engine.run()
    assert other.tokens == alone(PROMPT[1:], SamplingParams(max_tokens=9))[0]


def test_nothing_is_computed_for_what_was_cancelled_between_steps() -> None:
    core = PagedCore(64, 4)
    engine = engine_of(core)
    [stream] = engine.submit(PROMPT, SamplingParams(max_tokens=9))
    engine.step()
    before = core.num_rows
    engine.cancel(stream)
    assert not engine.step()
    assert core.num_rows == before and stream.finish_reason == "cancelled"


def test_logits_that_are_not_finite_end_their_stream_alone() -> None:
    core = PagedCore(64, 2)
    engine = engine_of(core)
    params = SamplingParams(max_tokens=6)
    tokens = alone(PROMPT, params)[0]
    core.poison = {link_of((*PROMPT, *tokens[:3]))}
    [bad] = engine.submit(PROMPT, params, keep_logits=True)
    [good] = engine.submit(PROMPT[::-1], params)
    engine.run()
    assert good.tokens == alone(PROMPT[::-1], params)[0]
    assert bad.tokens == tokens[:3] and bad.finish_reason == "error"
    assert np.isnan(bad.logits[-1]).any() and len(bad.logits) == 4
    assert [next(bad) for _ in range(3)] == list(tokens[:3])
    with pytest.raises(EvaluationError, match="stream 0, token 3: the logit of id 7 is nan; wanted finite"):
        next(bad)
    # Nobody is given its pages: what made the logits may be in them.
    before = engine.stats.prefix_hit_tokens
    core.poison.clear()
    [again] = engine.submit(PROMPT, params)
    engine.run()
    assert again.tokens == tokens and engine.stats.prefix_hit_tokens == before
    assert engine.pool.num_held == 0


def test_a_stream_that_has_a_token_runs_no_step() -> None:
    engine = engine_of(PagedCore(64, 4))
    [stream] = engine.submit(PROMPT, SamplingParams(max_tokens=9))
    engine.step()
    stream._advance(stream)  # as a thread that had to wait for the one that ran the step
    assert engine.stats.steps == 1


# --- the core -----------------------------------------------------------------------------------------------


def test_a_step_that_fails_is_computed_again() -> None:
    core = PagedCore(10, 3)
    engine = engine_of(core, max_rows=7)
    params = SamplingParams(max_tokens=8)
    streams = [engine.submit(PROMPT[at:], params)[0] for at in range(4)]
    failures = 0
    while True:
        core.failures = 1
        try:
            engine.step()
        except RuntimeError:
            failures += 1
        engine._scheduler.check_state()
        if not engine.step():
            break
    assert failures > 5
    for at, stream in enumerate(streams):
        assert stream.tokens == alone(PROMPT[at:], params)[0]


@pytest.mark.parametrize("fault", [lambda a: a[:, 1:], lambda a: a.astype(np.float64), lambda a: a[:0]])
def test_logits_of_another_form_are_refused(fault: object) -> None:
    class Odd(PagedCore):
        def step(self, rows: StepRows) -> np.ndarray:
            return fault(super().step(rows))  # type: ignore[operator]

    engine = engine_of(Odd(64, 4))
    engine.submit(PROMPT, SamplingParams(max_tokens=2))
    with pytest.raises(EvaluationError, match=r"the core gave float.* \[.*\]; wanted float32 \[1, 24\]"):
        engine.step()


def test_rows_are_read_only() -> None:
    seen: list[StepRows] = []
    engine = engine_of(PagedCore(64, 4))
    engine.between_steps.append(lambda state: seen.append(state.rows))
    engine.submit(PROMPT, SamplingParams(max_tokens=1))
    engine.run()
    with pytest.raises(ValueError, match="read-only"):
        seen[0].tokens[0] = 1


def test_more_sequences_than_rows_never_run() -> None:
    engine = engine_of(PagedCore(64, 4), max_rows=2, max_running=8)
    streams = [engine.submit(PROMPT[at:], SamplingParams(max_tokens=3))[0] for at in range(5)]
    while engine.step():
        assert engine.stats.running <= 2
    assert all(len(stream.tokens) == 3 for stream in streams)


def test_decoding_rows_stand_before_prompts_and_fill_the_step() -> None:
    seen: list[StepRows] = []
    engine = engine_of(PagedCore(64, 4), max_rows=6)
    engine.between_steps.append(lambda state: seen.append(state.rows))
    engine.submit(PROMPT[:3], SamplingParams(max_tokens=9))
    engine.step()
    engine.submit(PROMPT, SamplingParams(max_tokens=9))
    engine.submit(PROMPT[5:], SamplingParams(max_tokens=9))
    for _ in range(3):
        engine.step()
    assert [rows.positions.tolist() for rows in seen] == [
        [0, 1, 2],
        [3, 0, 1, 2, 3, 4],
        [4, 5, 6, 7, 8, 9],
        [5, 10, 0, 1, 2, 3],
    ]
    assert [rows.slots.tolist() for rows in seen[1:]] == [
        [0, 1, 1, 1, 1, 1],
        [0, 1, 1, 1, 1, 1],
        [0, 1, 2, 2, 2, 2],
    ]
    assert [rows.wanted.tolist() for rows in seen] == [[2], [0], [0, 5], [0, 1]]
    assert seen[3].tables.shape == (3, 3) and (seen[3].tables[2, 1:] == -1).all()


# --- between the steps --------------------------------------------------------------------------------------


def test_a_watch_may_distrust_pages_of_a_stream_of_the_same_step() -> None:
    engine = engine_of(PagedCore(64, 2))

    def watch(stream: Stream, token: int) -> None:
        if len(stream.tokens) == 3:
            engine.distrust(engine._scheduler.running[1].pages[:1])

    params = SamplingParams(max_tokens=8)
    [first] = engine.submit(PROMPT, params, watch=watch)
    [second] = engine.submit(PROMPT[1:], params)
    engine.run()
    assert first.tokens == alone(PROMPT, params)[0]
    assert second.tokens == alone(PROMPT[1:], params)[0]


def test_hooks_hear_of_each_page_once() -> None:
    engine = engine_of(PagedCore(64, 2))
    heard: list[int] = []
    engine.between_steps.append(lambda state: heard.extend(state.sealed))
    engine.submit(PROMPT, SamplingParams(temperature=1.0, max_tokens=8), 3)
    engine.run()
    assert len(heard) == len(set(heard)) == len(engine.pool.sealed_pages()) == 5 + 3 * 3


@pytest.mark.parametrize("repairs", [True, False])
def test_a_damaged_page_is_found_by_its_hash_and_computed_again(repairs: bool) -> None:
    core = PagedCore(64, 2)
    engine = engine_of(core)
    watch = PageWatch(core)
    damaged: list[Stream] = []

    def scrub(state: BetweenSteps) -> None:
        changed = watch.changed(state)
        if repairs and changed:
            damaged.extend(state.engine.distrust(changed))

    engine.between_steps[:] = [scrub]
    params = SamplingParams(max_tokens=12)
    streams = engine.submit(PROMPT, params, 2)
    streams += engine.submit(PROMPT[::-1], params)
    for _ in range(6):
        engine.step()
    page = engine._scheduler.running[0].pages[1]
    assert page == engine._scheduler.running[1].pages[1]

    def damage(state: BetweenSteps) -> None:
        core.cells[page * 2] = (0, 2, 12345)
        engine.between_steps.remove(damage)

    engine.between_steps.insert(0, damage)
    if not repairs:  # what the scrub is there for
        with pytest.raises(CacheError):
            engine.run()
        return
    engine.run()
    assert damaged == streams[:2]
    assert [stream.tokens for stream in streams] == [
        *[alone(PROMPT, params)[0]] * 2,
        alone(PROMPT[::-1], params)[0],
    ]


def test_a_hook_that_raises_loses_no_token() -> None:
    engine = engine_of(PagedCore(64, 4))

    def hook(state: BetweenSteps) -> None:
        if state.number % 2:
            raise ZeroDivisionError

    engine.between_steps.append(hook)
    [stream] = engine.submit(PROMPT, SamplingParams(max_tokens=6))
    for number in range(6):
        if number % 2 == 0:
            with pytest.raises(ZeroDivisionError):
                engine.step()
        else:
            assert engine.step()
    assert stream.tokens == alone(PROMPT, SamplingParams(max_tokens=6))[0]


def test_every_hook_runs_when_one_raises() -> None:
    core = PagedCore(6, 4)
    engine = engine_of(core)
    called: list[int] = []

    def bad(state: BetweenSteps) -> None:
        called.append(-state.number)
        raise ZeroDivisionError

    engine.between_steps[:] = [bad, lambda state: called.append(state.number), PageWatch(core)]
    for seed in range(4):
        engine.submit(PROMPT[seed:], SamplingParams(max_tokens=3))
    with pytest.raises(ZeroDivisionError):
        engine.step()
    assert called == [-1, 1]


def test_an_interrupt_in_a_watch_ends_its_stream_and_loses_nothing_of_others() -> None:
    engine = engine_of(PagedCore(64, 2))

    def watch(stream: Stream, token: int) -> None:
        if len(stream.tokens) == 3:
            raise KeyboardInterrupt

    params = SamplingParams(max_tokens=6)
    [before] = engine.submit(PROMPT[1:], params)
    [hit] = engine.submit(PROMPT, params, watch=watch)
    after = engine.submit(PROMPT[2:], params, 2)
    with pytest.raises(KeyboardInterrupt):
        engine.run()
    engine._scheduler.check_state()
    engine.run()
    assert hit.finish_reason == "error" and hit.tokens == alone(PROMPT, params)[0][:3]
    assert before.tokens == alone(PROMPT[1:], params)[0]
    assert after[0].tokens == after[1].tokens == alone(PROMPT[2:], params)[0]


def test_statistics_count_what_there_is() -> None:
    engine = engine_of(PagedCore(16, 4), max_running=2)
    engine.submit(PROMPT, SamplingParams(max_tokens=4))
    engine.submit(PROMPT, SamplingParams(max_tokens=4))
    engine.submit(PROMPT, SamplingParams(max_tokens=4))
    assert engine.stats.waiting == 3
    engine.step()
    stats = engine.stats
    assert (stats.running, stats.waiting, stats.rows, stats.steps) == (2, 1, 16, 1)
    assert (stats.pages_used, stats.pages_cached, stats.pages_free) == (4, 0, 12)  # full pages are kept once
    engine.run()
    stats = engine.stats
    assert (stats.running, stats.waiting, stats.made_tokens) == (0, 0, 12)
    assert stats.pages_used == 0 and stats.pages_cached + stats.pages_free == 16
    assert stats.prefix_hit_tokens == 8


# --- threads ------------------------------------------------------------------------------------------------


def in_threads(*jobs: object) -> None:
    errors: list[Exception] = []

    def call(job: object) -> None:
        try:
            job()  # type: ignore[operator]
        except Exception as error:  # noqa: BLE001 - shown by the thread that waits
            errors.append(error)

    threads = [threading.Thread(target=call, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert not errors, errors


def test_threads_that_submit_and_pull_get_what_they_get_alone() -> None:
    core = PagedCore(14, 3)
    engine = engine_of(core, max_rows=5, max_running=3)
    results: dict[int, list[int]] = {}

    def client(number: int) -> None:
        for turn in range(3):
            prompt = PROMPT[number:] + (turn,)
            params = SamplingParams(temperature=1.0, seed=number, max_tokens=12)
            [stream] = engine.submit(prompt, params)
            assert tuple(stream) == alone(prompt, params)[0]
            [given_up] = engine.submit(prompt, params)
            next(given_up)
            engine.cancel(given_up)
            rest = list(given_up)
            assert given_up.finish_reason in ("cancelled", "length") and len(rest) < 12
        results[number] = []

    in_threads(*[lambda number=number: client(number) for number in range(6)])
    assert len(results) == 6
    engine.run()
    assert engine.pool.num_held == 0
    engine._scheduler.check_state()


def test_threads_that_pull_one_stream_share_its_tokens() -> None:
    engine = engine_of(PagedCore(64, 4))
    params = SamplingParams(max_tokens=30)
    [stream] = engine.submit(PROMPT, params)
    got: list[list[int]] = [[], [], []]
    in_threads(*[lambda mine=mine: mine.extend(stream) for mine in got])
    assert sorted(token for mine in got for token in mine) == sorted(alone(PROMPT, params)[0])
