"""Products in one spelling: values of elementwise steps as polynomials over what is multiplied.

An element of x * y + z is a polynomial in the elements of x, y and z at the same place; silu(x) is x times
sigmoid(x), and the backward steps of sigmoid, tanh and silu are products with 1 - s. Two values of one shape
with one polynomial are one value, over the reals. Only whole operands of the result's own shape are opened
(nothing is broadcast), all of one float dtype; what is not opened is an atom, which is always sound.
Bounded: 32 monomials, degree 8. Knows no rules and no plan.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Final, TypeAlias

from ._index import Region, shape_of, whole_region
from ._linear import exact
from ._relation import ONE, Relation, Term
from ._values import FLOATS, Part, Value, Values, is_part

Atom: TypeAlias = tuple[str, int, Region, Fraction]
"""("value", node, region, 1) or ("sigmoid", node, region, factor): the sigmoid of that multiple."""
Monomial: TypeAlias = tuple[tuple[Atom, int], ...]
"""Atoms in order, with their powers."""
Polynomial: TypeAlias = dict[Monomial, Fraction]
OPENED: Final = frozenset("mul pow square sigmoid silu sigmoid_backward tanh_backward silu_backward".split())
MAX_MONOMIALS: Final = 32
MAX_DEGREE: Final = 8
MAX_TERMS: Final = 8
CONSTANT: Final[Polynomial] = {(): ONE}


class _BeyondBounds(Exception):
    """Too many monomials, or of too high a degree: the value stays an atom."""


class Products:
    """The polynomials of all values so far, and which value has one first.

    Values are numbered after their operands, so that each is made from those before it.
    """

    def __init__(self, values: Values) -> None:
        self._values = values
        self._made: list[Polynomial] = []
        self._first: dict[object, tuple[int, Fraction]] = {}

    def term(self, node: int, region: Region) -> Term | None:
        """An earlier value, or a multiple of one, that is this one; None when there is none."""
        self._grow()
        return self._known(self._made[node], node, region)

    def summed(self, relation: Relation, region: Region) -> Term | None:
        """A value that a sum of values at one region is a multiple of, because of products in it."""
        if len(relation.terms) > MAX_TERMS or relation.limited:
            return None
        self._grow()
        values = self._values.values
        shapes = {values[term.node].type for term in relation.terms if values[term.node].op != "full"}
        opened = any(values[term.node].op in OPENED for term in relation.terms)
        if not opened or len(shapes) != 1 or next(iter(shapes)).dtype not in FLOATS:
            return None
        sums: Polynomial = {}
        for term in relation.terms:
            sums = added(sums, scaled(self._made[term.node], term.coef))
        frees = {values[term.node].free for term in relation.terms if values[term.node].op != "full"}
        like = next(term.node for term in relation.terms if values[term.node].op != "full")
        return self._known(sums, like, region) if len(frees) == 1 and bounded(sums) else None

    def _known(self, made: Polynomial, like: int, region: Region) -> Term | None:
        """Atoms have the shape and dtype of the value, so that one polynomial says one value of both."""
        if not any(made):
            return None  # nothing, or a number
        key, lead = direction(made)
        node, first = self._first.get(key, (like, lead))
        mine, other = self._values.values[like], self._values.values[node]
        if node == like or other.type != mine.type or other.free != mine.free:
            return None
        return Term(node, region, lead / first)

    def _grow(self) -> None:
        values = self._values.values
        for node in range(len(self._made), len(values)):
            try:
                made = self._opened(node, values[node])
            except _BeyondBounds:
                made = None
            if made is None or not bounded(made):
                made = self._atom("value", (node, whole_region(values[node].type.shape), ONE))
            self._made.append(made)
            if any(made):
                key, lead = direction(made)
                self._first.setdefault(key, (node, lead))

    def _opened(self, node: int, value: Value) -> Polynomial | None:
        """The polynomial of a value; None where it is an atom."""
        if value.type.dtype not in FLOATS or value.out:
            return None
        if value.op == "full":
            number = exact(value.given["fill_value"])
            return None if number is None else {(): number} if number else {}
        if value.op == "+" and value.form is not None:
            sums: Polynomial = {}
            for part, coef in value.form.items():
                inner = self._values.values[part]
                if inner.op != "full" and inner.type != value.type:
                    return None
                sums = added(sums, scaled(self._made[part], coef))
            return sums
        if value.op not in OPENED:
            return None
        held = [part for part in value.operands if isinstance(part, tuple) and is_part(part)]
        if any(self._values.values[part[0]].type.dtype != value.type.dtype for part in held):
            return None
        if any(shape_of(part[1]) != value.type.shape for part in held):
            return None
        return self._product(value, held)

    def _product(self, value: Value, held: list[Part]) -> Polynomial | None:
        args = [self._operand(part) for part in held]
        if value.op == "mul":
            return times(*args) if len(args) == 2 else None
        if value.op == "square":
            return times(args[0], args[0])
        if value.op == "pow":
            power = value.operands[1]
            if len(args) != 1 or power not in (("number", "int", "2"), ("number", "int", "3")):
                return None
            squared = times(args[0], args[0])
            return squared if power == ("number", "int", "2") else times(squared, args[0])
        if value.op in ("sigmoid", "silu"):  # silu(x) = x s(x)
            sigmoid = self._atom("sigmoid", held[0])
            return sigmoid if value.op == "sigmoid" else times(args[0], sigmoid)
        grad, other = args
        if value.op == "sigmoid_backward":  # g y (1 - y), of y = s(x)
            return times(grad, other, added(CONSTANT, scaled(other, -ONE)))
        if value.op == "tanh_backward":  # g (1 - y^2), of y = tanh(x)
            return times(grad, added(CONSTANT, scaled(times(other, other), -ONE)))
        sigmoid = self._atom("sigmoid", held[1])  # (x s(x))' = s (1 + x (1 - s))
        left = added(CONSTANT, scaled(sigmoid, -ONE))
        return times(grad, sigmoid, added(CONSTANT, times(other, left)))

    def _operand(self, part: Part) -> Polynomial:
        """All of a value is opened, if it has the shape that is said; a part is an atom."""
        node, region, factor = part
        value = self._values.values[node]
        opens = self._values.is_whole(node, region) and shape_of(region) == value.type.shape
        made = self._made[node] if opens else self._atom("value", (node, region, ONE))
        return scaled(made, factor)

    def _atom(self, kind: str, part: Part) -> Polynomial:
        node, region, factor = part
        return {(((kind, node, self._values.spelled(node, region), factor), 1),): ONE}


def added(one: Polynomial, other: Polynomial) -> Polynomial:
    """A sum."""
    made = dict(one)
    for key, coef in other.items():
        made[key] = made.get(key, Fraction(0)) + coef
    return {key: coef for key, coef in made.items() if coef}


def scaled(one: Polynomial, by: Fraction) -> Polynomial:
    """A multiple."""
    return {key: coef * by for key, coef in one.items()}


def times(first: Polynomial, *rest: Polynomial) -> Polynomial:
    """A product; raises what says that it is beyond the bounds."""
    made = first
    for other in rest:
        product: Polynomial = {}
        for one, by in made.items():
            for two, more in other.items():
                powers = dict(one)
                for atom, power in two:
                    powers[atom] = powers.get(atom, 0) + power
                key = tuple(sorted(powers.items()))
                product[key] = product.get(key, Fraction(0)) + by * more
        made = {key: coef for key, coef in product.items() if coef}
        if not bounded(made):
            raise _BeyondBounds
    return made


def bounded(made: Polynomial) -> bool:
    """Few enough monomials, of a degree low enough."""
    return len(made) <= MAX_MONOMIALS and all(sum(power for _, power in key) <= MAX_DEGREE for key in made)


def direction(made: Polynomial) -> tuple[object, Fraction]:
    """A polynomial but for a factor, and that factor."""
    lead = made[min(made)]
    return frozenset((key, coef / lead) for key, coef in made.items()), lead
