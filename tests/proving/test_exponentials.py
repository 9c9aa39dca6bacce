"""Softmax and its kin by any shift, whole or dealt to ranks by columns; and each sum, mask and row astray."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tensure.bundle import canonical_json, plan_digest
from tensure.program import Op, expr, op
from tensure.proving import check_certificate, prove_plan

from .test_masked_gather import HALF, N, V, masks, picked, reduce
from .test_spellings import Spelling, agrees, plan, program

SHIFTS: dict[str, tuple[Op, ...]] = {
    "the largest of all": (
        op("amax", "x", out="best", dim=[-1]),
        reduce("best", "top0", "max"),
        op("unsqueeze", "top0", out="top", dim=1),
        op("sub", "x", "top", out="d"),
    ),
    "the largest of another row": (
        op("amax", "x", out="best", dim=[-1]),
        reduce("best", "best0", "max"),
        op("flip", "best0", out="top0", dims=[0]),
        op("unsqueeze", "top0", out="top", dim=1),
        op("sub", "x", "top", out="d"),
    ),
    "the least of all": (
        op("amin", "x", out="best", dim=[-1], keepdim=True),
        reduce("best", "top", "min"),
        op("sub", "x", "top", out="d"),
    ),
    "a number": (op("sub", "x", 0.5, out="d"),),
    "nothing": (op("copy", "x", out="d"),),
}
FORWARD = (
    op("exp", "d", out="e"),
    op("sum", "e", out="p", dim=[1]),
    reduce("p", "z"),
    op("log", "z", out="l"),
    *masks(True),
    *picked("d"),
    reduce("part", "hit"),
    op("sub", "l", "hit", out="own_loss"),
    op("mean", "own_loss", out="y"),
)
BACKWARD = (
    op("full", out="g", size=[N], fill_value=1 / N, dtype="f64"),
    op("neg", "g", out="less_g"),
    op("masked_fill", "less_g", "mask", 0, out="own_g"),
    op("select_backward", "own_g", out="g1", dim=1, index=0, input_sizes=[N, 1]),
    op("full", out="zero", size=[N, HALF], fill_value=0.0, dtype="f64"),
    op("scatter_add", "zero", "at1", "g1", out="hits", dim=-1),
    op("div", "g", "z", out="gz"),
    op("unsqueeze", "gz", out="gz1", dim=-1),
    op("expand", "gz1", out="wide", size=[N, HALF]),
    op("mul", "wide", "e", out="soft"),
    op("add", "hits", "soft", out="dx"),
)
LOSS = {"reduction": 1, "ignore_index": -100}
FUSED = (
    op("_log_softmax", "x", out="ls", dim=1, half_to_float=False),
    op("nll_loss_forward", "ls", "t", None, out=("y", "n"), **LOSS),
    op("full", out="one", size=[], fill_value=1.0, dtype="f64"),
    op("nll_loss_backward", "one", "ls", "t", None, "n", out="dls", **LOSS),
    op("_log_softmax_backward_data", "dls", "ls", out="dx", dim=1, input_dtype="f64"),
)


def entropy(shift: str = "the largest of all") -> Spelling:
    """Cross entropy over a vocabulary dealt to two ranks, against the fused one: loss and gradient."""
    local = (*SHIFTS[shift], *FORWARD, *BACKWARD)
    return Spelling({"x": (N, V), "t": (N,)}, FUSED, local, {"x": 1, "dx": 1}, ("y", "dx"), classes={"t": V})


@pytest.mark.parametrize("shift", SHIFTS)
def test_cross_entropy_over_dealt_columns_is_the_fused_one(shift: str) -> None:
    case = entropy(shift)
    made = plan(case, case.local)
    result = prove_plan(made, program(case))
    assert result.proof.values.status == "proved", result.proof.values
    assert "given that no target of a loss is the class it ignores" in result.proof.values.method
    assert agrees(case, made)


FAULTS: dict[str, Op] = {
    "no maximum over ranks": op("copy", "best", out="top0"),
    "no sum over ranks": op("copy", "p", out="z"),
    "a maximum of sums": reduce("p", "z", "max"),
    "the sum of another row": op("flip", "z0", out="z", dims=[0]),
    "the sum of what is not shifted": op("sum", "ex", out="p", dim=[1]),
    "targets one off": op("sub", "t", expr("r*3+1"), out="less"),
    "a mask that ends too late": op("ge", "less", HALF + 1, out="above"),
    "a mask that begins too early": op("lt", "less", 1, out="below"),
    "the target's logit not shifted": op("gather", "x", "at1", out="own1", dim=-1),
    "no sum of logits over ranks": op("copy", "part", out="hit"),
    "logits not masked": op("copy", "own", out="part"),
    "gradients not masked": op("copy", "less_g", out="own_g"),
    "gradients put at the first column": op("scatter_add", "zero", "first", "g1", out="hits", dim=-1),
    "gradients divided by the rank's own sum": op("div", "g", "p", out="gz"),
    "the softmax of another row": op("flip", "gz0", out="gz", dims=[0]),
    "the softmax of what is not shifted": op("mul", "wide", "ex", out="soft"),
    "the softmax twice": op("add", "hits", "soft", out="dx", alpha=2.0),
    "a gradient per half": op("full", out="g", size=[N], fill_value=2 / N, dtype="f64"),
}
EXTRA: dict[str, tuple[Op, ...]] = {
    "z0": (reduce("p", "z0"),),
    "ex": (op("exp", "x", out="ex"),),
    "first": (op("full", out="first", size=[N, 1], fill_value=0, dtype="i64"),),
    "gz0": (op("div", "g", "z", out="gz0"),),
}


@pytest.mark.parametrize("label", FAULTS)
def test_fault_is_refuted_and_its_certificate_refused(label: str) -> None:
    case = entropy()
    right = prove_plan(plan(case, case.local), program(case)).certificate
    assert right is not None
    wrong = FAULTS[label]
    reads = {str(ref.name) for ref in wrong.reads()}
    body: list[Op] = []
    for step in case.local:
        if str(step.outs[0]) == str(wrong.outs[0]):
            body += [more for key, steps in EXTRA.items() if key in reads for more in steps]
            step = wrong
        body.append(step)
    made = plan(case, tuple(body))
    assert not agrees(case, made)
    result = prove_plan(made, program(case))
    assert result.proof.values.status == "refuted", result.proof.values
    row = json.loads(right)
    row["plan"] = plan_digest(made)
    assert not check_certificate(canonical_json(row), made, program(case)).accepted


ROWS: dict[str, Spelling] = {
    "softmax as a quotient": Spelling(
        {"x": (4, 6)},
        (op("_softmax", "x", out="y", dim=1, half_to_float=False),),
        (
            op("amax", "x", out="top", dim=[1], keepdim=True),
            op("sub", "x", "top", out="d"),
            op("exp", "d", out="e"),
            op("sum", "e", out="z", dim=[1], keepdim=True),
            op("div", "e", "z", out="y"),
        ),
        {"x": 0, "y": 0},
        faults={"z": op("sum", "x", out="z", dim=[1], keepdim=True)},
    ),
    "softmax as an exponential": Spelling(
        {"x": (4, 6)},
        (op("_softmax", "x", out="y", dim=1, half_to_float=False),),
        (op("_log_softmax", "x", out="l", dim=1, half_to_float=False), op("exp", "l", out="y")),
        {"x": 0, "y": 0},
        faults={"y": op("exp", "x", out="y")},
    ),
    "log-softmax by hand": Spelling(
        {"x": (4, 6)},
        (op("_log_softmax", "x", out="y", dim=1, half_to_float=False),),
        (
            op("exp", "x", out="e"),
            op("sum", "e", out="z", dim=[1], keepdim=True),
            op("log", "z", out="l"),
            op("sub", "x", "l", out="y"),
        ),
        {"x": 0, "y": 0},
        faults={"z": op("mean", "e", out="z", dim=[1], keepdim=True)},
    ),
    "exponentials of sums": Spelling(
        {"a": (4, 6), "b": (4, 6)},
        (op("sub", "a", "b", out="s"), op("exp", "s", out="y")),
        (op("exp", "a", out="p"), op("exp", "b", out="q"), op("div", "p", "q", out="y")),
        {"a": 0, "b": 0, "y": 0},
        faults={"y": op("mul", "p", "q", out="y")},
    ),
    "parts of rows, each by its own largest": Spelling(
        {"x": (4, 6)},
        (op("_softmax", "x", out="y", dim=1, half_to_float=False),),
        (
            op("amax", "x", out="own", dim=[1], keepdim=True),
            op("sub", "x", "own", out="d"),
            op("exp", "d", out="e"),
            reduce("own", "top", "max"),
            op("sub", "own", "top", out="less"),
            op("exp", "less", out="by"),
            op("mul", "e", "by", out="f"),
            op("sum", "f", out="p", dim=[1], keepdim=True),
            reduce("p", "z"),
            op("div", "f", "z", out="y"),
        ),
        {"x": 1, "y": 1},
        faults={"f": op("copy", "e", out="f")},
    ),
}


@pytest.mark.parametrize("label", ROWS)
def test_row_is_proved_and_its_faults_are_not(label: str) -> None:
    case = ROWS[label]
    made = plan(case, case.local)
    assert agrees(case, made)
    result = prove_plan(made, program(case))
    assert result.proof.values.status == "proved", result.proof.values
    for out, wrong in case.faults.items():
        body = tuple(wrong if str(step.outs[0]) == out else step for step in case.local)
        assert prove_plan(plan(case, body), program(case)).proof.values.status == "refuted"


def test_only_exponentials_cancel() -> None:
    """a / b * b is a only where b is not 0; what is zero there is not called proved."""
    case = Spelling(
        {"a": (4, 6), "b": (4, 6)},
        (op("exp", "a", out="e"), op("exp", "e", out="y")),
        (
            op("exp", "a", out="e0"),
            op("div", "e0", "b", out="q"),
            op("mul", "q", "b", out="e"),
            op("exp", "e", out="y"),
        ),
        {"a": 0, "b": 0, "y": 0},
    )
    assert prove_plan(plan(case, case.local), program(case)).proof.values.status != "proved"
    steps = (op("exp", "b", out="c"), *(_read(step, "b", "c") for step in case.local))
    assert prove_plan(plan(case, steps), program(case)).proof.values.status == "proved"


def _read(step: Op, base: str, other: str) -> Op:
    """A step that reads another local in the place of one."""
    names = [other if str(ref.name) == base else str(ref.name) for ref in step.reads()]
    return replace(op(step.op, *names, out=str(step.outs[0])), attrs=step.attrs)
