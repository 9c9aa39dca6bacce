"""Ops that only move elements: which region of the moved whole is a moved part?

Views are decided group by group of dims whose sizes multiply to the same, on the flat numbers
themselves, so that any split or merge of a sharded dim is either exact or refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final, TypeAlias

from ._index import (
    Index,
    Region,
    Shape,
    clamped,
    cut,
    index_of,
    joined,
    length,
    members,
    shape_of,
    whole,
    whole_region,
)

Given: TypeAlias = dict[str, Any]
Shapes: TypeAlias = Sequence[Shape | None]
Parts: TypeAlias = Sequence[Region | None]
MAX_GROUP: Final = 1 << 22
"""Runs of elements of one group of dims of a view that are looked at one by one."""


def view(local: Given, logical: Given, shapes: Shapes, parts: Parts, out: Shape) -> Region | None:
    """Merge and split dims."""
    part, shape = parts[0], shapes[0]
    if part is None or shape is None:
        return None
    held = math.prod(shape_of(part))
    size = next((local[key] for key in ("size", "shape") if key in local), None)
    mine = _sizes(size, held) if size is not None else _flat(local, shape_of(part))
    if mine is None or len(mine) != len(out) or not held:
        return None
    region = regrouped(part, shape, out)
    return region if region is not None and shape_of(region) == mine else None


def regrouped(part: Region, shape: Shape, out: Shape) -> Region | None:
    """A region of a tensor as one of the same elements in another shape; None where it is no region there."""
    if math.prod(shape) != math.prod(out) or not math.prod(shape_of(part)):
        return None
    region: list[Index] = []
    position = 0
    for before, after in groups(shape, out):
        found = _regroup(part[before[0] : before[1]], shape[before[0] : before[1]], out[after[0] : after[1]])
        if found is None:
            return None
        region.extend(found)
        position = after[1]
    return tuple(region) if position == len(out) else None


def viewed_whole(part: Region, shape: Shape, mine: Shape) -> Shape | None:
    """The shape of the whole that a view of a part, of shape `mine`, is most likely a part of.

    Where dims are merged or split and one of them is cut, the outermost of those that come of them is.
    """
    held = shape_of(part)
    if math.prod(held) != math.prod(mine) or not math.prod(mine):
        return None
    sizes = list(mine)
    for before, after in groups(held, mine):
        count, own = math.prod(shape[before[0] : before[1]]), math.prod(held[before[0] : before[1]])
        if count == own:
            continue
        if before[0] == before[1] or after[0] == after[1]:
            return None
        long = [dim for dim in range(*after) if mine[dim] != 1] or [after[0]]
        if len(long) == 1:  # all of them in a row, however unevenly cut
            sizes[long[0]] = count
        elif count % own:
            return None
        else:
            sizes[long[0]] *= count // own
    return tuple(sizes)


def groups(one: Shape, other: Shape) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Runs of dims of both shapes with equal products, as short as can be; no dim is 0."""
    groups: list[tuple[tuple[int, int], tuple[int, int]]] = []
    i = j = 0
    while i < len(one) or j < len(other):
        a, b, left, right = i, j, 1, 1
        if i < len(one):
            left, i = one[i], i + 1
        if j < len(other):
            right, j = other[j], j + 1
        while left != right:
            if left < right:
                left, i = left * one[i], i + 1
            else:
                right, j = right * other[j], j + 1
        if j == len(other):
            i = len(one)  # what is left over has size 1
        elif i == len(one):
            j = len(other)
        groups.append(((a, i), (b, j)))
    return groups


@lru_cache(1 << 14)
def _regroup(part: Region, shape: Shape, out: Shape) -> Region | None:
    if part == whole_region(shape):
        return whole_region(out)
    flat = _numbered(part, shape)
    return None if flat is None else _boxed(flat, out)


def _numbered(part: Region, shape: Shape) -> Index | None:
    """The numbers of a part's elements in row-major order; None where they are too many runs."""
    flat: Index = ((0, 1),)
    for index, size in zip(part, shape, strict=True):
        if index == whole(size):
            flat = tuple((lo * size, hi * size) for lo, hi in flat)
        elif length(flat) * len(index) > MAX_GROUP:
            return None
        else:
            flat = joined(
                tuple((row * size + lo, row * size + hi) for lo, hi in index) for row in members(flat)
            )
    return flat


