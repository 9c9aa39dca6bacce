"""Reshape, permute, join, cut, pad, repeat; new tensors; and what asks for a shape."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tensure.errors import FormatError, LimitError, UnsupportedError

from .._dtypes import FLOATS, dtype_name
from ._builder import Array, Builder, Tensor, axes_of, axis_of
from ._elementwise import dtype_of, same_dtype
from ._table import Attributes, onnx_op

_MOST_PARTS = 1 << 12
_MOST_KNOWN = 1 << 24
"""Elements of a tensor made whole while the file is read."""

# --- one shape for another ------------------------------------------------------------------------


@onnx_op("Reshape(data, shape?; shape: ints?, allowzero: int = 0)")
def _reshape(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    """A 0 keeps the size at its place unless allowzero."""
    data: Tensor = x[0]
    wanted = a["shape"] if x[1] is None else b.ints(x[1], "shape")
    if wanted is None:
        raise FormatError("no shape", wanted="input shape")
    if not a["allowzero"]:
        if any(size == 0 and at >= data.rank for at, size in enumerate(wanted)):
            raise FormatError(f"shape={list(wanted)}", wanted=f"0 only for the dims of {list(data.shape)}")
        wanted = tuple(data.shape[at] if size == 0 else size for at, size in enumerate(wanted))
    return data if wanted == data.shape else b.op("view", data, size=wanted)


@onnx_op("Transpose(data; perm: ints?)")
def _transpose(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    data: Tensor = x[0]
    perm = tuple(reversed(range(data.rank))) if a["perm"] is None else a["perm"]
    if len(perm) != data.rank or axes_of(perm, data.rank) != tuple(range(data.rank)):
        raise FormatError(f"perm={list(perm)}", wanted=f"every axis of {list(data.shape)} once")
    return b.permute(data, [axis % data.rank for axis in perm])


@onnx_op("Flatten(input; axis: int = 1)")
def _flatten(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    shape = x[0].shape
    if not -len(shape) <= a["axis"] <= len(shape):
        raise FormatError(f"axis={a['axis']}", wanted=f"{-len(shape)} to {len(shape)}")
    at = a["axis"] + len(shape) if a["axis"] < 0 else a["axis"]
    return b.reshape(x[0], (math.prod(shape[:at]), math.prod(shape[at:])))


@onnx_op("Squeeze(data, axes?; axes: ints?)")
def _squeeze(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    data: Tensor = x[0]
    axes = b.ints(x[1], "axes") if x[1] is not None else a["axes"]
    if axes is None:
        axes = [at for at, size in enumerate(data.shape) if size == 1]
    dims = axes_of(axes, data.rank)
    if any(data.shape[dim] != 1 for dim in dims):
        raise FormatError(f"axes {list(dims)} of shape {list(data.shape)}", wanted="axes of size 1")
    return b.reshape(data, [size for at, size in enumerate(data.shape) if at not in dims])


@onnx_op("Unsqueeze(data, axes?; axes: ints?)")
def _unsqueeze(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    data: Tensor = x[0]
    axes = b.ints(x[1], "axes") if x[1] is not None else a["axes"]
    if axes is None:
        raise FormatError("no axes", wanted="input axes")
    dims = axes_of(axes, data.rank + len(axes))
    rest = iter(data.shape)
    return b.reshape(data, [1 if at in dims else next(rest) for at in range(data.rank + len(dims))])


@onnx_op("Expand(input, shape)")
def _expand(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    """Broadcast both ways: a wanted 1 keeps what is there."""
    shape = np.broadcast_shapes(x[0].shape, b.ints(x[1], "shape"))
    return b.expand(x[0], shape)


@onnx_op("Tile(input, repeats)")
def _tile(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    repeats = b.ints(x[1], "repeats")
    if len(repeats) != x[0].rank or min(repeats, default=0) < 0:
        raise FormatError(f"repeats={list(repeats)}", wanted=f"{x[0].rank} counts")
    return x[0] if set(repeats) <= {1} else b.op("repeat", x[0], repeats=repeats)


@onnx_op('DepthToSpace(input; blocksize: int, mode: str = "DCR")')
def _depth_to_space(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    n, c, h, w = _four(x[0])
    block = a["blocksize"]
    if block < 1 or c % block**2 or a["mode"] not in ("DCR", "CRD"):
        raise FormatError(
            f"blocksize={block}, mode={a['mode']!r} of {c} channels", wanted="a divisor; DCR or CRD"
        )
    if a["mode"] == "DCR":
        parts = b.permute(b.reshape(x[0], (n, block, block, c // block**2, h, w)), (0, 3, 4, 1, 5, 2))
    else:
        parts = b.permute(b.reshape(x[0], (n, c // block**2, block, block, h, w)), (0, 1, 4, 2, 5, 3))
    return b.reshape(parts, (n, c // block**2, h * block, w * block))


@onnx_op('SpaceToDepth(input; blocksize: int, mode: str = "DCR")')
def _space_to_depth(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    n, c, h, w = _four(x[0])
    block = a["blocksize"]
    if block < 1 or h % block or w % block or a["mode"] not in ("DCR", "CRD"):
        raise FormatError(
            f"blocksize={block}, mode={a['mode']!r} of {h} by {w}", wanted="a divisor; DCR or CRD"
        )
    order = (0, 3, 5, 1, 2, 4) if a["mode"] == "DCR" else (0, 1, 3, 5, 2, 4)
    parts = b.permute(b.reshape(x[0], (n, c, h // block, block, w // block, block)), order)
    return b.reshape(parts, (n, c * block**2, h // block, w // block))


def _four(x: Tensor) -> tuple[int, int, int, int]:
    if x.rank != 4:
        raise FormatError(f"an input of shape {list(x.shape)}", wanted="[N, C, H, W]")
    return x.shape  # type: ignore[return-value]


# --- joining and cutting --------------------------------------------------------------------------


@onnx_op("Concat(inputs*; axis: int)")
def _concat(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    if not x:
        raise FormatError("no inputs", wanted="at least one")
    same_dtype(*x)
    dim = axis_of(a["axis"], x[0].rank)
    shapes = {(*item.shape[:dim], *item.shape[dim + 1 :], item.rank) for item in x}
    if len(shapes) > 1:
        raise FormatError(
            f"shapes {', '.join(str(list(item.shape)) for item in x)}", wanted=f"equal but for axis {dim}"
        )
    return x[0] if len(x) == 1 else b.op("cat", *x, dim=dim)


@onnx_op("Split(input, split?; axis: int = 0, split: ints?, num_outputs: int?)")
def _split(b: Builder, x: list[Any], a: Attributes) -> list[Tensor]:
    """Sizes are an input since opset 13, an attribute before; none means equal ones, the last may be less."""
    data: Tensor = x[0]
    dim = axis_of(a["axis"], data.rank)
    size = data.shape[dim]
    parts = b.ints(x[1], "split") if x[1] is not None else a["split"]
    if parts is None:
        count = a["num_outputs"] or b.num_outs
        if not 1 <= count <= _MOST_PARTS:
            raise FormatError(f"{count} parts", wanted=f"1 to {_MOST_PARTS}")
        each = -(-size // count)
        parts = [max(min(each, size - each * at), 0) for at in range(count)]
    if min(parts, default=0) < 0 or sum(parts) != size:
        raise FormatError(f"split={list(parts)}", wanted=f"sizes that add up to {size}")
    ends = np.cumsum(parts).tolist()
    return [b.slice(data, dim, end - part, end) for part, end in zip(parts, ends, strict=True)]


@onnx_op("Slice(data, starts?, ends?, axes?, steps?; starts: ints?, ends: ints?, axes: ints?)")
def _slice(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    """Negative steps go backwards; ends past the edge are clamped."""
    data: Tensor = x[0]
    starts, ends, axes = (
        b.ints(item, key) if item is not None else a[key]
        for item, key in zip(x[1:4], ("starts", "ends", "axes"), strict=True)
    )
    if starts is None or ends is None:
        raise FormatError("no starts or ends", wanted="both")
    axes = range(len(starts)) if axes is None else axes
    steps = (1,) * len(starts) if x[4] is None else b.ints(x[4], "steps")
    axes_of(axes, data.rank)
    if not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps:
        raise FormatError(
            f"starts {list(starts)}, ends {list(ends)}, steps {list(steps)}", wanted="one each for each axis"
        )
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        dim = axis_of(axis, data.rank)
        places = range(*slice(start, end, step).indices(data.shape[dim]))
        if step > 0:
            stop = places[-1] + 1 if places else places.start
            data = b.slice(data, dim, places.start, stop, min(step, 1 << 31))
        elif not places:
            data = b.slice(data, dim, 0, 0)
        else:
            data = b.slice(data, dim, places[-1], places[0] + 1, 1)
            data = b.op("flip", data, dims=(dim,))
            data = b.slice(data, dim, 0, data.shape[dim], min(-step, 1 << 31))
    return data


# --- padding --------------------------------------------------------------------------------------


@onnx_op('Pad(data, pads?, constant_value?, axes?; mode: str = "constant", pads: ints?, value: float = 0.0)')
def _pad(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    """Counts are an input since opset 11, an attribute before; `axes` came with 18."""
    data: Tensor = x[0]
    pads = b.ints(x[1], "pads") if x[1] is not None else a["pads"]
    dims = range(data.rank) if x[3] is None else [axis_of(item, data.rank) for item in b.ints(x[3], "axes")]
    if pads is None or len(pads) != 2 * len(dims) or not all(abs(item) < 1 << 31 for item in pads):
        raise FormatError(f"pads={pads}", wanted=f"{2 * len(dims)} counts")
    axes_of(dims, data.rank)
    sides = {dim: (pads[at], pads[at + len(dims)]) for at, dim in enumerate(dims)}
    if a["mode"] != "constant":
        for dim, (before, after) in sides.items():
            b.room([max(data.shape[dim] + before + after, 0)], "the places of a padded axis")
            data = b.pick(data, dim, _mirrored(data.shape[dim], before, after, a["mode"]))
        return data
    value = a["value"] if x[2] is None else b.number(x[2], "constant_value")
    return pad_with(b, data, [sides.get(dim, (0, 0)) for dim in range(data.rank)], value)


def pad_with(b: Builder, data: Tensor, sides: list[tuple[int, int]], value: float) -> Tensor:
    """A number put around (or, where a count is negative, elements cut off): (before, after) for each dim."""
    flat = [side for pair in reversed(sides) for side in pair]
    if not any(flat):
        return data
    number = float(value) if data.dtype in FLOATS else bool(value) if data.dtype == "bool" else int(value)
    return b.op("constant_pad_nd", data, pad=flat, value=number)


def _mirrored(size: int, before: int, after: int, mode: str) -> Array:
    """Where each element of a padded dim comes from."""
    if mode not in ("reflect", "edge", "wrap"):
        raise FormatError(f"mode={mode!r}", wanted="constant, reflect, edge or wrap")
    if size + before + after < 0 or size + before + after > _MOST_KNOWN or (size == 0 and before + after > 0):
        raise FormatError(f"pads {before} and {after} of {size} elements", wanted="a size of at least 0")
    places = np.arange(-before, size + after)
    if mode == "edge":
        return np.clip(places, 0, size - 1)
    if mode == "wrap":
        return np.asarray(places % max(size, 1))
    period = max(2 * (size - 1), 1)
    folded = places % period
    return np.minimum(folded, period - folded) if size > 1 else np.zeros_like(places)


@onnx_op("CenterCropPad(input_data, shape; axes: ints?)")
def _center_crop_pad(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    data: Tensor = x[0]
    wanted = b.ints(x[1], "shape")
    dims = range(data.rank) if a["axes"] is None else [axis_of(item, data.rank) for item in a["axes"]]
    if len(wanted) != len(dims):
        raise FormatError(f"shape={list(wanted)}", wanted=f"{len(dims)} sizes")
    for dim, size in zip(dims, wanted, strict=True):
        have = data.shape[dim]
        if size < have:
            start = (have - size) // 2
            data = b.slice(data, dim, start, start + size)
        else:
            before = (size - have) // 2
            sides = [(before, size - have - before) if at == dim else (0, 0) for at in range(data.rank)]
            data = pad_with(b, data, sides, 0)
    return data


# --- new tensors ----------------------------------------------------------------------------------


@onnx_op("Shape(data; start: int = 0, end: int?)")
def _shape(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    return b.known(x[0].shape[a["start"] : a["end"]], "i64")


@onnx_op("Size(data)")
def _size(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    return b.known(x[0].size, "i64")


@onnx_op("ConstantOfShape(input; value: tensor?)")
def _constant_of_shape(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    shape = b.ints(x[0], "input")
    value: Array = np.zeros(1, np.float32) if a["value"] is None else np.asarray(a["value"].decode())
    if value.size != 1 or min(shape, default=0) < 0:
        raise FormatError(
            f"value of {value.size} elements, shape {list(shape)}", wanted="one element, sizes of at least 0"
        )
    return b.full(shape, value.reshape(-1)[0].item(), dtype_name(value.dtype))


@onnx_op("Range(start, limit, delta; stash_type: int = 1)")
def _range(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    start, limit, delta = (
        b.number(item, key) for item, key in zip(x, ("start", "limit", "delta"), strict=True)
    )
    if delta == 0:
        raise FormatError("delta=0", wanted="another step")
    count = max(math.ceil((float(limit) - float(start)) / delta), 0)
    if count > _MOST_KNOWN:
        raise LimitError(f"a range of {count} elements", wanted=f"at most {_MOST_KNOWN}")
    b.room([count], "a range")
    wide = np.float64 if x[0].dtype in FLOATS else np.int64
    steps: Array = np.arange(count, dtype=wide)
    return b.known(np.add(steps * delta, start), x[0].dtype)


@onnx_op("EyeLike(input; dtype: int?, k: int = 0)")
def _eye_like(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    if x[0].rank != 2 or x[0].size > _MOST_KNOWN:
        raise FormatError(
            f"an input of shape {list(x[0].shape)}", wanted=f"a matrix of at most {_MOST_KNOWN} elements"
        )
    dtype = x[0].dtype if a["dtype"] is None else dtype_of(a["dtype"], "dtype")
    rows, columns = x[0].shape
    b.room([rows, columns], "a matrix")
    return b.known(np.eye(rows, columns, k=max(min(a["k"], columns), -rows)), dtype)


@onnx_op("Trilu(input, k?; upper: int = 1)")
def _trilu(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    diagonal = 0 if x[1] is None else int(b.number(x[1], "k"))
    return b.op("triu" if a["upper"] else "tril", x[0], diagonal=diagonal)


@onnx_op("OneHot(indices, depth, values; axis: int = -1)")
def _one_hot(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    """Indices outside -depth..depth-1 give off values everywhere."""
    indices, depth = x[0], int(b.number(x[1], "depth"))
    if x[2].shape != (2,) or not 1 <= depth <= _MOST_KNOWN:
        raise FormatError(f"depth={depth}, values of shape {list(x[2].shape)}", wanted="a depth, two values")
    dim = axis_of(a["axis"], indices.rank + 1)
    whole = b.cast(indices, "i64")
    wrapped = b.op("where", b.op("lt", whole, 0), b.op("add", whole, depth), whole)
    shape = [1] * (indices.rank + 1)
    shape[dim] = depth
    b.room(shape, "the classes")
    classes = b.known(np.arange(depth).reshape(shape))
    hit = b.op("eq", b.op("unsqueeze", wrapped, dim=dim), classes)
    off, on = (b.reshape(b.slice(x[2], 0, at, at + 1), ()) for at in range(2))
    return b.op("where", hit, on, off)


@onnx_op("NonZero(X)")
def _nonzero(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    """Only of known values: how many there are is a matter of data."""
    return b.known(np.stack(np.nonzero(np.atleast_1d(b.const(x[0], "the number of results")))), "i64")


@onnx_op("AffineGrid(theta, size; align_corners: int = 0)")
def _affine_grid(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    theta, size = x[0], b.ints(x[1], "size")
    spatial = size[2:]
    if theta.rank != 3 or len(size) not in (4, 5) or theta.shape[1:] != (len(spatial), len(spatial) + 1):
        raise FormatError(
            f"theta of shape {list(theta.shape)}, size {list(size)}", wanted="[N, 2, 3] or [N, 3, 4]"
        )
    if min(size) < 1 or math.prod(spatial) > _MOST_KNOWN:
        raise LimitError(f"a grid of sizes {list(spatial)}", wanted=f"at most {_MOST_KNOWN} points")
    b.room([*spatial, len(spatial) + 1], "a grid")
    lines = [
        np.linspace(-1, 1, count)
        if a["align_corners"] and count > 1
        else (2 * np.arange(count) + 1) / count - 1
        for count in spatial
    ]
    mesh = np.meshgrid(*lines, indexing="ij")
    points = np.stack([*reversed(mesh), np.ones_like(mesh[0])], axis=-1).reshape(-1, len(spatial) + 1)
    grid = b.op("matmul", b.known(points, theta.dtype), b.op("transpose", theta, dim0=1, dim1=2))
    return b.reshape(grid, (theta.shape[0], *spatial, len(spatial)))


# --- sequences, which live only while the file is read --------------------------------------------


def _sequence(x: Any) -> tuple[Tensor, ...]:
    if not isinstance(x, tuple):
        raise UnsupportedError("a tensor in place of a sequence", wanted="a sequence made in the graph")
    return x


@onnx_op("SequenceEmpty(; dtype: int = 1)")
def _sequence_empty(b: Builder, x: list[Any], a: Attributes) -> list[Any]:
    return [()]


@onnx_op("SequenceConstruct(inputs*)")
def _sequence_construct(b: Builder, x: list[Any], a: Attributes) -> list[Any]:
    return [tuple(x)]


@onnx_op("SequenceAt(input_sequence, position)")
def _sequence_at(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    items = _sequence(x[0])
    return items[axis_of(int(b.number(x[1], "position")), len(items), "position")]


@onnx_op("SequenceLength(input_sequence)")
def _sequence_length(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    return b.known(len(_sequence(x[0])), "i64")


@onnx_op("SequenceInsert(input_sequence, tensor, position?)")
def _sequence_insert(b: Builder, x: list[Any], a: Attributes) -> list[Any]:
    items = list(_sequence(x[0]))
    at = len(items) if x[2] is None else int(b.number(x[2], "position"))
    if not -len(items) <= at <= len(items) or len(items) >= _MOST_PARTS:
        raise FormatError(f"position={at} in a sequence of {len(items)}", wanted="a place in it")
    items.insert(at, x[1])
    return [tuple(items)]


@onnx_op("SequenceErase(input_sequence, position?)")
def _sequence_erase(b: Builder, x: list[Any], a: Attributes) -> list[Any]:
    items = list(_sequence(x[0]))
    at = -1 if x[1] is None else int(b.number(x[1], "position"))
    del items[axis_of(at, len(items), "position")]
    return [tuple(items)]


@onnx_op("SplitToSequence(input, split?; axis: int = 0, keepdims: int = 1)")
def _split_to_sequence(b: Builder, x: list[Any], a: Attributes) -> list[Any]:
    data: Tensor = x[0]
    dim = axis_of(a["axis"], data.rank)
    size = data.shape[dim]
    if x[1] is not None and x[1].rank:
        parts = list(b.ints(x[1], "split"))
    else:
        each = 1 if x[1] is None else int(b.number(x[1], "split"))
        if each < 1 or size // each > _MOST_PARTS:
            raise FormatError(
                f"split={each} of {size}", wanted=f"parts of at least 1, at most {_MOST_PARTS} of them"
            )
        parts = [min(each, size - at) for at in range(0, size, each)]
    if sum(parts) != size or min(parts, default=0) < 0:
        raise FormatError(f"split={parts}", wanted=f"sizes that add up to {size}")
    ends = np.cumsum(parts).tolist()
    made = [b.slice(data, dim, end - part, end) for part, end in zip(parts, ends, strict=True)]
    if x[1] is None and not a["keepdims"]:
        made = [b.op("select", item, dim=dim, index=0) for item in made]
    return [tuple(made)]


@onnx_op("ConcatFromSequence(input_sequence; axis: int, new_axis: int = 0)")
def _concat_from_sequence(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    items = _sequence(x[0])
    if not items:
        raise UnsupportedError("an empty sequence joined", wanted="at least one tensor")
    dim = axis_of(a["axis"], items[0].rank + bool(a["new_axis"]))
    return b.op("stack" if a["new_axis"] else "cat", *items, dim=dim)
