"""The checker's sums of monomials: factors with their powers, times one exponential, for one element.

exp(f) exp(g) is exp(f + g) and 1 / exp(f) is exp(-f), for an exponential is positive; any other factor that
is divided by stays below, and nothing cancels it. What a sum binds has names that are the same everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Final, TypeAlias

from ._check_piece import ONE

Monomial: TypeAlias = "tuple[frozenset[tuple[Any, int]], frozenset[tuple[Any, Fraction]]]"
"""Factors with their powers, and the exponent as (monomial, coefficient) pairs."""
Written: TypeAlias = "dict[Monomial, Fraction]"
NONE: Final[frozenset[Any]] = frozenset()
MAX_MONOMIALS: Final = 48
MAX_FACTORS: Final = 12


class Stuck(Exception):
    """It cannot be written out; never leaves the checker."""


def plus(one: Written, other: Written, by: Fraction) -> Written:
    """A sum."""
    made = dict(one)
    for key, coef in other.items():
        made[key] = made.get(key, Fraction(0)) + coef * by
    if len(made) > MAX_MONOMIALS or any(not coef and may_lack(key) for key, coef in made.items()):
        raise Stuck
    return {key: coef for key, coef in made.items() if coef}


def times(one: Written, other: Written) -> Written:
    """A product; 0 times what may have no value is not 0."""
    if (not one and any(map(may_lack, other))) or (not other and any(map(may_lack, one))):
        raise Stuck
    made: Written = {}
    for (mine, power), coef in one.items():
        for (theirs, more), by in other.items():
            counts = dict(mine)
            for atom, count in theirs:
                counts[atom] = counts.get(atom, 0) + count
            if sum(counts.values()) > MAX_FACTORS:
                raise Stuck
            key = (frozenset(counts.items()), _added(power, more))
            made[key] = made.get(key, Fraction(0)) + coef * by
    if len(made) > MAX_MONOMIALS or any(not coef and may_lack(key) for key, coef in made.items()):
        raise Stuck
    return {key: coef for key, coef in made.items() if coef}


def _added(one: frozenset[Any], other: frozenset[Any]) -> frozenset[Any]:
    made = dict(one)
    for key, coef in other:
        made[key] = made.get(key, Fraction(0)) + coef
    if any(not coef and may_lack(key) for key, coef in made.items()):
        raise Stuck
    return frozenset((key, coef) for key, coef in made.items() if coef)


def exp_of(made: Written) -> Written:
    """The exponential."""
    return {(NONE, frozenset(made.items())): ONE}


def inverse(made: Written) -> Written:
    """One by a single monomial; its factors stay below, whatever stands above."""
    if len(made) != 1:
        raise Stuck
    (((factors, exponent), coef),) = made.items()
    below = frozenset((("below", atom), count) for atom, count in factors)
    if any(atom[0] == "below" for atom, _ in factors):
        raise Stuck
    return {(below, frozenset((key, -by) for key, by in exponent)): 1 / coef}


def may_lack(what: Any) -> bool:
    """May this have no value, for it is divided by something, or is of no class that always has one?"""
    if isinstance(what, tuple) and what[:1] in (("below",), ("partial",)):
        return True
    return isinstance(what, (tuple, frozenset)) and any(map(may_lack, what))


def mentions(what: Any, names: Sequence[Any]) -> bool:
    """Does anything stand where these bind?"""
    if isinstance(what, (tuple, frozenset)):
        return any(what == label for label, _ in names) or any(mentions(item, names) for item in what)
    return False


def closed(what: Any, names: Sequence[Any]) -> tuple[Any, ...]:
    """What is summed, with names for what binds that are the same wherever it is met."""
    height = 1 + _highest(what)
    known = {label: ("bound", height, at) for at, (label, _) in enumerate(names)}
    return height, _renamed(what, known)


def _highest(what: Any) -> int:
    if isinstance(what, tuple) and len(what) == 3 and what[0] == "bound":
        return int(what[1])
    if isinstance(what, (tuple, frozenset)):
        return max((_highest(item) for item in what), default=0)
    return 0


def _renamed(what: Any, known: Mapping[Any, Any]) -> Any:
    if isinstance(what, tuple):
        return known[what] if what in known else tuple(_renamed(item, known) for item in what)
    if isinstance(what, frozenset):
        return frozenset(_renamed(item, known) for item in what)
    return what
