"""gemv against its numpy reference bit for bit, float64 within its bounds, on every instruction set here."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Mapping

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensure.errors import InputError, TensureError, UnsupportedError
from tensure.kernels import (
    ARITHMETICS,
    GEMV_FORMATS,
    Activations,
    GemvWeights,
    available_isas,
    decode_weights,
    dequantize_reference,
    exact_is_fused,
    features,
    gemv,
    gemv_reference,
    isa,
    map_gguf,
    pack_int4,
    pack_int8,
    quantize_activations,
    read_memory,
)
from tensure.kernels._gemv_reference import MOST

IN_PLACE = [name for name, layout in GEMV_FORMATS.items() if layout.block_cols]
GROUPS = {"int8": [None, 32, 64, 128], "int4": [32, 64, 128], "int4_min": [32, 64, 128]}
formats = st.sampled_from(sorted(GEMV_FORMATS))
arithmetics = st.sampled_from(ARITHMETICS)


def random_weights(
    name: str, num_rows: int, num_cols: int, seed: int, group: int | None = None, extreme: bool = False
) -> GemvWeights:
    """Any integers; `extreme` takes only the ends of their range, where a 16-bit sum would overflow first."""
    rng = np.random.default_rng(seed)
    if name in GROUPS:
        low, high = {"int8": (-128, 128), "int4": (-8, 8), "int4_min": (0, 16)}[name]
        q = rng.integers(low, high, (num_rows, num_cols), np.int8)
        if extreme:
            q = rng.choice(np.array([low, high - 1], np.int8), q.shape)
        shape = (num_rows,) if group is None else (num_rows, -(-num_cols // group))
        scales = rng.normal(0, 0.1, shape)
        if name == "int8":
            return pack_int8(q, scales.astype(np.float32), group)
        least = rng.normal(0, 1, shape).astype(np.float16) if name == "int4_min" else None
        return pack_int4(q, scales.astype(np.float16), least, group=group or 32)
    layout = GEMV_FORMATS[name]
    rows = rng.integers(0, 256, (num_rows * num_cols // layout.block_cols, layout.block_bytes), np.uint8)
    if extreme:
        rows = rng.choice(np.array([0x00, 0xFF, 0x80, 0x7F], np.uint8), rows.shape)
    halves = 2 if name in ("q4_1", "q4_k") else 1
    rows[:, : 2 * halves] = rng.normal(0, 0.1, (len(rows), halves)).astype("<f2").view(np.uint8)
    return map_gguf(name, rows.reshape(-1), num_rows, num_cols)


def random_x(batch: int, num_cols: int, seed: int) -> np.ndarray:
    """Rows of different sizes; one group of zeros, one of tiny numbers."""
    rng = np.random.default_rng(seed + 1)
    x = rng.normal(0, 1, (batch, num_cols)) * 10.0 ** rng.integers(-3, 4, (batch, 1))
    if batch > 1:
        x[-1, :32] = 0
        x[0, -20:] *= 1e-36
    return x.astype(np.float32)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal bit for bit, NaN standing for any NaN."""
    nan = np.isnan(a)
    return (
        a.shape == b.shape
        and bool(np.array_equal(nan, np.isnan(b)))
        and bool(np.array_equal(a[~nan].view(np.uint32), b[~nan].view(np.uint32)))
    )


def multiply(weights: GemvWeights, x: np.ndarray, arithmetic: str, threads: int = 1) -> np.ndarray:
    """`gemv` into memory that holds no old result: an element nobody wrote is seen."""
    out = np.full((len(x), weights.num_rows), 12345.0, np.float32)
    return gemv(weights, x, arithmetic=arithmetic, out=out, threads=threads)


def equals_reference(weights: GemvWeights, x: np.ndarray, arithmetic: str, threads: int = 1) -> bool:
    wanted = gemv_reference(weights, x, arithmetic=arithmetic, fused=exact_is_fused())
    return same_bits(multiply(weights, x, arithmetic, threads), wanted)


