"""Results flipped while they run, and faults that only a view shows: each found at its own op."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.acceptance.inspect_models import flipped, inputs_of, made
from tests.acceptance.test_inspect_faults import blamed, first_of
from torch import nn

import tensure


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


@pytest.mark.parametrize("kind", ["cnn", "decoder", "gru"])
def test_a_result_flipped_while_it_runs_is_found_at_its_op(kind: str) -> None:
    """Every op that computes, one after the other, relu after it or not: sign, exponent, mantissa."""
    model = made(kind)
    one = recorded(model, kind)
    missed: list[Any] = []
    targets = flippable(one.trace)
    assert len(targets) >= 10
    for turn, (index, op, nth) in enumerate(targets):
        for bit in (22, 30, 31) if kind == "cnn" else ((22, 30, 31)[turn % 3],):
            with flipped(op, nth, bit):
                two = recorded(model, kind)
            found = tensure.diff(one, two)
            first = found.first
            if first is None or first.step_b is None or first.step_b.index != index:
                missed.append((index, op, bit, blamed(found)))
            elif (first.element.bit, first.element.count) != (bit, 1):
                missed.append((index, op, bit, first.element))
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


def in_order(y: Any) -> Any:
    """A sum that depends on the order of what it sums."""
    return (torch.tanh(y) * torch.arange(1.0, y.numel() + 1).reshape(y.shape)).sum()


@pytest.mark.parametrize("view", VIEWS)
def test_a_fault_that_only_a_view_shows_is_found(view: str) -> None:
    right, wrong = VIEWS[view]
    line = right.__code__.co_firstlineno
    x = torch.randn(6, 6)
    for finish in (lambda y: y * 2.0 + 1, in_order):
        found = tensure.diff(lambda x: finish(right(x)), lambda x: finish(wrong(x)), x)  # noqa: B023
        first = first_of(found)
        if view != "split":  # of its two parts the wrong one is read: by who reads it
            assert first.step_b.source.endswith(f"test_inspect_flips.py:{line}"), (line, first.text)
        same = tensure.diff(lambda x: finish(right(x)), lambda x: finish(right(x)), x)  # noqa: B023
        assert same.kind == "identical"
