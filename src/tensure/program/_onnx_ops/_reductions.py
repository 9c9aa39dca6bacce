"""Sums, means, extremes, products and norms over axes; softmax; ordering."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from tensure.errors import FormatError, LimitError

from .._dtypes import FLOATS, numpy_dtype
from ._builder import Builder, Tensor, axes_of, axis_of
from ._table import Attributes, Translate, onnx_op

_Reduce = Callable[[Builder, Tensor, tuple[int, ...], bool], Tensor]


def total(b: Builder, x: Tensor, dims: tuple[int, ...], keep: bool) -> Tensor:
    """The sum, in the dtype of x."""
    return b.op("sum", x, dim=dims, keepdim=keep, dtype=None if x.dtype in FLOATS else x.dtype)


def _mean(b: Builder, x: Tensor, dims: tuple[int, ...], keep: bool) -> Tensor:
    if x.dtype in FLOATS:
        return b.op("mean", x, dim=dims, keepdim=keep)
    return b.cast(b.op("mean", x, dim=dims, keepdim=keep, dtype="f64"), x.dtype)


def _extreme(kind: str) -> _Reduce:
    def reduce(b: Builder, x: Tensor, dims: tuple[int, ...], keep: bool) -> Tensor:
        if any(x.shape[dim] == 0 for dim in dims):
            shape = [1 if at in dims else size for at, size in enumerate(x.shape) if keep or at not in dims]
            return b.full(shape, _least(x.dtype, -1 if kind == "amax" else 1), x.dtype)
        return b.op(kind, x, dim=dims, keepdim=keep)

    return reduce


def _least(dtype: str, sign: int) -> float | int | bool:
    """The extreme of nothing: what no element lies beyond."""
    if dtype in FLOATS:
        return sign * np.inf
    if dtype == "bool":
        return sign > 0
    info = np.iinfo(numpy_dtype(dtype))
    return int(info.max if sign > 0 else info.min)


def _product(b: Builder, x: Tensor, dims: tuple[int, ...], keep: bool) -> Tensor:
    for dim in reversed(dims):
        x = b.op("prod", x, dim=dim, keepdim=keep, dtype=None if x.dtype in FLOATS else x.dtype)
    return x


def _l1(b: Builder, x: Tensor, dims: tuple[int, ...], keep: bool) -> Tensor:
    return total(b, b.op("abs", x), dims, keep)


def _l2(b: Builder, x: Tensor, dims: tuple[int, ...], keep: bool) -> Tensor:
    return b.cast(b.op("sqrt", total(b, b.op("square", x), dims, keep)), x.dtype)


def _sum_square(b: Builder, x: Tensor, dims: tuple[int, ...], keep: bool) -> Tensor:
    return total(b, b.op("square", x), dims, keep)


def _log_sum(b: Builder, x: Tensor, dims: tuple[int, ...], keep: bool) -> Tensor:
    return b.cast(b.op("log", total(b, x, dims, keep)), x.dtype)


def _log_sum_exp(b: Builder, x: Tensor, dims: tuple[int, ...], keep: bool) -> Tensor:
    if any(x.shape[dim] == 0 for dim in dims):
        return _extreme("amax")(b, x, dims, keep)
    return b.cast(b.op("logsumexp", x, dim=dims, keepdim=keep), x.dtype)


_REDUCTIONS: Final[dict[str, _Reduce]] = {
    "ReduceSum": total,
    "ReduceMean": _mean,
    "ReduceMax": _extreme("amax"),
    "ReduceMin": _extreme("amin"),
    "ReduceProd": _product,
    "ReduceL1": _l1,
    "ReduceL2": _l2,
    "ReduceSumSquare": _sum_square,
    "ReduceLogSum": _log_sum,
    "ReduceLogSumExp": _log_sum_exp,
}


def _reduction(reduce: _Reduce) -> Translate:
    def translate(b: Builder, x: list[Any], a: Attributes) -> Tensor:
        """Axes are an input since opset 13 (ReduceSum) or 18, an attribute before; none means all."""
        data: Tensor = x[0]
        axes = b.ints(x[1], "axes") if x[1] is not None else a["axes"] or ()
        if not axes and a["noop_with_empty_axes"]:
            return data if reduce in (total, _mean) or data.rank == 0 else reduce_none(b, data)
        dims = axes_of(axes, data.rank) if axes else tuple(range(data.rank))
        if not dims:
            return reduce_none(b, data)
        return reduce(b, data, dims, bool(a["keepdims"]))

    def reduce_none(b: Builder, data: Tensor) -> Tensor:
        """Each element reduced by itself."""
        lone = b.reshape(data, (*data.shape, 1))
        return reduce(b, lone, (data.rank,), False)

    return translate


for _name, _fn in _REDUCTIONS.items():
    onnx_op(f"{_name}(data, axes?; axes: ints?, keepdims: int = 1, noop_with_empty_axes: int = 0)")(
        _reduction(_fn)
    )


def _place(kind: str) -> Translate:
    def translate(b: Builder, x: list[Any], a: Attributes) -> Tensor:
        data: Tensor = x[0]
        dim, keep = axis_of(a["axis"], data.rank), bool(a["keepdims"])
        if not a["select_last_index"]:
            return b.op(kind, data, dim=dim, keepdim=keep)
        back = b.op(kind, b.op("flip", data, dims=(dim,)), dim=dim, keepdim=keep)
        return b.op("rsub", back, data.shape[dim] - 1)

    return translate


onnx_op("ArgMax(data; axis: int = 0, keepdims: int = 1, select_last_index: int = 0)")(_place("argmax"))
onnx_op("ArgMin(data; axis: int = 0, keepdims: int = 1, select_last_index: int = 0)")(_place("argmin"))


@onnx_op("CumSum(x, axis; exclusive: int = 0, reverse: int = 0)")
def _cumsum(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    data: Tensor = x[0]
    dim = axis_of(int(b.number(x[1], "axis")), data.rank)
    return _running(b, data, dim, a, lambda item: b.op("cumsum", item, dim=dim, dtype=data.dtype))


def _running(b: Builder, data: Tensor, dim: int, a: Attributes, run: Callable[[Tensor], Tensor]) -> Tensor:
    if a["reverse"]:
        data = b.op("flip", data, dims=(dim,))
    found = run(data)
    if a["exclusive"]:
        zero = b.full([1 if at == dim else size for at, size in enumerate(data.shape)], 0, data.dtype)
        found = b.op("cat", zero, b.slice(found, dim, 0, max(data.shape[dim] - 1, 0)), dim=dim)
    return b.op("flip", found, dims=(dim,)) if a["reverse"] else found


# --- softmax --------------------------------------------------------------------------------------


def _softmax(kind: str) -> Translate:
    def translate(b: Builder, x: list[Any], a: Attributes) -> Tensor:
        """Before opset 13 the axis is where the tensor is cut into a matrix, and its default is 1."""
        data: Tensor = x[0]
        axis = a["axis"] if a["axis"] is not None else -1 if b.version >= 13 else 1
        dim = axis_of(axis, data.rank) if data.rank else 0
        if b.version >= 13 or dim == data.rank - 1:
            return apply(b, data, dim)
        rows = int(np.prod(data.shape[:dim], dtype=np.int64))
        flat = b.reshape(data, (rows, data.size // rows if rows else 0))
        return b.reshape(apply(b, flat, 1), data.shape)

    def apply(b: Builder, data: Tensor, dim: int) -> Tensor:
        if kind != "hardmax":
            return b.op(kind, data, dim=dim)
        shape = [1] * data.rank
        shape[dim] = data.shape[dim]
        b.room(shape, "the places along an axis")
        places = b.known(np.arange(data.shape[dim]).reshape(shape))
        best = b.op("eq", places, b.op("argmax", data, dim=dim, keepdim=True))
        return b.cast(best, data.dtype)

    return translate


for _name, _kind in (("Softmax", "softmax"), ("LogSoftmax", "log_softmax"), ("Hardmax", "hardmax")):
    onnx_op(f"{_name}(input; axis: int?)")(_softmax(_kind))


# --- ordering -------------------------------------------------------------------------------------


@onnx_op("TopK(X, K?; axis: int = -1, k: int?, largest: int = 1, sorted: int = 1)")
def _topk(b: Builder, x: list[Any], a: Attributes) -> tuple[Tensor, ...]:
    if (x[1] is None) == (a["k"] is None):
        raise FormatError("K both as input and attribute, or neither", wanted="one of them")
    k = a["k"] if x[1] is None else int(b.number(x[1], "K"))
    dim = axis_of(a["axis"], x[0].rank)
    if not 0 <= k <= x[0].shape[dim]:
        raise FormatError(f"K={k} of {x[0].shape[dim]} elements", wanted="at most as many as there are")
    # Of equals ONNX wants the first; torch's own topk gives any, a stable sort the first.
    return tuple(
        b.slice(item, dim, 0, k)
        for item in b.many("sort", x[0], stable=True, dim=dim, descending=bool(a["largest"]))
    )


@onnx_op("Unique(X; axis: int?, sorted: int = 1)")
def _unique(b: Builder, x: list[Any], a: Attributes) -> tuple[Tensor, ...]:
    """Only of known values: how many there are is a matter of data."""
    values = b.const(x[0], "the number of results")
    axis = None if a["axis"] is None else axis_of(a["axis"], x[0].rank)
    if values.size > 1 << 20:
        raise LimitError(f"{values.size} known values", wanted=f"at most {1 << 20}")
    found, first, inverse, counts = np.unique(
        values, return_index=True, return_inverse=True, return_counts=True, axis=axis
    )
    inverse = inverse.reshape(-1)
    if not a["sorted"]:
        order = np.argsort(first, kind="stable")
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        found = np.take(found, order, axis=0 if axis is None else axis)
        first, counts, inverse = first[order], counts[order], back[inverse]
    rest = (np.asarray(item, np.int64) for item in (first, inverse, counts))
    return tuple(b.known(item) for item in (found, *rest))
