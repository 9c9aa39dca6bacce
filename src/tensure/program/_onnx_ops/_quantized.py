"""Quantise, dequantise and integer products, kept as the integer ops of the table.

Scales and zero points known while the file is read become attributes of `quantize` and `dequantize`; weights
known and signed once their zero point is taken off become those of `integer_convolution` and
`integer_linear`. What is not known runs as the same arithmetic in floats that hold it exactly.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from tensure.errors import FormatError, UnsupportedError

from .._dtypes import FLOATS
from ._builder import Builder, Tensor, axis_of, list_of
from ._convolution import flat_pads, kernel_of, window_pads
from ._elementwise import dtype_of, named_dtype
from ._table import Attributes, onnx_op

_STORED: Final = frozenset({"i8", "u8", "i16", "i32"})
_QUANTISED: Final = {
    "i8": (-128, 127, "i8"),
    "u8": (0, 255, "u8"),
    "i16": (-(1 << 15), (1 << 15) - 1, "i16"),
    "u16": (0, (1 << 16) - 1, "i32"),
}
"""Smallest, largest, and the dtype that holds them."""
_LINEAR: Final = (
    "axis: int = 1, block_size: int = 0, output_dtype: int = 0, saturate: int = 1, precision: int = 0"
)


def _along(b: Builder, x: Tensor, param: Tensor | None, axis: int, block: int, what: str) -> Tensor | None:
    """A scale or zero point shaped to broadcast over x: one, one along the axis, or one for each block."""
    if param is None:
        return None
    if param.size == 1 and param.rank <= 1:
        return b.reshape(param, ())
    dim = axis_of(axis, x.rank)
    if not block:
        if param.shape != x.shape[dim : dim + 1]:
            raise FormatError(f"{what} of shape {list(param.shape)}", wanted=f"one entry, or {x.shape[dim]}")
        return b.reshape(param, [x.shape[dim] if at == dim else 1 for at in range(x.rank)])
    if block < 1 or param.rank != x.rank or -(-x.shape[dim] // block) != param.shape[dim]:
        raise FormatError(
            f"{what} of shape {list(param.shape)}, block_size={block}", wanted="one entry for each block"
        )
    b.room(x.shape[dim : dim + 1], "the block of each element")
    return b.pick(param, dim, np.arange(x.shape[dim]) // block)


def _plain(
    b: Builder, scale: Tensor, zero: Tensor | None, block: int
) -> tuple[list[float], list[int]] | None:
    """Known scales and zero points as attributes; None where they are not known or lie in blocks."""
    if block or not scale.is_known or not (zero is None or zero.is_known) or scale.rank > 1:
        return None
    scales = [float(item) for item in b.const(scale, "scale").reshape(-1)]
    if not all(0 < item < 1e300 for item in scales):
        raise FormatError(f"scales {scales[:8]}", wanted="above 0")
    zeros = (
        [0] * len(scales) if zero is None else [int(item) for item in b.const(zero, "zero point").reshape(-1)]
    )
    return scales, zeros


@onnx_op(f"QuantizeLinear(x, y_scale, y_zero_point?; {_LINEAR})")
def _quantize(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    data, scale, zero = x
    dtype = (
        named_dtype(zero) if zero is not None else dtype_of(a["output_dtype"]) if a["output_dtype"] else "u8"
    )
    return quantized(b, data, scale, zero, dtype, a["axis"], a["block_size"])


def quantized(
    b: Builder, data: Tensor, scale: Tensor, zero: Tensor | None, dtype: str, axis: int = 1, block: int = 0
) -> Tensor:
    """round(data / scale) + zero held to the dtype's range."""
    if dtype not in _QUANTISED:
        raise UnsupportedError(f"quantising to {dtype}", wanted="int8, uint8, int16 or uint16")
    low, high, stored = _QUANTISED[dtype]
    data = data if data.dtype in FLOATS else b.cast(data, "f32")
    known = _plain(b, scale, zero, block)
    if known is not None:
        scales, zeros = known
        dim = axis_of(axis, data.rank) if len(scales) > 1 else None
        ends = {"qmin": low, "qmax": high, "dtype": stored}
        found = b.op("quantize", data, scale=scales, zero_point=zeros, axis=dim, **ends)
        found.bits = 16 if dtype == "u16" else 0
        return found
    wide = _along(b, data, scale, axis, block, "y_scale")
    assert wide is not None
    steps = b.op("round", b.op("div", data, b.cast(wide, data.dtype)))
    offset = _along(b, data, zero, axis, block, "y_zero_point")
    if offset is not None:
        steps = b.op("add", steps, b.cast(offset, data.dtype))
    return b.cast(b.op("clamp", steps, float(low), float(high)), dtype)


