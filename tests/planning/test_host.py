"""The host plan runs a Program exactly as the Program says, by the evaluators of program and bundle."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tensure.bundle import (
    collect,
    compare_claims,
    evaluate_plan,
    format_plan,
    parse_plan,
    plan_digest,
    validate_plan,
)
from tensure.errors import RecordError
from tensure.planning import host_plan
from tensure.program import (
    Block,
    Call,
    Entry,
    For,
    Op,
    Program,
    State,
    Value,
    axis,
    evaluate_program,
    expr,
    name,
    op,
    validate_program,
)


def layered(activation: str = "relu") -> Program:
    """Two layers in a block, an undeclared intermediate family, a state, a parameter."""
    size = axis("D")
    return Program(
        {"L": 2, "D": 4},
        {
            "W": Value((size, size), role="weight", params=(("l", axis("L")),)),
            "x": Value((expr("n"), size), params=(("l", expr("L+1")),)),
            "sum": Value((size,), role="state"),
            "sum2": Value((size,), role="state"),
        },
        {
            "layer": Block(
                ("l",),
                (op("linear", "x[l]", "W[l]", None, out="h[l]"), op(activation, "h[l]", out="x[l+1]")),
            )
        },
        {
            "run": Entry(
                (name("x[0]"),),
                (
                    For("l", 0, axis("L"), (Call("layer", (axis("l"),)),)),
                    op("add", "sum", "sum", out="sum2"),
                ),
                (name("x[2]"),),
                states=(State(name("sum"), name("sum2")),),
                params=(("n", 1, 5),),
            )
        },
    )


def given(seed: int = 0) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    arrays = {f"W[{layer}]": draw.standard_normal((4, 4), np.float32) for layer in range(2)}
    return {
        **arrays,
        "x[0]": draw.standard_normal((3, 4), np.float32),
        "sum": draw.standard_normal(4, np.float32),
    }


def test_plan_is_valid_and_round_trips() -> None:
    program = layered()
    validate_program(program)
    plan = host_plan(program)
    validate_plan(plan, program)
    assert parse_plan(format_plan(plan)) == plan
    assert plan.num_ranks() == 1


@pytest.mark.parametrize("seed", range(3))
def test_plan_computes_the_program_bit_for_bit(seed: int) -> None:
    program, arrays = layered(), given(seed)
    expected = evaluate_program(program, arrays, params={"n": 3})
    run = evaluate_plan(host_plan(program), program, arrays, params={"n": 3})
    np.testing.assert_array_equal(
        collect(run, program, (name("x[2]"),))["x[2]"], expected.outputs["x[2]"], strict=True
    )
    assert not compare_claims(run, expected)


def test_a_changed_op_is_seen() -> None:
    """Negative control: the comparison above turns red when the plan computes something else."""
    program, arrays = layered(), given()
    plan = host_plan(program)
    body = plan.blocks["layer"].body
    assert isinstance(body[1], Op)
    changed = dataclasses.replace(
        plan, blocks={"layer": Block(("l",), (body[0], dataclasses.replace(body[1], op="neg")))}
    )
    expected = evaluate_program(program, arrays, params={"n": 3})
    assert compare_claims(evaluate_plan(changed, program, arrays, params={"n": 3}), expected)


def test_plans_of_different_programs_and_devices_differ() -> None:
    relu, tanh = layered("relu"), layered("tanh")
    digests = {
        plan_digest(host_plan(relu)),
        plan_digest(host_plan(tanh)),
        plan_digest(host_plan(relu, "card")),
    }
    assert len(digests) == 3
    with pytest.raises(RecordError, match="the plan is for"):
        validate_plan(host_plan(relu), tanh)
