"""A planted fault is named: its op, its line, its weight, element and bit; take it away and nothing is said.

In eager modules and in exported Programs alike: weights damaged, ops that do the wrong thing, results flipped
while they run. Each case has its control: the same comparison without the fault is bit-identical.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pytest
import torch
from tests.acceptance.inspect_models import (
    DAMAGES,
    KINDS,
    WAYS,
    damage_rows,
    damage_sign,
    damaged,
    damaged_model,
    exported,
    exported_kind,
    flip_bit,
    flipped,
    inputs_of,
    line_of,
    made,
    sides,
)
from torch import nn

import tensure

by_way = pytest.mark.parametrize("way", WAYS)


@cache
def planted(way: str, kind: str, fault: str = "", weight: str = "", damage: Any = None) -> Any:
    """The right model against the one with the fault."""
    return tensure.diff(*sides(way, kind, fault, weight, damage), inputs_of(kind))


def changed(way: str, kind: str, change: Callable[[Any], None]) -> Any:
    """The same for a module that is changed before it runs or is exported."""
    one, _ = sides(way, kind)
    other = made(kind)
    change(other)
    return tensure.diff(
        one, other if way == "eager" else exported(other, kind, normalise=False), inputs_of(kind)
    )


def first_of(found: Any) -> Any:
    """The first fault."""
    assert found.kind == "divergent", found.counts()
    assert found.first is found.findings[0]
    return found.first


def blamed(found: Any) -> list[str]:
    return [finding.text for finding in found.findings]


# --- the control ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@by_way
def test_without_a_fault_nothing_is_said(way: str, kind: str) -> None:
    found = planted(way, kind)
    assert [finding.text for finding in found.findings] == []
    assert found.first is None
    assert found.kind == "identical" or (way == "mixed" and found.kind == "within"), found.counts()


# --- weights -------------------------------------------------------------------------------------------

CNN_WEIGHTS = [
    *[("conv1.weight", d) for d in ("bit", "low bit", "sign", "negated", "rows", "two rows", "reversal")],
    *[("square.weight", d) for d in ("transposed", "bf16", "pair", "zeroed", "reversal")],
    *[("norm2.running_var", d) for d in ("bit", "rows")],
    *[("depth.weight", d) for d in ("two rows", "low bit")],
    ("head.bias", "negated"),
]
OTHER_WEIGHTS = [
    ("decoder", "embed.weight", "negated"),
    ("decoder", "q.weight", "transposed"),
    ("decoder", "k.bias", "zeroed"),
    ("decoder", "o.weight", "reversal"),
    ("decoder", "norm2.weight", "bf16"),
    ("decoder", "down.weight", "low bit"),
    ("decoder", "logits.weight", "two rows"),
    ("gru", "u.weight", "transposed"),
    ("gru", "rnn.weight_hh_l0", "rows"),
    ("gru", "rnn.bias_ih_l0", "sign"),
    ("lstm", "w.weight", "bit"),
    ("lstm", "rnn.weight_ih_l0", "bf16"),
    ("lstm", "rnn.bias_hh_l0", "two rows"),
]
WEIGHTS = [*(("cnn", *pair) for pair in CNN_WEIGHTS), *OTHER_WEIGHTS]


@pytest.mark.parametrize(("kind", "weight", "damage"), WEIGHTS, ids="-".join)
@by_way
def test_a_damaged_weight_is_named(way: str, kind: str, weight: str, damage: str) -> None:
    found = first_of(planted(way, kind, weight=weight, damage=DAMAGES[damage]))
    assert found.kind == "leaf"
    assert (found.a, found.b) == (weight, weight)
    assert weight in found.text


@pytest.mark.parametrize(
    ("kind", "weight", "reader"),
    [("cnn", "conv2.weight", "conv2"), ("decoder", "q.weight", "q"), ("gru", "head.weight", "head")],
)
@by_way
def test_a_flipped_bit_is_named_with_element_and_reader(
    way: str, kind: str, weight: str, reader: str
) -> None:
    model = made(kind)
    for flat, bit, role in ((7, 31, "sign"), (12, 28, "exponent"), (0, 3, "mantissa")):
        damage = partial(flip_bit, flat=flat, bit=bit)
        values = dict(damaged(model, weight, damage).named_parameters())[weight]
        found = first_of(planted(way, kind, weight=weight, damage=damage))
        assert (found.kind, found.a, found.b) == ("leaf", weight, weight)
        element = found.element
        where = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), values.shape))
        assert element.index == where
        assert (element.bit, element.bit_role, element.count) == (bit, role, 1)
        assert element.a == dict(model.named_parameters())[weight].flatten()[flat].item()
        assert element.b == values.flatten()[flat].item()
        assert found.step_b.module == reader


def test_several_damaged_weights_are_all_named() -> None:
    model = made("cnn")
    other = damaged(damaged(model, "conv2.weight", damage_sign), "head.weight", damage_rows)
    found = tensure.diff(model, other, inputs_of("cnn"))
    assert [finding.a for finding in found.findings] == ["conv2.weight", "head.weight"]
    assert found.first.a == "conv2.weight"


def test_only_the_first_fault_when_asked() -> None:
    model = made("cnn")
    other = damaged(damaged(model, "conv2.weight", damage_sign), "head.weight", damage_rows)
    found = tensure.diff(model, other, inputs_of("cnn"), first_only=True)
    assert [finding.a for finding in found.findings] == ["conv2.weight"]
    assert found.kind == "divergent"


def test_a_damaged_weight_whose_effect_relu_hides_is_named() -> None:
    """Where every sum is below zero, outputs stay equal to the bit; the fault is there all the same."""
    model = made("cnn")
    model.square.bias.data.fill_(-1e3)
    other = damaged(model, "square.weight", damage_rows)
    x = inputs_of("cnn")["x"]
    assert torch.equal(model(x), other(x))
    for wrap in (lambda module: module, partial(exported, kind="cnn", normalise=False)):
        found = first_of(tensure.diff(wrap(model), wrap(other), x))
        assert (found.kind, found.a) == ("leaf", "square.weight")


@pytest.mark.parametrize(("weight", "damage"), [("square.weight", "rows"), ("depth.weight", "sign")])
def test_a_damaged_weight_of_a_normalised_program_is_named(weight: str, damage: str) -> None:
    model = exported_kind("cnn")
    found = first_of(tensure.diff(model, damaged_model(model, weight, DAMAGES[damage]), inputs_of("cnn")))
    assert (found.kind, found.a) == ("leaf", weight)


def test_a_damaged_weight_under_a_folded_norm_is_found_where_it_works() -> None:
    """Whole against folded: the folded weight has no counterpart, the convolution's result has."""
    model = made("cnn")
    other = damaged(model, "conv1.weight", DAMAGES["two rows"])
    found = tensure.diff(exported_kind("cnn", normalise=False), exported(other, "cnn"), inputs_of("cnn"))
    first = first_of(found)
    assert (first.step_b.op, first.step_b.module) == ("convolution", "conv1") or "conv1.weight" in first.a


