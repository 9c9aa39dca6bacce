"""Which indices of one dim a part of a value holds, in order, as the checker carries them: runs of integers.

An `Index` has one spelling (no run is empty, no two neighbours could be one), so equal means equal runs.
It costs what its runs cost, whatever they span. It cannot be iterated: what is asked member by member
says so (`members`) and is bounded. Written apart from the prover's.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any, ClassVar, Final, TypeAlias

import numpy as np

from tensure.errors import LimitError
from tensure.program import Affine, Undecided, axes_in

MAX_LISTED: Final = 1 << 22
"""Members of one Index that are looked at one by one, and runs that one is made of."""
MAX_CELLS: Final = 1 << 26
"""Cells between the ends of runs when it is decided whether parts cover a value."""
Run: TypeAlias = tuple[int, int]


class Index:
    """Members of a dim in local order.

    Args:
        runs: (start, stop) pairs in their one spelling; use `joined` for runs that may not be.
    """

    __slots__ = ("_axes", "_count", "_hash", "_rising", "_starts", "runs")
    __iter__: ClassVar[None] = None  # `len` counts members, so that iterating over runs would mislead

    def __init__(self, runs: tuple[Run, ...]) -> None:
        self.runs = runs
        if len(runs) == 1:
            ((start, stop),) = runs
            self._count = stop - start
        else:
            self._count = sum(stop - start for start, stop in runs)
        self._hash = hash(runs)
        self._rising: tuple[Run, ...] | None = None
        self._starts: list[int] | None = None
        self._axes: frozenset[str] | None = None

    def __len__(self) -> int:
        return self._count

    def __eq__(self, other: object) -> bool:
        # Of many places, the same at each is what the same expressions are; the hash keeps others out.
        return self is other or (
            isinstance(other, Index) and self._hash == other._hash and self.runs == other.runs
        )

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return f"Index({', '.join(f'{start}:{stop}' for start, stop in self.runs)})"

    def __getitem__(self, part: slice) -> Index:
        """The members at the positions of a slice.

        Raises:
            LimitError: a step other than 1 that takes over 2^22 of them.
        """
        if part.step in (None, 1) and any(isinstance(end, Affine) for end in (part.start, part.stop)):
            ends = (0 if part.start is None else part.start, self._count if part.stop is None else part.stop)
            if not (0 <= ends[0] < ends[1] <= self._count):
                raise LimitError("a slice of many places that is not inside at each")
            return self.select(Index((ends,)))
        spots = range(self._count)[part]
        if spots.step == 1:
            return self.select(Index(((spots.start, spots.stop),)) if spots else EMPTY)
        return self.select(_listed(spots))

    @property
    def axes(self) -> frozenset[str]:
        """The axes that ends of its runs depend on."""
        if self._axes is None:
            self._axes = axes_in(self.runs)
        return self._axes

    @property
    def stop(self) -> int:
        """One more than the largest member; 0 of none."""
        if len(self.runs) == 1:
            return self.runs[0][1]
        return max((stop for _, stop in self.runs), default=0)

    @property
    def start(self) -> int:
        """The smallest member; 0 of none."""
        if len(self.runs) == 1:
            return self.runs[0][0]
        return min((start for start, _ in self.runs), default=0)

    @property
    def distinct(self) -> bool:
        """No member stands twice."""
        return len(self.runs) < 2 or sum(stop - start for start, stop in self.rising()) == self._count

    def rising(self) -> tuple[Run, ...]:
        """The runs of the set of its members, in rising order."""
        if self._rising is None and len(self.runs) < 2:
            self._rising = self.runs
        if self._rising is None:
            made: list[Run] = []
            for start, stop in sorted(self.runs):
                if made and start <= made[-1][1]:
                    made[-1] = (made[-1][0], max(stop, made[-1][1]))
                else:
                    made.append((start, stop))
            self._rising = tuple(made)
        return self._rising

    def is_whole(self, size: int) -> bool:
        """Every index of a dim of this size, in order."""
        if not size:
            return not self.runs
        return self._count == size and self.runs == ((0, size),)

    def reorders(self, other: Index) -> bool:
        """The members of another in any order, in both each of them once."""
        if len(self.runs) < 2 and len(other.runs) < 2:
            return self == other
        return (
            self._count == other._count
            and self.rising() == other.rising()
            and self.distinct
            and other.distinct
        )

    def holds(self, member: int) -> bool:
        """Whether it is one of its members."""
        runs = self.rising()
        if self._starts is None:
            self._starts = [start for start, _ in runs]
        at = bisect_right(self._starts, member) - 1
        return at >= 0 and member < runs[at][1]

    def shifted(self, by: int) -> Index:
        """Every member more by a number."""
        if isinstance(by, int) and by == 0:
            return self
        return Index(tuple((start + by, stop + by) for start, stop in self.runs))

    def select(self, positions: Index) -> Index:
        """The members at these positions.

        Raises:
            IndexError: there is no such position.
        """
        if positions.is_whole(self._count):
            return self
        if positions.start < 0 or positions.stop > self._count:
            raise IndexError(f"{positions} of {self._count} members")
        if len(self.runs) == 1:
            return positions.shifted(self.runs[0][0])
        ends = list(accumulate(stop - start for start, stop in self.runs))
        made: list[Run] = []
        for first, last in positions.runs:
            at = bisect_right(ends, first)
            while first < last:
                start, stop = self.runs[at]
                begin = start + first - (ends[at] - (stop - start))
                end = min(stop, begin + last - first)
                made.append((begin, end))
                first, at = first + end - begin, at + 1
        return joined(made)

    def within(self, outer: Index) -> Index | None:
        """The positions in another of its members; None where one is missing or stands there twice.

        Of many places, None too where at some it is inside and at others not.
        """
        if self == outer:
            return all_of(self._count)
        try:
            return self._within(outer)
        except Undecided:
            return None

    def _within(self, outer: Index) -> Index | None:
        if len(outer.runs) == 1:
            ((first, last),) = outer.runs
            if any(start < first or stop > last for start, stop in self.runs):
                return None
            return Index(tuple((start - first, stop - first) for start, stop in self.runs))
        if not outer.distinct:
            return None
        placed, passed = list[tuple[int, int, int]](), 0
        for start, stop in outer.runs:
            placed.append((start, stop, passed - start))
            passed += stop - start
        placed.sort()
        starts = [start for start, _, _ in placed]
        made: list[Run] = []
        for start, stop in self.runs:
            at = bisect_right(starts, start) - 1
            while start < stop:
                if not 0 <= at < len(placed) or not placed[at][0] <= start < placed[at][1]:
                    return None
                end = min(stop, placed[at][1])
                made.append((start + placed[at][2], end + placed[at][2]))
                start, at = end, at + 1
        return joined(made)

    def members(self) -> list[int]:
        """All members.

        Raises:
            LimitError: over 2^22 of them.
        """
        if self._count > MAX_LISTED:
            raise LimitError(f"{self._count} indices of a dim, one by one", wanted=f"at most {MAX_LISTED}")
        return [start + at for start, stop in self.runs for at in range(stop - start)]


@dataclass(frozen=True, slots=True)
class Anywhere:
    """A part of a dim along which a value only repeats: says how many, and stands anywhere."""

    count: int

    def __len__(self) -> int:
        return self.count


EMPTY: Final = Index(())
FIRST: Final = Index(((0, 1),))
"""The one index of a dim of size 1."""


@lru_cache(1 << 12)
def all_of(size: int) -> Index:
    """Every index of a dim."""
    return Index(((0, size),)) if size else EMPTY


def joined(runs: Iterable[Run]) -> Index:
    """Runs one after another."""
    made: list[Run] = []
    for start, stop in runs:
        if start >= stop:
            continue
        if made and made[-1][1] == start:
            made[-1] = (made[-1][0], stop)
        else:
            made.append((start, stop))
    return Index(tuple(made))


def index_of(members: Sequence[int]) -> Index:
    """An Index from its members."""
    if len(members) < 64 or isinstance(members[0], Affine):  # numpy costs more, and knows integers
        return joined((member, member + 1) for member in members)
    array = np.asarray(members, dtype=np.int64)
    breaks = np.flatnonzero(np.diff(array) != 1) + 1
    starts = array[np.concatenate(([0], breaks))].tolist()
    stops = (array[np.concatenate((breaks - 1, [array.size - 1]))] + 1).tolist()
    return Index(tuple(zip(starts, stops, strict=True)))


def concatenated(parts: Iterable[Index]) -> Index:
    """Several Indexes one after another."""
    return joined(run for part in parts for run in part.runs)


def _listed(spots: range) -> Index:
    if len(spots) > MAX_LISTED:
        raise LimitError(f"a slice of {len(spots)} indices apart", wanted=f"at most {MAX_LISTED}")
    return index_of(spots)


# --- parts of tensors: an Index for each dim --------------------------------------------------------------


def selected(outer: Sequence[Index], spots: Sequence[Index]) -> tuple[Index, ...]:
    """A part of a part, dim by dim."""
    return tuple(index.select(at) for index, at in zip(outer, spots, strict=True))


def flattened(part: Sequence[Index], shape: Sequence[int], most: int) -> Index | None:
    """The numbers of a part's elements in row-major order; None where they are over `most` runs."""
    flat = FIRST
    for index, size in zip(part, shape, strict=True):
        if index.is_whole(size):
            flat = Index(tuple((start * size, stop * size) for start, stop in flat.runs))
            continue
        if len(flat) * len(index.runs) > most:
            return None
        flat = joined(
            (row * size + start, row * size + stop) for row in flat.members() for start, stop in index.runs
        )
    return flat


