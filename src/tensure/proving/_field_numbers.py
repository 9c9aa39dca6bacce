"""Numbers as elements of the finite field."""

from __future__ import annotations

from fractions import Fraction
from typing import Final

from tensure.program import rational

P: Final = (1 << 127) - 1


def element_of(value: Fraction) -> int:
    """A fraction as the field element it stands for."""
    return value.numerator * pow(value.denominator, -1, P) % P


def hash_number(value: float) -> int:
    """A number as the field element it stands for."""
    return element_of(rational(value))
