"""Conditions on which a run stops: what texts mean, and which steps meet them."""

from __future__ import annotations

import math

import pytest
import torch

from tensure.errors import InputError
from tensure.inspection import Trace, limit_of, parse_break, watch


def met(text: str, trace: Trace) -> list[int]:
    condition = parse_break(text)
    return [step.index for step in trace.steps if condition.met(trace, step) is not None]


def recorded(run: object) -> Trace:
    """A trace with a NaN that appears, passes on, and goes."""
    x = torch.arange(6.0).reshape(1, 2, 3) - 2.0
    with watch(inputs={"x": x}) as seen:
        y = x * 3.0  # 0: up to 9
        z = torch.sqrt(y)  # 1: NaN appears
        w = z + 1.0  # 2: passes on
        v = torch.nan_to_num(w)  # 3: gone
        v.reshape(3, 2).relu_()  # 4, 5
    return seen.trace


@pytest.fixture(scope="module")
def trace() -> Trace:
    return recorded(None)


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("nan", [1]),
        ("NaN", [1]),
        ("inf", [1]),
        ("|x|>8", [0]),
        ("| x | > 8.5", [0]),
        ("abs(x)>8", [0]),
        ("|x|>9", []),
        ("|x|>1e30", []),
        ("shape=1,2,3", [0, 1, 2, 3]),
        ("shape=1,*,3", [0, 1, 2, 3]),
        ("shape=[3, 2]", [4, 5]),
        ("shape=3x2", [4, 5]),
        ("shape=*,*", [4, 5]),
        ("shape=*", []),
        ("shape=[]", []),
        ("op=sqrt", [1]),
        ("op=*u*", [0, 3, 5]),
        ("op=relu", []),
        ("op=relu_", [5]),
        ("name=sqrt_1", [1]),
        ("name=mul_*", [0]),
        ("module=", None),
        ("module=*", [0, 1, 2, 3, 4, 5]),
        ("module=layer*", []),
    ],
)
def test_which_steps_meet_it(trace: Trace, text: str, steps: list[int] | None) -> None:
    if steps is None:
        with pytest.raises(InputError, match="names nothing"):
            parse_break(text)
        return
    assert [step.op for step in trace.steps] == ["mul", "sqrt", "add", "nan_to_num", "view", "relu_"]
    assert met(text, trace) == steps


def test_a_leaf_with_nan_counts_where_it_is_first_read() -> None:
    bad = torch.tensor([1.0, math.nan])
    with watch(inputs={"bad": bad}) as seen:
        a = torch.ones(2)
        b = a + 1.0
        c = b + bad
        (c + bad).exp()
    assert [seen.trace.steps[at].op for at in met("nan", seen.trace)] == ["add"]
    assert met("nan", seen.trace) == [2]


def test_infinity_is_over_every_number() -> None:
    with watch() as seen:
        torch.full((3,), 1e30) * 1e30
    assert met("|x|>1e300", seen.trace) == [1]


def test_an_op_of_ours_needs_no_prefix() -> None:
    from dataclasses import replace

    with watch() as seen:
        torch.ones(2) + 1
    seen.trace.steps[1] = replace(seen.trace.steps[1], op="tensure::conv")
    assert met("op=conv", seen.trace) == met("op=tensure::conv", seen.trace) == [1]


def test_without_statistics_nothing_is_known_of_values() -> None:
    with watch(statistics=False) as seen:
        torch.full((3,), 1e30) * 1e30
    assert met("|x|>1", seen.trace) == met("nan", seen.trace) == []


def test_the_least_limit_is_counted() -> None:
    assert limit_of(map(parse_break, ("nan", "|x|>5", "|x|>0.5"))) == 0.5
    assert limit_of([parse_break("nan")]) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "wanted nan, "),
        ("nann", "Did you mean 'nan'"),
        ("shpe=1,2", "Did you mean 'shape'"),
        ("modul=x", "Did you mean 'module'"),
        ("|x|>", "condition"),
        ("|x|>many", "at least 0"),
        ("|x|>-1", "at least 0"),
        ("|x|>nan", "at least 0"),
        ("|x|>inf", "at least 0"),
        ("|x|<3", "wanted nan, "),
        ("shape=1,,2", "shape=1,\\*,7,7"),
        ("shape=a", "shape=1,\\*,7,7"),
        ("shape=", "shape="),
        ("shape=-2", "shape="),
        ("shape=" + "1," * 70, "shape="),
        ("op=", "names nothing"),
        ("x" * 1000, "wanted nan, "),
        ("op=\x1b[31m" + "y" * 300, "wanted nan, "),
    ],
)
def test_what_is_no_condition(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parse_break(text)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 400
