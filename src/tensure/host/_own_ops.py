"""In torch: the listed ops ATen lacks, and those it has in another form.

Integer ops are exact: sums of products of bytes run in float64, where every partial sum below 2^53 is exact
in any order; rescaling runs in int64. Pools and convolutions with (before, after) padding pad first. All
float ops here are differentiable. Knows tensors and attributes, not Programs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from tensure.errors import EvaluationError
from tensure.program import evaluate_op

from ._dtypes import TORCH_DTYPES

Ints = Sequence[int]
_I32: Final = (-(1 << 31), (1 << 31) - 1)


def copy(x: Tensor) -> Tensor:
    """The value itself: values never change, so nobody can tell."""
    return x


def add_n(*tensors: Tensor) -> Tensor:
    """The sum in operand order, halves summed in float32 and rounded once."""
    dtype = tensors[0].dtype
    wide = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
    total = tensors[0].to(wide)
    for item in tensors[1:]:
        total = total + item.to(wide)
    return total.to(dtype) if len(tensors) > 1 else tensors[0].clone()


def draw(
    _like: Tensor | None, law: str, seed: int, start: int, size: Ints, extent: int, offset: int, after: str,
    dtype: str,
) -> Tensor:  # fmt: skip
    """The very numbers that the op table's semantics draw: they say nothing but where they come from."""
    given = {
        "law": law, "seed": seed, "start": start, "size": tuple(size), "extent": extent, "offset": offset,
        "after": after, "dtype": dtype,
    }  # fmt: skip
    (found,) = evaluate_op("draw", [None], given)
    return torch.from_numpy(found)


def clamp(x: Tensor, low: Any, high: Any) -> Tensor:
    """Clamp with one bound a tensor and the other a number."""
    dtype = _result_type(x, low, high)
    low, high = (
        bound if bound is None or isinstance(bound, Tensor) else torch.tensor(bound, dtype=dtype)
        for bound in (low, high)
    )
    return torch.clamp(x, low, high)


def _result_type(x: Tensor, *others: Any) -> torch.dtype:
    found = x.dtype
    for other in others:
        if other is not None:
            found = torch.promote_types(found, torch.result_type(x, other))
    return found


# --- padding in pairs -------------------------------------------------------------------------------


def pairs(padding: Ints, count: int) -> list[tuple[int, int]]:
    """(before, after) for each spatial dim."""
    if len(padding) == 2 * count:
        return [(padding[at], padding[at + 1]) for at in range(0, 2 * count, 2)]
    return [(side, side) for side in (list(padding) if len(padding) == count else list(padding) * count)]


def _pad(x: Tensor, sides: Sequence[tuple[int, int]], value: float = 0) -> Tensor:
    flat = [side for pair in reversed(sides) for side in pair]
    return F.pad(x, flat, value=value) if any(flat) else x


def padded_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Ints, padding: Ints, dilation: Ints, groups: int
) -> Tensor:
    """Convolution with uneven padding."""
    count = weight.dim() - 2
    x = _pad(x, pairs(padding, count))
    return torch.convolution(x, weight, bias, stride, [0] * count, dilation, False, [0] * count, groups)


def padded_transposed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    output_padding: Ints,
    groups: int,
) -> Tensor:
    """Transposed convolution with uneven padding: what padding cuts off the output, cut off afterwards."""
    count = weight.dim() - 2
    zeros = [0] * count
    extra = list(output_padding) * (count if len(output_padding) == 1 else 1)
    out = torch.convolution(x, weight, bias, stride, zeros, dilation, True, extra, groups)
    for dim, (before, after) in enumerate(pairs(padding, count), 2):
        out = out.narrow(dim, before, out.shape[dim] - before - after)
    return out


def _two(sizes: Ints) -> list[int]:
    return list(sizes) * 2 if len(sizes) == 1 else list(sizes)


def _hang(
    x: Tensor, kernel: Ints, stride: Ints, sides: Sequence[tuple[int, int]], dilation: Ints, ceil: bool
) -> tuple[list[int], list[tuple[int, int]]]:
    """Output sizes, and the pads grown by what the last windows of ceil_mode hang over the end."""
    sizes: list[int] = []
    grown: list[tuple[int, int]] = []
    for size, k, s, d, (before, after) in zip(x.shape[-2:], kernel, stride, dilation, sides, strict=True):
        reach = (k - 1) * d + 1
        count = (size + before + after - reach + (s - 1 if ceil else 0)) // s + 1
        if ceil and (count - 1) * s >= size + before:
            count -= 1
        sizes.append(count)
        grown.append((before, max(after, (count - 1) * s + reach - size - before)))
    return sizes, grown


