"""What `gemv` must give, in numpy: the definition of its arithmetics, not a fast path.

Written from the stored bytes, without the packing code. Float operations are single float32 operations in a
stated order, so that the kernels can be compared bit for bit. Letters as in `_gemv.py`; T is 32-column runs
of a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from tensure.kernels._gemv import GEMV_FORMATS, ROWS, Arithmetic, Floats, GemvWeights

__all__ = ["decode_weights", "gemv_reference"]

RUN = 32
SUMS = 16
LANES = 8
MOST = {"fast": 127, "fine": 128 * 127}  # the largest integer an activation becomes

Ints: TypeAlias = NDArray[np.int64]
Doubles: TypeAlias = NDArray[np.float64]


def gemv_reference(
    weights: GemvWeights, x_BK: Floats, *, arithmetic: Arithmetic, fused: bool = True
) -> Floats:
    """The products [B, M], bit for bit; `fused`: "exact" fuses multiply and add (`exact_is_fused`)."""
    with np.errstate(all="ignore"):  # Inf, NaN and underflow are values here
        if arithmetic == "exact":
            return _exact(decode_weights(weights), x_BK, fused)
        return _integers(_stored(weights), x_BK, MOST[arithmetic])


def decode_weights(weights: GemvWeights) -> Floats:
    """W [M, K] as float32, each element rounded once from what is stored."""
    stored = _stored(weights)
    with np.errstate(all="ignore"):
        value = stored.q.astype(np.float32) * np.repeat(stored.scale, RUN, axis=1)
        if stored.minimum is not None:
            # The product is exact, since q has 4 bits and a scale at most 17: one rounding.
            value = value + np.repeat(stored.minimum, RUN, axis=1)
    return value[:, : weights.num_cols]


@dataclass(frozen=True, slots=True)
class _Stored:
    """Integers [M, 32 T], and for each run of 32 a scale and a minimum [M, T].

    `kind` is the format, or "int8 rows" where a whole row shares its scale.
    """

    q: Ints
    scale: Floats
    minimum: Floats | None
    kind: str


def _exact(w_MK: Floats, x_BK: Floats, fused: bool) -> Floats:
    """Sixteen partial sums, by k mod 16, each in the order of k; folded in halves."""
    width = -(-w_MK.shape[1] // SUMS) * SUMS
    w, x = (np.zeros((a.shape[0], width), np.float32) for a in (w_MK, x_BK))
    w[:, : w_MK.shape[1]], x[:, : x_BK.shape[1]] = w_MK, x_BK
    sums = np.zeros((x.shape[0], w.shape[0], SUMS), np.float32)
    for k in range(0, width, SUMS):
        left, right = w[None, :, k : k + SUMS], x[:, None, k : k + SUMS]
        sums = _fused(left, right, sums) if fused else left * right + sums
    return _fold(sums)


def _fused(a: Floats, b: Floats, c: Floats) -> Floats:
    """What a * b + c gives in float32 with one rounding.

    The product is exact in double precision; the sum there is rounded to odd, so that rounding it again to
    float32 gives what one rounding of the exact sum would (Boldo and Melquiond, 2008).
    """
    product: Doubles = a.astype(np.float64) * b.astype(np.float64)
    addend = np.broadcast_to(c.astype(np.float64), product.shape)
    total = product + addend
    back = total - product
    lost = (product - (total - back)) + (addend - back)
    inexact = (lost != 0) & np.isfinite(lost)
    bits = total.view(np.int64)
    toward_zero = np.where(np.signbit(lost) != np.signbit(total), bits - 1, bits)
    odd = np.where(inexact, toward_zero | 1, bits).view(np.float64)
    return odd.astype(np.float32)


def _fold(sums: Floats) -> Floats:
    """((s0 + s8) + (s4 + s12)) + ... over the last dim, whose size is a power of two."""
    while sums.shape[-1] > 1:
        half = sums.shape[-1] // 2
        sums = sums[..., :half] + sums[..., half:]
    return np.ascontiguousarray(sums[..., 0])


def _integers(stored: _Stored, x_BK: Floats, most: int) -> Floats:
    """Integer dot products over runs of 32 columns; own layouts add them to one sum, GGUF ones to eight."""
    num_runs = stored.scale.shape[1]
    q_x, scale_x = _rounded(x_BK, num_runs, most)
    totals = q_x.reshape(-1, num_runs, RUN).sum(axis=2)
    sum_x = scale_x * totals.astype(np.float32)
    w = stored.q.reshape(-1, num_runs, LANES, 4)
    x = q_x.reshape(-1, num_runs, LANES, 4)
    own = stored.kind in ("int8", "int8 rows", "int4", "int4_min")
    shape = (x.shape[0], w.shape[0])
    sums = np.zeros((*shape, 1 if own else LANES), np.float32)
    least = np.zeros((*shape, LANES if stored.kind == "q4_k" else 1), np.float32)
    for t in range(num_runs):
        dots = np.einsum("mlj,blj->bml", w[:, t], x[:, t])
        if own:
            dots = dots.sum(axis=2, keepdims=True)
        step = scale_x[:, None, t]
        factor = (
            np.broadcast_to(step, shape) if stored.kind == "int8 rows" else stored.scale[None, :, t] * step
        )
        sums = sums + dots.astype(np.float32) * factor[:, :, None]
        if stored.minimum is not None:
            extra = stored.minimum[None, :, t] * sum_x[:, None, t]
            if own:
                sums = sums + extra[:, :, None]
            else:
                least[:, :, t % least.shape[2]] += extra
    value = _fold(sums)
    if stored.kind == "int8 rows":
        value = value * stored.scale[None, :, 0]
    if stored.minimum is not None and not own:
        value = value + _fold(least)
    return value


def _rounded(x_BK: Floats, num_runs: int, largest: int) -> tuple[Ints, Floats]:
    """Integers in -largest..largest [B, 32 T] and their scales [B, T]."""
    x = np.zeros((x_BK.shape[0], num_runs * RUN), np.float32)
    x[:, : x_BK.shape[1]] = x_BK
    runs = x.reshape(-1, num_runs, RUN)
    most = np.abs(runs).max(axis=2, initial=0)  # NaN wins
    small = most < np.float32(2.0**-100)
    usable = np.isfinite(most) & ~small
    inverse = np.where(usable, np.float32(largest) / most, np.float32(0))
    clean = np.where(usable[:, :, None], runs, np.float32(0))
    q = np.rint(clean * inverse[:, :, None]).astype(np.int64)
    scale = np.where(small, np.float32(0), np.where(usable, most / np.float32(largest), np.float32(np.nan)))
    return q.reshape(x.shape), scale.astype(np.float32)


def _stored(weights: GemvWeights) -> _Stored:
    layout = GEMV_FORMATS[weights.format]
    return _own(weights) if not layout.block_cols else _gguf(weights)


def _own(weights: GemvWeights) -> _Stored:
    unit = weights.group or RUN
    cols = -(-weights.num_cols // unit) * unit
    blocks = -(-weights.num_rows // ROWS)
    if weights.format == "int8":
        words = weights.q.view(np.int8).reshape(blocks, cols // 4, ROWS, 4)
        q = words.transpose(0, 2, 1, 3).reshape(blocks * ROWS, cols).astype(np.int64)
    else:
        pairs = weights.q.reshape(blocks, cols // RUN, 4, ROWS, 4).transpose(0, 3, 1, 2, 4)
        halves = np.stack([pairs & 15, pairs >> 4], axis=3)  # [block, row, run, half, word, byte]
        q = halves.reshape(blocks * ROWS, cols).astype(np.int64) - (8 if weights.format == "int4" else 0)
    dtype = np.dtype(np.float32 if weights.format == "int8" else np.float16)

    def for_runs(data: NDArray[np.uint8]) -> Floats:
        groups = data.view(dtype).astype(np.float32).reshape(blocks, -1, ROWS).transpose(0, 2, 1)
        rows = groups.reshape(blocks * ROWS, -1)[: weights.num_rows]
        return np.repeat(rows, cols // RUN // rows.shape[1], axis=1)

    return _Stored(
        q[: weights.num_rows],
        for_runs(weights.scales),
        for_runs(weights.minimums) if weights.format == "int4_min" else None,
        "int8 rows" if weights.format == "int8" and not weights.group else weights.format,
    )


def _gguf(weights: GemvWeights) -> _Stored:
    layout = GEMV_FORMATS[weights.format]
    rows = weights.q.reshape(weights.num_rows, weights.num_cols // layout.block_cols, layout.block_bytes)
    shape = (weights.num_rows, weights.num_cols)

    def half(offset: int) -> Floats:
        return rows[:, :, offset : offset + 2].copy().view("<f2").astype(np.float32)[:, :, 0]

    def pairs(offset: int) -> Ints:
        packed = rows[:, :, offset : offset + 16].astype(np.int64)
        return np.concatenate([packed & 15, packed >> 4], axis=2).reshape(shape)

    if weights.format == "q4_0":
        return _Stored(pairs(2) - 8, half(0), None, "q4_0")
    if weights.format == "q4_1":
        return _Stored(pairs(4), half(0), half(2), "q4_1")
    if weights.format == "q8_0":
        return _Stored(rows[:, :, 2:].view(np.int8).astype(np.int64).reshape(shape), half(0), None, "q8_0")
    bits = rows[:, :, 4:16].astype(np.int64)  # eight scales and eight minimums of six bits
    first, second, third = bits[:, :, 0:4], bits[:, :, 4:8], bits[:, :, 8:12]
    scale = np.concatenate([first & 63, third & 15 | first >> 6 << 4], axis=2).astype(np.float32)
    least = np.concatenate([second & 63, third >> 4 | second >> 6 << 4], axis=2).astype(np.float32)
    packed = rows[:, :, 16:].astype(np.int64).reshape(*rows.shape[:2], 4, RUN)
    q = np.stack([packed & 15, packed >> 4], axis=3).reshape(shape)
    runs = (weights.num_rows, weights.num_cols // RUN)
    return _Stored(
        q, (half(0)[:, :, None] * scale).reshape(runs), -(half(2)[:, :, None] * least).reshape(runs), "q4_k"
    )
