"""What happens to rows between a decoder's matrices and its attention, in numpy: the definition.

Single float32 operations in the order that native/decoder/README.md states. `fused` everywhere: a
multiply-add rounds once (`exact_is_fused`), else twice. Letters: T rows, K columns, E elements of a head.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tensure.kernels._decoder import Matrix, PlainMatrix
from tensure.kernels._gemv import Arithmetic
from tensure.kernels._gemv_reference import SUMS, _exact, _fold, _fused, decode_weights, gemv_reference

__all__ = [
    "decode_matrix",
    "exponential",
    "fold_sums",
    "multiply",
    "multiply_add",
    "rms_norm",
    "rotate",
    "silu",
]

Floats: TypeAlias = NDArray[np.float32]
Operand: TypeAlias = Floats | np.float32

ONE: Final = np.float32(1)
LEAST: Final = np.float32(-87)
MOST: Final = np.float32(88)
TO_INTEGER: Final = np.float32(12582912.0)  # 1.5 * 2^23: adding it leaves no bits behind the point
TERMS: Final = [np.float32(t) for t in (1 / 120, 1 / 24, 1 / 6, 0.5, 1, 1)]


def multiply_add(a: Operand, b: Operand, c: Operand, fused: bool) -> Floats:
    """The sum a * b + c, rounded once or twice."""
    a, b, c = np.broadcast_arrays(a, b, c)
    return _fused(a, b, c) if fused else a * b + c


def fold_sums(sums: Floats) -> Floats:
    """Sixteen sums, in the last dim, to one: + 8, + 4, + 2, + 1."""
    return _fold(sums)


def multiply(matrix: Matrix, x_TK: Floats, arithmetic: Arithmetic, fused: bool) -> Floats:
    """The products [T, M]: quantised matrices in the arithmetic asked for, plain numbers always exact."""
    if isinstance(matrix, PlainMatrix):
        return _exact(decode_matrix(matrix), x_TK, fused)
    return gemv_reference(matrix, x_TK, arithmetic=arithmetic, fused=fused)


def decode_matrix(matrix: Matrix) -> Floats:
    """W [M, K] as float32."""
    if not isinstance(matrix, PlainMatrix):
        return decode_weights(matrix)
    shape = (matrix.num_rows, matrix.num_cols)
    data = matrix.data.tobytes()
    if matrix.kind == "bf16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
    stored = np.frombuffer(data, "<f4" if matrix.kind == "f32" else "<f2")
    return stored.astype(np.float32).reshape(shape)


def rms_norm(x: Floats, weight: Floats, eps: float, fused: bool) -> Floats:
    """The last dim of x over the root of its mean square, times the weight."""
    size = x.shape[-1]
    filled = np.zeros((*x.shape[:-1], -(-size // SUMS) * SUMS), np.float32)
    filled[..., :size] = x
    sums = np.zeros((*x.shape[:-1], SUMS), np.float32)
    for k in range(0, size, SUMS):
        here = filled[..., k : k + SUMS]
        sums = multiply_add(here, here, sums, fused)
    mean = fold_sums(sums) / np.float32(size)
    inverse = ONE / np.sqrt(mean + np.float32(eps))
    normed: Floats = x * inverse[..., None] * weight
    return normed


def rotate(x_THE: Floats, cosine: Floats, sine: Floats, adjacent: bool) -> Floats:
    """Each pair (a, b) of a head turned: (a cos - b sin, b cos + a sin); tables [T, E/2]."""
    half = x_THE.shape[2] // 2
    first, second = (slice(0, None, 2), slice(1, None, 2)) if adjacent else (slice(half), slice(half, None))
    a, b = x_THE[:, :, first], x_THE[:, :, second]
    c, s = cosine[:, None, :], sine[:, None, :]
    turned = np.empty_like(x_THE)
    turned[:, :, first] = a * c + b * -s
    turned[:, :, second] = b * c + a * s
    return turned


def silu(x: Floats, fused: bool) -> Floats:
    """The value x / (1 + e^-x)."""
    return x / (ONE + exponential(-x, fused))


def exponential(x: Floats, fused: bool) -> Floats:
    """What `exp_vec` of native/common/vector-inl.h gives: infinity above 88, zero below -87, NaN for NaN."""
    inside = np.where(x < LEAST, LEAST, np.where(x > MOST, MOST, x))
    n = (inside * np.float32(1.44269504088896341) + TO_INTEGER) - TO_INTEGER
    r = multiply_add(n, np.float32(-0.693359375), inside, fused)
    r = multiply_add(n, np.float32(2.12194440e-4), r, fused)
    p = np.full_like(x, np.float32(1 / 720))
    for term in TERMS:
        p = multiply_add(p, r, term, fused)
    whole = np.where(np.isnan(x), np.float32(0), n).astype(np.int32)
    power = ((whole + 127) << 23).view(np.float32)
    return np.where(x > MOST, np.float32(np.inf), np.where(x < LEAST, np.float32(0), p * power))
