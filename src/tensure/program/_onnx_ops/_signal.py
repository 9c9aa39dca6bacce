"""Windows, discrete Fourier transforms, mel weights, and overlapping blocks.

A transform is a matrix product with known cosines and sines, in f64 and rounded once (STFT: in its own
dtype); quadratic in its length, which is bounded.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from tensure.errors import FormatError, LimitError, UnsupportedError

from .._dtypes import FLOATS
from ._builder import Array, Builder, Tensor, axis_of, list_of
from ._elementwise import dtype_of
from ._shapes import pad_with
from ._table import Attributes, Translate, onnx_op

_LONGEST: Final = 1 << 12
"""Points of a transform: its matrix has the square of it."""
_LONGEST_WINDOW: Final = 1 << 22


def _window(*terms: float) -> Translate:
    def translate(b: Builder, x: list[Any], a: Attributes) -> Tensor:
        size = int(b.number(x[0], "size"))
        if not 0 <= size <= _LONGEST_WINDOW:
            raise LimitError(f"a window of {size}", wanted=f"0 to {_LONGEST_WINDOW}")
        b.room([size], "a window")
        angle = 2 * math.pi * np.arange(size) / max(size if a["periodic"] else size - 1, 1)
        total: Array = np.zeros(size)
        for k, term in enumerate(terms):
            total = total + (-1) ** k * term * np.cos(k * angle)
        return b.known(total, dtype_of(a["output_datatype"], "output_datatype"))

    return translate


onnx_op("HannWindow(size; output_datatype: int = 1, periodic: int = 1)")(_window(0.5, 0.5))
onnx_op("HammingWindow(size; output_datatype: int = 1, periodic: int = 1)")(_window(25 / 46, 21 / 46))
onnx_op("BlackmanWindow(size; output_datatype: int = 1, periodic: int = 1)")(_window(0.42, 0.5, 0.08))


def _turns(points: int, bins: int) -> tuple[Array, Array]:
    """Cosines and sines of a transform: [points, bins]."""
    if not 1 <= points <= _LONGEST:
        raise LimitError(f"a transform of {points} points", wanted=f"1 to {_LONGEST}")
    angle = 2 * math.pi * (np.outer(np.arange(points), np.arange(bins)) % points) / points
    return np.cos(angle), np.sin(angle)


@onnx_op("DFT(input, dft_length?, axis?; axis: int?, inverse: int = 0, onesided: int = 0)", since=17)
def _dft(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    """The last dim holds real (and imaginary) parts; the axis is an attribute before opset 20."""
    data: Tensor = x[0]
    if data.rank < 2 or data.shape[-1] not in (1, 2) or data.dtype not in FLOATS:
        raise FormatError(f"an input of type {data.type}", wanted="floats, a last dim of 1 or 2")
    axis = a["axis"] if a["axis"] is not None else 1 if b.version < 20 else -2
    axis = axis if x[2] is None else int(b.number(x[2], "axis"))
    dim = axis_of(axis, data.rank)
    if dim == data.rank - 1:
        raise FormatError(f"axis={axis}", wanted="another than the last")
    real, inverse = data.shape[-1] == 1, bool(a["inverse"])
    whole = 2 * (data.shape[dim] - 1) if a["onesided"] and inverse else data.shape[dim]
    length = whole if x[1] is None else int(b.number(x[1], "dft_length"))
    wide = b.cast(data, "f64")
    if a["onesided"] and inverse:
        return b.cast(_onesided_inverse(b, wide, dim, length), data.dtype)
    return b.cast(_transformed(b, wide, dim, length, real, inverse, bool(a["onesided"])), data.dtype)


def _transformed(
    b: Builder, data: Tensor, dim: int, length: int, real: bool, inverse: bool, half: bool
) -> Tensor:
    """Every bin, or the first half of them."""
    bins = length // 2 + 1 if half else length
    cos, sin = _turns(length, bins)
    data = _fitted(b, data, dim, length)
    scale = 1 / length if inverse else 1.0
    sign = 1.0 if inverse else -1.0
    parts = b.op("transpose", data, dim0=dim, dim1=data.rank - 2)
    first = b.op("select", parts, dim=-1, index=0)
    found = [_times(b, first, cos * scale), _times(b, first, sin * sign * scale)]
    if not real:
        second = b.op("select", parts, dim=-1, index=1)
        found = [
            b.op("sub", found[0], _times(b, second, sin * sign * scale)),
            b.op("add", found[1], _times(b, second, cos * scale)),
        ]
    return b.op("transpose", b.op("stack", *found, dim=-1), dim0=dim, dim1=data.rank - 2)


def _onesided_inverse(b: Builder, data: Tensor, dim: int, length: int) -> Tensor:
    """Real samples from the first half of a conjugate-symmetric spectrum."""
    bins = length // 2 + 1
    if data.shape[-1] != 2:
        raise FormatError("a one-sided inverse of real input", wanted="a last dim of 2")
    cos, sin = _turns(length, length)
    weight = np.full(bins, 2.0)
    weight[0] = 1
    if length % 2 == 0:
        weight[-1] = 1
    data = _fitted(b, data, dim, bins)
    parts = b.op("transpose", data, dim0=dim, dim1=data.rank - 2)
    re, im = (b.op("select", parts, dim=-1, index=at) for at in range(2))
    scale = weight[:, None] / length
    found = b.op("sub", _times(b, re, cos[:bins] * scale), _times(b, im, sin[:bins] * scale))
    return b.op("transpose", b.op("unsqueeze", found, dim=-1), dim0=dim, dim1=data.rank - 2)


def _fitted(b: Builder, x: Tensor, dim: int, length: int) -> Tensor:
    """A dim cut or padded with zeros to a length."""
    if x.shape[dim] >= length:
        return b.slice(x, dim, 0, length)
    sides = [(0, length - x.shape[dim]) if at == dim else (0, 0) for at in range(x.rank)]
    return pad_with(b, x, sides, 0)


def _times(b: Builder, x: Tensor, matrix: Array) -> Tensor:
    return b.op("matmul", x, b.known(matrix, x.dtype))


@onnx_op("STFT(signal, frame_step, window?, frame_length?; onesided: int = 1)", since=17)
def _stft(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    """[batch, samples(, 1 or 2)] -> [batch, frames, bins, 2]."""
    signal, step, window, frame = x
    hop = int(b.number(step, "frame_step"))
    if frame is not None:
        length = int(b.number(frame, "frame_length"))
    elif window is not None:
        length = window.size
    else:
        raise FormatError("neither window nor frame_length", wanted="one of them")
    flat = signal if signal.rank == 2 else None
    if signal.rank == 3 and signal.shape[2] == 1:
        flat = b.reshape(signal, signal.shape[:2])
    if hop < 1 or (window is not None and window.shape != (length,)):
        raise FormatError(
            f"frame_step={hop}, a window of {window and window.shape}",
            wanted="a step of at least 1, one length",
        )
    if flat is None and (signal.rank != 3 or signal.shape[2] != 2 or a["onesided"]):
        raise UnsupportedError(
            f"a signal of shape {list(signal.shape)}", wanted="real, or complex with onesided=0"
        )
    bins = length // 2 + 1 if a["onesided"] else length
    cos, sin = _turns(length, bins)
    frames = (signal.shape[1] - length) // hop + 1
    if frames < 1 or frames * length > 1 << 24:
        raise LimitError(
            f"{frames} frames of {length}", wanted=f"at least 1, at most {1 << 24} samples in all"
        )
    b.room([frames, length], "the places of the frames")
    places = b.known(np.arange(frames)[:, None] * hop + np.arange(length)[None])

    def cut(part: Tensor) -> Tensor:
        found = b.op("index", part, None, places)
        return found if window is None else b.op("mul", found, b.cast(window, part.dtype))

    if flat is not None:
        real = cut(flat)
        return b.op("stack", _times(b, real, cos), _times(b, real, -sin), dim=-1)
    real, imaginary = (cut(b.op("select", signal, dim=2, index=at)) for at in range(2))
    return b.op(
        "stack",
        b.op("add", _times(b, real, cos), _times(b, imaginary, sin)),
        b.op("sub", _times(b, imaginary, cos), _times(b, real, sin)),
        dim=-1,
    )


@onnx_op(
    "MelWeightMatrix(num_mel_bins, dft_length, sample_rate, lower_edge_hertz, upper_edge_hertz; "
    "output_datatype: int = 1)",
    since=17,
)
def _mel(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    """Triangles over the bins of a spectrum, equally wide in mel: [bins of the spectrum, mel bins]."""
    bins, length, rate, low, high = (b.number(item, "an input") for item in x)
    if not (1 <= bins <= 1 << 12 and 1 <= length <= 1 << 16 and rate > 0 and 0 <= low <= high):
        raise LimitError(f"{bins} bins of a transform of {length}", wanted=f"at most {1 << 12} of {1 << 16}")
    bins, length = int(bins), int(length)
    edges = 2595 * np.log10(1 + np.array([low, high]) / 700)
    mels = edges[0] + np.arange(bins + 2) * ((edges[1] - edges[0]) / (bins + 2))
    spots = np.floor((length + 1) * (700 * (10 ** (mels / 2595) - 1)) / rate).astype(np.int64)
    b.room([length // 2 + 1, bins], "the matrix")
    found = np.zeros((length // 2 + 1, bins))
    for at in range(bins):
        lower, centre, upper = (int(item) for item in spots[at : at + 3])
        if lower == centre:
            found[centre, at] = 1
        for k in range(lower, centre + 1) if lower != centre else ():
            found[k, at] = (k - lower) / (centre - lower)
        for k in range(centre, upper) if upper != centre else ():
            found[k, at] = (upper - k) / (upper - centre)
    return b.known(found, dtype_of(a["output_datatype"], "output_datatype"))


@onnx_op("Col2Im(input, image_shape, block_shape; dilations: ints?, pads: ints?, strides: ints?)", since=18)
def _col2im(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    """Blocks laid back over the image they were cut from, added where they overlap."""
    data, image, block = x[0], b.ints(x[1], "image_shape"), b.ints(x[2], "block_shape")
    count = len(image)
    if len(block) != count or not 1 <= count <= 3 or min((*image, *block)) < 1 or data.rank != 3:
        raise FormatError(
            f"image {list(image)}, block {list(block)}", wanted="1 to 3 sizes each, input [N, C*block, L]"
        )
    stride = list_of(a, "strides", count, 1, low=1)
    dilation = list_of(a, "dilations", count, 1, low=1)
    pads = list_of(a, "pads", 2 * count, 0)
    n, rows, length = data.shape
    channels = rows // math.prod(block)
    full = [size + pads[at] + pads[at + count] for at, size in enumerate(image)]
    outs = [
        (size - (k - 1) * d - 1) // s + 1 for size, k, s, d in zip(full, block, stride, dilation, strict=True)
    ]
    if channels * math.prod(block) != rows or min(outs) < 1 or math.prod(outs) != length:
        raise FormatError(
            f"an input of shape {list(data.shape)}",
            wanted=f"{math.prod(block)} rows a channel, {math.prod(outs)} blocks",
        )
    b.room([*block, *outs], "the places of the blocks")
    place: Array = np.zeros((1, 1), np.int64)
    for size, out, k, s, d in zip(full, outs, block, stride, dilation, strict=True):
        line = np.arange(k)[:, None] * d + np.arange(out)[None] * s
        place = (place[:, None, :, None] * size + line[None, :, None]).reshape(place.shape[0] * k, -1)
    flat = b.reshape(data, (n * channels, math.prod(block) * length))
    zero = b.full((n * channels, math.prod(full)), 0, data.dtype)
    total = b.op("index_add", zero, b.known(place.reshape(-1)), flat, dim=1)
    whole = b.reshape(total, (n, channels, *full))
    for at, size in enumerate(image):
        whole = b.slice(whole, 2 + at, pads[at], pads[at] + size)
    return whole
