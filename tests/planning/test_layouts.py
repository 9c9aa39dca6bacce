"""Choosing kernels: the model orders, a measurement decides, the cheapest path over a graph is the cheapest.

Prices are made up here, so that every answer is known; nothing is timed but one smoke of the real measure.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tensure.bundle import format_plan, parse_plan, plan_digest
from tensure.errors import UnsupportedError
from tensure.kernels import Conv
from tensure.planning import (
    Candidate,
    Choice,
    ConvProblem,
    ConvStep,
    MachineNumbers,
    MoveStep,
    PoolStep,
    TuningCache,
    arena_faults,
    candidates,
    choose_conv,
    host_plan,
    kernels_noted,
    note_kernels,
    plan_layouts,
    predict_s,
)
from tensure.program import Program
from tensure.program.from_torch import from_torch

MACHINE = MachineNumbers()
BODY = ConvProblem(Conv(64, 64, (3, 3)), 1, 58, 58)


def test_strict_never_meets_winograd() -> None:
    assert all(candidate.algorithm != "winograd" for candidate in candidates(BODY))
    assert Candidate("winograd", "NHWC") in candidates(BODY, "1e-4")
    assert Candidate("winograd", "NHWC") not in candidates(ConvProblem(Conv(8, 8, (5, 5)), 1, 9, 9), "1e-4")
    with pytest.raises(UnsupportedError, match="1e-9"):
        candidates(BODY, "1e-9")  # type: ignore[arg-type]


def test_the_model_knows_the_large_effects() -> None:
    """One image leaves a vector of images empty; a batch of sixteen small pictures fills it."""
    one = {c: predict_s(BODY, c, MACHINE) for c in candidates(BODY)}
    assert min(one, key=lambda c: one[c]) == Candidate("direct", "NHWC")
    assert one[Candidate("direct", "CHWN16")] > 8 * one[Candidate("direct", "NHWC")]
    narrow = ConvProblem(Conv(16, 8, (3, 3)), 16, 20, 20)
    many = {c: predict_s(narrow, c, MACHINE) for c in candidates(narrow)}
    assert many[Candidate("direct", "CHWN16")] < many[Candidate("direct", "NHWC")]
    deep = ConvProblem(Conv(256, 256, (3, 3)), 8, 30, 30)
    best = choose_conv(deep, MACHINE, accuracy="1e-4")
    assert best.candidate.algorithm == "winograd"
    assert not best.measured
    assert "predicted" in best.reason


def test_a_measurement_decides_and_is_what_the_choice_says() -> None:
    asked: list[Candidate] = []

    def measure(problem: ConvProblem, candidate: Candidate) -> float:
        asked.append(candidate)
        return 1.0 if candidate.algorithm == "im2win" else 2.0

    found = choose_conv(BODY, MACHINE, measure=measure)
    assert found.candidate.algorithm == "im2win"
    assert (found.seconds, found.measured) == (1.0, True)
    assert 2 <= len(asked) <= 4
    assert Candidate("direct", "NHWC") in asked, "what wins most often is always measured"
    assert set(found.considered) == set(asked)


# --- the path ----------------------------------------------------------------------------------------


class Net(torch.nn.Module):
    """Three convolutions with a residual over two of them, and a pool."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (torch.nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.pool = torch.nn.MaxPool2d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.a(x))
        z = self.c(torch.relu(self.b(y))) + y
        return self.pool(torch.relu(z)).mean((2, 3))


@pytest.fixture(scope="module")
def program() -> Program:
    torch.manual_seed(0)
    return from_torch(Net(), (torch.randn(16, 4, 8, 8),), name="net").program


LAYOUTS = ("NHWC", "NCHW", "CHWN")


def brute_force(program: Program, price: dict[tuple[str, str], float], move: float) -> float:
    """The least cost over every assignment of layouts, priced from the definition."""
    base = plan_layouts(program, measure=lambda p, c: 1.0).segment
    steps = [step for step in base.steps if not isinstance(step, MoveStep)]
    origin = {step.out: step.x for step in base.steps if isinstance(step, MoveStep)}
    free = [step for step in steps if isinstance(step, ConvStep | PoolStep)]
    best = float("inf")
    for layouts in itertools.product(LAYOUTS, repeat=len(free)):
        lies = dict(zip((step.out for step in free), layouts, strict=True))
        cost, moved = 0.0, dict(lies)
        for step in steps:
            for name in step.reads():
                while name in origin:
                    name = origin[name]
                have = moved.get(name, "NCHW")
                want = lies.get(step.out) or ("NHWC" if have == "CHWN" else have)  # else the mean
                if have != want:
                    cost += move
                    moved[name] = want
            if isinstance(step, ConvStep):
                cost += price[step.out, lies[step.out]]
        best = min(best, cost)
    return best


