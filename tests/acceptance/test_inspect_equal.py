"""Runs that mean the same: no alarm, whatever order, names, layout, engine or precision they were run with.

Beside each, its control: the same two runs with one fault in them, which is seen.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.acceptance.inspect_models import (
    KINDS,
    damage_bit,
    damage_negated,
    damage_sign,
    damaged,
    damaged_model,
    exported_kind,
    inputs_of,
    made,
)
from torch import nn
from torch.nn import functional

import tensure


def said(found: Any) -> list[str]:
    return [finding.text for finding in found.findings]


def assert_no_alarm(found: Any, *kinds: str) -> None:
    assert said(found) == []
    assert found.first is None
    assert found.kind in kinds, (found.kind, found.counts(), found.notes)
    assert found.counts()["divergent"] == 0
    assert found.verdicts


# --- the same run twice --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_two_equal_runs_with_nans(kind: str) -> None:
    """NaN weights, NaN inputs: the same places, so nothing differs."""
    model = made(kind)
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            weight.data.view(-1)[:: max(weight.numel() // 3, 1)] = torch.nan
            assert weight.isnan().any(), name
    found = tensure.diff(copy.deepcopy(model), copy.deepcopy(model), inputs_of(kind))
    assert_no_alarm(found, "identical")
    assert any((facts.statistics and facts.statistics.nans) for facts in found.a.tensors.values())


def test_two_nans_of_different_bits_are_equal() -> None:
    one = torch.tensor([1.0, float("nan"), 2.0])
    other = one.clone()
    other.view(torch.int32)[1] ^= (1 << 31) | 5  # another sign and payload
    assert other.isnan().tolist() == one.isnan().tolist()
    with tensure.watch(inputs={"x": one}, keep=True, digest=True) as first:
        one + 1
    with tensure.watch(inputs={"x": other}, keep=True, digest=True) as second:
        other + 1
    assert_no_alarm(tensure.diff(first.recording(), second.recording()), "identical")


def test_a_nan_in_another_place_is_no_equal() -> None:
    one = torch.tensor([1.0, float("nan"), 2.0])
    with tensure.watch(inputs={"x": one}, keep=True, digest=True) as first:
        one + 1
    with tensure.watch(inputs={"x": one.flip(0).roll(1)}, keep=True, digest=True) as second:
        one.flip(0).roll(1) + 1
    assert tensure.diff(first.recording(), second.recording()).kind == "divergent"


def test_an_unequal_input_is_named() -> None:
    x = torch.randn(4)
    y = x.clone()
    y[2] = -y[2]
    with tensure.watch(inputs={"x": x}, keep=True, digest=True) as first:
        x + 1
    with tensure.watch(inputs={"x": y}, keep=True, digest=True) as second:
        y + 1
    found = tensure.diff(first.recording(), second.recording())
    assert found.first is not None
    assert (found.first.kind, found.first.a) == ("leaf", "x")
    assert found.first.element is not None and found.first.element.index == (2,)


def test_training_steps_twice() -> None:
    def step(seed: int, scale: float = 1.0) -> Any:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
        optimiser = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        x = torch.randn(5, 6)
        with tensure.watch(model, inputs={"x": x}, keep=True, digest=True) as run:
            for _ in range(2):
                optimiser.zero_grad()
                ((model(x) * scale) ** 2).sum().backward()
                optimiser.step()
        return run.recording()

    assert_no_alarm(tensure.diff(step(0), step(0)), "identical")
    found = tensure.diff(step(0), step(0, 1.5))
    assert found.first is not None and found.first.step_b is not None
    assert (found.first.step_b.op, found.first.step_b.phase) == ("mul", "forward")


# --- another order, other names, other layouts ---------------------------------------------------------


class Branches(nn.Module):
    """Three branches of one shape, run in any order, with an op more if asked."""

    def __init__(self, order: str = "abc", more: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.a, self.b, self.c = (nn.Conv2d(3, 4, 3) for _ in range(3))
        self.order, self.more = order, more

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        done = {}
        for name in self.order:
            y = self.get_submodule(name)(x)
            done[name] = torch.relu(y.clone() if self.more else y)
        return torch.cat([done["a"], done["b"] * 2, done["c"] + done["a"]], 1).sum(1)


@pytest.mark.parametrize("order", ["acb", "cba", "bca"])
@pytest.mark.parametrize("more", [False, True])
def test_branches_in_another_order(order: str, more: bool) -> None:
    x = torch.randn(1, 3, 6, 6)
    found = tensure.diff(Branches(), Branches(order, more), x)
    assert_no_alarm(found, "identical")
    assert found.alignment.only_a == []
    faulty = damaged(Branches(order, more), "b.weight", damage_sign)
    found = tensure.diff(Branches(), faulty, x)
    assert found.first is not None and found.first.a == "b.weight"
    assert len(found.findings) == 1, said(found)


class Renamed(nn.Module):
    """`Branches` under other names."""

    def __init__(self) -> None:
        super().__init__()
        right = Branches()
        self.left, self.middle, self.end = right.a, right.b, right.c

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b, c = (torch.relu(part(x)) for part in (self.left, self.middle, self.end))
        return torch.cat([a, b * 2, c + a], 1).sum(1)


RENAME = {
    f"{old}.{part}": f"{new}.{part}"
    for old, new in (("a", "left"), ("b", "middle"), ("c", "end"))
    for part in ("weight", "bias")
}


@pytest.mark.parametrize("rename", [RENAME, None], ids=["told", "untold"])
def test_renamed_weights(rename: dict[str, str] | None) -> None:
    x = torch.randn(1, 3, 6, 6)
    found = tensure.diff(Branches(), Renamed(), x, rename=rename)
    assert_no_alarm(found, "identical")
    faulty = damaged(Renamed(), "middle.weight", damage_bit)
    found = tensure.diff(Branches(), faulty, x, rename=rename)
    assert found.first is not None
    assert (found.first.a, found.first.b) == ("b.weight", "middle.weight")
    assert len(found.findings) == 1, said(found)


def test_channels_last_gives_no_alarm() -> None:
    model = made("cnn")
    x = inputs_of("cnn")["x"]
    other = copy.deepcopy(model).to(memory_format=torch.channels_last)
    found = tensure.diff(model, lambda x: other(x.contiguous(memory_format=torch.channels_last)), x)
    assert_no_alarm(found, "identical", "within")
    faulty = damaged(model, "conv2.bias", damage_negated).to(memory_format=torch.channels_last)
    found = tensure.diff(model, lambda x: faulty(x.contiguous(memory_format=torch.channels_last)), x)
    assert found.first is not None and "conv2.bias" in found.first.text


# --- other ops that mean the same ----------------------------------------------------------------------

Pair = tuple[Callable[..., Any], Callable[..., Any]]


def slow_softmax(x: torch.Tensor) -> torch.Tensor:
    e = (x - x.amax(-1, keepdim=True)).exp()
    return e / e.sum(-1, keepdim=True)


def slow_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ v


Q = torch.randn(1, 2, 5, 8, generator=torch.Generator().manual_seed(0))
W = torch.randn(8, 8, generator=torch.Generator().manual_seed(1))
SAME: dict[str, Pair] = {
    "softmax": (lambda x: x.softmax(-1) + 1, lambda x: slow_softmax(x) + 1),
    "attention": (
        lambda x: functional.scaled_dot_product_attention(x, x * 2, x + 1).relu(),
        lambda x: slow_attention(x, x * 2, x + 1).relu(),
    ),
    "linear": (lambda x: functional.linear(x, W, W[0]), lambda x: x @ W.T + W[0]),
    "silu": (lambda x: functional.silu(x) * 2, lambda x: x * torch.sigmoid(x) * 2),
    "reordered sum": (lambda x: x.flatten().sum() * 2, lambda x: x.transpose(1, 2).flatten().sum() * 2),
    "matmul by parts": (
        lambda x: x @ W + 1,
        lambda x: x[..., :4] @ W[:4] + x[..., 4:] @ W[4:] + 1,
    ),
    "concat of parts": (
        lambda x: torch.relu(x @ W),
        lambda x: torch.relu(torch.cat([x @ W[:, :3], x @ W[:, 3:]], -1)),
    ),
    "layer norm": (
        lambda x: functional.layer_norm(x, (8,)) * 3,
        lambda x: (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt() * 3,
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_other_ops_that_mean_the_same(name: str) -> None:
    one, other = SAME[name]
    for first, second in ((one, other), (other, one)):
        found = tensure.diff(first, second, {"x": Q})
        assert_no_alarm(found, "identical", "within")


@pytest.mark.parametrize("name", SAME)
def test_other_ops_that_mean_something_else(name: str) -> None:
    """The control: one side is off by a thousandth, or by an order."""
    one, other = SAME[name]
    mirrored = () if name == "reordered sum" else (lambda x: other(x.flip(-1).contiguous()),)
    for wrong in (lambda x: other(x) * 1.001, *mirrored):
        found = tensure.diff(one, wrong, {"x": Q})
        assert found.kind == "divergent", found.counts()
        assert found.first is not None


def test_folded_norm_and_whole() -> None:
    x = inputs_of("cnn")
    whole, folded = exported_kind("cnn", normalise=False), exported_kind("cnn")
    assert_no_alarm(tensure.diff(whole, folded, x), "within")
    assert_no_alarm(tensure.diff(made("cnn"), folded, x), "within")


def test_norm_folded_by_torch() -> None:
    model = made("cnn")
    other = copy.deepcopy(model)
    other.conv1 = nn.utils.fuse_conv_bn_eval(other.conv1, other.norm1)
    other.conv2 = nn.utils.fuse_conv_bn_eval(other.conv2, other.norm2)
    other.norm1 = other.norm2 = nn.Identity()
    found = tensure.diff(model, other, inputs_of("cnn"))
    assert_no_alarm(found, "within")
    other.conv2.weight.data[3] *= 1.01
    found = tensure.diff(model, other, inputs_of("cnn"))
    assert found.kind == "divergent" and "conv2" in found.first.text


# --- other engines -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("normalise", [True, False])
def test_eager_and_exported(kind: str, normalise: bool) -> None:
    found = tensure.diff(made(kind), exported_kind(kind, normalise=normalise), inputs_of(kind))
    assert_no_alarm(found, "identical", "within")
    assert len(found.verdicts) >= 15


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_and_torch(kind: str) -> None:
    model = exported_kind(kind, normalise=False)
    found = tensure.diff(model, model, inputs_of(kind), other_by="reference")
    assert_no_alarm(found, "within")
    assert found.counts()["within"] > 0


@pytest.mark.parametrize("normalise", [True, False])
def test_our_kernels_and_torch(normalise: bool) -> None:
    model, x = exported_kind("cnn", "whole", normalise=normalise), inputs_of("cnn")
    assert_no_alarm(tensure.diff(model, model, x, other_by="kernels"), "identical", "within")
    name = next(key for key in model.weights if key.startswith("conv2.weight"))
    found = tensure.diff(model, damaged_model(model, name, damage_bit), x, other_by="kernels")
    assert found.first is not None and (found.first.kind, found.first.a) == ("leaf", name)
    assert len(found.findings) == 1


def test_two_versions_of_a_program() -> None:
    one, other = exported_kind("cnn"), exported_kind("cnn", "mean")
    assert tensure.diff(one, other, inputs_of("cnn")).kind == "divergent"
    assert_no_alarm(tensure.diff(one, replace(one, name="next"), inputs_of("cnn")), "identical")


# --- less precision ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "dtype"), [("cnn", torch.bfloat16), ("cnn", torch.float16), ("decoder", torch.bfloat16)]
)
def test_a_narrow_model_is_within_its_bound(kind: str, dtype: torch.dtype) -> None:
    model = made(kind)

    def narrow(wide: nn.Module) -> Callable[..., Any]:
        low = copy.deepcopy(wide).to(dtype)
        return lambda x: low(x.to(dtype) if x.is_floating_point() else x).float()

    (x,) = inputs_of(kind).values()
    found = tensure.diff(copy.deepcopy(model), narrow(model), x)
    assert_no_alarm(found, "within")
    assert found.counts()["within"] >= 5
    weight = {"cnn": "square.weight", "decoder": "down.weight"}[kind]
    found = tensure.diff(copy.deepcopy(model), narrow(damaged(model, weight, damage_negated)), x)
    assert found.kind == "divergent"


def test_double_and_single() -> None:
    model = made("cnn")
    wide = copy.deepcopy(model).double()
    x = inputs_of("cnn")["x"]
    assert_no_alarm(tensure.diff(model, lambda x: wide(x.double()), x), "within")


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_integers_and_floats() -> None:
    """A linear whose weight and input went through int8: within what the scales allow."""
    torch.manual_seed(0)
    w, x = torch.randn(6, 10), torch.randn(4, 10)

    def rounded(t: torch.Tensor, scale: float) -> torch.Tensor:
        return torch.quantize_per_tensor(t, scale, 0, torch.qint8).dequantize()

    def integer(x: torch.Tensor) -> torch.Tensor:
        return torch.relu(rounded(x, 0.03) @ rounded(w, 0.03).T)

    found = tensure.diff(lambda x: torch.relu(x @ w.T), integer, x)
    assert_no_alarm(found, "within")
    found = tensure.diff(lambda x: torch.relu(x @ w.T), lambda x: integer(-x), x)
    assert found.kind == "divergent"


# --- what must never be called equal -------------------------------------------------------------------

A, B = (torch.randn(5, 5, generator=torch.Generator().manual_seed(seed)) for seed in (7, 8))
WIRING: dict[str, Pair] = {
    "operands exchanged": (lambda x: (x @ A) - (x @ B), lambda x: (x @ B) - (x @ A)),
    "product exchanged": (lambda x: (x @ A) @ (x @ B), lambda x: (x @ B) @ (x @ A)),
    "another output": (lambda x: torch.relu(x @ A), lambda x: torch.tanh(x @ A)),
    "another part": (lambda x: x.split(2)[0] + 1, lambda x: x.split(2)[1] + 1),
    "another result": (lambda x: x.max(0).values * 2, lambda x: x.min(0).values * 2),
    "a result too early": (lambda x: (x @ A).relu() + 1, lambda x: (x @ A).relu()),
    "skip from elsewhere": (lambda x: (x @ A).relu() + x, lambda x: (x @ A).relu() + x @ A),
    "order of a list": (lambda x: torch.cat([x @ A, x @ B]), lambda x: torch.cat([x @ B, x @ A])),
    "a part left out": (lambda x: (x @ A).sum() + (x @ B).sum(), lambda x: (x @ A).sum()),
    "zeros instead": (lambda x: (x @ A).relu(), lambda x: torch.zeros(5, 5)),
    "input handed back": (lambda x: (x @ A).relu(), lambda x: x),
    "results exchanged": (lambda x: (x @ A, x @ B), lambda x: (x @ B, x @ A)),
    "view handed back": (lambda x: x[1:3], lambda x: x[2:4]),
    "another constant": (lambda x: x * torch.tensor(2.0), lambda x: x * torch.tensor(3.0)),
    "another shape": (lambda x: (x @ A).reshape(25) * 2, lambda x: (x @ A).t().reshape(25) * 2),
}


@pytest.mark.parametrize("name", WIRING)
def test_wrong_wiring_is_never_called_equal(name: str) -> None:
    one, other = WIRING[name]
    x = torch.randn(5, 5, generator=torch.Generator().manual_seed(9))
    found = tensure.diff(one, other, {"x": x})
    assert found.kind == "divergent", found.counts()
    assert found.first is not None
    assert_no_alarm(tensure.diff(one, one, {"x": x}), "identical")