@st.composite
def matrices(draw: st.DrawFn) -> GemvWeights:
    name = draw(formats)
    num_rows = draw(st.integers(1, 50))
    group = draw(st.sampled_from(GROUPS[name])) if name in GROUPS else None
    unit = GEMV_FORMATS[name].block_cols
    num_cols = unit * draw(st.integers(1, 800 // unit)) if unit else draw(st.integers(1, 400))
    return random_weights(name, num_rows, num_cols, draw(st.integers(0, 2**32)), group, draw(st.booleans()))


@settings(max_examples=60)
@given(matrices(), arithmetics, st.integers(0, 9), st.integers(0, 2**32))
def test_equals_reference(weights: GemvWeights, arithmetic: str, batch: int, seed: int) -> None:
    """Odd rows, odd columns, every group, batch 0 too."""
    assert equals_reference(weights, random_x(batch, weights.num_cols, seed), arithmetic)


@settings(max_examples=30)
@given(matrices(), st.integers(1, 3), st.integers(0, 2**32))
def test_error_against_float64_is_within_its_bounds(weights: GemvWeights, batch: int, seed: int) -> None:
    """The bounds of native/gemv/README.md; `rounded` is what rounding activations to 8 bits may cost."""
    x = random_x(batch, weights.num_cols, seed)
    w = decode_weights(weights).astype(np.float64)
    right = x.astype(np.float64) @ w.T
    size = np.abs(x).astype(np.float64) @ np.abs(w).T
    depth = -(-weights.num_cols // 16) + 5
    slack = 2.0**-126  # subnormal results
    assert (np.abs(gemv(weights, x, arithmetic="exact") - right) <= 2.0**-23 * depth * size + slack).all()
    for arithmetic, most in MOST.items():
        steps, parts = rounded_bounds(weights, x, most)
        y = gemv(weights, x, arithmetic=arithmetic)
        assert (np.abs(y - right) <= steps + 2.0**-23 * (weights.num_cols // 32 + 10) * parts + slack).all()


def rounded_bounds(weights: GemvWeights, x: np.ndarray, largest: int) -> tuple[np.ndarray, np.ndarray]:
    """What rounding x may cost; and the sum of the magnitudes that are added, q * scale and minimum apart."""
    w = decode_weights(weights).astype(np.float64)
    width = -(-weights.num_cols // 32) * 32
    runs = np.zeros((len(x), width))
    runs[:, : weights.num_cols] = np.abs(x)
    most = np.repeat(runs.reshape(len(x), -1, 32).max(axis=2), 32, axis=1)[:, : weights.num_cols]
    steps = (0.5 + largest * 2.0**-22) * most / largest @ np.abs(w).T
    alone = decode_weights(without_minimums(weights)).astype(np.float64)
    return steps, (most + np.abs(x)) @ (np.abs(alone) + np.abs(w - alone)).T


def without_minimums(weights: GemvWeights) -> GemvWeights:
    if weights.format in ("q4_1", "q4_k"):
        rows = weights.q.copy().reshape(-1, GEMV_FORMATS[weights.format].block_bytes)
        rows[:, 2:4] = 0
        return dataclasses.replace(weights, q=rows.reshape(-1))
    return dataclasses.replace(weights, minimums=np.zeros_like(weights.minimums))


@pytest.mark.parametrize("name", sorted(GEMV_FORMATS))
def test_the_bound_sees_one_wrong_weight(name: str) -> None:
    """Negative control: one weight's sign turned is out of all bounds."""
    num_cols = 256
    weights = random_weights(name, 3, num_cols, 7, GROUPS.get(name, [None])[-1])
    x = np.ones((1, num_cols), np.float32)
    x[0, 5] = 1000.0
    w = decode_weights(weights).astype(np.float64)
    column = int(np.abs(w[:, 5]).argmax())
    wrong = w.copy()
    wrong[column, 5] *= -1
    gap = np.abs((x @ wrong.T) - (x @ w.T))[0, column]
    for most in MOST.values():
        steps, parts = rounded_bounds(weights, x, most)
        assert gap > steps[0, column] + 2.0**-23 * 40 * parts[0, column]


@pytest.mark.parametrize("name", sorted(GEMV_FORMATS))
@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_threads_rows_and_batch_change_no_bit(name: str, arithmetic: str) -> None:
    """A row of x alone, or among 17; a slice of the rows of W alone, or all of them; 1 to 7 threads."""
    weights = random_weights(name, 700, 768, 3, GROUPS.get(name, [None])[0])
    x = random_x(17, 768, 4)
    whole = multiply(weights, x, arithmetic)
    assert same_bits(whole[:2], gemv_reference(weights, x[:2], arithmetic=arithmetic, fused=exact_is_fused()))
    for threads in (2, 3, 7):
        assert same_bits(multiply(weights, x, arithmetic, threads), whole)
    for b in (0, 1, 2, 16):
        alone = np.ascontiguousarray(x[b : b + 1])
        assert same_bits(multiply(weights, alone, arithmetic, 3), whole[b : b + 1])
    for few in (3, 5, 8):
        assert same_bits(multiply(weights, x[:few].copy(), arithmetic), whole[:few])
    first, last = 32, 100
    part = rows_of(weights, first, last)
    assert same_bits(multiply(part, x, arithmetic), whole[:, first:last].copy())


def rows_of(weights: GemvWeights, first: int, last: int) -> GemvWeights:
    """Rows first to last, where first is a multiple of 16: slices of the stored bytes."""
    stored = -(-weights.num_rows // 16) * 16 if weights.format in GROUPS else weights.num_rows
    end = -(-last // 16) * 16 if weights.format in GROUPS else last

    def cut(data: np.ndarray) -> np.ndarray:
        return data[data.size // stored * first : data.size // stored * end]

    return dataclasses.replace(
        weights,
        num_rows=last - first,
        q=cut(weights.q),
        scales=cut(weights.scales),
        minimums=cut(weights.minimums),
    )


@pytest.mark.parametrize("name", IN_PLACE)
@pytest.mark.parametrize("skip", [1, 2, 3, 31, 63])
def test_blocks_at_any_address_and_read_only(name: str, skip: int) -> None:
    weights = random_weights(name, 19, 512, skip)
    moved = np.zeros(weights.q.size + 64, np.uint8)[skip : skip + weights.q.size]
    moved[:] = weights.q
    moved.flags.writeable = False
    there = map_gguf(name, moved, 19, 512)
    assert there.q is moved
    for arithmetic in ARITHMETICS:
        assert equals_reference(there, random_x(2, 512, 9), arithmetic)


@pytest.mark.parametrize("name", IN_PLACE)
def test_decoded_blocks_equal_those_of_gguf(name: str) -> None:
    """An independent implementation of the formats; for three of them our own dequantize as well."""
    weights = random_weights(name, 9, 768, 2)
    ours = decode_weights(weights)
    rows = weights.q.reshape(-1, GEMV_FORMATS[name].block_bytes)
    theirs = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[name.upper()])
    assert same_bits(ours, theirs.reshape(9, 768))
    if name != "q4_k":
        assert same_bits(ours, dequantize_reference(name, weights.q).reshape(9, 768))


@pytest.mark.parametrize("group", [None, 32, 64, 128])
def test_packing_loses_nothing(group: int | None) -> None:
    """Integers times scales, computed from what was packed."""
    rng = np.random.default_rng(5)
    q8, q4 = rng.integers(-128, 128, (21, 200), np.int8), rng.integers(0, 16, (21, 200), np.int64)
    groups = 1 if group is None else -(-200 // group)
    scale, least = rng.normal(0, 1, (2, 21, groups)).astype(np.float16)
    wide = np.repeat(scale.astype(np.float32), group or 200, axis=1)[:, :200]
    wide_least = np.repeat(least.astype(np.float32), group or 200, axis=1)[:, :200]
    given_scale = scale.astype(np.float32)
    packed8 = pack_int8(q8, given_scale[:, 0].copy() if group is None else given_scale, group)
    assert same_bits(decode_weights(packed8), q8 * wide)
    if group is not None:
        assert same_bits(decode_weights(pack_int4(q4 - 8, scale, group=group)), (q4 - 8).astype("f4") * wide)
        with_least = pack_int4(q4, scale, least, group=group)
        assert same_bits(decode_weights(with_least), q4.astype("f4") * wide + wide_least)
        assert with_least.nbytes == 32 * groups * group // 2 + 2 * 32 * groups * 2


@pytest.mark.parametrize("name", sorted(GROUPS))
def test_packed_weights_begin_with_a_line_of_the_cache(name: str) -> None:
    """64 bytes that straddle two lines load at half speed: a third of the whole for one row of x."""
    for rows in (16, 700):
        weights = random_weights(name, rows, 768, 1, 32)
        for part in (weights.q, weights.scales, weights.minimums):
            assert not part.size or part.ctypes.data % 64 == 0


@pytest.mark.parametrize("name", sorted(GEMV_FORMATS))
@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_comparison_sees_one_flipped_bit(name: str, arithmetic: str) -> None:
    """Negative control: a stored bit, or a bit of one activation, turns the oracle red."""
    weights = random_weights(name, 20, 256, 11, GROUPS.get(name, [None])[0])
    x = np.random.default_rng(0).normal(0, 1, (2, 256)).astype(np.float32)
    right = gemv(weights, x, arithmetic=arithmetic)
    damaged_q = weights.q.copy()
    damaged_q[weights.q.size // 2] ^= 1 << 6
    damaged = dataclasses.replace(weights, q=damaged_q)
    assert not same_bits(gemv_reference(damaged, x, arithmetic=arithmetic, fused=exact_is_fused()), right)
    moved = x.copy()
    moved[1, 77] *= 1.5
    assert not same_bits(gemv_reference(weights, moved, arithmetic=arithmetic, fused=exact_is_fused()), right)


def test_another_order_of_sums_is_seen() -> None:
    """Negative control: numpy's own order, and two roundings for one, give other bits than "exact"."""
    weights = random_weights("int8", 64, 333, 1, None)
    x = random_x(1, 333, 1)
    ours = gemv(weights, x, arithmetic="exact")
    assert not same_bits(ours, x @ decode_weights(weights).T)
    assert not same_bits(ours, gemv_reference(weights, x, arithmetic="exact", fused=not exact_is_fused()))


@given(
    st.floats(width=32), st.floats(width=32), st.floats(width=32), st.integers(-30, 30), st.integers(-30, 30)
)
def test_the_reference_s_fused_operation_rounds_once(a: float, b: float, c: float, i: int, j: int) -> None:
    """Against exact rational arithmetic."""
    from fractions import Fraction

    from tensure.kernels._gemv_reference import _fused

    x, y, z = np.array([a], "f4"), np.array([b], "f4"), np.array([c], "f4")
    with np.errstate(all="ignore"):
        near = -(x * y) * np.float32(1 + i * 2.0**-23) if j > 0 else z
        found = _fused(x, y, near)
        if not (np.isfinite(x) & np.isfinite(y) & np.isfinite(near)).all() or not np.isfinite(found).all():
            plain = x.astype("f8") * y.astype("f8") + near.astype("f8")
            assert same_bits(found, plain.astype("f4"))
            return
    exact = Fraction(float(x[0])) * Fraction(float(y[0])) + Fraction(float(near[0]))
    gap = abs(Fraction(float(found[0])) - exact)
    for side in (np.float32(np.inf), np.float32(-np.inf)):
        other = float(np.nextafter(found[0], side))
        if np.isfinite(other):
            far = abs(Fraction(other) - exact)
            assert gap < far or (gap == far and not found.view(np.uint32)[0] & 1)


@pytest.mark.parametrize("name", sorted(GEMV_FORMATS))
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("column", [0, 255])
def test_what_is_not_finite_stays_visible(name: str, value: float, column: int) -> None:
    """In "exact" as IEEE arithmetic has it; otherwise the whole row of y is NaN, other rows untouched."""
    weights = random_weights(name, 18, 256, 21, GROUPS.get(name, [None])[0])
    x = random_x(3, 256, 2)
    x[1, column] = value
    exact, *rounded = (gemv(weights, x, arithmetic=arithmetic) for arithmetic in ARITHMETICS)
    assert not np.isfinite(exact[1]).any()
    assert equals_reference(weights, x, "exact")
    assert np.isfinite(exact[[0, 2]]).all()
    for y in rounded:
        assert np.isnan(y[1]).all() and np.isfinite(y[[0, 2]]).all()


@pytest.mark.parametrize("name", IN_PLACE)
@pytest.mark.parametrize("half", [0x7C00, 0xFC00, 0x7E00])
def test_a_stored_scale_that_is_not_finite_stays_visible(name: str, half: int) -> None:
    weights = random_weights(name, 4, 512, 3)
    q = weights.q.copy()
    row = q.size // 4 * 2  # the first block of the third row
    q[row : row + 2] = np.array([half], "<u2").view(np.uint8)
    damaged = map_gguf(name, q, 4, 512)
    for arithmetic in ARITHMETICS:
        y = gemv(damaged, random_x(2, 512, 1), arithmetic=arithmetic)
        assert not np.isfinite(y[:, 2]).any()
        assert np.isfinite(y[:, [0, 1, 3]]).all()
        assert equals_reference(damaged, random_x(2, 512, 1), arithmetic)


def test_rounded_activations_serve_every_format() -> None:
    x = random_x(3, 512, 8)
    for arithmetic in MOST:
        rounded = quantize_activations(x, arithmetic)
        for name in GEMV_FORMATS:
            weights = random_weights(name, 17, 512, 1, GROUPS.get(name, [None])[-1])
            direct = gemv(weights, x, arithmetic=arithmetic)
            assert same_bits(gemv(weights, rounded, arithmetic=arithmetic), direct)


def test_writes_into_out_and_nowhere_else() -> None:
    weights = random_weights("int4", 37, 64, 1, 32)
    x = random_x(2, 64, 1)
    for arithmetic in ARITHMETICS:
        frame = np.full(2 * 37 + 64, 7.0, np.float32)
        out = frame[32 : 32 + 74].reshape(2, 37)
        assert gemv(weights, x, arithmetic=arithmetic, out=out) is out
        assert same_bits(out, gemv(weights, x, arithmetic=arithmetic))
        frame[32 : 32 + 74] = 7.0
        assert (frame == 7.0).all()


@given(st.integers(0, 9000), st.sampled_from([1, 2, 4, 8]), st.sampled_from([0, 2048]), st.integers(1, 3))
def test_reading_leaves_no_byte_out(size: int, streams: int, prefetch: int, threads: int) -> None:
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    words = data[: size // 2048 * 2048].view(np.uint64)
    found = read_memory(data, streams=streams, prefetch=prefetch, threads=threads)
    assert found == int(np.bitwise_xor.reduce(words))


X = np.zeros((2, 64), np.float32)
INT8 = np.zeros((4, 64), np.int8)
ROW_SCALES = np.ones(4, np.float32)
HALVES = np.ones((4, 2), np.float16)
W = pack_int8(INT8, ROW_SCALES)
W4 = pack_int4(INT8, HALVES)
ROUNDED = quantize_activations(X)
ONE_COLUMN = np.array([[1e9]], np.float32)
MEMORY = np.zeros(256, np.float32)
BLOCKS = np.zeros(4 * 2 * 18, np.uint8)
BAD = {
    "arithmetic": lambda: gemv(W, X, arithmetic="quick"),
    "columns": lambda: gemv(W, X[:, :32].copy(), arithmetic="fast"),
    "x dtype": lambda: gemv(W, X.astype(np.float64), arithmetic="fast"),
    "x dims": lambda: gemv(W, X[0], arithmetic="fast"),
    "x strides": lambda: gemv(W, np.zeros((2, 128), np.float32)[:, ::2], arithmetic="exact"),
    "x without columns": lambda: gemv(W, X[:, :0], arithmetic="exact"),
    "x is a list": lambda: gemv(W, [[0.0] * 64], arithmetic="exact"),
    "rounded x for exact": lambda: gemv(W, quantize_activations(X), arithmetic="exact"),
    "rounded x of another width": lambda: gemv(W, quantize_activations(ONE_COLUMN), arithmetic="fast"),
    "no threads": lambda: gemv(W, X, arithmetic="exact", threads=0),
    "threads is a bool": lambda: gemv(W, X, arithmetic="exact", threads=True),
    "out shape": lambda: gemv(W, X, arithmetic="exact", out=np.zeros((4, 2), np.float32)),
    "out dtype": lambda: gemv(W, X, arithmetic="exact", out=np.zeros((2, 4))),
    "out batch": lambda: gemv(W, X, arithmetic="exact", out=np.zeros((1, 4), np.float32)),
    "out overlaps x": lambda: gemv(
        W, MEMORY[:128].reshape(2, 64), arithmetic="fast", out=MEMORY[:8].reshape(2, 4)
    ),
    "out overlaps weights": lambda: gemv(
        W, X, arithmetic="exact", out=W.q[:32].view(np.float32).reshape(2, 4)
    ),
    "out read-only": lambda: gemv(W, X, arithmetic="exact", out=read_only(np.zeros((2, 4), np.float32))),
    "q dtype": lambda: pack_int8(INT8.astype(np.uint8), ROW_SCALES),
    "q empty": lambda: pack_int8(INT8[:0], ROW_SCALES[:0]),
    "scales shape": lambda: pack_int8(INT8, ROW_SCALES[:3]),
    "scales of groups": lambda: pack_int8(INT8, np.ones((4, 3), np.float32), 32),
    "scales dtype": lambda: pack_int8(INT8, ROW_SCALES.astype(np.float64)),
    "scale is NaN": lambda: pack_int8(INT8, np.array([1, 2, np.nan, 4], np.float32)),
    "group": lambda: pack_int8(INT8, np.ones((4, 4), np.float32), 16),
    "group of int4": lambda: pack_int4(INT8, HALVES, group=None),
    "group is a bool": lambda: pack_int4(INT8, HALVES, group=True),
    "float scales for int4": lambda: pack_int4(INT8, HALVES.astype(np.float32)),
    "int4 below": lambda: pack_int4(INT8 - 9, HALVES),
    "int4 above": lambda: pack_int4(INT8 + 8, HALVES),
    "int4 with minimum below": lambda: pack_int4(INT8 - 1, HALVES, HALVES),
    "minimums shape": lambda: pack_int4(INT8, HALVES, HALVES[:, :1].copy()),
    "minimum is infinite": lambda: pack_int4(INT8, HALVES, HALVES * np.float16(np.inf)),
    "floats as integers": lambda: pack_int4(INT8.astype(np.float32), HALVES),
    "encoding": lambda: map_gguf("q5_0", BLOCKS, 4, 64),
    "own layout as GGUF": lambda: map_gguf("int8", BLOCKS, 4, 64),
    "part of a block": lambda: map_gguf("q4_0", BLOCKS, 4, 48),
    "q4_k in 64 columns": lambda: map_gguf("q4_k", BLOCKS, 4, 64),
    "bytes missing": lambda: map_gguf("q4_0", BLOCKS[:-1], 4, 64),
    "rows": lambda: map_gguf("q4_0", BLOCKS, 0, 64),
    "rows is a float": lambda: map_gguf("q4_0", BLOCKS, 4.0, 64),
    "blocks strides": lambda: map_gguf("q4_0", np.zeros(288, np.uint8)[::2], 4, 64),
    "encoding is a list": lambda: map_gguf([], BLOCKS, 4, 64),
    "weights are an array": lambda: gemv(INT8, X, arithmetic="fast"),
    "no such format": lambda: dataclasses.replace(W, format="int3"),
    "format is a list": lambda: dataclasses.replace(W, format=[]),
    "too few q": lambda: dataclasses.replace(W, q=W.q[:-1]),
    "too many q": lambda: dataclasses.replace(W4, q=np.append(W4.q, W4.q[:1])),
    "q of floats": lambda: dataclasses.replace(W, q=W.q.astype(np.float32)),
    "q is a list": lambda: dataclasses.replace(W, q=[]),
    "scales missing": lambda: dataclasses.replace(W, scales=W.scales[4:]),
    "scales of halves": lambda: dataclasses.replace(W4, scales=W4.scales[::2].copy()),
    "minimums for int8": lambda: dataclasses.replace(W, minimums=W.scales),
    "minimums missing": lambda: dataclasses.replace(W4, format="int4_min"),
    "scales for GGUF": lambda: dataclasses.replace(map_gguf("q4_0", BLOCKS, 4, 64), scales=W.scales),
    "one more row": lambda: dataclasses.replace(map_gguf("q4_0", BLOCKS, 4, 64), num_rows=5),
    "more rows than q": lambda: dataclasses.replace(W, num_rows=17),
    "no rows": lambda: dataclasses.replace(W, num_rows=0),
    "columns are a bool": lambda: dataclasses.replace(W, num_cols=True),
    "too many elements": lambda: dataclasses.replace(W, num_rows=1 << 40),
    "group of the row for int4": lambda: dataclasses.replace(W4, group=0),
    "group for GGUF": lambda: dataclasses.replace(map_gguf("q4_0", BLOCKS, 4, 64), group=32),
    "half a block": lambda: dataclasses.replace(map_gguf("q4_0", BLOCKS, 4, 64), num_cols=48),
    "too little rounded x": lambda: dataclasses.replace(ROUNDED, data=ROUNDED.data[:-1]),
    "rounded x for more rows": lambda: dataclasses.replace(ROUNDED, batch=3),
    "rounded x for more columns": lambda: dataclasses.replace(ROUNDED, num_cols=1024),
    "rounded x below zero rows": lambda: Activations(-1, 64, ROUNDED.data),
    "rounded x beyond counting": lambda: Activations(1 << 40, 1 << 40, ROUNDED.data),
    "rounded x is a list": lambda: Activations(2, 64, []),
    "streams": lambda: read_memory(BLOCKS, streams=3),
    "prefetch": lambda: read_memory(BLOCKS, prefetch=-1),
    "reading threads": lambda: read_memory(BLOCKS, threads=0),
}


def read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("what", sorted(BAD))
def test_bad_arguments_are_named(what: str) -> None:
    with pytest.raises(InputError) as caught:
        BAD[what]()
    assert caught.value.place
    assert caught.value.found
    assert caught.value.wanted


def test_messages_carry_the_numbers() -> None:
    size = ROUNDED.data.size - 8
    with pytest.raises(InputError, match=r"x has 32 columns, W 4 x 64; wanted 64 columns"):
        gemv(W, np.zeros((1, 32), np.float32), arithmetic="fast")
    with pytest.raises(InputError, match=r"got 143 bytes; wanted 144: 4 rows of 2 blocks of 18"):
        map_gguf("q4_0", BLOCKS[:-1], 4, 64)
    with pytest.raises(InputError, match=r"q: got 1023 bytes; wanted 1024 for 4 x 64 of int8"):
        dataclasses.replace(W, q=W.q[:-1])
    with pytest.raises(
        InputError, match=rf"data: got {size} bytes; wanted {size + 8} for 2 rows of 64 columns"
    ):
        dataclasses.replace(ROUNDED, data=ROUNDED.data[:-8])
    with pytest.raises(InputError, match=r"threads: got 1025; wanted an integer from 1 to 1024"):
        gemv(W, X, arithmetic="fast", threads=1025)
    with pytest.raises(UnsupportedError, match=r"format: no kernel for 'int3'; wanted one of int8, int4, "):
        dataclasses.replace(W, format="int3")


@pytest.mark.parametrize("name", sorted(GEMV_FORMATS))
@pytest.mark.parametrize("field", ["q", "scales", "minimums"])
def test_sizes_are_those_the_kernels_read(name: str, field: str) -> None:
    """Python counts bytes as C++ does: what fits runs, one byte less or more is refused."""
    for group in GROUPS.get(name, [None]):
        weights = random_weights(name, 19, 512 if name in IN_PLACE else 345, 1, group)
        gemv(weights, np.ones((1, weights.num_cols), np.float32), arithmetic="fast")
        stored = getattr(weights, field)
        for wrong in (stored[:-1], np.append(stored, np.zeros(1, np.uint8))):
            if wrong.size != stored.size:
                with pytest.raises(InputError, match=f"{field}: got {wrong.size} bytes"):
                    dataclasses.replace(weights, **{field: wrong})


def run_forced(**environment: str) -> subprocess.CompletedProcess[str]:
    """This file's `forced` part, in a process of its own."""
    plain = {key: value for key, value in os.environ.items() if not key.startswith("TENSURE_")}
    return subprocess.run(
        [sys.executable, __file__], env=plain | environment, capture_output=True, text=True, check=False
    )


def test_every_instruction_set_and_fallback_here() -> None:
    """Each is right in itself; "fine" and "fast" give the same bits on all, "exact" on all that fuse."""
    runs: list[Mapping[str, str]] = [{"TENSURE_ISA": name} for name in available_isas()]
    if "vnni" in features():
        runs += [{"TENSURE_ISA": name, "TENSURE_FEATURES": "-vnni"} for name in available_isas()]
    found: dict[str, set[str]] = {"fast": set(), "fine": set(), "exact": set()}
    for environment in runs:
        done = run_forced(**environment)
        assert done.returncode == 0, (environment, done.stdout, done.stderr)
        name, vnni, fused, fast, fine, exact = done.stdout.split()
        assert name == environment["TENSURE_ISA"]
        assert vnni == "no" or "TENSURE_FEATURES" not in environment
        found["fast"].add(fast)
        found["fine"].add(fine)
        if fused == "fused":
            found["exact"].add(exact)
        else:
            assert exact not in found["exact"], "not fused, and yet the same bits: the flag says nothing"
    assert len(found["fast"]) == len(found["fine"]) == 1
    assert len(found["exact"]) == (1 if exact_is_fused() else 0)


def forced() -> int:
    """Compare on this process's instruction set, print digests; else the exit code of a TensureError."""
    import hashlib

    digests = {name: hashlib.sha256() for name in ARITHMETICS}
    try:
        for name in GEMV_FORMATS:
            for group in GROUPS.get(name, [None]):
                for extreme in (False, True):
                    cols = 512 if name in IN_PLACE else 345
                    weights = random_weights(name, 37, cols, 1, group, extreme)
                    x = random_x(17, cols, 2)
                    if extreme:
                        x = np.sign(x) + np.float32(0)  # every integer is as large as can be, or 0
                    for arithmetic in ARITHMETICS:
                        assert equals_reference(weights, x, arithmetic, threads=2), (name, group, arithmetic)
                        for batch in (1, 2, 3, 4, 5, 6, 17):
                            y = gemv(weights, x[:batch].copy(), arithmetic=arithmetic)
                            digests[arithmetic].update(y.tobytes())
    except UnsupportedError as error:
        print(error)
        return TensureError.exit_code
    vnni = "vnni" if "vnni" in features() else "no"
    fused = "fused" if exact_is_fused() else "twice"
    print(isa(), vnni, fused, *(digests[name].hexdigest() for name in ("fast", "fine", "exact")))
    return 0


if __name__ == "__main__":
    sys.exit(forced())