@pytest.mark.parametrize(
    ("kind", "weight", "damage"),
    [
        ("cnn", "conv1.weight", "negated"),
        ("decoder", "embed.weight", "negated"),
        ("decoder", "k.bias", "zeroed"),
        ("gru", "u.weight", "transposed"),
        ("gru", "rnn.weight_hh_l0", "rows"),
        ("lstm", "w.weight", "bit"),
        ("lstm", "rnn.weight_ih_l0", "bf16"),
    ],
    ids="-".join,
)
@by_way
def test_for_one_damaged_weight_nothing_else_is_blamed(way: str, kind: str, weight: str, damage: str) -> None:
    assert blamed(planted(way, kind, weight=weight, damage=DAMAGES[damage]))[1:] == []


# --- ops -----------------------------------------------------------------------------------------------

# model, fault, ops that may be blamed (eager, exported), mark of the line they are on
OPS = [
    ("cnn", "bf16", {"_to_copy", "to", "to_copy", "cast"}, "fault: bf16"),
    ("cnn", "crop", {"slice"}, "fault: crop"),
    ("cnn", "mean", {"mean", "mean_dim"}, "fault: mean"),
    ("cnn", "transposed", {"t", "permute", "transpose", "addmm", "linear"}, "fault: transposed"),
    ("cnn", "no bias", {"mm", "linear", "addmm"}, "fault: no bias"),
    ("decoder", "relu", {"relu"}, "fault: relu"),
    ("decoder", "scale", {"div", "mul"}, "fault: scale"),
    ("decoder", "axis", {"_softmax", "softmax"}, "fault: axis"),
    ("gru", "no bias", {"mm", "linear", "addmm"}, "fault: no bias of u"),
    ("gru", "sign", {"neg"}, "fault: sign"),
]


@pytest.mark.parametrize(("kind", "fault", "ops", "mark"), OPS, ids=lambda value: str(value)[:12])
@by_way
def test_a_wrong_op_is_named_with_its_line(way: str, kind: str, fault: str, ops: set[str], mark: str) -> None:
    found = first_of(planted(way, kind, fault))
    assert found.kind == "step"
    assert found.step_b.op in ops, found.text
    assert found.step_b.source.endswith(line_of(mark)), found.text
    assert found.step_b.outs[0] == found.b