def unflattened(flat: Index, shape: Sequence[int]) -> tuple[Index, ...] | None:
    """The part of a tensor whose elements, in row-major order, have these numbers; None where none has.

    From the last dim on: the numbers must be those of rows, times one and the same part of each row.
    """
    if not flat.runs or flat.start < 0 or flat.stop > math.prod(shape):
        return None
    made: list[Index] = []
    for size in reversed(shape):
        if all((stop - start) % size == 0 and start % size == 0 for start, stop in flat.runs):
            made.append(all_of(size))
            flat = Index(tuple((start // size, stop // size) for start, stop in flat.runs))
            continue
        row, inner = flat.runs[0][0] // size, list[Run]()
        for start, stop in flat.runs:  # what stands in the first row
            if start // size != row:
                break
            inner.append((start - row * size, min(stop - row * size, size)))
            if stop - row * size > size:
                break
        column = joined(inner)
        if len(flat) > len(column) * len(flat.runs):  # each part of a row that is not all of it ends a run
            return None
        rows = [number // size for number in flat[:: len(column)].members()]
        if flat != joined((r * size + start, r * size + stop) for r in rows for start, stop in column.runs):
            return None
        made.append(column)
        flat = index_of(rows)
    return tuple(reversed(made)) if flat == FIRST else None


def covers(parts: Iterable[Sequence[Index]], shape: Sequence[int]) -> bool:
    """Is every element of a tensor in one of the parts? Exact, by the cells between the ends of runs.

    Raises:
        LimitError: over 2^26 cells.
    """
    known = {tuple(part) for part in parts}
    if any(all(index.is_whole(size) for index, size in zip(part, shape, strict=True)) for part in known):
        return True
    if not all(shape):
        return True
    edges = [
        sorted({0, size, *(end for part in known for run in part[dim].runs for end in run)})
        for dim, size in enumerate(shape)
    ]
    if math.prod(len(cuts) - 1 for cuts in edges) > MAX_CELLS:
        raise LimitError(f"parts with {[len(cuts) - 1 for cuts in edges]} cells of shape {list(shape)}")
    if any((cuts[0], cuts[-1]) != (0, size) for cuts, size in zip(edges, shape, strict=True)):
        return False  # a part of what there is not
    seen: Any = np.zeros([len(cuts) - 1 for cuts in edges], np.bool_)
    places = [{edge: at for at, edge in enumerate(cuts)} for cuts in edges]
    for part in known:
        spots = [
            np.asarray([at for start, stop in index.runs for at in range(place[start], place[stop])], np.intp)
            for index, place in zip(part, places, strict=True)
        ]
        seen[np.ix_(*spots)] = True
    return bool(seen.all())