def padded_max_pool2d(
    x: Tensor, kernel_size: Ints, stride: Ints, padding: Ints, dilation: Ints, ceil_mode: bool
) -> Tensor:
    """Max pool with uneven padding, which counts as the lowest value."""
    kernel, steps, spread = _two(kernel_size), _two(stride or kernel_size), _two(dilation)
    sizes, sides = _hang(x, kernel, steps, pairs(padding, 2), spread, ceil_mode)
    lowest = float("-inf") if x.dtype.is_floating_point else torch.iinfo(x.dtype).min
    out = F.max_pool2d(_pad(x, sides, lowest), kernel, steps, 0, spread)
    return out[..., : sizes[0], : sizes[1]]


def padded_avg_pool2d(
    x: Tensor,
    kernel_size: Ints,
    stride: Ints,
    padding: Ints,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor:
    """Average pool with uneven padding, counted or not."""
    kernel, steps = _two(kernel_size), _two(stride or kernel_size)
    own = pairs(padding, 2)
    sizes, sides = _hang(x, kernel, steps, own, (1, 1), ceil_mode)

    def total(values: Tensor, pads: Sequence[tuple[int, int]]) -> Tensor:
        summed = F.avg_pool2d(_pad(values, pads), kernel, steps, divisor_override=1)
        return summed[..., : sizes[0], : sizes[1]]

    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    if divisor_override is not None:
        return (total(wide, sides) / divisor_override).to(x.dtype)
    ones = torch.ones((1, *x.shape[-2:]), dtype=wide.dtype)
    if not count_include_pad:
        return (total(wide, sides) / total(ones, sides)).to(x.dtype)
    counted = F.pad(ones, [side for pair in reversed(own) for side in pair], value=1)
    over = [(0, after - had) for (_, after), (_, had) in zip(sides, own, strict=True)]
    return (total(wide, sides) / total(counted, over)).to(x.dtype)


# --- integers ---------------------------------------------------------------------------------------


def _narrow(x: Tensor) -> Tensor:
    if x.numel():
        low, high = torch.aminmax(x)
        if low < _I32[0] or high > _I32[1]:
            worst = int(high if high > _I32[1] else low)
            raise EvaluationError(
                f"an integer of {worst} leaves 32 bits", next_step="Choose smaller multipliers."
            )
    return x


def _high_multiply(a: Tensor, b: Tensor) -> Tensor:
    """round(a * b / 2^31) with halves away from zero, saturating; gemmlowp's."""
    product = a * b
    shifted = product + torch.where(product >= 0, 1 << 30, 1 - (1 << 30))
    quotient = torch.where(shifted >= 0, shifted >> 31, -(-shifted >> 31))
    return quotient.clamp(max=_I32[1])


def _shift_right(x: Tensor, exponent: Tensor) -> Tensor:
    """round(x / 2^exponent) with halves away from zero."""
    mask = (torch.ones_like(exponent) << exponent) - 1
    threshold = (mask >> 1) + (x < 0)
    return (x >> exponent) + ((x & mask) > threshold)


def _multiply(x: Tensor, multiplier: Tensor, shift: Tensor) -> Tensor:
    left = _narrow(x << shift.clamp(min=0))
    return _shift_right(_high_multiply(left, multiplier), (-shift).clamp(min=0))


def _along(values: Sequence[float], axis: int | None, x: Tensor, dtype: torch.dtype) -> Tensor:
    found = torch.tensor(list(values), dtype=dtype)
    shape = [1] * x.dim()
    if len(values) > 1 and axis is not None and x.dim():
        shape[axis] = len(values)
    return found.reshape(shape)


def quantize(
    x: Tensor, scale: Sequence[float], zero_point: Ints, axis: int | None, qmin: int, qmax: int, dtype: str
) -> Tensor:
    """round(x / scale) + zero_point held to qmin..qmax, in float64."""
    steps = torch.round(x.double() / _along(scale, axis, x, torch.float64))
    steps = steps.nan_to_num(nan=0.0, posinf=2.0**62, neginf=-(2.0**62)).clamp(-(2.0**62), 2.0**62)
    stored = steps + _along(zero_point, axis, x, torch.float64)
    return stored.clamp(qmin, qmax).to(TORCH_DTYPES[dtype])


def dequantize(x: Tensor, scale: Sequence[float], zero_point: Ints, axis: int | None, dtype: str) -> Tensor:
    """(x - zero_point) * scale in float64, rounded once (halves by way of float32, as everywhere)."""
    centred = x.long() - _along(zero_point, axis, x, torch.int64)
    found = centred.double() * _along(scale, axis, x, torch.float64)
    return (found.float() if dtype in ("f16", "bf16") else found).to(TORCH_DTYPES[dtype])


def _with_bias(total: Tensor, bias: Tensor | None, shape: Ints) -> Tensor:
    exact = total.long()
    if bias is not None:
        exact = exact + bias.long().reshape(list(shape))
    return _narrow(exact).int()


def integer_linear(x: Tensor, weight: Tensor, bias: Tensor | None, input_zero_point: int) -> Tensor:
    """(x - zero point) @ weight.T + bias, exact in i32."""
    return _with_bias((x.double() - input_zero_point) @ weight.double().T, bias, (-1,))


def integer_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    input_zero_point: int,
) -> Tensor:
    """Convolution of x - zero point, exact in i32."""
    centred = x.double() - input_zero_point
    total = padded_convolution(centred, weight.double(), None, stride, padding, dilation, groups)
    return _with_bias(total, bias, (-1, *[1] * (weight.dim() - 2)))


