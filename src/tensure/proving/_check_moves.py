"""The checker's moves: where elements go.

Views are decided group by group of dims whose sizes multiply to the same, on runs of the numbers of their
elements; transposes, joins and replacements dim by dim; the rest on the numbers of all elements, where these
are few. Written apart from the prover's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np

from tensure.errors import LimitError

from ._check_index import FIRST, Index, concatenated, flattened, unflattened
from ._check_piece import Piece, Reg, Shape, whole

MAX_MOVED: Final = 1 << 22
"""Elements that are looked at one by one, or runs of them."""
MOVES: Final[dict[str, Callable[[list[Any], dict[str, Any]], Any]]] = {
    "view": lambda x, a: x[0].reshape(a["size"]),
    "reshape": lambda x, a: x[0].reshape(a["shape"]),
    "permute": lambda x, a: x[0].transpose(a["dims"]),
    "transpose": lambda x, a: x[0].swapaxes(a["dim0"], a["dim1"]),
    "t": lambda x, a: x[0].T,
    "unsqueeze": lambda x, a: np.expand_dims(x[0], a["dim"]),
    "select": lambda x, a: x[0].take(a["index"], axis=a["dim"]),
    "cat": lambda x, a: np.concatenate(x, axis=a.get("dim", 0)),
    "stack": lambda x, a: np.stack(x, axis=a.get("dim", 0)),
    "expand": lambda x, a: np.broadcast_to(x[0], filled_size(a["size"], x[0].shape)),
    "slice_scatter": lambda x, a: _scattered(x[0], x[1], a),
    "flatten": lambda x, a: x[0].reshape(_flat(x[0].shape, a)),
    "squeeze": lambda x, a: x[0].squeeze(tuple(d for d in a["dim"] if x[0].shape[d] == 1)),
    "flip": lambda x, a: np.flip(x[0], a["dims"]),
    "repeat": lambda x, a: _tiled(x[0], a["repeats"]),
}


def moved(op: str, attrs: dict[str, Any], shapes: Sequence[Shape | None], parts: Sequence[Any]) -> Any:
    """The op done on the numbers of the elements: operand i's start after those of operand i-1.

    Raises:
        LimitError: over 2^22 elements. ValueError: of a number.
    """
    numbers, start = [], 0
    for shape, part in zip(shapes, parts, strict=True):
        if shape is None:
            raise ValueError("a move of a number")
        if start + math.prod(shape) > MAX_MOVED:
            raise LimitError(f"{op} of shape {list(shape)} by its elements", wanted=f"at most {MAX_MOVED}")
        numbers.append(_picked(np.arange(math.prod(shape)).reshape(shape) + start, part))
        start += math.prod(shape)
    return MOVES[op](numbers, attrs)


def _picked(array: Any, part: Sequence[Any]) -> Any:
    return array[np.ix_(*(np.asarray(index.members(), np.intp) for index in part))]


def moved_shape(op: str, attrs: dict[str, Any], shapes: Sequence[Shape]) -> Shape | None:
    """The shape of what a move makes of tensors of these shapes; None where it cannot be."""
    first = shapes[0]
    if op in ("view", "reshape"):
        size = tuple(attrs["size" if op == "view" else "shape"])
        if -1 in size:
            known = math.prod(n for n in size if n != -1)
            size = tuple(math.prod(first) // known if n == -1 else n for n in size) if known else ()
        return size if math.prod(size) == math.prod(first) and min(size, default=0) >= 0 else None
    if op == "flatten":
        return _flat(first, attrs)
    if op == "permute":
        return tuple(first[d] for d in attrs["dims"])
    if op == "transpose":
        swapped = list(first)
        one, other = attrs["dim0"], attrs["dim1"]
        swapped[one], swapped[other] = swapped[other], swapped[one]
        return tuple(swapped)
    if op == "t":
        return first[::-1]
    if op in ("select", "slice_scatter", "cat"):
        dim = attrs.get("dim", 0) % len(first)
        if op == "select":
            known = -first[dim] <= attrs["index"] < first[dim]
            return (*first[:dim], *first[dim + 1 :]) if known else None
        if op == "cat":
            return (*first[:dim], sum(shape[dim] for shape in shapes), *first[dim + 1 :])
        part = range(first[dim])[slice(attrs.get("start"), attrs.get("end"), attrs.get("step", 1))]
        return first if shapes[1] == (*first[:dim], len(part), *first[dim + 1 :]) else None
    if op == "stack":
        dim = attrs.get("dim", 0) % (len(first) + 1)
        return (*first[:dim], len(shapes), *first[dim:]) if set(shapes) == {first} else None
    if op == "flip":
        return first
    if op == "repeat":
        repeats = attrs["repeats"]
        wide = (*(1 for _ in repeats[len(first) :]), *first)
        return tuple(n * by for n, by in zip(wide, repeats, strict=True))
    return None


def repeats_moved(op: str, attrs: dict[str, Any], shape: Shape, free: frozenset[int], out: Shape) -> set[int]:
    """Along which dims a transpose or view only repeats, when what is moved does along `free`."""
    if op == "permute":
        return {dim for dim, of in enumerate(attrs["dims"]) if out[dim] > 1 and of % len(shape) in free}
    made: set[int] = set()
    if not math.prod(shape):
        return made
    for (first, at), (start, to) in _groups(shape, out):
        frees, sizes = [dim in free for dim in range(first, at)], shape[first:at]
        long = [so for so, n in zip(frees, sizes, strict=True) if n != 1]
        if [n for n in sizes if n != 1] == [n for n in out[start:to] if n != 1]:
            made.update(dim for dim in range(start, to) if out[dim] != 1 and long.pop(0))
        elif all(long):
            made.update(dim for dim in range(start, to) if out[dim] != 1)
        elif any(long) and math.prod(sizes) <= MAX_MOVED:
            # Which element a place shows, those that are the same counted as one: it shows where it repeats.
            kept = tuple(1 if so else n for so, n in zip(frees, sizes, strict=True))
            shown = np.broadcast_to(np.arange(math.prod(kept)).reshape(kept), sizes).reshape(out[start:to])
            for dim in range(start, to):
                if out[dim] > 1 and bool((shown == shown.take([0], axis=dim - start)).all()):
                    made.add(dim)
    return made


def regrouped(reg: Reg, shape: Shape, out: Shape) -> Reg | None:
    """A part of a tensor as a part of the same elements in another shape; None where it is none there."""
    if math.prod(shape) != math.prod(out) or not all(reg) or not math.prod(shape):
        return None
    made: list[Index] = []
    for (first, at), (start, to) in _groups(shape, out):
        found = _group(reg[first:at], shape[first:at], out[start:to])
        if found is None:
            return None
        made.extend(found)
    return tuple(made)


def _groups(shape: Shape, out: Shape) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Groups of neighbouring dims of two shapes of the same elements, whose sizes multiply to the same."""
    at = to = 0
    while at < len(shape) or to < len(out):
        first, start = at, to
        left = right = 1
        while at == first or to == start or left != right:
            if (left <= right and at < len(shape)) or to == len(out):
                if at == len(shape):
                    break
                left, at = left * shape[at], at + 1
            else:
                right, to = right * out[to], to + 1
            if left == right and (at == len(shape) or to == len(out)):
                break
        if at == len(shape):
            to = len(out)
        elif to == len(out):
            at = len(shape)
        yield (first, at), (start, to)


