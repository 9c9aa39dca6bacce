"""What a value that every place makes for itself is at one: made anew of what its operands are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from tensure.program import Op, TensorType, Undecided, axes_in, lookup

from ._cells import Place, as_one, at_one, family_axes
from ._index import select, shape_of, whole_region
from ._relation import Relation, Term, combined, plain
from ._steps import Call, Held, Operand
from ._values import NO_AXES, is_part

if TYPE_CHECKING:
    from ._logical import Logical

__all__ = ["Instances"]

Boxes: TypeAlias = Mapping[str, tuple[int, int]]


class Instances:
    """Values at places, each made once.

    Args:
        listed: what is no expression of the coordinates is kept place by place, as a value that nothing else
            is known of; otherwise it is refused.
    """

    def __init__(self, logical: Logical, *, listed: bool = False) -> None:
        self._logical = logical
        self._listed = listed
        self._rows: dict[int, dict[Place, Relation]] = {}
        self._made: dict[tuple[int, tuple[tuple[str, int], ...]], Relation] = {}

    def at(self, relation: Relation, place: Mapping[str, int]) -> Relation:
        """What a relation of many places is at some of them.

        Raises:
            Undecided: it is of a value that cannot be made anew.
        """
        try:
            return at_one(relation, place, self._logical.families, self.value)
        except Undecided:
            if not self._listed:
                raise
            return self._unknown(("at", relation.terms, tuple(sorted(place.items()))), relation)

    def _unknown(self, key: tuple[object, ...], like: Relation) -> Relation:
        """A value of the same type, of which nothing is known."""
        dtype = self._logical.values[like.terms[0].node].type.dtype
        return self._logical.ghost(key, TensorType(like.shape, dtype))

    def value(self, node: int, place: Mapping[str, int]) -> Relation:
        """All of a value, at a place."""
        apart = self._logical.families.get(node, NO_AXES) & place.keys()
        key = (node, tuple(sorted((axis, place[axis]) for axis in apart)))
        if key not in self._made:
            self._made[key] = self._make(node, {axis: place[axis] for axis in apart})
        return self._made[key]

    def together(self, rows: Sequence[tuple[Place, Relation]], boxes: Boxes) -> Relation:
        """The relation of many places, from what it is at each.

        Raises:
            Undecided: it is not the same expression of the coordinates at all places, nor made of such alike.
        """
        try:
            return as_one(rows, boxes)
        except Undecided:
            try:
                return self._alike(rows, boxes)
            except Undecided:
                if not self._listed:
                    raise
                return self._list(rows, boxes)

    def _list(self, rows: Sequence[tuple[Place, Relation]], boxes: Boxes) -> Relation:
        """A value of which is only known what it is at each place."""
        logical = self._logical
        first = rows[0][1]
        rows = [(place, self._alone(found)) for place, found in rows]
        relation = self._unknown(("list", tuple((place, found.terms) for place, found in rows)), first)
        node = relation.terms[0].node
        self._rows[node] = dict(rows)
        axes = frozenset(boxes) | family_axes([found.terms for _, found in rows], logical.families)
        logical.families[node] = axes
        return relation

    def _alone(self, found: Relation) -> Relation:
        """One term without a limit: of what is none, nothing is known but that."""
        if found.single is not None and found.single.limit is None:
            return found
        return self._unknown(("sum", found.terms), found)

    def _alike(self, rows: Sequence[tuple[Place, Relation]], boxes: Boxes) -> Relation:
        """Parts of a value that every place makes for itself, in the same way."""
        singles = [(place, found.single) for place, found in rows]
        if any(term is None or term.limit is not None for _, term in singles):
            raise Undecided("what comes out at each place", frozenset(boxes))
        terms = [(place, term) for place, term in singles if term is not None]
        if len({term.coef for _, term in terms}) > 1:
            raise Undecided("what comes out at each place", frozenset(boxes))
        whole = self._family([(place, term.node) for place, term in terms], boxes)
        stand_in = [(place, Relation((Term(0, term.region),))) for place, term in terms]
        (part,) = as_one(stand_in, boxes).terms
        region = tuple(select(outer, index) for outer, index in zip(whole.region, part.region, strict=True))
        return Relation((Term(whole.node, region, whole.coef * terms[0][1].coef),))

    def _family(self, rows: Sequence[tuple[Place, int]], boxes: Boxes) -> Term:
        """All of a value that every place makes for itself, of values made alike at each."""
        logical = self._logical
        values = [logical.values[node] for _, node in rows]
        first = values[0]
        kinds = {(v.op, repr(sorted(v.given.items())), v.out, v.type, len(v.operands)) for v in values}
        if len(kinds) > 1 or first.out or first.form is not None or first.op in ("ghost", "leaf"):
            raise Undecided("what comes out at each place", frozenset(boxes))
        operands: list[Operand] = []
        for at, item in enumerate(first.operands):
            if not isinstance(item, tuple) or not is_part(item):
                if any(value.operands[at] != item for value in values):
                    raise Undecided("what comes out at each place", frozenset(boxes))
                operands.append(_number(item))
                continue
            parts = [
                (place, Relation((Term(*value.operands[at]),)))  # type: ignore[misc]
                for (place, _), value in zip(rows, values, strict=True)
            ]
            found = self.together(parts, boxes)
            dtype = logical.values[found.terms[0].node].type.dtype
            operands.append(Held(TensorType(shape_of(found.terms[0].region), dtype), found))
        given = dict(first.given)
        step = Op(first.op, (), (), tuple(given.items()))
        made = logical.made(Call(step, given, operands, [first.type], None, False))[0].relation
        for place, node in rows if not self._listed else ():  # the checker could not follow another spelling
            want = plain(node, logical.spelled(node, whole_region(first.type.shape)))
            if not logical.same(self.at(made, dict(place)), want):
                raise Undecided("what comes out at each place", frozenset(boxes))
        if made.single is None or made.single.limit is not None:
            raise Undecided("what comes out at each place", frozenset(boxes))
        return made.single

    def _make(self, node: int, place: Mapping[str, int]) -> Relation:
        logical = self._logical
        value = logical.values[node]
        if not place:
            return plain(node, whole_region(value.type.shape))
        if node in self._rows:
            row = next(
                (found for at, found in self._rows[node].items() if dict(at).items() <= place.items()), None
            )
            if row is None:
                raise Undecided("a value that is listed along other axes", frozenset(place))
            return self.at(row, place)
        if value.form is not None:
            summed = combined((coef, self.value(part, place)) for part, coef in value.form.items())
            if summed is None:
                raise Undecided("a sum that cancels at some place", frozenset(place))
            return logical.sum_of(summed, value.type)
        if value.op == "ghost" and self._listed:
            return logical.ghost(("at", node, tuple(sorted(place.items()))), value.type)
        if value.op in ("ghost", "leaf") or lookup(value.op).num_outs != 1:
            raise Undecided("a value that each place makes for itself", frozenset(place))
        if axes_in((value.given, value.type.shape)):
            raise Undecided("a value of another kind at every place", frozenset(place))
        operands: list[Operand] = []
        for item in value.operands:
            if isinstance(item, tuple) and is_part(item):
                part, region, coef = item
                found = self.at(Relation((Term(part, region, coef),)), place)
                shape = shape_of(found.terms[0].region)
                operands.append(Held(TensorType(shape, logical.values[part].type.dtype), found))
            else:
                operands.append(_number(item))
        given = dict(value.given)
        step = Op(value.op, (), (), tuple(given.items()))
        return logical.made(Call(step, given, operands, [value.type], None, False))[0].relation


def _number(item: object) -> Any:
    if not isinstance(item, tuple) or item[1] == "NoneType":
        return None
    kinds: dict[str, Any] = {"int": int, "float": float, "bool": lambda text: text == "True"}
    return kinds[item[1]](item[2])
