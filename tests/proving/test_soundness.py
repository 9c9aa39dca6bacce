"""Small plans that are wrong for some values, each built to slip through one rule; none may be proved."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tensure.bundle import Local, Place, Plan, Track, collect, evaluate_plan, validate_plan
from tensure.program import Entry, Op, Program, Value, digest, evaluate_program, name, op
from tensure.proving import prove_plan

Types = dict[str, tuple[tuple[int, ...], str]]
Claims = dict[str, Place]


def pair(
    types: Types, program: list[Op], outputs: list[str], plan: list[Op], mesh: int = 1, **claims: Place
) -> tuple[Program, Plan]:
    """A Program, and a Plan on `mesh` ranks whose inputs and outputs are whole unless claimed otherwise."""
    made = Program(
        {},
        {base: Value(shape, dtype) for base, (shape, dtype) in types.items()},
        {},
        {"run": Entry(tuple(map(name, types)), tuple(program), tuple(map(name, outputs)))},
    )
    held = {base: Local((), claims.get(base, Place(name(base)))) for base in (*types, *outputs)}
    held.update({base: Local((), place) for base, place in claims.items()})
    track = Track(("tp",), (), None, {}, {"run": tuple(plan)})
    found = Plan(digest(made), None, {"tp": mesh}, {}, held, {}, {"t": track})
    validate_plan(found, made)
    return made, found


def agrees(program: Program, plan: Plan) -> bool:
    """Whether numpy sees the same outputs for a few draws."""
    entry = program.entry("run")
    for seed in range(3):
        rng = np.random.default_rng(seed)
        values: dict[str, Any] = {
            str(label): rng.standard_normal(program.values[str(label)].shape)
            if program.values[str(label)].dtype.startswith("f")
            else rng.integers(0, 3, program.values[str(label)].shape)
            for label in entry.inputs
        }
        want = evaluate_program(program, values, entry="run").outputs
        have = collect(evaluate_plan(plan, program, values), program, entry.outputs)
        if any(not np.allclose(have[label], want[label]) for label in want):
            return False
    return True


def status(program: Program, plan: Plan) -> str:
    return prove_plan(plan, program).proof.values.status


# --- a part among zeros, then moved -----------------------------------------------------------------------

BLANKED = [
    op("slice", "y", out="kept", dim=0, start=0, end=2),
    op("constant_pad_nd", "kept", out="part", pad=[0, 0, 0, 2], value=0.0),
]
MOVED: dict[str, tuple[Types, list[Op], list[Op]]] = {
    "cat": (
        {"a": ((4, 2), "f64"), "b": ((4, 2), "f64")},
        [op("cat", "a", "b", out="y", dim=1)],
        [op("slice", "y", out="z", dim=1, start=0, end=2)],
    ),
    "view": (
        {"a": ((4, 2, 3), "f64")},
        [op("view", "a", out="y", size=[4, 6])],
        [op("view", "y", out="z", size=[4, 2, 3])],
    ),
    "view of a view": (
        {"a": ((4, 2, 3), "f64")},
        [op("view", "a", out="y", size=[4, 6])],
        [op("view", "y", out="z", size=[4, 3, 2])],
    ),
    "permute": (
        {"a": ((3, 4), "f64")},
        [op("permute", "a", out="y", dims=[1, 0])],
        [op("permute", "y", out="z", dims=[1, 0])],
    ),
    "transpose of a permute": (
        {"a": ((3, 4, 2), "f64")},
        [op("permute", "a", out="y", dims=[1, 0, 2])],
        [op("transpose", "y", out="z", dim0=1, dim1=2)],
    ),
    "unsqueeze": (
        {"a": ((4, 6), "f64")},
        [op("view", "a", out="y", size=[4, 2, 3])],
        [op("unsqueeze", "y", out="z", dim=0)],
    ),
    "view of a cat": (
        {"a": ((2, 3), "f64"), "b": ((2, 3), "f64")},
        [op("cat", "a", "b", out="y", dim=0), op("view", "y", out="v", size=[1, 12])],
        [op("view", "y", out="z", size=[4, 3, 1])],
    ),
}


@pytest.mark.parametrize("kind", sorted(MOVED))
def test_a_part_among_zeros_is_not_the_whole_after_a_move(kind: str) -> None:
    types, makes, moves = MOVED[kind]
    blanks = [
        op("slice", "y", out="kept", dim=0, start=0, end=2),
        op("full", out="zeros", size=[2, *_rest(types, makes)], fill_value=0.0, dtype="f64"),
        op("cat", "kept", "zeros", out="part", dim=0),
    ]
    wrong = [*makes, *blanks, *(_renamed(item, "y", "part") for item in moves)]
    assert not agrees(*pair(types, [*makes, *moves], ["z"], wrong))
    assert status(*pair(types, [*makes, *moves], ["z"], wrong)) != "proved"


def _rest(types: Types, makes: list[Op]) -> tuple[int, ...]:
    values = {base: np.zeros(shape) for base, (shape, _) in types.items()}
    program = Program(
        {},
        {base: Value(shape, dtype) for base, (shape, dtype) in types.items()},
        {},
        {"run": Entry(tuple(map(name, types)), tuple(makes), (name("y"),))},
    )
    return tuple(evaluate_program(program, values, entry="run").outputs["y"].shape[1:])


def _renamed(item: Op, old: str, new: str) -> Op:
    from dataclasses import replace

    args = tuple(
        op("copy", new, out="q").args[0] if str(getattr(a, "name", "")) == old else a for a in item.args
    )
    return replace(item, args=args)
