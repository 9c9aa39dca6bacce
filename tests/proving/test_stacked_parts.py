"""Slices of one index each, stacked for an exchange and taken apart again, and the ways to mix them up."""

from __future__ import annotations

import numpy as np
import pytest

from tensure.bundle import Local, Place, Plan, Track, collect, evaluate_plan, validate_plan
from tensure.program import Entry, Op, Program, Value, digest, evaluate_program, expr, name, op
from tensure.proving import prove_plan

E, N, D, RANKS = 2, 6, 3, 2
PROGRAM = Program(
    {},
    {"x": Value((E, N, D), "f64")},
    {},
    {"run": Entry((name("x"),), (op("exp", "x", out="y"),), (name("y"),))},
)


def body(
    *,
    stacked: tuple[int, ...] = (0, 1),
    taken: tuple[int, ...] = (0, 1),
    dim: int = 1,
    stack_dim: int = 0,
    split: int = 0,
) -> list[Op]:
    """Every rank has its rows of all experts; after the exchange, all rows of its own."""
    steps = [op("slice", "x", out=f"s{at}", dim=0, start=at, end=at + 1, step=1) for at in range(E)]
    steps += [
        op("stack", *(f"s{at}" for at in stacked), out="sent", dim=stack_dim),
        op("all_to_all", "sent", out="got", axes=["ep"], split=split, cat=split),
    ]
    steps += [op("select", "got", out=f"g{at}", dim=stack_dim, index=at) for at in range(RANKS)]
    return [*steps, op("cat", *(f"g{at}" for at in taken), out="rows", dim=dim), op("exp", "rows", out="y")]


def plan(steps: list[Op]) -> Plan:
    rows = ((1, ((expr("ep*3"), expr("ep*3+3"), 1),)),)
    mine = ((0, ((expr("ep"), expr("ep+1"), 1),)),)
    locals_ = {"x": Local((), Place(name("x"), rows)), "y": Local((), Place(name("y"), mine))}
    track = Track(("ep",), (), None, {}, {"run": tuple(steps)})
    return Plan(digest(PROGRAM), None, {"ep": RANKS}, {}, locals_, {}, {"t": track})


def agrees(made: Plan) -> bool:
    values = {"x": np.random.default_rng(0).standard_normal((E, N, D))}
    want = evaluate_program(PROGRAM, values, entry="run").outputs["y"]
    return bool(np.allclose(collect(evaluate_plan(made, PROGRAM, values), PROGRAM, (name("y"),))["y"], want))


@pytest.mark.parametrize("axis", [0, 1])
def test_exchange_is_proved(axis: int) -> None:
    made = plan(body(stack_dim=axis, split=axis))
    validate_plan(made, PROGRAM)
    assert agrees(made)
    result = prove_plan(made, PROGRAM)
    assert result.proof.values.status == "proved", result.proof.values


FAULTS = {
    "experts exchanged": body(stacked=(1, 0)),
    "one expert twice": body(stacked=(1, 1)),
    "ranks exchanged": body(taken=(1, 0)),
    "one rank twice": body(taken=(0, 0)),
    "experts exchanged, new dim behind": body(stacked=(1, 0), stack_dim=1, split=1),
    "nothing exchanged": [
        op("copy", "sent", out="got") if step.op == "all_to_all" else step for step in body()
    ],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_not_proved(fault: str) -> None:
    made = plan(FAULTS[fault])
    assert not agrees(made)
    assert prove_plan(made, PROGRAM).proof.values.status != "proved"
