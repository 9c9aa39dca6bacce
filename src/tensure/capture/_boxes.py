"""Sets of places in a mesh as boxes: an interval of coordinates along every axis.

Sets are arrays of truth over the whole mesh, so what ranks have in common is computed for all at once, and
never rank by rank.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from ._form import Condition

__all__ = ["Box", "Cells", "boxes_of", "corner", "is_closed", "members", "outside", "size"]

Box: TypeAlias = "tuple[tuple[int, int], ...]"
"""Along each axis in mesh order: first coordinate, and one past the last."""
Mask: TypeAlias = "np.ndarray[Any, np.dtype[np.bool_]]"


def corner(box: Box) -> tuple[int, ...]:
    """Its first place."""
    return tuple(low for low, _ in box)


def size(box: Box) -> int:
    """How many places it has."""
    total = 1
    for low, high in box:
        total *= high - low
    return total


def members(conditions: Iterable[Condition], box: Box, axes: Sequence[str]) -> Mask:
    """Which places of a box meet the conditions; the array has the box's shape."""
    found = np.ones(tuple(high - low for low, high in box), np.bool_)
    grid: Mapping[str, Any] = {
        name: np.arange(low, high).reshape([-1 if at == other else 1 for other in range(len(box))])
        for at, (name, (low, high)) in enumerate(zip(axes, box, strict=True))
    }
    for condition in conditions:
        found &= condition.holds(grid)
    return found


def boxes_of(mask: Mask, box: Box) -> list[Box]:
    """The places of a box that are in a set, as few disjoint boxes; the first holds the first of them."""
    if not box:
        return [()] if mask.all() else []
    (low, _), rest = box[0], box[1:]
    rows = mask.reshape(mask.shape[0], -1)
    turns = np.flatnonzero((rows[1:] != rows[:-1]).any(1)) + 1
    ends = [0, *map(int, turns), mask.shape[0]]
    return [
        ((low + first, low + last), *inner)
        for first, last in zip(ends, ends[1:], strict=False)
        if rows[first].any()
        for inner in boxes_of(mask[first], rest)
    ]


def outside(box: Box, at: int, bounds: tuple[int, int]) -> list[Box]:
    """A box cut along one axis: what lies within the bounds first, then what lies before and after."""
    low, high = box[at]
    cuts = ((max(low, bounds[0]), min(high, bounds[1])), (low, bounds[0]), (bounds[1], high))
    return [(*box[:at], cut, *box[at + 1 :]) for cut in cuts if cut[0] < cut[1]]


class Cells:
    """A mesh cut wherever one of some boxes begins or ends: every box is a product of runs of cells."""

    def __init__(self, boxes: Sequence[Box], shape: Sequence[int]) -> None:
        self._cuts = [
            sorted({0, length, *(bound for box in boxes for bound in box[at])})
            for at, length in enumerate(shape)
        ]

    def none(self) -> Mask:
        """No cell."""
        return np.zeros([len(cuts) - 1 for cuts in self._cuts], np.bool_)

    def add(self, mask: Mask, box: Box) -> None:
        """The cells of one of the boxes."""
        runs = (
            slice(cuts.index(low), cuts.index(high))
            for cuts, (low, high) in zip(self._cuts, box, strict=True)
        )
        mask[tuple(runs)] = True


def is_closed(mask: Mask, along: Collection[int]) -> bool:
    """Whether with a place all those are in it that differ from it along these axes only."""
    return bool((mask.any(axis=tuple(along), keepdims=True) == mask).all())
