"""Hand-made certificates that skip what a rule takes for granted: a value, a shape, a count, a loss's class.

Each is of a Plan that numpy tells from its Program, or may; none may be accepted. A right twin of each is.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from tensure.bundle import plan_digest
from tensure.errors import TensureError
from tensure.program import Op, digest, op
from tensure.proving import check_certificate
from tensure.proving._certificate import Covered, write_certificate

from .test_soundness import Types, agrees, pair, status


def part(label: str, *sizes: int) -> Any:
    return ["1/1", label, [[[0, n]] for n in sizes], None]


@dataclass(frozen=True)
class Case:
    types: Types
    right: list[Op]
    wrong: list[Op]
    output: str
    rows: dict[str, Any]
    """What is claimed of locals: of inputs, of what the wrong body makes."""
    defined: list[Any] = field(default_factory=list)
    targets: bool = False


X: Types = {"x": ((4,), "f64")}
ZERO = [op("full", out="y", size=[4], fill_value=0.0, dtype="f64")]
THIN = [["size", ["tuple", [["int", "4"], ["int", "1"]]]]]
NOTHING = op("full", out="z", size=[4], fill_value=0.0, dtype="f64")
OTHER_LOSS: Types = {
    "x": ((4, 3), "f64"),
    "t": ((4,), "i64"),
    "v": ((4, 3), "f64"),
    "u": ((4,), "i64"),
}


def losses(ignored: int) -> list[Op]:
    """Losses of two kinds of targets, of which the second ignores class 1."""
    return [
        op("nll_loss_forward", "x", "t", None, out=("y", "n"), reduction=0, ignore_index=ignored),
        op("nll_loss_forward", "v", "u", None, out=("w", "m"), reduction=1, ignore_index=1),
    ]


CASES = {
    "0 over what may be 0": Case(
        X,
        ZERO,
        [NOTHING, op("relu", "x", out="s"), op("div", "z", "s", out="y")],
        "y",
        {"x": [part("x", 4)], "z": [part("y", 4)], "s": [part("$0", 4)], "y": [part("y", 4)]},
        [["$0", "relu", [], [part("x", 4)], 0, [4], "f64", []]],
    ),
    "0 times a logarithm": Case(
        X,
        ZERO,
        [NOTHING, op("log", "x", out="l"), op("mul", "z", "l", out="y")],
        "y",
        {"x": [part("x", 4)], "z": [part("y", 4)], "l": [part("$0", 4)], "y": [part("y", 4)]},
        [["$0", "log", [], [part("x", 4)], 0, [4], "f64", []]],
    ),
    "a logarithm less itself": Case(
        X,
        ZERO,
        [op("log", "x", out="l"), op("sub", "l", "l", out="y")],
        "y",
        {"x": [part("x", 4)], "l": [part("$0", 4)], "y": [part("y", 4)]},
        [["$0", "log", [], [part("x", 4)], 0, [4], "f64", []]],
    ),
    "a quotient less itself": Case(
        X,
        ZERO,
        [op("sub", "x", "x", out="s"), op("div", "x", "s", out="q"), op("sub", "q", "q", out="y")],
        "y",
        {"x": [part("x", 4)], "s": [part("y", 4)], "q": [part("$0", 4)], "y": [part("y", 4)]},
        [["$0", "div", [], [part("x", 4), part("y", 4)], 0, [4], "f64", []]],
    ),
    "zeros of another shape": Case(
        X,
        ZERO,
        [
            op("full", out="z", size=[2], fill_value=0.0, dtype="f64"),
            op("slice", "x", out="s", dim=0, start=0, end=2),
            op("mul", "z", "s", out="y"),
        ],
        "y",
        {"x": [part("x", 4)], "z": [part("y", 2)], "s": [part("x", 2)], "y": [part("y", 4)]},
    ),
    "a logarithm of a sum that counts each number three times": Case(
        X,
        [
            op("view", "x", out="v", size=[4, 1]),
            op("expand", "v", out="w", size=[4, 3]),
            op("logsumexp", "w", out="y", dim=[0, 1]),
        ],
        [op("logsumexp", "x", out="y", dim=[0])],
        "y",
        {"x": [part("x", 4)], "y": [part("y")]},
    ),
    "numbers put at places that there may not be": Case(
        {"x": ((4,), "f64"), "t": ((4,), "i64")},
        [op("copy", "x", out="y")],
        [
            op("view", "x", out="xv", size=[4, 1]),
            op("view", "t", out="tv", size=[4, 1]),
            op("full", out="z", size=[4, 2], fill_value=0.0, dtype="f64"),
            op("scatter_add", "z", "tv", "xv", out="s", dim=1),
            op("sum", "s", out="y", dim=[1]),
        ],
        "y",
        {
            "x": [part("x", 4)],
            "t": [part("t", 4)],
            "xv": [part("$0", 4, 1)],
            "tv": [part("$1", 4, 1)],
            "z": [part("$2", 4, 2)],
            "s": [part("$3", 4, 2)],
            "y": [part("y", 4)],
        },
        [
            ["$0", "view", THIN, [part("x", 4)], 0, [4, 1], "f64", []],
            ["$1", "view", THIN, [part("t", 4)], 0, [4, 1], "i64", []],
            ["$2", "full", [["fill_value", ["float", "0.0"]]], [], 0, [4, 2], "f64", []],
            [
                "$3",
                "scatter_add",
                [["dim", ["int", "1"]]],
                [part("$2", 4, 2), part("$1", 4, 1), part("$0", 4, 1)],
                0,
                [4, 2],
                "f64",
                [],
            ],
        ],
    ),
    "a loss that ignores another loss's class": Case(
        OTHER_LOSS,
        losses(-100),
        losses(1),
        "y",
        {
            **{label: [part(label, *shape)] for label, (shape, _) in OTHER_LOSS.items()},
            "y": [part("y", 4)],
            "w": [part("w")],
        },
        targets=True,
    ),
}


@pytest.mark.parametrize("label", CASES)
def test_wrong_is_refused_and_its_right_twin_is_not(label: str) -> None:
    case = CASES[label]
    program, right = pair(case.types, case.right, [case.output], case.right)
    assert agrees(program, right)
    assert status(program, right) == "proved"
    track = replace(right.tracks["t"], bodies={"run": tuple(case.wrong)})
    plan = replace(right, tracks={"t": track})  # not validated: the checker must not rest on it
    try:
        assert not agrees(program, plan)
    except (ValueError, IndexError, TensureError):
        pass  # a shape, or a place, that cannot be
    rows = [["t[0]", local, terms] for local, terms in case.rows.items()]
    covered = Covered("run", {}, case.targets, case.defined, rows)
    made = write_certificate(digest(program), plan_digest(plan), [covered])
    assert not check_certificate(made, plan, program).accepted
    assert status(program, plan) != "proved"
