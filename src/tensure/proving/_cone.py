"""A concrete replay of as much of a Plan as a doubt rests on, where all of it would be too many ranks.

Back from the local in doubt, every step is run in numpy for the very ranks and places it needs, down to
locals that were derived as parts of the Program's own values: these are taken from a run of the Program. What
a doubted claim has led to is never taken so. A difference found here is one between what the steps make and
what is claimed, given the parts derived on the way. Knows no rules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final, Protocol, TypeAlias

import numpy as np

from tensure.bundle import Rank
from tensure.errors import TensureError
from tensure.program import (
    COLLECTIVES,
    Affine,
    Arg,
    Cat,
    Name,
    Op,
    Ref,
    Undecided,
    at_place,
    collective,
    read_operand,
    run_step,
)

from ._cells import Cells, Place, region_at
from ._contraction import TERMS, terms_of
from ._index import members, select
from ._instances import Instances
from ._limit import Limit
from ._logical import Logical
from ._relation import Relation, Term
from ._replay import Array, widened_attrs
from ._values import is_part

MAX_KEYS: Final = 1 << 18
"""Locals of single ranks that are looked at."""
MAX_ELEMENTS: Final = 1 << 26
MAX_ASKED: Final = 16
Spot: TypeAlias = "tuple[Rank, Place, Name]"
"""A local of one rank of a cell: the cell, the place along each folded axis, the name."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A claim in doubt.

    Args:
        order: the place of its doubt in the order of production.
        rank, name: the cell and local it is told of.
        members: the locals that come to it: that one, or all addends of a sum.
        over: the folded axes the sum runs over.
        want: what is claimed.
    """

    order: int
    rank: Rank
    name: Name
    members: tuple[tuple[Rank, Name], ...]
    over: frozenset[str]
    want: Relation


@dataclass(frozen=True, slots=True)
class Shown:
    """A claim that does not hold: at which rank, and first at which index."""

    order: int
    rank: str
    local: str
    of: str
    index: tuple[int, ...]


class Trail(Protocol):
    """What a walk remembers of how locals came to be."""

    logical: Logical
    cells: Cells
    instances: Instances

    def made_by(self, rank: Rank, name: Name) -> Op | None:
        """The step that made a local; None where it was supplied."""
        ...

    def sent_by(self, rank: Rank, name: Name) -> tuple[Rank, Op]:
        """The sender and the send behind a received local."""
        ...

    def reads_of(self, rank: Rank, name: Name) -> Sequence[tuple[Rank, Name]]:
        """The locals a local was made from."""
        ...

    def in_order(self) -> Iterator[tuple[Rank, Name]]:
        """All locals as they came to be."""
        ...

    def addends(self) -> Iterator[Sequence[tuple[Rank, Name]]]:
        """Of every claimed sum, the locals that come to it."""
        ...

    def relation(self, rank: Rank, name: Name) -> Relation:
        """What a local is, or is claimed to be where that was in doubt."""
        ...


class Unreplayable(Exception):
    """A cone that cannot be run, and why."""


def shown(
    trail: Trail, asked: Sequence[Asked], values: Callable[[set[str]], Mapping[str, Array]]
) -> list[Shown]:
    """The claims in doubt that do not hold.

    Args:
        values: runs the Program for some of its values by name, in float64 where it has floats.

    Raises:
        Unreplayable: it would be too much, or a step cannot be run.
    """
    doubted = {(rank, name) for item in asked for rank, name in item.members}
    cone = _Cone(trail, doubted)
    first = sorted(asked, key=lambda item: item.order)[:MAX_ASKED]
    try:
        try:
            return _compared(cone, first, values)
        except (TensureError, Undecided, Unreplayable):
            return _compared(cone, first[:1], values) if len(first) > 1 else []
    except (TensureError, Undecided) as error:
        raise Unreplayable(str(error)) from None


def _compared(
    cone: _Cone, asked: Sequence[Asked], values: Callable[[set[str]], Mapping[str, Array]]
) -> list[Shown]:
    places = [(item, place) for item in asked for place in _corners(cone.cells, item)]
    cone.values = values(cone.labels(places))
    found: dict[int, Shown] = {}
    for item, place in places:
        seen = None if item.order in found else cone.compare(item, place)
        if seen is not None:
            found[item.order] = seen
    return list(found.values())


def _corners(cells: Cells, item: Asked) -> list[dict[str, int]]:
    boxes = {axis: box for axis, box in cells.boxes(item.rank, cells.folded).items() if axis not in item.over}
    ends = [{axis: lo for axis, (lo, _) in boxes.items()}, {axis: hi - 1 for axis, (_, hi) in boxes.items()}]
    return ends[:1] if ends[0] == ends[1] else ends


class _Cone:
    """Values of locals at single ranks, as far as they were asked for."""

    def __init__(self, trail: Trail, doubted: set[tuple[Rank, Name]]) -> None:
        self._trail, self.cells = trail, trail.cells
        self.values: Mapping[str, Array] = {}
        """The Program's values, as far as `labels` asked for them."""
        self._instances = trail.instances
        self._made: dict[Spot, Array] = {}
        self._elements = 0
        self._tainted = set(doubted)
        for local in trail.in_order():
            if not self._tainted.isdisjoint(trail.reads_of(*local)):
                self._tainted.add(local)

    def labels(self, places: Sequence[tuple[Asked, Mapping[str, int]]]) -> set[str]:
        """The values of the Program that comparisons take."""
        found: set[str] = set()
        seen: set[Spot] = set()
        for item, place in places:
            self._note(self._instances.at(item.want, place), found)
            todo = list(self._spots(item, place))
            while todo:
                spot = todo.pop()
                if spot in seen:
                    continue
                seen.add(spot)
                if len(seen) > MAX_KEYS:
                    raise Unreplayable(f"over {MAX_KEYS} locals to replay")
                taken = self._derived(spot)
                if taken is None:
                    todo.extend(self._needs(spot))
                else:
                    self._note(taken, found)
        return found

    def _note(self, relation: Relation, found: set[str]) -> None:
        for term in relation.terms:
            known = self._trail.logical.labels.get(term.node)
            if known is None:
                raise Unreplayable("a claim of what the program does not name")
            if term.limit is None:
                found.add(known[0])
                continue
            for item in self._trail.logical.values[term.node].operands:
                if isinstance(item, tuple) and is_part(item):
                    self._note(Relation((Term(item[0], item[1], item[2]),)), found)

    def _spots(self, item: Asked, place: Mapping[str, int]) -> Iterator[Spot]:
        for rank, name in item.members:
            for spot in self.cells.places(rank, item.over) if item.over else ((),):
                yield rank, self._place(rank, {**place, **dict(spot)}), name

    def compare(self, item: Asked, place: Mapping[str, int]) -> Shown | None:
        """Hold the members of a claim against it where the other folded axes stand at one place."""
        cells = self._trail.cells
        total: Array | None = None
        for spot in self._spots(item, place):
            value = self._value(spot)
            total = value if total is None else total + value
        want = self._of(self._instances.at(item.want, place))
        assert total is not None
        index = _difference(total, want)
        if index is None:
            return None
        known = self._trail.logical.labels.get(item.want.terms[0].node)
        at = tuple(at_place(part, place) for part in item.rank.at)
        if any(isinstance(part, Affine) for part in at):  # a sum is told of its last rank
            last = {axis: hi - 1 for axis, (_, hi) in cells.boxes(item.rank, item.over).items()}
            at = tuple(at_place(part, last) for part in at)
        label = "" if known is None else known[0]
        return Shown(item.order, str(Rank(item.rank.track, at)), str(item.name), label, index)

    # one local of one rank ---------------------------------------------------------------------------

    def _place(self, rank: Rank, place: Mapping[str, int]) -> Place:
        cells = self._trail.cells
        found: list[tuple[str, int]] = []
        for axis, (lo, hi) in cells.boxes(rank, cells.folded).items():
            at = place.get(axis, lo)
            if not lo <= at < hi or (axis not in place and hi - lo > 1):
                raise Unreplayable(f"{rank} is not where it was looked for along {axis}")
            found.append((axis, at))
        return tuple(found)

    def _beside(self, sender: Rank, at: Mapping[str, int]) -> Place:
        """Where a sender stands: a message stays at its place along axes of which its cell has several."""
        boxes = self.cells.boxes(sender, self.cells.folded)
        return self._place(
            sender, {axis: lo if hi - lo == 1 else at[axis] for axis, (lo, hi) in boxes.items()}
        )

    def _value(self, wanted: Spot) -> Array:
        todo = [wanted]
        while todo:
            spot = todo[-1]
            if spot in self._made:
                todo.pop()
                continue
            if len(self._made) + len(todo) > MAX_KEYS:
                raise Unreplayable(f"over {MAX_KEYS} locals to replay")
            found = self._taken(spot)
            if found is None:
                needs = self._needs(spot)
                missing = [need for need in needs if need not in self._made]
                if missing:
                    todo.extend(missing)
                    continue
                found = self._run(spot)
            self._elements += found.size
            if self._elements > MAX_ELEMENTS:
                raise Unreplayable(f"over {MAX_ELEMENTS} elements to replay")
            self._made[spot] = found
            todo.pop()
        return self._made[wanted]

    def _taken(self, spot: Spot) -> Array | None:
        """From the Program's run, where that is what a local was derived to be."""
        relation = self._derived(spot)
        return None if relation is None else self._of(relation)

    def _derived(self, spot: Spot) -> Relation | None:
        """What a local is of the values that the Program names; None where it has to be made."""
        rank, place, name = spot
        if (rank, name) in self._tainted:
            return None
        relation = self._trail.relation(rank, name)
        labels = self._trail.logical.labels
        if any(term.limit is not None or term.node not in labels for term in relation.terms):
            return None
        return self._instances.at(relation, dict(place))

    def _of(self, relation: Relation) -> Array:
        total: Array | None = None
        for term in relation.terms:
            known = self._trail.logical.labels.get(term.node)
            if known is None:
                raise Unreplayable("a claim of what the program does not name")
            label, by = known
            array = self.values[label] if term.limit is None else self._addend(term.node, term.limit, by)
            free = self._trail.logical.values[term.node].free
            region = region_at(term.region, {})
            spots = [np.asarray(members(index), np.intp) for index in region]
            # Where it only repeats, the Program's may have fewer: any one is as good as another.
            spots = [at * 0 if dim in free else at for dim, at in enumerate(spots)]
            if any(at.size and not size for at, size in zip(spots, array.shape, strict=True)):
                raise Unreplayable("a part of what the program has none of")
            part = array[np.ix_(*spots)]
            coef = term.coef / by
            part = part if coef == 1 else part * float(coef)
            total = part if total is None else total + part
        assert total is not None
        return total

    def _addend(self, node: int, limit: Limit, by: Fraction) -> Array:
        """All of a product held to slices of its contracted letters, times `by` as named values are."""
        value = self._trail.logical.values[node]
        parts = [item for item in value.operands if isinstance(item, tuple) and is_part(item)]
        found = terms_of(value.op, dict(value.given), [len(item[1]) for item in parts])
        if value.op not in TERMS or limit.through or found is None or len(parts) != len(value.operands):
            raise Unreplayable("a claim of an addend that is no product of slices")
        shares = {share.letter: share.index for share in limit.shares}
        operands: list[Any] = []
        for (inner, region, coef), letters in zip(parts, found[0], strict=True):
            cut = tuple(
                select(index, shares[letter]) if letter in shares else index
                for index, letter in zip(region, letters, strict=True)
            )
            operands.append(self._of(Relation((Term(inner, cut, coef),))))
        return np.asarray(np.einsum(f"{','.join(found[0])}->{found[1]}", *operands)) * float(by)

    def _needs(self, spot: Spot) -> list[Spot]:
        rank, place, name = spot
        step = self._trail.made_by(rank, name)
        if step is None:
            raise Unreplayable(f"{name} is supplied and not known")
        at = dict(place)
        if step.op == "recv":
            sender, sent = self._trail.sent_by(rank, name)
            where = self._beside(sender, at)
            return [(sender, where, ref.name) for ref in sent.reads()]
        if step.op in COLLECTIVES:
            return [
                (member, where, ref.name)
                for member, where, own in self._members(rank, step, at, name)
                for ref in own.reads()
            ]
        return [(rank, place, ref.name) for ref in step.reads()]

    def _members(
        self, rank: Rank, step: Op, at: Mapping[str, int], name: Name
    ) -> list[tuple[Rank, Place, Op]]:
        """Every member of a collective, in mesh order: its cell, its place, its own step."""
        axes: Any = step.attr("axes")
        cells = self._trail.cells
        found: list[tuple[Any, Rank, Place, Op]] = []
        for member in cells.group(rank, axes):
            own = self._trail.made_by(member, name)
            if own is None:
                raise Unreplayable(f"{member} does not take part in {name}")
            for spot in cells.places(member, axes):
                where = self._place(member, {**at, **dict(spot)})
                found.append((spot, member, where, own))
        found.sort(key=lambda item: item[0])
        return [(member, where, own) for _, member, where, own in found]

    def _run(self, spot: Spot) -> Array:
        rank, place, name = spot
        step = self._trail.made_by(rank, name)
        assert step is not None
        at = dict(place)
        if step.op == "recv":
            sender, sent = self._trail.sent_by(rank, name)
            payload: Array = self._operand(sent.args[0], sender, self._beside(sender, at))
            return payload
        if step.op in COLLECTIVES:
            taking = self._members(rank, step, at, name)
            operands = [self._operand(own.args[0], member, where) for member, where, own in taking]
            made: Any = collective(step.op, operands, dict(step.attrs))
            mine = next(number for number, item in enumerate(taking) if item[0] == rank and item[1] == place)
            found: Array = made[mine]
            return found
        grounded = Op(step.op, step.args, step.outs, widened_attrs(_attrs_at(step.attrs, at)), step.note)
        operands = [self._operand(arg, rank, place) for arg in step.args]
        result: Array = run_step(grounded, operands)[step.outs.index(name)]
        return result

    def _operand(self, arg: Arg, rank: Rank, place: Place) -> Any:
        return read_operand(_arg_at(arg, dict(place)), lambda ref: self._made[rank, place, ref.name])


def _arg_at(arg: Any, place: Mapping[str, int]) -> Any:
    if isinstance(arg, Ref):
        box = tuple((dim, at_place(lo, place), at_place(hi, place)) for dim, lo, hi in arg.box)
        return Ref(arg.name, box)
    if isinstance(arg, Cat):
        return Cat(arg.dim, tuple(_arg_at(part, place) for part in arg.parts))
    return at_place(arg, place)


def _attrs_at(attrs: Any, place: Mapping[str, int]) -> Any:
    return tuple((key, _attr_at(value, place)) for key, value in attrs)


def _attr_at(value: Any, place: Mapping[str, int]) -> Any:
    if isinstance(value, tuple):
        return tuple(_attr_at(part, place) for part in value)
    return at_place(value, place)


def _difference(have: Array, want: Array) -> tuple[int, ...] | None:
    if have.shape != want.shape:
        return ()
    one, other = have.astype(np.float64), want.astype(np.float64)
    with np.errstate(all="ignore"):
        near = np.isclose(one, other, rtol=1e-9, atol=1e-10, equal_nan=True)
    return None if near.all() else tuple(int(part) for part in np.argwhere(~near)[0])
