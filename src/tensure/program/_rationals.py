"""What a number written in a program stands for over the reals.

A decimal constant such as 0.1 has no exact double; read bit by bit, ten times it would not be 1. It stands
for the simplest fraction that rounds to it: 0.1 is 1/10. No two doubles stand for the same fraction.
"""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Final

from tensure.errors import RecordError

__all__ = ["fraction_words", "rational"]

_SHOWN_DIGITS: Final = 6
"""Of a number in a message; a fraction with more above or below its line tells nobody anything."""


def rational(value: float) -> Fraction:
    """The simplest fraction that rounds to a number; an integer is itself.

    Raises:
        RecordError: infinity or no number at all.
    """
    if isinstance(value, int):
        return Fraction(value)
    if not math.isfinite(value):
        raise RecordError(f"{value} as a fraction", wanted="a finite number")
    exact = Fraction(value)
    if exact.denominator == 1:
        return exact
    size = abs(exact)
    below, above = Fraction(math.nextafter(float(size), 0.0)), Fraction(math.nextafter(float(size), math.inf))
    found = _simplest((below + size) / 2, (size + above) / 2)
    # The ends of the interval round to even: they may be the neighbour's.
    if float(found) != float(size):
        found = size
    return found if value > 0 else -found


def fraction_words(value: Fraction) -> str:
    """A fraction as people read it: `8/9`, or `~0.9`, rounded, where it has over six digits.

    For messages alone: what is compared, certified or parsed is the fraction itself.
    """
    if max(abs(value.numerator), value.denominator) < 10**_SHOWN_DIGITS or value.denominator == 1:
        return str(value)
    with localcontext(prec=_SHOWN_DIGITS):
        rounded = Decimal(value.numerator) / Decimal(value.denominator)
    return f"~{rounded.normalize():g}"


def _simplest(low: Fraction, high: Fraction) -> Fraction:
    """The fraction of least denominator with low <= it <= high, by continued fractions."""
    whole: list[int] = []
    while -(-low.numerator // low.denominator) > high:
        floor = low.numerator // low.denominator
        whole.append(floor)
        low, high = 1 / (high - floor), 1 / (low - floor)
    found = Fraction(-(-low.numerator // low.denominator))
    for floor in reversed(whole):
        found = floor + 1 / found
    return found