def test_differing_arguments_are_named() -> None:
    found = first_of(planted("eager", "decoder", "axis"))
    (argument,) = [item for item in found.arguments if item[0] == "dim"]
    assert argument[1] == "-1" and argument[2] == "-2"


@pytest.mark.parametrize(
    ("kind", "norm", "ops"),
    [
        ("cnn", "norm2", {"native_batch_norm", "batch_norm", "_native_batch_norm_legit_no_training"}),
        ("decoder", "norm2", {"native_layer_norm", "layer_norm"}),
    ],
)
@by_way
def test_another_eps_is_named(way: str, kind: str, norm: str, ops: set[str]) -> None:
    found = first_of(changed(way, kind, lambda module: setattr(module.get_submodule(norm), "eps", 1e-3)))
    assert found.kind == "step"
    assert found.step_b.op in ops and found.step_b.module == norm
    if way != "mixed":
        assert "eps" in [name for name, _, _ in found.arguments]


def test_another_eps_under_a_folded_norm_is_found() -> None:
    other = made("cnn")
    other.norm2.eps = 1e-3
    found = first_of(tensure.diff(exported_kind("cnn"), exported(other, "cnn"), inputs_of("cnn")))
    assert found.a.startswith("conv2.weight") and found.step_b.module == "conv2"


@pytest.mark.parametrize(("part", "ops"), [("square", {"mm", "linear", "addmm"}), ("depth", {"convolution"})])
@by_way
def test_a_bias_that_is_missing_in_a_module_is_named(way: str, part: str, ops: set[str]) -> None:
    found = first_of(changed(way, "cnn", lambda module: setattr(module.get_submodule(part), "bias", None)))
    assert found.step_b.module == part
    assert found.step_b.op in ops


@pytest.mark.parametrize(
    ("kind", "fault"), [("cnn", "mean"), ("cnn", "crop"), ("decoder", "axis"), ("gru", "sign")]
)
@by_way
def test_for_one_wrong_op_nothing_else_is_blamed(way: str, kind: str, fault: str) -> None:
    assert blamed(planted(way, kind, fault))[1:] == []


# --- caches, states and aliases ------------------------------------------------------------------------


@by_way
@pytest.mark.parametrize("fault", ["not written", "stale"])
def test_a_stale_cache_is_found_where_it_is_read(way: str, fault: str) -> None:
    found = first_of(planted(way, "decoder", fault))
    lines = [line_of("reads the cache")] + ([line_of("fault: stale")] if fault == "stale" else [])
    assert any(found.step_b.source.endswith(line) for line in lines) or "values" in found.b, found.text


@by_way
def test_a_stale_state_is_found_where_it_is_read(way: str) -> None:
    found = first_of(planted(way, "gru", "stale"))
    assert found.step_b.source.endswith(line_of("reads the state")), found.text
    assert found.step_b.op in {"addmm", "linear"}


@pytest.mark.parametrize("way", ["eager"])
def test_an_in_place_write_over_what_is_read_again_is_named(way: str) -> None:
    found = first_of(planted(way, "cnn", "alias"))
    assert found.step_b.op == "add_"
    assert found.step_b.source.endswith(line_of("fault: alias"))


@pytest.mark.parametrize("way", ["exported", "mixed"])
def test_an_in_place_write_that_export_resolved_is_found(way: str) -> None:
    """The program holds no write any more, only the wrong operand of what reads it later."""
    found = first_of(planted(way, "cnn", "alias"))
    assert found.step_b.source.endswith((line_of("reads y again"), line_of("side"))), found.text


def test_a_harmless_in_place_write_is_no_fault() -> None:
    """Nobody reads the overwritten values: relu_ instead of relu."""

    def apart(x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x @ x) + 1

    def over(x: torch.Tensor) -> torch.Tensor:
        return torch.relu_(x @ x).add_(1)

    found = tensure.diff(apart, over, torch.randn(5, 5))
    assert (found.kind, found.first) == ("identical", None)


# --- results flipped while they run --------------------------------------------------------------------


def recorded(model: nn.Module, kind: str) -> Any:
    model, inputs = copy.deepcopy(model), inputs_of(kind)
    with torch.no_grad(), tensure.watch(model, inputs=inputs, keep=True, digest=True) as run:
        run.output("out", model(*inputs.values()))
    return run.recording()


SILENT = {"empty", "zeros", "ones", "clone", "mkldnn_rnn_layer", "_unsafe_view", "stack"}