def _group(reg: Reg, shape: Shape, out: Shape) -> Reg | None:
    """One group of dims: all of it, the same dims apart from those of size 1, or by the numbers in runs."""
    if math.prod(shape) != math.prod(out):
        return None
    if reg == whole(shape):
        return whole(out)
    long = [index for index, n in zip(reg, shape, strict=True) if n != 1]
    once = all(index == FIRST for index, n in zip(reg, shape, strict=True) if n == 1)
    if once and [n for n in shape if n != 1] == [n for n in out if n != 1]:
        return tuple(FIRST if n == 1 else long.pop(0) for n in out)
    flat = flattened(reg, shape, MAX_MOVED)
    return None if flat is None else unflattened(flat, out)


def move_fits(p: Piece) -> bool:
    """Is the claimed part what the local op makes of the parts it reads?"""
    if p.op == "permute":
        rank = len(p.shapes[0])
        same = [d % rank for d in p.mine["dims"]] == [d % rank for d in p.theirs["dims"]]
        return same and p.reg == tuple(p.parts[0][d % rank] for d in p.theirs["dims"])
    if p.op == "view" and -1 not in p.mine["size"]:
        fits = tuple(map(len, p.reg)) == tuple(p.mine["size"])
        return fits and regrouped(p.parts[0], p.shapes[0], p.out) == p.reg
    if p.op == "cat":
        rank = len(p.out)
        dim = p.theirs.get("dim", 0) % rank
        start, stands = 0, list[Index]()
        for part, shape in zip(p.parts, p.shapes, strict=True):
            stands.append(part[dim].shifted(start))
            start += shape[dim]
        others = all((*part[:dim], *part[dim + 1 :]) == (*p.reg[:dim], *p.reg[dim + 1 :]) for part in p.parts)
        return others and p.mine.get("dim", 0) % rank == dim and concatenated(stands) == p.reg[dim]
    if p.op in ("slice_scatter", "flip") and _alike_along(p):
        return True
    everything = moved(p.op, p.theirs, p.shapes, [whole(shape) for shape in p.shapes])
    return bool(np.array_equal(_picked(everything, p.reg), moved(p.op, p.mine, p.shapes, p.parts)))


def _alike_along(p: Piece) -> bool:
    """Whole along the dims that elements change place in, which are those of the logical op; else alike."""
    rank, first = len(p.out), p.parts[0]
    keys = ("start", "end", "step") if p.op == "slice_scatter" else ()
    dims = [
        {d % rank for d in ((a.get("dim", 0),) if p.op == "slice_scatter" else a["dims"])}
        for a in (p.mine, p.theirs)
    ]
    same = dims[0] == dims[1] and all(p.mine.get(key) == p.theirs.get(key) for key in keys)
    full = all(
        part[d].is_whole(shape[d]) for part, shape in zip(p.parts, p.shapes, strict=True) for d in dims[1]
    )
    others = all(part[d] == p.reg[d] for part in p.parts for d in range(rank) if d not in dims[1])
    return same and full and others and p.reg == first


def filled_size(size: Sequence[int], shape: Shape) -> Shape:
    """The shape an expand makes: -1 keeps a dim."""
    skip = len(size) - len(shape)
    return tuple(shape[d - skip] if n == -1 else n for d, n in enumerate(size))


def _scattered(target: Any, source: Any, attrs: dict[str, Any]) -> Any:
    made, dim = target.copy(), attrs.get("dim", 0) % target.ndim
    part = slice(attrs.get("start"), attrs.get("end"), attrs.get("step", 1))
    made[(slice(None),) * dim + (part,)] = source
    return made


def _tiled(array: Any, repeats: Sequence[int]) -> Any:
    if array.size * math.prod(repeats) > MAX_MOVED:
        raise ValueError("a repetition too large")
    return np.tile(array, repeats)


def _flat(shape: Shape, attrs: dict[str, Any]) -> Shape:
    start, end = attrs.get("start_dim", 0) % max(len(shape), 1), attrs.get("end_dim", -1) % max(len(shape), 1)
    return (*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :])