@settings(max_examples=15)
@given(st.data())
def test_the_path_is_the_cheapest_of_all(program: Program, data: st.DataObject) -> None:
    plain = plan_layouts(program)
    convs = [step.out for step in plain.segment.steps if isinstance(step, ConvStep)]
    assert len(set(convs)) == 3
    # All three convolutions are one problem, so a price depends on the layout alone.
    by_layout = {layout: data.draw(st.integers(1, 40)) / 8 for layout in LAYOUTS}
    move = data.draw(st.integers(0, 16)) / 8
    found = plan_layouts(
        program,
        machine=MachineNumbers(memory_bytes_per_s=1e30, l2_bytes_per_s=1e30, peak_flops=1e30, tile_s=0.0),
        measure=lambda problem, candidate: by_layout[candidate.layout],
        move_cost=lambda source, target, shape: move,
    )
    price = {(out, layout): by_layout[layout] for out in convs for layout in LAYOUTS}
    assert found.seconds == pytest.approx(brute_force(program, price, move), abs=1e-6)
    assert found.seconds <= found.plain_seconds + 1e-9
    assert arena_faults(found.segment) == ()


def test_what_is_not_measured_is_priced_on_the_scale_of_what_is() -> None:
    """One image: image lanes are hopeless, and must not win because a model's seconds are small."""
    net = from_torch(torch.nn.Conv2d(4, 4, 3), (torch.randn(1, 4, 8, 8),), name="one").program
    asked: list[str] = []

    def measure(problem: ConvProblem, candidate: Candidate) -> float:
        asked.append(candidate.layout)
        return 1000.0

    found = plan_layouts(net, measure=measure, move_cost=lambda *_: 0.0)
    assert "CHWN" not in asked
    assert {choice.candidate.layout for choice in found.choices.values()} <= {"NHWC", "NCHW"}
    assert found.seconds >= 1000.0


def test_moves_are_made_only_when_they_pay(program: Program) -> None:
    def measure(problem: ConvProblem, candidate: Candidate) -> float:
        return 1.0 if candidate.layout == "CHWN" else 2.0

    machine = MachineNumbers(memory_bytes_per_s=1e30, l2_bytes_per_s=1e30, peak_flops=1e30, tile_s=0.0)
    free = plan_layouts(program, machine=machine, measure=measure, move_cost=lambda *_: 0.0)
    dear = plan_layouts(program, machine=machine, measure=measure, move_cost=lambda *_: 100.0)
    assert {choice.candidate.layout for choice in free.choices.values()} == {"CHWN"}
    assert {choice.candidate.layout for choice in dear.choices.values()} == {"NCHW"}
    assert "measured" in free.explain()
    for name in free.choices:
        assert name in free.explain()


# --- times and notes ---------------------------------------------------------------------------------


def test_times_are_kept_and_a_broken_file_is_no_help(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "tuning.json"
    small = ConvProblem(Conv(3, 4, (3, 3)), 1, 6, 6)
    first = TuningCache(path, budget_s=0.001)
    seconds = first.measure(small, Candidate("direct", "NHWC"))
    moved = first.move("NCHW", "NHWC", (1, 3, 6, 6))
    assert 0 < seconds < 1
    assert 0 < moved < 1
    assert first.num_measured == 2
    assert first.save()
    again = TuningCache(path)
    assert again.measure(small, Candidate("direct", "NHWC")) == seconds
    assert again.num_measured == 0
    other = TuningCache(path, threads=2, budget_s=0.001)
    other.measure(small, Candidate("direct", "NHWC"))
    assert other.num_measured == 1, "another number of threads is another time"
    record = json.loads(path.read_text())
    for bad in ("", "[]", '{"format": "x"}', json.dumps({**record, "seconds": {"a": "b"}}), "[" * 100_000):
        path.write_text(bad)
        cache = TuningCache(path, budget_s=0.001)
        cache.measure(small, Candidate("direct", "NHWC"))
        assert cache.num_measured == 1


def test_notes_come_back_and_change_no_digest(program: Program) -> None:
    plan = host_plan(program)
    found = plan_layouts(program)
    (label,) = program.entries
    noted = note_kernels(plan, label, found.choices)
    assert plan_digest(noted) == plan_digest(plan)
    assert parse_plan(format_plan(noted)) == noted
    assert kernels_noted(noted, label) == {name: choice.candidate for name, choice in found.choices.items()}
    assert kernels_noted(plan, label) == {}
    odd = {name: Choice(Candidate("magic", "NHWC"), 0.0, False, "x") for name in found.choices}
    assert kernels_noted(note_kernels(plan, label, odd), label) == {}, "no kernel of ours: passed over"
    assert np.isfinite(found.seconds)
