"""Affine integers: whatever is computed once holds at every place."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensure.program import Affine, Loose, Undecided, apart, at_place, coordinate

BOX = {"dp": (0, 4), "tp": (1, 3)}
SMALL = st.integers(-6, 6)
OPS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
    "%": operator.mod,
    "divmod //": lambda one, other: divmod(one, other)[0],
    "divmod %": lambda one, other: divmod(one, other)[1],
}
ASKED: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}


def leaf(kind: str, number: int, axes: Any) -> Any:
    """A number or a coordinate."""
    return number if kind == "number" else axes[kind]


TREES = st.recursive(
    st.tuples(st.sampled_from(["number", "dp", "tp"]), SMALL),
    lambda inner: st.tuples(st.sampled_from(sorted(OPS)), inner, inner),
    max_leaves=6,
)


def value_of(tree: Any, axes: Any) -> Any:
    """A tree computed with these coordinates."""
    if len(tree) == 2:
        return leaf(*tree, axes)
    return OPS[tree[0]](value_of(tree[1], axes), value_of(tree[2], axes))


def places() -> list[dict[str, int]]:
    """All places of the box."""
    return [
        dict(zip(BOX, at, strict=True))
        for at in itertools.product(*(range(lo, hi) for lo, hi in BOX.values()))
    ]


@pytest.mark.parametrize("kind", [Affine, Loose])
@settings(max_examples=400, deadline=None)
@given(left=TREES, right=TREES, asked=st.sampled_from(sorted(ASKED)))
def test_one_computation_holds_at_every_place(kind: type[Affine], left: Any, right: Any, asked: str) -> None:
    axes = {axis: coordinate(axis, lo, hi, kind) for axis, (lo, hi) in BOX.items()}
    try:
        one, other = value_of(left, axes), value_of(right, axes)
    except (Undecided, ZeroDivisionError):
        return
    assert not isinstance(one, Affine) or one.terms
    for place in places():
        assert at_place(one, place) == value_of(left, place)
    if isinstance(one, Affine):
        found = [value_of(left, place) for place in places()]
        assert one.least <= min(found) and max(found) <= one.most
        assert all(one.reaches(value) for value in found)
    try:
        answer = ASKED[asked](one, other)
    except Undecided:
        return
    truths = {ASKED[asked](value_of(left, place), value_of(right, place)) for place in places()}
    if kind is Affine or asked not in ("==", "!=") or answer is (asked == "=="):
        assert truths == {answer}


def test_what_differs_from_place_to_place_is_refused() -> None:
    dp = coordinate("dp", 0, 4)
    for question in (
        lambda: dp == 0,
        lambda: dp < 3,
        lambda: bool(dp),
        lambda: range(dp),
        lambda: [1, 2, 3][dp],
        lambda: dp % 2,
        lambda: dp * dp,
        lambda: 7 // dp,
        lambda: max(dp, 2),
        lambda: int(dp),
        lambda: dp + coordinate("dp", 4, 8),
    ):
        with pytest.raises(Undecided) as raised:
            question()
        assert raised.value.axes == {"dp"}


def test_what_is_the_same_everywhere_is_answered() -> None:
    dp = coordinate("dp", 0, 4)
    assert dp < 4 and dp >= 0 and dp != 4 and dp != -1 and 2 * dp != 3
    assert (8 * dp + 3) // 8 is not dp and (8 * dp + 3) // 8 == dp and (8 * dp + 3) % 8 == 3
    assert (dp + 8) // 4 == 2 and (dp + 8) % 4 == dp and dp - dp == 0
    assert coordinate("dp", 3, 4) == 3 and str(4 * dp - 2) == "4*dp-2"


def test_loosely_equal_is_equal_everywhere() -> None:
    dp = coordinate("dp", 0, 4, Loose)
    assert dp != 0 and dp == dp + 0 and (dp + 1) - 1 == dp
    with pytest.raises(Undecided):
        assert dp < 2


@pytest.mark.parametrize("kind", [Affine, Loose])
@settings(max_examples=300, deadline=None)
@given(rows=st.lists(st.tuples(TREES, TREES), min_size=1, max_size=3))
def test_what_must_be_unique_is_so_at_every_place(kind: type[Affine], rows: Any) -> None:
    axes = {axis: coordinate(axis, lo, hi, kind) for axis, (lo, hi) in BOX.items()}
    try:
        one, other = (("x", tuple(value_of(row[side], axes) for row in rows)) for side in (0, 1))
    except (Undecided, ZeroDivisionError):
        return
    truths = {
        [value_of(row[0], place) for row in rows] != [value_of(row[1], place) for row in rows]
        for place in places()
    }
    try:
        assert truths == {apart(one, other)}
    except Undecided:
        return
    assert apart(one, ("y", other[1])) and apart(one, (*other, 0)) and apart("x", one[1][0])


def test_a_coordinate_is_not_written_as_a_number_or_nothing() -> None:
    assert repr(coordinate("None", 0, 4)) == "Affine(None for None in 0:4)"
    assert repr(coordinate("dp", 0, 4)) != repr(coordinate("dp", 4, 8))
