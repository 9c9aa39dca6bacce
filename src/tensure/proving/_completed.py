"""The completed claims of one walk as a certificate has them: what every local is, and values they need.

A value the Program does not name is defined by the op and the parts of values it is made from. Knows
the certificate's form and no rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from tensure.bundle import Json
from tensure.program import Affine, Whole, axes_in

from ._flow import Flow
from ._index import Region
from ._limit import Limit
from ._relation import ONE, Relation, Term
from ._values import is_part


def completed(found: Flow) -> tuple[list[Json], list[Json]]:
    """Definitions of unnamed values, each before what needs it; and claims, rank by rank, in order."""
    writer = _Writer(found)
    rows: list[Json] = []
    for rank, table in found.relations.items():
        for name, relation in table.items():
            terms = writer.relation(relation)
            if terms is not None:
                rows.append([str(rank), str(name), terms])
    return writer.definitions, rows


class _Writer:
    """Names for values as they are needed."""

    def __init__(self, found: Flow) -> None:
        self._logical = found.logical
        self._labels: dict[int, tuple[str, Fraction] | None] = dict(found.logical.labels)
        self.definitions: list[Json] = []
        self._regions: dict[Region, list[Json]] = {}

    def relation(self, relation: Relation) -> list[Json] | None:
        """A relation's terms; None where it rests on something that is no value."""
        rows = [self._term(term) for term in relation.terms]
        return None if any(row is None for row in rows) else rows

    def _term(self, term: Term) -> Json:
        label = self._label(term.node)
        rows: list[Json] = []
        if label is None or (term.limit is not None and self._limits(term.node, term.limit, rows) is None):
            return None
        region = self._regions.get(term.region)  # many locals stand in one place: one list serves them all
        if region is None:
            region = self._regions[term.region] = _region(term.region)
        coef = term.coef if label[1] == 1 else term.coef / label[1]
        return [_fraction(coef), label[0], region, rows or None]

    def _limits(self, node: int, limit: Limit, rows: list[Json]) -> int | None:
        """Append the rows of a limit, each after those it names by their numbers; its own number."""
        value = self._logical.values[node]
        through: list[Json] = []
        for key, inner in limit.through:
            place: Json = key
            if value.op != "+":
                operand = value.operands[key]
                assert isinstance(operand, tuple)
                found = self._limits(operand[0], inner, rows)
            else:
                label = self._label(key)
                place, found = None if label is None else label[0], self._limits(key, inner, rows)
            if place is None or found is None:
                return None
            through.append([place, found])
        shares: list[Json] = []
        for share in limit.shares:
            letter = share.letter
            if letter.startswith("?"):  # an index tensor by its name
                named = self._label(int(letter[1:]))
                if named is None or named[1] != 1:
                    return None
                letter = f"?{named[0]}"
            shares.append([letter, [[_end(end) for end in run] for run in share.index]])
        rows.append([shares, through])
        return len(rows) - 1

    def _label(self, node: int) -> tuple[str, Fraction] | None:
        """The name of a value, defined if it has none; None for what nothing is known of."""
        todo = [node]
        while todo:
            at = todo[-1]
            if at in self._labels:
                todo.pop()
                continue
            value = self._logical.values[at]
            operands = [item for item in value.operands if isinstance(item, tuple) and is_part(item)]
            if value.op in ("ghost", "leaf"):
                self._labels[todo.pop()] = None
            elif missing := [item[0] for item in operands if item[0] not in self._labels]:
                todo.extend(missing)
            elif any(self._labels[item[0]] is None for item in operands):
                self._labels[todo.pop()] = None
            else:
                self._define(todo.pop())
        return self._labels[node]

    def _define(self, node: int) -> None:
        value = self._logical.values[node]
        items: list[Json] = []
        if axes_in((value.given, value.type.shape)):  # of another kind at every place
            self._labels[node] = None
            return
        for operand in value.operands:
            if isinstance(operand, tuple) and is_part(operand):
                at, region, coef = operand
                label, by = self._labels[at] or ("", ONE)
                if value.op == "+" and value.form is not None:
                    coef = value.form[at]
                items.append([_fraction(coef / by), label, _region(region), None])
            else:
                items.append(_number(operand))
        given: list[Json] = [[key, _attr(part)] for key, part in sorted(value.given.items())]
        label = f"${len(self.definitions)}"
        shape: list[Json] = [int(size) for size in value.type.shape]
        where: list[Json] = [[axis, lo, hi] for axis, lo, hi in sorted(_bounds(value.operands))]
        self.definitions.append([label, value.op, given, items, value.out, shape, value.type.dtype, where])
        self._labels[node] = (label, ONE)


def _bounds(operands: Sequence[object]) -> set[tuple[str, int, int]]:
    """Which places along which axes the parts of many places are of."""
    return {
        (axis, lo, hi)
        for operand in operands
        if isinstance(operand, tuple) and is_part(operand)
        for index in operand[1]
        for run in index
        for end in run
        if isinstance(end, Affine)
        for axis, lo, hi, _ in end.terms
    }


def _number(operand: object) -> Json:
    if isinstance(operand, tuple):
        _, kind, text = operand
        return None if kind == "NoneType" else [str(kind), str(text)]
    return None


def _attr(value: Any) -> Json:
    if isinstance(value, tuple):
        return ["tuple", [_attr(part) for part in value]]
    if value is None:
        return None
    return [type(value).__name__, value if isinstance(value, str) else repr(value)]


def _region(region: Region) -> list[Json]:
    return [[[_end(end) for end in run] for run in index] for index in region]


def _end(end: Whole) -> Json:
    return str(end) if isinstance(end, Affine) else end


def _fraction(value: Fraction) -> str:
    return f"{value.numerator}/{value.denominator}"
