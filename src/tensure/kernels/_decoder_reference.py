"""What `DecoderStage` must give, in numpy: one whole sequence at a time, from position 0, every row.

The definition of the arithmetic of native/decoder/README.md: single float32 operations in a stated order, so
that kernels can be compared bit for bit (NaN with any payload). It knows no pages, steps, threads or batches:
that none of them changes a bit is what the comparison shows. Where a multiplier is 1 the product is exact,
so it stands here without a condition. Letters as in `_decoder.py`; T rows of the sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from tensure.kernels._decoder import DecoderLayer, DecoderSizes, Matrix
from tensure.kernels._decoder_attention_reference import attend, round_for_cache
from tensure.kernels._decoder_rows_reference import decode_matrix, multiply, rms_norm, rotate, silu
from tensure.kernels._gemv import Arithmetic

__all__ = ["decoder_reference"]

Floats: TypeAlias = NDArray[np.float32]
Ints: TypeAlias = NDArray[np.int32]


def decoder_reference(
    sizes: DecoderSizes,
    cosine: Floats,
    sine: Floats,
    layers: Sequence[DecoderLayer],
    sequence: Ints | Floats,
    *,
    embed: Matrix | None = None,
    head: tuple[Matrix, Floats] | None = None,
    kv_format: str = "f16",
    arithmetic: Arithmetic = "fine",
    head_arithmetic: Arithmetic | None = None,
    fused: bool = True,
) -> Floats:
    """The logits [T, V] of every row, or the rows [T, D] where there is no head.

    Args:
        sequence: tokens i32 [T] where there is an embedding, else rows f32 [T, D].
        fused: multiply-adds round once (`exact_is_fused`).
    """
    with np.errstate(all="ignore"):  # Inf, NaN and underflow are values here
        x_TD = np.asarray(sequence, np.float32) if embed is None else _embedded(sizes, embed, sequence)
        for layer in layers:
            x_TD = _attention(sizes, cosine, sine, layer, x_TD, kv_format, arithmetic, fused)
            x_TD = _feed_forward(sizes, layer, x_TD, arithmetic, fused)
        if head is None:
            return x_TD
        matrix, norm = head
        how = arithmetic if head_arithmetic is None else head_arithmetic
        logits = multiply(matrix, rms_norm(x_TD, norm, sizes.rms_eps, fused), how, fused)
        return logits / np.float32(sizes.logits_divisor)


def _embedded(sizes: DecoderSizes, embed: Matrix, tokens: Ints | Floats) -> Floats:
    rows: Floats = decode_matrix(embed)[np.asarray(tokens, np.int32)]
    return rows * np.float32(sizes.embedding_multiplier)


def _attention(
    sizes: DecoderSizes,
    cosine: Floats,
    sine: Floats,
    layer: DecoderLayer,
    x_TD: Floats,
    kv_format: str,
    arithmetic: Arithmetic,
    fused: bool,
) -> Floats:
    num_rows, size = x_TD.shape[0], sizes.head_dim
    normed = rms_norm(x_TD, layer.attn_norm, sizes.rms_eps, fused)

    def heads_of(matrix: Matrix, bias: Floats | None) -> Floats:
        product = multiply(matrix, normed, arithmetic, fused)
        return (product if bias is None else product + bias).reshape(num_rows, -1, size)

    def turned(x_THE: Floats, norm: Floats | None) -> Floats:
        upright = x_THE if norm is None else rms_norm(x_THE, norm, sizes.rms_eps, fused)
        return rotate(upright, cosine[:num_rows], sine[:num_rows], sizes.adjacent)

    q = turned(heads_of(layer.q, layer.q_bias), layer.q_norm)
    k = turned(heads_of(layer.k, layer.k_bias), layer.k_norm)
    v = heads_of(layer.v, layer.v_bias)
    keys, values = round_for_cache(k, kv_format), round_for_cache(v, kv_format)
    attended = attend(q, keys, values, sizes.attention_scale, fused).reshape(num_rows, -1)
    return _residual(sizes, x_TD, multiply(layer.o, attended, arithmetic, fused))


def _feed_forward(
    sizes: DecoderSizes, layer: DecoderLayer, x_TD: Floats, arithmetic: Arithmetic, fused: bool
) -> Floats:
    normed = rms_norm(x_TD, layer.ffn_norm, sizes.rms_eps, fused)
    gate, up = (multiply(matrix, normed, arithmetic, fused) for matrix in (layer.gate, layer.up))
    return _residual(sizes, x_TD, multiply(layer.down, silu(gate, fused) * up, arithmetic, fused))


def _residual(sizes: DecoderSizes, x_TD: Floats, added: Floats) -> Floats:
    return x_TD + added * np.float32(sizes.residual_multiplier)
