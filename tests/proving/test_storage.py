"""Byte tags: the closed form of a pointwise layer in one pool, and every kind of clash by name."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tensure.bundle import Local, Place, Plan, Track, Verdict, evaluate_plan
from tensure.program import (
    Block,
    Call,
    Entry,
    For,
    Program,
    State,
    Value,
    axis,
    digest,
    evaluate_program,
    expr,
    name,
    op,
    ref,
)
from tensure.proving import prove_plan


def pointwise(rows: int, ins: int, outs: int) -> Program:
    """[M, K] i8 through K -> N: the 1x1 convolution of an MCU model, one pixel a row."""
    values = {"A": Value((rows, ins), "i8"), "w": Value((outs, ins), "i8", "weight")}
    body = (
        op("integer_linear", "A", "w", None, out="s"),
        op("requantize", "s", out="E", multiplier=[1 << 30], shift=[-4]),
    )
    return Program({}, values, {}, {"run": Entry((name("A"),), body, (name("E"),))})


def in_one_pool(program: Program, rows: int, ins: int, outs: int, distance: int) -> Plan:
    """Input `distance` bytes above the output, one row at a time."""
    row = ((0, ((axis("r"), axis("r") + 1, 1),)),)
    locals_ = {
        "A": Local((), Place(name("A")), "i8", "ram", distance),
        "w": Local((), Place(name("w"))),
        "E": Local(("r",), Place(name("E"), row), "i8", "ram", expr(f"r*{outs}")),
    }
    block = Block(
        ("r",),
        (
            op("integer_linear", ref("A", (0, "r", "r+1")), "w", None, out="s[r]"),
            op("requantize", "s[r]", out="E[r]", multiplier=[1 << 30], shift=[-4]),
        ),
    )
    body = (For("t", 0, rows, (Call("row", (axis("t"),)),)),)
    size = max(distance + rows * ins, rows * outs)
    return Plan(
        digest(program),
        None,
        {},
        {"ram": size},
        locals_,
        {"row": block},
        {"mcu": Track((), (), None, {}, {"run": body})},
    )


def storage(plan: Plan, program: Program) -> Verdict:
    return prove_plan(plan, program).proof.storage


@pytest.mark.parametrize(
    ("rows", "ins", "outs"), [(4, 3, 5), (6, 2, 3), (5, 4, 4), (3, 6, 2), (7, 1, 4), (2, 3, 8)]
)
def test_least_offset_is_the_closed_form(rows: int, ins: int, outs: int) -> None:
    """vMCU: the output may start (M-1) * max(N-K, 0) bytes below the input, and not one less."""
    program = pointwise(rows, ins, outs)
    least = (rows - 1) * max(outs - ins, 0)
    good = prove_plan(in_one_pool(program, rows, ins, outs, least), program)
    assert (good.proof.values.status, good.proof.storage.status) == ("proved", "proved")
    if least:
        verdict = storage(in_one_pool(program, rows, ins, outs, least - 1), program)
        assert verdict.counterexample is not None
        assert verdict.counterexample.local == "A"
        assert f"belongs to E[{rows - 2}]" in verdict.counterexample.claim
        assert verdict.counterexample.confirmed


@pytest.mark.parametrize("seed", range(12))
def test_verdict_is_that_of_real_bytes(seed: int) -> None:
    """Random offsets: proved means that real bytes compute the Program, on several draws."""
    rng = np.random.default_rng(seed)
    rows, ins, outs = (int(x) for x in rng.integers(2, 6, 3))
    program = pointwise(rows, ins, outs)
    plan = in_one_pool(program, rows, ins, outs, int(rng.integers(0, (rows - 1) * 4 + 1)))
    verdict = storage(plan, program)
    same = True
    for _ in range(3):
        values = {
            "A": rng.integers(-90, 91, (rows, ins)).astype(np.int8),
            "w": rng.integers(-90, 91, (outs, ins)).astype(np.int8),
        }
        want = evaluate_program(program, values).outputs["E"]
        run = evaluate_plan(plan, program, values, storage=True)
        (made,) = run.made.values()
        have = np.concatenate([array for local, array in made.items() if local.base == "E"])
        same = same and np.array_equal(have, want)
    assert same if verdict.status == "proved" else verdict.status == "refuted"


def small(**changes: Local) -> tuple[Plan, Program]:
    """relu twice in a pool of 48 bytes: x at 0, y at 16, z at 32, f32[4] each."""
    program = Program(
        {},
        {"x": Value((4,), "f32")},
        {},
        {"run": Entry((name("x"),), (op("relu", "x", out="y"), op("exp", "y", out="z")), (name("z"),))},
    )
    at = {"x": 0, "y": 16, "z": 32}
    locals_ = {base: Local((), Place(name(base)), "f32", "ram", offset) for base, offset in at.items()}
    track = Track((), (), None, {}, {"run": program.entries["run"].body})
    return Plan(digest(program), None, {}, {"ram": 48}, {**locals_, **changes}, {}, {"t": track}), program


def test_in_place_is_safe_because_a_step_reads_before_it_writes() -> None:
    plan, program = small()
    assert storage(plan, program).status == "proved"
    in_place = {base: replace(plan.locals[base], offset=0) for base in "xyz"}
    assert storage(replace(plan, locals=in_place), program).status == "proved"


CLASHES = {
    "leaves the pool": ("z", 36, "bytes 36..52 leave pool ram of 48"),
    "below the pool": ("x", -4, "bytes -4..12 leave pool ram of 48"),
    "not aligned": ("y", 18, "offset 18 of pool ram is no multiple of 4"),
}


@pytest.mark.parametrize("what", CLASHES)
def test_clash_is_named(what: str) -> None:
    local, offset, words = CLASHES[what]
    plan, program = small()
    moved = replace(plan.locals[local], offset=offset)
    example = storage(replace(plan, locals={**plan.locals, local: moved}), program).counterexample
    assert example is not None and words in example.claim


def test_an_output_overwritten_before_the_end_is_refuted() -> None:
    program = Program(
        {},
        {"x": Value((4,), "f32")},
        {},
        {
            "run": Entry(
                (name("x"),), (op("relu", "x", out="y"), op("exp", "x", out="z")), (name("y"), name("z"))
            )
        },
    )
    locals_ = {
        base: Local((), Place(name(base)), "f32", "ram", offset)
        for base, offset in (("x", 0), ("y", 16), ("z", 16))
    }
    plan = Plan(
        digest(program),
        None,
        {},
        {"ram": 32},
        locals_,
        {},
        {"t": Track((), (), None, {}, {"run": program.entries["run"].body})},
    )
    example = storage(plan, program).counterexample
    assert example is not None and example.local == "y"
    assert "now belongs to z, and y must stand at the end" in example.claim


def test_a_weight_must_stand_for_the_next_run() -> None:
    program = Program(
        {},
        {"x": Value((4,), "f32"), "w": Value((4,), "f32", "weight")},
        {},
        {"run": Entry((name("x"),), (op("mul", "x", "w", out="y"),), (name("y"),))},
    )
    locals_ = {
        base: Local((), Place(name(base)), "f32", "ram", offset)
        for base, offset in (("x", 0), ("w", 16), ("y", 16))
    }
    plan = Plan(
        digest(program),
        None,
        {},
        {"ram": 32},
        locals_,
        {},
        {"t": Track((), (), None, {}, {"run": program.entries["run"].body})},
    )
    example = storage(plan, program).counterexample
    assert example is not None and "the weight w must stand" in example.claim


def test_a_state_in_place_is_safe_and_stands() -> None:
    program = Program(
        {},
        {"x": Value((4,), "f32"), "S": Value((4,), "f32", "state")},
        {},
        {
            "run": Entry(
                (name("x"),),
                (op("add", "S", "x", out="S2"), op("exp", "S2", out="y")),
                (name("y"),),
                (State(name("S"), name("S2")),),
            )
        },
    )
    at = {"S": 0, "S2": 0, "x": 16, "y": 16}
    locals_ = {base: Local((), Place(name(base)), "f32", "ram", offset) for base, offset in at.items()}
    plan = Plan(
        digest(program),
        None,
        {},
        {"ram": 32},
        locals_,
        {},
        {"t": Track((), (), None, {}, {"run": program.entries["run"].body})},
    )
    assert storage(plan, program).status == "proved"
    lost = {**locals_, "y": replace(locals_["y"], offset=0)}
    example = storage(replace(plan, locals=lost), program).counterexample
    assert example is not None and example.local == "S2"


def test_pools_too_large_for_tags_are_unknown() -> None:
    plan, program = small()
    verdict = storage(replace(plan, pools={"ram": 1 << 30}), program)
    assert verdict.status == "unknown" and "more than tags are kept for" in verdict.reason
