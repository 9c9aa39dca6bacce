"""`DecoderStage` against its numpy reference bit for bit, on every instruction set here; and planted faults.

That nothing a scheduler does changes a bit is in test_decoder_steps.py, what is refused in
test_decoder_refusals.py.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kernels.decoder_cases import (
    ANY,
    LOOKED_UP,
    Model,
    Server,
    plain,
    random_model,
    same_bits,
    scattered,
    whole,
)

from tensure.errors import TensureError, UnsupportedError
from tensure.kernels import (
    GEMV_FORMATS,
    KV_FORMATS,
    DecoderLayer,
    GemvWeights,
    PlainMatrix,
    available_isas,
    exact_is_fused,
    features,
    isa,
)
from tensure.kernels._decoder_attention_reference import Cached, round_for_cache
from tensure.kernels._decoder_rows_reference import rotate

ROOT = Path(__file__).resolve().parents[2]
MATRICES = ("q", "k", "v", "o", "gate", "up", "down")
HEAD_DIMS = (2, 6, 20, 64, 80)


@st.composite
def models(draw: st.DrawFn) -> Model:
    """Any sizes small enough for the reference; 256 columns, for q4_k, in small models only."""
    wide = draw(st.integers(0, 4)) == 0
    width, ffn = (256, 32) if wide else (draw(st.integers(1, 50)), draw(st.integers(1, 50)))
    if draw(st.booleans()) and not wide:
        width, ffn = -(-width // 32) * 32, -(-ffn // 32) * 32
    kinds = draw(st.sampled_from([ANY, ("f32",), ("f16",), ("bf16",)]))
    return random_model(
        draw(st.integers(0, 2**32)),
        width=width,
        heads=(draw(st.integers(1, 3)), draw(st.integers(1, 5))),
        head_dim=draw(st.sampled_from(HEAD_DIMS[:3] if wide else HEAD_DIMS)),
        ffn=ffn,
        vocab=draw(st.integers(1, 50)),
        layers=1 if wide else draw(st.integers(1, 2)),
        kinds=("q4_k", "q8_0", "int4") if wide else kinds,
        kv_format=draw(st.sampled_from(sorted(KV_FORMATS))),
        arithmetic=draw(st.sampled_from(["fast", "fine", "exact"])),
        adjacent=draw(st.booleans()),
        biases=draw(st.booleans()),
        head_norms=draw(st.booleans()),
        multipliers=draw(st.booleans()),
    )


@settings(max_examples=150)
@given(models(), st.lists(st.integers(1, 20), max_size=2), st.integers(1, 40), st.integers(1, 3), st.data())
def test_equals_reference(
    model: Model, lengths: list[int], longest: int, threads: int, data: st.DataObject
) -> None:
    """Several sequences in mixed batches, each row as the reference has it for that sequence alone."""
    seed = data.draw(st.integers(0, 2**32))
    sequences = [model.tokens(n, seed + i) for i, n in enumerate([longest, *lengths])]
    served = Server(model, sequences, seed=seed, threads=threads).serve([*scattered(sequences, seed)])
    for tokens, found in zip(sequences, served, strict=True):
        assert same_bits(found, model.reference(tokens))


@pytest.mark.parametrize("kv_format", sorted(KV_FORMATS))
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_a_full_context_equals_reference(kv_format: str, head_dim: int) -> None:
    """All 70 positions, the last page part full."""
    model = random_model(
        head_dim, head_dim=head_dim, heads=(2, 2), layers=1, kv_format=kv_format, adjacent=head_dim % 4 > 0
    )
    tokens = model.tokens(70)
    assert same_bits(Server(model, [tokens]).serve(whole([tokens]))[0], model.reference(tokens))


@pytest.mark.parametrize("kind", sorted({*GEMV_FORMATS, "f32", "f16", "bf16"}))
@pytest.mark.parametrize("arithmetic", ["fast", "fine", "exact"])
def test_every_kind_of_matrix_equals_reference(kind: str, arithmetic: str) -> None:
    """All matrices of one kind; those whose rows are not looked up have an embedding of another."""
    size = 256 if kind == "q4_k" else 32
    model = random_model(
        5,
        width=size,
        ffn=size,
        heads=(1, 4),
        head_dim=size // 4,
        layers=1,
        kinds=(kind,),
        arithmetic=arithmetic,
    )
    assert {m.format if isinstance(m, GemvWeights) else m.kind for m in all_matrices(model)} == {kind}
    tokens = model.tokens(9)
    assert same_bits(Server(model, [tokens]).serve(whole([tokens]))[0], model.reference(tokens))


@pytest.mark.parametrize("layers", ["fast", "fine", "exact"])
@pytest.mark.parametrize("head", ["fast", "fine", "exact"])
def test_the_head_has_an_arithmetic_of_its_own(layers: str, head: str) -> None:
    model = dataclasses.replace(
        random_model(9, width=64, layers=1, kinds=("int8",), arithmetic=layers), head_arithmetic=head
    )
    tokens = model.tokens(5)
    found = Server(model, [tokens]).serve(whole([tokens]))[0]
    assert same_bits(found, model.reference(tokens))
    if head != layers:
        assert not same_bits(found, dataclasses.replace(model, head_arithmetic=None).reference(tokens))


def all_matrices(model: Model) -> list[GemvWeights | PlainMatrix]:
    return [model.head[0], *(getattr(layer, name) for layer in model.layers for name in MATRICES)]


@settings(max_examples=80)
@given(st.integers(0, 2**32), st.sampled_from(sorted(KV_FORMATS)), st.integers(-45, 38))
def test_keys_and_values_of_any_size_equal_reference(seed: int, kv_format: str, exponent: int) -> None:
    """Biases make heads tiny, flat, beyond half's range, or too wide for four bits."""
    model = random_model(seed, biases=True, layers=1, kv_format=kv_format, kinds=("f32",), vocab=40)
    rng = np.random.default_rng(seed)
    size = rng.choice([0, 1, 10.0**exponent], 12) * rng.normal(0, 1, 12)
    with np.errstate(over="ignore"):
        bias = size.astype(np.float32)
    layer = dataclasses.replace(model.layers[0], k_bias=bias, v_bias=bias[::-1].copy())
    if exponent < 0:  # nothing but the bias
        empty = plain("f32", np.zeros((12, 20)))
        layer = dataclasses.replace(layer, k=empty, v=empty)
    model = dataclasses.replace(model, layers=[layer])
    tokens = model.tokens(18, seed)
    assert same_bits(Server(model, [tokens]).serve(whole([tokens]))[0], model.reference(tokens))


