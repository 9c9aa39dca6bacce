"""Sums, extremes, moments, softmax and ordering. Float sums accumulate in f64 and round once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

import numpy as np

from .._dtypes import FLOATS
from .._records import TensorType
from ._rules import (
    NUMBERS,
    as_float,
    cast,
    double,
    in_range,
    need,
    need_dtype,
    reduce_shape,
    single,
    type_of,
    wrap,
    wrap_all,
)
from ._table import Array, Evaluate, Given, define, refuse

_Reducer: TypeAlias = Callable[..., Any]


def _dims(x: Any, given: Given) -> tuple[int, ...]:
    return wrap_all(given["dim"], len(x.shape))


def _nonempty(shape: tuple[int, ...], dims: tuple[int, ...]) -> None:
    for dim in dims:
        if shape[dim] == 0:
            raise refuse(f"shape {list(shape)} reduced along dim {dim}", "at least one element there")


def _dim_count(shape: tuple[int, ...], dims: tuple[int, ...]) -> int:
    return int(np.prod([shape[dim] for dim in dims], dtype=np.int64))


# --- sums and moments -----------------------------------------------------------------------------


def _sum_dtype(dtype: str, wanted: str | None) -> str:
    return wanted or (dtype if dtype in FLOATS else "i64")


def _sum_rule(args: list[Any], given: Given) -> list[TensorType]:
    (x,) = args
    dims = _dims(x, given)
    return [TensorType(reduce_shape(x.shape, dims, given["keepdim"]), _sum_dtype(x.dtype, given["dtype"]))]


def _sum(args: list[Any], given: Given) -> list[Array]:
    (x,) = args
    out = _sum_dtype(type_of(x).dtype, given["dtype"])
    wide = double(cast(x, out))
    total = np.add.reduce(wide, axis=_dims(x, given), dtype=wide.dtype, keepdims=given["keepdim"])
    return [cast(np.asarray(total), out)]


define(
    "sum(self: Tensor; dim: int[]? = none, keepdim: bool = false, dtype: dtype? = none) -> 1",
    _sum_rule,
    _sum,
    "The sum over dim (all when none or empty), of self in `dtype`; integers and bools add up in i64.",
)


def _prod_rule(args: list[Any], given: Given) -> list[TensorType]:
    (x,) = args
    dims = wrap_all([given["dim"]], len(x.shape))
    return [TensorType(reduce_shape(x.shape, dims, given["keepdim"]), _sum_dtype(x.dtype, given["dtype"]))]


def _prod(args: list[Any], given: Given) -> list[Array]:
    (x,) = args
    out = _sum_dtype(type_of(x).dtype, given["dtype"])
    wide = double(cast(x, out))
    found = np.prod(wide, axis=wrap_all([given["dim"]], x.ndim), dtype=wide.dtype, keepdims=given["keepdim"])
    return [cast(np.asarray(found), out)]


define(
    "prod(self: Tensor; dim: int, keepdim: bool = false, dtype: dtype? = none) -> 1",
    _prod_rule,
    _prod,
    "The product along dim, of self in `dtype`; integers and bools multiply in i64.",
)


def _mean_rule(args: list[Any], given: Given) -> list[TensorType]:
    (out,) = _sum_rule(args, {**given, "dtype": given["dtype"] or args[0].dtype})
    need_dtype("a result", out.dtype, FLOATS)
    return [out]


def _mean(args: list[Any], given: Given) -> list[Array]:
    (x,) = args
    out = given["dtype"] or type_of(x).dtype
    dims = _dims(x, given)
    total = np.add.reduce(double(cast(x, out)), axis=dims, keepdims=given["keepdim"])
    return [cast(np.asarray(np.divide(total, _dim_count(x.shape, dims))), out)]


define(
    "mean(self: Tensor; dim: int[]? = none, keepdim: bool = false, dtype: dtype? = none) -> 1",
    _mean_rule,
    _mean,
    "The mean over dim (all when none or empty); floats only, or name a float dtype. NaN of nothing.",
)


def _var_rule(args: list[Any], given: Given) -> list[TensorType]:
    (x,) = args
    need("self", x, FLOATS)
    if given["correction"] is not None:
        in_range("correction", given["correction"], -(1 << 31), 1 << 31)
    return [TensorType(reduce_shape(x.shape, _dims(x, given), given["keepdim"]), x.dtype)]


def _var(args: list[Any], given: Given) -> list[Array]:
    (x,) = args
    dims, wide = _dims(x, given), double(x)
    correction = 1 if given["correction"] is None else given["correction"]
    count = _dim_count(x.shape, dims)
    mean = np.divide(np.add.reduce(wide, axis=dims, keepdims=True), count)
    squares = np.add.reduce(np.square(wide - mean), axis=dims, keepdims=given["keepdim"])
    return [cast(np.asarray(np.divide(squares, max(count - correction, 0))), type_of(x).dtype)]


define(
    "var(self: Tensor; dim: int[]? = none, correction: number? = none, keepdim: bool = false) -> 1",
    _var_rule,
    _var,
    "The variance over dim: squares about the mean over count - correction (none means 1).",
)


def _cumsum_rule(args: list[Any], given: Given) -> list[TensorType]:
    (x,) = args
    wrap(given["dim"], len(x.shape))
    return [TensorType(x.shape, _sum_dtype(x.dtype, given["dtype"]))]


def _cumsum(args: list[Any], given: Given) -> list[Array]:
    (x,) = args
    out = _sum_dtype(type_of(x).dtype, given["dtype"])
    wide = double(cast(x, out))
    if x.ndim == 0:
        return [cast(wide, out)]
    if out == "bool":
        return [np.logical_or.accumulate(wide, axis=given["dim"])]
    return [cast(np.cumsum(wide, axis=given["dim"], dtype=wide.dtype), out)]


define(
    "cumsum(self: Tensor; dim: int, dtype: dtype? = none) -> 1",
    _cumsum_rule,
    _cumsum,
    "Running sums along dim; integers and bools add up in i64.",
)

# --- extremes and truth ---------------------------------------------------------------------------


def _extreme_rule(args: list[Any], given: Given) -> list[TensorType]:
    (x,) = args
    dims = _dims(x, given)
    _nonempty(x.shape, dims)
    return [TensorType(reduce_shape(x.shape, dims, given["keepdim"]), x.dtype)]


def _reducer(fn: _Reducer, *, truth: bool = False) -> Evaluate:
    def evaluate(args: list[Any], given: Given) -> list[Array]:
        (x,) = args
        values = cast(x, "bool") if truth else single(x)
        dims = wrap_all(given["dim"], x.ndim, empty_is_all=not truth)
        found = np.asarray(fn(values, axis=dims, keepdims=given["keepdim"]))
        return [cast(found, type_of(x).dtype if not truth or type_of(x).dtype == "u8" else "bool")]

    return evaluate


_EXTREMES: Final[tuple[tuple[str, _Reducer, str], ...]] = (
    ("amax", np.maximum.reduce, "largest"),
    ("amin", np.minimum.reduce, "smallest"),
)
for _name, _fn, _word in _EXTREMES:
    define(
        f"{_name}(self: Tensor; dim: int[] = [], keepdim: bool = false) -> 1",
        _extreme_rule,
        _reducer(_fn),
        f"The {_word} over dim (all when empty); NaN if any is.",
    )


def _place_rule(args: list[Any], given: Given) -> list[TensorType]:
    (x,) = args
    need("self", x, NUMBERS)
    rank = len(x.shape)
    dims = tuple(range(rank)) if given["dim"] is None else wrap_all([given["dim"]], rank)
    _nonempty(x.shape, dims)
    return [TensorType(reduce_shape(x.shape, dims, given["keepdim"]), "i64")]


def _place(fn: _Reducer) -> Evaluate:
    def evaluate(args: list[Any], given: Given) -> list[Array]:
        (x,) = args
        dim = given["dim"] if x.ndim else None
        return [np.asarray(fn(single(x), axis=dim, keepdims=given["keepdim"])).astype(np.int64)]

    return evaluate


_PLACES: Final[tuple[tuple[str, _Reducer, str], ...]] = (
    ("argmax", np.argmax, "largest"),
    ("argmin", np.argmin, "smallest"),
)
for _name, _fn, _word in _PLACES:
    define(
        f"{_name}(self: Tensor; dim: int? = none, keepdim: bool = false) -> 1",
        _place_rule,
        _place(_fn),
        f"Where the {_word} stands along dim (flattened when none): the first one, a NaN above all.",
    )


def _truth_rule(args: list[Any], given: Given) -> list[TensorType]:
    (x,) = args
    dims = wrap_all(given["dim"], len(x.shape), empty_is_all=False)
    return [TensorType(reduce_shape(x.shape, dims, given["keepdim"]), "u8" if x.dtype == "u8" else "bool")]


_TRUTHS: Final[tuple[tuple[str, _Reducer, str], ...]] = (
    ("any", np.logical_or.reduce, "any"),
    ("all", np.logical_and.reduce, "every"),
)
for _name, _fn, _word in _TRUTHS:
    define(
        f"{_name}(self: Tensor; dim: int[]? = none, keepdim: bool = false) -> 1",
        _truth_rule,
        _reducer(_fn, truth=True),
        f"Whether {_word} element over dim (all when none) is not 0; u8 gives u8, as in ATen.",
    )

# --- softmax --------------------------------------------------------------------------------------


def log_normalizer(x: Array, dim: int | tuple[int, ...]) -> Array:
    """log(sum(exp(x))) over dim, kept; the largest is taken out first unless it is infinite."""
    top = np.maximum.reduce(x, axis=dim, keepdims=True, initial=-np.inf)
    top = np.where(np.isinf(top), 0, top)
    return np.asarray(np.log(np.add.reduce(np.exp(x - top), axis=dim, keepdims=True)) + top)


def softmax(x: Array, dim: int) -> Array:
    """exp(x) over its sum along dim, with the largest taken out; a row of -inf gives NaN, as in ATen."""
    if x.ndim == 0:
        return np.asarray(np.exp(x - x))
    shifted = np.exp(x - np.maximum.reduce(x, axis=dim, keepdims=True, initial=-np.inf))
    return np.asarray(shifted / np.add.reduce(shifted, axis=dim, keepdims=True))


def log_softmax(x: Array, dim: int) -> Array:
    """The logarithm of softmax, the largest taken out first; a row of -inf gives NaN, as in ATen."""
    if x.ndim == 0:
        return np.asarray(x - x)
    shifted = x - np.maximum.reduce(x, axis=dim, keepdims=True, initial=-np.inf)
    return np.asarray(shifted - np.log(np.add.reduce(np.exp(shifted), axis=dim, keepdims=True)))


def _logsumexp_rule(args: list[Any], given: Given) -> list[TensorType]:
    (x,) = args
    return [TensorType(reduce_shape(x.shape, _dims(x, given), given["keepdim"]), as_float(x.dtype))]


def _logsumexp(args: list[Any], given: Given) -> list[Array]:
    (x,) = args
    out, dims = as_float(type_of(x).dtype), _dims(x, given)
    found = log_normalizer(double(cast(x, out)), dims)
    return [cast(found if given["keepdim"] else found.reshape(reduce_shape(x.shape, dims, False)), out)]


define(
    "logsumexp(self: Tensor; dim: int[], keepdim: bool = false) -> 1",
    _logsumexp_rule,
    _logsumexp,
    "log(sum(exp(self))) over dim (all when empty).",
)


def _softmax_rule(args: list[Any], given: Given) -> list[TensorType]:
    (x,) = args
    wrap(given["dim"], len(x.shape))
    out = given["dtype"] or x.dtype
    need_dtype("a result", out, FLOATS)
    return [TensorType(x.shape, out)]


def _bare_softmax_rule(args: list[Any], given: Given) -> list[TensorType]:
    (x,) = args
    wrap(given["dim"], len(x.shape))
    need("self", x, frozenset({"f16"}) if given["half_to_float"] else FLOATS)
    return [TensorType(x.shape, "f32" if given["half_to_float"] else x.dtype)]


def _along(fn: _Reducer) -> Evaluate:
    def evaluate(args: list[Any], given: Given) -> list[Array]:
        (x,) = args
        out = given["dtype"] or type_of(x).dtype
        return [cast(fn(double(cast(x, out)), given["dim"]), out)]

    return evaluate


def _along_bare(fn: _Reducer) -> Evaluate:
    def evaluate(args: list[Any], given: Given) -> list[Array]:
        (x,) = args
        return [cast(fn(double(x), given["dim"]), "f32" if given["half_to_float"] else type_of(x).dtype)]

    return evaluate


_SOFTMAXES: Final[tuple[tuple[str, _Reducer, str], ...]] = (
    ("softmax", softmax, "exp(self) over its sum along dim"),
    ("log_softmax", log_softmax, "self less log(sum(exp(self))) along dim"),
)
for _name, _fn, _doc in _SOFTMAXES:
    define(
        f"{_name}(self: Tensor; dim: int, dtype: dtype? = none) -> 1",
        _softmax_rule,
        _along(_fn),
        f"{_doc}, of self in `dtype`; NaN for a row of -inf.",
    )
    define(
        f"_{_name}(self: Tensor; dim: int, half_to_float: bool) -> 1",
        _bare_softmax_rule,
        _along_bare(_fn),
        f"{_doc}; half_to_float gives f32 from f16.",
    )

# --- ordering -------------------------------------------------------------------------------------


def order(x: Array, dim: int, descending: bool) -> Array:
    """Stable sorting indices along dim: equal elements keep their order; NaN counts as largest."""
    x = single(x)
    if not descending:
        return np.argsort(x, axis=dim, kind="stable")
    back = np.flip(np.argsort(np.flip(x, axis=dim), axis=dim, kind="stable"), axis=dim)
    return np.asarray(x.shape[dim] - 1 - back)


def _sort_rule(args: list[Any], given: Given) -> list[TensorType]:
    (x,) = args
    wrap(given["dim"], len(x.shape))
    return [x, TensorType(x.shape, "i64")]


def _sort(args: list[Any], given: Given) -> list[Array]:
    (x,) = args
    if x.ndim == 0:
        return [x.copy(), np.zeros((), np.int64)]
    where = order(x, given["dim"], given["descending"])
    return [np.take_along_axis(x, where, axis=given["dim"]), where.astype(np.int64)]


define(
    "sort(self: Tensor; stable: bool? = none, dim: int = -1, descending: bool = false) -> 2",
    _sort_rule,
    _sort,
    "Values in order along dim, and where each came from; always stable, NaN counts as largest.",
)


def _topk_rule(args: list[Any], given: Given) -> list[TensorType]:
    (x,) = args
    need("self", x, NUMBERS)
    dim = wrap(given["dim"], len(x.shape))
    in_range("k", given["k"], 0 if x.shape else 1, x.shape[dim] if x.shape else 1)
    shape = tuple(given["k"] if at == dim else size for at, size in enumerate(x.shape))
    return [TensorType(shape, x.dtype), TensorType(shape, "i64")]


def _topk(args: list[Any], given: Given) -> list[Array]:
    (x,) = args
    if x.ndim == 0:
        return [x.copy(), np.zeros((), np.int64)]
    dim = wrap(given["dim"], x.ndim)
    where = order(x, dim, given["largest"]).take(range(given["k"]), axis=dim).astype(np.int64)
    return [np.take_along_axis(x, where, axis=dim), where]


define(
    "topk(self: Tensor; k: int, dim: int = -1, largest: bool = true, sorted: bool = true) -> 2",
    _topk_rule,
    _topk,
    "The k largest (or smallest) along dim in order, and where they stand; of equals the first; NaN "
    "counts as largest.",
)
