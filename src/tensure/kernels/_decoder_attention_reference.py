"""Attention of one whole sequence to its own rounded keys and values, in numpy: the definition.

The cache is arrays here, by position; how native/decoder lays it out in pages is none of its business.
Letters: T rows (positions 0 .. T-1), H query heads, G key/value heads, E elements of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tensure.kernels._decoder_rows_reference import exponential, fold_sums, multiply_add
from tensure.kernels._gemv_reference import SUMS

__all__ = ["Cached", "attend", "round_for_cache"]

Floats: TypeAlias = NDArray[np.float32]

SMALL: Final = np.float32(2.0**-100)
ZERO: Final = np.float32(0)
NAN: Final = np.float32(np.nan)


@dataclass(frozen=True, slots=True, eq=False)
class Cached:
    """Keys or values as stored: q [T, G, E], and by head and position [T, G] scale and minimum, or None.

    What is meant is q, or q * scale, or q * scale + minimum.
    """

    q: Floats
    scale: Floats | None
    minimum: Floats | None


def round_for_cache(x_TGE: Floats, kv_format: str) -> Cached:
    """Keys after rotation, or values, as the cache keeps them.

    "f16": to half, ties to even. "int8": scale = max|x| / 127 and q = round(x * (127 / max|x|)); a head below
    2^-100 is zeros. "int4": with width = max - min, scale = width / 15, minimum = min and
    q = round((x - min) * (15 / width)) in 0..15; a head narrower than 2^-100 is its minimum.
    A head that holds Inf or NaN, or is wider than float32 holds, has the scale NaN.
    """
    if kv_format == "f16":
        return Cached(x_TGE.astype(np.float16).astype(np.float32), None, None)
    finite = np.asarray(np.isfinite(x_TGE).all(axis=2))
    clean = np.where(finite[:, :, None], x_TGE, ZERO)
    if kv_format == "int8":
        most = np.abs(clean).max(axis=2)
        zero = most < SMALL
        inverse = np.where(zero, ZERO, np.float32(127) / most)
        scale = np.where(zero, ZERO, most / np.float32(127))
        return Cached(np.rint(clean * inverse[:, :, None]), np.where(finite, scale, NAN), None)
    least = clean.min(axis=2)
    width = clean.max(axis=2) - least
    finite = finite & np.isfinite(width)
    flat = (width < SMALL) | ~finite
    inverse = np.where(flat, ZERO, np.float32(15) / width)
    steps = np.rint((clean - least[:, :, None]) * inverse[:, :, None])
    q = np.where(flat[:, :, None], ZERO, np.clip(steps, 0, 15))
    scale = np.where(flat, ZERO, width / np.float32(15))
    return Cached(q, np.where(finite, scale, NAN), least)


def attend(q_THE: Floats, keys: Cached, values: Cached, scale: float, fused: bool) -> Floats:
    """Each row's heads [T, H, E] over the keys and values at positions up to its own."""
    num_rows, heads = q_THE.shape[:2]
    group = heads // keys.q.shape[1]
    scores = _scores(q_THE, keys, group, fused) * np.float32(scale)
    seen = np.tri(num_rows, dtype=np.bool_)[:, None, :]  # [row, 1, key]
    largest = np.where(seen, scores, np.float32(-np.inf)).max(axis=2)  # NaN wins, and then all is NaN
    e_THT = np.where(seen, exponential(scores - largest[:, :, None], fused), ZERO)
    sums = np.zeros((num_rows, heads, SUMS), np.float32)
    for key in range(num_rows):
        sums[:, :, key % SUMS] += e_THT[:, :, key]
    total = np.zeros(q_THE.shape, np.float32)
    least = np.zeros((num_rows, heads, 1), np.float32)
    for key in range(num_rows):
        weight = e_THT[key:, :, key, None]  # of the rows that see it
        if values.minimum is not None:
            minimum = _for_heads(values.minimum[key], group)[None, :, None]
            least[key:] = multiply_add(weight, minimum, least[key:], fused)
        if values.scale is not None:
            weight = weight * _for_heads(values.scale[key], group)[None, :, None]
        total[key:] = multiply_add(weight, _for_heads(values.q[key], group)[None], total[key:], fused)
    if values.minimum is not None:
        total = total + least
    return total / fold_sums(sums)[:, :, None]


def _scores(q_THE: Floats, keys: Cached, group: int, fused: bool) -> Floats:
    """Products of queries and keys [T, H, T], before `attention_scale`; of keys not yet there too."""
    num_rows, heads, size = q_THE.shape
    k_THE = np.repeat(keys.q, group, axis=1)
    sums = np.zeros((2, num_rows, heads, num_rows), np.float32)  # over even elements, over odd ones
    for e in range(size):
        key, query = k_THE[:, :, e].T[None], q_THE[:, :, e, None]
        sums[e % 2] = multiply_add(key, query, sums[e % 2], fused)
    scores = sums[0] + sums[1]
    if keys.scale is not None:
        scores = scores * np.repeat(keys.scale, group, axis=1).T[None]
    if keys.minimum is not None:
        of_query = np.zeros((num_rows, heads), np.float32)
        for e in range(size):
            of_query = of_query + q_THE[:, :, e]
        scores = scores + of_query[:, :, None] * np.repeat(keys.minimum, group, axis=1).T[None]
    return np.asarray(scores, np.float32)


def _for_heads(of_groups: Floats, group: int) -> Floats:
    """By key/value head -> by query head."""
    heads: Floats = np.repeat(of_groups, group, axis=0)
    return heads