def _boxed(flat: Index, shape: Shape) -> Region | None:
    """The part of a tensor whose elements have these numbers; None where they are no box of it."""
    region: list[Index] = []
    for size in reversed(shape):
        if all(lo % size == 0 and hi % size == 0 for lo, hi in flat):
            region.append(whole(size))
            flat = tuple((lo // size, hi // size) for lo, hi in flat)
            continue
        row = flat[0][0] // size
        first: list[tuple[int, int]] = []  # what stands in the first row, and so in every other
        for lo, hi in flat:
            if lo // size != row:
                break
            first.append((lo - row * size, min(hi - row * size, size)))
            if hi > (row + 1) * size:
                break
        column = joined([tuple(first)])
        starts = _every(flat, length(column))
        if length(flat) % length(column) or len(starts) * len(column) > MAX_GROUP:
            return None
        rows = [start // size for start in starts]
        if joined(tuple((r * size + lo, r * size + hi) for lo, hi in column) for r in rows) != flat:
            return None
        region.append(column)
        flat = index_of(rows)
    return tuple(reversed(region)) if flat == ((0, 1),) else None


def _every(index: Index, width: int) -> list[int]:
    """Every so many-th member, from the first on."""
    found: list[int] = []
    passed = wanted = 0
    for lo, hi in index:
        while wanted < passed + hi - lo:
            found.append(lo + wanted - passed)
            wanted += width
        passed += hi - lo
    return found


def _sizes(size: Sequence[int], held: int) -> Shape | None:
    known = math.prod(part for part in size if part != -1)
    if -1 not in size:
        return tuple(size)
    return tuple(held // known if part == -1 else part for part in size) if known else None


def _flat(local: Given, shape: Shape) -> Shape:
    start, end = local["start_dim"] % max(len(shape), 1), local["end_dim"] % max(len(shape), 1)
    return (*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :])


def permute(local: Given, logical: Given, shapes: Shapes, parts: Parts, out: Shape) -> Region | None:
    """Dims in another order."""
    part, shape = parts[0], shapes[0]
    if repr(local) != repr(logical) or part is None or shape is None:
        return None
    order = list(range(len(shape)))
    if "dims" in logical:
        order = [dim % len(shape) for dim in logical["dims"]]
    else:
        one, other = logical.get("dim0", 0) % max(len(shape), 1), logical.get("dim1", 1) % max(len(shape), 1)
        if len(shape) > 1:
            order[one], order[other] = order[other], order[one]
    return tuple(part[dim] for dim in order)


def unsqueeze(local: Given, logical: Given, shapes: Shapes, parts: Parts, out: Shape) -> Region | None:
    """A new dim of size 1."""
    part = parts[0]
    if repr(local) != repr(logical) or part is None:
        return None
    dim = logical["dim"] % len(out)
    return (*part[:dim], whole(1), *part[dim:])


def squeeze(local: Given, logical: Given, shapes: Shapes, parts: Parts, out: Shape) -> Region | None:
    """Dims of size 1 away; a dim that is 1 only in the part stays where it is not 1 in the whole."""
    part, shape = parts[0], shapes[0]
    if repr(local) != repr(logical) or part is None or shape is None:
        return None
    dims = {dim % len(shape) for dim in logical["dim"]}
    if any((shape[dim] == 1) != (length(part[dim]) == 1) for dim in dims):
        return None
    return tuple(index for dim, index in enumerate(part) if not (dim in dims and shape[dim] == 1))


def select(local: Given, logical: Given, shapes: Shapes, parts: Parts, out: Shape) -> Region | None:
    """One index of a dim; the local op counts in the part."""
    part, shape = parts[0], shapes[0]
    if part is None or shape is None:
        return None
    dim = logical["dim"] % len(shape)
    if local["dim"] % len(shape) != dim:
        return None
    at, size = local["index"], length(part[dim])
    at = at + size if at < 0 else at
    if cut(part[dim], at, at + 1) != cut(whole(shape[dim]), *_one(logical["index"], shape[dim])):
        return None
    return (*part[:dim], *part[dim + 1 :])


def _one(index: int, size: int) -> tuple[int, int]:
    at = index + size if index < 0 else index
    return at, at + 1


def expand(local: Given, logical: Given, shapes: Shapes, parts: Parts, out: Shape) -> Region | None:
    """Repeat dims of size 1, all the way; other dims keep their part."""
    part, shape = parts[0], shapes[0]
    if part is None or shape is None or len(local["size"]) != len(out):
        return None
    new = len(out) - len(shape)
    region: list[Index] = []
    for dim, size in enumerate(local["size"]):
        if dim >= new and (shape[dim - new] == out[dim]):
            index = part[dim - new]
            if size not in (-1, length(index)):
                return None
            region.append(index)
        elif size > 0 and (dim < new or part[dim - new] == whole(1)):
            region.append(whole(size))  # a dim that repeats may be of any size
        else:
            return None
    return tuple(region)


def cat(local: Given, logical: Given, shapes: Shapes, parts: Parts, out: Shape) -> Region | None:
    """Parts whole along the joined dim, alike in the others."""
    dim = logical["dim"] % len(out)
    if local["dim"] % len(out) != dim:
        return None
    others: set[Region] = set()
    for part, shape in zip(parts, shapes, strict=True):
        if part is None or shape is None or part[dim] != whole(shape[dim]):
            return None
        others.add((*part[:dim], *part[dim + 1 :]))
    if len(others) != 1:
        return None
    rest = others.pop()
    return (*rest[:dim], whole(out[dim]), *rest[dim:])


def scatter(local: Given, logical: Given, shapes: Shapes, parts: Parts, out: Shape) -> Region | None:
    """A slice of a tensor replaced: both whole along the dim, alike in the others."""
    target, source, shape, size = parts[0], parts[1], shapes[0], shapes[1]
    if repr(local) != repr(logical) or target is None or source is None or shape is None or size is None:
        return None
    dim = logical["dim"] % len(shape)
    if target[dim] != whole(shape[dim]) or source[dim] != whole(size[dim]):
        return None
    if (*target[:dim], *target[dim + 1 :]) != (*source[:dim], *source[dim + 1 :]):
        return None
    return target


def slice_of(local: Given, part: Region) -> Region | None:
    """The region of a value that a slice of a part of it is."""
    dim = local["dim"] % len(part)
    held = length(part[dim])
    start, end, step = local["start"], local["end"], local["step"]
    if step == 1:
        index = cut(part[dim], *clamped(start, end, held))
    else:
        index = joined(cut(part[dim], at, at + 1) for at in range(held)[slice(start, end, step)])
    return (*part[:dim], index, *part[dim + 1 :])


MOVES: Final[dict[str, Callable[[Given, Given, Shapes, Parts, Shape], Region | None]]] = {
    "view": view,
    "reshape": view,
    "flatten": view,
    "permute": permute,
    "transpose": permute,
    "t": permute,
    "unsqueeze": unsqueeze,
    "squeeze": squeeze,
    "select": select,
    "expand": expand,
    "cat": cat,
    "slice_scatter": scatter,
}
