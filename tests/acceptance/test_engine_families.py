"""Logits of random models of each family against transformers, within stated bounds.

Two references. In float32 throughout, the engine's cache of 16 bits may cost 2^-8 of the largest logit (f16
keys and values, each off by up to 2^-11, through three layers of large weights). With transformers' own keys
and values passed through float16, what is left is the engine's arithmetic: 2^-10.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tests.acceptance.engine_models import (
    BASES,
    CONTEXT,
    DTYPES,
    SIZES,
    Ask,
    Sealed,
    reference_logits,
    serve,
)
from tests.program import tiny_decoders
from tests.program.tiny_decoders import error_of

FLOAT_BOUND, HALF_BOUND = 2.0**-8, 2.0**-10
FOLDERS = [f"{family}-{dtype}" for family in tiny_decoders.FAMILIES for dtype in DTYPES]
FILES = [
    f"{name}{place}"
    for name in ("llama-q4_0", "llama-q4_1", "llama-q8_0", "granite-q4_0", "granite-q8_0")
    for place in ("", "/in_place")
]
PROMPTS = (BASES[0][:1], BASES[1][:16], BASES[1][:17], BASES[0][:45])


def engine_logits(sealed: Sealed, **settings: Any) -> tuple[list[int], np.ndarray]:
    """A text of prompt and answer that fills the context, and logits f32[N, V] of the answer's positions."""
    ask = Ask(PROMPTS[3], CONTEXT - len(PROMPTS[3]))
    with sealed.open() as session:
        (answer,) = serve(session, [ask], max_sequences=1, max_rows_per_step=20, **settings)
    logits = np.stack([np.frombuffer(row, np.float32) for row in answer.logits])
    return [*ask.prompt, *answer.tokens[:-1]], logits


@pytest.mark.parametrize("name", [*FOLDERS, *FILES])
def test_logits_equal_transformers(decoder: Callable[[str], Sealed], name: str) -> None:
    name, _, place = name.partition("/")
    sealed = decoder(name)
    text, found = engine_logits(sealed, in_place=bool(place))
    error = error_of(found, reference_logits(sealed.reference, text)[44:])
    half_error = error_of(found, reference_logits(sealed.reference, text, half_cache=True)[44:])
    print(f"{name}: {error:.1e} of float32, {half_error:.1e} of float32 with a float16 cache")
    assert error < FLOAT_BOUND
    assert half_error < (HALF_BOUND if name in FOLDERS else FLOAT_BOUND)


@pytest.mark.parametrize("family", tiny_decoders.FAMILIES)
def test_prompts_of_all_lengths_equal_transformers(decoder: Callable[[str], Sealed], family: str) -> None:
    sealed = decoder(f"{family}-bf16")
    with sealed.open() as session:
        answers = serve(session, [Ask(prompt, 1) for prompt in PROMPTS], max_sequences=4)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        found = np.frombuffer(answer.logits[0], np.float32)
        want = reference_logits(sealed.reference, prompt, half_cache=True)[-1]
        assert error_of(found, want) < HALF_BOUND, len(prompt)


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("llama", {"rms_norm_eps": 3e-2}),
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 9000.0}}),
        ("granite", {"embedding_multiplier": 3.1}),
        ("granite", {"residual_multiplier": 0.61}),
        ("granite", {"attention_multiplier": 0.22}),
        ("granite", {"logits_scaling": 4.1}),
        ("qwen2", {"bias": 0.9}),
        ("qwen3", {"q_norm": 0.9}),
        ("qwen3", {"k_norm": 0.9}),
    ],
    ids=str,
)
def test_the_bound_sees_every_part_of_a_family(
    decoder: Callable[[str], Sealed], family: str, change: dict[str, Any]
) -> None:
    """The controls: a reference that is slightly another model is far off."""
    text, found = engine_logits(decoder(f"{family}-f32"))
    ((key, value),) = change.items()
    if key in ("bias", "q_norm", "k_norm"):
        other = tiny_decoders.reference(family, **SIZES)
        for name, weight in other.named_parameters():
            if key in name:
                weight.data.mul_(value)
    else:
        other = tiny_decoders.reference(family, **SIZES | change)
    assert error_of(found, reference_logits(other, text)[44:]) > 2 * FLOAT_BOUND


def test_narrower_caches_cost_what_their_bits_say(decoder: Callable[[str], Sealed]) -> None:
    """Four bits fewer, sixteen times the error, give or take: relative rms of the same positions."""
    sealed = decoder("qwen3-f32")
    prompt = BASES[0][:60]
    want = reference_logits(sealed.reference, prompt)[-1]
    errors = {}
    with sealed.open() as session:
        for bits in (16, 8, 4):
            (answer,) = serve(session, [Ask(prompt, 1)], max_sequences=1, cache_bits=bits)
            found = np.frombuffer(answer.logits[0], np.float32)
            errors[bits] = float(np.linalg.norm(found - want) / np.linalg.norm(want))
    print(errors)
    assert errors[16] < 2.0**-9 < errors[8] < 0.04 < errors[4] < 0.5
