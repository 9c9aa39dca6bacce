"""Convolution of bytes in plain numpy, int64: the definition that native/dotconv is held to. Slow on purpose.

Shares no code with the kernels' face beyond the geometry and the record of a requantization, and none with
the Program op `requantize`, to which the tests hold it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tensure.kernels._conv_geometry import Conv
from tensure.kernels._conv_int8 import Requantize

__all__ = ["conv2d_int8_reference", "requantize_reference"]

Longs = NDArray[np.int64]
Array = NDArray[Any]


def conv2d_int8_reference(
    x: Array,
    w_OIHW: NDArray[np.int8],
    conv: Conv,
    *,
    zero_point: int = 0,
    bias: Array | None = None,
    requantize: Requantize | None = None,
    scale: NDArray[np.float32] | None = None,
) -> Array:
    """What `conv2d_int8` must give, bit for bit."""
    top, bottom, left, right = conv.padding
    centred = np.pad(x.astype(np.int64) - zero_point, ((0, 0), (top, bottom), (left, right), (0, 0)))
    num, height, width, _ = centred.shape
    (kernel_h, kernel_w), (down, across), (dilation_h, dilation_w) = conv.kernel, conv.stride, conv.dilation
    rows = (height - (kernel_h - 1) * dilation_h - 1) // down + 1
    columns = (width - (kernel_w - 1) * dilation_w - 1) // across + 1
    each_in, each_out = conv.in_channels // conv.groups, conv.out_channels // conv.groups
    w, total = w_OIHW.astype(np.int64), np.zeros((num, rows, columns, conv.out_channels), np.int64)
    for u in range(kernel_h):
        for v in range(kernel_w):
            y, z = u * dilation_h, v * dilation_w
            seen = centred[
                :, y : y + (rows - 1) * down + 1 : down, z : z + (columns - 1) * across + 1 : across
            ]
            for g in range(conv.groups):
                of = slice(g * each_out, (g + 1) * each_out)
                part = seen[..., g * each_in : (g + 1) * each_in]
                total[..., of] += np.einsum("nmlr,jr->nmlj", part, w[of, :, u, v])
    if scale is not None:
        scaled = total.astype(np.float32) * scale
        return scaled if bias is None else np.asarray(scaled + bias)
    if bias is not None:
        total += bias
    return total.astype(np.int32) if requantize is None else requantize_reference(total, requantize)


def requantize_reference(total: Longs, requantize: Requantize) -> Array:
    """Sums to bytes; the last dim is the channels."""
    multiplier, shift = requantize.multiplier.astype(object), requantize.shift.astype(object)
    exact = total.astype(object) * 2 ** np.maximum(shift, 0)  # Python integers: nothing overflows unseen
    held = np.minimum(np.maximum(exact, -(2**31)), 2**31 - 1)
    high = (held * multiplier + 2**30) // 2**31
    divisor = 2 ** np.maximum(-shift, 0)
    away = (abs(high) + divisor // 2) // divisor
    rounded = np.where(high < 0, -away, away) + requantize.zero_point
    return np.asarray(np.clip(rounded, requantize.qmin, requantize.qmax), requantize.dtype)
