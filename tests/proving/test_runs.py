"""Steps on flat memory, run by run; each offset, order and stretch astray; and certificates that lie.

Two tensors of two dims and a row lie one after another with padding between and behind; each of two ranks
works on its half, which begins and ends within them. numpy has the last word.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from tensure.bundle import canonical_json, plan_digest
from tensure.program import Op, expr, op
from tensure.proving import check_certificate, prove_plan

from .test_check import mutants, rejected
from .test_spellings import Spelling, agrees, plan, program, reduce

MINE = {"start": expr("r*21"), "end": expr("r*21 + 21")}
"""Of 42 elements: a in 0:24, two zeros, b in 26:36, c in 36:39, three zeros."""


def laid(out: str, *tensors: str) -> tuple[Op, ...]:
    """Flat memory, and this rank's half of it."""
    views = [op("view", item, out=f"{out}_{item}", size=[-1]) for item in tensors]
    zeros = [
        op("full", out=f"{out}_z{n}", size=[n], fill_value=0.0, dtype="f64")
        for n in ((2, 3) if tensors else ())
    ]
    one, other, row = (f"{out}_{item}" for item in tensors)
    joined = op("cat", one, f"{out}_z2", other, row, f"{out}_z3", out=f"{out}_all")
    return (*views, *zeros, joined, op("slice", f"{out}_all", out=out, **MINE))


def seen(base: str, start: int, size: list[int], out: str) -> tuple[Op, Op]:
    """A tensor of the gathered memory, in its own shape."""
    stop = start + int(np.prod(size))
    return (
        op("slice", base, out=f"{out}_", start=start, end=stop),
        op("view", f"{out}_", out=out, size=size),
    )


def unlaid(base: str) -> tuple[Op, ...]:
    return (*seen(base, 0, [4, 6], "ya"), *seen(base, 26, [2, 5], "yb"), *seen(base, 36, [3], "yc"))


INPUTS = {"a": (4, 6), "b": (2, 5), "c": (3,), "u": (4, 6), "v": (2, 5), "w": (3,)}
STEPPED = Spelling(
    INPUTS,
    tuple(
        step
        for one, other, out in (("a", "u", "ya"), ("b", "v", "yb"), ("c", "w", "yc"))
        for step in (
            op("mul", one, 0.9, out=f"m_{one}"),
            op("add", f"m_{one}", other, out=f"s_{one}", alpha=0.1),
            op("square", other, out=f"q_{one}"),
            op("add", f"q_{one}", 0.5, out=f"e_{one}"),
            op("sqrt", f"e_{one}", out=f"r_{one}"),
            op("div", f"s_{one}", f"r_{one}", out=f"d_{one}"),
            op("sub", one, f"d_{one}", out=out, alpha=0.01),
        )
    ),
    (
        *laid("p", "a", "b", "c"),
        *laid("g", "u", "v", "w"),
        op("mul", "p", 0.9, out="m"),
        op("add", "m", "g", out="s", alpha=0.1),
        op("square", "g", out="q"),
        op("add", "q", 0.5, out="e"),
        op("sqrt", "e", out="r0"),
        op("div", "s", "r0", out="d"),
        op("sub", "p", "d", out="t", alpha=0.01),
        op("all_gather", "t", out="all", axes=["r"], dim=0),
        *unlaid("all"),
    ),
    {},
    outputs=("ya", "yb", "yc"),
    faults={
        "g_all": op("cat", "g_u", "g_v", "g_z2", "g_w", "g_z3", out="x"),
        "p": op("slice", "p_all", out="x", start=expr("r*20"), end=expr("r*20 + 21")),
        "g": op("slice", "g_all", out="x", start=expr("21 - r*21"), end=expr("42 - r*21")),
        "s": op("add", "m", "p", out="x", alpha=0.1),
        "q": op("mul", "g", "p", out="x"),
        "e": op("add", "q", 0.25, out="x"),
        "all": op("all_gather", "s", out="x", axes=["r"], dim=0),
        "yb_": op("slice", "all", out="x", start=24, end=34),
        "yc_": op("slice", "all", out="x", start=35, end=38),
    },
)
NORMED = Spelling(
    INPUTS,
    (
        *(op("square", item, out=f"q_{item}") for item in "uvw"),
        op("sum", "q_u", out="s_u", dim=[0, 1]),
        op("sum", "q_v", out="s_v", dim=[0, 1]),
        op("sum", "q_w", out="s_w", dim=[0]),
        op("add_n", "s_u", "s_v", "s_w", out="y"),
    ),
    (
        *laid("g", "u", "v", "w"),
        op("pow", "g", 2, out="q"),
        op("sum", "q", out="s", dim=[0]),
        reduce("s", "y"),
    ),
    {},
    faults={
        "g": op("slice", "g_all", out="x", start=expr("r*20"), end=expr("r*20 + 21")),
        "q": op("pow", "g", 3, out="x"),
        "g_all": op("cat", "g_u", "g_z2", "g_v", "g_v", out="x"),
    },
)
WRITTEN = Spelling(
    {"a": (4, 6), "b": (2, 5)},
    (op("exp", "a", out="ya"), op("exp", "b", out="yb")),
    (
        op("full", out="zero", size=[36], fill_value=0.0, dtype="f64"),
        op("view", "a", out="fa", size=[24]),
        op("view", "b", out="fb", size=[10]),
        op("slice_scatter", "zero", "fa", out="one", start=0, end=24),
        op("slice_scatter", "one", "fb", out="two", start=24, end=34),
        op("slice", "two", out="mine", start=expr("r*18"), end=expr("r*18 + 18")),
        op("exp", "mine", out="e"),
        op("all_gather", "e", out="all", axes=["r"], dim=0),
        *seen("all", 0, [4, 6], "ya"),
        *seen("all", 24, [2, 5], "yb"),
    ),
    {},
    outputs=("ya", "yb"),
    faults={
        "two": op("slice_scatter", "one", "fb", out="x", start=25, end=35),
        "one": op("slice_scatter", "zero", "fa", out="x", start=2, end=26),
        "mine": op("slice", "two", out="x", start=0, end=18),
    },
)
REDUCED = Spelling(
    {"a": (4, 6), "b": (4, 5)},
    (op("sum", "a", out="ya", dim=[0]), op("sum", "b", out="yb", dim=[0])),
    (
        op("sum", "a", out="sa", dim=[0]),
        op("sum", "b", out="sb", dim=[0]),
        op("full", out="z1", size=[1], fill_value=0.0, dtype="f64"),
        op("full", out="z2", size=[2], fill_value=0.0, dtype="f64"),
        op("cat", "sa", "z1", "sb", "z2", out="flat"),
        op("reduce_scatter", "flat", out="mine", axes=["r"], dim=0),
        op("all_gather", "mine", out="all", axes=["r"], dim=0),
        *seen("all", 0, [6], "ya"),
        *seen("all", 7, [5], "yb"),
    ),
    {"a": 0, "b": 0},
    outputs=("ya", "yb"),
    faults={
        "flat": op("cat", "z1", "sa", "sb", "z2", out="x"),
        "yb_": op("slice", "all", out="x", start=6, end=11),
        "z1": op("full", out="x", size=[1], fill_value=1.0, dtype="f64"),  # padding is not read: still right
    },
)
CASES = {"stepped": STEPPED, "normed": NORMED, "written": WRITTEN, "reduced": REDUCED}


