"""The decoder definition by itself: well-formed, causal, and the same whichever way its tokens are fed."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tensure.errors import InputError, RecordError
from tensure.program import (
    Program,
    bind_entry,
    digest,
    evaluate_program,
    expand,
    format_program,
    parse_program,
    validate_program,
)
from tensure.program._decoder import (
    DecoderConfig,
    RopeScaling,
    choose_context,
    decoder_program,
    rope_frequencies,
)
from tensure.program._evaluate import leaves

SMALL = DecoderConfig(
    layers=2, width=12, heads=4, kv_heads=2, head_dim=6, ffn=10, vocab=23, context=20, rms_eps=1e-5
)
KINDS: dict[str, DecoderConfig] = {
    "llama": SMALL,
    "adjacent": dataclasses.replace(SMALL, rope_layout="adjacent", tied=True),
    "granite": dataclasses.replace(
        SMALL,
        embedding_multiplier=12.0,
        residual_multiplier=0.22,
        attention_multiplier=0.3,
        logits_scaling=8.0,
    ),
    "qwen2": dataclasses.replace(SMALL, qkv_bias=True),
    "qwen3": dataclasses.replace(SMALL, qk_norm=True, head_dim=4),
    "every head its own key": dataclasses.replace(SMALL, kv_heads=4),
}
CONTEXT = 16


def given_for(config: DecoderConfig, program: Program, seed: int = 0) -> dict[str, Any]:
    """Random weights and states for a program."""
    rng = np.random.default_rng(seed)
    env = bind_entry(program, "decode", {"pos": 0})
    found: dict[str, Any] = {}
    for key, want, role in leaves(program, "decode", env):
        if role == "weight":
            found[key] = rng.standard_normal(want.shape, dtype=np.float32) / max(want.shape[-1], 1) ** 0.5
        elif role == "state":
            found[key] = np.full(want.shape, np.nan, np.float32)  # an unwritten row must never be read
    found["inv_freq"] = rope_frequencies(config)
    return found


def fed(program: Program, leaves_: dict[str, Any], tokens: list[int], chunks: list[int]) -> list[Any]:
    """Logits after the last token of each chunk: prefill, or decode where a chunk is one token."""
    at, states, found = 0, dict(leaves_), []
    for size in chunks:
        entry, params = ("decode", {"pos": at}) if size == 1 else ("prefill", {"n": size, "pos": at})
        step = {**states, "tokens": np.array(tokens[at : at + size])}
        result = evaluate_program(program, step, entry=entry, params=params)
        found.append(result.outputs["logits"])
        states |= result.states
        at += size
    return found


def scored(program: Program, leaves_: dict[str, Any], tokens: list[int]) -> Any:
    params = {"n": len(tokens), "pos": 0}
    step = {**leaves_, "tokens": np.array(tokens)}
    return evaluate_program(program, step, entry="score", params=params).outputs["logits"]


@pytest.mark.parametrize("kind", KINDS)
def test_program_is_well_formed_and_its_text_reads_back(kind: str) -> None:
    program = decoder_program(KINDS[kind], CONTEXT)
    validate_program(program)
    assert parse_program(format_program(program)) == program


def test_configurations_are_different_programs() -> None:
    assert len({digest(decoder_program(config, CONTEXT)) for config in KINDS.values()}) == len(KINDS)


def test_ops_of_a_layer() -> None:
    counts = {}
    for kind, config in KINDS.items():
        program = decoder_program(config, CONTEXT)
        per_depth = [
            len(list(expand(one.blocks, one.entry("decode").body, bind_entry(one, "decode", {"pos": 0}))))
            for one in (program, decoder_program(dataclasses.replace(config, layers=3), CONTEXT))
        ]
        counts[kind] = per_depth[1] - per_depth[0]
    assert counts == {
        "llama": 36,
        "adjacent": 36,
        "granite": 38,
        "qwen2": 36,
        "qwen3": 38,
        "every head its own key": 36,
    }


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=3)
@given(data=st.data())
def test_chunks_and_single_tokens_give_what_one_pass_gives(kind: str, data: st.DataObject) -> None:
    config = KINDS[kind]
    program = decoder_program(config, CONTEXT)
    chunks = data.draw(
        st.lists(st.integers(1, 5), min_size=1, max_size=5).filter(lambda c: sum(c) <= CONTEXT)
    )
    tokens = data.draw(st.lists(st.integers(0, 22), min_size=sum(chunks), max_size=sum(chunks)))
    leaves_ = given_for(config, program)
    whole = scored(program, leaves_, tokens)
    ends = np.cumsum(chunks) - 1
    for row, logits in zip(ends, fed(program, leaves_, tokens, chunks), strict=True):
        np.testing.assert_allclose(logits, whole[row], rtol=0, atol=2e-6 * np.abs(whole).max())


@pytest.mark.parametrize("fault", ["mask", "position", "cache row"])
def test_a_planted_fault_shows_in_chunked_feeding(fault: str) -> None:
    """The equation above can fail: each of these leaves one pass as it was, or breaks causality."""
    program = decoder_program(SMALL, CONTEXT)
    leaves_ = given_for(SMALL, program)
    tokens, chunks = [3, 9, 1, 22, 7, 7, 15], [3, 1, 3]
    text = format_program(program)
    bad_text = {
        "mask": text.replace(
            "mask = le(key_position, query_column)", "mask = ge(key_position, query_column)"
        ),
        "position": text.replace('dtype="f32" end=pos+n start=pos', 'dtype="f32" end=n start=0'),
        "cache row": text.replace("dim=1 end=pos+n start=pos", "dim=1 end=n start=0", 1),
    }[fault]
    assert bad_text != text
    bad = parse_program(bad_text)
    leaves_ = {key: np.nan_to_num(value, nan=0.5) for key, value in leaves_.items()}
    whole = scored(bad, leaves_, tokens)
    worst = max(
        float(np.abs(logits - whole[row]).max())
        for row, logits in zip(np.cumsum(chunks) - 1, fed(bad, leaves_, tokens, chunks), strict=True)
    )
    assert worst > 1e-3 * np.abs(whole).max()


def test_a_later_token_never_changes_an_earlier_row() -> None:
    program = decoder_program(SMALL, CONTEXT)
    leaves_ = given_for(SMALL, program)
    one, other = scored(program, leaves_, [3, 9, 1, 22]), scored(program, leaves_, [3, 9, 1, 4])
    np.testing.assert_array_equal(one[:3], other[:3])
    assert np.abs(one[3] - other[3]).max() > 1e-3


def test_layouts_are_one_model_in_two_orders() -> None:
    """Rows of query and key reordered within each head, and the other layout: the same logits."""
    half = decoder_program(SMALL, CONTEXT)
    adjacent = decoder_program(dataclasses.replace(SMALL, rope_layout="adjacent"), CONTEXT)
    leaves_ = given_for(SMALL, half)
    moved = dict(leaves_)
    for layer in range(SMALL.layers):
        for base, heads in (("q", SMALL.heads), ("k", SMALL.kv_heads)):
            rows = leaves_[f"{base}[{layer}]"]
            moved[f"{base}[{layer}]"] = (
                rows.reshape(heads, 2, SMALL.head_dim // 2, -1).swapaxes(1, 2).reshape(rows.shape)
            )
    tokens = [3, 9, 1, 22, 7, 7]
    want = scored(half, leaves_, tokens)
    np.testing.assert_allclose(scored(adjacent, moved, tokens), want, rtol=0, atol=2e-6 * np.abs(want).max())
    assert np.abs(scored(adjacent, leaves_, tokens) - want).max() > 1e-3 * np.abs(want).max()


@pytest.mark.parametrize("head_dim", [8, 64, 80, 128])
@pytest.mark.parametrize("theta", [1e4, 1e5, 5e5, 1e6, 1e7])
@pytest.mark.parametrize("scaling", [None, RopeScaling("linear", 4.0), RopeScaling("llama3", 8.0)])
def test_frequencies_are_those_of_transformers(
    head_dim: int, theta: float, scaling: RopeScaling | None
) -> None:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    if scaling is not None:
        rope |= {"rope_type": scaling.kind, "factor": scaling.factor}
        if scaling.kind == "llama3":
            rope |= {
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_context,
            }
    theirs = transformers.LlamaConfig(head_dim=head_dim, rope_parameters=rope, max_position_embeddings=65536)
    kind = rope["rope_type"]
    if kind == "default":
        base = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(theirs).inv_freq
    else:
        base = ROPE_INIT_FUNCTIONS[kind](theirs, torch.device("cpu"))[0]
    config = dataclasses.replace(SMALL, head_dim=head_dim, rope_theta=theta, rope_scaling=scaling)
    # One unit in the last place: their power function is not correctly rounded everywhere, and their
    # interpolation between scaled and kept (of slow pairs only) is done in float32.
    rtol = 1e-6 if kind == "llama3" else 1.3e-7
    np.testing.assert_allclose(rope_frequencies(config), base.numpy(), rtol=rtol, atol=0)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"layers": 0}, "layers"),
        ({"layers": 1 << 40}, "layers"),
        ({"heads": 3}, "heads"),
        ({"head_dim": 7}, "head_dim"),
        ({"vocab": 1 << 50}, "vocab"),
        ({"context": 0}, "context"),
        ({"rms_eps": 0.0}, "rms_eps"),
        ({"rms_eps": float("nan")}, "rms_eps"),
        ({"rope_theta": float("inf")}, "rope_theta"),
        ({"logits_scaling": 0.0}, "logits_scaling"),
        ({"attention_multiplier": float("nan")}, "attention_multiplier"),
    ],
)
def test_numbers_are_range_checked(change: dict[str, Any], named: str) -> None:
    with pytest.raises(RecordError, match=named):
        dataclasses.replace(SMALL, **change)


def test_scaling_is_range_checked() -> None:
    with pytest.raises(RecordError, match="factor"):
        RopeScaling("linear", 0.0)
    with pytest.raises(RecordError, match="less than high_freq_factor"):
        RopeScaling("llama3", 8.0, 4.0, 4.0)


def test_context_is_the_models_up_to_2048_unless_asked() -> None:
    assert choose_context(None, 100) == 100
    assert choose_context(None, 100_000) == 2048
    assert choose_context(4096, 100_000) == 4096
    for wrong in (0, -1, 101):
        with pytest.raises(InputError, match="1 to 100"):
            choose_context(wrong, 100)