HEADS_OF_CACHE = {
    "ordinary": [0.3, -1.2, 0.7, 2.0, -0.1, 0.0],
    "ties of 8 bits": [127.0, 0.5, -1.5, 2.5, 63.5, -126.5],
    "ties of 4 bits": [-3.0, 12.0, -2.5, 0.5, 3.5, 11.5],
    "near ties of 8 bits": [np.float32(9.1) * (n + 0.5) / 127 for n in (126.5, 3, 17, 38, 66, 99)],
    "near ties of 4 bits": [np.float32(9.1) * n / 15 for n in (0, 15, 1.5, 3.5, 8.5, 13.5)],
    "where x / (max / 127) rounds otherwise": [
        64.0592041015625,
        0.7566047310829163,
        1.2610080242156982,
        2.2698144912719727,
        2.774217367172241,
        3.278620719909668,
    ],
    "one number": [0.7] * 6,
    "narrower than 2^-100": [3e-31, -4e-31, 1e-31, 0.0, 1e-40, 0.0],
    "zeros": [0.0] * 6,
    "below 2^-100": [7e-31, -7e-31, 3e-31, 0.0, 1e-40, 0.0],
    "above 2^-100": [8e-31, -8e-31, 3e-31, 0.0, 1e-40, 0.0],
    "just beyond half": [65519.0, 65520.0, -65520.0, 6e-8, 2.9e-8, 3.1e-8],
    "wide": [3e38, -3e37, 1e38, 0.0, 1.0, 2.0],
    "too wide": [3e38, -3e38, 1e38, 0.0, 1.0, 2.0],
    "infinite": [np.inf, -1.0, 1e38, 0.0, 1.0, 2.0],
    "NaN last": [1.0, -1.0, 3.0, 0.0, 1.0, np.nan],
}


