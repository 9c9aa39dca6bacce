"""Pools over one, two or three spatial dims.

The table has two-dimensional pools; three dims are two pools in turn (the largest of largest ones, the mean
of means), one dim is a pool of height 1. Dilated means and p-norms are convolutions with ones, divided by how
many elements each window holds.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tensure.errors import FormatError, LimitError, UnsupportedError

from .._dtypes import FLOATS, numpy_dtype
from ._builder import Array, Builder, Tensor, list_of
from ._convolution import flat_pads, window_pads
from ._shapes import pad_with
from ._table import Attributes, Translate, onnx_op

_Pads = list[tuple[int, int]]
_MOST_PLACES = 1 << 24
_POOL = 'auto_pad: str = "NOTSET", ceil_mode: int = 0, kernel_shape: ints, pads: ints?, strides: ints?'


class _Window:
    """The window of a pool, its attributes checked against the input."""

    def __init__(self, x: Tensor, a: Attributes) -> None:
        if not 3 <= x.rank <= 5:
            raise UnsupportedError(
                f"a pool of an input of shape {list(x.shape)}", wanted="1 to 3 spatial dims"
            )
        count = x.rank - 2
        self.sizes = x.shape[2:]
        self.kernel = list_of(a, "kernel_shape", count, 1, low=1)
        self.stride = list_of(a, "strides", count, 1, low=1)
        self.dilation = list_of(a, "dilations", count, 1, low=1)
        self.ceil = bool(a.get("ceil_mode"))
        self.pads: _Pads = window_pads(a, self.sizes, self.kernel, self.stride, self.dilation)
        self.reach = [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True)]
        self.out: list[int] = []
        for size, reach, s, (before, after) in zip(
            self.sizes, self.reach, self.stride, self.pads, strict=True
        ):
            free = size + before + after - reach
            if free < 0:
                raise FormatError(f"a window spanning {reach} over {size} padded elements", wanted="a fit")
            out = (free + (s - 1 if self.ceil else 0)) // s + 1
            if self.ceil and (out - 1) * s >= size + before:
                out -= 1
            self.out.append(out)

    def hang(self) -> _Pads:
        """The pads, with as much more after the end as the last windows hang over."""
        return [
            (before, max(after, (out - 1) * s + reach - size - before))
            for size, out, reach, s, (before, after) in zip(
                self.sizes, self.out, self.reach, self.stride, self.pads, strict=True
            )
        ]

    def fits_table(self) -> bool:
        """Whether the table's pools take these pads: at most half a window."""
        return all(max(pads) <= reach // 2 for reach, pads in zip(self.reach, self.pads, strict=True))


def _pool2d(b: Builder, kind: str, x: Tensor, w: _Window, pads: _Pads, **attrs: Any) -> Tensor:
    """One, two or three dims by the table's two."""
    n, c = x.shape[:2]
    count = len(w.kernel)
    if count == 1:
        lone = b.reshape(x, (n, c, 1, x.shape[2]))
        found = _one(b, kind, lone, w, pads, [None, 0], attrs)
        return b.reshape(found, (n, c, found.shape[3]))
    if count == 2:
        return _one(b, kind, x, w, pads, [0, 1], attrs)
    d, h, wide = x.shape[2:]
    flat = _one(b, kind, b.reshape(x, (n, c * d, h, wide)), w, pads, [1, 2], attrs)
    h, wide = flat.shape[2:]
    found = _one(b, kind, b.reshape(flat, (n, c, d, h * wide)), w, pads, [0, None], attrs)
    return b.reshape(found, (n, c, found.shape[2], h, wide))


def _one(
    b: Builder, kind: str, x: Tensor, w: _Window, pads: _Pads, dims: list[int | None], attrs: dict[str, Any]
) -> Tensor:
    """A two-dimensional pool whose dims are these of the window's; None is a dim left alone."""

    def of(values: Any, default: Any) -> list[Any]:
        return [default if dim is None else values[dim] for dim in dims]

    if kind == "max_pool2d":
        attrs = {**attrs, "dilation": of(w.dilation, 1)}
    return b.op(
        kind,
        x,
        kernel_size=of(w.kernel, 1),
        stride=of(w.stride, 1),
        padding=flat_pads(of(pads, (0, 0))),
        ceil_mode=w.ceil,
        **attrs,
    )


@onnx_op(f"MaxPool(X; {_POOL}, dilations: ints?, storage_order: int = 0)")
def _max_pool(b: Builder, x: list[Any], a: Attributes) -> list[Tensor]:
    data: Tensor = x[0]
    w = _Window(data, a)
    if b.num_outs > 1:
        return _max_with_places(b, data, w, bool(a["storage_order"]))
    return [_plain_max(b, data, w)]


def _plain_max(b: Builder, data: Tensor, w: _Window) -> Tensor:
    if w.fits_table():
        return _pool2d(b, "max_pool2d", data, w, w.pads)
    padded = pad_with(b, data, [(0, 0), (0, 0), *w.hang()], _lowest(data.dtype))
    cut = [(0, 0)] * len(w.kernel)
    w.ceil = False
    found = _pool2d(b, "max_pool2d", padded, w, cut)
    for dim, out in enumerate(w.out, 2):
        found = b.slice(found, dim, 0, out)
    return found


def _lowest(dtype: str) -> float:
    return -np.inf if dtype in FLOATS else int(np.iinfo(numpy_dtype(dtype)).min)


def _places(w: _Window, sizes: tuple[int, ...]) -> Array:
    """For every window (row-major) and element of it, its row-major place in the input; -1 in the padding."""
    if math.prod(w.out) * math.prod(w.kernel) > _MOST_PLACES:
        raise LimitError(
            f"{math.prod(w.out)} windows of {math.prod(w.kernel)}", wanted=f"at most {_MOST_PLACES} places"
        )
    found: Array = np.zeros((1, 1), np.int64)
    inside: Array = np.ones((1, 1), bool)
    for size, out, k, s, d, (before, _) in zip(
        sizes, w.out, w.kernel, w.stride, w.dilation, w.pads, strict=True
    ):
        line = np.arange(out)[:, None] * s + np.arange(k)[None] * d - before
        good = (line >= 0) & (line < size)
        found = (found[:, None, :, None] * size + line[None, :, None]).reshape(found.shape[0] * out, -1)
        inside = (inside[:, None, :, None] & good[None, :, None]).reshape(found.shape)
    return np.where(inside, found, -1)


def _max_with_places(b: Builder, data: Tensor, w: _Window, column_major: bool) -> list[Tensor]:
    """The largest, and where it stands in the whole tensor."""
    n, c = data.shape[:2]
    count = math.prod(data.shape[2:])
    places = _places(w, data.shape[2:])
    b.room(places.shape, "the places of the windows")
    flat = pad_with(b, b.reshape(data, (n * c, count)), [(0, 0), (0, 1)], _lowest(data.dtype))
    windows = b.op("index", flat, None, b.known(np.where(places < 0, count, places)))
    best = b.op("argmax", windows, dim=2)
    if column_major:
        spots = np.unravel_index(np.maximum(places, 0), data.shape[2:])
        places = np.ravel_multi_index(tuple(reversed(spots)), tuple(reversed(data.shape[2:])))
    which = b.expand(b.known(places[None]), (n * c, *places.shape))
    found = b.op("gather", which, b.reshape(best, (*best.shape, 1)), dim=2)
    b.room([n, c], "the first places of the channels")
    start = b.known((np.arange(n * c) * count).reshape(-1, 1, 1))
    shape = (n, c, *w.out)
    values = b.reshape(b.op("amax", windows, dim=(2,)), shape)
    return [values, b.reshape(b.op("add", found, start), shape)]


@onnx_op(f"AveragePool(X; {_POOL}, dilations: ints?, count_include_pad: int = 0)")
def _average_pool(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    data: Tensor = x[0]
    w = _Window(data, a)
    counted = bool(a["count_include_pad"])
    if w.fits_table() and set(w.dilation) == {1} and not (counted and w.ceil and len(w.kernel) == 3):
        return _pool2d(b, "avg_pool2d", data, w, w.pads, count_include_pad=counted)
    total = _window_sums(b, data, w)
    return b.op("div", total, b.known(_counts(b, w, counted), data.dtype))


def _counts(b: Builder, w: _Window, counted: bool) -> Array:
    """How many elements of each window count: what counts is a box, so one dim after the other.

    Elements count that lie in the input, with `counted` also those in its pads; never what hangs over.
    """
    b.room(w.out, "the sizes of the windows")
    total: Array = np.ones((), np.int64)
    for size, out, k, s, d, (before, after) in zip(
        w.sizes, w.out, w.kernel, w.stride, w.dilation, w.pads, strict=True
    ):
        b.room([out, k], "the places of the windows along an axis")
        line = np.arange(out)[:, None] * s + np.arange(k)[None] * d - before
        low, high = (-before, size + after) if counted else (0, size)
        total = total[..., None] * ((line >= low) & (line < high)).sum(axis=1)
    return total


def _window_sums(b: Builder, data: Tensor, w: _Window) -> Tensor:
    """The sum of each window, as a convolution with ones of every channel by itself."""
    n, c = data.shape[:2]
    b.room(w.kernel, "a kernel of ones")
    ones = b.known(np.ones((1, 1, *w.kernel)), data.dtype)
    lone = b.reshape(data, (n * c, 1, *w.sizes))
    pads = flat_pads(w.hang())
    found = b.op("convolution", lone, ones, None, stride=w.stride, padding=pads, dilation=w.dilation)
    for dim, out in enumerate(w.out, 2):
        found = b.slice(found, dim, 0, out)
    return b.reshape(found, (n, c, *w.out))


def _to_power(b: Builder, data: Tensor, p: float) -> Tensor:
    return (
        b.op("square", data)
        if p == 2
        else b.op("abs", data)
        if p == 1
        else b.op("pow", b.op("abs", data), float(p))
    )


def _root(b: Builder, total: Tensor, p: float) -> Tensor:
    return b.op("sqrt", total) if p == 2 else total if p == 1 else b.op("pow", total, 1.0 / p)


@onnx_op(f"LpPool(X; {_POOL}, dilations: ints?, p: int = 2)")
def _lp_pool(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    w = _Window(x[0], a)
    return _root(b, _window_sums(b, _to_power(b, x[0], a["p"]), w), a["p"])


def _global(kind: str) -> Translate:
    def translate(b: Builder, x: list[Any], a: Attributes) -> Tensor:
        if x[0].rank < 3:
            raise FormatError(f"an input of shape {list(x[0].shape)}", wanted="[N, C, spatial...]")
        dims = tuple(range(2, x[0].rank))
        if kind == "lp":
            return _root(b, b.op("sum", _to_power(b, x[0], a["p"]), dim=dims, keepdim=True), a["p"])
        return b.op(kind, x[0], dim=dims, keepdim=True)

    return translate


onnx_op("GlobalAveragePool(X)")(_global("mean"))
onnx_op("GlobalMaxPool(X)")(_global("amax"))
onnx_op("GlobalLpPool(X; p: int = 2)")(_global("lp"))


@onnx_op("MaxUnpool(X, I, output_shape?; kernel_shape: ints, pads: ints?, strides: ints?)")
def _max_unpool(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    """Each element where its index says, in the tensor the pool had; zeros elsewhere."""
    data, index = x[0], x[1]
    count = data.rank - 2
    kernel = list_of(a, "kernel_shape", count, 1, low=1)
    stride = list_of(a, "strides", count, 1, low=1)
    pads = list_of(a, "pads", 2 * count, 0)
    sizes = [
        (size - 1) * s - pads[at] - pads[at + count] + k
        for at, (size, s, k) in enumerate(zip(data.shape[2:], stride, kernel, strict=True))
    ]
    whole = [*data.shape[:2], *sizes]
    shape = whole if x[2] is None else list(b.ints(x[2], "output_shape"))
    if (
        index.shape != data.shape
        or len(shape) != data.rank
        or min(shape) < 1
        or math.prod(shape) > _MOST_PLACES
    ):
        raise FormatError(
            f"indices of shape {list(index.shape)}, output_shape {shape}", wanted="that of X; sizes"
        )
    # Indices count in the tensor that pads and strides describe; a larger output_shape adds room after it.
    flat = b.full([math.prod(whole)], 0, data.dtype)
    spots = b.reshape(index, (-1,))
    placed = b.reshape(b.op("scatter", flat, spots, b.reshape(data, (-1,)), dim=0), whole)
    return pad_with(b, placed, [(0, want - have) for have, want in zip(whole, shape, strict=True)], 0)
