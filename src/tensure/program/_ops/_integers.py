"""Quantisation and integer arithmetic, bit-exact: what an int8 plan means on a microcontroller.

Rounding is gemmlowp's as TensorFlow Lite uses it: a Q31 multiplier with a saturating rounding
doubling high multiply (halves up), then a rounding right shift (halves away from zero). Sums are
exact; one that leaves 32 bits is an error here, where C would be undefined.

    real value = scale * (stored - zero_point)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tensure.errors import EvaluationError

from .._dtypes import FLOATS, numpy_dtype
from .._records import TensorType
from ._convolution import convolution_shape, correlate, pool_window, sum_windows, window_of
from ._rules import broadcast, cast, in_range, need, need_dtype, need_rank, need_shape, wrap
from ._table import Array, Given, define, refuse

_I32 = (-(1 << 31), (1 << 31) - 1)
_STORED = frozenset({"i8", "u8", "i16", "i32"})
_BYTES = frozenset({"i8", "u8"})

# --- rounding -------------------------------------------------------------------------------------


def high_multiply(a: Array, b: Array) -> Array:
    """round(a * b / 2^31) with halves up, saturating (-2^31 times itself); int64 in and out."""
    product = a * b
    nudge = np.where(product >= 0, 1 << 30, 1 - (1 << 30))
    shifted = product + nudge
    quotient = np.where(shifted >= 0, shifted >> 31, -(-shifted >> 31))
    return np.minimum(quotient, _I32[1])


def shift_right(x: Array, exponent: Array) -> Array:
    """round(x / 2^exponent) with halves away from zero."""
    mask = (np.int64(1) << exponent) - 1
    threshold = (mask >> 1) + (x < 0)
    return np.asarray((x >> exponent) + ((x & mask) > threshold))


def multiply(x: Array, multiplier: Array, shift: Array) -> Array:
    """The product x * multiplier * 2^(shift - 31): shifted left first (shift > 0) or right last (below 0)."""
    return shift_right(high_multiply(_narrow(x << np.maximum(shift, 0)), multiplier), np.maximum(-shift, 0))


def _narrow(x: Array) -> Array:
    if x.size and (x.min() < _I32[0] or x.max() > _I32[1]):
        worst = x.flat[np.abs(x).argmax()]
        raise EvaluationError(
            f"an integer of {int(worst)} leaves 32 bits", next_step="Choose smaller multipliers."
        )
    return x


def _clip(x: Array, given: Given, dtype: str) -> Array:
    return np.clip(x, given["qmin"], given["qmax"]).astype(numpy_dtype(dtype))


# --- attributes -----------------------------------------------------------------------------------


def _check_range(given: Given, dtype: str) -> None:
    info = np.iinfo(numpy_dtype(dtype))
    in_range("qmin", given["qmin"], int(info.min), int(info.max))
    in_range("qmax", given["qmax"], given["qmin"], int(info.max))


def _check_per_channel(x: TensorType, given: Given, *names: str) -> None:
    """Each named list has one entry, or one for each index along axis."""
    axis = given["axis"]
    want = 1 if axis is None else (x.shape or (1,))[wrap(axis, len(x.shape), "axis")]
    for name in names:
        if len(given[name]) not in {1, want}:
            raise refuse(f"{name} of {len(given[name])} entries", f"1 or {want}")


def _check_each(name: str, values: Sequence[float], low: float, high: float) -> None:
    for value in values:
        in_range(name, value, low, high)


def _along(values: Sequence[float], axis: int | None, x: Array, dtype: Any) -> Array:
    """A per-channel list shaped to broadcast along axis of x."""
    found = np.asarray(values, dtype=dtype)
    if len(values) == 1 or axis is None or not x.ndim:
        return found.reshape((1,) * x.ndim)
    shape = [1] * x.ndim
    shape[axis] = len(values)
    return found.reshape(shape)


# --- between floats and integers ------------------------------------------------------------------


def _scales(x: TensorType, given: Given) -> None:
    _check_per_channel(x, given, "scale", "zero_point")
    _check_each("scale", given["scale"], math.ulp(0.0), 1e300)
    _check_each("zero_point", given["zero_point"], *_I32)


def _quantize_rule(args: list[Any], given: Given) -> list[TensorType]:
    (x,) = args
    need("input", x, FLOATS)
    need_dtype("a result", given["dtype"], _STORED)
    _scales(x, given)
    _check_range(given, given["dtype"])
    return [TensorType(x.shape, given["dtype"])]


def _quantize(args: list[Any], given: Given) -> list[Array]:
    (x,) = args
    steps = np.rint(cast(x, "f64") / _along(given["scale"], given["axis"], x, np.float64))
    stored = np.nan_to_num(steps, nan=0.0, posinf=np.inf, neginf=-np.inf)
    stored = np.clip(stored, -(2.0**62), 2.0**62) + _along(given["zero_point"], given["axis"], x, np.float64)
    return [_clip(stored, given, given["dtype"])]


define(
    "quantize(input: Tensor; scale: float[], zero_point: int[], axis: int? = none, qmin: int, qmax: int, "
    "dtype: dtype) -> 1",
    _quantize_rule,
    _quantize,
    "round(input / scale) + zero_point held to qmin..qmax, computed in f64, halves to even; NaN counts as "
    "0. One scale, or one for each index along axis.",
    aten=False,
)


def _dequantize_rule(args: list[Any], given: Given) -> list[TensorType]:
    (x,) = args
    need("input", x, _STORED)
    need_dtype("a result", given["dtype"], FLOATS)
    _scales(x, given)
    return [TensorType(x.shape, given["dtype"])]


def _dequantize(args: list[Any], given: Given) -> list[Array]:
    (x,) = args
    centred = x.astype(np.int64) - _along(given["zero_point"], given["axis"], x, np.int64)
    return [cast(np.asarray(centred * _along(given["scale"], given["axis"], x, np.float64)), given["dtype"])]


define(
    "dequantize(input: Tensor; scale: float[], zero_point: int[], axis: int? = none, dtype: dtype = f32) "
    "-> 1",
    _dequantize_rule,
    _dequantize,
    "(input - zero_point) * scale, computed in f64 and rounded once.",
    aten=False,
)

# --- sums of products -----------------------------------------------------------------------------


def _check_products(x: TensorType, weight: TensorType, bias: TensorType | None, given: Given) -> None:
    need("input", x, _BYTES)
    need("weight", weight, frozenset({"i8"}))
    if bias is not None:
        need("bias", bias, frozenset({"i32"}))
    low, high = (0, 255) if x.dtype == "u8" else (-128, 127)
    in_range("input_zero_point", given["input_zero_point"], low, high)


def _centred(x: Array, given: Given) -> Array:
    """Input less its zero point, in f64: products of bytes and their sums up to 2^53 are exact there."""
    return np.asarray(x.astype(np.float64) - given["input_zero_point"])


def _with_bias(total: Array, bias: Array | None, shape: tuple[int, ...]) -> list[Array]:
    exact = total.astype(np.int64)
    if bias is not None:
        exact = exact + bias.astype(np.int64).reshape(shape)
    return [_narrow(exact).astype(np.int32)]


def _linear_rule(args: list[Any], given: Given) -> list[TensorType]:
    x, weight, bias = args
    _check_products(x, weight, bias, given)
    need_rank("weight", weight, 2)
    if not x.shape or x.shape[-1] != weight.shape[1]:
        raise refuse(f"input of type {x}, weight of type {weight}", "equal last dims")
    need_shape("bias", bias, weight.shape[:1])
    return [TensorType((*x.shape[:-1], weight.shape[0]), "i32")]


define(
    "integer_linear(input: Tensor, weight: Tensor, bias: Tensor?; input_zero_point: int = 0) -> 1",
    _linear_rule,
    lambda args, given: _with_bias(
        np.asarray(np.matmul(_centred(args[0], given), args[1].T.astype(np.float64))), args[2], (-1,)
    ),
    "(input - input_zero_point) @ weight.T + bias, exact in i32; input i8 or u8, weight i8, bias i32.",
    aten=False,
)


def _convolution_rule(args: list[Any], given: Given) -> list[TensorType]:
    x, weight, bias = args
    _check_products(x, weight, bias, given)
    return [TensorType(convolution_shape(x, weight, bias, given), "i32")]


def _convolution(args: list[Any], given: Given) -> list[Array]:
    x, weight, bias = args
    window = window_of(weight.shape[2:], given)
    total = correlate(_centred(x, given), weight.astype(np.float64), window, given["groups"])
    return _with_bias(total, bias, (-1, *[1] * len(window.kernel)))


define(
    "integer_convolution(input: Tensor, weight: Tensor, bias: Tensor?; stride: int[] = [1], padding: "
    "int[] = [0], dilation: int[] = [1], groups: int = 1, input_zero_point: int = 0) -> 1",
    _convolution_rule,
    _convolution,
    "Convolution of input - input_zero_point, exact in i32; padding counts as the zero point and may hold "
    "(before, after) pairs.",
    aten=False,
)

# --- back to eight bits ---------------------------------------------------------------------------


def _requantize_rule(args: list[Any], given: Given) -> list[TensorType]:
    (x,) = args
    need("input", x, frozenset({"i32"}))
    need_dtype("a result", given["dtype"], _STORED)
    _check_per_channel(x, given, "multiplier", "shift")
    _check_each("multiplier", given["multiplier"], 0, _I32[1])
    _check_each("shift", given["shift"], -31, 30)
    in_range("zero_point", given["zero_point"], *_I32)
    _check_range(given, given["dtype"])
    return [TensorType(x.shape, given["dtype"])]


def _requantize(args: list[Any], given: Given) -> list[Array]:
    (x,) = args
    factors = (_along(given[name], given["axis"], x, np.int64) for name in ("multiplier", "shift"))
    return [_clip(multiply(x.astype(np.int64), *factors) + given["zero_point"], given, given["dtype"])]


define(
    "requantize(input: Tensor; multiplier: int[], shift: int[], zero_point: int = 0, qmin: int = -128, "
    "qmax: int = 127, axis: int? = none, dtype: dtype = i8) -> 1",
    _requantize_rule,
    _requantize,
    "input * multiplier * 2^(shift - 31) + zero_point held to qmin..qmax, with TensorFlow Lite's double "
    "rounding. One multiplier and shift, or one for each index along axis.",
    aten=False,
)


def _add_rule(args: list[Any], given: Given) -> list[TensorType]:
    a, b = args
    for name, item in (("self", a), ("other", b)):
        need(name, item, frozenset({"i8"}))
    in_range("left_shift", given["left_shift"], 0, 20)
    for suffix in ("", "1", "2"):
        in_range(f"multiplier{suffix}", given[f"multiplier{suffix}"], 0, _I32[1])
        in_range(f"shift{suffix}", given[f"shift{suffix}"], -31, 0)
        in_range(f"zero_point{suffix}", given[f"zero_point{suffix}"], -128, 127)
    _check_range(given, "i8")
    return [TensorType(broadcast(a.shape, b.shape), "i8")]


def _scaled(x: Array, given: Given, suffix: str) -> Array:
    multiplier, shift = (np.asarray(given[f"{name}{suffix}"], np.int64) for name in ("multiplier", "shift"))
    return multiply(x, multiplier, shift)


def _add(args: list[Any], given: Given) -> list[Array]:
    total = sum(
        _scaled((arg.astype(np.int64) - given[f"zero_point{suffix}"]) << given["left_shift"], given, suffix)
        for arg, suffix in zip(args, "12", strict=True)
    )
    return [_clip(_scaled(_narrow(np.asarray(total)), given, "") + given["zero_point"], given, "i8")]


define(
    "integer_add(self: Tensor, other: Tensor; left_shift: int = 20, multiplier1: int, shift1: int, "
    "zero_point1: int, multiplier2: int, shift2: int, zero_point2: int, multiplier: int, shift: int, "
    "zero_point: int, qmin: int = -128, qmax: int = 127) -> 1",
    _add_rule,
    _add,
    "The sum of two i8 tensors of their own scales, with TensorFlow Lite's arithmetic: each less its zero "
    "point, shifted left, rescaled; the sum rescaled, plus zero_point, held to qmin..qmax.",
    aten=False,
)


def _average_rule(args: list[Any], given: Given) -> list[TensorType]:
    (x,) = args
    need("self", x, frozenset({"i8"}))
    window = pool_window(x, given, whole=True)
    _check_range(given, "i8")
    return [TensorType((*x.shape[:-2], *window.sizes(x.shape[-2:])), "i8")]


def _average(args: list[Any], given: Given) -> list[Array]:
    (x,) = args
    window = pool_window(x, given, whole=True)
    out = window.sizes(x.shape[-2:])
    total = sum_windows(x.astype(np.int64), window, window.pads, out)
    count = sum_windows(np.ones(x.shape[-2:], np.int64), window, window.pads, out)
    rounded = np.where(total > 0, (total + count // 2) // count, -((-total + count // 2) // count))
    return [_clip(rounded, given, "i8")]


define(
    "integer_avg_pool2d(self: Tensor; kernel_size: int[], stride: int[] = [], padding: int[] = [0], qmin: "
    "int = -128, qmax: int = 127) -> 1",
    _average_rule,
    _average,
    "The mean of each window of i8 without its padding, halves away from zero, held to qmin..qmax.",
    aten=False,
)
