"""Experts picked by an index, dealt to ranks: shares masked, results summed; each mask, row, sum astray."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tensure.bundle import canonical_json, plan_digest
from tensure.program import Op, expr, op
from tensure.proving import check_certificate, prove_plan

from .test_spellings import Spelling, agrees, plan, program

T, K, E, D, F, HALF = 12, 2, 4, 3, 5, 2
LO = expr(f"r*{HALF}")


def reduce(base: str, out: str) -> Op:
    return op("all_reduce", base, out=out, axes=["r"])


def inner(table: str, index: str, share: str) -> list[Op]:
    """Each token through its picked experts, times their shares, summed over picks."""
    return [
        op("index", table, index, out="rows"),
        op("permute", "rows", out="turned", dims=[0, 2, 1, 3]),
        op("view", "turned", out="wide", size=[T, D, K * F]),
        op("view", "x", out="row", size=[T, 1, D]),
        op("bmm", "row", "wide", out="h0"),
        op("view", "h0", out="h1", size=[T, K, F]),
        op("silu", "h1", out="h"),
        op("unsqueeze", share, out="by", dim=-1),
        op("mul", "by", "h", out="mixed"),
    ]


PICKED = (op("gather", "s", "i", out="share", dim=-1),)
MASKS = (
    op("sub", "i", LO, out="less"),
    op("lt", "less", 0, out="below"),
    op("ge", "less", HALF, out="above"),
    op("bitwise_or", "below", "above", out="mask"),
    op("masked_fill", "less", "mask", 0, out="at"),
    op("masked_fill", "share", "mask", 0.0, out="own_share"),
)
FORWARD = Spelling(
    {"x": (T, D), "s": (T, E), "i": (T, K), "w": (E, D, F)},
    (*PICKED, *inner("w", "i", "share"), op("sum", "mixed", out="y", dim=[1])),
    (
        *PICKED,
        *MASKS,
        *inner("w", "at", "own_share"),
        op("sum", "mixed", out="part", dim=[1]),
        reduce("part", "y"),
    ),
    {"w": 0},
    classes={"i": E},
)
GRADIENT = Spelling(
    {"x": (T, D), "s": (T, E), "i": (T, K), "g": (T, K, D, F), "w": (E, D, F)},
    (
        *PICKED,
        op("index", "w", "i", out="rows"),
        op("mul", "rows", "g", out="m"),
        op("sum", "m", out="ds", dim=[2, 3]),
    ),
    (
        *PICKED,
        *MASKS,
        op("index", "w", "at", out="rows"),
        op("mul", "rows", "g", out="m"),
        op("sum", "m", out="ds0", dim=[2, 3]),
        op("masked_fill", "ds0", "mask", 0, out="ds1"),
        reduce("ds1", "ds"),
    ),
    {"w": 0},
    ("ds",),
    classes={"i": E},
)


def added_up(index: str, share: str, experts: int) -> list[Op]:
    """Gradients of experts' rows through a step on them, added up by expert."""
    return [
        op("index", "w", index, out="rows"),
        op("tanh", "rows", out="h"),
        op("view", share, out="by", size=[T, K, 1, 1]),
        op("mul", "by", "h", out="m"),
        op("mul", "m", "g", out="dw"),
        op("full", out="zero", size=[experts, D, F], fill_value=0.0, dtype="f64"),
        op("index_put", "zero", "dw", index, out="y", accumulate=True),
    ]


ROWS = Spelling(
    {"s": (T, E), "i": (T, K), "g": (T, K, D, F), "w": (E, D, F)},
    (*PICKED, *added_up("i", "share", E)),
    (*PICKED, *MASKS, *added_up("at", "own_share", HALF)),
    {"w": 0, "y": 0},
    classes={"i": E},
)
CASES = {"outputs of experts": FORWARD, "gradients of shares": GRADIENT, "gradients of experts": ROWS}


@pytest.mark.parametrize("label", CASES)
def test_dealt_experts_are_proved(label: str) -> None:
    case = CASES[label]
    made = plan(case, case.local)
    result = prove_plan(made, program(case))
    assert result.proof.values.status == "proved", result.proof.values
    assert agrees(case, made)


