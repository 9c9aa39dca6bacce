"""One value in many spellings: views, transposes, joins, means, losses, biases, zeros; and faults in each.

Every case is a Program, a rank's steps and its placed tensors; numpy has the last word on each of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from tensure.bundle import Local, Place, Plan, Track, collect, evaluate_plan
from tensure.errors import TensureError
from tensure.program import Entry, Op, Program, Value, digest, evaluate_program, expr, name, op
from tensure.proving import check_certificate, prove_plan


@dataclass(frozen=True)
class Spelling:
    """Inputs (shape, or a number of classes and a shape), both bodies, what is cut, and faults by step."""

    inputs: Mapping[str, tuple[int, ...]]
    logical: tuple[Op, ...]
    local: tuple[Op, ...]
    cut: Mapping[str, int]
    """The dim of an input or output that the two ranks share out."""
    outputs: tuple[str, ...] = ("y",)
    classes: Mapping[str, int] = field(default_factory=dict[str, int])
    sums: tuple[str, ...] = ()
    """Outputs whose addends the ranks hold."""
    faults: Mapping[str, Op] = field(default_factory=dict[str, Op])
    given: str = ""


def reduce(base: str, out: str) -> Op:
    return op("all_reduce", base, out=out, axes=["r"])


CASES: dict[str, Spelling] = {
    "views of views": Spelling(
        {"x": (4, 6)},
        (
            op("view", "x", out="v", size=[2, 2, 6]),
            op("view", "v", out="w", size=[4, 6]),
            op("relu", "w", out="y"),
        ),
        (
            op("unsqueeze", "x", out="u", dim=1),
            op("squeeze", "u", out="s", dim=[1]),
            op("relu", "s", out="y"),
        ),
        {"x": 0, "y": 0},
        faults={"s": op("flip", "u", out="s0", dims=[0])},
    ),
    "one head of two": Spelling(
        {"x": (4, 6), "w": (6, 4)},
        (
            op("mm", "x", "w", out="m"),
            op("view", "m", out="v", size=[2, 2, 4]),
            op("view", "v", out="u", size=[2, 2, 2, 2]),
            op("transpose", "u", out="y", dim0=1, dim1=2),
        ),
        (
            op("mm", "x", "w", out="m"),
            op("view", "m", out="v", size=[2, 2, 2]),
            op("view", "v", out="u", size=[2, 2, 1, 2]),
            op("transpose", "u", out="y", dim0=1, dim1=2),
        ),
        {"w": 1, "y": 1},
        faults={"u": op("view", "x", out="u", size=[2, 2, 1, 6])},
    ),
    "transposes of transposes": Spelling(
        {"x": (4, 6), "w": (4, 2)},
        (
            op("permute", "x", out="p", dims=[1, 0]),
            op("t", "p", out="q"),
            op("t", "q", out="z"),
            op("mm", "z", "w", out="y"),
        ),
        (op("transpose", "x", out="p", dim0=0, dim1=1), op("mm", "p", "w", out="y")),
        {"x": 1, "y": 0},
    ),
    "a stack taken apart": Spelling(
        {"a": (4, 3), "b": (4, 3)},
        (op("exp", "b", out="e"), op("add", "a", "e", out="y")),
        (
            op("exp", "b", out="e"),
            op("stack", "a", "e", out="s", dim=1),
            op("select", "s", out="one", dim=1, index=0),
            op("select", "s", out="two", dim=1, index=-1),
            op("add", "one", "two", out="y"),
        ),
        {"a": 0, "b": 0, "y": 0},
        faults={"two": op("select", "s", out="two", dim=1, index=0)},
    ),
    "a mean as a sum over a count": Spelling(
        {"x": (4, 6)},
        (op("square", "x", out="q"), op("mean", "q", out="y")),
        (op("square", "x", out="q"), op("sum", "q", out="p"), reduce("p", "s"), op("div", "s", 24, out="y")),
        {"x": 1},
        faults={"y": op("div", "s", 12, out="y")},
    ),
    "a mean loss as the mean of means": Spelling(
        {"x": (4, 3), "t": (4,)},
        (op("nll_loss_forward", "x", "t", None, out=("y", "n"), reduction=1, ignore_index=-100),),
        (
            op("nll_loss_forward", "x", "t", None, out=("m", "n"), reduction=1, ignore_index=-100),
            reduce("m", "s"),
            op("div", "s", 2, out="y"),
        ),
        {"x": 0, "t": 0},
        classes={"t": 3},
        faults={"y": op("copy", "s", out="y")},
        given="given that no target",
    ),
    "a summed loss as samples": Spelling(
        {"x": (4, 3), "t": (4,)},
        (op("nll_loss_forward", "x", "t", None, out=("y", "n"), reduction=2, ignore_index=-100),),
        (
            op("nll_loss_forward", "x", "t", None, out=("m", "n"), reduction=0, ignore_index=-100),
            op("sum", "m", out="p"),
            reduce("p", "y"),
        ),
        {"x": 0, "t": 0},
        classes={"t": 3},
        faults={"p": op("mean", "m", out="p")},
    ),
    "a bias shared out": Spelling(
        {"x": (3, 4), "w": (4, 5), "b": (5,)},
        (op("addmm", "b", "x", "w", out="y"),),
        (op("div", "b", 2, out="h"), op("addmm", "h", "x", "w", out="p"), reduce("p", "y")),
        {"x": 1, "w": 0},
        faults={"h": op("div", "b", 1, out="h")},
    ),
    "a bias added after": Spelling(
        {"x": (3, 4), "w": (5, 4), "b": (5,)},
        (op("linear", "x", "w", "b", out="y"),),
        (op("linear", "x", "w", None, out="p"), reduce("p", "s"), op("add", "b", "s", out="y")),
        {"x": 1, "w": 1},
        faults={"y": op("sub", "s", "b", out="y")},
    ),
    "parts among zeros": Spelling(
        {"x": (4, 3)},
        (op("square", "x", out="y"),),
        (
            op("square", "x", out="q"),
            op("full", out="z", size=[4, 3], fill_value=0.0, dtype="f64"),
            op("slice_scatter", "z", "q", out="y", dim=0, start=expr("r*2"), end=expr("r*2+2")),
        ),
        {"x": 0},
        sums=("y",),
        faults={"y": op("slice_scatter", "z", "q", out="y", dim=0, start=expr("2-r*2"), end=expr("4-r*2"))},
    ),
    "padded parts": Spelling(
        {"x": (3, 4)},
        (op("square", "x", out="q"), op("exp", "q", out="y")),
        (
            op("square", "x", out="q"),
            op("constant_pad_nd", "q", out="p", pad=[expr("r*2"), expr("2-r*2")]),
            reduce("p", "s"),
            op("exp", "s", out="y"),
        ),
        {"x": 1},
        faults={"p": op("constant_pad_nd", "q", out="p", pad=[expr("2-r*2"), expr("r*2")])},
    ),
    "a sum of parts": Spelling(
        {"x": (4, 3), "g": (4, 3)},
        (
            op("slice", "x", out="a", dim=0, start=0, end=2),
            op("slice", "g", out="b", dim=0, start=2, end=4),
            op("add", "a", "b", out="s"),
            op("exp", "s", out="y"),
        ),
        (
            op("slice", "x", out="a", dim=0, start=0, end=2),
            op("slice", "g", out="b", dim=0, start=2, end=4),
            op("add", "a", "b", out="s"),
            op("exp", "s", out="y"),
        ),
        {},
        outputs=("s", "y"),
        faults={"b": op("slice", "g", out="b", dim=0, start=1, end=3)},
    ),
    "a norm of several": Spelling(
        {"a": (4, 3), "b": (4, 2)},
        (
            op("square", "a", out="a2"),
            op("square", "b", out="b2"),
            op("sum", "a2", out="p"),
            op("sum", "b2", out="q"),
            op("stack", "p", "q", out="j"),
            op("sum", "j", out="s"),
            op("sqrt", "s", out="y"),
        ),
        (
            op("square", "a", out="a2"),
            op("square", "b", out="b2"),
            op("sum", "a2", out="p"),
            op("stack", "p", out="i"),
            op("sum", "i", out="u"),
            reduce("u", "v"),
            op("sum", "b2", out="q"),
            op("add", "q", "v", out="s"),
            op("sqrt", "s", out="y"),
        ),
        {"a": 0},
        faults={"v": op("copy", "u", out="v"), "i": op("stack", "p", "p", out="i")},
    ),
    "joined with zeros": Spelling(
        {"x": (3, 4)},
        (op("square", "x", out="q"), op("softmax", "x", out="m", dim=1), op("sum", "q", out="y", dim=[0])),
        (
            op("square", "x", out="q"),
            op("full", out="before", size=[3, expr("r*2")], fill_value=0.0, dtype="f64"),
            op("full", out="after", size=[3, expr("2-r*2")], fill_value=0.0, dtype="f64"),
            op("cat", "before", "q", "after", out="p", dim=1),
            op("sum", "p", out="t", dim=[0]),
            reduce("t", "y"),
        ),
        {"x": 1},
        faults={"p": op("cat", "after", "q", "before", out="p", dim=1)},
    ),
    "a joined bucket of gradients": Spelling(
        {"x": (4, 3), "d": (4, 2)},
        (
            op("t", "x", out="xt"),
            op("mm", "xt", "d", out="g"),
            op("mul", "g", 3, out="y"),
            op("sum", "d", out="b", dim=[0]),
        ),
        (
            op("t", "x", out="xt"),
            op("mm", "xt", "d", out="g"),
            op("sum", "d", out="c", dim=[0]),
            op("view", "g", out="gf", size=[6]),
            op("mul", "gf", 3, out="gm"),
            op("cat", "gm", "c", out="j"),
            reduce("j", "s"),
            op("slice", "s", out="gs", dim=0, start=0, end=6),
            op("view", "gs", out="y", size=[3, 2]),
            op("slice", "s", out="b", dim=0, start=6, end=8),
        ),
        {"x": 0, "d": 0},
        outputs=("y", "b"),
        faults={"j": op("cat", "gm", "gm", out="j0"), "gm": op("mul", "gf", 2, out="gm")},
    ),
    "what only repeats": Spelling(
        {"x": (4, 3), "g": (1, 3)},
        (
            op("expand", "g", out="e", size=[4, 3]),
            op("mul", "x", "e", out="p"),
            op("sum", "e", out="b", dim=[0]),
            op("sum", "p", out="y", dim=[1]),
        ),
        (
            op("expand", "g", out="e", size=[2, 3]),
            op("mul", "e", "x", out="p"),
            op("sum", "e", out="bp", dim=[0]),
            reduce("bp", "b"),
            op("sum", "p", out="y", dim=[1]),
        ),
        {"x": 0, "y": 0},
        outputs=("y", "b"),
        faults={"e": op("expand", "g", out="e", size=[2, 3], implicit=False), "b": op("copy", "bp", out="b")},
    ),
}


def program(case: Spelling) -> Program:
    values = {
        base: Value(shape, "i64" if base in case.classes else "f64") for base, shape in case.inputs.items()
    }
    entry = Entry(tuple(map(name, case.inputs)), case.logical, tuple(map(name, case.outputs)))
    return Program({}, values, {}, {"run": entry})


def sizes(case: Spelling) -> dict[str, tuple[int, ...]]:
    run = evaluate_program(program(case), drawn(case), entry="run")
    return {**case.inputs, **{key: value.shape for key, value in run.outputs.items()}}


def plan(case: Spelling, body: tuple[Op, ...]) -> Plan:
    shapes, locals_ = sizes(case), {}
    for base in (*case.inputs, *case.outputs):
        dims: Any = ()
        if base in case.cut:
            half = shapes[base][case.cut[base]] // 2
            dims = ((case.cut[base], ((expr(f"r*{half}"), expr(f"(r+1)*{half}"), 1),)),)
        locals_[base] = Local((), Place(name(base), dims, sum=("r",) if base in case.sums else ()))
    track = Track(("r",), (), None, {}, {"run": body})
    return Plan(digest(program(case)), None, {"r": 2}, {}, locals_, {}, {"t": track})


def drawn(case: Spelling) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(1)
    return {
        base: rng.integers(0, case.classes[base], shape)
        if base in case.classes
        else rng.standard_normal(shape)
        for base, shape in case.inputs.items()
    }


def agrees(case: Spelling, made: Plan) -> bool:
    want = evaluate_program(program(case), drawn(case), entry="run").outputs
    try:
        have = collect(
            evaluate_plan(made, program(case), drawn(case)), program(case), tuple(map(name, case.outputs))
        )
    except TensureError:
        return False
    return all(np.allclose(have[key], want[key], rtol=1e-9, atol=1e-12) for key in want)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_spelling_is_proved(case: Spelling) -> None:
    made = plan(case, case.local)
    result = prove_plan(made, program(case))
    assert result.proof.values.status == "proved", result.proof.values
    assert (case.given in result.proof.values.method) and (
        bool(case.given) == ("given" in result.proof.values.method)
    )
    assert (
        result.certificate is not None and check_certificate(result.certificate, made, program(case)).accepted
    )
    assert agrees(case, made)


FAULTS = [(label, out) for label, case in CASES.items() for out in case.faults]


@pytest.mark.parametrize(("label", "out"), FAULTS)
def test_fault_is_not_proved(label: str, out: str) -> None:
    case = CASES[label]
    wrong = case.faults[out]
    body = tuple(
        replace(wrong, outs=step.outs) if step.outs and step.outs[0].base == out else step
        for step in case.local
    )
    made = plan(case, body)
    status = prove_plan(made, program(case)).proof.values.status
    assert (status == "proved") <= agrees(case, made)
    if not agrees(case, made):
        assert status == "refuted"


def test_a_mean_loss_with_an_ignored_class_is_not_promised() -> None:
    """With a class that is left out the mean of means is another number: the verdict says what it assumes."""
    case = CASES["a mean loss as the mean of means"]
    values = {**drawn(case), "t": np.array([0, 1, 2, -100])}
    want = evaluate_program(program(case), values, entry="run").outputs["y"]
    made = plan(case, case.local)
    have = collect(evaluate_plan(made, program(case), values), program(case), (name("y"),))["y"]
    assert not np.allclose(have, want)
    assert "given that no target" in prove_plan(made, program(case)).proof.values.method
