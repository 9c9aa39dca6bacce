"""Integer ops against slow formulas in Python integers and fractions; padding in pairs against ATen's."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tensure.errors import EvaluationError, TensureError
from tensure.program._ops import _integers, evaluate_op, listed

from .op_draws import flag, index, one, partner, shape, small, tensor

EXAMPLES = 200 if os.environ.get("TENSURE_TEST_PROFILE") == "nightly" else 25
HALF = Fraction(1, 2)
I32 = 1 << 31


def drawn(build: Callable[[Any], Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A Hypothesis test of what `build` draws."""
    return lambda test: settings(max_examples=EXAMPLES, deadline=None)(given(st.composite(build)())(test))


# --- the slow formulas ----------------------------------------------------------------------------


def away(value: Fraction) -> int:
    """Nearest integer, halves away from zero."""
    nearest = math.floor(abs(value) + HALF)
    return nearest if value >= 0 else -nearest


def rescaled(value: int, multiplier: int, shift: int) -> int:
    """TensorFlow Lite's MultiplyByQuantizedMultiplier with double rounding, from its definition."""
    high = min(math.floor(Fraction(value * 2 ** max(shift, 0) * multiplier, 1 << 31) + HALF), I32 - 1)
    return away(Fraction(high, 2 ** max(-shift, 0)))


def held(value: int, low: int, high: int) -> int:
    return min(max(value, low), high)


def lines(x: Any) -> Any:
    """Every index of an array."""
    return itertools.product(*map(range, x.shape))


