"""The checker's moves: where elements go, decided on the numbers of the elements.

Views are decided group by group of dims whose sizes multiply to the same; transposes and joins dim by dim;
the rest on the numbers of all elements. Written apart from the prover's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from ._check_piece import Piece, Reg, Shape, whole

MAX_MOVED: Final = 1 << 22
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
    """The op done on the numbers of the elements: operand i's start after those of operand i-1."""
    numbers, start = [], 0
    for shape, part in zip(shapes, parts, strict=True):
        if shape is None or start + math.prod(shape) > MAX_MOVED:
            raise ValueError("a move too large, or of a number")
        numbers.append((np.arange(math.prod(shape)).reshape(shape) + start)[np.ix_(*part)])
        start += math.prod(shape)
    return MOVES[op](numbers, attrs)


def regrouped(reg: Reg, shape: Shape, out: Shape) -> Reg | None:
    """A part of a tensor as a part of the same elements in another shape; None where it is none there."""
    if math.prod(shape) != math.prod(out) or not all(reg) or not math.prod(shape):
        return None
    made: list[tuple[int, ...]] = []
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
        found = _group(reg[first:at], shape[first:at], out[start:to])
        if found is None:
            return None
        made.extend(found)
    return tuple(made)


def _group(reg: Reg, shape: Shape, out: Shape) -> Reg | None:
    """One group of dims: all of it, the same dims apart from those of size 1, or by the numbers."""
    if math.prod(shape) != math.prod(out):
        return None
    if reg == whole(shape):
        return whole(out)
    long = [index for index, n in zip(reg, shape, strict=True) if n != 1]
    if [n for n in shape if n != 1] == [n for n in out if n != 1]:
        return tuple((0,) if n == 1 else long.pop(0) for n in out)
    if math.prod(shape) > MAX_MOVED:
        return None
    flat = np.arange(math.prod(shape)).reshape(shape)[np.ix_(*reg)].ravel()
    spots = [tuple(dict.fromkeys(at.tolist())) for at in np.unravel_index(flat, out)]
    numbers = np.arange(math.prod(out)).reshape(out)
    same = np.array_equal(numbers[np.ix_(*spots)].ravel(), flat)
    return tuple(spots) if same else None


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
        run: list[int] = []
        start = 0
        for part, shape in zip(p.parts, p.shapes, strict=True):
            run.extend(start + at for at in part[dim])
            start += shape[dim]
        others = all((*part[:dim], *part[dim + 1 :]) == (*p.reg[:dim], *p.reg[dim + 1 :]) for part in p.parts)
        return others and p.mine.get("dim", 0) % rank == dim and tuple(run) == p.reg[dim]
    everything = moved(p.op, p.theirs, p.shapes, [whole(shape) for shape in p.shapes])
    return bool(np.array_equal(everything[np.ix_(*p.reg)], moved(p.op, p.mine, p.shapes, p.parts)))


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
