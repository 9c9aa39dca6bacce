"""Integers that stand for one number at every place along some axes: sums of multiples of coordinates.

What is computed with an `Affine` is computed for all places at once. Each comparison is answered only if
the answer is one and the same at every place, and raises `Undecided` otherwise; so does every use as a
plain integer. A run of code that ends without `Undecided` therefore took, at each place, the branches it
took here, and what it made has at each place the value that this code would have made there. (A form
`c + sum(m * x)` takes its least and greatest values over a box at corners, which its signs tell.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeAlias

__all__ = ["Affine", "Loose", "Undecided", "Whole", "apart", "at_place", "axes_in", "coordinate"]

Term: TypeAlias = tuple[str, int, int, int]
"""(axis, lo, hi, multiple): the coordinate is any of lo..hi, hi apart."""


class Undecided(Exception):
    """A question whose answer differs from place to place along some axes; no error of a user's."""

    def __init__(self, what: str, axes: frozenset[str]) -> None:
        super().__init__(what, axes)
        self.what, self.axes = what, axes

    def __str__(self) -> str:
        return f"{self.what} has no one answer along {', '.join(sorted(self.axes))}"


class Affine:
    """`constant + multiple * coordinate + ...`, never a plain integer; make it with `coordinate`."""

    __slots__ = ("_hash", "constant", "least", "most", "terms")
    equal_at_some: bool | None = None
    """What == says of two that are equal at some places only; None raises."""

    def __init__(self, terms: tuple[Term, ...], constant: int) -> None:
        self.terms = terms
        self.constant = constant
        self._hash = hash((terms, constant))
        least = most = constant
        for _, lo, hi, m in terms:
            if m > 0:
                least += m * lo
                most += m * (hi - 1)
            else:
                least += m * (hi - 1)
                most += m * lo
        self.least, self.most = least, most
        """The smallest and the greatest value at any place."""

    @property
    def axes(self) -> frozenset[str]:
        """The axes it depends on."""
        return frozenset([term[0] for term in self.terms])

    # arithmetic --------------------------------------------------------------------------------------

    def __add__(self, other: Whole) -> Whole:
        if isinstance(other, int):
            return type(self)(self.terms, self.constant + other)
        if not isinstance(other, Affine):
            return NotImplemented
        if self.terms == other.terms:
            table = {axis: (lo, hi, 2 * m) for axis, lo, hi, m in self.terms}
        else:
            table = {axis: (lo, hi, m) for axis, lo, hi, m in self.terms}
            for axis, lo, hi, m in other.terms:
                mine = table.get(axis, (lo, hi, 0))
                if mine[:2] != (lo, hi):
                    raise Undecided(f"{self} + {other} between places of two kinds", frozenset((axis,)))
                table[axis] = (lo, hi, mine[2] + m)
        return _made(type(self), table, self.constant + other.constant)

    __radd__ = __add__

    def __neg__(self) -> Affine:
        return type(self)(tuple((axis, lo, hi, -m) for axis, lo, hi, m in self.terms), -self.constant)

    def __sub__(self, other: Whole) -> Whole:
        if isinstance(other, int):
            return type(self)(self.terms, self.constant - other)
        if not isinstance(other, Affine):
            return NotImplemented
        if self.terms is other.terms or self.terms == other.terms:
            return self.constant - other.constant
        return self + -other

    def __rsub__(self, other: int) -> Whole:
        return -self + other

    def __mul__(self, other: Whole) -> Whole:
        if isinstance(other, Affine):
            raise Undecided(f"({self}) * ({other})", self.axes | other.axes)
        if not isinstance(other, int):
            return NotImplemented
        if other == 0:
            return 0
        terms = tuple((axis, lo, hi, m * other) for axis, lo, hi, m in self.terms)
        return type(self)(terms, self.constant * other)

    __rmul__ = __mul__

    def __floordiv__(self, other: Whole) -> Whole:
        return self._divided(other)[0]

    def __mod__(self, other: Whole) -> Whole:
        return self._divided(other)[1]

    def __divmod__(self, other: Whole) -> tuple[Whole, Whole]:
        return self._divided(other)

    def _divided(self, by: Whole) -> tuple[Whole, Whole]:
        """Exact where what is left of multiples of the divisor has one quotient at all places."""
        if isinstance(by, Affine):
            raise Undecided(f"({self}) // ({by})", self.axes | by.axes)
        if by == 0:
            raise ZeroDivisionError
        even = {axis: (lo, hi, m // by) for axis, lo, hi, m in self.terms if m % by == 0}
        odd = {axis: (lo, hi, m) for axis, lo, hi, m in self.terms if m % by}
        rest = _made(type(self), odd, self.constant)
        quotient = rest.least // by if isinstance(rest, Affine) else rest // by
        if isinstance(rest, Affine) and rest.most // by != quotient:
            raise Undecided(f"({self}) // {by}", rest.axes)
        return _made(type(self), even, quotient), rest - quotient * by

    def __rfloordiv__(self, other: int) -> int:
        raise Undecided(f"{other} // ({self})", self.axes)

    def __rmod__(self, other: int) -> int:
        raise Undecided(f"{other} % ({self})", self.axes)

    def __rdivmod__(self, other: int) -> tuple[int, int]:
        raise Undecided(f"{other} // ({self})", self.axes)

    def __abs__(self) -> Whole:
        return -self if self < 0 else self

    # questions ---------------------------------------------------------------------------------------

    def __lt__(self, other: Whole) -> bool:
        if isinstance(other, int):
            return self.most < other or _one(False, self.least >= other, self, "<", other)
        left = self - other
        if isinstance(left, int):
            return left < 0
        return _one(left.most < 0, left.least >= 0, self, "<", other)

    def __le__(self, other: Whole) -> bool:
        if isinstance(other, int):
            return self.most <= other or _one(False, self.least > other, self, "<=", other)
        left = self - other
        if isinstance(left, int):
            return left <= 0
        return _one(left.most <= 0, left.least > 0, self, "<=", other)

    def __gt__(self, other: Whole) -> bool:
        return not self <= other

    def __ge__(self, other: Whole) -> bool:
        return not self < other

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if isinstance(other, Affine):
            if self._hash == other._hash and (self.terms, self.constant) == (other.terms, other.constant):
                return True
        elif not isinstance(other, int):
            return NotImplemented
        if self.equal_at_some is not None:
            return self.equal_at_some
        left = self - other
        if isinstance(left, int):
            return left == 0
        return _one(False, left.least > 0 or left.most < 0 or not left.reaches(0), self, "==", other)

    def reaches(self, value: int) -> bool:
        """Whether it may be a value at some place; a value that all multiples rule out it is not."""
        if len(self.terms) == 1:
            ((_, lo, hi, m),) = self.terms
            at, rest = divmod(value - self.constant, m)
            return not rest and lo <= at < hi
        return self.least <= value <= self.most

    def __hash__(self) -> int:
        return self._hash

    def __bool__(self) -> bool:
        return self != 0

    def __index__(self) -> int:
        raise Undecided(f"{self} as one number", self.axes)

    __int__ = __index__
    __trunc__ = __index__

    def __str__(self) -> str:
        parts = [axis if m == 1 else f"{m}*{axis}" for axis, _, _, m in self.terms]
        text = "+".join(parts + ([str(self.constant)] if self.constant else []))
        return text.replace("+-", "-")

    def __repr__(self) -> str:
        # What tells attributes apart by how they are written must not take one for a number or for None.
        where = ", ".join(f"{axis} in {lo}:{hi}" for axis, lo, hi, _ in self.terms)
        return f"{type(self).__name__}({self} for {where})"

    def __reduce__(self) -> tuple[type[Affine], tuple[tuple[Term, ...], int]]:
        return type(self), (self.terms, self.constant)  # another process has other hashes


class Loose(Affine):
    """For code that is not trusted and only looks for equalities: equal at some places only is not equal."""

    __slots__ = ()
    equal_at_some = False


Whole: TypeAlias = Any
"""An integer or an Affine; typed loosely, as an Affine stands where integers are expected."""


def coordinate(axis: str, lo: int, hi: int, kind: type[Affine] = Affine) -> Whole:
    """Any place lo..hi along an axis; the integer where there is but one."""
    return lo if hi - lo == 1 else kind(((axis, lo, hi, 1),), 0)


def at_place(value: Whole, place: Mapping[str, int]) -> Whole:
    """What an integer is where some coordinates are known."""
    if not isinstance(value, Affine):
        return value
    constant, left = value.constant, list[Term]()
    for term in value.terms:
        if term[0] in place:
            constant += term[3] * place[term[0]]
        else:
            left.append(term)
    if len(left) == len(value.terms):
        return value
    return type(value)(tuple(left), constant) if left else constant


_NONE: Final[frozenset[str]] = frozenset()
_PLAIN: Final = frozenset([int, str, bool, float, type(None)])


def axes_in(value: Any) -> frozenset[str]:
    """The axes that a value made of tuples, mappings and integers depends on."""
    if isinstance(value, Affine):
        return value.axes
    if isinstance(value, (tuple, list, frozenset)):
        found = _NONE
        for part in value:
            if type(part) is not int and type(part) is not str and (inner := axes_in(part)):
                found |= inner
        return found
    if type(value) not in _PLAIN and isinstance(value, Mapping):
        return axes_in(tuple(value.values()))
    return _NONE


def apart(one: Any, other: Any) -> bool:
    """Whether two integers, strings, or tuples of them are different at every place; False: the same at each.

    For whatever has to be unique: expressions that are written apart may still meet at some place.

    Raises:
        Undecided: they differ at some places only.
    """
    if isinstance(one, tuple) and isinstance(other, tuple):
        if len(one) != len(other):
            return True
        undecided: Undecided | None = None
        for left, right in zip(one, other, strict=True):
            try:
                if apart(left, right):
                    return True
            except Undecided as meeting:
                undecided = meeting
        if undecided is not None:
            raise undecided
        return False
    if not (isinstance(one, (int, Affine)) and isinstance(other, (int, Affine))):
        return bool(one != other)
    gap = one - other
    if isinstance(gap, int):
        return gap != 0
    return _one(gap.least > 0 or gap.most < 0 or not gap.reaches(0), False, gap, "!=", 0)


def _made(kind: type[Affine], table: Mapping[str, tuple[int, int, int]], constant: int) -> Whole:
    terms = tuple((axis, lo, hi, m) for axis, (lo, hi, m) in sorted(table.items()) if m)
    return kind(terms, constant) if terms else constant


def _one(yes: bool, no: bool, left: Affine, what: str, right: Any) -> bool:
    if yes or no:
        return yes
    raise Undecided(f"{left} {what} {right}", left.axes | axes_in(right))
