"""Convolution in plain numpy, float64: the definition that native/conv is held to. Slow on purpose.

Shares no code with the kernels' face beyond the geometry.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tensure.kernels._conv_geometry import ACTIVATIONS, Conv, check_choice

__all__ = ["conv2d_reference", "from_nchw", "im2win_reference", "to_nchw"]

Doubles = NDArray[np.float64]


def conv2d_reference(
    x: NDArray[np.floating],
    w_OIHW: NDArray[np.floating],
    conv: Conv,
    *,
    bias: NDArray[np.floating] | None = None,
    residual: NDArray[np.floating] | None = None,
    activation: str = "none",
    layout: str = "NHWC",
) -> Doubles:
    """What `conv2d` must give up to rounding, in the same layout.

    Raises:
        InputError: the padded input is smaller than the (dilated) kernel.
    """
    check_choice("activation", activation, ACTIVATIONS)
    images, w = to_nchw(np.asarray(x, np.float64), layout), np.asarray(w_OIHW, np.float64)
    num, _, height, width = images.shape
    rows, columns = conv.out_size(height, width)
    x_NCHW = _padded(images, conv)
    (kernel_h, kernel_w), (down, across), (dilation_h, dilation_w) = conv.kernel, conv.stride, conv.dilation
    each_in, each_out = conv.in_channels // conv.groups, conv.out_channels // conv.groups
    y = np.zeros((num, conv.out_channels, rows, columns))
    with np.errstate(invalid="ignore", over="ignore"):
        for u in range(kernel_h):
            for v in range(kernel_w):
                top, left = u * dilation_h, v * dilation_w
                seen = x_NCHW[
                    :,
                    :,
                    top : top + (rows - 1) * down + 1 : down,
                    left : left + (columns - 1) * across + 1 : across,
                ]
                for g in range(conv.groups):
                    of = slice(g * each_out, (g + 1) * each_out)
                    part = seen[:, g * each_in : (g + 1) * each_in]
                    y[:, of] += np.einsum("nrml,jr->njml", part, w[of, :, u, v])
        if bias is not None:
            y += np.asarray(bias, np.float64).reshape(1, -1, 1, 1)
        if residual is not None:
            y += to_nchw(np.asarray(residual, np.float64), layout)
        return from_nchw(_activate(y, activation), layout)


def im2win_reference(x: NDArray[np.float32], conv: Conv, layout: str = "NHWC") -> NDArray[np.float32]:
    """What `im2win` must give: the index formula of its docstring.

    Raises:
        InputError: the padded input is smaller than the (dilated) kernel.
    """
    images = to_nchw(np.asarray(x, np.float64), layout)
    rows, _ = conv.out_size(*images.shape[2:])
    x_NCHW = _padded(images, conv)
    num, channels, _, width = x_NCHW.shape
    kernel_h = conv.kernel[0]
    found = np.empty((num, channels, rows, width * kernel_h))
    for m in range(rows):
        for u in range(kernel_h):
            found[:, :, m, u::kernel_h] = x_NCHW[:, :, m * conv.stride[0] + u * conv.dilation[0]]
    return from_nchw(found, layout).astype(np.float32)


def to_nchw(x: NDArray[np.float64], layout: str) -> Doubles:
    """The same images as [N, C, H, W]; padded images stay."""
    if layout == "NCHW":
        return x
    if layout == "NHWC":
        return x.transpose(0, 3, 1, 2)
    if layout == "CHWN":
        return x.transpose(3, 0, 1, 2)
    blocks, channels, height, width, lanes = x.shape
    return x.transpose(0, 4, 1, 2, 3).reshape(blocks * lanes, channels, height, width)


def from_nchw(x_NCHW: Doubles, layout: str) -> Doubles:
    """[N, C, H, W] in another layout; zeros pad the last block."""
    if layout == "NCHW":
        return x_NCHW
    if layout == "NHWC":
        return x_NCHW.transpose(0, 2, 3, 1)
    if layout == "CHWN":
        return x_NCHW.transpose(1, 2, 3, 0)
    lanes = {"CHWN8": 8, "CHWN16": 16}[layout]
    num, channels, height, width = x_NCHW.shape
    blocks = -(-num // lanes)
    padded = np.zeros((blocks * lanes, channels, height, width))
    padded[:num] = x_NCHW
    return padded.reshape(blocks, lanes, channels, height, width).transpose(0, 2, 3, 4, 1)


def _padded(x_NCHW: Doubles, conv: Conv) -> Doubles:
    top, bottom, left, right = conv.padding
    return np.pad(x_NCHW, ((0, 0), (0, 0), (top, bottom), (left, right)))


def _activate(y: Doubles, activation: str) -> Doubles:
    if activation == "relu":
        return np.maximum(y, 0)
    if activation == "relu6":
        return np.minimum(np.maximum(y, 0), 6)
    if activation == "silu":
        with np.errstate(over="ignore", invalid="ignore"):
            return np.asarray(y / (1 + np.exp(-y)), np.float64)
    return y
