"""Two convolutions cut along channels, forward and backward, and every way to cut them wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tensure.bundle import Local, Place, Plan, Track, collect, evaluate_plan, validate_plan
from tensure.errors import TensureError
from tensure.program import Entry, Op, Program, Value, digest, evaluate_program, expr, name, op
from tensure.proving import prove_plan

SHAPES = {"x": (2, 3, 5), "w1": (4, 3, 3), "b1": (4,), "w2": (3, 4, 3), "b2": (3,), "g": (2, 3, 5)}
OUTPUTS = ("y", "dx", "dw1", "db1", "dw2", "db2")
BACK = {
    "stride": [1],
    "padding": [1],
    "dilation": [1],
    "transposed": False,
    "output_padding": [0],
    "groups": 1,
}


def back(grad: str, x: str, w: str, outs: tuple[str, str, str], bias: int | None) -> Op:
    mask = [True, True, bias is not None]
    sizes = None if bias is None else [bias]
    return op("convolution_backward", grad, x, w, out=outs, bias_sizes=sizes, output_mask=mask, **BACK)


PROGRAM = Program(
    {},
    {base: Value(shape, "f64") for base, shape in SHAPES.items()},
    {},
    {
        "run": Entry(
            tuple(map(name, SHAPES)),
            (
                op("convolution", "x", "w1", "b1", out="h", padding=[1]),
                op("relu", "h", out="r"),
                op("convolution", "r", "w2", "b2", out="y", padding=[1]),
                back("g", "r", "w2", ("dr", "dw2", "db2"), 3),
                op("threshold_backward", "dr", "r", out="dh", threshold=0),
                back("dh", "x", "w1", ("dx", "dw1", "db1"), 4),
            ),
            tuple(map(name, OUTPUTS)),
        )
    },
)


def body() -> list[Op]:
    return [
        op("convolution", "x", "w1", "b1", out="h", padding=[1]),
        op("relu", "h", out="r"),
        op("convolution", "r", "w2", None, out="part", padding=[1]),
        op("all_reduce", "part", out="summed", axes=["tp"]),
        op("view", "b2", out="wide", size=[3, 1]),
        op("add", "summed", "wide", out="y"),
        back("g", "r", "w2", ("dr", "dw2", "unread"), None),
        op("sum", "g", out="kept", dim=[0, 2], keepdim=True),
        op("view", "kept", out="db2", size=[3]),
        op("threshold_backward", "dr", "r", out="dh", threshold=0),
        back("dh", "x", "w1", ("dxs", "dw1", "db1"), 2),
        op("all_reduce", "dxs", out="dx", axes=["tp"]),
    ]


def plan(steps: list[Op], **changed: Any) -> Plan:
    lo, hi = expr("tp*2"), expr("tp*2+2")
    cut = {"w1": 0, "b1": 0, "dw1": 0, "db1": 0, "w2": 1, "dw2": 1}
    locals_: dict[str, Local] = {}
    for base in (*SHAPES, *OUTPUTS):
        dims = ((cut[base], ((lo, hi, 1),)),) if base in cut else ()
        locals_[base] = Local((), Place(name(base), changed.get(base, dims)))
    track = Track(("tp",), (), None, {}, {"run": tuple(steps)})
    return Plan(digest(PROGRAM), None, {"tp": 2}, {}, locals_, {}, {"t": track})


def agrees(made: Plan) -> bool:
    rng = np.random.default_rng(0)
    values = {base: rng.standard_normal(shape) for base, shape in SHAPES.items()}
    want = evaluate_program(PROGRAM, values, entry="run").outputs
    try:
        have = collect(evaluate_plan(made, PROGRAM, values), PROGRAM, tuple(map(name, OUTPUTS)))
    except TensureError:
        return False
    return all(np.allclose(have[key], want[key]) for key in want)


def test_channels_are_proved() -> None:
    made = plan(body())
    validate_plan(made, PROGRAM)
    assert agrees(made)
    result = prove_plan(made, PROGRAM)
    assert result.proof.values.status == "proved", result.proof.values


def _with(out: str, **changed: Any) -> list[Op]:
    return [replace(step, **changed) if step.outs[0] == name(out) else step for step in body()]


EVERY_OTHER = ((1, ((expr("tp"), expr("tp+3"), 2),)),)
FAULTS: dict[str, Plan] = {
    "addends not summed": plan(_with("summed", op="copy", attrs=())),
    "input gradient not summed": plan(_with("dx", op="copy", attrs=())),
    "bias added before the sum": plan(
        [
            replace(step, args=(*step.args[:2], op("relu", "b2", out="z").args[0]))
            if step.outs[0] == name("part")
            else replace(step, op="copy", args=step.args[:1])
            if step.outs[0] == name("y")
            else step
            for step in body()
        ]
    ),
    "other input channels": plan(body(), w2=EVERY_OTHER, dw2=EVERY_OTHER),
    "bias's gradient over samples alone": plan(
        _with("kept", op="mean", attrs=(("dim", (0, 2)), ("keepdim", True)))
    ),
    "padding left out": plan(_with("part", attrs=(("padding", (2,)),))),
    "gradient of another input": plan(
        [
            replace(step, args=(step.args[0], op("relu", "h", out="z").args[0], step.args[2]))
            if step.outs[0] == name("dr")
            else step
            for step in body()
        ]
    ),
    "weight's gradient of both parts": plan(
        [
            *[
                replace(s, outs=(s.outs[0], name("dw"), s.outs[2])) if s.outs[0] == name("dr") else s
                for s in body()
            ],
            op("all_reduce", "dw", out="dw2", axes=["tp"]),
        ]
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_not_proved(fault: str) -> None:
    made = FAULTS[fault]
    assert not agrees(made)
    assert prove_plan(made, PROGRAM).proof.values.status != "proved"
