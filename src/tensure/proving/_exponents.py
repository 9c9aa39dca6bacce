"""Exponentials in one spelling: products, quotients and sums of exponentials by their exponents.

exp(f) exp(g) = exp(f + g); an exponential is never zero, so that it may be divided by and cancels; the sum of
exp(f) along a dim is exp(logsumexp(f)), and what of f only repeats along the dim leaves it. Two values with
the same exponent, and the same other factors, are one but for a number. Factors that are no exponentials are
not cancelled. Only wholes of one shape are multiplied; what is spread or viewed keeps its exponent. Knows
no rules and no plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Final

from tensure.program import TensorType

from ._equations import do, held_of, log_softmax_of, narrowed
from ._index import Region, shape_of, whole_region
from ._linear import exact
from ._relation import ONE, Relation, Term
from ._steps import Held
from ._sums import Sums
from ._values import FLOATS, Part, Value, is_part

WATCHED: Final = frozenset(["exp", "softmax", "_softmax", "mul", "div", "reciprocal", "sum"])
"""Ops whose values are looked up by their exponents."""
MAX_FACTORS: Final = 8
MAX_EXPONENT: Final = 16


@dataclass(frozen=True, slots=True)
class Factored:
    """A number times factors times an exponential, all of one shape.

    Args:
        coef: the number, never 0.
        above: other values that are factors, with their powers.
        below: values that are divided by; nothing cancels between the two.
        exponent: of the exponential, as a sum of values.
    """

    coef: Fraction = ONE
    above: Mapping[int, int] = field(default_factory=dict)
    below: Mapping[int, int] = field(default_factory=dict)
    exponent: Mapping[int, Fraction] = field(default_factory=dict)

    @property
    def key(self) -> object:
        """What it is but for the number."""
        return tuple(frozenset(part.items()) for part in (self.above, self.below, self.exponent))


class Exponents:
    """The exponents of all values so far, and which value has one first."""

    def __init__(self, values: Sums) -> None:
        self._values = values
        self._known: dict[int, Factored | None] = {}
        self._first: dict[object, tuple[int, Fraction]] = {}

    def register(self, node: int) -> None:
        """Take a value into account."""
        value = self._values.values[node]
        if value.op in WATCHED and not value.out and value.type.dtype in FLOATS:
            made = self.of(node)
            if made is not None and made.exponent:
                self._first.setdefault(self._key(node, made), (node, made.coef))

    def term(self, node: int, region: Region) -> Term | None:
        """An earlier value, or a multiple of one, that is this one; None when there is none."""
        value = self._values.values[node]
        made = self.of(node) if value.op in WATCHED and value.type.dtype in FLOATS else None
        if made is None:
            return None
        if not made.exponent:
            if value.op == "sum" or made.above or made.below:
                return None
            ones = self._values.filled(1.0, TensorType(shape_of(region), value.type.dtype)).terms[0]
            return Term(ones.node, ones.region, made.coef * ones.coef)  # all of it cancels
        first, coef = self._first.get(self._key(node, made), (node, made.coef))
        return None if first == node else Term(first, region, made.coef / coef)

    def of(self, node: int) -> Factored | None:
        """The exponent of a value and what else it is made of; None where it has none."""
        if node not in self._known:
            self._known[node] = None
            self._known[node] = self._found(self._values.values[node])
        return self._known[node]

    def log(self, part: Part) -> Relation | None:
        """The logarithm of an exponential, all of it."""
        values, (node, region, coef) = self._values, part
        made = self.of(node) if values.is_whole(node, region) else None
        if made is None or made.above or made.below or made.coef * coef != 1 or not made.exponent:
            return None
        spot = whole_region(shape_of(region))
        return Relation(
            tuple(Term(inner, values.spelled(inner, spot), by) for inner, by in made.exponent.items())
        )

    def _key(self, node: int, made: Factored) -> object:
        value = self._values.values[node]
        return value.type, value.free, made.key

    def _found(self, value: Value) -> Factored | None:
        if value.out or value.type.dtype not in FLOATS:
            return None
        if value.op == "exp":
            return self._exp(value)
        if value.op in ("softmax", "_softmax"):
            relation = log_softmax_of(self._values, value)
            return None if relation is None else self._of_sum(relation)
        if value.op == "mul":
            made = [self._operand(part, value) for part in value.operands]
            return None if None in made else _times(made[0], made[1], 1)
        if value.op == "div" and value.given.get("rounding_mode") is None:
            made = [self._operand(part, value) for part in value.operands]
            return None if None in made else _times(made[0], made[1], -1)
        if value.op == "reciprocal":
            below = self._operand(value.operands[0], value)
            return None if below is None else _times(Factored(), below, -1)
        if value.op in ("view", "expand"):
            return self._moved(value)
        if value.op == "sum":
            return self._sum(value)
        return None

    def _exp(self, value: Value) -> Factored | None:
        held = held_of(self._values, value.operands[0])
        if held is None or held.type != value.type:
            return None
        return self._of_sum(held.relation)

    def _of_sum(self, relation: Relation) -> Factored | None:
        values = self._values
        if any(not values.is_whole(term.node, term.region) for term in relation.terms):
            return None
        exponent = {node: coef for (node, _), coef in values.expanded(relation).items()}
        return Factored(exponent=exponent) if len(exponent) <= MAX_EXPONENT else None

    def _operand(self, part: object, like: Value) -> Factored | None:
        """An operand in the result's shape, opened if it is all of an exponential, else as a factor."""
        values = self._values
        held = held_of(values, part)
        if held is None:
            number = _number(part)
            return Factored(number) if number else None
        if held.type.dtype != like.type.dtype:
            return None
        if held.type.shape != like.type.shape:
            held = do(values, "expand", {"size": like.type.shape}, [held], like.type)
        term = held.relation.single
        if term is None or not values.is_whole(term.node, term.region):
            return None
        value = values.values[term.node]
        if value.op == "full":
            number = exact(value.given["fill_value"])
            return Factored(number * term.coef) if number else None
        inner = self.of(term.node)
        if inner is not None:
            return _times(Factored(term.coef), inner, 1)
        return Factored(term.coef, {term.node: 1})

    def _moved(self, value: Value) -> Factored | None:
        """Seen in another shape: so are the exponent's parts."""
        (part,) = value.operands
        inner = self._inner(part)
        if inner is None:
            return None
        given = {"size": value.type.shape}
        tables: list[dict[int, Any]] = []
        coef = inner.coef
        for table in (inner.above, inner.below, inner.exponent):
            moved: dict[int, Any] = {}
            for node, power in table.items():
                source = self._values.values[node].type
                term = self._whole(node, source.dtype, shape_of(part[1]))  # type: ignore[index]
                made = do(self._values, value.op, given, [term], value.type).relation.single
                if made is None or not self._values.is_whole(made.node, made.region) or made.node in moved:
                    return None
                if table is inner.exponent:
                    moved[made.node] = power * made.coef
                elif made.coef == 1:
                    moved[made.node] = power
                else:
                    return None
            tables.append(moved)
        return Factored(coef, *tables)

    def _inner(self, part: object) -> Factored | None:
        if not isinstance(part, tuple) or not is_part(part):
            return None
        node, region, coef = part
        made = self.of(node) if self._values.is_whole(node, region) else None
        return _times(Factored(coef), made, 1) if made is not None and made.exponent else None

    def _whole(self, node: int, kind: str, shape: tuple[int, ...]) -> Held:
        region = self._values.spelled(node, whole_region(shape))
        return Held(TensorType(shape, kind), Relation((Term(node, region),)))

    def _sum(self, value: Value) -> Factored | None:
        """exp(f + c) summed along dims where only c repeats is exp(logsumexp(f) + c)."""
        (part,) = value.operands
        inner = self._inner(part)
        if inner is None or value.given["dtype"] is not None or inner.above or inner.below:
            return None
        values, dims = self._values, value.given["dim"]
        shape = shape_of(part[1])  # type: ignore[index]
        thin = TensorType(tuple(1 if at in dims else n for at, n in enumerate(shape)), value.type.dtype)
        bound: list[Term] = []
        made: list[tuple[Fraction, Held]] = []
        for node, coef in inner.exponent.items():
            region = values.spelled(node, whole_region(shape))
            if not all(dim in values.values[node].free for dim in dims):
                bound.append(Term(node, region, coef))
                continue
            one = narrowed(values, (node, region, ONE), dims)
            if one is None:
                return None
            made.append((coef, one))
        if not bound:
            return None
        relation = values.sum_of(Relation(tuple(bound)), TensorType(shape, value.type.dtype))
        given = {"dim": tuple(dims), "keepdim": True}
        made.append(
            (ONE, do(values, "logsumexp", given, [Held(TensorType(shape, thin.dtype), relation)], thin))
        )
        exponent: dict[int, Fraction] = {}
        for coef, held in made:
            seen = do(values, "view", {"size": value.type.shape}, [held], value.type)
            for (node, _), by in values.expanded(seen.relation).items():
                exponent[node] = exponent.get(node, Fraction(0)) + coef * by
        return Factored(inner.coef, exponent={node: coef for node, coef in exponent.items() if coef})


def _number(part: object) -> Fraction | None:
    if isinstance(part, tuple) and part[:1] == ("number",) and part[1] in ("int", "float"):
        return exact(float(part[2]) if part[1] == "float" else int(part[2]))
    return None


def _times(one: Factored | None, other: Factored | None, sign: int) -> Factored | None:
    """A product, or a quotient by what is no zero where it has a value."""
    if one is None or other is None:
        return None
    above, below = dict(one.above), dict(one.below)
    for table, ours in ((other.above, above), (other.below, below)):
        target = ours if sign > 0 else below if ours is above else above
        for node, power in table.items():
            target[node] = target.get(node, 0) + power
    exponent = dict(one.exponent)
    for node, coef in other.exponent.items():
        exponent[node] = exponent.get(node, Fraction(0)) + sign * coef
    exponent = {node: coef for node, coef in exponent.items() if coef}
    if sum(above.values()) + sum(below.values()) > MAX_FACTORS or len(exponent) > MAX_EXPONENT:
        return None
    return Factored(one.coef * other.coef**sign, above, below, exponent)