def requantize(
    x: Tensor,
    multiplier: Ints,
    shift: Ints,
    zero_point: int,
    qmin: int,
    qmax: int,
    axis: int | None,
    dtype: str,
) -> Tensor:
    """TensorFlow Lite's x * multiplier * 2^(shift - 31) + zero_point, rounded twice, held to qmin..qmax."""
    factors = (_along(values, axis, x, torch.int64) for values in (multiplier, shift))
    return (_multiply(x.long(), *factors) + zero_point).clamp(qmin, qmax).to(TORCH_DTYPES[dtype])


def integer_add(
    a: Tensor,
    b: Tensor,
    left_shift: int,
    multiplier1: int,
    shift1: int,
    zero_point1: int,
    multiplier2: int,
    shift2: int,
    zero_point2: int,
    multiplier: int,
    shift: int,
    zero_point: int,
    qmin: int,
    qmax: int,
) -> Tensor:
    """The sum of two i8 tensors of their own scales."""

    def scaled(x: Tensor, by: int, places: int) -> Tensor:
        return _multiply(x, torch.tensor(by), torch.tensor(places))

    first = scaled((a.long() - zero_point1) << left_shift, multiplier1, shift1)
    second = scaled((b.long() - zero_point2) << left_shift, multiplier2, shift2)
    total = scaled(_narrow(first + second), multiplier, shift)
    return (total + zero_point).clamp(qmin, qmax).to(torch.int8)


def integer_avg_pool2d(
    x: Tensor, kernel_size: Ints, stride: Ints, padding: Ints, qmin: int, qmax: int
) -> Tensor:
    """The mean of each window without its padding, halves away from zero."""
    kernel, steps = _two(kernel_size), _two(stride or kernel_size)
    sides = pairs(padding, 2)

    def total(values: Tensor) -> Tensor:
        return F.avg_pool2d(_pad(values, sides), kernel, steps, divisor_override=1).long()

    summed, count = total(x.double()), total(torch.ones((1, *x.shape[-2:]), dtype=torch.float64))
    up, down = summed + count // 2, -summed + count // 2
    rounded = torch.where(
        summed > 0,
        torch.div(up, count, rounding_mode="floor"),
        -torch.div(down, count, rounding_mode="floor"),
    )
    return rounded.clamp(qmin, qmax).to(torch.int8)


OWN_OPS: Final[dict[str, Callable[..., Any]]] = {
    "copy": copy,
    "add_n": add_n,
    "draw": draw,
    "quantize": quantize,
    "dequantize": dequantize,
    "integer_linear": integer_linear,
    "integer_convolution": integer_convolution,
    "requantize": requantize,
    "integer_add": integer_add,
    "integer_avg_pool2d": integer_avg_pool2d,
}
"""Each takes operands, then every attribute in the order of its signature."""