def faulty(case: Spelling, out: str) -> Any:
    wrong = case.faults[out]
    body = tuple(replace(wrong, outs=step.outs) if str(step.outs[0]) == out else step for step in case.local)
    return plan(case, body)


@pytest.mark.parametrize("label", CASES)
def test_runs_are_proved_and_what_is_astray_is_not(label: str) -> None:
    case = CASES[label]
    made = plan(case, case.local)
    assert agrees(case, made)
    result = prove_plan(made, program(case))
    assert result.proof.values.status == "proved", result.proof.values
    assert result.certificate is not None
    for out in case.faults:
        wrong = faulty(case, out)
        status = prove_plan(wrong, program(case)).proof.values.status
        row = json.loads(result.certificate)
        row["plan"] = plan_digest(wrong)
        accepted = check_certificate(canonical_json(row), wrong, program(case)).accepted
        if agrees(case, wrong):
            assert status != "refuted", out
        else:
            assert status == "refuted" and not accepted, out


@pytest.mark.parametrize("label", CASES)
def test_no_certificate_that_says_something_else_is_accepted(label: str) -> None:
    """Ends of runs, classes, factors and addends, one changed at a time."""
    case = CASES[label]
    made = plan(case, case.local)
    data = prove_plan(made, program(case)).certificate
    assert data is not None
    accepted = [
        kind
        for kind, row in mutants(json.loads(data), np.random.default_rng(5))
        if not rejected(canonical_json(row), made, program(case))
    ]
    assert not accepted


@pytest.mark.parametrize("label", CASES)
def test_no_certificate_with_another_flat_value_is_accepted(label: str) -> None:
    """What is laid one after another, in another order or from another place on; another stretch of a sum."""
    case = CASES[label]
    made = plan(case, case.local)
    data = prove_plan(made, program(case)).certificate
    assert data is not None
    changed = 0
    for row in redefined(json.loads(data)):
        assert rejected(canonical_json(row), made, program(case))
        changed += 1
    assert changed > 3


def redefined(row: Any) -> Iterator[Any]:
    """One change at a time of what the certificate defines itself, and of what is summed."""
    count = len(row["invocations"][0]["values"])
    zeros = {item[0] for item in row["invocations"][0]["values"] if item[1] == "full"}
    for at in range(count):
        item = row["invocations"][0]["values"][at]
        parts = [n for n, part in enumerate(item[3]) if isinstance(part, list) and len(part) == 4]
        if item[1] == "cat":
            for one, other in pairwise(parts):
                new = copy.deepcopy(row)
                operands = new["invocations"][0]["values"][at][3]
                operands[one], operands[other] = operands[other], operands[one]
                yield new
        for n in parts:
            if item[3][n][1] in zeros:
                continue
            new = copy.deepcopy(row)
            part = new["invocations"][0]["values"][at][3][n]
            part[0] = "2/1" if part[0] == "1/1" else "1/1"
            if (
                item[1] != "view"
            ):  # a multiple of what is viewed is one of the view, which all claims then are
                yield new
            new = copy.deepcopy(row)
            runs = new["invocations"][0]["values"][at][3][n][2][0]
            if runs and runs[0][0] > 0:
                runs[0] = [runs[0][0] - 1, runs[0][1] - 1]
                yield new
    for rank, local in ((n, x) for n, x in enumerate(row["invocations"][0]["locals"])):
        for n, term in enumerate(local[2]):
            for m, (shares, _) in enumerate(term[3] or []):
                for k, (letter, runs) in enumerate(shares):
                    if letter == "flat":
                        for other in ([[runs[0][0], runs[0][1] - 1]], [[runs[0][0] + 1, runs[0][1]]], "dim0"):
                            new = copy.deepcopy(row)
                            share = new["invocations"][0]["locals"][rank][2][n][3][m][0][k]
                            share[1 if other != "dim0" else 0] = other
                            yield new
