"""The checker's ranks, those along some axes as one, and what a claim of many places is at each.

Along a folded axis a coordinate is an `Affine`, which answers only what has one answer at every place: what
the checker does for a cell it thereby does for each of its ranks. Written apart from the prover's.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, TypeAlias

from tensure.bundle import Plan, Rank
from tensure.errors import LimitError
from tensure.program import Undecided, at_place, coordinate

from ._check_index import Index, joined, selected
from ._check_piece import Reg
from ._check_sums import Term, need

Spot: TypeAlias = tuple[int, ...]
NO_AXES: Final[frozenset[str]] = frozenset()
MAX_CELLS: Final = 1 << 12
MAX_SPOTS: Final = 1 << 14
"""Places of one collective or sum."""


class CheckCells:
    """Every rank of a Plan in exactly one cell.

    Args:
        folded: the axes along which ranks are taken together.
    """

    def __init__(self, plan: Plan, folded: Sequence[str]) -> None:
        need(len(set(folded) & plan.mesh.keys()) == len(folded), "it folds axes that there are not")
        self._plan, self.folded = plan, frozenset(folded)
        self.boxes: dict[Rank, dict[str, range]] = {}
        for label, track in plan.tracks.items():
            stands = dict(zip(track.axes, plan.places(label), strict=True))
            own = {key: range(at, at + 1) for key, at in track.fixed if key in plan.mesh}
            for box in itertools.product(*(self._cut(axis, at) for axis, at in stands.items())):
                at = tuple(coordinate(axis, r.start, r.stop) for axis, r in zip(stands, box, strict=True))
                self.boxes[Rank(label, at)] = {**dict(zip(stands, box, strict=True)), **own}
                if len(self.boxes) > MAX_CELLS:
                    raise LimitError(f"over {MAX_CELLS} ranks", wanted="more axes along which they are one")

    def _cut(self, axis: str, stands: range) -> list[range]:
        """The places along an axis, cut where any track begins, ends, or stands alone."""
        if axis not in self.folded:
            return [range(at, at + 1) for at in stands]
        ends = {stands.start, stands.stop}
        for track in self._plan.tracks.values():
            for key, lo, hi in track.spans:
                ends |= {lo, hi} if key == axis else set()
            for key, at in track.fixed:
                ends |= {at, at + 1} if key == axis else set()
        inside = sorted(end for end in ends if stands.start <= end <= stands.stop)
        return [range(lo, hi) for lo, hi in itertools.pairwise(inside)]

    def places(self, rank: Rank) -> dict[str, Any]:
        """The coordinates of a cell's ranks along every axis they stand on."""
        return {axis: coordinate(axis, at.start, at.stop) for axis, at in self.boxes[rank].items()}

    def group(self, rank: Rank, axes: Sequence[str], op: str) -> tuple[Rank, ...]:
        """The cells of all ranks that stand where this one's do along the other axes, in mesh order."""
        own, track = self.boxes[rank], self._plan.tracks[rank.track]
        alone = set(axes) <= set(track.axes) - {axis for axis, _, _ in track.spans}
        spots = dict[tuple[tuple[int, int], ...], Rank]()
        for other, box in self.boxes.items():
            if alone and other.track != rank.track:
                continue
            if any(box.get(axis, at) != at for axis, at in own.items() if axis not in axes):
                continue
            need(box.keys() == own.keys(), f"{rank}: is {other} a member of {op} over {axes}?")
            at = tuple((box[axis].start, box[axis].stop) for axis in self._plan.mesh if axis in axes)
            need(at not in spots, f"{rank}: two members of {op} at one place")
            spots[at] = other
        # Cells are cut at the same places for all tracks, so that they are the same or apart.
        members = sum(math.prod(hi - lo for lo, hi in at) for at in spots)
        every = math.prod(self._plan.mesh[axis] for axis in axes)
        need(members == every, f"{rank}: {op} over {axes} where a rank is missing")
        return tuple(spots[at] for at in sorted(spots))

    def spots(self, rank: Rank, axes: Sequence[str]) -> Iterator[tuple[Spot, dict[str, int]]]:
        """Every place of a cell along some axes: where it is in mesh order, and its folded coordinates."""
        over = {axis: self.boxes[rank][axis] for axis in self._plan.mesh if axis in axes}
        if math.prod(map(len, over.values())) > MAX_SPOTS:
            raise LimitError(f"{rank} along {', '.join(over)}", wanted=f"at most {MAX_SPOTS} places")
        for spot in itertools.product(*over.values()):
            place = dict(zip(over, spot, strict=True))
            yield spot, {axis: at for axis, at in place.items() if axis in self.folded}

    def everywhere(self, rank: Rank, part: Reg) -> Iterator[Reg]:
        """The parts of a value that a part of many places is."""
        axes = NO_AXES.union(*(index.axes for index in part))
        for _, place in self.spots(rank, sorted(axes)):
            yield reg_at(part, place)


