"""Reading and writing by index tensors.

ONNX counts negative indices from the end. Known indices are checked against their dim here; those that come
from data are checked by the ops themselves, at run time, and never reach memory unchecked.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tensure.errors import FormatError, UnsupportedError

from ._builder import Array, Builder, Tensor, axis_of
from ._table import Attributes, onnx_op

_INTEGERS = ("i64", "i32")


def check_known(index: Tensor, size: int, what: str = "indices") -> None:
    """Refuse known indices outside -size..size-1, and indices that are no integers."""
    if index.dtype not in _INTEGERS:
        raise FormatError(f"{what} of dtype {index.dtype}", wanted="int64 or int32")
    if index.is_known and index.size:
        least, most = int(index.values().min()), int(index.values().max())
        if least < -size or most >= size:
            raise FormatError(
                f"{what} hold {least if least < -size else most}", wanted=f"{-size} to {size - 1}"
            )


def counted_from_front(b: Builder, index: Tensor, size: int) -> Tensor:
    """Indices with those below 0 counted from the end, in i64."""
    wide = b.cast(index, "i64")
    if wide.is_known and (wide.values() >= 0).all():
        return wide
    return b.op("where", b.op("lt", wide, 0), b.op("add", wide, size), wide)


@onnx_op("Gather(data, indices; axis: int = 0)")
def _gather(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    data, index = x
    dim = axis_of(a["axis"], data.rank)
    check_known(index, data.shape[dim])
    if index.is_known and index.rank == 0:
        return b.op("select", data, dim=dim, index=int(index.values()))
    if dim == 0 and data.rank == 2 and not index.is_known:
        return b.op("embedding", data, counted_from_front(b, index, data.shape[0]))
    if index.is_known and index.rank == 1:
        return b.op("index_select", data, counted_from_front(b, index, data.shape[dim]), dim=dim)
    return b.op("index", data, *[None] * dim, b.cast(index, "i64"))


@onnx_op("GatherElements(data, indices; axis: int = 0)")
def _gather_elements(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    data, index = x
    dim = axis_of(a["axis"], data.rank)
    check_known(index, data.shape[dim])
    return b.op("gather", data, counted_from_front(b, index, data.shape[dim]), dim=dim)


def _columns(b: Builder, index: Tensor, data: Tensor, batch: int) -> list[Tensor]:
    """The last dim of `index` as one index tensor for each dim it names, after those of the batch."""
    if not index.rank or index.rank <= batch:
        raise FormatError(f"indices of shape {list(index.shape)}", wanted=f"rank above {batch}")
    count = index.shape[-1]
    if not 1 <= count <= data.rank - batch or index.shape[:batch] != data.shape[:batch]:
        raise FormatError(
            f"indices of shape {list(index.shape)} into {list(data.shape)}", wanted="at most one for each dim"
        )
    found: list[Tensor] = []
    inner = index.shape[batch:-1]
    for dim in range(batch):
        shape = [1] * (batch + len(inner))
        shape[dim] = data.shape[dim]
        b.room(shape, "the places along a batch dim")
        found.append(b.known(np.arange(data.shape[dim]).reshape(shape)))
    for at in range(count):
        column = b.op("select", index, dim=-1, index=at)
        check_known(column, data.shape[batch + at])
        found.append(b.cast(column, "i64"))
    return found


@onnx_op("GatherND(data, indices; batch_dims: int = 0)")
def _gather_nd(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    data, index = x
    if not 0 <= a["batch_dims"] < max(data.rank, 1):
        raise FormatError(f"batch_dims={a['batch_dims']}", wanted=f"0 to {data.rank - 1}")
    return b.op("index", data, *_columns(b, index, data, a["batch_dims"]))


_REDUCE = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@onnx_op(
    'ScatterElements(data, indices, updates; axis: int = 0, reduction: str = "none")',
    "Scatter(data, indices, updates; axis: int = 0)",
)
def _scatter_elements(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    data, index, updates = x
    dim = axis_of(a["axis"], data.rank)
    check_known(index, data.shape[dim])
    return _scattered(
        b, data, counted_from_front(b, index, data.shape[dim]), updates, dim, a.get("reduction", "none")
    )


def _scattered(b: Builder, data: Tensor, index: Tensor, updates: Tensor, dim: int, reduction: str) -> Tensor:
    if reduction == "none":
        return b.op("scatter", data, index, updates, dim=dim)
    if reduction == "add":
        return b.op("scatter_add", data, index, updates, dim=dim)
    if reduction not in _REDUCE:
        raise FormatError(f"reduction={reduction!r}", wanted=f"none, {', '.join(_REDUCE)}")
    return b.op("scatter_reduce", data, index, updates, dim=dim, reduce=_REDUCE[reduction])


@onnx_op('ScatterND(data, indices, updates; reduction: str = "none")')
def _scatter_nd(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    data, index, updates = x
    columns = _columns(b, index, data, 0)
    if updates.shape != (*index.shape[:-1], *data.shape[len(columns) :]):
        raise FormatError(f"updates of shape {list(updates.shape)}", wanted="one slice for each index")
    if a["reduction"] in ("none", "add"):
        return b.op("index_put", data, updates, *columns, accumulate=a["reduction"] == "add")
    place: Tensor | None = None
    for at, column in enumerate(columns):
        step = b.op(
            "mul", counted_from_front(b, column, data.shape[at]), math.prod(data.shape[at + 1 : len(columns)])
        )
        place = step if place is None else b.op("add", place, step)
    assert place is not None
    rest = math.prod(data.shape[len(columns) :])
    flat = b.reshape(data, (math.prod(data.shape[: len(columns)]), rest))
    index = b.expand(b.reshape(place, (place.size, 1)), (place.size, rest))
    found = _scattered(b, flat, index, b.reshape(updates, (place.size, rest)), 0, a["reduction"])
    return b.reshape(found, data.shape)


@onnx_op('TensorScatter(past_cache, update, write_indices?; axis: int = -2, mode: str = "linear")', since=24)
def _tensor_scatter(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    """A cache with new rows put at each sample's own place; `circular` begins again at the front."""
    cache, update, start = x
    dim = axis_of(a["axis"], cache.rank)
    if dim == 0 or a["mode"] not in ("linear", "circular") or update.rank != cache.rank:
        raise FormatError(
            f"axis={a['axis']}, mode={a['mode']!r}", wanted="a dim after the batch; linear or circular"
        )
    shape = [1] * cache.rank
    shape[dim] = update.shape[dim]
    b.room(shape, "the places along an axis")
    places = b.known(np.arange(update.shape[dim]).reshape(shape))
    if start is not None:
        column = b.reshape(b.cast(start, "i64"), (-1, *[1] * (cache.rank - 1)))
        places = b.op("add", column, places)
    if a["mode"] == "circular":
        places = b.op("remainder", places, cache.shape[dim])
    return b.op("scatter", cache, b.expand(places, update.shape), update, dim=dim)


