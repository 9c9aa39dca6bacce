"""Convolution and pooling of a row slice: rows that are there, rows that are padding, rows that come out.

A local window op computes logical rows t0, t0+1, ... exactly when its taps meet the same logical
rows, and where they meet padding the logical op's taps leave the tensor too. Padding is
(before, after) pairs. Channels may be cut by group, by output, or (convolution) by input: then the
result is an addend. Knows nothing of values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from ._index import Index, Region, Shape, distinct, whole
from ._limit import Share, share_of

Given: TypeAlias = dict[str, Any]
Found: TypeAlias = "tuple[Region, Share | None] | None"


@dataclass(frozen=True, slots=True)
class Walk:
    """How windows go along one dim."""

    kernel: int
    stride: int
    dilation: int
    before: int
    after: int

    def count(self, size: int) -> int:
        """How many windows fit into a dim of that size."""
        free = size + self.before + self.after - (self.kernel - 1) * self.dilation - 1
        return free // self.stride + 1 if free >= 0 else 0


def walks(given: Given, kernel: Sequence[int]) -> list[Walk]:
    """The walk along every spatial dim."""
    count = len(kernel)
    stride = _each(given["stride"] or kernel, count)
    dilation = _each(given.get("dilation", (1,)), count)
    padding = tuple(given["padding"])
    pairs = padding if len(padding) == 2 * count else tuple(p for p in _each(padding, count) for _ in "ab")
    return [
        Walk(kernel[dim], stride[dim], dilation[dim], pairs[2 * dim], pairs[2 * dim + 1])
        for dim in range(count)
    ]


def rows_out(local: Walk, logical: Walk, index: Index, size: int, outputs: int) -> Index | None:
    """Which logical output rows a local window op makes from the given logical input rows."""
    if (local.kernel, local.stride, local.dilation) != (logical.kernel, logical.stride, logical.dilation):
        return None
    if len(index) != 1:
        return None
    ((start, stop),) = index
    count = local.count(stop - start)
    # Row j's tap k is local row j*s + k*d - before, hence logical row start + that; it has to be
    # the logical row's (first + j)*s + k*d - Before.
    shift = start - local.before + logical.before
    if count < 1 or shift % logical.stride:
        return None
    first = shift // logical.stride
    if first < 0 or first + count > outputs:
        return None
    for tap in range(local.kernel):
        for row in range(count):
            at = row * local.stride + tap * local.dilation - local.before
            if not 0 <= at < stop - start and 0 <= start + at < size:
                return None  # padding here, a real row there
    return ((first, first + count),)


def convolution(
    op: str,
    local: Given,
    logical: Given,
    shapes: Sequence[Shape | None],
    parts: Sequence[Region | None],
    out: Shape,
) -> Found:
    """Rows by their windows, channels by group, output or input."""
    x, weight = parts[0], parts[1]
    bias = parts[2] if len(parts) > 2 else None
    if x is None or weight is None or shapes[0] is None or shapes[1] is None:
        return None
    spaced = ("stride", "padding", "dilation", "groups")
    if repr({**local, **dict.fromkeys(spaced)}) != repr({**logical, **dict.fromkeys(spaced)}):
        return None
    if logical.get("transposed") or weight[2:] != tuple(map(whole, shapes[1][2:])):
        return None
    kernel = shapes[1][2:]
    spatial: list[Index] = []
    for mine, theirs, index, size, rows in zip(
        walks(local, kernel), walks(logical, kernel), x[2:], shapes[0][2:], out[2:], strict=True
    ):
        found = rows_out(mine, theirs, index, size, rows)
        if found is None:
            return None
        spatial.append(found)
    if bias is not None and bias[0] != weight[0]:
        return None
    share = None
    if logical["groups"] == 1:
        if local["groups"] != 1 or x[1] != weight[1]:
            return None
        if x[1] != whole(shapes[0][1]):
            if bias is not None or op != "convolution":
                return None
            share = share_of("c", shapes[0][1], x[1])
            if not distinct(x[1]):
                return None
    elif not _groups_fit(local, logical, x[1], weight[0], weight[1], shapes[0][1], shapes[1]):
        return None
    return (x[0], weight[0], *spatial), share


def _groups_fit(
    local: Given, logical: Given, channels: Index, outs: Index, depth: Index, size: int, weight: Shape
) -> bool:
    """Whole groups only: their input channels, their outputs, and as many groups as that."""
    groups = logical["groups"]
    inside, made = size // groups, weight[0] // groups
    if depth != whole(weight[1]) or len(channels) != 1 or len(outs) != 1:
        return False
    ((lo, hi),), ((first, last),) = channels, outs
    return bool(
        lo % inside == 0
        and hi % inside == 0
        and (first, last) == (lo // inside * made, hi // inside * made)
        and local["groups"] == (hi - lo) // inside
    )


def pooling(
    op: str,
    local: Given,
    logical: Given,
    shapes: Sequence[Shape | None],
    parts: Sequence[Region | None],
    out: Shape,
) -> Found:
    """Rows by their windows; batch and channels only index them."""
    x, shape = parts[0], shapes[0]
    spaced = ("stride", "padding", "dilation")
    if repr({**local, **dict.fromkeys(spaced)}) != repr({**logical, **dict.fromkeys(spaced)}):
        return None
    # With padding in the divisor, or windows hanging over, a pool is more than its taps.
    padded_mean = op == "avg_pool2d" and any(local["padding"]) and logical.get("count_include_pad", True)
    if x is None or shape is None or logical.get("ceil_mode") or padded_mean:
        return None
    kernel = _each(logical["kernel_size"], 2)
    spatial: list[Index] = []
    for mine, theirs, index, size, rows in zip(
        walks(local, kernel), walks(logical, kernel), x[-2:], shape[-2:], out[-2:], strict=True
    ):
        if op == "avg_pool2d" and logical.get("count_include_pad", True) and (theirs.before or theirs.after):
            if not (mine == theirs and index == whole(size)):
                return None
        found = rows_out(mine, theirs, index, size, rows)
        if found is None:
            return None
        spatial.append(found)
    return (*x[:-2], *spatial), None


def _each(values: Sequence[int], count: int) -> tuple[int, ...]:
    return tuple(values) * count if len(values) == 1 else tuple(values)


WINDOWS: Final[dict[str, Callable[..., Found]]] = {
    "convolution": convolution,
    "integer_convolution": convolution,
    "max_pool2d": pooling,
    "avg_pool2d": pooling,
    "integer_avg_pool2d": pooling,
}
