"""Lookups in a table whose rows are dealt to ranks: masked indices, and every way to get a bound wrong."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tensure.bundle import Local, Place, Plan, Track, collect, evaluate_plan, validate_plan
from tensure.errors import TensureError
from tensure.program import Arg, Entry, Op, Program, Value, digest, evaluate_program, expr, name, op
from tensure.proving import prove_plan

V, D, ROWS = 6, 4, 3
PROGRAM = Program(
    {},
    {"table": Value((V, D), "f64", "weight"), "i": Value((2, 4), "i64"), "j": Value((2, 4), "i64")},
    {},
    {"run": Entry((name("i"), name("j")), (op("embedding", "table", "i", out="y"),), (name("y"),))},
)
LO, HI = expr(f"tp*{ROWS}"), expr(f"tp*{ROWS}+{ROWS}")


def steps(kind: str = "where") -> list[Op]:
    """Masked below lo and from hi on, looked up, blanked, summed."""
    made = [
        op("lt", "i", LO, out="below"),
        op("ge", "i", HI, out="above"),
        op("bitwise_or", "below", "above", out="mask"),
        op("sub", "i", LO, out="less"),
    ]
    if kind == "where":
        made += [
            op("full", out="zero", size=[], fill_value=0, dtype="i64"),
            op("where", "mask", "zero", "less", out="at"),
            op("embedding", "table", "at", out="rows"),
            op("view", "mask", out="wide", size=[2, 4, 1]),
            op("full", out="blank", size=[], fill_value=0.0, dtype="f64"),
            op("where", "wide", "blank", "rows", out="part"),
        ]
    else:
        made += [
            op("masked_fill", "less", "mask", 0, out="at"),
            op("embedding", "table", "at", out="rows"),
            op("unsqueeze", "mask", out="wide", dim=-1),
            op("masked_fill", "rows", "wide", 0.0, out="part"),
        ]
    return [*made, op("all_reduce", "part", out="y", axes=["tp"])]


def plan(body: list[Op], first: Any = LO, last: Any = HI) -> Plan:
    rows = Local((), Place(name("table"), ((0, ((first, last, 1),)),)))
    locals_ = {"table": rows, **{base: Local((), Place(name(base))) for base in ("i", "j", "y")}}
    track = Track(("tp",), (), None, {}, {"run": tuple(body)})
    return Plan(digest(PROGRAM), None, {"tp": 2}, {}, locals_, {}, {"t": track})


def agrees(made: Plan) -> bool:
    """Whether numpy sees the same rows, over every index and more."""
    rng = np.random.default_rng(0)
    for seed in range(3):
        every = np.concatenate([np.arange(V), rng.integers(0, V, 2)]).reshape(2, 4)
        values = {"table": rng.standard_normal((V, D)), "i": every, "j": np.roll(every, seed + 1)}
        want = evaluate_program(PROGRAM, values, entry="run").outputs["y"]
        try:
            have = collect(evaluate_plan(made, PROGRAM, values), PROGRAM, (name("y"),))["y"]
        except TensureError:
            return False
        if not np.allclose(have, want):
            return False
    return True


@pytest.mark.parametrize("kind", ["where", "masked_fill"])
def test_rows_dealt_to_ranks_are_proved(kind: str) -> None:
    made = plan(steps(kind))
    validate_plan(made, PROGRAM)
    assert prove_plan(made, PROGRAM).proof.values.status == "proved"
    assert agrees(made)


def _shifted(item: Op, by: int) -> Op:
    args: tuple[Arg, ...] = (item.args[0], expr(f"tp*{ROWS}+{by + (ROWS if item.op == 'ge' else 0)}"))
    return replace(item, args=args)


FAULTS = [
    (kind, out, by)
    for kind in ("where", "masked_fill")
    for out in ("below", "above", "less")
    for by in (-1, 1)
]


@pytest.mark.parametrize(("kind", "out", "by"), FAULTS)
def test_a_bound_off_by_one_is_never_proved(kind: str, out: str, by: int) -> None:
    body = [_shifted(item, by) if item.outs[0].base == out else item for item in steps(kind)]
    made = plan(body)
    assert prove_plan(made, PROGRAM).proof.values.status != "proved"
    assert not agrees(made)


@pytest.mark.parametrize("kind", ["where", "masked_fill"])
def test_other_indices_blanks_and_masks_are_never_proved(kind: str) -> None:
    """Every operand of every step exchanged for another tensor of its form."""
    good = steps(kind)
    names = [str(arg.name) for item in good for arg in item.args if hasattr(arg, "name")]
    tried = proved = 0
    for at, item in enumerate(good):
        for place, other in itertools.product(range(len(item.args)), sorted({*names, "j"})):
            args = (*item.args[:place], *op("copy", other, out="q").args, *item.args[place + 1 :])
            if args == item.args:
                continue
            made = plan([*good[:at], replace(item, args=args), *good[at + 1 :]])
            try:
                status = prove_plan(made, PROGRAM).proof.values.status
            except TensureError:
                continue
            tried += 1
            proved += status == "proved"
            assert status != "proved" or agrees(made), (item.op, place, other)
    assert tried > 40 and proved < tried


def test_rows_held_elsewhere_are_never_proved() -> None:
    for first, last in (
        (expr("tp*2"), expr(f"tp*2+{ROWS}")),
        (expr(f"(1-tp)*{ROWS}"), expr(f"(2-tp)*{ROWS}")),
    ):
        made = plan(steps(), first, last)
        assert prove_plan(made, PROGRAM).proof.values.status != "proved"
        assert not agrees(made)


def test_one_rank_left_out_is_never_proved() -> None:
    body = steps()
    alone = [*body[:-1], replace(body[-1], op="copy", attrs=())]
    assert prove_plan(plan(alone), PROGRAM).proof.values.status == "refuted"
