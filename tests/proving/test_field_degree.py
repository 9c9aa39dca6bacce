"""Bounds on degrees, held against polynomials that are multiplied out."""

from __future__ import annotations

from functools import reduce
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tensure.proving._field_degree import CONSTANT, DRAWN, Degree, widest

Fraction = tuple[Any, Any]
"""Coefficients of a numerator and of a denominator, lowest first."""


def times(one: Fraction, other: Fraction) -> Fraction:
    return np.convolve(one[0], other[0]), np.convolve(one[1], other[1])


def plus(one: Fraction, other: Fraction) -> Fraction:
    return np.polynomial.polynomial.polyadd(
        np.convolve(one[0], other[1]), np.convolve(other[0], one[1])
    ), np.convolve(one[1], other[1])


LEAVES = st.sampled_from([("x", None), ("number", None)])
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(["times", "plus"]), st.lists(inner, min_size=1, max_size=3)),
        st.tuples(st.just("inverse"), inner),
        st.tuples(st.sampled_from(["power", "added"]), st.tuples(inner, st.integers(1, 3))),
    ),
    max_leaves=6,
)


def both(tree: Any) -> tuple[Degree, Fraction]:
    """The bound and the fraction."""
    kind, inner = tree
    if kind in ("x", "number"):
        return (DRAWN, ([1, 2], [1])) if kind == "x" else (CONSTANT, ([3], [1]))
    if kind == "inverse":
        bound, (top, bottom) = both(inner)
        return bound.inverse(), (bottom, top)
    if kind in ("power", "added"):
        bound, made = both(inner[0])
        done = reduce(times if kind == "power" else plus, [made] * inner[1])
        return (bound.power(inner[1]) if kind == "power" else bound.added(inner[1])), done
    items = [both(item) for item in inner]
    bounds, fractions = [item[0] for item in items], [item[1] for item in items]
    if kind == "times":
        return bounds[0].times(*bounds[1:]), reduce(times, fractions)
    return bounds[0].plus(*bounds[1:]), reduce(plus, fractions)


@settings(max_examples=200, deadline=None)
@given(TREES)
def test_no_degree_is_over_its_bound(tree: Any) -> None:
    bound, (top, bottom) = both(tree)
    assert len(top) - 1 <= bound.top and len(bottom) - 1 <= bound.bottom


def test_a_sum_of_polynomials_grows_no_degree() -> None:
    assert DRAWN.added(1000) == DRAWN and DRAWN.plus(DRAWN, CONSTANT) == DRAWN
    assert Degree(2, 1).added(3) == Degree(4, 3)
    assert widest([Degree(3, 0), Degree(1, 2)]) == Degree(3, 2)
