"""The checker's view of products: are a step's result and its claim one polynomial, element by element?

Elementwise steps without broadcasting make every element a polynomial in the operands' elements at the same
place; sigmoid is taken as it is, silu and the backward steps are written out in it. Equal polynomials in
the same unknowns are equal tensors over the reals, whatever is left unopened. Written apart from the prover:
parts of classes are composed, and each side is opened from its own end.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Final, TypeAlias

from ._check_defined import defined
from ._check_index import selected
from ._check_linear import value
from ._check_ops import FLOATS
from ._check_piece import ONE, Reg, is_part
from ._check_sums import CheckSums, Def, Rel, is_rel, size

Sum: TypeAlias = "dict[frozenset[tuple[Any, int]], Fraction]"
"""Coefficients by unknowns with their powers."""
MAX_PARTS: Final = 32
MAX_POWERS: Final = 8
MAX_OPENED: Final = 1 << 10
MAX_DEEP: Final = 24
NUMBER: Final = frozenset[tuple[Any, int]]()
STEPS: Final = {
    "mul": 2,
    "square": 1,
    "pow": 1,
    "sigmoid": 1,
    "silu": 1,
    "sigmoid_backward": 2,
    "tanh_backward": 2,
    "silu_backward": 2,
}
"""How many tensors the step takes."""


class _TooMany(Exception):
    """Beyond the bounds."""


def multiplied(values: CheckSums, op: str, operands: Sequence[Any], flat: Rel, claim: Any) -> bool:
    """Does a step make the claim, both written as polynomials? `flat`: the result of a linear step."""
    kinds = {values.defs[node].dtype for _, node, _, _ in claim}
    if len(kinds) != 1 or not kinds <= FLOATS or (flat is None and op not in STEPS):
        return False
    (dtype,) = kinds
    writer = _Writer(values, dtype)
    try:
        want = writer.relation(claim, size(claim[0][2]), 0)
        if flat is not None:
            have = writer.relation(flat, size(claim[0][2]), 0)
        else:
            have = writer.step(op, list(operands), size(claim[0][2]), 0)
    except _TooMany:
        return False
    if want is None or have is None or want != have:
        return False
    left = {node for key in have for (_, node, _), _ in key}
    return all(node in left or defined(values, node) for node in writer.met)


class _Writer:
    """Writes relations of one dtype out; every None says that this one cannot be."""

    def __init__(self, values: CheckSums, dtype: str) -> None:
        self._values, self._dtype, self._left = values, dtype, MAX_OPENED
        self.met: set[int] = set()
        """The classes that stand for unknowns, also of those that cancel."""

    def relation(self, rel: Any, shape: tuple[int, ...], deep: int) -> Sum | None:
        """A sum of parts of classes, all of this shape."""
        made: Sum = {}
        for coef, node, reg, limit in rel:
            if limit is not None or size(reg) != shape or self._values.defs[node].dtype != self._dtype:
                return None
            made = _plus(made, self._class(node, reg, deep), coef)
        return made

    def step(self, op: str, operands: list[Any], shape: tuple[int, ...], deep: int) -> Sum | None:
        """What an elementwise step makes of relations of its own shape."""
        rels = [item for item in operands if is_rel(item)]
        others = [item for item in operands if not is_rel(item)]
        if len(rels) != STEPS[op] or (others and op != "pow"):
            return None
        args = [self.relation(rel, shape, deep) for rel in rels]
        one: Sum = {NUMBER: ONE}
        first, last = args[0], args[-1]
        if first is None or last is None:
            return None
        if op == "mul":
            return _by(first, last)
        if op == "square":
            return _by(first, first)
        if op == "pow":
            power = value(others[0]) if len(others) == 1 and is_rel(operands[0]) else None
            if power not in (2, 3):
                return None
            return _by(first, first) if power == 2 else _by(_by(first, first), first)
        if op == "sigmoid_backward":
            return _by(first, _plus(last, _by(last, last), -ONE))
        if op == "tanh_backward":
            return _plus(first, _by(first, _by(last, last)), -ONE)
        if len(rels[-1]) != 1:
            return None
        ((coef, node, reg, _),) = rels[-1]
        sigmoid = self._unknown(("sigmoid", coef), node, reg)
        if op == "sigmoid":
            return sigmoid
        if op == "silu":
            return _by(last, sigmoid)
        # The derivative of x s(x) is s(x) + x s(x) (1 - s(x)).
        slope = _plus(sigmoid, _by(_by(last, sigmoid), _plus(one, sigmoid, -ONE)), ONE)
        return _by(first, slope)

    def _class(self, node: int, reg: Reg, deep: int) -> Sum:
        """A part of a class, opened as far as it is a product or a sum of the same elements."""
        self._left -= 1
        if self._left < 0:
            raise _TooMany
        found = None
        try:
            if deep < MAX_DEEP:
                found = self._inside(self._values.defs[node], reg, deep)
        except _TooMany:
            if self._left < 0:
                raise
        return self._unknown("value", node, reg) if found is None else found

    def _inside(self, item: Def, reg: Reg, deep: int) -> Sum | None:
        if item.op == "full":
            number = value(item.attrs["fill_value"])
            return None if number is None else {NUMBER: number} if number else {}
        if item.out or any(at.stop > n for at, n in zip(reg, item.shape, strict=True)):
            return None
        if item.form is not None:
            made: Sum = {}
            for each, by in item.form.items():
                inner = self._values.defs[each]
                if inner.dtype != self._dtype or (inner.op != "full" and inner.shape != item.shape):
                    return None
                made = _plus(made, self._class(each, self._values.spelled(each, reg), deep + 1), by)
            return made
        if item.op not in STEPS:
            return None
        rels: list[Any] = []
        for operand in item.operands:
            if not is_part(operand):
                rels.append(operand)
                continue
            inner_node, outer, by = operand
            if size(outer) != item.shape:
                return None
            part = selected(outer, reg)
            rels.append(((by, inner_node, self._values.spelled(inner_node, part), None),))
        return self.step(item.op, rels, size(reg), deep + 1)

    def _unknown(self, kind: Any, node: int, reg: Reg) -> Sum:
        self.met.add(node)
        return {frozenset([((kind, node, self._values.spelled(node, reg)), 1)]): ONE}


def _plus(one: Sum, other: Sum, by: Fraction) -> Sum:
    made = dict(one)
    for key, coef in other.items():
        made[key] = made.get(key, Fraction(0)) + coef * by
    return {key: coef for key, coef in made.items() if coef}


def _by(one: Sum, other: Sum) -> Sum:
    made: Sum = {}
    for mine, coef in one.items():
        for theirs, by in other.items():
            powers = dict(mine)
            for unknown, power in theirs:
                powers[unknown] = powers.get(unknown, 0) + power
            if sum(powers.values()) > MAX_POWERS:
                raise _TooMany
            key = frozenset(powers.items())
            made[key] = made.get(key, Fraction(0)) + coef * by
    if len(made) > MAX_PARTS:
        raise _TooMany
    return {key: coef for key, coef in made.items() if coef}
