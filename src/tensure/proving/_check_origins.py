"""The checker's view of tensors seen through views and transposes: are two the very same elements of one?

Followed element by element, by their numbers, down to what is no move; so only where there are few enough.
Written apart from the prover.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from ._check_piece import Reg, Shape, is_part
from ._check_sums import Term

MAX_ELEMENTS: Final = 1 << 20
MAX_MOVES: Final = 16

Numbers = np.ndarray[Any, np.dtype[np.int64]]


def same_elements(values: Any, one: Term, other: Term) -> bool:
    """Are two parts, seen through views and transposes, the same elements in the same order?"""
    if one[3] is not None or other[3] is not None:
        return False
    found, wanted = _origin(values, one), _origin(values, other)
    if found is None or wanted is None or found[:2] != wanted[:2]:
        return False
    return bool(np.array_equal(found[2], wanted[2]))


def _origin(values: Any, term: Term) -> tuple[Any, int, Numbers] | None:
    """Of which value these are elements, times what, and which, counted row by row; None for too many."""
    coef, node, reg, _ = term
    numbers = _numbered(reg, values.defs[node].shape)
    for _ in range(MAX_MOVES):
        item = values.defs[node]
        if numbers is None:
            return None
        if item.free:  # it only repeats there: all places are the first
            at = [
                np.zeros_like(index) if dim in item.free else index
                for dim, index in enumerate(np.unravel_index(numbers, item.shape))
            ]
            numbers = np.ravel_multi_index(at, item.shape)
        if item.op not in ("view", "permute") or not is_part(item.operands[0]):
            return coef, node, numbers
        inner, outer, by = item.operands[0]
        coef = coef * by
        if item.op == "permute":
            seen = np.unravel_index(numbers, item.shape)
            dims = item.attrs["dims"]
            shape = tuple(len(index) for index in outer)
            numbers = np.ravel_multi_index([seen[dims.index(dim)] for dim in range(len(dims))], shape)
        there = _numbered(outer, values.defs[inner].shape)
        numbers, node = None if there is None else there.reshape(-1)[numbers], inner
    return None


def _numbered(reg: Reg, shape: Shape) -> Numbers | None:
    """The elements of a part, each by its number in the whole; None where they are too many or no numbers."""
    if any(index.axes for index in reg) or not all(isinstance(n, int) for n in shape):
        return None
    sizes = [len(index) for index in reg]
    if math.prod(sizes) > MAX_ELEMENTS or any(index.stop > n for index, n in zip(reg, shape, strict=True)):
        return None
    if not shape:
        return np.zeros((), np.int64)
    grid = np.ix_(*(np.asarray(index.members(), np.int64) for index in reg))
    return np.asarray(np.ravel_multi_index(np.broadcast_arrays(*grid), shape), np.int64)