def slow_convolution(
    x: Any, weight: Any, bias: Any, attrs: dict[str, Any], pads: list[tuple[int, int]]
) -> Any:
    """Element by element, in Python integers."""
    groups, zero = attrs["groups"], attrs["input_zero_point"]
    kernel, stride, dilation = weight.shape[2:], attrs["stride"], attrs["dilation"]
    sizes = [
        (n + a + b - (k - 1) * d - 1) // s + 1
        for n, (a, b), k, s, d in zip(x.shape[2:], pads, kernel, stride, dilation, strict=True)
    ]
    out = np.zeros((x.shape[0], weight.shape[0], *sizes), dtype=object)
    per_in, per_out = weight.shape[1], weight.shape[0] // groups
    for n, o, *at in lines(out):
        total = 0 if bias is None else int(bias[o])
        for c, *spot in itertools.product(range(per_in), *map(range, kernel)):
            place = [
                a * s + k * d - p[0] for a, s, k, d, p in zip(at, stride, spot, dilation, pads, strict=True)
            ]
            if all(0 <= q < size for q, size in zip(place, x.shape[2:], strict=True)):
                value = int(x[(n, (o // per_out) * per_in + c, *place)]) - zero
                total += value * int(weight[(o, c, *spot)])
        out[(n, o, *at)] = total
    return out


# --- rounding and rescaling -----------------------------------------------------------------------


@pytest.mark.parametrize("value,multiplier,shift,want", [
    (1 << 30, 1 << 30, 0, 1 << 29),
    (1, 1 << 30, 0, 1),          # 0.5 goes up
    (-1, 1 << 30, 0, 0),         # -0.5 goes up too: the high multiply rounds halves up
    (-2, (1 << 31) - 1, -2, -1), # -2 / 4 = -0.5 goes away from zero: the shift rounds halves away
    (2, (1 << 31) - 1, -2, 1),
])  # fmt: skip
def test_rescaling_at_the_halves(value: int, multiplier: int, shift: int, want: int) -> None:
    assert rescaled(value, multiplier, shift) == want
    (out,) = evaluate_op(
        "requantize",
        [np.array([value], np.int32)],
        {"multiplier": (multiplier,), "shift": (shift,), "qmin": -I32, "qmax": I32 - 1, "dtype": "i32"},
    )
    assert int(out[0]) == want


def test_the_high_multiply_saturates() -> None:
    lowest = np.array([-I32])
    assert int(_integers.high_multiply(lowest, lowest)[0]) == I32 - 1


def _requantized(draw: Any) -> Any:
    size = shape(draw, 1, 3, side=1)
    axis = one(draw, [None, *range(len(size))])
    count = 1 if axis is None else size[axis]
    shifts = [small(draw, -31, 3) for _ in range(count)]
    bound = I32 >> max(*shifts, 0, 0)
    values = [
        one(draw, [draw(st.integers(-bound, bound - 1)), small(draw, -70, 70)])
        for _ in range(math.prod(size))
    ]
    multiplier = tuple(draw(st.integers(0, I32 - 1)) for _ in range(count))
    low = small(draw, -128, 0)
    attrs = {
        "multiplier": multiplier,
        "shift": tuple(shifts),
        "zero_point": small(draw, -128, 127),
        "axis": axis,
    }
    return np.array(values, np.int32).reshape(size), {**attrs, "qmin": low, "qmax": small(draw, low, 127)}


@drawn(_requantized)
def test_requantize(call: Any) -> None:
    x, attrs = call
    (out,) = evaluate_op("requantize", [x], attrs)
    for at in lines(x):
        channel = 0 if attrs["axis"] is None or len(attrs["shift"]) == 1 else at[attrs["axis"]]
        value = rescaled(int(x[at]), attrs["multiplier"][channel], attrs["shift"][channel])
        assert int(out[at]) == held(value + attrs["zero_point"], attrs["qmin"], attrs["qmax"])


def test_rounding_once_instead_of_twice_is_seen() -> None:
    """The negative control: a single rounding differs somewhere in a small search."""
    differ = [
        value
        for value in range(-200, 200)
        if rescaled(value, (1 << 30) + 1, -3) != away(Fraction(value * ((1 << 30) + 1), 1 << 34))
    ]
    assert differ


def test_leaving_32_bits_is_an_error() -> None:
    with pytest.raises(EvaluationError, match="32 bits"):
        evaluate_op("requantize", [np.array([I32 - 1], np.int32)], {"multiplier": (1,), "shift": (1,)})
    ones = np.full((1, 1 << 17), -128, np.int8)
    with pytest.raises(EvaluationError, match="32 bits"):
        evaluate_op("integer_linear", [ones, ones, None], {})


# --- sums of products -----------------------------------------------------------------------------


def _linear(draw: Any) -> Any:
    k, n = small(draw, 0, 6), small(draw, 0, 4)
    dtype = one(draw, ["i8", "u8"])
    x = tensor(draw, (*shape(draw, 0, 2), k), dtype, low=-128 if dtype == "i8" else 0, high=127)
    bias = tensor(draw, (n,), "i32", low=-(1 << 20), high=1 << 20) if flag(draw) else None
    return x, tensor(draw, (n, k), "i8", low=-128, high=127), bias, small(draw, 0, 127)


@drawn(_linear)
def test_integer_linear(call: Any) -> None:
    x, weight, bias, zero = call
    (out,) = evaluate_op("integer_linear", [x, weight, bias], {"input_zero_point": zero})
    assert out.dtype == np.int32
    for *row, n in lines(out):
        total = sum((int(a) - zero) * int(b) for a, b in zip(x[tuple(row)], weight[n], strict=True))
        assert int(out[(*row, n)]) == total + (0 if bias is None else int(bias[n]))


def _convolved(draw: Any) -> Any:
    count, groups = small(draw, 1, 2), one(draw, [1, 2])
    low, high = small(draw, 1, 2), small(draw, 1, 2)
    kernel = tuple(small(draw, 1, 3) for _ in range(count))
    dilation = tuple(small(draw, 1, 2) for _ in range(count))
    pads = [(small(draw, 0, 2), small(draw, 0, 2)) for _ in range(count)]
    spatial = tuple((k - 1) * d + small(draw, 1, 3) for k, d in zip(kernel, dilation, strict=True))
    attrs = {
        "stride": tuple(small(draw, 1, 2) for _ in range(count)),
        "padding": tuple(item for pair in pads for item in pair),
        "dilation": dilation,
        "groups": groups,
    }
    x = tensor(draw, (small(draw, 1, 2), low * groups, *spatial), "i8", low=-128, high=127)
    weight = tensor(draw, (high * groups, low, *kernel), "i8", low=-128, high=127)
    bias = tensor(draw, (high * groups,), "i32", low=-9999, high=9999) if flag(draw) else None
    return x, weight, bias, {**attrs, "input_zero_point": small(draw, -128, 127)}, pads


@drawn(_convolved)
def test_integer_convolution(call: Any) -> None:
    x, weight, bias, attrs, pads = call
    (out,) = evaluate_op("integer_convolution", [x, weight, bias], attrs)
    assert out.dtype == np.int32 and np.array_equal(out, slow_convolution(x, weight, bias, attrs, pads))


@drawn(_convolved)
def test_float_convolution_with_pairs_is_atens_on_the_padded_input(call: Any) -> None:
    x, weight, bias, attrs, pads = call
    attrs = {key: value for key, value in attrs.items() if key != "input_zero_point"}
    floats = [None if item is None else item.astype(np.float64) for item in (x, weight, bias)]
    (out,) = evaluate_op("convolution", floats, attrs)
    tensors: list[Any] = [None if item is None else torch.from_numpy(item) for item in floats]
    tensors[0] = torch.nn.functional.pad(tensors[0], [item for pair in pads[::-1] for item in pair])
    rest = {"padding": [0] * len(pads), "transposed": False, "output_padding": [0] * len(pads)}
    want = torch.ops.aten.convolution(*tensors, **{**attrs, **rest})
    assert np.array_equal(out, want.numpy())  # small integers: exact in float64


def _pooled(draw: Any) -> Any:
    kernel = (small(draw, 2, 3), small(draw, 2, 3))
    pads = [(small(draw, 0, 1), small(draw, 0, 1)) for _ in kernel]
    size = (small(draw, 1, 2), small(draw, 1, 2), small(draw, 3, 6), small(draw, 3, 6))
    padding = tuple(item for pair in pads for item in pair)
    attrs = {"kernel_size": kernel, "stride": (small(draw, 1, 2), small(draw, 1, 3)), "padding": padding}
    return tensor(draw, size, "i8", low=-128, high=127), attrs, pads


@drawn(_pooled)
def test_pools_with_pairs(call: Any) -> None:
    x, attrs, pads = call
    flat = [item for pair in pads[::-1] for item in pair]
    floats = x.astype(np.float64)
    shared = {"kernel_size": attrs["kernel_size"], "stride": attrs["stride"]}
    low = torch.nn.functional.pad(torch.from_numpy(floats), flat, value=-math.inf)
    assert np.array_equal(
        evaluate_op("max_pool2d", [floats], attrs)[0], torch.ops.aten.max_pool2d(low, **shared).numpy()
    )
    zeros = torch.nn.functional.pad(torch.from_numpy(floats), flat)
    mean = torch.ops.aten.avg_pool2d(zeros, **shared).numpy()
    np.testing.assert_allclose(evaluate_op("avg_pool2d", [floats], attrs)[0], mean, rtol=1e-12, atol=1e-12)


@drawn(_pooled)
def test_integer_average_pool(call: Any) -> None:
    x, attrs, pads = call
    (out,) = evaluate_op("integer_avg_pool2d", [x], {**attrs, "qmin": -100, "qmax": 100})
    for n, c, *at in lines(out):
        rows, cols = (
            range(max(a * s - p[0], 0), min(a * s - p[0] + k, size))
            for a, s, p, k, size in zip(
                at, attrs["stride"], pads, attrs["kernel_size"], x.shape[2:], strict=True
            )
        )
        window = [int(x[n, c, row, col]) for row in rows for col in cols]
        assert int(out[(n, c, *at)]) == held(away(Fraction(sum(window), len(window))), -100, 100)


def _added(draw: Any) -> Any:
    size = shape(draw, 0, 3)
    args = [tensor(draw, item, "i8", low=-128, high=127) for item in (size, partner(draw, size))]
    attrs: dict[str, Any] = {"left_shift": small(draw, 0, 20)}
    for suffix in ("1", "2", ""):
        attrs |= {
            f"multiplier{suffix}": draw(st.integers(1 << 30, I32 - 1)),
            f"shift{suffix}": small(draw, -31, -1),
        }
        attrs[f"zero_point{suffix}"] = small(draw, -128, 127)
    return args, attrs


@drawn(_added)
def test_integer_add(call: Any) -> None:
    args, attrs = call
    (out,) = evaluate_op("integer_add", args, attrs)
    spread = np.broadcast_arrays(*args)
    for at in lines(out):
        total = sum(
            rescaled(
                (int(x[at]) - attrs[f"zero_point{suffix}"]) << attrs["left_shift"],
                attrs[f"multiplier{suffix}"],
                attrs[f"shift{suffix}"],
            )
            for x, suffix in zip(spread, "12", strict=True)
        )
        want = rescaled(total, attrs["multiplier"], attrs["shift"]) + attrs["zero_point"]
        assert int(out[at]) == held(want, -128, 127)


# --- between floats and integers ------------------------------------------------------------------


def _quantized(draw: Any) -> Any:
    size = shape(draw, 1, 3, side=1)
    axis = one(draw, [None, *range(len(size))])
    count = 1 if axis is None else size[axis]
    scale = tuple(draw(st.floats(1e-3, 10)) for _ in range(count))
    zero = tuple(small(draw, -20, 20) for _ in range(count))
    x = tensor(draw, size, one(draw, ["f32", "f64", "bf16"]), low=-300, high=300, specials=True)
    return x, {"scale": scale, "zero_point": zero, "axis": axis}


@drawn(_quantized)
def test_quantize_and_back(call: Any) -> None:
    x, attrs = call
    (stored,) = evaluate_op("quantize", [x], {**attrs, "qmin": -100, "qmax": 99, "dtype": "i8"})
    (back,) = evaluate_op("dequantize", [stored], attrs)
    for at in lines(x):
        channel = 0 if attrs["axis"] is None else at[attrs["axis"]] % len(attrs["scale"])
        value, scale, zero = float(x[at]), attrs["scale"][channel], attrs["zero_point"][channel]
        if math.isinf(value):
            want = 99 if value > 0 else -100
        else:
            want = held(round(0.0 if math.isnan(value) else value / scale) + zero, -100, 99)
        assert int(stored[at]) == want
        assert back[at] == np.float32((want - zero) * scale)


def test_every_integer_op_is_tested_here() -> None:
    names = {name for name in listed() if name.startswith("integer_")} | {
        "quantize",
        "dequantize",
        "requantize",
    }
    source = Path(__file__).read_text(encoding="utf-8")
    assert all(f'evaluate_op("{name}"' in source or f'        "{name}"' in source for name in names)


def test_indices_of_every_integer_dtype_that_is_listed() -> None:
    table = np.arange(8, dtype=np.float32).reshape(4, 2)
    for dtype in (np.int32, np.int64):
        found = index(lambda strategy: 0, (3,), 4).astype(dtype)
        assert np.array_equal(evaluate_op("embedding", [table, found], {})[0], table[found])
    with pytest.raises(TensureError):
        evaluate_op("embedding", [table, np.zeros(2, np.int8)], {})
