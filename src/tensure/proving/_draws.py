"""Which of the model's random numbers each rank's own stand for, and whether two of them are mixed up.

A rank's draw like a part of some tensor stands for the same part of the model's draw like that tensor. The
numbers of two draws are the same if they come from the same place of one generator, and independent if they
come from places apart or from generators of other seeds. So whatever stands for one element must come from
one place, and what stands for two, from places apart. That the parts of a draw are as good as a draw of the
whole is assumed: `_check_draws` holds claims against this alone. Knows nothing of ops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from tensure.bundle import Rank
from tensure.program import Name, Op, Undecided, at_place, axes_in

from ._cells import Cells, region_at
from ._doubt import Doubt, step_words
from ._index import Index, Region, is_free, length, members, shape_of, whole, whole_region
from ._logical import Logical
from ._relation import Relation, Term, plain
from ._values import is_part

Place: TypeAlias = "tuple[int, int, str, str, str]"
"""Where on a generator a draw is: start, extent, law, the draws before; and the dtype of its numbers."""
NOTHING: Final[frozenset[tuple[Rank, Name]]] = frozenset()
SEED_BITS: Final = 0xFFFFFFFF
"""What a processor's generator takes of a seed: two that agree in these are one there, and two elsewhere."""
Part: TypeAlias = "tuple[int, Region]"
"""A draw of the model's, and the part of it."""


@dataclass(frozen=True, slots=True)
class Mixed:
    """Random numbers that are the same where they must not be, or others where they must be the same.

    `certain` is false where generators of one seed went different ways, so that nothing is known of it, and
    where numbers may stand for others of the model's than was guessed.
    """

    doubt: Doubt
    certain: bool


@dataclass(frozen=True, slots=True)
class _Drawn:
    order: int
    rank: Rank
    name: Name
    step: Op
    node: int
    region: Region
    fitting: tuple[Part, ...]
    """All draws of the model's that it may stand for."""


@dataclass(frozen=True, slots=True)
class _Spot:
    """One rank's draw."""

    drawn: _Drawn
    rank: str
    seed: int
    place: Place
    offset: int
    region: Region
    fitting: tuple[Part, ...]