@onnx_op(f"DequantizeLinear(x, x_scale, x_zero_point?; {_LINEAR})")
def _dequantize(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    data, scale, zero = x
    dtype = dtype_of(a["output_dtype"]) if a["output_dtype"] else scale.dtype
    if data.dtype not in _STORED:
        raise UnsupportedError(f"dequantising {data.dtype}", wanted="int8, uint8, int16 or int32")
    known = _plain(b, scale, zero, a["block_size"])
    if known is not None:
        scales, zeros = known
        axis = axis_of(a["axis"], data.rank) if len(scales) > 1 else None
        return b.op("dequantize", data, scale=scales, zero_point=zeros, axis=axis, dtype=dtype)
    wide = _along(b, data, scale, a["axis"], a["block_size"], "x_scale")
    assert wide is not None
    offset = _along(b, data, zero, a["axis"], a["block_size"], "x_zero_point")
    centred = b.cast(data, "i32")
    if offset is not None:
        centred = b.op("sub", centred, b.cast(offset, "i32"))
    return b.cast(b.op("mul", b.cast(centred, wide.dtype), wide), dtype)


@onnx_op("DynamicQuantizeLinear(x)")
def _dynamic(b: Builder, x: list[Any], a: Attributes) -> list[Tensor]:
    """To uint8 by the smallest and largest element, 0 among them."""
    data: Tensor = x[0]
    low = b.op("clamp", b.op("amin", data), None, 0.0)
    high = b.op("clamp", b.op("amax", data), 0.0, None)
    scale = b.op("div", b.op("sub", high, low), 255.0)
    divisor = b.op("where", b.op("eq", scale, 0.0), b.known(1.0, data.dtype), scale)
    zero = b.op("round", b.op("clamp", b.op("neg", b.op("div", low, divisor)), 0.0, 255.0))
    steps = b.op("add", b.op("round", b.op("div", data, divisor)), zero)
    return [b.cast(b.op("clamp", steps, 0.0, 255.0), "u8"), scale, b.cast(zero, "u8")]


# --- integer products -----------------------------------------------------------------------------


def _one_zero(b: Builder, zero: Tensor | None) -> int | None:
    """A known zero point of the whole tensor; None where it is not known or there are several."""
    if zero is None:
        return 0
    return int(b.number(zero, "a zero point")) if zero.is_known and zero.size == 1 else None


def _signed(b: Builder, weight: Tensor, zero: Tensor | None, column: list[int]) -> Tensor | None:
    """A known weight less its zero point, as i8; None where it is not known or does not fit."""
    if not weight.is_known or not (zero is None or zero.is_known):
        return None
    if weight.dtype == "i8" and (zero is None or not zero.values().any()):
        return weight
    values = weight.values().astype(np.int64)
    if zero is not None:
        values = values - zero.values().astype(np.int64).reshape(column if zero.size > 1 else ())
    fits = not values.size or (values.min() >= -128 and values.max() <= 127)
    return b.known(values, "i8") if fits else None


def _exact(b: Builder, x: Tensor, zero: Tensor | None, column: list[int]) -> Tensor:
    """X less its zero point in f64, which holds every sum of products of bytes exactly."""
    wide = b.cast(x, "f64")
    if zero is None:
        return wide
    return b.op("sub", wide, b.cast(b.reshape(zero, column if zero.size > 1 else ()), "f64"))


def _integer_conv(
    b: Builder,
    data: Tensor,
    weight: Tensor,
    zero: Tensor | None,
    weight_zero: Tensor | None,
    bias: Tensor | None,
    a: Attributes,
) -> Tensor:
    """The i32 convolution of what two integer tensors stand for, but for their scales."""
    kernel = kernel_of(weight, data, a["kernel_shape"])
    stride = list_of(a, "strides", len(kernel), 1, low=1)
    dilation = list_of(a, "dilations", len(kernel), 1, low=1)
    pads = flat_pads(window_pads(a, data.shape[2:], kernel, stride, dilation))
    how = {"stride": stride, "padding": pads, "dilation": dilation, "groups": a["group"]}
    column = [-1, *[1] * (weight.rank - 1)]
    signed, offset = _signed(b, weight, weight_zero, column), _one_zero(b, zero)
    if signed is not None and offset is not None:
        return b.op("integer_convolution", data, signed, bias, input_zero_point=offset, **how)
    wide = None if bias is None else b.cast(bias, "f64")
    sides = (_exact(b, data, zero, []), _exact(b, weight, weight_zero, column))
    return b.cast(b.op("convolution", *sides, wide, **how), "i32")


_CONV: Final = (
    'auto_pad: str = "NOTSET", dilations: ints?, group: int = 1, kernel_shape: ints?, '
    "pads: ints?, strides: ints?"
)


@onnx_op(f"ConvInteger(x, w, x_zero_point?, w_zero_point?; {_CONV})")
def _conv_integer(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    data, weight, zero, weight_zero = x
    return _integer_conv(b, data, weight, zero, weight_zero, None, a)


@onnx_op(
    f"QLinearConv(x, x_scale, x_zero_point, w, w_scale, w_zero_point, y_scale, y_zero_point, B?; {_CONV})"
)
def _qlinear_conv(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    data, scale, zero, weight, weight_scale, weight_zero, y_scale, y_zero, bias = x
    total = _integer_conv(b, data, weight, zero, weight_zero, bias, a)
    return _rescaled(b, total, scale, weight_scale, y_scale, y_zero, 1)


def _rescaled(
    b: Builder, total: Tensor, first: Tensor, second: Tensor, scale: Tensor, zero: Tensor, axis: int
) -> Tensor:
    """An i32 sum of products in the scale of the result; in f64, rounded once."""
    if first.is_known and second.is_known:
        product = b.const(first, "scale").astype(np.float64).reshape(-1) * b.const(second, "scale").astype(
            np.float64
        ).reshape(-1)
        dim = axis_of(axis, total.rank) if product.size > 1 else None
        real = b.op(
            "dequantize", total, scale=product.tolist(), zero_point=[0] * product.size, axis=dim, dtype="f64"
        )
    else:
        column = [1] * total.rank
        column[axis] = -1
        sides = [b.reshape(b.cast(s, "f64"), column if s.size > 1 else ()) for s in (first, second)]
        real = b.op("mul", b.op("mul", b.cast(total, "f64"), sides[0]), sides[1])
    return quantized(b, real, b.cast(scale, "f64"), zero, zero.dtype)


def _integer_matmul(
    b: Builder, left: Tensor, right: Tensor, zero: Tensor | None, right_zero: Tensor | None
) -> Tensor:
    signed, offset = _signed(b, right, right_zero, [1, -1]), _one_zero(b, zero)
    if signed is not None and offset is not None and right.rank == 2 and left.rank >= 1:
        weight = b.known(np.ascontiguousarray(signed.values().T))
        return b.op("integer_linear", left, weight, None, input_zero_point=offset)
    rows = (
        [-1, 1]
        if zero is not None and zero.rank == 1 and zero.size > 1
        else list(zero.shape)
        if zero is not None
        else []
    )
    columns = list(right_zero.shape) if right_zero is not None else []
    product = b.op("matmul", _exact(b, left, zero, rows), _exact(b, right, right_zero, columns))
    return b.cast(product, "i32")


@onnx_op("MatMulInteger(A, B, a_zero_point?, b_zero_point?)")
def _matmul_integer(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    return _integer_matmul(b, *x)


@onnx_op("QLinearMatMul(a, a_scale, a_zero_point, b, b_scale, b_zero_point, y_scale, y_zero_point)")
def _qlinear_matmul(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    left, scale, zero, right, right_scale, right_zero, y_scale, y_zero = x
    if scale.size != 1:
        raise UnsupportedError(f"a_scale of shape {list(scale.shape)}", wanted="one scale of a")
    total = _integer_matmul(b, left, right, zero, right_zero)
    return b.cast(_rescaled(b, total, scale, right_scale, y_scale, y_zero, total.rank - 1), y_zero.dtype)
