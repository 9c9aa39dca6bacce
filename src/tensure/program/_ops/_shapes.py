"""Moving elements without changing them: reshape, permute, slice, join, pad; and making new tensors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .._affine import Affine
from .._dtypes import numpy_dtype
from .._records import TensorType
from ._rules import (
    INTEGERS,
    NUMBERS,
    cast,
    check_index,
    in_range,
    need,
    need_dtype,
    need_rank,
    number,
    number_dtype,
    promoted,
    type_of,
    wrap,
    wrap_all,
)
from ._table import Array, Evaluate, Given, Infer, define, refuse


def _by_rule(infer: Infer) -> Evaluate:
    """Semantics of an op that only reinterprets its operand in the shape its rule gives."""

    def evaluate(args: list[Any], given: Given) -> list[Array]:
        return [np.reshape(args[0], infer([type_of(args[0])], given)[0].shape)]

    return evaluate


def _same(x: TensorType, shape: tuple[int, ...] | list[int]) -> list[TensorType]:
    return [TensorType(tuple(shape), x.dtype)]


# --- one shape for another ------------------------------------------------------------------------


def reshaped(shape: tuple[int, ...], size: tuple[int, ...]) -> tuple[int, ...]:
    """The shape `size` asks for, with its one -1 worked out."""
    count, known = math.prod(shape), math.prod(item for item in size if item != -1)
    if any(item < -1 for item in size) or size.count(-1) > 1:
        raise refuse(f"size={list(size)}", "dims of at least 0 and at most one -1")
    if -1 not in size:
        found = size
    elif known == 0:
        raise refuse(f"size={list(size)} leaves -1 ambiguous", "no -1 beside a 0")
    else:
        found = tuple(count // known if item == -1 else item for item in size)
    if math.prod(found) != count:
        raise refuse(f"size={list(size)} of a tensor of shape {list(shape)}", f"{count} elements")
    return found


def _view_rule(args: list[Any], given: Given) -> list[TensorType]:
    return _same(args[0], reshaped(args[0].shape, given["size"]))


def _reshape_rule(args: list[Any], given: Given) -> list[TensorType]:
    return _same(args[0], reshaped(args[0].shape, given["shape"]))


define(
    "view(self: Tensor; size: int[]) -> 1",
    _view_rule,
    _by_rule(_view_rule),
    "The same elements in row-major order under another shape; one -1 is worked out.",
)
define(
    "reshape(self: Tensor; shape: int[]) -> 1", _reshape_rule, _by_rule(_reshape_rule), "The same as view."
)


def _flatten_rule(args: list[Any], given: Given) -> list[TensorType]:
    shape = args[0].shape or (1,)
    start, end = (wrap(given[name], len(shape), name) for name in ("start_dim", "end_dim"))
    if start > end:
        raise refuse(
            f"start_dim={given['start_dim']}, end_dim={given['end_dim']}", "start_dim not after end_dim"
        )
    return _same(args[0], (*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :]))


define(
    "flatten(self: Tensor; start_dim: int = 0, end_dim: int = -1) -> 1",
    _flatten_rule,
    _by_rule(_flatten_rule),
    "Dims start_dim..end_dim (included) made one.",
)


def _unsqueeze_rule(args: list[Any], given: Given) -> list[TensorType]:
    shape = args[0].shape
    dim = wrap(given["dim"], len(shape) + 1)
    return _same(args[0], (*shape[:dim], 1, *shape[dim:]))


def _squeeze_rule(args: list[Any], given: Given) -> list[TensorType]:
    shape = args[0].shape
    dims = wrap_all(given["dim"], len(shape), empty_is_all=False)
    return _same(args[0], [size for at, size in enumerate(shape) if size != 1 or at not in dims])


define(
    "unsqueeze(self: Tensor; dim: int) -> 1",
    _unsqueeze_rule,
    _by_rule(_unsqueeze_rule),
    "A dim of size 1 put in at dim.",
)
define(
    "squeeze(self: Tensor; dim: int[]) -> 1",
    _squeeze_rule,
    _by_rule(_squeeze_rule),
    "Those of the named dims that have size 1 taken out.",
)


def _expand_rule(args: list[Any], given: Given) -> list[TensorType]:
    shape, size = args[0].shape, given["size"]
    new = len(size) - len(shape)
    old = (None,) * max(new, 0) + shape
    found = tuple(have if want == -1 else want for have, want in zip(old, size, strict=False))
    if new < 0 or any(
        want is None or want < 0 or have not in (None, 1, want) for have, want in zip(old, found, strict=True)
    ):
        raise refuse(
            f"size={list(size)} of a tensor of shape {list(shape)}", "each dim kept (or -1) or grown from 1"
        )
    return _same(args[0], found)


define(
    "expand(self: Tensor; size: int[], implicit: bool = false) -> 1",
    _expand_rule,
    lambda args, given: [np.broadcast_to(args[0], _expand_rule([type_of(args[0])], given)[0].shape)],
    "Dims of size 1 repeated to size; new dims come in front; -1 keeps a dim.",
)

# --- order of dims and of elements ----------------------------------------------------------------


def _permuted(x: Any, given: Given) -> tuple[int, ...]:
    dims, rank = given["dims"], len(x.shape)
    if len(dims) != rank:
        raise refuse(f"dims={list(dims)} of a tensor of rank {rank}", "every dim once")
    wrap_all(dims, rank)
    return tuple(dim % max(rank, 1) for dim in dims)


define(
    "permute(self: Tensor; dims: int[]) -> 1",
    lambda args, given: _same(args[0], [args[0].shape[dim] for dim in _permuted(args[0], given)]),
    lambda args, given: [np.transpose(args[0], _permuted(args[0], given))],
    "Dims in another order: result dim i is dim dims[i].",
)


def _swapped(x: Any, given: Given) -> list[int]:
    order = list(range(len(x.shape)))
    a, b = (wrap(given[name], len(order), name) for name in ("dim0", "dim1"))
    if order:
        order[a], order[b] = order[b], order[a]
    return order


define(
    "transpose(self: Tensor; dim0: int, dim1: int) -> 1",
    lambda args, given: _same(args[0], [args[0].shape[dim] for dim in _swapped(args[0], given)]),
    lambda args, given: [np.transpose(args[0], _swapped(args[0], given))],
    "Two dims swapped.",
)


def _t_rule(args: list[Any], given: Given) -> list[TensorType]:
    need_rank("self", args[0], 0, 1, 2)
    return _same(args[0], args[0].shape[::-1])


define(
    "t(self: Tensor) -> 1",
    _t_rule,
    lambda args, given: [args[0].T],
    "The transpose of a matrix; lower ranks as they are.",
)


def _flip_rule(args: list[Any], given: Given) -> list[TensorType]:
    wrap_all(given["dims"], len(args[0].shape), empty_is_all=False)
    return [args[0]]


define(
    "flip(self: Tensor; dims: int[]) -> 1",
    _flip_rule,
    lambda args, given: [np.flip(args[0], wrap_all(given["dims"], args[0].ndim, empty_is_all=False))],
    "Elements in reverse order along dims.",
)


def _roll_rule(args: list[Any], given: Given) -> list[TensorType]:
    for dim in given["dims"]:
        wrap(dim, len(args[0].shape))
    if not given["shifts"] or len(given["shifts"]) != (len(given["dims"]) or 1):
        raise refuse(f"shifts={list(given['shifts'])}, dims={list(given['dims'])}", "one shift for each dim")
    return [args[0]]


def _roll(args: list[Any], given: Given) -> list[Array]:
    (x,) = args
    if not x.size or not x.ndim:
        return [x]
    if not given["dims"]:
        return [np.roll(x, given["shifts"][0] % x.size)]
    for shift, dim in zip(given["shifts"], given["dims"], strict=True):
        x = np.roll(x, shift % x.shape[dim], dim)
    return [x]


define(
    "roll(self: Tensor; shifts: int[], dims: int[] = []) -> 1",
    _roll_rule,
    _roll,
    "Elements moved on by shifts along dims, the last ones coming in at the front; without dims, flattened.",
)

# --- parts ----------------------------------------------------------------------------------------


def sliced(x: Any, given: Given) -> tuple[int, slice]:
    """The dim and the Python slice an ATen slice stands for: ends clamped, negatives from the end."""
    dim = wrap(given["dim"], len(x.shape))
    if not x.shape:
        raise refuse("self of rank 0", "rank at least 1")
    in_range("step", given["step"], 1)
    size = x.shape[dim]
    start = 0 if given["start"] is None else given["start"]
    end = size if given["end"] is None else given["end"]
    start, end = (min(max(at + size if at < 0 else at, 0), size) for at in (start, end))
    return dim, slice(start, max(start, end), given["step"])


def _count(part: slice) -> int:
    if part.step == 1:
        count: int = max(part.stop - part.start, 0)  # holds for many places at once too
        return count
    return len(range(part.start, part.stop, part.step))


def _at(dim: int, part: slice | int) -> tuple[slice | int, ...]:
    return (*[slice(None)] * dim, part)


def put_slice(out: Array, dim: int, part: slice | int, value: Array) -> None:
    """Write value into out at part along dim."""
    out[_at(dim, part)] = value


def _slice_rule(args: list[Any], given: Given) -> list[TensorType]:
    dim, part = sliced(args[0], given)
    shape = args[0].shape
    return _same(args[0], (*shape[:dim], _count(part), *shape[dim + 1 :]))


define(
    "slice(self: Tensor; dim: int = 0, start: int? = none, end: int? = none, step: int = 1) -> 1",
    _slice_rule,
    lambda args, given: [args[0][_at(*sliced(args[0], given))]],
    "Every step-th element of start..end (end excluded) along dim; ends past the edge are clamped.",
)


def _slice_scatter_rule(args: list[Any], given: Given) -> list[TensorType]:
    x, src = args
    want = _slice_rule([x], given)[0]
    if src != want:
        raise refuse(f"src of type {src}", f"{want}, the slice it replaces")
    return [x]


def _slice_scatter(args: list[Any], given: Given) -> list[Array]:
    out = args[0].copy()
    put_slice(out, *sliced(args[0], given), args[1])
    return [out]


define(
    "slice_scatter(self: Tensor, src: Tensor; dim: int = 0, start: int? = none, end: int? = none, step: "
    "int = 1) -> 1",
    _slice_scatter_rule,
    _slice_scatter,
    "self with the slice replaced by src.",
)


def selected(x: Any, given: Given) -> tuple[int, int]:
    """The dim and the index a select stands for, checked."""
    if not x.shape:
        raise refuse("self of rank 0", "rank at least 1")
    dim = wrap(given["dim"], len(x.shape))
    size = x.shape[dim]
    if not -size <= given["index"] < size:
        raise refuse(f"index={given['index']} along dim {dim} of size {size}", f"{-size} to {size - 1}")
    return dim, given["index"]


def _select_rule(args: list[Any], given: Given) -> list[TensorType]:
    dim, _ = selected(args[0], given)
    return _same(args[0], args[0].shape[:dim] + args[0].shape[dim + 1 :])


define(
    "select(self: Tensor; dim: int, index: int) -> 1",
    _select_rule,
    lambda args, given: [args[0][_at(*selected(args[0], given))]],
    "The tensor at index along dim, without that dim; negatives count from the end.",
)


def _select_scatter_rule(args: list[Any], given: Given) -> list[TensorType]:
    want = _select_rule([args[0]], given)[0]
    if args[1] != want:
        raise refuse(f"src of type {args[1]}", f"{want}, the part it replaces")
    return [args[0]]


def _select_scatter(args: list[Any], given: Given) -> list[Array]:
    out = args[0].copy()
    put_slice(out, *selected(args[0], given), args[1])
    return [out]


define(
    "select_scatter(self: Tensor, src: Tensor; dim: int, index: int) -> 1",
    _select_scatter_rule,
    _select_scatter,
    "self with the tensor at index along dim replaced by src.",
)

# --- joins and repeats ----------------------------------------------------------------------------


def _cat_rule(args: list[Any], given: Given) -> list[TensorType]:
    if not args or not args[0].shape:
        raise refuse("no operand, or one of rank 0", "at least one tensor, each of rank at least 1")
    dim = wrap(given["dim"], len(args[0].shape))
    others = {(len(arg.shape), arg.shape[:dim], arg.shape[dim + 1 :]) for arg in args}
    if len(others) != 1:
        raise refuse(
            f"operands of shapes {', '.join(str(list(arg.shape)) for arg in args)}",
            f"one shape but for dim {dim}",
        )
    shape = args[0].shape
    return [
        TensorType((*shape[:dim], sum(arg.shape[dim] for arg in args), *shape[dim + 1 :]), promoted(*args))
    ]


def _stack_rule(args: list[Any], given: Given) -> list[TensorType]:
    if len({arg.shape for arg in args}) != 1:
        raise refuse(
            f"operands of shapes {', '.join(str(list(arg.shape)) for arg in args)}", "one shape for all"
        )
    shape = args[0].shape
    dim = wrap(given["dim"], len(shape) + 1)
    return [TensorType((*shape[:dim], len(args), *shape[dim:]), promoted(*args))]


def _alike(args: list[Any]) -> list[Array]:
    dtype = promoted(*map(type_of, args))
    return [cast(arg, dtype) for arg in args]


define(
    "cat(tensors: Tensor*; dim: int = 0) -> 1",
    _cat_rule,
    lambda args, given: [np.concatenate(_alike(args), axis=given["dim"])],
    "The operands joined along dim, in their promoted dtype.",
)
define(
    "stack(tensors: Tensor*; dim: int = 0) -> 1",
    _stack_rule,
    lambda args, given: [np.stack(_alike(args), axis=given["dim"])],
    "The operands joined along a new dim, in their promoted dtype.",
)


def _repeat_rule(args: list[Any], given: Given) -> list[TensorType]:
    shape, repeats = args[0].shape, given["repeats"]
    if len(repeats) < len(shape) or any(count < 0 for count in repeats):
        raise refuse(
            f"repeats={list(repeats)} of a tensor of rank {len(shape)}", "a count of at least 0 for each dim"
        )
    padded = (1,) * (len(repeats) - len(shape)) + shape
    return _same(args[0], [size * count for size, count in zip(padded, repeats, strict=True)])


define(
    "repeat(self: Tensor; repeats: int[]) -> 1",
    _repeat_rule,
    lambda args, given: [np.tile(args[0], given["repeats"])],
    "The tensor laid side by side repeats times along each dim; new dims come in front.",
)

# --- edges and triangles --------------------------------------------------------------------------


def _pads(rank: int, given: Given) -> list[tuple[int, int]]:
    """(before, after) per dim, front dim first; ATen lists the last dim first."""
    pad = given["pad"]
    if len(pad) % 2 or len(pad) > 2 * rank or any(abs(item) > 1 << 40 for item in pad):
        raise refuse(f"pad={list(pad)} of a tensor of rank {rank}", "(before, after) pairs, last dim first")
    pairs = [(pad[at], pad[at + 1]) for at in range(0, len(pad), 2)]
    return [(0, 0)] * (rank - len(pairs)) + pairs[::-1]


def _pad_rule(args: list[Any], given: Given) -> list[TensorType]:
    (x,) = args
    number(given["value"], x.dtype, "value")
    shape: list[int] = []
    for size, (before, after) in zip(x.shape, _pads(len(x.shape), given), strict=True):
        if size + min(before, 0) + min(after, 0) < 0:
            raise refuse(
                f"pad={list(given['pad'])} of shape {list(x.shape)}", "no more cut off than there is"
            )
        shape.append(size + before + after)
    return _same(x, shape)


def _pad(args: list[Any], given: Given) -> list[Array]:
    (x,) = args
    pads = _pads(x.ndim, given)
    cut = tuple(
        slice(max(-before, 0), size - max(-after, 0))
        for size, (before, after) in zip(x.shape, pads, strict=True)
    )
    fill = number(given["value"], type_of(x).dtype, "value")
    inner = x[cut]
    shape = [size + max(b, 0) + max(a, 0) for size, (b, a) in zip(inner.shape, pads, strict=True)]
    out = np.full(shape, fill, dtype=x.dtype)
    out[tuple(slice(max(b, 0), max(b, 0) + size) for size, (b, _) in zip(inner.shape, pads, strict=True))] = (
        inner
    )
    return [out]


define(
    "constant_pad_nd(self: Tensor; pad: int[], value: number = 0) -> 1",
    _pad_rule,
    _pad,
    "value put around: pad holds (before, after) per dim, last dim first; a negative count cuts off.",
)


def _triangle_rule(args: list[Any], given: Given) -> list[TensorType]:
    if len(args[0].shape) < 2:
        raise refuse(f"self of type {args[0]}", "rank at least 2")
    return [args[0]]


def _below(x: Array, diagonal: int) -> Array:
    rows, cols = x.shape[-2:]
    return np.tri(rows, cols, max(min(diagonal, cols), -rows - 1), dtype=bool)


define(
    "tril(self: Tensor; diagonal: int = 0) -> 1",
    _triangle_rule,
    lambda args, given: [np.where(_below(args[0], given["diagonal"]), args[0], np.zeros((), args[0].dtype))],
    "self on and below the diagonal (of the last two dims), 0 above.",
)
define(
    "triu(self: Tensor; diagonal: int = 0) -> 1",
    _triangle_rule,
    lambda args, given: [
        np.where(_below(args[0], given["diagonal"] - 1), np.zeros((), args[0].dtype), args[0])
    ],
    "self on and above the diagonal (of the last two dims), 0 below.",
)

# --- new tensors ----------------------------------------------------------------------------------


def _arange_rule(args: list[Any], given: Given) -> list[TensorType]:
    bounds = [given["start"], given["end"], given["step"]]
    whole = all(isinstance(item, (int, Affine)) for item in bounds)
    dtype = given["dtype"] or ("i64" if whole else "f32")
    need_dtype("a result", dtype, NUMBERS)
    start, end, step = bounds
    if not all(whole or math.isfinite(item) for item in bounds) or step == 0 or (end - start) * step < 0:
        raise refuse(f"start={start}, end={end}, step={step}", "a step from start towards end")
    if not whole and dtype in INTEGERS:
        raise refuse(f"start={start}, end={end}, step={step} for dtype {dtype}", "integers")
    count = -((start - end) // step) if whole else math.ceil(min((end - start) / step, 1 << 62))
    if count and dtype in INTEGERS:
        for what, at in (("start", start), ("the last element", start + (count - 1) * step)):
            for value in (at.least, at.most) if isinstance(at, Affine) else (at,):
                number(value, dtype, what)
    return [TensorType((count,), dtype)]


def _arange(args: list[Any], given: Given) -> list[Array]:
    (out,) = _arange_rule(args, given)
    steps = np.arange(out.shape[0], dtype=np.int64 if out.dtype in INTEGERS else np.float64)
    return [cast(np.asarray(given["start"] + steps * given["step"]), out.dtype)]


define(
    "arange(; start: number = 0, end: number, step: number = 1, dtype: dtype? = none) -> 1",
    _arange_rule,
    _arange,
    "start, start + step, ... short of end; i64 for integers and f32 otherwise unless dtype says.",
)


def _full_rule(args: list[Any], given: Given) -> list[TensorType]:
    if any(size < 0 for size in given["size"]):
        raise refuse(f"size={list(given['size'])}", "dims of at least 0")
    dtype = given["dtype"] or number_dtype(given["fill_value"])
    number(given["fill_value"], dtype, "fill_value")
    return [TensorType(given["size"], dtype)]


def _full(args: list[Any], given: Given) -> list[Array]:
    (out,) = _full_rule(args, given)
    return [
        np.full(out.shape, number(given["fill_value"], out.dtype, "fill_value"), dtype=numpy_dtype(out.dtype))
    ]


define(
    "full(; size: int[], fill_value: number, dtype: dtype? = none) -> 1",
    _full_rule,
    _full,
    "fill_value everywhere; without dtype a float gives f32, an integer i64, a bool bool.",
)


def _one_hot_rule(args: list[Any], given: Given) -> list[TensorType]:
    need("self", args[0], frozenset({"i64"}))
    in_range("num_classes", given["num_classes"], 1)
    return [TensorType((*args[0].shape, given["num_classes"]), "i64")]


def _one_hot(args: list[Any], given: Given) -> list[Array]:
    classes = np.arange(given["num_classes"])
    check_index(args[0], 0, given["num_classes"], "self")
    return [(args[0][..., None] == classes).astype(np.int64)]


define(
    "one_hot(self: Tensor; num_classes: int) -> 1",
    _one_hot_rule,
    _one_hot,
    "A new last dim with 1 at the class and 0 elsewhere; a class out of range is an error.",
)