class Draws:
    """The draws of one walk.

    Args:
        logical: has taken the Program's steps.
        cells: the ranks.
        words: a relation as people read it.
    """

    def __init__(self, logical: Logical, cells: Cells, words: Callable[[Relation], str]) -> None:
        self._logical, self._cells, self._in_words = logical, cells, words
        self._model = [node for node, value in enumerate(logical.values) if value.op == "draw"]
        self._drawn: list[_Drawn] = []
        self._taken: dict[int, dict[Region, dict[object, set[Rank]]]] = {}
        """By draw of the model's, and part of it: what sources stand for that, and on which ranks."""
        self._own: dict[tuple[Rank, Name], Region | None] = {}
        self._strange: list[_Drawn] = []
        """Draws that stand for none of the model's."""
        self.guessed = False
        """Whether some draw fits several of the model's."""

    def place(
        self, rank: Rank, step: Op, like: Term | None, shape: tuple[int, ...], order: int
    ) -> Relation | None:
        """The part of a draw of the model's that a rank's draw stands for; None where there is none.

        Where several of the model's are like that tensor, which one is a guess: the same numbers again, on
        whichever rank, stand for what they stood for; others for the first draw of which no rank has drawn
        the part from elsewhere, or else of which this one has not. If there is none left, they are others
        for the last one.

        Args:
            like: the tensor it is drawn like.
            order: its place in the order of production.

        Raises:
            Undecided: ranks taken together draw different numbers, for which several fit.
        """
        found = [(node, self._region(node, step, like, shape)) for node in self._model]
        fitting = tuple((node, region) for node, region in found if region is not None)
        self._own[rank, step.outs[0]] = None
        if not fitting:
            self._strange.append(_Drawn(order, rank, step.outs[0], step, -1, (), ()))
            return None
        if len(fitting) > 1:
            self.guessed = True
            apart = axes_in(step.attrs) & self._cells.folded
            apart -= axes_in(tuple(region for _, region in fitting))
            if apart:
                raise Undecided("which of the model's draws a draw stands for", apart)
        node, region = fitting[0] if len(fitting) == 1 else self._guess(rank, _source(step), fitting)
        self.take(order, rank, step, node, region, fitting)
        return plain(node, region)

    def take(
        self, order: int, rank: Rank, step: Op, node: int, region: Region, fitting: tuple[Part, ...] = ()
    ) -> None:
        """Note that a rank's draw stands for a part of a draw of the model's."""
        fitting = fitting or ((node, region),)
        self._drawn.append(_Drawn(order, rank, step.outs[0], step, node, region, fitting))
        self._own[rank, step.outs[0]] = region
        if len(fitting) > 1:
            of_part = self._taken.setdefault(node, {}).setdefault(region, {})
            of_part.setdefault(_source(step), set()).add(rank)

    def _guess(self, rank: Rank, source: object, fitting: tuple[Part, ...]) -> Part:
        first: dict[int, Part] = {}
        for node, region in fitting:
            taken = self._taken.get(node, {})
            if source in taken.get(region, {}):
                return node, region
            by = [ranks for part, of in taken.items() if _meet(part, region) for ranks in of.values()]
            worth = 2 if any(rank in ranks for ranks in by) else 1 if by else 0
            first.setdefault(worth, (node, region))
        return first[min(first)] if min(first) < 2 else fitting[-1]

    def _region(self, node: int, step: Op, like: Term | None, shape: tuple[int, ...]) -> Region | None:
        """Where a draw stands in one of the model's, if it is like the same tensor."""
        value = self._logical.values[node]
        full = value.type.shape
        if value.given["law"] != dict(step.attrs)["law"]:
            return None
        (other,) = value.operands
        if like is None or not is_part(other):
            return whole_region(full) if shape == full else None
        if like.node != other[0]:  # type: ignore[index]
            return None
        inside = self._logical.within(like, other[1])  # type: ignore[index]
        if inside is None or len(inside) != len(full):
            return None
        # Where a tensor only repeats, its elements do not tell which they are, unless it has all of them.
        parts = [
            whole(size) if is_free(at) and length(at) == size else at
            for at, size in zip(inside, full, strict=True)
        ]
        if any(is_free(at) for at in parts) or shape_of(tuple(parts)) != shape:
            return None
        return tuple(parts)

    # what stands for what ----------------------------------------------------------------------------

    def standing(self) -> dict[tuple[str, str], tuple[str, Region]] | None:
        """By rank and local as they are printed, the model's draw and the part; None if some is a guess."""
        if self.guessed:
            return None
        return {
            (spot.rank, str(item.name)): (self._logical.labels[item.node][0], spot.region)
            for item in self._drawn
            for spot in self._spots(item, self._cells.folded)
        }

    def drawn(self) -> dict[tuple[Rank, Name], Region | None]:
        """All draws of ranks, and of which part of one of the model's; None where it is of none."""
        return dict(self._own)

    def strange(self) -> dict[tuple[Rank, Name], frozenset[int]]:
        """Draws that stand for none of the model's, and the model's of the same law."""
        values = self._logical.values
        return {
            (item.rank, item.name): frozenset(
                node for node in self._model if values[node].given["law"] == item.step.attr("law")
            )
            for item in self._strange
        }

    def is_known(self) -> bool:
        """Whether it is known which of the ranks' numbers are one, and which are independent."""
        found = (spot for item in (*self._drawn, *self._strange) for spot in self._moving(item))
        return _overlap([(spot.seed, spot.place, None) for spot in found]) is None

    def mixed(self, unsettled: frozenset[tuple[Rank, Name]] = NOTHING) -> Mixed | None:
        """The first draw whose numbers are not the model's, whatever these are; of certain ones, if any.

        Args:
            unsettled: draws that may be put to another use than the model's (`_readings`): two of them may
                well stand for one part.
        """
        first: Mixed | None = None
        for found in self._clashes(unsettled):
            if found.certain:
                return found
            first = first or found
        return first

    def _clashes(self, unsettled: frozenset[tuple[Rank, Name]]) -> Iterator[Mixed]:
        whose: dict[tuple[int, Place, int], _Spot] = {}
        parts: dict[int, _Parts] = {}
        shared: dict[tuple[int, Place], _Spot] = {}
        spots = [spot for item in self._drawn for spot in self._moving(item)]
        for spot in spots:
            before = whose.setdefault((spot.seed, spot.place, spot.offset), spot)
            if (before.drawn.node, before.region) != (spot.drawn.node, spot.region):
                why = f"draws the same numbers as {before.rank}: {self._words(before)}"
                certain = set(before.fitting).isdisjoint(spot.fitting)  # not one, whatever they stand for
                yield self._told(spot, why, before, certain=certain)
                continue
            beside = shared.setdefault((spot.seed, spot.place), spot)
            if beside.drawn.node != spot.drawn.node:
                why = f"draws from the same numbers as {beside.rank}: {self._words(beside)}"
                yield self._told(spot, why, beside, certain=False)
            other = parts.setdefault(spot.drawn.node, _Parts()).add(spot)
            if other is not None:
                why = f"draws other numbers than {other.rank}, of {self._words(other)}"
                certain = len(spot.fitting) == len(other.fitting) == 1 and _are_others(spot, other)
                both = {(one.drawn.rank, one.drawn.name) for one in (spot, other)}
                yield self._told(spot, why, other, certain=certain and unsettled.isdisjoint(both))
        one = _overlap([(spot.seed, spot.place, spot) for spot in spots])
        if one is not None:
            first, other = one
            assert isinstance(first, _Spot)
            assert isinstance(other, _Spot)
            if first.seed == other.seed:
                why = f"numbers {_span(first.place)} and {_span(other.place)} after seed {first.seed}"
                why += f": {first.rank} draws in another way from there"
            else:
                why = f"seed {other.seed} agrees in its low 32 bits with {first.rank}'s {first.seed}: a "
                why += "processor's generator takes no more of a seed, others may"
            yield self._told(other, why, first, certain=False)
        given = [(node, self._logical.values[node].given) for node in self._model]
        twice = _overlap([(at["seed"], _place(at), node) for node, at in given])
        firsts = {(at["seed"], _place(at)): node for node, at in reversed(given)}
        if twice is not None or len(firsts) != len(self._model):
            why = "the model draws the same numbers twice, for different tensors"
            yield Mixed(Doubt(0, "", "", "", "", "", why), False)

    def _told(self, spot: _Spot, why: str, other: _Spot, *, certain: bool) -> Mixed:
        item = spot.drawn
        text, source = step_words(item.step)
        _, theirs = step_words(other.drawn.step)
        why += f" at {theirs}" if theirs and theirs != source else ""
        claim = self._words(spot)
        return Mixed(Doubt(item.order, spot.rank, str(item.name), claim, text, source, why), certain)

    def _words(self, spot: _Spot) -> str:
        return self._in_words(plain(spot.drawn.node, spot.region))

    def _moving(self, item: _Drawn) -> Iterator[_Spot]:
        """Of a cell's ranks one of each kind: those that draw alike, for the same part, are one."""
        axes = axes_in((item.step.attrs, item.region, item.fitting))
        return self._spots(item, axes & self._cells.folded)

    def _spots(self, item: _Drawn, axes: frozenset[str]) -> Iterator[_Spot]:
        given = dict(item.step.attrs)
        for spot in self._cells.places(item.rank, axes) if axes else ((),):
            at = dict(spot)
            here = {key: at_place(value, at) for key, value in given.items() if key != "size"}
            rank = Rank(item.rank.track, tuple(at_place(part, at) for part in item.rank.at))
            if here["extent"]:
                yield _Spot(
                    item,
                    str(rank),
                    here["seed"],
                    _place(here),
                    here.get("offset", 0),
                    region_at(item.region, at),
                    tuple((node, region_at(region, at)) for node, region in item.fitting),
                )