def differs(rel: Sequence[Term], families: Mapping[int, frozenset[str]]) -> frozenset[str]:
    """The axes along which a relation is another at every place."""
    found = NO_AXES
    for _, node, reg, limit in rel:
        found = found.union(*(index.axes for index in reg), families.get(node, NO_AXES))
        if limit is not None:
            found = found.union(*_through(limit, families), *_sliced(limit))
    return found


def _sliced(limit: Any) -> Iterator[frozenset[str]]:
    for _, index in limit[0]:
        yield index.axes
    for _, inner in limit[1]:
        yield from _sliced(inner)


def rel_at(
    rel: Sequence[Term],
    place: Mapping[str, int],
    families: Mapping[int, frozenset[str]],
    instance: Callable[[int, Mapping[str, int]], Term],
) -> tuple[Term, ...]:
    """What a relation of many places is at some.

    Args:
        families: the axes along which classes are others at every place.
        instance: what such a class is at a place, all of it.

    Raises:
        Undecided: it is an addend of a value that is another at every place.
    """
    if not place:
        return tuple(rel)
    made: list[Term] = []
    for coef, node, reg, limit in rel:
        part = reg_at(reg, place)
        if families:
            apart = families.get(node, NO_AXES) & place.keys()
            through = NO_AXES.union(*_through(limit, families)) & place.keys()
            if through or (apart and limit is not None):
                raise Undecided("an addend of a value that each place makes for itself", through | apart)
            if apart:
                by, node, outer, _ = instance(node, {axis: place[axis] for axis in apart})
                coef, part = coef * by, selected(outer, part)
        made.append((coef, node, part, None if limit is None else _limit_at(limit, place)))
    return tuple(made)


def _through(limit: Any, families: Mapping[int, frozenset[str]]) -> Iterator[frozenset[str]]:
    for key, inner in () if limit is None else limit[1]:
        yield families.get(key, NO_AXES)  # an operand's number says too much, never too little
        yield from _through(inner, families)


def reg_at(reg: Reg, place: Mapping[str, int]) -> Reg:
    """A part of many places, at some."""
    return tuple([index if index.axes.isdisjoint(place) else _index_at(index, place) for index in reg])


def _limit_at(limit: Any, place: Mapping[str, int]) -> Any:
    shares = tuple([(letter, _index_at(index, place)) for letter, index in limit[0]])
    return shares, tuple([(key, _limit_at(inner, place)) for key, inner in limit[1]])


def _index_at(index: Index, place: Mapping[str, int]) -> Index:
    return index if index.axes.isdisjoint(place) else _known_at(index, tuple(place.items()))


@lru_cache(1 << 14)
def _known_at(index: Index, place: tuple[tuple[str, int], ...]) -> Index:
    """Most locals stand in the same few parts."""
    there = dict(place)
    return joined((at_place(start, there), at_place(stop, there)) for start, stop in index.runs)