@onnx_op("Compress(input, condition; axis: int?)")
def _compress(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    """Only by a known condition: how many are kept is a matter of data."""
    data: Tensor = x[0]
    keep: Array = b.const(x[1], "the number of results").reshape(-1)
    if a["axis"] is None:
        data, dim = b.reshape(data, (data.size,)), 0
    else:
        dim = axis_of(a["axis"], data.rank)
    places = np.flatnonzero(keep)
    if keep.dtype != np.bool_ or (places.size and places[-1] >= data.shape[dim]):
        raise FormatError(
            f"a condition of {keep.size} entries", wanted=f"bools, at most {data.shape[dim]} of them"
        )
    return b.pick(data, dim, places)


@onnx_op("ReverseSequence(input, sequence_lens; batch_axis: int = 1, time_axis: int = 0)")
def _reverse_sequence(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    """The first sequence_lens[i] elements of sample i in reverse order."""
    data, lengths = x
    batch, time = axis_of(a["batch_axis"], data.rank), axis_of(a["time_axis"], data.rank)
    if batch == time or lengths.shape != (data.shape[batch],):
        raise FormatError(
            f"batch_axis={batch}, time_axis={time}", wanted="two axes, one length for each sample"
        )
    return reversed_in_time(b, data, b.cast(lengths, "i64"), batch, time)


def reversed_in_time(b: Builder, data: Tensor, lengths: Tensor, batch: int, time: int) -> Tensor:
    """The first lengths[i] steps of sample i in reverse order, the rest as they are."""
    line = [1] * data.rank
    line[time] = data.shape[time]
    b.room(line, "the places along the time axis")
    steps = b.known(np.arange(data.shape[time]).reshape(line))
    column = [1] * data.rank
    column[batch] = data.shape[batch]
    length = b.reshape(lengths, column)
    back = b.op("sub", b.op("sub", length, 1), steps)
    index = b.op("where", b.op("lt", steps, length), back, steps)
    return b.op("gather", data, b.expand(index, data.shape), dim=time)


@onnx_op("ArrayFeatureExtractor(X, Y)", domain="ai.onnx.ml")
def _array_feature_extractor(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    """Columns of the last dim; indices are not counted from the end."""
    data, index = x
    check_known(index, data.shape[-1] if data.rank else 0, "Y")
    if index.is_known and index.size and int(index.values().min()) < 0:
        raise FormatError(f"Y holds {int(index.values().min())}", wanted="indices of at least 0")
    if not data.rank:
        raise UnsupportedError("X of rank 0", wanted="at least one dim")
    found = b.op("index_select", data, b.reshape(b.cast(index, "i64"), (-1,)), dim=data.rank - 1)
    return b.reshape(found, (1, found.shape[0])) if found.rank == 1 else found