@pytest.mark.parametrize("kv_format", sorted(KV_FORMATS))
@pytest.mark.parametrize("what", sorted(HEADS_OF_CACHE))
def test_pages_hold_what_the_reference_rounds(kv_format: str, what: str) -> None:
    """Position 0, turned by nothing, with biases alone as key and value: bytes as kv.h lays them out."""
    model = random_model(1, biases=True, layers=1, heads=(1, 2), kv_format=kv_format)
    head = np.array(HEADS_OF_CACHE[what], np.float32)
    rng = np.random.default_rng(len(what))
    scaled = [head, head[::-1] * np.float32(rng.uniform(0.5, 1))]  # other products that end close to a tie
    key, value = (np.ascontiguousarray(x, np.float32) for x in scaled)
    nothing = plain("f32", np.zeros((6, 20)))
    layer = dataclasses.replace(model.layers[0], k=nothing, v=nothing, k_bias=key, v_bias=value)
    server = Server(dataclasses.replace(model, layers=[layer]), [model.tokens(1)])
    server.step([(0, 0)])
    page = server.pages[0][server.tables[0, 0]]
    with np.errstate(all="ignore"):
        # By nothing, and yet Inf makes a NaN of its partner.
        turned = rotate(key.reshape(1, 1, 6), model.cosine[:1], model.sine[:1], False)
        for x, found in zip((turned, value), stored_at_position_0(page, kv_format), strict=True):
            wanted = round_for_cache(x.reshape(1, 1, 6), kv_format)
            if not np.isfinite(x).all() and kv_format != "f16":
                assert np.isnan(found.scale).all()
                continue
            for ours, theirs in zip(dataclasses.astuple(found), dataclasses.astuple(wanted), strict=True):
                assert (ours is None) == (theirs is None)
                assert ours is None or np.array_equal(ours, theirs, equal_nan=True)


