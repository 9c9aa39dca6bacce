"""The checker's view of what is right only where a rank has the rows an index points to, and of its masks.

A class of the rank's agrees with one of the Program's at the elements whose entry of an index tensor is in
lo..hi: down to the same classes, or to a lookup of rows lo..hi at the index less lo beside one of all. Every
step between is one that has a value everywhere, so that 0 times what is elsewhere is 0. An addend of letter
`?i` is a class where i is in lo..hi, and 0 elsewhere. Entries are numbers of elements, at most 2^22 of them.
Written apart from the prover.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from ._check_index import Index
from ._check_linear import single, value
from ._check_masked import _number
from ._check_masked_gather import _unshifted
from ._check_ops import CONTRACTIONS, ELEMENTWISE, FLOATS, letters
from ._check_piece import ONE, Shape, is_part
from ._check_sums import CheckSums, Limit, Rel, Term, is_rel, size

MAX_NUMBERS: Final = 1 << 22
MAX_DEEP: Final = 64
EVERYWHERE: Final = frozenset(
    "abs add add_n clamp cos cosh erf exp gelu gelu_backward hardsigmoid hardswish hardtanh leaky_relu "
    "maximum minimum mul neg relu rsub sigmoid sigmoid_backward silu silu_backward sin sinh square sub tanh "
    "tanh_backward".split()
)
"""Elementwise steps that have a value for every number."""
Choice = tuple[int, int, int]
"""Entries of an index tensor: its class, and from where to where."""


def conditional(values: Any, op: str, attrs: dict[str, Any], operands: Sequence[Any], claim: Any) -> bool:
    """Does a step make what is claimed because of a mask?"""
    if len(claim) != 1 or any(item is None and not is_rel(item) for item in operands):
        return False
    _, node, reg, limit = claim[0]
    if math.prod(values.defs[node].shape) > MAX_NUMBERS:
        return False
    if op == "index_put":
        return limit is None and _put(values, attrs, operands, claim[0])
    if limit is None or not values.is_whole(node, reg):
        return False
    if op in ("where", "masked_fill"):
        return _masked(values, op, operands, claim[0])
    if _product(values, op, attrs, operands, claim[0]):
        return True
    return op == "mul" and len(operands) == 2 and _product(values, op, attrs, operands[::-1], claim[0])


def range_of(values: CheckSums, table: Rel, index: Rel, dim: Any) -> tuple[int, int] | None:
    """(class, size) of an index tensor that is read from a table counted from 0."""
    if table is None or index is None or len(index) != 1 or index[0][0] != 1:
        return None
    _, node, reg, limit = index[0]
    if limit is not None or not values.is_whole(node, reg) or values.defs[node].free:
        return None
    shape = size(table[0][2])
    return node, shape[dim % len(shape)]


def choice_of(letter: str, index: Index) -> Choice | None:
    """What an addend's letter and its slice choose."""
    if not letter.startswith("?") or len(index.runs) != 1:
        return None
    ((lo, hi),) = index.runs
    return int(letter[1:]), lo, hi


def _masked(values: Any, op: str, operands: Sequence[Any], claim: Term) -> bool:
    coef, node, _, limit = claim
    mask, blank, kept = operands if op == "where" else (operands[1], operands[2], operands[0])
    if limit is None or limit[1] or len(limit[0]) != 1 or not is_rel(kept) or len(kept) != 1 or is_rel(blank):
        return False
    choice = choice_of(*limit[0][0])
    by, own, reg, inner = kept[0]
    shape = values.defs[node].shape
    numbers = np.arange(math.prod(shape)).reshape(shape)
    fits = (
        choice is not None and inner is None and by == coef and _full(values, own, reg) and value(blank) == 0
    )
    fits = fits and is_rel(mask) and _mask(values, mask) == choice
    return bool(fits and _agree(values, own, node, numbers, choice, 0))


def _mask(values: Any, mask: Any) -> Choice | None:
    """The entries of an index tensor that a mask (i < lo) | (i >= hi), or of i less a number, leaves."""
    if len(mask) != 1 or mask[0][0] != 1 or not _full(values, mask[0][1], mask[0][2]):
        return None
    item = values.defs[mask[0][1]]
    if item.op not in ("bitwise_or", "logical_or") or not all(is_part(part) for part in item.operands):
        return None
    if not all(part[2] == 1 and _full(values, part[0], part[1]) for part in item.operands):
        return None
    sides = {values.defs[part[0]].op: values.defs[part[0]].operands for part in item.operands}
    if sides.keys() != {"lt", "ge"} or sides["lt"][0] != sides["ge"][0] or not is_part(sides["lt"][0]):
        return None
    (node, reg, by), lo, hi = sides["lt"][0], _number(sides["lt"][1]), _number(sides["ge"][1])
    if lo is None or hi is None or by != 1 or not _full(values, node, reg):
        return None
    less = values.defs[node]
    if less.op == "sub" and "alpha" not in less.attrs and is_part(less.operands[0]):
        shift = _number(less.operands[1])
        node, reg, by = less.operands[0]
        if shift is None or by != 1 or not _full(values, node, reg):
            return None
        lo, hi = lo + shift, hi + shift
    return (node, lo, hi) if 0 <= lo < hi and values.defs[node].shape == item.shape else None


