"""Reading and writing by index tensors. Index data is checked on both sides before use.

Ops whose ATen counterpart refuses negative indices (embedding, gather, scatter, index_select) refuse
them here; `index` and `index_put` count negatives from the end, as ATen does.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from .._records import TensorType
from ._rules import (
    INDICES,
    NUMBERS,
    broadcast,
    cast,
    check_index,
    in_range,
    need,
    need_rank,
    same_dtype,
    single,
    type_of,
    wrap,
)
from ._table import Array, Given, define, refuse

# --- rows -----------------------------------------------------------------------------------------


def _embedding_rule(args: list[Any], given: Given) -> list[TensorType]:
    weight, indices = args
    need_rank("weight", weight, 2)
    need("indices", indices, INDICES)
    return [TensorType((*indices.shape, weight.shape[1]), weight.dtype)]


def _embedding(args: list[Any], given: Given) -> list[Array]:
    weight, indices = args
    check_index(indices, 0, weight.shape[0], "indices")
    return [weight[indices]]


define(
    "embedding(weight: Tensor, indices: Tensor; padding_idx: int = -1, scale_grad_by_freq: bool = false, "
    "sparse: bool = false) -> 1",
    _embedding_rule,
    _embedding,
    "The rows of weight that indices name. An index outside 0..rows is an error. The attributes concern "
    "gradients only.",
)


def _index_select_rule(args: list[Any], given: Given) -> list[TensorType]:
    x, index = args
    dim = wrap(given["dim"], len(x.shape))
    need("index", index, INDICES)
    need_rank("index", index, 1)
    if not x.shape:
        raise refuse("self of rank 0", "rank at least 1")
    return [TensorType((*x.shape[:dim], index.shape[0], *x.shape[dim + 1 :]), x.dtype)]


def _index_select(args: list[Any], given: Given) -> list[Array]:
    x, index = args
    check_index(index, 0, x.shape[given["dim"]], "index")
    return [np.take(x, index, axis=given["dim"])]


define(
    "index_select(self: Tensor, index: Tensor; dim: int) -> 1",
    _index_select_rule,
    _index_select,
    "The slices of self along dim that index names, in its order.",
)

# --- one index per element ------------------------------------------------------------------------


def _elementwise_rule(x: TensorType, index: TensorType, given: Given) -> int:
    dim = wrap(given["dim"], len(x.shape))
    need("index", index, frozenset({"i64"}))
    if not x.shape:
        raise refuse("self of rank 0", "rank at least 1")
    need_rank("index", index, len(x.shape))
    if any(
        have > size for at, (have, size) in enumerate(zip(index.shape, x.shape, strict=True)) if at != dim
    ):
        raise refuse(f"index of shape {list(index.shape)}", f"at most {list(x.shape)} but for dim {dim}")
    return dim


def _spots(index: Array, dim: int) -> tuple[Array, ...]:
    """The full coordinates each entry of index stands for."""
    grid = list(np.ogrid[tuple(slice(size) for size in index.shape)])
    grid[dim] = index
    return tuple(grid)


def _gather_rule(args: list[Any], given: Given) -> list[TensorType]:
    x, index = args
    _elementwise_rule(x, index, given)
    return [TensorType(index.shape, x.dtype)]


def _gather(args: list[Any], given: Given) -> list[Array]:
    x, index = args
    dim = wrap(given["dim"], x.ndim)
    check_index(index, 0, x.shape[dim], "index")
    return [x[_spots(index, dim)]]


define(
    "gather(self: Tensor, index: Tensor; dim: int, sparse_grad: bool = false) -> 1",
    _gather_rule,
    _gather,
    "For each entry of index, the element of self there along dim and at its own place in the other dims.",
)


def _scatter_rule(args: list[Any], given: Given) -> list[TensorType]:
    x, index, src = args
    _elementwise_rule(x, index, given)
    same_dtype(self=x, src=src)
    need_rank("src", src, len(x.shape))
    if any(have > size for have, size in zip(index.shape, src.shape, strict=True)):
        raise refuse(f"src of shape {list(src.shape)}", f"at least index's, {list(index.shape)}")
    return [x]


def _scatter(args: list[Any], given: Given) -> list[Array]:
    x, index, src = args
    dim = wrap(given["dim"], x.ndim)
    check_index(index, 0, x.shape[dim], "index")
    out = x.copy()
    out[_spots(index, dim)] = src[tuple(slice(size) for size in index.shape)]
    return [out]


def _scatter_add(args: list[Any], given: Given) -> list[Array]:
    x, index, src = args
    dim = wrap(given["dim"], x.ndim)
    check_index(index, 0, x.shape[dim], "index")
    out = single(x).copy()
    np.add.at(out, _spots(index, dim), single(src)[tuple(slice(size) for size in index.shape)])
    return [cast(out, type_of(x).dtype)]


define(
    "scatter(self: Tensor, index: Tensor, src: Tensor; dim: int) -> 1",
    _scatter_rule,
    _scatter,
    "self with src's elements put where gather would read; of several for one place, the last stays.",
)
define(
    "scatter_add(self: Tensor, index: Tensor, src: Tensor; dim: int) -> 1",
    _scatter_rule,
    _scatter_add,
    "self with src's elements added where gather would read, in row-major order.",
)


_FOLDS: Final[dict[str, Any]] = {
    "sum": np.add,
    "prod": np.multiply,
    "amax": np.maximum,
    "amin": np.minimum,
}


def _scatter_reduce_rule(args: list[Any], given: Given) -> list[TensorType]:
    if given["reduce"] not in _FOLDS or not given["include_self"]:
        raise refuse(
            f"reduce={given['reduce']!r}, include_self={given['include_self']}",
            f"one of {', '.join(_FOLDS)}, self included",
        )
    need("self", args[0], NUMBERS)
    return _scatter_rule(args, given)


def _scatter_reduce(args: list[Any], given: Given) -> list[Array]:
    x, index, src = args
    dim = wrap(given["dim"], x.ndim)
    check_index(index, 0, x.shape[dim], "index")
    out = single(x).copy()
    values = single(src)[tuple(slice(size) for size in index.shape)]
    _FOLDS[given["reduce"]].at(out, _spots(index, dim), values)
    return [cast(out, type_of(x).dtype)]


define(
    "scatter_reduce(self: Tensor, index: Tensor, src: Tensor; dim: int, reduce: str, include_self: bool = "
    "true) -> 1",
    _scatter_reduce_rule,
    _scatter_reduce,
    "self with src's elements folded in where gather would read: sum, prod, amax or amin of what stands "
    "there and all that come, in row-major order.",
)

# --- several index tensors ------------------------------------------------------------------------


def _index_shape(x: TensorType, indices: list[Any]) -> tuple[int, ...]:
    """The shape of x[indices]: the index block stands where neighbouring indices begin, else in front."""
    if len(indices) > len(x.shape) or all(index is None for index in indices):
        raise refuse(
            f"{len(indices)} indices for self of rank {len(x.shape)}", "at least one and at most one per dim"
        )
    at = [position for position, index in enumerate(indices) if index is not None]
    for position in at:
        need(f"indices[{position}]", indices[position], INDICES)
    block = broadcast(*(indices[position].shape for position in at))
    rest = [size for dim, size in enumerate(x.shape) if dim not in at]
    front = at[0] if at[-1] - at[0] == len(at) - 1 else 0
    return (*rest[:front], *block, *rest[front:])


def _key(x: Array, indices: list[Any]) -> tuple[Any, ...]:
    for dim, index in enumerate(indices):
        if index is not None:
            check_index(index, -x.shape[dim], x.shape[dim], f"indices[{dim}]")
    return tuple(slice(None) if index is None else index for index in indices)


define(
    "index(self: Tensor, indices: Tensor?*) -> 1",
    lambda args, given: [TensorType(_index_shape(args[0], args[1:]), args[0].dtype)],
    lambda args, given: [args[0][_key(args[0], args[1:])]],
    "Advanced indexing: one index tensor or none (the whole dim) per leading dim, broadcast together. No "
    "bool masks.",
)


def _index_put_rule(args: list[Any], given: Given) -> list[TensorType]:
    x, values, *indices = args
    same_dtype(self=x, values=values)
    shape = _index_shape(x, indices)
    if broadcast(values.shape, shape) != shape:
        raise refuse(f"values of shape {list(values.shape)}", f"what broadcasts to {list(shape)}")
    return [x]


def _index_put(args: list[Any], given: Given) -> list[Array]:
    x, values, *indices = args
    key = _key(x, indices)
    if not given["accumulate"]:
        out = x.copy()
        out[key] = values
        return [out]
    out = single(x).copy()
    np.add.at(out, key, single(values))
    return [cast(out, type_of(x).dtype)]


define(
    "index_put(self: Tensor, values: Tensor, indices: Tensor?*; accumulate: bool = false) -> 1",
    _index_put_rule,
    _index_put,
    "self with values put (or added, where accumulate) at self[indices]; of several for one place, the "
    "last stays.",
)


def _index_add_rule(args: list[Any], given: Given) -> list[TensorType]:
    x, index, source = args
    same_dtype(self=x, source=source)
    need("self", x, NUMBERS)
    want = _index_select_rule([x, index], given)[0]
    if source.shape != want.shape:
        raise refuse(f"source of shape {list(source.shape)}", f"{list(want.shape)}")
    in_range("alpha", given["alpha"], -np.inf)
    if isinstance(given["alpha"], float) and x.dtype[0] in "iu":
        raise refuse(f"alpha={given['alpha']} for dtype {x.dtype}", "an integer")
    return [x]


def _index_add(args: list[Any], given: Given) -> list[Array]:
    x, index, source = args
    dim = wrap(given["dim"], x.ndim)
    check_index(index, 0, x.shape[dim], "index")
    out = single(x).copy()
    scaled = single(source) * np.asarray(given["alpha"]).astype(out.dtype)
    np.add.at(out, (slice(None),) * dim + (index,), scaled)
    return [cast(out, type_of(x).dtype)]


define(
    "index_add(self: Tensor, index: Tensor, source: Tensor; dim: int, alpha: number = 1) -> 1",
    _index_add_rule,
    _index_add,
    "self with alpha * source's slices added to those that index names along dim.",
)
