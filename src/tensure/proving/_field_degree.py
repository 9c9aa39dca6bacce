"""How large the polynomials are that a field element stands for: what the error bound is made of."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple


class Degree(NamedTuple):
    """Bounds on the degrees of a numerator and a denominator, as polynomials of what was drawn."""

    top: int
    bottom: int = 0

    @property
    def both(self) -> int:
        """The degree of a difference with another is at most this and the other's."""
        return self.top + self.bottom

    def times(self, *others: Degree) -> Degree:
        """Of a product."""
        items = (self, *others)
        return Degree(sum(item.top for item in items), sum(item.bottom for item in items))

    def plus(self, *others: Degree) -> Degree:
        """Of a sum: over the product of all denominators."""
        items = (self, *others)
        bottom = sum(item.bottom for item in items)
        return Degree(max(item.top + bottom - item.bottom for item in items), bottom)

    def added(self, count: int) -> Degree:
        """Of a sum of so many."""
        return Degree(self.top + (count - 1) * self.bottom, count * self.bottom) if count > 1 else self

    def inverse(self) -> Degree:
        """Of one over it."""
        return Degree(self.bottom, self.top)

    def power(self, count: int) -> Degree:
        """Of so many of it, multiplied."""
        return Degree(self.top * count, self.bottom * count)


DRAWN: Final = Degree(1)
"""Of what is drawn, and of an oracle's answer."""
CONSTANT: Final = Degree(0)


def widest(degrees: Iterable[Degree]) -> Degree:
    """Bounds for elements of several."""
    items = list(degrees)
    return Degree(max(item.top for item in items), max(item.bottom for item in items))