def _full(values: Any, node: int, reg: Any) -> bool:
    """All of a class that repeats along no dim."""
    item = values.defs[node]
    return not item.free and all(at.is_whole(n) for at, n in zip(reg, item.shape, strict=True))


# --- a step that is linear in what a mask leaves ------------------------------------------------------------


def _product(values: Any, op: str, attrs: dict[str, Any], operands: Sequence[Any], claim: Term) -> bool:
    coef, node, _, limit = claim
    item = values.defs[node]
    if limit is None or limit[0] or len(limit[1]) != 1 or item.form is not None or item.out or item.op != op:
        return False
    ((at, inner),) = limit[1]
    if op in ELEMENTWISE and op not in EVERYWHERE:
        return False
    same = repr(sorted(attrs.items())) == repr(sorted(item.attrs.items()))
    if not same or len(operands) != len(item.operands) or not single(op, item.attrs, item.operands, at):
        return False
    found = numbers_of(values, item.operands[at][0], inner) if is_part(item.operands[at]) else None
    spaces = _spaces(op, item.attrs, [size(p[1]) if is_part(p) else None for p in item.operands], item.shape)
    if found is None or spaces is None or item.dtype not in FLOATS:
        return False
    choice, numbers = found
    axes, _, rank = spaces
    meeting = _spread(numbers, axes[at], rank)
    factor = ONE
    for place, (mine, theirs) in enumerate(zip(operands, item.operands, strict=True)):
        if not is_rel(mine) or not is_part(theirs):
            if is_rel(mine) or is_part(theirs) or _spelled(mine) != theirs:
                return False
            continue
        if len(mine) != 1 or not values.is_whole(theirs[0], theirs[1]):
            return False
        by, own, reg, held = mine[0]
        if by != theirs[2] and not single(op, item.attrs, item.operands, place):
            return False
        factor *= by / theirs[2]
        if place == at and held is not None:
            if (own, held) != (theirs[0], inner) or not values.is_whole(own, reg):
                return False
        elif place == at:
            if not _full(values, own, reg) or not _left(values, own, theirs[0], inner):
                return False
        elif held is not None:
            return False
        elif own != theirs[0]:
            seen = _back(meeting, axes[place], size(theirs[1]))
            if (
                seen is None
                or not _full(values, own, reg)
                or not _agree(values, own, theirs[0], seen, choice, 0)
            ):
                return False
        elif not values.is_whole(own, reg) or size(reg) != size(theirs[1]):
            return False
    return factor == coef


def _spelled(item: Any) -> Any:
    return None if item is None else ("number", type(item).__name__, repr(item))


def _left(values: Any, own: int, node: int, limit: Limit) -> bool:
    """Is a class of the rank's what a mask leaves of a class, seen through views and transposes?"""
    mine, theirs = values.defs[own], values.defs[node]
    if limit is None:
        return False
    if mine.op in ("where", "masked_fill") and not limit[1] and len(limit[0]) == 1:
        order = (0, 1, 2) if mine.op == "where" else (1, 2, 0)
        mask, blank, kept = (mine.operands[place] for place in order)
        zero = values.zero(blank[0]) if is_part(blank) else value(blank) == 0
        if not zero or not is_part(mask) or not is_part(kept) or kept[2] != 1 or kept[0] != node:
            return False
        chosen = _mask(values, ((mask[2], mask[0], mask[1], None),))
        return chosen is not None and chosen == choice_of(*limit[0][0]) and _full(values, node, kept[1])
    if mine.op not in ("view", "permute") or mine.op != theirs.op or limit[0] or len(limit[1]) != 1:
        return False
    if mine.shape != theirs.shape or (mine.op == "permute" and mine.attrs["dims"] != theirs.attrs["dims"]):
        return False
    (one,), (other,) = mine.operands, theirs.operands
    whole = one[2] == other[2] == 1 and _full(values, one[0], one[1]) and _full(values, other[0], other[1])
    same = values.defs[one[0]].shape == values.defs[other[0]].shape
    return whole and same and limit[1][0][0] == 0 and _left(values, one[0], other[0], limit[1][0][1])


