"""Small plans that are wrong for some values, each built to slip through one rule; none may be proved."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tensure.bundle import Local, Place, Plan, Track, collect, evaluate_plan, plan_digest, validate_plan
from tensure.program import (
    Entry,
    Op,
    Program,
    TensorType,
    Value,
    digest,
    evaluate_program,
    infer_op,
    name,
    op,
)
from tensure.proving import _check_ops, check_certificate, prove_plan
from tensure.proving._certificate import Covered, write_certificate

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
    args = tuple(
        op("copy", new, out="q").args[0] if str(getattr(a, "name", "")) == old else a for a in item.args
    )
    return replace(item, args=args)


# --- casts -------------------------------------------------------------------------------------------------


def test_the_integer_part_of_a_sum_is_not_the_sum_of_integer_parts() -> None:
    """A forged certificate: no prover writes it."""
    inputs: Types = {"a": ((4,), "f64"), "b": ((4,), "f64")}
    right = [
        op("_to_copy", "a", out="ia", dtype="i64"),
        op("_to_copy", "b", out="ib", dtype="i64"),
        op("_to_copy", "ia", out="fa", dtype="f64"),
        op("_to_copy", "ib", out="fb", dtype="f64"),
        op("add", "fa", "fb", out="p"),
    ]
    wrong = [
        op("add", "a", "b", out="s"),
        op("_to_copy", "s", out="n", dtype="i64"),
        op("_to_copy", "n", out="p", dtype="f64"),
    ]
    program, plan = pair(inputs, right, ["p"], wrong)
    assert not agrees(program, plan)
    assert status(program, plan) != "proved"

    def row(local: str, *labels: str) -> Any:
        return ["t[0]", local, [["1/1", label, [[[0, 4]]], None] for label in labels]]

    rows = [row("a", "a"), row("b", "b"), row("s", "a", "b"), row("n", "ia", "ib"), row("p", "fa", "fb")]
    assert not _accepted(program, plan, rows)
    program, plan = pair(inputs, right, ["p"], right)
    rows = [*(row(label, label) for label in ("a", "b", "ia", "ib", "fa", "fb")), row("p", "fa", "fb")]
    assert _accepted(program, plan, rows)


def _accepted(program: Program, plan: Plan, rows: list[Any]) -> bool:
    covered = [Covered("run", {}, False, [], rows)]
    made = write_certificate(digest(program), plan_digest(plan), covered)
    return check_certificate(made, plan, program).accepted


# --- losses ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ignored", [-100, 0])
def test_no_class_is_ignored_but_those_the_program_ignores(ignored: int) -> None:
    """Where a mean counts by a class that the Program does not ignore, targets of it are not assumed away."""
    inputs: Types = {"x": ((4, 3), "f64"), "t": ((4,), "i64")}
    given = {"reduction": 1, "ignore_index": -100}
    right = [op("nll_loss_forward", "x", "t", None, out=("y", "n"), **given)]
    own = [
        op("nll_loss_forward", "x", "t", None, out=("m", "k"), reduction=1, ignore_index=ignored),
        op("nll_loss_forward", "x", "t", None, out=("s", "l"), reduction=2, ignore_index=-100),
        op("div", "s", "k", out="y"),
    ]
    program, plan = pair(inputs, right, ["y"], own)
    assert agrees(program, plan) == (ignored == -100)
    assert (status(program, plan) == "proved") == (ignored == -100)


def test_a_sum_of_a_number_is_taken() -> None:
    inputs: Types = {"a": ((), "f64")}
    made = [op("sum", "a", out="y", dim=[0])]
    assert status(*pair(inputs, made, ["y"], made)) in ("proved", "unknown")


# --- shapes: forged certificates that take a result for smaller than it is ----------------------------------


def test_zeros_of_another_shape_are_others() -> None:
    made = [op("full", out="y", size=[4], fill_value=0.0, dtype="f64")]
    program, plan = pair({}, made, ["y"], made)
    other = _instead(plan, op("full", out="y", size=[2], fill_value=0.0, dtype="f64"))
    assert _accepted(program, plan, [_whole("y", 4)])
    assert not _accepted(program, other, [_whole("y", 4)])


TRANSPOSED = {"stride": [2], "padding": [0], "dilation": [1], "output_padding": [0], "transposed": True}
POOL = {"kernel_size": [2, 2], "stride": [2, 2], "padding": [0, 0], "dilation": [1, 1], "ceil_mode": True}
SMALLER: dict[str, tuple[Types, Op, tuple[int, ...], tuple[int, ...]]] = {
    "transposed": (
        {"x": ((2, 3, 4), "f64"), "w": ((3, 3, 3), "f64")},
        op("convolution", "x", "w", None, out="y", groups=1, **TRANSPOSED),
        (2, 3, 9),
        (2, 3, 1),
    ),
    "over the end": (
        {"x": ((1, 1, 4, 5), "f64")},
        op("max_pool2d", "x", out="y", **POOL),
        (1, 1, 2, 3),
        (1, 1, 2, 2),
    ),
}


@pytest.mark.parametrize("kind", SMALLER)
def test_a_part_of_windows_is_not_taken_for_all(kind: str) -> None:
    inputs, step, real, less = SMALLER[kind]
    last = len(real) - 1
    part = op("slice", "h", out="y", dim=last, start=0, end=less[last])
    program, plan = pair(inputs, [step], ["y"], [step])
    other = _instead(plan, replace(step, outs=(name("h"),)), part)
    given = [_whole(base, *shape) for base, (shape, _) in inputs.items()]
    assert not _accepted(program, other, [*given, _whole("h", *less, of="y"), _whole("y", *less)])
    assert _accepted(program, plan, [*given, _whole("y", *real)])


def _instead(plan: Plan, *steps: Op) -> Plan:
    """Other steps, which no validation has seen."""
    return replace(plan, tracks={"t": replace(plan.tracks["t"], bodies={"run": steps})})


def _whole(local: str, *shape: int, of: str = "") -> Any:
    return ["t[0]", local, [["1/1", of or local, [[[0, n]] for n in shape], None]]]


@pytest.mark.parametrize(("size", "stride"), [*itertools.product((5, 6, 7), (1, 2, 3))])
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("dilation", [1, 2])
def test_the_checker_counts_windows_like_the_ops(size: int, stride: int, dilation: int, padding: int) -> None:
    walk = {"stride": (stride,), "dilation": (dilation,), "padding": (padding,)}
    for extra, groups in itertools.product(range(min(2, max(stride, dilation))), (1, 2)):
        given = {**walk, "output_padding": (extra,), "transposed": True, "groups": groups}
        _same_shapes("convolution", given, (2, 4, size), (4, 3, 3), None)
    for groups in (1, 2):
        _same_shapes("convolution", {**walk, "groups": groups}, (2, 4, size), (6, 4 // groups, 3), None)
    for ceil in (False, True):
        given = {**{key: at * 2 for key, at in walk.items()}, "kernel_size": (2, 2), "ceil_mode": ceil}
        _same_shapes("max_pool2d", given, (2, 3, size, size + 1))
        _same_shapes("max_pool2d", given, (3, size + 1, size))


def _same_shapes(kind: str, given: dict[str, Any], *shapes: tuple[int, ...] | None) -> None:
    types = [None if shape is None else TensorType(shape, "f64") for shape in shapes]
    attrs = dict(op(kind, "x", out="y", **given).attrs)
    want = [found.shape for found in infer_op(kind, types, attrs)]
    assert _check_ops.shapes_of(kind, _check_ops.clean(kind, attrs), shapes) == want
