"""The checker's ranks, those along some axes as one, and what a claim of many places is at each.

Along a folded axis a coordinate is an `Affine`, which answers only what has one answer at every place: what
the checker does for a cell it thereby does for each of its ranks. Written apart from the prover's.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

from tensure.bundle import Plan, Rank
from tensure.errors import LimitError
from tensure.program import Affine, Undecided, at_place, coordinate

from ._check_index import Index, joined
from ._check_piece import Reg
from ._check_sums import Term, need

Spot: TypeAlias = tuple[int, ...]
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
        axes = {axis for index in part for run in index.runs for end in run for axis in axes_of(end)}
        for _, place in self.spots(rank, sorted(axes)):
            yield reg_at(part, place)


def axes_of(end: Any) -> frozenset[str]:
    """The axes an end of a run depends on."""
    return end.axes if isinstance(end, Affine) else frozenset()


def rel_at(
    rel: Sequence[Term], place: Mapping[str, int], families: Mapping[int, frozenset[str]]
) -> tuple[Term, ...]:
    """What a relation of many places is at some.

    Raises:
        Undecided: it is of values that are others at every place.
    """
    if not place:
        return tuple(rel)
    for _, node, _, limit in rel:
        apart = families.get(node, frozenset[str]()).union(*_through(limit, families)) & place.keys()
        if apart:
            raise Undecided("a value that each place makes for itself", apart)
    return tuple((coef, node, reg_at(reg, place), _limit_at(limit, place)) for coef, node, reg, limit in rel)


def _through(limit: Any, families: Mapping[int, frozenset[str]]) -> Iterator[frozenset[str]]:
    for key, inner in () if limit is None else limit[1]:
        yield families.get(key, frozenset())  # an operand's number says too much, never too little
        yield from _through(inner, families)


def reg_at(reg: Reg, place: Mapping[str, int]) -> Reg:
    """A part of many places, at some."""
    return tuple(_index_at(index, place) for index in reg)


def _index_at(index: Index, place: Mapping[str, int]) -> Index:
    if not any(axes_of(end) for run in index.runs for end in run):
        return index
    return joined((at_place(start, place), at_place(stop, place)) for start, stop in index.runs)


def _limit_at(limit: Any, place: Mapping[str, int]) -> Any:
    if limit is None:
        return None
    shares = tuple((letter, _index_at(index, place)) for letter, index in limit[0])
    return shares, tuple((key, _limit_at(inner, place)) for key, inner in limit[1])