def _put(values: Any, attrs: dict[str, Any], operands: Sequence[Any], claim: Term) -> bool:
    """Are rows lo..hi of what an index adds up made of what a mask leaves, put at the index less lo?"""
    coef, node, reg, _ = claim
    item = values.defs[node]
    if item.op != "index_put" or len(operands) != 3 or len(item.operands) != 3 or coef != 1:
        return False
    if not attrs.get("accumulate") or not item.attrs.get("accumulate") or not all(map(is_rel, operands)):
        return False
    if not all(is_part(part) and len(rel) == 1 for part, rel in zip(item.operands, operands, strict=True)):
        return False
    zero, source, index = (rel[0] for rel in operands)
    if not values.zero(zero[1]) or not values.zero(item.operands[0][0]) or len(reg[0].runs) != 1:
        return False
    ((lo, hi),) = reg[0].runs
    rows = size(zero[2]) == size(reg) and all(
        r.is_whole(n) for r, n in zip(reg[1:], item.shape[1:], strict=True)
    )
    (their, outer, by), (named, every, once) = item.operands[1:]
    if not rows or source[:2] != (by, their) or source[3] is None or once != 1 or index[0] != 1:
        return False
    if not values.is_whole(their, source[2]) or not values.is_whole(their, outer) or index[3] is not None:
        return False
    found = numbers_of(values, their, source[3])
    shifted = _unshifted(values, index[1], lo, hi) if _full(values, index[1], index[2]) else None
    if found is None or shifted is None or found[0] != (named, lo, hi):
        return False
    own, mine, factor = shifted[1]
    if (own, factor) != (named, 1) or not _full(values, own, mine) or not _full(values, named, every):
        return False
    return _one_by_one(found[1], values.defs[named].shape)


# --- where a class of the rank's agrees with one of the Program's ------------------------------------------


def _agree(values: Any, own: int, node: int, numbers: Any, choice: Any, deep: int) -> bool:
    """Do two classes agree at the elements whose entry is chosen? `numbers`: which entry each asks."""
    if own == node:
        return True
    mine, theirs = values.defs[own], values.defs[node]
    alike = (mine.op, mine.out, mine.shape, mine.dtype) == (theirs.op, theirs.out, theirs.shape, theirs.dtype)
    if not alike or mine.form is not None or mine.out or mine.free or theirs.free or deep > MAX_DEEP:
        return False
    if mine.op == "index":
        return _looked_up(values, mine, theirs, numbers, choice)
    attrs = [{**item.attrs, "size": None} if item.op == "view" else item.attrs for item in (mine, theirs)]
    if repr(sorted(attrs[0].items())) != repr(sorted(attrs[1].items())):
        return False
    shapes = [size(part[1]) if is_part(part) else None for part in theirs.operands]
    if mine.op == "view":
        backs: list[Any] = [numbers.reshape(shapes[0])]
    elif mine.op in ELEMENTWISE and mine.op not in EVERYWHERE:
        return False
    else:
        spaces = _spaces(mine.op, mine.attrs, shapes, mine.shape)
        if spaces is None:
            return False
        axes, out, rank = spaces
        meeting = _spread(numbers, out, rank)
        backs = [None if s is None else _back(meeting, a, s) for a, s in zip(axes, shapes, strict=True)]
    for one, other, back in zip(mine.operands, theirs.operands, backs, strict=True):
        if one == other:
            continue
        if not is_part(one) or not is_part(other) or one[2] != other[2] or back is None:
            return False
        if not _full(values, one[0], one[1]) or not _full(values, other[0], other[1]):
            return False
        if not _agree(values, one[0], other[0], back, choice, deep + 1):
            return False
    return True


def _looked_up(values: Any, mine: Any, theirs: Any, numbers: Any, choice: Any) -> bool:
    """Rows lo..hi of a table at an index less lo, beside all rows at the index itself."""
    if len(mine.operands) != 2 or not all(
        is_part(p) and p[2] == 1 for p in (*mine.operands, *theirs.operands)
    ):
        return False
    (table, rows, _), (places, spots, _) = mine.operands
    (full, every, _), (named, all_spots, _) = theirs.operands
    node, lo, hi = choice
    if (
        table != full
        or named != node
        or not _full(values, full, every)
        or not _full(values, named, all_spots)
    ):
        return False
    if rows[0] != Index(((lo, hi),)) or rows[1:] != every[1:] or not _full(values, places, spots):
        return False
    found = _unshifted(values, places, lo, hi)
    if found is None or found[1][0] != node or found[1][2] != 1 or not _full(values, node, found[1][1]):
        return False
    return values.ranges.get(node, hi) <= len(every[0]) and _one_by_one(numbers, values.defs[node].shape)


