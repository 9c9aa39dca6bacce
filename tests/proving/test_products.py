"""Products written out: derivatives of activations term by term, and every small thing wrong in one of them.

Each local body is exchanged step by step for its neighbours: other operands, other numbers, a term less, an
op for another. Whatever is proved must be what numpy sees; and the checker, given the right step's claims
under the wrong step's name, must refuse.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tensure.bundle import canonical_json, plan_digest
from tensure.errors import TensureError
from tensure.program import Op, op
from tensure.proving import check_certificate, prove_plan

from .test_spellings import Spelling, agrees, plan, program

ROWS = {"x": 0, "g": 0, "y": 0}
SHAPES = {"x": (4, 3), "g": (4, 3)}


def case(logical: list[Op], local: list[Op], **inputs: tuple[int, ...]) -> Spelling:
    cut = {**ROWS, **dict.fromkeys(inputs, 0)}
    return Spelling({**SHAPES, **inputs}, tuple(logical), tuple(local), cut)


SIGMOID = op("sigmoid", "x", out="s")
CASES = {
    "silu backward": case(
        [op("silu_backward", "g", "x", out="y")],
        [
            SIGMOID,
            op("mul", "x", "s", out="xs"),
            op("rsub", "s", 1, out="left"),
            op("mul", "xs", "left", out="rest"),
            op("add", "s", "rest", out="slope"),
            op("mul", "g", "slope", out="y"),
        ],
    ),
    "silu backward, multiplied out": case(
        [op("silu_backward", "g", "x", out="y")],
        [
            SIGMOID,
            op("mul", "g", "s", out="gs"),
            op("mul", "gs", "x", out="gsx"),
            op("mul", "gsx", "s", out="gsxs"),
            op("add", "gs", "gsx", out="both"),
            op("sub", "both", "gsxs", out="y"),
        ],
    ),
    "the other way round": case(
        [
            SIGMOID,
            op("mul", "x", "s", out="xs"),
            op("rsub", "s", 1, out="left"),
            op("mul", "xs", "left", out="rest"),
            op("add", "s", "rest", out="slope"),
            op("mul", "g", "slope", out="y"),
        ],
        [op("silu_backward", "g", "x", out="y")],
    ),
    "silu": case(
        [op("silu", "x", out="a"), op("mul", "a", "g", out="y")],
        [SIGMOID, op("mul", "g", "x", out="gx"), op("mul", "gx", "s", out="y")],
    ),
    "sigmoid backward": case(
        [op("sigmoid", "x", out="s"), op("sigmoid_backward", "g", "s", out="y")],
        [
            SIGMOID,
            op("square", "s", out="s2"),
            op("sub", "s", "s2", out="slope"),
            op("mul", "slope", "g", out="z"),
            op("mul", "z", 2.0, out="y2"),
            op("div", "y2", 2, out="y"),
        ],
    ),
    "tanh backward": case(
        [op("tanh", "x", out="t"), op("tanh_backward", "g", "t", out="y")],
        [
            op("tanh", "x", out="t"),
            op("pow", "t", 2, out="t2"),
            op("mul", "t2", "g", out="gt2"),
            op("sub", "g", "gt2", out="y"),
        ],
    ),
    "a binomial": case(
        [op("add", "x", "g", out="z"), op("pow", "z", 3, out="y0"), op("mul", "y0", "x", out="y")],
        [
            op("square", "x", out="x2"),
            op("square", "g", out="g2"),
            op("mul", "x", "g", out="xg"),
            op("mul", "x2", "g", out="x2g"),
            op("mul", "xg", "g", out="xg2"),
            op("mul", "x2", "x", out="x3"),
            op("mul", "g2", "g", out="g3"),
            op("mul", "x2g", 3, out="a"),
            op("mul", "xg2", 3, out="b"),
            op("add_n", "x3", "a", "b", "g3", out="cube"),
            op("mul", "cube", "x", out="y"),
        ],
    ),
}


def neighbours(body: tuple[Op, ...]) -> Iterator[tuple[Op, ...]]:
    """The body with one step changed a little: another operand or number, another op."""
    names = sorted({"x", "g", *(step.outs[0].base for step in body)})
    for at, step in enumerate(body):
        changed: list[Op] = []
        for place, arg in enumerate(step.args):
            others = [1, 2, 0.5, 3.0] if isinstance(arg, (int, float)) else names
            changed += [
                op(
                    step.op,
                    *(
                        other if p == place else a if isinstance(a, (int, float)) else str(a.name)
                        for p, a in enumerate(step.args)
                    ),  # type: ignore[union-attr]
                    out=step.outs[0].base,
                )
                for other in others
            ]
        swaps = {"mul": ["add", "sub", "div"], "add": ["sub", "mul"], "sub": ["add", "rsub", "mul"]}
        swaps |= {"sigmoid": ["tanh", "silu"], "rsub": ["sub"], "square": ["copy"], "tanh": ["sigmoid"]}
        swaps |= {"silu_backward": ["mul", "sigmoid_backward", "tanh_backward"]}
        changed += [replace(step, op=other) for other in swaps.get(step.op, [])]
        yield from ((*body[:at], item, *body[at + 1 :]) for item in changed if item != step)


@pytest.mark.parametrize("label", CASES)
def test_products_are_proved(label: str) -> None:
    spelled = CASES[label]
    made = plan(spelled, spelled.local)
    result = prove_plan(made, program(spelled))
    assert result.proof.values.status == "proved", result.proof.values
    assert agrees(spelled, made)


@pytest.mark.parametrize("label", CASES)
def test_what_is_proved_of_a_neighbour_is_true(label: str) -> None:
    spelled = CASES[label]
    right = prove_plan(plan(spelled, spelled.local), program(spelled)).certificate
    assert right is not None
    wrong = 0
    for body in neighbours(spelled.local):
        made = plan(spelled, body)
        try:
            status = prove_plan(made, program(spelled)).proof.values.status
        except TensureError:
            continue
        if agrees(spelled, made):
            continue
        wrong += 1
        assert status != "proved", body
        row = json.loads(right)
        row["plan"] = plan_digest(made)
        assert not check_certificate(canonical_json(row), made, program(spelled)).accepted, body
    assert wrong > 3


def test_what_is_broadcast_or_moved_is_no_product_of_the_same_elements() -> None:
    """x * (g * s) with one of them turned about or spread from another place is another tensor."""
    flips = [op("flip", "x", out="f", dims=[1]), op("mul", "g", "s", out="gs"), op("mul", "gs", "f", out="y")]
    spread = [
        op("slice", "s", out="s0", dim=1, start=0, end=1),
        op("mul", "g", "s0", out="gs"),
        op("mul", "gs", "x", out="y"),
    ]
    spelled = CASES["silu"]
    for body in (flips, spread):
        made = plan(spelled, (SIGMOID, *body))
        assert not agrees(spelled, made)
        assert prove_plan(made, program(spelled)).proof.values.status == "refuted"


def test_beyond_the_bounds_nothing_is_said() -> None:
    """(x + g)^3 taken to the third is of degree 9: it stays what it is, and is not proved."""
    logical = [op("add", "x", "g", out="z"), op("pow", "z", 3, out="c"), op("pow", "c", 3, out="y")]
    local = [
        op("add", "x", "g", out="z"),
        op("pow", "z", 3, out="c"),
        op("square", "c", out="c2"),
        op("mul", "c2", "c", out="y"),
    ]
    spelled = case(logical, local)
    assert prove_plan(plan(spelled, spelled.local), program(spelled)).proof.values.status != "proved"
