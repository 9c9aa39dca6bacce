"""A Plan's ranks with those along some axes taken as one: cells, who meets whom among them, and both ways.

Along a folded axis the places of a track stand together, as one coordinate that is all of them (`Loose`);
cut only where some track's places begin or end. A collective over a folded axis is taken apart into
its places and what comes out is put together again: what is an expression of the coordinate for every
place of it, checked place by place. Knows relations, no ops.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, Final, TypeAlias

from tensure.bundle import Plan, Rank, coordinates
from tensure.errors import RecordError
from tensure.program import Affine, Loose, Undecided, apart, at_place, axes_in, coordinate

from ._index import Index, Region, joined, select
from ._limit import Limit, Share, limited, share_of
from ._relation import Relation, Term, combined, total

NO_AXES: Final[frozenset[str]] = frozenset()
Place: TypeAlias = tuple[tuple[str, int], ...]
MAX_UNFOLDED: Final = 1 << 10
"""Cells after an axis was taken apart, because what its ranks do was not seen to be alike."""
MAX_MEMBERS: Final = 1 << 13
"""Places of one collective."""


class Cells:
    """The cells of a Plan.

    Args:
        folded: mesh axes along which places are taken together; with none, every rank is its own cell.
    """

    def __init__(self, plan: Plan, folded: Iterable[str] = ()) -> None:
        self._plan = plan
        self.folded = frozenset(folded)
        self._cuts = {axis: self._cuts_along(axis) for axis in self.folded}
        self.ranks: list[Rank] = []
        self._boxes: dict[Rank, dict[str, tuple[int, int]]] = {}
        for label, track in plan.tracks.items():
            along = [self._parts(axis, at) for axis, at in zip(track.axes, plan.places(label), strict=True)]
            for box in itertools.product(*along):
                at = tuple(
                    coordinate(axis, lo, hi, Loose) for axis, (lo, hi) in zip(track.axes, box, strict=True)
                )
                self.ranks.append(Rank(label, at))
                fixed = {key: (at, at + 1) for key, at in track.fixed if key in plan.mesh}
                self._boxes[self.ranks[-1]] = {**dict(zip(track.axes, box, strict=True)), **fixed}
        self._groups: dict[tuple[Rank, tuple[str, ...]], tuple[Rank, ...]] = {}
        self._places: dict[tuple[Rank, frozenset[str]], list[Place]] = {}

    def count(self) -> int:
        """How many cells there are."""
        return len(self.ranks)

    def _cuts_along(self, axis: str) -> list[int]:
        ends = {0, self._plan.mesh[axis]}
        for track in self._plan.tracks.values():
            ends.update(end for name, lo, hi in track.spans if name == axis for end in (lo, hi))
            ends.update(end for name, at in track.fixed if name == axis for end in (at, at + 1))
        return sorted(ends)

    def _parts(self, axis: str, at: range) -> list[tuple[int, int]]:
        if axis not in self.folded:
            return [(place, place + 1) for place in at]
        ends = [end for end in self._cuts[axis] if at.start <= end <= at.stop]
        return list(itertools.pairwise(ends))

    # who meets whom ----------------------------------------------------------------------------------

    def group(self, rank: Rank, axes: object) -> tuple[Rank, ...]:
        """The cells that hold the members of a collective over `axes` with a rank of this cell.

        Raises:
            RecordError: axes that are none of the rank's, or places of nobody or of several.
        """
        own = self._boxes[rank]
        if not isinstance(axes, tuple) or not all(axis in own for axis in axes):
            raise RecordError(
                f"a collective over {axes}", place=str(rank), wanted=f"axes among {', '.join(own) or 'none'}"
            )
        if (rank, axes) not in self._groups:
            place = f"{rank}, a collective over {', '.join(axes)}"
            alone = self._plan.tracks[rank.track].fills(axes)
            members: dict[tuple[tuple[int, int], ...], Rank] = {}
            for other, theirs in self._boxes.items():
                if alone and other.track != rank.track:
                    continue
                if any(theirs.get(axis, box) != box for axis, box in own.items() if axis not in axes):
                    continue
                if theirs.keys() != own.keys():
                    raise RecordError(f"nothing says where {other} stands", place=place)
                at = tuple(theirs[axis] for axis in self._plan.mesh if axis in axes)
                if at in members:
                    raise RecordError(f"{members[at]} and {other} at one place", place=place)
                members[at] = other
            held = sum(math.prod(hi - lo for lo, hi in at) for at in members)
            if held != math.prod(self._plan.mesh[axis] for axis in axes):
                raise RecordError(
                    f"only {held} ranks", place=place, wanted="a rank at every place along them"
                )
            found = tuple(members[at] for at in sorted(members))
            self._groups.update({(member, axes): found for member in found})
        return self._groups[rank, axes]

    def places(self, rank: Rank, axes: Iterable[str]) -> list[Place]:
        """The places of a cell along some axes, in mesh order."""
        own, over = self._boxes[rank], frozenset(axes)
        if (rank, over) in self._places:
            return self._places[rank, over]
        along = [(axis, range(*own[axis])) for axis in self._plan.mesh if axis in over]
        if math.prod(len(at) for _, at in along) > MAX_MEMBERS:
            raise Undecided(f"{rank} along {', '.join(axis for axis, _ in along)}", over)
        found = [
            tuple(zip((axis for axis, _ in along), at, strict=True))
            for at in itertools.product(*(at for _, at in along))
        ]
        self._places[rank, over] = found
        return found

    def boxes(self, rank: Rank, axes: Iterable[str]) -> dict[str, tuple[int, int]]:
        """The places of a cell along some axes, in mesh order, by their ends."""
        own, over = self._boxes[rank], set(axes)
        return {axis: own[axis] for axis in self._plan.mesh if axis in over}

    def along(self, rank: Rank, axis: str) -> Any:
        """Where the ranks of a cell stand along an axis: of many places, all of them."""
        return coordinates(self._plan, rank)[axis]


def unfolding(plan: Plan, axes: Sequence[str]) -> Iterator[frozenset[str]]:
    """Which axes to fold: all that were asked for, then fewer, the shortest taken apart first.

    As long as the cells are not too many; the first is given whatever it is.
    """
    left = sorted((axis for axis in axes if plan.mesh[axis] > 1), key=lambda axis: (plan.mesh[axis], axis))
    yield frozenset(left)
    for at in range(1, len(left) + 1):
        if Cells(plan, left[at:]).count() > MAX_UNFOLDED:
            return
        yield frozenset(left[at:])


class Once:
    """Names, messages and sums that must not be one another at any place."""

    def __init__(self) -> None:
        self._known: dict[object, dict[object, None]] = {}
        self._moving = set[object]()

    def add(self, group: object, key: object) -> None:
        """Note one.

        Raises:
            Undecided: it is another of the group at some places, and at others it is not.
        """
        self.ask(group, key)
        self._known.setdefault(group, {})[key] = None
        if axes_in(key):
            self._moving.add(group)

    def ask(self, group: object, key: object) -> None:
        """See to it that what is not there as it is written is there at no place.

        Raises:
            Undecided: at some places it is another of the group.
        """
        known = self._known.get(group, {})
        if key not in known and (group in self._moving or axes_in(key)):
            for other in known:
                apart(key, other)


# one place of many, and many as one --------------------------------------------------------------------


def at_one(
    relation: Relation,
    place: Mapping[str, int],
    families: Mapping[int, frozenset[str]],
    instance: Callable[[int, Mapping[str, int]], Relation] | None = None,
) -> Relation:
    """What a relation of many places is at some of them.

    Args:
        families: the axes along which values are others at every place.
        instance: makes such a value, all of it, as it is at a place.

    Raises:
        Undecided: it is of a value that is another at every place, and cannot be made.
    """
    terms = [found for term in relation.terms for found in _term_at(term, place, families, instance)]
    if len(terms) == 1:
        return Relation((terms[0],))
    found = combined((Fraction(1), Relation((term,))) for term in terms)
    if found is None:
        raise Undecided("a sum that cancels at some place", frozenset(place))
    return found


def _term_at(
    term: Term,
    place: Mapping[str, int],
    families: Mapping[int, frozenset[str]],
    instance: Callable[[int, Mapping[str, int]], Relation] | None,
) -> list[Term]:
    apart = families.get(term.node, NO_AXES) & place.keys()
    if apart and (instance is None or term.limit is not None):
        raise Undecided("a value that each place makes for itself", apart)
    region = region_at(term.region, place)
    if not apart or instance is None:
        limit = None if term.limit is None else _limit_at(term.limit, place, families)
        return [Term(term.node, region, term.coef, limit)]
    whole = instance(term.node, place)
    if whole.limited:
        raise Undecided("an addend that each place makes for itself", apart)
    parts = [
        tuple(select(outer, index) for outer, index in zip(one.region, region, strict=True))
        for one in whole.terms
    ]
    return [Term(one.node, part, term.coef * one.coef) for one, part in zip(whole.terms, parts, strict=True)]


def _same_value(node: int, place: Mapping[str, int], families: Mapping[int, frozenset[str]]) -> None:
    differing = families.get(node, NO_AXES) & place.keys()
    if differing:
        raise Undecided("a value that each place makes for itself", differing)


def region_at(region: Region, place: Mapping[str, int]) -> Region:
    """A part of many places, at some of them."""
    return tuple(_index_at(index, place) for index in region)


def _index_at(index: Index, place: Mapping[str, int]) -> Index:
    if all(isinstance(end, int) for run in index for end in run):
        return index
    return joined([tuple((at_place(start, place), at_place(stop, place)) for start, stop in index)])


def _limit_at(limit: Limit, place: Mapping[str, int], families: Mapping[int, frozenset[str]]) -> Limit | None:
    shares = [share_of(share.letter, share.extent, _index_at(share.index, place)) for share in limit.shares]
    through: list[tuple[int, Limit]] = []
    for key, inner in limit.through:
        _same_value(key, place, families)  # where it is no value but an operand's number, this asks too much
        found = _limit_at(inner, place, families)
        if found is not None:
            through.append((key, found))
    return limited([share for share in shares if share is not None], through)


def summed(
    relation: Relation, boxes: Mapping[str, tuple[int, int]], families: Mapping[int, frozenset[str]]
) -> Relation | None:
    """The sum of what a relation of many places is at all of them, where slices of neighbours fit together.

    None where that cannot be told at once: then it is found place by place.
    """
    terms: list[tuple[Fraction, Relation]] = []
    for term in relation.terms:
        if (axes_in(term.region) | families.get(term.node, NO_AXES)) & boxes.keys():
            return None
        found = _over_all(term.limit, boxes)
        if found is None:
            return None
        terms.append((Fraction(1), Relation((Term(term.node, term.region, term.coef * found[0], found[1]),))))
    return terms[0][1] if len(terms) == 1 else total(terms)


def _over_all(limit: Limit | None, boxes: Mapping[str, tuple[int, int]]) -> tuple[int, Limit | None] | None:
    """How often which addend (None: the whole) all places of a box add up to."""
    if limit is not None and not limit.shares and len(limit.through) > 1:  # a sum is summed part by part
        parts = [_over_all(inner, boxes) for _, inner in limit.through]
        rows = [(key, part) for (key, _), part in zip(limit.through, parts, strict=True) if part is not None]
        if len(rows) < len(parts) or len({(times, left is None) for _, (times, left) in rows}) > 1:
            return None
        return rows[0][1][0], limited((), [(key, left) for key, (_, left) in rows if left is not None])
    times, left = 1, dict(boxes)
    while left:
        shares = [] if limit is None else list(_shares(limit))
        for axis in left.keys() - frozenset().union(*(axes_in(share.index) for share in shares)):
            lo, hi = left.pop(axis)
            times *= hi - lo
        if not left:
            break
        found = _next_share(shares, left)
        if found is None or limit is None:
            return None
        share, axis = found
        ((start, stop),) = share.index
        lo, hi = left.pop(axis)
        whole = ((at_place(start, {axis: lo}), at_place(stop, {axis: hi - 1})),)
        limit = _exchanged(limit, share, share_of(share.letter, share.extent, whole))
    return times, limit


def _shares(limit: Limit) -> Iterator[Share]:
    yield from limit.shares
    for _, inner in limit.through:
        yield from _shares(inner)


def _next_share(shares: Sequence[Share], left: Mapping[str, object]) -> tuple[Share, str] | None:
    """A slice that begins, at the next place along some axis, where it ends at this one."""
    for share in shares:
        if len(share.index) != 1:
            continue
        start: Any = share.index[0][0]
        stop: Any = share.index[0][1]
        for axis, _, _, multiple in start.terms if isinstance(start, Affine) else ():
            alone = sum(axis in axes_in(other.index) for other in shares) == 1
            if axis in left and alone and stop - start == multiple:
                return share, axis
    return None


def _exchanged(limit: Limit, old: Share, new: Share | None) -> Limit | None:
    own = [new if share is old else share for share in limit.shares]
    through = [(key, _exchanged(inner, old, new)) for key, inner in limit.through]
    return limited(
        [share for share in own if share is not None],
        [(key, item) for key, item in through if item is not None],
    )


def as_one(rows: Sequence[tuple[Place, Relation]], boxes: Mapping[str, tuple[int, int]]) -> Relation:
    """The relation of many places, from what it is at each.

    Args:
        rows: every place of a box, and what the relation is there.
        boxes: the places along each of its axes.

    Raises:
        Undecided: it is not the same expression of the coordinates at all places.
    """
    first = rows[0][1]
    if all(found is first or found == first for _, found in rows):
        return first
    axes = frozenset(boxes)
    shape, numbers = _taken_apart(first)
    table: dict[Place, list[Any]] = {rows[0][0]: numbers}
    for place, found in rows[1:]:
        other, values = _taken_apart(found)
        if other != shape:
            raise Undecided("what comes out at each place", axes)
        table[place] = values
    forms = [
        _form([(place, values[at]) for place, values in table.items()], boxes) for at in range(len(numbers))
    ]
    return _put_together(first, iter(forms))


def _form(values: Sequence[tuple[Place, Any]], boxes: Mapping[str, tuple[int, int]]) -> Any:
    """One expression with these values: all of them are held against it."""
    table = dict(values)
    origin = tuple((axis, lo) for axis, (lo, _) in boxes.items())
    form = base = table[origin]
    for axis, (lo, hi) in boxes.items():
        if hi - lo == 1:
            continue
        step = table[tuple((name, at + (name == axis)) for name, at in origin)] - base
        if not isinstance(step, int):
            raise Undecided("what comes out at each place", frozenset(boxes))
        form = form + step * (coordinate(axis, lo, hi, Loose) - lo)
    for place, value in values:
        if at_place(form, dict(place)) != value:
            raise Undecided("what comes out at each place", frozenset(boxes))
    return form


def _taken_apart(relation: Relation) -> tuple[object, list[Any]]:
    numbers: list[Any] = []
    shape = tuple(
        (term.node, term.coef, tuple(map(len, term.region)), _apart(term, numbers)) for term in relation.terms
    )
    return shape, numbers


def _apart(term: Term, numbers: list[Any]) -> object:
    numbers.extend(end for index in term.region for run in index for end in run)
    return None if term.limit is None else _limit_apart(term.limit, numbers)


def _limit_apart(limit: Limit, numbers: list[Any]) -> object:
    for share in limit.shares:
        numbers.extend(end for run in share.index for end in run)
    shares = tuple((share.letter, share.extent, len(share.index)) for share in limit.shares)
    return shares, tuple((key, _limit_apart(inner, numbers)) for key, inner in limit.through)


def _put_together(relation: Relation, forms: Any) -> Relation:
    terms: list[Term] = []
    for term in relation.terms:
        region = tuple(_runs(index, forms) for index in term.region)
        limit = None if term.limit is None else _limit_together(term.limit, forms)
        terms.append(Term(term.node, region, term.coef, limit))
    return Relation(tuple(terms))


def _runs(index: Index, forms: Any) -> Index:
    return tuple((next(forms), next(forms)) for _ in index)


def _limit_together(limit: Limit, forms: Any) -> Limit:
    shares = [type(share)(share.letter, share.extent, _runs(share.index, forms)) for share in limit.shares]
    return Limit(shares, [(key, _limit_together(inner, forms)) for key, inner in limit.through])


def family_axes(item: object, families: Mapping[int, frozenset[str]]) -> frozenset[str]:
    """The axes along which what a value is made from differs."""
    if isinstance(item, Affine):
        return item.axes
    if isinstance(item, Term):
        return family_axes((item.region, item.limit), families) | families.get(item.node, NO_AXES)
    if isinstance(item, Limit):
        inner = tuple(found for _, found in item.through)
        return family_axes((tuple(share.index for share in item.shares), inner), families)
    if isinstance(item, Mapping):
        return family_axes(tuple(item.values()), families)
    found = NO_AXES
    if isinstance(item, (tuple, list)):
        for part in item:
            found |= family_axes(part, families)
    return found