def _one_by_one(numbers: Any, shape: Shape) -> bool:
    """Does every element ask the entry that stands where its first dims do?"""
    spots = np.arange(math.prod(shape)).reshape(*shape, *(1 for _ in numbers.shape[len(shape) :]))
    if numbers.shape[: len(shape)] != shape:
        return False
    return bool((np.broadcast_to(spots, numbers.shape) == numbers).all())


def numbers_of(values: Any, node: int, limit: Limit) -> Any:
    """(what an addend is chosen by, which entry every element of its class asks); None where several."""
    item = values.defs[node]
    if limit is None or math.prod(item.shape) > MAX_NUMBERS:
        return None
    if limit[0]:
        choice = choice_of(*limit[0][0]) if len(limit[0]) == 1 and not limit[1] else None
        return None if choice is None else (choice, np.arange(math.prod(item.shape)).reshape(item.shape))
    if len(limit[1]) != 1 or item.form is not None:
        return None
    ((at, inner),) = limit[1]
    part = item.operands[at]
    if not is_part(part) or not values.is_whole(part[0], part[1]):
        return None
    found = numbers_of(values, part[0], inner)
    if found is None:
        return None
    choice, numbers = found
    if item.op == "view":
        return choice, numbers.reshape(item.shape)
    shapes = [size(p[1]) if is_part(p) else None for p in item.operands]
    spaces = _spaces(item.op, item.attrs, shapes, item.shape)
    if spaces is None:
        return None
    axes, out, rank = spaces
    made = _back(_spread(numbers, axes[at], rank), out, item.shape)
    return None if made is None else (choice, made)


# --- where operands meet ------------------------------------------------------------------------------------


def _spaces(op: str, attrs: dict[str, Any], shapes: Sequence[Any], out: Shape) -> Any:
    """For each operand and for the result, which axes of the places where they meet its dims go along."""
    if op == "permute":
        return [tuple(attrs["dims"].index(d) for d in range(len(out)))], tuple(range(len(out))), len(out)
    if op in ELEMENTWISE:
        axes = [
            None
            if shape is None
            else tuple(
                len(out) - len(shape) + d if n == out[len(out) - len(shape) + d] else None
                for d, n in enumerate(shape)
            )
            for shape in shapes
        ]
        return axes, tuple(range(len(out))), len(out)
    if op == "sum" and "dtype" not in attrs:
        rank, dims = len(shapes[0]), attrs["dim"]
        kept = [None if d in dims else d for d in range(rank) if attrs.get("keepdim") or d not in dims]
        return [tuple(range(rank))], tuple(kept), rank
    if op in CONTRACTIONS and None not in shapes and len(shapes) == 2:
        terms, left = letters(op, attrs, shapes)
        known = [*left, *sorted({c for term in terms for c in term} - set(left))]
        return [tuple(map(known.index, term)) for term in terms], tuple(range(len(left))), len(known)
    return None


def _spread(numbers: Any, axes: Any, rank: int) -> Any:
    """An array over the places where operands meet, of size 1 along axes that it does not go along."""
    dims = [d for d, axis in enumerate(axes) if axis is not None]
    for d in range(len(axes)):
        if d not in dims:
            numbers = numbers.take([0], axis=d)
    order = sorted(dims, key=lambda d: axes[d])
    moved = numbers.transpose([*order, *(d for d in range(len(axes)) if d not in dims)])
    shape = [1] * rank
    for place, d in enumerate(order):
        shape[axes[d]] = moved.shape[place]
    return moved.reshape(shape)


def _back(meeting: Any, axes: Any, shape: Shape) -> Any:
    """The array over an operand (or result); None where an element of it meets several entries."""
    for axis in range(meeting.ndim):
        if axis not in axes:
            thin = meeting.take([0], axis=axis)
            if not (thin == meeting).all():
                return None
            meeting = thin
    there = [axis for axis in axes if axis is not None]
    rest = [axis for axis in range(meeting.ndim) if axis not in there]
    moved = meeting.transpose([*there, *rest]).reshape([meeting.shape[axis] for axis in there])
    for d, axis in enumerate(axes):
        if axis is None:
            moved = np.expand_dims(moved, d)
    return np.broadcast_to(moved, shape)