FAULTS: dict[str, tuple[str, Op]] = {
    "indices one off": ("outputs of experts", op("sub", "i", expr("r*2+1"), out="less")),
    "a mask that begins too early": ("outputs of experts", op("lt", "less", 1, out="below")),
    "a mask of other indices": ("outputs of experts", op("ge", "j", HALF, out="above")),
    "shares not masked": ("outputs of experts", op("copy", "share", out="own_share")),
    "shares masked with ones": (
        "outputs of experts",
        op("masked_fill", "share", "mask", 1.0, out="own_share"),
    ),
    "shares of other tokens masked": (
        "outputs of experts",
        op("masked_fill", "turn", "mask", 0.0, out="own_share"),
    ),
    "masked indices point to another row": ("outputs of experts", op("add", "at0", 1, out="at")),
    "picks in another order": ("outputs of experts", op("flip", "h2", out="h", dims=[1])),
    "no sum over ranks": ("outputs of experts", op("copy", "part", out="y")),
    "what is elsewhere is added": ("outputs of experts", op("add", "by", "h", out="mixed")),
    "gradients not masked": ("gradients of shares", op("copy", "ds0", out="ds1")),
    "gradients masked by the other picks": (
        "gradients of shares",
        op("masked_fill", "ds0", "nask", 0, out="ds1"),
    ),
    "gradients of other rows": (
        "gradients of experts",
        op("index_put", "zero", "dw", "last", out="y", accumulate=True),
    ),
    "gradients put, not added": ("gradients of experts", op("index_put", "zero", "dw", "at", out="y")),
    "gradients added to ones": (
        "gradients of experts",
        op("full", out="zero", size=[HALF, D, F], fill_value=1.0, dtype="f64"),
    ),
    "gradients of rows elsewhere": ("gradients of experts", op("mul", "h", "g", out="dw")),
    "gradients of one rank": ("gradients of shares", op("copy", "ds1", out="ds")),
}
EXTRA: dict[str, Op] = {
    "last": op("flip", "at", out="last", dims=[1]),
    "j": op("flip", "less", out="j", dims=[0]),
    "turn": op("flip", "share", out="turn", dims=[0]),
    "at0": op("masked_fill", "less", "mask", 0, out="at0"),
    "h2": op("silu", "h1", out="h2"),
    "nask": op("flip", "mask", out="nask", dims=[1]),
}


@pytest.mark.parametrize("label", FAULTS)
def test_fault_is_not_proved_and_its_certificate_refused(label: str) -> None:
    name, wrong = FAULTS[label]
    case = CASES[name]
    right = prove_plan(plan(case, case.local), program(case)).certificate
    assert right is not None
    reads = {str(ref.name) for ref in wrong.reads()}
    body: list[Op] = []
    for step in case.local:
        if str(step.outs[0]) == str(wrong.outs[0]):
            body += [more for key, more in EXTRA.items() if key in reads]
            step = replace(wrong, outs=step.outs)
        body.append(step)
    made = plan(case, tuple(body))
    assert not agrees(case, made)
    assert prove_plan(made, program(case)).proof.values.status == "refuted"
    row = json.loads(right)
    row["plan"] = plan_digest(made)
    assert not check_certificate(canonical_json(row), made, program(case)).accepted


def test_rows_of_experts_that_have_no_value_elsewhere_are_not_proved() -> None:
    """log of another expert's rows may be nothing, and 0 times nothing is not 0."""
    swap = {"h": op("log", "h1", out="h")}
    logical = tuple(swap.get(str(step.outs[0]), step) for step in FORWARD.logical)
    local = tuple(swap.get(str(step.outs[0]), step) for step in FORWARD.local)
    case = replace(FORWARD, logical=logical, local=local)
    assert prove_plan(plan(case, case.local), program(case)).proof.values.status != "proved"


def test_an_index_that_may_count_from_the_end_is_not_proved() -> None:
    """index takes -1 for the last row, and no rank has it; a gather by the same index would refuse it."""
    shared = (op("slice", "s", out="share", dim=1, start=0, end=K),)
    logical = (*shared, *FORWARD.logical[1:])
    local = (*shared, *FORWARD.local[1:])
    case = replace(FORWARD, logical=logical, local=local)
    made = plan(case, case.local)
    assert agrees(case, made)
    assert prove_plan(made, program(case)).proof.values.status == "unknown"
