"""Which indices of one dim a local tensor holds, in order: runs of consecutive integers.

An Index has one spelling (maximal runs), so equal Indexes are equal tuples. A region is an Index for
each dim. Knows nothing of ops.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np

from tensure.program import Undecided, axes_in

Index: TypeAlias = tuple[tuple[int, int], ...]
"""(start, stop) runs, in local order; no run is empty and no two neighbours could be one."""
Region: TypeAlias = tuple[Index, ...]
Shape: TypeAlias = tuple[int, ...]


def whole(size: int) -> Index:
    """Every index of a dim."""
    return ((0, size),) if size else ()


def free_index(index: Index) -> Index:
    """As many indices of a dim along which a value repeats, wherever they stand: no index of a tensor."""
    return ((-length(index), 0),) if index else ()


def is_free(index: Index) -> bool:
    """Whether an Index says only how many."""
    return bool(index) and index[0][0] < 0


def whole_region(shape: Shape) -> Region:
    """All of a tensor."""
    return tuple(whole(size) for size in shape)


def length(index: Index) -> int:
    """How many indices there are."""
    return sum(stop - start for start, stop in index)


def shape_of(region: Region) -> Shape:
    """The shape of the local that holds a region."""
    return tuple(length(index) for index in region)


def joined(parts: Iterable[Index]) -> Index:
    """Several Indexes one after another."""
    runs: list[tuple[int, int]] = []
    for part in parts:
        for start, stop in part:
            if start == stop:
                continue
            if runs and runs[-1][1] == start:
                runs[-1] = (runs[-1][0], stop)
            else:
                runs.append((start, stop))
    return tuple(runs)


def index_of(values: Sequence[int]) -> Index:
    """An Index from its members."""
    if len(values) < 64 or axes_in(tuple(values[:1])):  # numpy costs more than it saves, and knows integers
        return joined([tuple((value, value + 1) for value in values)])
    array = np.asarray(values, dtype=np.int64)
    breaks = np.flatnonzero(np.diff(array) != 1) + 1
    starts = array[np.concatenate(([0], breaks))]
    stops = array[np.concatenate((breaks - 1, [array.size - 1]))] + 1
    return tuple(zip(starts.tolist(), stops.tolist(), strict=True))


def members(index: Index) -> list[int]:
    """The integers of an Index."""
    return [start + at for start, stop in index for at in range(stop - start)]


def distinct(index: Index) -> bool:
    """Whether no member stands twice."""
    if len(index) < 2:
        return True
    if axes_in(index):
        return len(set(members(index))) == length(index)
    runs = sorted(index)
    return all(one[1] <= other[0] for one, other in zip(runs, runs[1:], strict=False))


def cut(index: Index, lo: int, hi: int) -> Index:
    """The members at positions lo..hi."""
    runs: list[tuple[int, int]] = []
    passed = 0
    for start, stop in index:
        begin, end = max(lo - passed, 0), min(hi - passed, stop - start)
        if begin < end:
            runs.append((start + begin, start + end))
        passed += stop - start
    return joined([tuple(runs)])


def clamped(start: int | None, end: int | None, size: int) -> tuple[int, int]:
    """The positions a slice with step 1 takes, as Python has it."""
    ends = (0 if start is None else start, size if end is None else end)
    lo, hi = (min(max(at + size if at < 0 else at, 0), size) for at in ends)
    return lo, max(lo, hi)


def select(index: Index, positions: Index) -> Index:
    """The members at the given positions: what `positions` of a local mean in the whole."""
    if positions == whole(length(index)):
        return index
    return joined(cut(index, start, stop) for start, stop in positions)


def relative(index: Index, outer: Index) -> Index | None:
    """The positions in `outer` of the members of `index`; None when one is missing or stands twice."""
    if outer == index:
        return whole(length(outer))
    if len(outer) == 1:
        ((first, last),) = outer
        try:
            inside = all(first <= start and stop <= last for start, stop in index)
        except Undecided:  # at some places only
            return None
        return tuple((start - first, stop - first) for start, stop in index) if inside else None
    where = {value: position for position, value in enumerate(members(outer))}
    if len(where) != length(outer):
        return None
    wanted = members(index)
    if not all(value in where for value in wanted):
        return None
    return index_of([where[value] for value in wanted])


def covers(regions: Sequence[Region], shape: Shape) -> int:
    """How many elements of a tensor no region holds; exact, by cells between the runs' ends."""
    if not shape:
        return 0 if regions else 1
    edges = [
        sorted({0, size, *(end for region in regions for run in region[dim] for end in run)})
        for dim, size in enumerate(shape)
    ]
    filled = np.zeros([max(len(cuts) - 1, 0) for cuts in edges], np.bool_)
    for region in regions:
        spots = []
        for cuts, index in zip(edges, region, strict=True):
            place = {edge: at for at, edge in enumerate(cuts)}
            spots.append([at for start, stop in index for at in range(place[start], place[stop])])
        filled[np.ix_(*spots)] = True
    sizes = np.ones((), np.int64)
    for cuts in edges:
        sizes = np.multiply.outer(sizes, np.diff(np.asarray(cuts, np.int64)))
    return int(sizes[~filled].sum())


def format_index(index: Index) -> str:
    """`0:3,5:6`, as in a claim."""
    return ",".join(f"{start}:{stop}" for start, stop in index) or "nothing"