def stored_at_position_0(page: np.ndarray, kv_format: str) -> tuple[Cached, Cached]:
    """Key and value of a page of one layer and one head of size 6."""
    bits = {"f16": 16, "int8": 8, "int4": 4}[kv_format]
    values = -(-6 * 2 * bits // 64) * 64
    key, value = page[: 6 * 2 * bits], page[values : values + 32 * 2 * bits]
    scales = page[values + 32 * 2 * bits :]
    if kv_format == "f16":
        k, v = (part.view(np.float16).astype(np.float32) for part in (key, value))
        return Cached(k[::16].reshape(1, 1, 6), None, None), Cached(v[:6].reshape(1, 1, 6), None, None)
    numbers = scales[: scales.size // 4 * 4].view(np.float32)[::16].reshape(-1, 1, 1)
    if kv_format == "int8":
        k, v = (part.view(np.int8).astype(np.float32) for part in (key, value))
        return (
            Cached(k[::16].reshape(1, 1, 6), numbers[0], None),
            Cached(v[:6].reshape(1, 1, 6), numbers[1], None),
        )
    k = np.concatenate([key[::16] & 15, key[::16] >> 4]).astype(np.float32)
    return (
        Cached(k.reshape(1, 1, 6), numbers[0], numbers[1]),
        Cached((value[:6] & 15).astype(np.float32).reshape(1, 1, 6), numbers[2], numbers[3]),
    )


def test_without_layers_embedding_and_head_alone() -> None:
    model = random_model(3, layers=0, multipliers=True)
    tokens = model.tokens(5)
    assert same_bits(Server(model, [tokens]).serve(whole([tokens]))[0], model.reference(tokens))


# --- what is not finite ------------------------------------------------------------------------------


@pytest.mark.parametrize("kv_format", sorted(KV_FORMATS))
@pytest.mark.parametrize("arithmetic", ["fast", "fine", "exact"])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_an_activation_that_is_not_finite_reaches_the_logits(
    kv_format: str, arithmetic: str, value: float
) -> None:
    """From its position on, and in no other sequence of the step."""
    model = random_model(1, kv_format=kv_format, arithmetic=arithmetic, width=32)
    table = np.random.default_rng(1).normal(0, 1, (21, 32))
    table[7, 11] = value
    model = dataclasses.replace(model, embed=plain("f32", table))
    tokens = model.tokens(20) % 7
    touched = tokens.copy()
    touched[9] = 7
    served = Server(model, [touched, tokens], threads=2)
    steps = [[(s, p) for s in (0, 1) for p in part] for part in (range(7), range(7, 18), range(18, 20))]
    found, clean = served.serve(steps)
    assert np.isfinite(found[:9]).all() and np.isnan(found[9:]).all()
    assert same_bits(found, model.reference(touched))
    assert same_bits(clean, model.reference(tokens))


@pytest.mark.parametrize("name", [*MATRICES, "attn_norm", "ffn_norm", "v_bias", "k_bias", "k_norm", "head"])
@pytest.mark.parametrize("kv_format", sorted(KV_FORMATS))
def test_a_weight_that_is_not_finite_reaches_the_logits(name: str, kv_format: str) -> None:
    model = random_model(2, width=32, ffn=32, kinds=("q8_0",), heads=(2, 2), head_dim=16, kv_format=kv_format,
                         biases=True, head_norms=True)  # fmt: skip
    if name == "head":
        matrix, norm = model.head
        damaged = dataclasses.replace(model, head=(nan_scale(matrix), norm))
    else:
        old = getattr(model.layers[0], name)
        layer = dataclasses.replace(model.layers[0], **{name: nan_scale(old)})
        damaged = dataclasses.replace(model, layers=[layer, *model.layers[1:]])
    tokens = model.tokens(6)
    found = Server(damaged, [tokens]).serve(whole([tokens]))[0]
    assert same_bits(found, damaged.reference(tokens))
    if name == "head":  # its first row of weights is the first logit's
        assert np.isnan(found[:, 0]).all() and np.isfinite(found[:, 1:]).all()
    else:
        assert np.isnan(found).all()


def nan_scale(stored: Any) -> Any:
    """The first block's scale, or the first number, made NaN."""
    if isinstance(stored, np.ndarray):
        return np.concatenate([np.float32([np.nan]), stored[1:]])
    q = stored.q.copy()
    q[:2] = np.array([0x7E00], "<u2").view(np.uint8)
    return dataclasses.replace(stored, q=q)


# --- planted faults ----------------------------------------------------------------------------------


def flipped(stored: Any, seed: int) -> Any:
    """One bit of a weight's integers or of its exponent turned."""
    rng = np.random.default_rng(seed)
    if isinstance(stored, np.ndarray):
        changed = stored.copy()
        changed.view(np.uint32)[rng.integers(stored.size)] ^= np.uint32(1 << 22)
        return changed
    name = "q" if isinstance(stored, GemvWeights) else "data"
    data = getattr(stored, name).copy()
    if name == "data":  # a high bit of the fraction
        width = data.size // (stored.num_rows * stored.num_cols)
        data[rng.integers(data.size // width) * width + (2 if stored.kind == "f32" else 0)] ^= 0x40
    else:  # of Q8_0's integers
        data[rng.integers(data.size // 34) * 34 + 2 + rng.integers(32)] ^= 0x40
    return dataclasses.replace(stored, **{name: data})


FAULTS: dict[str, Callable[[DecoderLayer, int], DecoderLayer]] = {
    name: lambda layer, seed, name=name: dataclasses.replace(
        layer, **{name: flipped(getattr(layer, name), seed)}
    )
    for name in (*MATRICES, "attn_norm", "ffn_norm", "q_bias", "k_bias", "v_bias", "q_norm", "k_norm")
}


@pytest.mark.parametrize("name", sorted(FAULTS))
@pytest.mark.parametrize("kind", ["q8_0", "f32", "f16", "bf16"])
def test_one_flipped_bit_of_a_weight_is_seen(name: str, kind: str) -> None:
    """Negative control: the reference of a model with another bit has other logits than our kernel."""
    model = random_model(8, width=32, ffn=32, heads=(1, 2), head_dim=16, kinds=(kind,), biases=True,
                         head_norms=True, arithmetic="exact")  # fmt: skip
    tokens = model.tokens(6)
    found = Server(model, [tokens]).serve(whole([tokens]))[0]
    assert same_bits(found, model.reference(tokens))
    damaged = dataclasses.replace(model, layers=[FAULTS[name](model.layers[0], 1), model.layers[1]])
    assert not same_bits(found, damaged.reference(tokens))


@pytest.mark.parametrize("kv_format", sorted(KV_FORMATS))
@pytest.mark.parametrize("fault", ["key", "value", "page id", "position", "token", "unwritten"])
def test_a_fault_of_the_cache_is_seen(kv_format: str, fault: str) -> None:
    """Negative control: the last row's logits, with one thing wrong before its step.

    In "exact": rounding activations to 8 bits may lose what one element of the cache changes.
    """
    model = random_model(4, kv_format=kv_format, heads=(1, 2), head_dim=20, layers=1, arithmetic="exact")
    tokens = model.tokens(34)
    right = model.reference(tokens)[33:]
    server = Server(model, [tokens])
    server.serve(whole([tokens[:33]]))
    row = (0, 33)
    assert same_bits(server.step([row]), right)
    page = server.pages[0][server.tables[0, 0]]
    bits = {"f16": 16, "int8": 8, "int4": 4}[kv_format]
    values = -(-20 * 16 * bits // 8 // 64) * 64
    if fault in ("key", "value"):
        at = values if fault == "value" else 0
        page[at + (1 if kv_format == "f16" else 0)] ^= 0x02  # element 0 of position 0
    elif fault == "page id":
        server.tables[0, [0, 1]] = server.tables[0, [1, 0]]
    elif fault == "position":
        row = (0, 32)
        server.sequences[0] = np.append(tokens[:32], tokens[33:])
    elif fault == "token":
        server.sequences[0] = np.append(tokens[:33], (tokens[33:] + 1) % model.sizes.vocab)
    else:
        server.pages[0][server.tables[0, 1]] = 0xFF
        assert np.isnan(server.step([row])).all()
    assert not same_bits(server.step([row]), right)


def test_another_order_of_sums_is_seen() -> None:
    """Negative control: two roundings for one give other bits."""
    model = random_model(1, layers=1, kinds=("f32",))
    tokens = model.tokens(12)
    found = Server(model, [tokens]).serve(whole([tokens]))[0]
    assert not same_bits(found, model.reference(tokens, fused=not exact_is_fused()))


# --- every instruction set ---------------------------------------------------------------------------


def run_forced(**environment: str) -> subprocess.CompletedProcess[str]:
    """This file's `forced` part, in a process of its own."""
    others = {key: value for key, value in os.environ.items() if not key.startswith("TENSURE_")}
    return subprocess.run(
        [sys.executable, "-m", "tests.kernels.test_decoder"],
        env=others | environment,
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )


def test_every_instruction_set_and_fallback_here() -> None:
    """Each equals the reference; all that fuse give the same bits, with byte dot products or without."""
    runs: list[Mapping[str, str]] = [{"TENSURE_ISA": name} for name in available_isas()]
    if "vnni" in features():
        runs += [{"TENSURE_ISA": isa(), "TENSURE_FEATURES": "-vnni"}]
    found: dict[str, set[str]] = {"fused": set(), "twice": set()}
    for environment in runs:
        done = run_forced(**environment)
        assert done.returncode == 0, (environment, done.stdout, done.stderr)
        name, vnni, fused, digest = done.stdout.split()
        assert name == environment["TENSURE_ISA"]
        assert vnni == "no" or "TENSURE_FEATURES" not in environment
        found[fused].add(digest)
    assert len(found["fused"]) == (1 if exact_is_fused() else 0)
    assert not found["fused"] & found["twice"], "not fused, and yet the same bits: the flag says nothing"


def forced() -> int:
    """Compare on this process's instruction set, print a digest; else the exit code of a TensureError."""
    import hashlib

    digest = hashlib.sha256()
    try:
        for i, kind in enumerate([*GEMV_FORMATS, "f32", "f16", "bf16"]):
            for kv_format in KV_FORMATS:
                size = 256 if kind == "q4_k" else 32
                model = random_model(
                    i,
                    width=size,
                    ffn=size,
                    heads=(1, 1 + i % 5) if size == 32 else (1, 4),
                    head_dim=(32, 64)[i % 2 or size > 32],
                    layers=1,
                    kinds=(kind, *LOOKED_UP[:1]) if i % 3 else (kind,),
                    kv_format=kv_format,
                    arithmetic=("fast", "exact")[i % 2],
                    adjacent=i % 4 > 1,
                    biases=True,
                    head_norms=True,
                )
                tokens = model.tokens(19, i)
                found = Server(model, [tokens], threads=2).serve(whole([tokens]))[0]
                assert same_bits(found, model.reference(tokens)), (kind, kv_format)
                digest.update(found.tobytes())
    except UnsupportedError as error:
        print(error)
        return TensureError.exit_code
    vnni = "vnni" if "vnni" in features() else "no"
    print(isa(), vnni, "fused" if exact_is_fused() else "twice", digest.hexdigest())
    return 0


if __name__ == "__main__":
    sys.exit(forced())
