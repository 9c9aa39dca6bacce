"""Logical values, each known by how it is made, and what sums of them are.

Values are found by congruence: the same op with the same attributes on the same operands is the same
value. Factors stand apart from values: `2 * y` is twice `y` and no value of its own. A sum of whole
values has a form, a direction in the space of values that are no sums; two sums of one direction are
one value but for a factor, however they were associated. Dims along which a value merely repeats are
`free`: any part of them is the same, and is spelled as the first. Knows no plan and no rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Final, TypeAlias

from tensure.program import TensorType

from ._cells import family_axes
from ._index import Index, Region, length, whole_region
from ._limit import Limit, limited
from ._relation import ONE, Relation, Term, combined, plain

Key: TypeAlias = tuple[object, ...]
Part: TypeAlias = tuple[int, Region, Fraction]
"""An operand of a value: a region of another, times a factor."""
FLOATS: Final = frozenset({"f64", "f32", "f16", "bf16"})
NO_AXES: Final[frozenset[str]] = frozenset()
NOT_FREE: Final[frozenset[int]] = frozenset()


@dataclass(frozen=True, slots=True)
class Value:
    """One logical value.

    Args:
        operands: Parts, and numbers or None as `number` spells them.
        form: as a linear combination of values that are no sums themselves; of a "+" it is what it is made
            of, of any other value something that it equals.
        free: the dims along which it only repeats.
    """

    op: str
    given: Mapping[str, Any]
    operands: tuple[object, ...]
    out: int
    type: TensorType
    form: Mapping[int, Fraction] | None = None
    free: frozenset[int] = NOT_FREE


class Values:
    """All values met so far."""

    def __init__(self) -> None:
        self.values: list[Value] = []
        self.candidates: dict[Key, list[int]] = {}
        self._by_key: dict[Key, int] = {}
        self._forms: dict[Key, tuple[int, Fraction]] = {}
        self._resolved: dict[tuple[tuple[int, Fraction], ...], tuple[int, Fraction]] = {}
        self.families: dict[int, frozenset[str]] = {}
        """Values that differ from place to place along some axes, when places are taken together."""

    def put(self, value: Value, key: Key) -> int:
        """The number of a value: of the one made the same way before, if there is one."""
        if key in self._by_key:
            return self._by_key[key]
        node = len(self.values)
        self.values.append(value)
        self._by_key[key] = node
        told: tuple[object, ...] = (
            value.given,
            value.type.shape,
        )  # all that differs of a sum, besides what is summed
        if value.form is None:
            told = (*told, value.operands, key)
        axes = family_axes(told, self.families)
        for item in value.operands:
            if is_part(item):
                axes |= self.families.get(item[0], NO_AXES)  # type: ignore[index]
        if axes:
            self.families[node] = axes
        if value.out == 0:
            self.candidates.setdefault((value.op, *map(base, value.operands)), []).append(node)
        return node

    def ghost(self, key: Key, found: TensorType) -> Relation:
        """A value equal only to itself: of which nothing is known."""
        node = self.put(Value("ghost", {}, (), 0, found), ("ghost", *key))
        return plain(node, whole_region(found.shape))

    def spelled(self, node: int, region: Region) -> Region:
        """A region in its one spelling: free dims say only how many."""
        free = self.values[node].free
        if not free:
            return region
        return tuple(
            (((0, length(index)),) if index else ()) if dim in free else index
            for dim, index in enumerate(region)
        )

    def is_whole(self, node: int, region: Region) -> bool:
        """All of a value, dims apart along which it only repeats."""
        value = self.values[node]
        return all(
            dim in value.free or index == full
            for dim, (index, full) in enumerate(zip(region, whole_region(value.type.shape), strict=True))
        )

    # sums --------------------------------------------------------------------------------------------

    def sum_of(self, relation: Relation, found: TensorType) -> Relation:
        """A sum of whole values as a value: a new one unless there is one of its direction."""
        known = self.resolve(relation)
        if known.single is not None or relation.limited:
            return known
        if any(not self.is_whole(term.node, term.region) for term in relation.terms):
            return known
        form = {node: coef for (node, _), coef in self.expanded(relation).items()}
        if not form:
            return known  # all of it cancels: a number, and no direction to be known by
        lead = form[min(form)]
        key = _direction(form)
        free = [self.values[term.node].free for term in relation.terms]
        operands = tuple((node, whole_region(self.values[node].type.shape), ONE) for node in sorted(form))
        value = Value("+", {}, operands, 0, found, form, frozenset.intersection(*free))
        node = self.put(value, ("+", key))
        self._forms.setdefault(key, (node, lead))
        return Relation((Term(node, self.spelled(node, self.aligned(relation) or ())),))

    def resolve(self, relation: Relation) -> Relation:
        """A sum of values (or of addends of each) written as the one value it is, where there is one."""
        terms = relation.terms
        if len(terms) == 1:
            return relation
        region = self.aligned(relation)
        if region is None or any((term.limit is None) != (terms[0].limit is None) for term in terms):
            return relation
        key = tuple((term.node, term.coef) for term in terms) if terms[0].limit is None else ()
        if key in self._resolved:  # whatever the region: sums of a hundred terms are opened once
            node, coef = self._resolved[key]
            return Relation((Term(node, self.spelled(node, region), coef),))
        sums = self.expanded(relation)
        limits = dict(sums)
        if not sums or len({node for node, _ in limits}) != len(limits):
            return relation
        form = {node: coef for (node, _), coef in sums.items()}
        if len(form) == 1:
            ((node, limit),) = sums
            if key:
                self._resolved[key] = (node, form[node])
            return Relation((Term(node, self.spelled(node, region), form[node], limit),))
        known = self._forms.get(_direction(form))
        if known is None:
            return relation
        through = [(node, limit) for node, limit in limits if limit is not None]
        if through and self.values[known[0]].op != "+":
            return relation
        coef = form[min(form)] / known[1]
        if key:
            self._resolved[key] = (known[0], coef)
        return Relation((Term(known[0], self.spelled(known[0], region), coef, limited((), through)),))

    def equate(self, node: int, form: Mapping[int, Fraction]) -> None:
        """A value is a sum of others, by what its op does."""
        self.values[node] = replace(self.values[node], form=form)
        if len(form) > 1:
            self._forms.setdefault(_direction(form), (node, form[min(form)]))

    def renamed(self, relation: Relation) -> Relation:
        """All of a value that equals a multiple of another, or a sum that has a name already, as that."""
        term = relation.single
        form = None if term is None or term.limit is not None else self.values[term.node].form
        if term is None or form is None or self.values[term.node].op == "+":
            return relation
        node, by = next(iter(form.items())) if len(form) == 1 else self._forms[_direction(form)]
        by = by if len(form) == 1 else form[min(form)] / by
        if node == term.node:
            return relation
        return Relation((Term(node, self.spelled(node, term.region), term.coef * by),))

    def aligned(self, relation: Relation) -> Region | None:
        """The one region all terms are of, dims apart along which some only repeat."""
        region: list[Index] = []
        for dim, first in enumerate(relation.terms[0].region):
            held = {term.region[dim] for term in relation.terms if dim not in self.values[term.node].free}
            if len(held) > 1:
                return None
            region.append(held.pop() if held else first)
        return tuple(region)

    def expanded(self, relation: Relation) -> dict[tuple[int, Limit | None], Fraction]:
        """A relation of one region with every sum opened."""
        sums: dict[tuple[int, Limit | None], Fraction] = {}
        for term in relation.terms:
            for node, limit, coef in self._opened(term):
                before = sums.get((node, limit))
                sums[node, limit] = coef if before is None else before + coef
        return {key: coef for key, coef in sums.items() if coef}

    def same(self, one: Relation, other: Relation) -> bool:
        """Are two relations the same sum? Sums of sums are opened first; what has no elements is all one."""
        if one == other:
            return True
        if any(isinstance(size, int) and not size for size in one.shape):
            return one.shape == other.shape
        return self._open(one) == self._open(other)

    def _open(self, relation: Relation) -> Relation | None:
        return combined(
            (coef, Relation((Term(node, self.spelled(node, term.region), ONE, limit),)))
            for term in relation.terms
            for node, limit, coef in self._opened(term)
        )

    def _opened(self, term: Term) -> Iterable[tuple[int, Limit | None, Fraction]]:
        form = self.values[term.node].form
        if form is None or (
            term.limit is not None and (term.limit.shares or self.values[term.node].op != "+")
        ):
            return [(term.node, term.limit, term.coef)]
        if term.limit is None:
            if term.coef is ONE:
                return [(node, None, coef) for node, coef in form.items()]
            return [(node, None, coef * term.coef) for node, coef in form.items()]
        limits = dict(term.limit.through)
        return [(node, limits[node], coef * term.coef) for node, coef in form.items()]


def number(value: object) -> Key:
    """Numbers are equal when their kind is too: 1, 1.0 and True are three."""
    return ("number", type(value).__name__, repr(value))


def is_part(operand: object) -> bool:
    """A Part, and not a number or None."""
    return isinstance(operand, tuple) and operand[0] != "number"


def base(operand: object) -> object:
    """What candidates are looked up by: which value, and its factor."""
    return (operand[0], operand[2]) if isinstance(operand, tuple) and operand[0] != "number" else operand


def _direction(form: Mapping[int, Fraction]) -> Key:
    lead = form[min(form)]
    return tuple(sorted((node, coef / lead) for node, coef in form.items()))
