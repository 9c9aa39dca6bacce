"""Integer expressions: parse, print, fold and evaluate agree with Python; bounds hold."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensure.errors import LimitError, RecordError
from tensure.program import Expr, Int, axis, evaluate, expr
from tensure.program._expr import combine

ENV = {"a": 7, "b": -3, "c": 0, "long_name": 11}


def trees() -> st.SearchStrategy[Int]:
    leaf = st.integers(-20, 20) | st.sampled_from(sorted(ENV)).map(axis)
    return st.recursive(
        leaf,
        lambda inner: st.builds(_safe, st.sampled_from(["+", "-", "*", "min", "max"]), inner, inner),
        max_leaves=12,
    )


def _safe(head: str, left: Int, right: Int) -> Int:
    return combine(head, left, right)


def python(value: Int) -> int:
    """The same tree by Python's own arithmetic."""
    if isinstance(value, int):
        return value
    head, parts = value.parts()
    if not parts:
        return ENV[head]
    left, right = map(python, parts)
    return {
        "+": left + right,
        "-": left - right,
        "*": left * right,
        "min": min(left, right),
        "max": max(left, right),
    }[head]


@given(trees())
def test_text_is_canonical_and_value_is_pythons(tree: Int) -> None:
    assert expr(str(tree)) == tree
    assert evaluate(tree, ENV) == python(tree)


@given(st.integers(-50, 50), st.integers(-9, 9).filter(bool))
def test_division_floors(x: int, y: int) -> None:
    assert evaluate(expr("x//y"), {"x": x, "y": y}) == x // y
    assert evaluate(expr("x%y"), {"x": x, "y": y}) == x % y
    assert expr(f"({x})//({y})") == x // y


def test_pick_chooses_and_is_bounded() -> None:
    choose = expr("pick(i,5,x,9)")
    assert [evaluate(choose, {"i": i, "x": 1}) for i in range(3)] == [5, 1, 9]
    for index in (-1, 3):
        with pytest.raises(RecordError, match="pick"):
            evaluate(choose, {"i": index, "x": 1})


def test_names_are_known() -> None:
    tree = expr("max(pos-1,0)*(H//n_tp)")
    assert isinstance(tree, Expr)
    assert tree.names == {"pos", "H", "n_tp"}


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("x//0*y", "division by zero"),
        ("a//(b-b)", None),
        ("", "an integer|a name"),
        ("1+", "a name"),
        ("f(1)", "end of the line"),
        ("x.y+1", "integer expression"),
        ("__import__('os')", "character|end of the line"),
        ("a if b else c", "end of the line"),
        ("1.5", "integer expression"),
        ("min(1)", "at least two"),
        ("x=1", "end of the line"),
        ("for", "a name"),
    ],
)
def test_anything_else_is_refused(text: str, error: str | None) -> None:
    with pytest.raises(RecordError, match=error):
        evaluate(expr(text), {"a": 1, "b": 1, "x": 1, "y": 1})


@pytest.mark.parametrize(
    "text",
    ["(" * 5000 + "1" + ")" * 5000, "-" * 5000 + "x", "+".join(["x"] * 5000), "9" * 400, "4*" * 60 + "x"],
)
def test_depth_and_size_are_bounded(text: str) -> None:
    with pytest.raises(LimitError):
        expr(text)


def test_magnitude_is_bounded_at_every_step() -> None:
    with pytest.raises(LimitError, match="64 bits"):
        evaluate(expr("x*x-x*x"), {"x": 1 << 40})
    with pytest.raises(LimitError):
        expr(f"{1 << 62}*4")


def test_a_missing_name_is_named() -> None:
    with pytest.raises(RecordError, match="'pos' in pos\\+1"):
        evaluate(expr("pos+1"), {"L": 3})
