"""What an engine refuses: before any work, with the numbers, and with nothing left behind."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.acceptance.engine_models import (
    BASES,
    CONTEXT,
    VOCAB,
    Alone,
    Answer,
    Ask,
    Sealed,
    key_of,
    numbers_in,
    save_source,
)

import tensure
from tensure.errors import DamageError, EvaluationError, InputError, LimitError
from tensure.runtime import Engine
from tensure.text import SamplingParams


@pytest.fixture(scope="module")
def session(decoder: Callable[[str], Sealed]) -> Iterator[tensure.Session]:
    with decoder("llama-q4_0").open() as opened:
        yield opened


@pytest.fixture(scope="module")
def damaged(decoder: Callable[[str], Sealed], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A session over weights of which one bit was flipped behind the seal's back."""
    whole = decoder("llama-q4_0")
    copy = Path(shutil.copytree(whole.bundle, tmp_path_factory.mktemp("damaged") / "damaged.bundle"))
    weights = copy / "weights" / "weights.bin"
    weights.chmod(0o644)
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    with tensure.open(copy, key=whole.key) as opened:
        yield opened


@pytest.fixture
def engine(session: tensure.Session) -> Iterator[Engine]:
    """An engine that has computed nothing and holds nothing, before the test and after it."""
    made = session.engine(max_sequences=2, threads=1)
    fresh = made.stats
    assert fresh.pages_free > 0
    yield made
    assert made.stats == fresh, "a refusal left something behind"
    assert not made.step()


# --- prompts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "max_tokens"), [(CONTEXT, 1), (CONTEXT + 1, 1), (40, CONTEXT - 39), (1, 10**5), (10**5, 1)]
)
def test_a_context_past_its_limit_is_refused_with_the_numbers(
    engine: Engine, size: int, max_tokens: int
) -> None:
    with pytest.raises(LimitError) as caught:
        engine.submit([3] * size, SamplingParams(max_tokens=max_tokens))
    assert {size, CONTEXT} <= numbers_in(caught.value), caught.value
    assert {max_tokens, size + max_tokens} & numbers_in(caught.value), caught.value


def test_the_whole_context_is_served(session: tensure.Session) -> None:
    for size in (1, 40, CONTEXT - 1):
        engine = session.engine(max_sequences=1, threads=1)
        (stream,) = engine.submit(BASES[0][:size], SamplingParams(max_tokens=CONTEXT - size))
        assert len(list(stream)) == CONTEXT - size
        assert stream.finish_reason == "length"


@pytest.mark.parametrize("token", [VOCAB, -1, 2**31, 2**63, -(2**40)])
@pytest.mark.parametrize("place", [0, 20, 39])
def test_an_unknown_token_is_refused_with_the_numbers(engine: Engine, token: int, place: int) -> None:
    prompt = list(BASES[0][:40])
    prompt[place] = token
    with pytest.raises(InputError) as caught:
        engine.submit(prompt, SamplingParams(max_tokens=4))
    assert abs(token) in numbers_in(caught.value), caught.value
    assert {VOCAB, VOCAB - 1} & numbers_in(caught.value), caught.value


@pytest.mark.parametrize("prompt", [[], [1.5], ["a"], [None], [float("nan")]], ids=str)
def test_a_prompt_that_is_no_list_of_tokens_is_refused(engine: Engine, prompt: Any) -> None:
    with pytest.raises(InputError):
        engine.submit(prompt, SamplingParams(max_tokens=4))


@pytest.mark.parametrize("n", [0, -1, 10**6])
def test_a_number_of_answers_out_of_range_is_refused_with_it(engine: Engine, n: int) -> None:
    with pytest.raises(InputError) as caught:
        engine.submit([1, 2], SamplingParams(max_tokens=4), n=n)
    assert abs(n) in numbers_in(caught.value), caught.value


def test_a_refusal_between_others_changes_nothing_for_them(session: tensure.Session) -> None:
    ask = Ask(BASES[0][:30], 20)
    engine = session.engine(max_sequences=1, threads=1)
    (stream,) = ask.submit(engine)
    for _ in range(5):
        engine.step()
        for prompt, tokens in (([VOCAB], 4), ([1] * CONTEXT, 1), ([], 1)):
            before = engine.stats
            with pytest.raises(InputError):
                engine.submit(prompt, SamplingParams(max_tokens=tokens))
            assert engine.stats == before
    engine.run()
    assert [Answer.of(stream)] == Alone(session)(ask)


# --- memory and settings ------------------------------------------------------------------------------


