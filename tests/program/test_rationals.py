"""What a written number stands for: the simplest fraction that rounds to it."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensure.errors import RecordError
from tensure.program import rational

FINITE = st.floats(allow_nan=False, allow_infinity=False)


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (0.1, Fraction(1, 10)),
        (1 / 3, Fraction(1, 3)),
        (1 / 40, Fraction(1, 40)),
        (1e-5, Fraction(1, 100_000)),
        (-2 / 7, Fraction(-2, 7)),
        (0.125, Fraction(1, 8)),
        (2.0**-23, Fraction(1, 1 << 23)),
        (3.0, Fraction(3)),
        (5, Fraction(5)),
        (0.0, Fraction(0)),
        (1e22, Fraction(10**22)),
    ],
)
def test_written_fractions_are_meant(value: float, wanted: Fraction) -> None:
    assert rational(value) == wanted


@given(FINITE)
def test_it_rounds_to_the_number(value: float) -> None:
    assert float(rational(value)) == value


@given(FINITE, FINITE)
def test_no_two_numbers_mean_the_same(one: float, other: float) -> None:
    assert (rational(one) == rational(other)) == (one == other)


@given(FINITE)
def test_neighbours_stay_apart(value: float) -> None:
    above = math.nextafter(value, math.inf)
    if math.isfinite(above):
        assert rational(value) < rational(above)


@given(st.integers(-(10**6), 10**6), st.integers(1, 10**6))
def test_every_small_fraction_is_found_again(top: int, bottom: int) -> None:
    assert rational(top / bottom) == Fraction(top, bottom)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_is_no_number_is_refused(value: float) -> None:
    with pytest.raises(RecordError, match="finite"):
        rational(value)