def flippable(trace: Any) -> list[tuple[int, str, int]]:
    """Steps that compute floats into memory of their own: index, op, how often that op ran before."""
    seen: dict[str, int] = {}
    found = []
    for step in trace.steps:
        facts = trace.tensors[step.outs[0]] if step.outs else None
        if facts and facts.dtype == "f32" and facts.memory == "contiguous" and step.op not in SILENT:
            if facts.alias_of is None and facts.size > 1:
                found.append((step.index, step.op, seen.get(step.op, 0)))
        seen[step.op] = seen.get(step.op, 0) + 1
    return found


@pytest.mark.parametrize("bit", [22, 30, 31])
@pytest.mark.parametrize("kind", ["cnn", "decoder", "gru"])
def test_a_result_flipped_while_it_runs_is_found_at_its_op(kind: str, bit: int) -> None:
    """Every op that computes, one after the other; relu after it or not."""
    model = made(kind)
    one = recorded(model, kind)
    missed = []
    targets = flippable(one.trace)
    assert len(targets) >= 10
    for index, op, nth in targets[:: 1 if kind == "cnn" else 3]:
        with flipped(op, nth, bit):
            two = recorded(model, kind)
        found = tensure.diff(one, two)
        first = found.first
        if first is None or first.step_b is None or first.step_b.index != index:
            missed.append((index, op, blamed(found)))
            continue
        if first.element.bit != bit or first.element.count != 1:
            missed.append((index, op, first.element))
    assert missed == []


def test_a_flip_that_relu_hides_is_found() -> None:
    def code(x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x @ x.T - 100.0).sum()

    x = torch.randn(4, 6)
    with tensure.watch(inputs={"x": x}, keep=True, digest=True) as one:
        clean_sum = code(x)
    with flipped("sub", 0, 22), tensure.watch(inputs={"x": x}, keep=True, digest=True) as two:
        dirty_sum = code(x)
    assert clean_sum == dirty_sum == 0
    first = first_of(tensure.diff(one.recording(), two.recording()))
    assert (first.step_b.op, first.element.bit) == ("sub", 22)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_flipped_result_becoming_nan_is_found(rank: int) -> None:
    x = torch.full((3,) if rank else (), 1.5)

    def code() -> Any:
        with tensure.watch(inputs={"x": x}, keep=True, digest=True) as run:
            (x * 1.0).exp().sum()
        return run.recording()

    one = code()
    with flipped("mul", 0, 30):  # 1.5 with its highest exponent bit is a NaN
        two = code()
    first = first_of(tensure.diff(one, two))
    assert first.step_b.op == "mul" and math.isnan(first.element.b) and first.element.bit == 30


# --- faults that only a view shows ---------------------------------------------------------------------

VIEWS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "narrow": (lambda x: x[:, 1:5], lambda x: x[:, 0:4]),
    "select": (lambda x: x[2], lambda x: x[3]),
    "transpose": (lambda x: x.view(6, 6), lambda x: x.view(6, 6).t()),
    "reshape": (lambda x: x.reshape(4, 9), lambda x: x.t().reshape(4, 9)),
    "permute": (lambda x: x.view(6, 2, 3).permute(1, 2, 0), lambda x: x.view(6, 3, 2).permute(2, 1, 0)),
    "as_strided": (lambda x: x.as_strided((4,), (2,), 1), lambda x: x.as_strided((4,), (2,), 2)),
    "flip": (lambda x: x.flip(1), lambda x: x.flip(0)),
    "step": (lambda x: x[::2, :3], lambda x: x[:3, ::2]),
    "expand": (lambda x: x[:1].expand(6, 6), lambda x: x[:, :1].expand(6, 6)),
    "diagonal": (lambda x: x.diagonal(1), lambda x: x.diagonal(-1)),
    "unbind": (lambda x: x.unbind(0)[1], lambda x: x.unbind(1)[1]),
    "split": (lambda x: x.split(3, 1)[0], lambda x: x.split(3, 1)[1]),
}


@pytest.mark.parametrize("view", VIEWS)
def test_a_fault_that_only_a_view_shows_is_found(view: str) -> None:
    right, wrong = VIEWS[view]
    line = right.__code__.co_firstlineno
    x = torch.randn(6, 6)
    for finish in (lambda y: y * 2.0 + 1, lambda y: torch.tanh(y).sum()):
        found = tensure.diff(lambda x: finish(right(x)), lambda x: finish(wrong(x)), x)  # noqa: B023
        first = first_of(found)
        assert first.step_b.source.endswith(f"test_inspect_faults.py:{line}"), (line, first.text)
        same = tensure.diff(lambda x: finish(right(x)), lambda x: finish(right(x)), x)  # noqa: B023
        assert same.kind == "identical"