BAD_SETTINGS: list[dict[str, Any]] = [
    {"max_sequences": 0},
    {"max_sequences": -1},
    {"max_sequences": 10**9},
    {"max_sequences": 2**63},
    {"max_sequences": 2.0},
    {"cache_bits": 5},
    {"cache_bits": 32},
    {"cache_bits": "16"},
    {"mode": "quick"},
    {"mode": None},
    {"threads": 0},
    {"threads": -2},
    {"threads": 10**6},
    {"max_rows_per_step": 0},
    {"max_rows_per_step": 2.5},
    {"max_rows_per_step": True},
]


@pytest.mark.parametrize("setting", BAD_SETTINGS, ids=str)
def test_settings_out_of_range_are_refused_with_what_was_found_before_work(
    damaged: tensure.Session, setting: dict[str, Any]
) -> None:
    """The weights are damaged: whoever reads one before the setting says so instead."""
    with pytest.raises(InputError) as caught:
        damaged.engine(**{"threads": 1} | setting)
    ((_, value),) = setting.items()
    assert str(value) in str(caught.value), caught.value
    assert caught.value.wanted


def test_damaged_weights_are_refused_before_a_token_is_made(damaged: tensure.Session) -> None:
    with pytest.raises(DamageError):
        damaged.engine(threads=1)


# --- logits that are not numbers, weights that are not what was signed ----------------------------------


@pytest.fixture(scope="module")
def poisoned(engine_home: Path) -> Iterator[tensure.Session]:
    """A model for which token 50 is NaN in the embedding alone: who reads it has no finite logit."""
    home = engine_home / "poisoned"
    home.mkdir()
    source, _ = save_source(home, "qwen2", "f32")
    model = tensure.load(source)
    embed = model.weights["embed"].decode().copy()
    assert embed.shape[0] == VOCAB and "head" in "".join(model.weights), "head and embedding must be two"
    embed[50, 7] = np.nan
    weights = {**model.weights, "embed": type(model.weights["embed"]).from_array(embed, "f32")}
    with key_of(home) as key:
        bundle = tensure.seal(dataclasses.replace(model, weights=weights), home / "poisoned.bundle")
    with tensure.open(bundle, key=key) as opened:
        yield opened


CLEAN = [Ask(tuple(token for token in base if token != 50)[:size], 12) for base in BASES for size in (17, 31)]
POISON = Ask((*CLEAN[1].prompt[:20], 50, 3, 4, 5), 12)


def test_logits_that_are_nan_end_their_stream_with_the_numbers(poisoned: tensure.Session) -> None:
    alone = Alone(poisoned)
    wanted = [alone(ask)[0] for ask in CLEAN]
    assert all(50 not in answer.tokens for answer in wanted)
    for rows in (4, 64):
        engine = poisoned.engine(max_sequences=2, threads=1, max_rows_per_step=rows)
        pages = engine.stats.pages_free
        (bad,) = POISON.submit(engine)
        streams = [ask.submit(engine)[0] for ask in CLEAN]
        engine.run()
        assert isinstance(bad.error, EvaluationError) and bad.tokens == ()
        assert "token 0" in str(bad.error), bad.error
        with pytest.raises(EvaluationError):
            list(bad)
        # The others went on beside it, and others again in pages that held its keys and values.
        assert [Answer.of(stream) for stream in streams] == wanted
        again = [ask.submit(engine)[0] for ask in CLEAN]
        engine.run()
        assert [Answer.of(stream) for stream in again] == wanted
        assert engine.stats.pages_used == 0
        assert engine.stats.pages_free + engine.stats.pages_cached == pages


def test_the_pages_of_nan_are_used_again_without_a_trace(poisoned: tensure.Session) -> None:
    alone = Alone(poisoned, cache_bits=8)
    engine = poisoned.engine(max_sequences=1, threads=1, cache_bits=8)
    for _ in range(2):
        (bad,) = Ask((50,) * 90, 4).submit(engine)  # every page of the cache
        engine.run()
        assert isinstance(bad.error, EvaluationError)
        for ask in CLEAN:
            (stream,) = ask.submit(engine)
            engine.run()
            assert [Answer.of(stream)] == alone(ask)


def test_the_lowest_bit_of_one_weight_changes_the_logits(
    decoder: Callable[[str], Sealed], engine_home: Path
) -> None:
    """The control of every comparison here."""
    home = engine_home / "flipped"
    home.mkdir()
    source, _ = save_source(home, "llama", "bf16")
    file = source / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-2 * 96 * 24] ^= 1
    file.write_bytes(data)
    with key_of(home) as key:
        bundle = tensure.seal(tensure.load(source), home / "flipped.bundle")
    whole = decoder("llama-bf16")
    ask = Ask(BASES[0][:40], 4)
    with whole.open() as one, tensure.open(bundle, key=key) as other:
        assert Alone(one)(ask)[0].logits[0] != Alone(other)(ask)[0].logits[0]
