"""A loss over micro-batches as the mean of their stacked means, and the ways to get it wrong."""

from __future__ import annotations

import numpy as np
import pytest

from tensure.bundle import Local, Place, Plan, Track, collect, evaluate_plan, validate_plan
from tensure.program import Entry, Op, Program, Value, digest, evaluate_program, name, op
from tensure.proving import prove_plan

B, D, PARTS = 6, 4, 3
PROGRAM = Program(
    {},
    {"x": Value((B, D), "f64"), "y": Value((B, D), "f64")},
    {},
    {"run": Entry((name("x"), name("y")), (op("mse_loss", "x", "y", out="loss"),), (name("loss"),))},
)


def body(edges: tuple[tuple[int, int], ...], last: Op | None = None, dim: int = 0) -> list[Op]:
    """Mean losses of rows start..end each, stacked, and their mean (or another last step)."""
    steps: list[Op] = []
    for at, (start, end) in enumerate(edges):
        for base in "xy":
            steps.append(op("slice", base, out=f"{base}{at}", dim=0, start=start, end=end, step=1))
        steps.append(op("mse_loss", f"x{at}", f"y{at}", out=f"l{at}"))
    steps.append(op("stack", *(f"l{at}" for at in range(len(edges))), out="all", dim=dim))
    return [*steps, last or op("mean", "all", out="loss")]


def plan(steps: list[Op]) -> Plan:
    locals_ = {base: Local((), Place(name(base))) for base in ("x", "y", "loss")}
    track = Track((), (), None, {}, {"run": tuple(steps)})
    return Plan(digest(PROGRAM), None, {}, {}, locals_, {}, {"t": track})


def agrees(made: Plan) -> bool:
    rng = np.random.default_rng(0)
    values = {base: rng.standard_normal((B, D)) for base in "xy"}
    want = evaluate_program(PROGRAM, values, entry="run").outputs["loss"]
    have = collect(evaluate_plan(made, PROGRAM, values), PROGRAM, (name("loss"),))["loss"]
    return bool(np.allclose(have, want, rtol=1e-12))


EVEN = ((0, 2), (2, 4), (4, 6))


@pytest.mark.parametrize("edges", [EVEN, ((4, 6), (0, 2), (2, 4)), ((0, 3), (3, 6)), ((0, 6),)])
@pytest.mark.parametrize("named", [False, True])
def test_mean_of_stacked_means_is_proved(edges: tuple[tuple[int, int], ...], named: bool) -> None:
    last = op("mean", "all", out="loss", dim=[0]) if named else None
    made = plan(body(edges, last))
    validate_plan(made, PROGRAM)
    assert agrees(made)
    result = prove_plan(made, PROGRAM)
    assert result.proof.values.status == "proved", result.proof.values


FAULTS = {
    "summed": body(EVEN, op("sum", "all", out="loss")),
    "uneven": body(((0, 1), (1, 4), (4, 6))),
    "one twice": body(((0, 2), (2, 4), (2, 4))),
    "all the same": body(((0, 2), (0, 2), (0, 2))),
    "one missing": body(EVEN[:2]),
    "overlapping": body(((0, 3), (2, 4), (4, 6))),
    "only the last": body(EVEN, op("select", "all", out="loss", dim=0, index=2)),
    "largest": body(EVEN, op("amax", "all", out="loss", dim=[0])),
    "rows of targets exchanged": [
        op("slice", "y", out="y0", dim=0, start=2, end=4, step=1) if step.outs == (name("y0"),) else step
        for step in body(EVEN)
    ],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_not_proved(fault: str) -> None:
    made = plan(FAULTS[fault])
    validate_plan(made, PROGRAM)
    assert not agrees(made)
    assert prove_plan(made, PROGRAM).proof.values.status == "refuted"