class _Parts:
    """Parts of one draw: of any two that meet, whether they are one part."""

    def __init__(self) -> None:
        self._known: dict[Region, _Spot] = {}
        self._dims: list[dict[Index, bool]] = []

    def add(self, spot: _Spot) -> _Spot | None:
        """Take a part; one before that meets it and comes from another place."""
        before = self._known.get(spot.region)
        if before is not None:
            same = (before.seed, before.place, before.offset) == (spot.seed, spot.place, spot.offset)
            return None if same else before
        self._dims = self._dims or [{} for _ in spot.region]
        apart = True
        for known, index in zip(self._dims, spot.region, strict=True):
            if index not in known:
                known[index] = all(not _overlaps(index, other) for other in known)
            apart = apart and known[index]
        # Where indices of every dim are the same or apart, so are parts of which one dim differs.
        found = None
        if not apart:
            found = next((other for part, other in self._known.items() if _meet(part, spot.region)), None)
        self._known[spot.region] = spot
        return found


def _source(step: Op) -> object:
    return tuple((key, value) for key, value in step.attrs if key != "size")


def _place(given: Mapping[str, Any]) -> Place:
    dtype = given.get("dtype", "f32")
    return given["start"], given["extent"], given["law"], given.get("after", ""), dtype


def _are_others(one: _Spot, other: _Spot) -> bool:
    """Whether numbers of two places are others for certain: not if stretches of one generator overlap."""
    if (one.seed ^ other.seed) & SEED_BITS:
        return True
    if one.place == other.place:
        return one.seed == other.seed
    return one.place[0] + one.place[1] <= other.place[0] or other.place[0] + other.place[1] <= one.place[0]


def _span(place: Place) -> str:
    return f"{place[0]}:{place[0] + place[1]}"


def _overlap(rows: list[tuple[int, Place, Any]]) -> tuple[Any, Any] | None:
    """Two draws from one generator that share numbers and are not one draw; an empty one shares none.

    Generators are one, perhaps, if their seeds agree in the bits that all of them take.
    """
    by_seed: dict[int, dict[tuple[Place, int], Any]] = {}
    for seed, place, whose in rows:
        by_seed.setdefault(seed & SEED_BITS, {}).setdefault((place, seed), whose)
    for places in by_seed.values():
        last: tuple[Place, int] | None = None
        for at in sorted(places):
            (start, extent, *_), _ = at
            if not extent:
                continue
            if last is not None and start < last[0][0] + last[0][1]:
                return places[last], places[at]
            last = at if last is None else max(last, at, key=lambda one: one[0][0] + one[0][1])
    return None


def _meet(one: Region, other: Region) -> bool:
    """Whether two parts share an element, as far as that is seen."""
    return len(one) == len(other) and all(_overlaps(a, b) for a, b in zip(one, other, strict=True))


def _overlaps(one: Index, other: Index) -> bool:
    if one == other:
        return True
    try:
        if len(one) == len(other) == 1:
            return one[0][0] < other[0][1] and other[0][0] < one[0][1]
        return not set(members(one)).isdisjoint(members(other))
    except Undecided:
        return True
