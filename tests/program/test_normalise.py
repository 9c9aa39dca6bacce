"""Passes keep the meaning and their promises; harness and checkers are shown to see faults."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, find, given, settings
from hypothesis.errors import NoSuchExample

from tensure.errors import RecordError
from tensure.program import (
    Block,
    Call,
    Entry,
    Model,
    Name,
    Op,
    Program,
    Ref,
    StoredTensor,
    Value,
    _passes,
    _permutes,
    _refold,
    digest,
    evaluate_program,
    op,
)
from tensure.program._lines import rewrite_entries
from tensure.program._normalise import PASSES, Pass, PassManager, normalise
from tensure.program._properties import PROPERTIES

from .random_programs import Drawn, programs

EXAMPLES = 500 if os.environ.get("TENSURE_TEST_PROFILE") == "nightly" else 40


def difference(before: Drawn, program: Program, weights: dict[str, Any]) -> str | None:
    """Where two Programs part, by numpy semantics; None if nowhere."""
    want = evaluate_program(before.program, before.given).outputs
    have = evaluate_program(program, {**weights, **before.inputs}).outputs
    if list(want) != list(have):
        return f"outputs {list(have)}, were {list(want)}"
    for key, array in want.items():
        if have[key].dtype != array.dtype or have[key].shape != array.shape:
            return f"{key} is {have[key].dtype}{have[key].shape}"
        if not np.allclose(have[key], array, rtol=1e-9, atol=1e-9, equal_nan=True):
            return f"{key} is {have[key]}, was {array}"
    return None


def after(found: Drawn, steps: tuple[Pass, ...]) -> PassManager:
    manager = PassManager(found.program, dict(found.weights))
    manager.establish("well_formed", "flat")
    for step in steps:
        manager.apply(step)
    return manager


@settings(max_examples=EXAMPLES)
@given(programs())
def test_every_pass_keeps_the_meaning(found: Drawn) -> None:
    manager = after(found, ())
    for step in PASSES:
        if manager.apply(step):
            assert difference(found, manager.program, manager.weights) is None, step.name


def model_of(found: Drawn) -> Model:
    stored = {key: StoredTensor.from_array(array, "f64") for key, array in found.weights.items()}
    return Model("m", found.program, stored)


@settings(max_examples=EXAMPLES)
@given(programs())
def test_normal_form_means_the_same_and_is_stable(found: Drawn) -> None:
    model = normalise(model_of(found))
    weights = {key: tensor.decode() for key, tensor in model.weights.items()}
    assert difference(found, model.program, weights) is None
    model.check_weights()
    assert len(model.program.entry().body) <= len(found.program.entry().body)
    again = normalise(model)
    assert digest(again.program) == digest(model.program)
    assert all(again.weights[key] is model.weights[key] for key in model.weights)


SEEK = settings(max_examples=2000, database=None, phases=(Phase.generate,))
"""Any counterexample will do: no shrinking."""


def swapped(name: str, run: Any) -> tuple[Pass, ...]:
    return tuple(replace(step, run=run) if step.name == name else step for step in PASSES)


def _forget(kind: str) -> Callable[[Program, Any], tuple[Program, Any]]:
    """drop_no_ops that takes one more kind of op for nothing."""

    def run(program: Program, weights: Any) -> tuple[Program, Any]:
        def rewrite(line: Any) -> None:
            line.remove({item.outs[0]: item.args[0].name for item in line.ops if item.op == kind})

        return rewrite_entries(_passes.drop_no_ops(program, weights)[0], rewrite), weights

    return run


def _fold_without_eps(program: Program, weights: Any) -> tuple[Program, Any]:
    def bare(item: Op) -> Op:
        return replace(item, attrs=(("eps", 0),)) if item.op == "batch_norm" else item

    entry = program.entry()
    changed = replace(entry, body=tuple(bare(item) for item in entry.body if isinstance(item, Op)))
    return _passes.fold_batch_norm(replace(program, entries={"run": changed}), weights)


def _pad_one_side(program: Program, weights: Any) -> tuple[Program, Any]:
    folded, weights = _passes.fold_padding(program, weights)

    def even(item: Op) -> Op:
        padding = item.attr("padding")
        if isinstance(padding, tuple) and len(padding) == 4:
            return replace(
                item, attrs=tuple((k, (v[1], v[0], *v[2:]) if k == "padding" else v) for k, v in item.attrs)
            )  # type: ignore[index,misc]
        return item

    entry = folded.entry()
    return replace(
        folded, entries={"run": replace(entry, body=tuple(even(i) for i in entry.body if isinstance(i, Op)))}
    ), weights


def _sink_with(kind: str, rule: Any) -> Callable[[Program, Any], tuple[Program, Any]]:
    """sink_permutes with one rule replaced."""

    def run(program: Program, weights: Any) -> tuple[Program, Any]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(_permutes._RULES, kind, rule)
            return _permutes.sink_permutes(program, weights)

    return run


def _refold_without_eps(program: Program, weights: Any) -> tuple[Program, Any]:
    found, weights = _refold.refold_batch_norm(program, weights)
    entry = found.entry()
    before = set(program.entry().body)
    body = tuple(
        replace(item, attrs=(("eps", 0.0),)) if item not in before and item.op == "batch_norm" else item  # type: ignore[union-attr,call-arg]
        for item in entry.body
    )
    return replace(found, entries={"run": replace(entry, body=body)}), weights


FAULTY: dict[str, tuple[str, Any]] = {
    "a permutation past a pad as it stands": (
        "sink_permutes",
        _sink_with("constant_pad_nd", lambda item, dims: (item, dims)),
    ),
    "a permutation past a cat as it stands": (
        "sink_permutes",
        _sink_with("cat", lambda item, dims: (item, dims)),
    ),
    "a batch norm refolded without eps": ("refold_batch_norm", _refold_without_eps),
    "a relu taken for nothing": ("drop_no_ops", _forget("relu")),
    "a permute taken for nothing": ("drop_no_ops", _forget("permute")),
    "batch norm folded without eps": ("fold_batch_norm", _fold_without_eps),
    "padding folded on the wrong side": ("fold_padding", _pad_one_side),
}


@pytest.mark.parametrize("fault", FAULTY)
def test_a_faulty_pass_is_seen(fault: str) -> None:
    steps = swapped(*FAULTY[fault])

    def red(found: Drawn) -> bool:
        try:
            manager = after(found, steps)
        except (AssertionError, RecordError):  # a faulty pass may also leave what is no program
            return True
        return difference(found, manager.program, manager.weights) is not None

    try:
        find(programs(), red, settings=SEEK)
    except NoSuchExample:
        pytest.fail(f"{fault}: never seen")


# --- contracts --------------------------------------------------------------------------------------


def program_of(*ops: Op, outputs: tuple[str, ...] = (), shape: tuple[int, ...] = (2, 2, 4, 4)) -> Program:
    values = {
        "x": Value(shape),
        "w": Value((2, 2, 1, 1), role="weight"),
        "m": Value((3, 2), role="weight"),
        "v": Value((2,), role="weight"),
        "u": Value((2,), role="weight"),
        "k": Value((1, 2, 1, 1), role="weight"),
    }
    read = {ref.name.base for item in ops for ref in item.reads()} | {"x"}
    ends = tuple(map(Name, outputs)) or (ops[-1].outs[0],)
    return Program(
        values={key: value for key, value in values.items() if key in read},
        entries={"run": Entry((Name("x"),), ops, ends)},
    )


CONV = op("convolution", "x", "w", None, out="c")
BROKEN: dict[str, Program] = {
    "well_formed": program_of(op("relu", "nobody", out="y")),
    "flat": Program(
        values={"x": Value((2,))},
        blocks={"b": Block((), (op("relu", "x", out="y"),))},
        entries={"run": Entry((Name("x"),), (Call("b"),), (Name("y"),))},
    ),
    "no_copies": program_of(op("copy", "x", out="y"), op("relu", "y", out="z")),
    "no_noop_casts": program_of(op("_to_copy", "x", out="y", dtype="f32"), op("relu", "y", out="z")),
    "no_noop_views": program_of(op("view", "x", out="y", size=[2, 2, 4, 4]), op("relu", "y", out="z")),
    "canonical": program_of(op("transpose", "x", out="y", dim0=0, dim1=1)),
    "permutes_cancelled": program_of(
        op("permute", "x", out="y", dims=[0, 2, 1, 3]), op("permute", "y", out="z", dims=[3, 2, 1, 0])
    ),
    "linear_fused": program_of(
        op("permute", "m", out="y", dims=[1, 0]), op("mm", "x", "y", out="z"), shape=(4, 2)
    ),
    "padding_folded": program_of(
        op("constant_pad_nd", "x", out="p", pad=[0, 1, 0, 1]), op("convolution", "p", "w", None, out="c")
    ),
    "batch_norm_whole": program_of(
        op("view", "v", out="a", size=[1, 1, 1, 2]),
        op("sub", "x", "a", out="s"),
        op("add", "a", 0.001, out="t"),
        op("rsqrt", "t", out="r"),
        op("mul", "r", "a", out="f"),
        op("mul", "s", "f", out="p"),
        op("add", "p", "a", out="y"),
        op("relu", "v", out="q"),
        outputs=("y", "q"),
        shape=(1, 4, 4, 2),
    ),
    "weights_in_place": program_of(op("permute", "m", out="p", dims=[1, 0]), op("relu", "p", out="y")),
    "bias_fused": program_of(CONV, op("add", "c", "k", out="y")),
    "batch_norm_folded": program_of(CONV, op("batch_norm", "c", None, None, "v", "u", out="y")),
    "mean_flat": program_of(
        op("adaptive_avg_pool2d", "x", out="p", output_size=[1, 1]), op("flatten", "p", out="y", start_dim=1)
    ),
    "no_common_subexpressions": program_of(
        op("relu", "x", out="a"), op("relu", "x", out="b"), op("add", "a", "b", out="y")
    ),
    "no_dead_ops": program_of(op("relu", "x", out="a"), op("neg", "x", out="y")),
}


@pytest.mark.parametrize("name", PROPERTIES)
def test_checker_sees_its_fault_and_no_other(name: str) -> None:
    assert PROPERTIES[name](BROKEN[name]) is not None
    clean = program_of(CONV, op("relu", "c", out="r"), op("mean", "r", out="y", dim=[2, 3]))
    assert PROPERTIES[name](clean) is None


@pytest.mark.parametrize("step", PASSES, ids=lambda step: step.name)
def test_a_pass_that_does_nothing_breaks_its_promise(step: Pass) -> None:
    for promise in step.ensures:
        lazy = replace(step, run=lambda program, weights: (program, weights))
        manager = PassManager(BROKEN[promise], {}, set(step.requires))
        with pytest.raises(AssertionError, match=f"{step.name} promised"):
            manager.apply(lazy)


@pytest.mark.parametrize("step", PASSES, ids=lambda step: step.name)
def test_a_pass_without_its_requirements_is_refused(step: Pass) -> None:
    for missing in step.requires:
        manager = PassManager(BROKEN["canonical"], {}, set(step.requires) - {missing})
        with pytest.raises(RecordError, match=missing):
            manager.apply(step)


def test_a_property_that_a_pass_loses_is_no_longer_held() -> None:
    manager = PassManager(program_of(op("relu", "x", out="y")), {})
    manager.establish("well_formed", "flat", "no_copies")
    spoiled = program_of(op("copy", "x", out="c"), op("relu", "c", out="y"))
    manager.apply(Pass("spoil", frozenset(), frozenset(), lambda program, weights: (spoiled, weights)))
    assert manager.held == {"well_formed", "flat"}


def test_a_pass_that_makes_nonsense_is_stopped() -> None:
    manager = PassManager(program_of(op("relu", "x", out="y")), {}, {"well_formed", "flat"})
    with pytest.raises(AssertionError, match="well_formed"):
        manager.apply(
            Pass("ruin", frozenset(), frozenset(), lambda program, weights: (BROKEN["well_formed"], weights))
        )


def test_programs_with_blocks_are_refused() -> None:
    with pytest.raises(RecordError, match="loop or a call"):
        normalise(Model("m", BROKEN["flat"], {}))


def test_an_output_keeps_its_name() -> None:
    found = program_of(op("relu", "x", out="a"), op("copy", "a", out="y"), outputs=("y",))
    body = normalise(Model("m", found, {})).program.entry().body
    assert body == (op("relu", "x", out="y"),)
    both = program_of(op("relu", "x", out="a"), op("copy", "a", out="y"), outputs=("a", "y"))
    assert len(normalise(Model("m", both, {})).program.entry().body) == 2
    straight = program_of(op("copy", "x", out="y"))
    assert len(normalise(Model("m", straight, {})).program.entry().body) == 1


def test_folding_keeps_notes_and_the_norms_name() -> None:
    noted = replace(CONV, note=(("module", "stem"),))
    found = program_of(noted, op("batch_norm", "c", None, None, "v", "u", out="y"))
    weights = {
        key: StoredTensor.from_array(np.ones(value.shape, np.float32), "f32")  # type: ignore[arg-type]
        for key, value in found.values.items()
        if value.role == "weight"
    }
    model = normalise(Model("m", found, weights))
    (item,) = model.program.entry().body
    assert isinstance(item, Op) and item.note == noted.note and item.outs == (Name("y"),)
    assert item.args[1:] == (Ref(Name("w.folded")), Ref(Name("w.folded_bias")))
    assert sorted(model.weights) == ["w.folded", "w.folded_bias"]
