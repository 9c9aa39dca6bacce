"""Convolution and pooling over one, two or three spatial dims, channels first.

Padding has one entry per spatial dim (or one for all), as ATen's, or a (before, after) pair per
spatial dim, first dim first: a row slice is padded only at an outer edge. Pairs are our extension;
ATen wants constant_pad_nd first.

    N batch   C channels in   O channels out   G groups   P positions (spatial dims as one)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from .._dtypes import FLOATS
from .._records import TensorType
from ._rules import (
    NUMBERS,
    cast,
    each,
    in_range,
    need,
    need_dtype,
    need_rank,
    need_shape,
    same_dtype,
    single,
    type_of,
)
from ._table import Array, Given, define, refuse, room

_MOST_WINDOW: Final = 1 << 16
"""Elements of a pooling window, and windows per dim of an adaptive pool: they are walked one by one."""


@dataclass(frozen=True, slots=True)
class Window:
    """How a kernel walks over the spatial dims."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]

    def reach(self) -> tuple[int, ...]:
        """Input elements one window spans per dim."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True))

    def sizes(self, spatial: tuple[int, ...], *, ceil: bool = False) -> tuple[int, ...]:
        """Output sizes; with `ceil` a window may hang over the end if it starts before it."""
        out: list[int] = []
        for size, reach, stride, (before, after) in zip(
            spatial, self.reach(), self.stride, self.pads, strict=True
        ):
            free = size + before + after - reach
            if free < 0:
                raise refuse(
                    f"a window spanning {reach} over {size} elements padded by {before} and {after}", "a fit"
                )
            count = (free + (stride - 1 if ceil else 0)) // stride + 1
            if ceil and (count - 1) * stride >= size + before:
                count -= 1
            out.append(count)
        return tuple(out)

    def patches(self, padded: Array, out: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], Array]]:
        """For every kernel position, the padded input it meets at all output positions."""
        for spot in itertools.product(*map(range, self.kernel)):
            starts = [place * d for place, d in zip(spot, self.dilation, strict=True)]
            steps = zip(starts, out, self.stride, strict=True)
            yield spot, padded[at(tuple(slice(a, a + (n - 1) * s + 1, s) for a, n, s in steps))]


def at(spot: tuple[int | slice, ...]) -> tuple[Any, ...]:
    """An index of the last dims."""
    return (..., *spot)


def pad_pairs(padding: tuple[int, ...], count: int) -> tuple[tuple[int, int], ...]:
    """Padding as (before, after) per spatial dim."""
    if len(padding) == 2 * count:
        flat = each("padding", padding, 2 * count, 0)
        return tuple((flat[at], flat[at + 1]) for at in range(0, 2 * count, 2))
    return tuple((item, item) for item in each("padding", padding, count, 0))


def padded(x: Array, pads: tuple[tuple[int, int], ...], fill: Any) -> Array:
    """An array with its last dims padded."""
    full = [(0, 0)] * (x.ndim - len(pads)) + list(pads)
    shape = tuple(size + before + after for size, (before, after) in zip(x.shape, full, strict=True))
    room(shape, "the padded input")
    out = np.full(shape, fill, dtype=x.dtype)
    out[tuple(slice(before, before + size) for size, (before, _) in zip(x.shape, full, strict=True))] = x
    return out


# --- convolution ----------------------------------------------------------------------------------


def window_of(kernel: tuple[int, ...], given: Given) -> Window:
    """The window of a convolution, its attributes checked."""
    count = len(kernel)
    if min(kernel) < 1:
        raise refuse(f"a kernel of sizes {list(kernel)}", "at least 1 each")
    return Window(
        kernel,
        each("stride", given["stride"], count, 1),
        pad_pairs(given["padding"], count),
        each("dilation", given["dilation"], count, 1),
    )


def convolution_shape(
    x: TensorType, weight: TensorType, bias: TensorType | None, given: Given
) -> tuple[int, ...]:
    """The result shape of a convolution, every size and attribute checked."""
    need_rank("weight", weight, 3, 4, 5)
    need_rank("input", x, len(weight.shape))
    window = window_of(weight.shape[2:], given)
    groups, transposed = given["groups"], given.get("transposed", False)
    in_range("groups", groups, 1)
    num_in, num_out = (
        (weight.shape[0], weight.shape[1] * groups)
        if transposed
        else (weight.shape[1] * groups, weight.shape[0])
    )
    if min(num_in, num_out) < 1 or weight.shape[0] % groups:
        raise refuse(
            f"weight of shape {list(weight.shape)} in {groups} groups", "whole groups of at least one channel"
        )
    if x.shape[1] != num_in:
        raise refuse(
            f"input of shape {list(x.shape)}", f"{num_in} channels, as weight {list(weight.shape)} has them"
        )
    need_shape("bias", bias, (num_out,))
    extra = each("output_padding", given.get("output_padding", (0,)), len(window.kernel), 0)
    if transposed:
        return (x.shape[0], num_out, *_transposed_sizes(x.shape[2:], window, extra))
    if any(extra):
        raise refuse(f"output_padding={list(extra)}", "0 unless transposed")
    return (x.shape[0], num_out, *window.sizes(x.shape[2:]))


def _transposed_sizes(spatial: tuple[int, ...], window: Window, extra: tuple[int, ...]) -> tuple[int, ...]:
    out: list[int] = []
    for at, size in enumerate(spatial):
        if extra[at] >= max(window.stride[at], window.dilation[at]):
            raise refuse(f"output_padding={list(extra)}", "each below the stride or the dilation")
        out.append((size - 1) * window.stride[at] + window.reach()[at] + extra[at] - sum(window.pads[at]))
        if size < 1 or out[-1] < 1:
            raise refuse(
                f"spatial sizes {list(spatial)} with padding {list(window.pads)}",
                "at least one output element",
            )
    return tuple(out)


def _convolution_rule(args: list[Any], given: Given) -> list[TensorType]:
    x, weight, bias = args
    dtype = same_dtype(input=x, weight=weight, bias=bias)
    need_dtype("an operand", dtype, FLOATS)
    return [TensorType(convolution_shape(x, weight, bias, given), dtype)]


def correlate(x: Array, weight: Array, window: Window, groups: int) -> Array:
    """Sums over the window and the channels of a group: [N, C, ...] and [O, C/G, ...] -> [N, O, ...]."""
    out = window.sizes(x.shape[2:])
    num, count = x.shape[0], math.prod(out)
    full = padded(x, window.pads, 0)
    w_GOC = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], *window.kernel)
    total = np.zeros((num, groups, w_GOC.shape[1], count), dtype=np.result_type(x, weight))
    for spot, patch in window.patches(full, out):
        patch_NGCP = patch.reshape(num, groups, weight.shape[1], count)
        w_spot = w_GOC[at(spot)]
        total += w_spot * patch_NGCP if weight.shape[1] == 1 else np.matmul(w_spot, patch_NGCP)
    return total.reshape(num, weight.shape[0], *out)


def spread(x: Array, weight: Array, window: Window, groups: int, sizes: tuple[int, ...]) -> Array:
    """The transpose of `correlate`: [N, O, ...] and [O, C/G, ...] -> [N, C, *sizes]."""
    num, count = x.shape[0], math.prod(x.shape[2:])
    w_GCO = np.swapaxes(
        weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], *window.kernel), 1, 2
    )
    x_NGOP = x.reshape(num, groups, weight.shape[0] // groups, count)
    ends = [size + sum(pads) for size, pads in zip(sizes, window.pads, strict=True)]
    room((num, groups * weight.shape[1], *ends), "the padded output")
    total = np.zeros((num, groups * weight.shape[1], *ends), dtype=x.dtype)
    for spot, place in window.patches(total, x.shape[2:]):
        place += np.matmul(w_GCO[at(spot)], x_NGOP).reshape(place.shape)
    inner = tuple(slice(before, before + size) for size, (before, _) in zip(sizes, window.pads, strict=True))
    return np.asarray(total[at(inner)])


def gradient_of_weight(grad: Array, x: Array, shape: tuple[int, ...], window: Window, groups: int) -> Array:
    """The gradient of `correlate` for its weight, of this shape."""
    num, out = x.shape[0], grad.shape[2:]
    count = math.prod(out)
    g_NGOP = grad.reshape(num, groups, shape[0] // groups, count)
    total = np.zeros((groups, shape[0] // groups, *shape[1:]), dtype=x.dtype)
    for spot, patch in window.patches(padded(x, window.pads, 0), out):
        patch_NGPC = np.swapaxes(patch.reshape(num, groups, shape[1], count), -1, -2)
        total[at(spot)] = np.matmul(g_NGOP, patch_NGPC).sum(axis=0)
    return total.reshape(shape)


def _convolution(args: list[Any], given: Given) -> list[Array]:
    x, weight, bias = args
    dtype = type_of(x).dtype
    shape = convolution_shape(type_of(x), type_of(weight), type_of(bias), given)
    window = window_of(weight.shape[2:], given)
    if given["transposed"]:
        out = spread(single(x), single(weight), window, given["groups"], shape[2:])
    else:
        out = correlate(single(x), single(weight), window, given["groups"])
    if bias is not None:
        out = np.asarray(out + single(bias).reshape(-1, *[1] * len(window.kernel)))
    return [cast(out, dtype)]


define(
    "convolution(input: Tensor, weight: Tensor, bias: Tensor?; stride: int[] = [1], padding: int[] = [0], "
    "dilation: int[] = [1], transposed: bool = false, output_padding: int[] = [0], groups: int = 1) -> 1",
    _convolution_rule,
    _convolution,
    "Cross-correlation of [N, C, spatial...] with [O, C/groups, spatial...] (transposed: [C, O/groups, "
    "...]), 1 to 3 spatial dims; padding may hold (before, after) pairs.",
)

# --- pooling --------------------------------------------------------------------------------------


def pool_window(x: Any, given: Given, *, whole: bool = False) -> Window:
    """The window of a 2-D pool, its attributes checked as ATen does."""
    if len(x.shape) not in (3, 4) or min(x.shape[-3:]) < 1:
        raise refuse(
            f"self of shape {list(x.shape)}", "[C, H, W] or [N, C, H, W] with at least one element each"
        )
    kernel = each("kernel_size", given["kernel_size"], 2, 1)
    if math.prod(kernel) > _MOST_WINDOW:
        raise refuse(f"kernel_size={list(kernel)}", f"a window of at most {_MOST_WINDOW} elements")
    window = Window(
        kernel,
        each("stride", given["stride"], 2, 1) if given["stride"] else kernel,
        pad_pairs(given["padding"], 2),
        (1, 1) if whole else each("dilation", given["dilation"], 2, 1),
    )
    for reach, pads in zip(window.reach(), window.pads, strict=True):
        if max(pads) > reach // 2:
            raise refuse(
                f"padding={list(given['padding'])} for windows spanning {list(window.reach())}",
                "at most half of it",
            )
    return window


def _hang(window: Window, spatial: tuple[int, ...], out: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """The pads, with as much more after the end as the last windows of ceil_mode hang over."""
    return tuple(
        (before, max(after, (count - 1) * stride + reach - size - before))
        for size, count, reach, stride, (before, after) in zip(
            spatial, out, window.reach(), window.stride, window.pads, strict=True
        )
    )


def _max_pool_rule(args: list[Any], given: Given) -> list[TensorType]:
    (x,) = args
    need("self", x, NUMBERS)
    window = pool_window(x, given)
    return [TensorType((*x.shape[:-2], *window.sizes(x.shape[-2:], ceil=given["ceil_mode"])), x.dtype)]


def _max_pool(args: list[Any], given: Given) -> list[Array]:
    (x,) = args
    window = pool_window(x, given)
    out = window.sizes(x.shape[-2:], ceil=given["ceil_mode"])
    wide = single(x)
    lowest = -np.inf if wide.dtype.kind == "f" else np.iinfo(wide.dtype).min
    full = padded(wide, _hang(window, x.shape[-2:], out), lowest)
    best = np.full((*x.shape[:-2], *out), lowest, dtype=wide.dtype)
    for _, patch in window.patches(full, out):
        np.maximum(best, patch, out=best)
    return [cast(best, type_of(x).dtype)]


define(
    "max_pool2d(self: Tensor; kernel_size: int[], stride: int[] = [], padding: int[] = [0], dilation: "
    "int[] = [1], ceil_mode: bool = false) -> 1",
    _max_pool_rule,
    _max_pool,
    "The largest in each window; padding counts as the lowest value and may hold (before, after) pairs. "
    "Stride defaults to the kernel.",
)


def _avg_pool_rule(args: list[Any], given: Given) -> list[TensorType]:
    (x,) = args
    need("self", x, FLOATS)
    if given["divisor_override"] == 0:
        raise refuse("divisor_override=0", "a number other than 0")
    window = pool_window(x, given, whole=True)
    return [TensorType((*x.shape[:-2], *window.sizes(x.shape[-2:], ceil=given["ceil_mode"])), x.dtype)]


def _avg_pool(args: list[Any], given: Given) -> list[Array]:
    (x,) = args
    window = pool_window(x, given, whole=True)
    spatial = x.shape[-2:]
    out = window.sizes(spatial, ceil=given["ceil_mode"])
    pads = _hang(window, spatial, out)
    total = sum_windows(single(x), window, pads, out)
    divisor: Any = given["divisor_override"]
    if divisor is None and given["count_include_pad"]:
        counted = tuple(size + sum(pair) for size, pair in zip(spatial, window.pads, strict=True))
        over = tuple((0, after - had) for (_, after), (_, had) in zip(pads, window.pads, strict=True))
        divisor = sum_windows(np.ones(counted, np.float32), window, over, out)
    elif divisor is None:
        divisor = sum_windows(np.ones(spatial, np.float32), window, pads, out)
    return [cast(np.asarray(total / np.asarray(divisor).astype(total.dtype)), type_of(x).dtype)]


def sum_windows(x: Array, window: Window, pads: tuple[tuple[int, int], ...], out: tuple[int, ...]) -> Array:
    """The sum in each window of x padded with zeros."""
    total = np.zeros((*x.shape[: x.ndim - len(out)], *out), dtype=x.dtype)
    for _, patch in window.patches(padded(x, pads, 0), out):
        total += patch
    return total


define(
    "avg_pool2d(self: Tensor; kernel_size: int[], stride: int[] = [], padding: int[] = [0], ceil_mode: "
    "bool = false, count_include_pad: bool = true, divisor_override: int? = none) -> 1",
    _avg_pool_rule,
    _avg_pool,
    "The mean of each window, its padding counted or not; padding may hold (before, after) pairs. Stride "
    "defaults to the kernel.",
)


def _adaptive_rule(args: list[Any], given: Given) -> list[TensorType]:
    (x,) = args
    need("self", x, FLOATS)
    if len(x.shape) not in (3, 4) or min(x.shape[-3:]) < 1:
        raise refuse(
            f"self of shape {list(x.shape)}", "[C, H, W] or [N, C, H, W] with at least one element each"
        )
    return [
        TensorType((*x.shape[:-2], *each("output_size", given["output_size"], 2, 1, _MOST_WINDOW)), x.dtype)
    ]


def _adaptive(args: list[Any], given: Given) -> list[Array]:
    (x,) = args
    out = each("output_size", given["output_size"], 2, 1, _MOST_WINDOW)
    wide: Array = cast(x, "f64")
    for axis, count in zip((-2, -1), out, strict=True):
        size = x.shape[axis]
        spans = [(at * size // count, -(-(at + 1) * size // count)) for at in range(count)]
        parts = [wide.take(range(lo, hi), axis=axis).mean(axis=axis, keepdims=True) for lo, hi in spans]
        wide = np.concatenate(parts, axis=axis)
    return [cast(wide, type_of(x).dtype)]


define(
    "adaptive_avg_pool2d(self: Tensor; output_size: int[]) -> 1",
    _adaptive_rule,
    _adaptive,
    "Means over output_size windows that cover the input: floor(i * in / out) to ceil((i + 1) * in / out).",
)
