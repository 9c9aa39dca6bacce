"""A planted fault is named: its op, its line, its weight, element and bit; take it away and nothing is said.

In eager modules and in exported Programs alike: weights damaged, ops that do the wrong thing, results flipped
while they run. Each case has its control: the same comparison without the fault is bit-identical.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import pytest
import torch
from tests.acceptance.inspect_models import (
    DAMAGES,
    WAYS,
    damage_rows,
    damage_sign,
    damaged,
    damaged_model,
    exported,
    exported_kind,
    flip_bit,
    inputs_of,
    line_of,
    made,
    sides,
)

import tensure

by_way = pytest.mark.parametrize("way", WAYS)


@cache
def planted(way: str, kind: str, fault: str = "", weight: str = "", damage: Any = None) -> Any:
    """The right model against the one with the fault."""
    return tensure.diff(*sides(way, kind, fault, weight, damage), inputs_of(kind))


def first_of(found: Any) -> Any:
    """The first fault."""
    assert found.kind == "divergent", found.counts()
    assert found.first is found.findings[0]
    return found.first


def blamed(found: Any) -> list[str]:
    return [finding.text for finding in found.findings]


# --- the control ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["cnn", "decoder", "gru"])
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
    ("gru", "w.weight", "bit"),
    ("gru", "rnn.weight_ih_l0", "bf16"),
    ("gru", "rnn.bias_hh_l0", "two rows"),
]
WEIGHTS = [*(("cnn", *pair) for pair in CNN_WEIGHTS), *OTHER_WEIGHTS]


@pytest.mark.parametrize(
    ("way", "kind", "weight", "damage"),
    [(way, *case) for way in WAYS for case in (WEIGHTS[::3] if way == "mixed" else WEIGHTS)],
)
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


@pytest.mark.parametrize(
    ("weight", "damage"),
    [("w.weight", "bit"), ("rnn.weight_ih_l0", "bf16"), ("rnn.bias_hh_l0", "two rows")],
)
def test_a_damaged_weight_of_an_lstm_is_named(weight: str, damage: str) -> None:
    """Eager, where the layer is one op."""
    found = planted("eager", "lstm", weight=weight, damage=DAMAGES[damage])
    assert (first_of(found).kind, found.first.a) == ("leaf", weight)
    assert blamed(found)[1:] == []


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
    ],
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


@pytest.mark.parametrize(
    ("kind", "fault", "ops", "mark"),
    OPS,
    ids=lambda value: str(sorted(value) if isinstance(value, set) else value)[:12],
)
@by_way
def test_a_wrong_op_is_named_with_its_line(way: str, kind: str, fault: str, ops: set[str], mark: str) -> None:
    found = first_of(planted(way, kind, fault))
    assert found.kind == "step"
    assert found.step_b.op in ops, found.text
    if way == "eager" or kind != "decoder":  # lines of a helper are a test of their own
        assert found.step_b.source.endswith(line_of(mark)), found.text


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
    found = first_of(planted(way, kind, "eps"))
    assert found.kind == "step"
    assert found.step_b.op in ops and found.step_b.module == norm
    if way != "mixed":
        assert "eps" in [name for name, _, _ in found.arguments]


def test_another_eps_under_a_folded_norm_is_found() -> None:
    found = first_of(tensure.diff(exported_kind("cnn"), exported_kind("cnn", "eps"), inputs_of("cnn")))
    assert found.a.startswith("conv2.weight") and found.step_b.module == "conv2"


@pytest.mark.parametrize(("part", "ops"), [("head", {"mm", "linear", "addmm"}), ("depth", {"convolution"})])
@by_way
def test_a_bias_that_is_missing_in_a_module_is_named(way: str, part: str, ops: set[str]) -> None:
    found = first_of(planted(way, "cnn", f"no {part} bias"))
    assert found.step_b.module == part
    assert found.step_b.op in ops


@pytest.mark.parametrize(
    ("kind", "fault"), [("cnn", "mean"), ("cnn", "crop"), ("decoder", "axis"), ("gru", "sign")]
)
@by_way
def test_for_one_wrong_op_nothing_else_is_blamed(way: str, kind: str, fault: str) -> None:
    assert blamed(planted(way, kind, fault))[1:] == []


# --- caches, states and aliases ------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["not written", "stale"])
def test_a_stale_cache_is_found_where_it_is_read(fault: str) -> None:
    found = first_of(planted("eager", "decoder", fault))
    lines = tuple(line_of(mark) for mark in ("reads the cache", "slices of the cache", "fault: stale"))
    assert found.step_b.source.endswith(lines), found.text


@pytest.mark.parametrize("fault", ["not written", "stale"])
@pytest.mark.parametrize("way", ["exported", "mixed"])
def test_a_stale_cache_of_a_program_is_found(way: str, fault: str) -> None:
    """The values read are the first that differ, not what attention makes of them."""
    found = first_of(planted(way, "decoder", fault))
    values = {"slice", "slice_scatter", "select", "view", "permute", "matmul", "bmm"}
    blame = [step for step in (found.step_a, found.step_b) if step is not None]
    assert any(step.op in values or step.module == "v" for step in blame), found.text
    assert found.element.b == 0  # a row of the cache as it was before


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
