"""Which tensor of one run is which of another, where the second run has a step more or a step less."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tensure.inspection import Recording, compare, watch

TURNS = 3


class Repeated(nn.Module):
    """One network over several chunks; with `linked`, each chunk adds what the one before it gave.

    A fault is put into the result of one layer in one turn: a cast that is extra, or a relu that is missing.
    """

    def __init__(self, linked: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convs = nn.ModuleList(nn.Conv1d(4, 4, 3, padding=1) for _ in range(3))
        self.linked = linked

    def forward(self, chunks: torch.Tensor, fault: str = "", turn: int = 0, layer: int = 0) -> torch.Tensor:
        found: list[torch.Tensor] = []
        last = torch.zeros(1, 4, 8)
        for at, chunk in enumerate(chunks):
            y = chunk + last if self.linked else chunk
            for depth, conv in enumerate(self.convs):
                here = (at, depth) == (turn, layer)
                y = conv(y)
                if not (here and fault == "missing"):
                    y = torch.relu(y)
                if here and fault == "cast":
                    y = y.to(torch.bfloat16).to(torch.float32)
            last = y
            found.append(y)
        return torch.cat(found)


def recorded(module: nn.Module, *args: Any) -> Recording:
    torch.manual_seed(1)
    chunks = torch.randn(TURNS, 1, 4, 8)
    with watch(module, inputs={"chunks": chunks}, keep=True, digest=True) as run, torch.no_grad():
        module(chunks, *args)
    return run.recording()


def turn_of(recording: Recording, name: str) -> int:
    """Which convolution of its weights a tensor comes from, counted from the first turn."""
    trace = recording.trace
    step = trace.maker(name)
    assert step is not None and step.op == "convolution"
    same = [other.index for other in trace.steps if other.reads[1:2] == step.reads[1:2]]
    return same.index(step.index)


@pytest.mark.parametrize("fault", ["cast", "missing"])
@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("turn", range(TURNS))
@pytest.mark.parametrize("linked", [False, True])
def test_a_step_more_or_less_keeps_every_turn_to_itself(
    linked: bool, turn: int, layer: int, fault: str
) -> None:
    module = Repeated(linked)
    clean, faulty = recorded(module), recorded(module, fault, turn, layer)
    found = compare(clean, faulty)
    convs = [
        pair
        for pair in found.alignment.pairs
        if (step := clean.trace.maker(pair.a)) is not None and step.op == "convolution"
    ]
    assert len(convs) == TURNS * 3
    for pair in convs:
        assert turn_of(clean, pair.a) == turn_of(faulty, pair.b), (pair.a, pair.b)
    first = found.first
    assert first is not None
    if fault == "cast":
        casts = [step.index for step in faulty.trace.steps if step.op in ("to", "_to_copy")]
        assert first.step_b is not None and first.step_b.index in casts, first.text
    else:
        relus = [step.index for step in clean.trace.steps if step.op == "relu"]
        assert first.step_b is None and first.step_a is not None, first.text
        assert first.step_a.index == relus[turn * 3 + layer]
    assert found.findings == [first]


def test_without_a_fault_the_turns_are_identical() -> None:
    module = Repeated(True)
    assert compare(recorded(module), recorded(module)).kind == "identical"


def test_each_slice_finds_its_own_though_one_is_new() -> None:
    """B reads another row first: the rows that both read are paired all the same."""
    x = torch.randn(4, 8)

    def run(rows: tuple[int, ...]) -> Recording:
        with watch(inputs={"x": x}, keep=True, digest=True) as seen:
            for row in rows:
                torch.sin(x[row])
        return seen.recording()

    a, b = run((0, 1, 2)), run((3, 0, 1, 2))
    found = compare(a, b)
    assert found.findings == []
    selects = [pair for pair in found.alignment.pairs if pair.a.startswith("select")]
    assert len(selects) == 3
    for pair in selects:
        ours, theirs = a.trace.maker(pair.a), b.trace.maker(pair.b)
        assert ours is not None and theirs is not None and ours.arguments == theirs.arguments
