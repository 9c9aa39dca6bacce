"""Ranks traced in several processes: the same Plan and words, an error where one has no answer."""

from __future__ import annotations

import math
import os
import pickle
import signal
from typing import Any

import pytest
import torch
from torch import nn

from tensure.benchmarks._prove_plans import PLANS
from tensure.bundle import Plan
from tensure.capture import capture_model, capture_parallel
from tensure.capture._ahead import Traces
from tensure.capture._rank import TracedRank
from tensure.errors import InputError, TensureError
from tensure.program import Name, Op, ProcessFailed

CASES = {item.name: item for item in PLANS}
SMALL = (
    ("weights cut both ways over two axes", False),
    ("weights cut both ways over two axes", True),
    ("DDP over 4 ranks", False),
    ("4 micro-batches", True),
    ("2 stages, 2 micro-batches", True),
    ("FSDP2 of some modules", True),
)


def model() -> Any:
    return nn.Linear(4, 1), (torch.ones(1, 4),)


def found(given: Any, parallel: Any, mesh: Any, **options: Any) -> tuple[Plan, list[Any], list[Any]]:
    """The Plan, the classes that were told, and the progress."""
    told, progress = list[Any](), list[Any]()
    plan = capture_parallel(
        given,
        parallel,
        mesh,
        capture_model(given),
        told=lambda classes: told.extend((item.box, item.reason) for item in classes),
        progress=lambda done, count: progress.append((done, count)),
        **options,
    )
    return plan, told, progress


@pytest.mark.parametrize(("label", "classes"), SMALL)
def test_plans_are_the_same(label: str, classes: bool) -> None:
    case = CASES[label]
    one = found(case.model, case.parallel, case.mesh, classes=classes)
    two = found(case.model, case.parallel, case.mesh, classes=classes, jobs=2)
    assert two[:2] == one[:2]
    assert two[2][-1] == one[2][-1]  # in the end all are done
    assert two[2] == sorted(two[2])


def test_more_processes_than_ranks() -> None:
    case = CASES["weights cut both ways over two axes"]
    one, many = (found(case.model, case.parallel, case.mesh, jobs=jobs) for jobs in (1, 9))
    assert many[:2] == one[:2]


@pytest.mark.parametrize("classes", [False, True], ids=["each rank", "classes"])
def test_the_first_rank_that_fails_is_told(classes: bool) -> None:
    def parallel(net: nn.Module, mesh: Any) -> None:
        rank = mesh.get_rank()
        if rank == 2 or rank == 3:
            raise ValueError(f"no such rank: {int(rank)}")

    words = set()
    for jobs in (1, 2, 3, 8):
        with pytest.raises(TensureError) as error:
            capture_parallel(model, parallel, {"tp": 6}, capture_model(model), classes=classes, jobs=jobs)
        words.add(str(error.value))
    (one,) = words
    assert "no such rank: 2" in one


@pytest.mark.parametrize("classes", [False, True], ids=["each rank", "classes"])
def test_a_killed_process_is_an_error(classes: bool) -> None:
    caller = os.getpid()

    def parallel(net: nn.Module, mesh: Any) -> None:
        if mesh.get_rank() > 1:
            net(torch.ones(1, 4))
        if os.getpid() != caller:
            os.kill(os.getpid(), signal.SIGKILL)

    captured = capture_model(model)
    assert capture_parallel(model, parallel, {"tp": 4}, captured, classes=classes).tracks
    with pytest.raises(ProcessFailed, match="SIGKILL"):
        capture_parallel(model, parallel, {"tp": 4}, captured, classes=classes, jobs=2)


def test_what_nobody_asks_for_changes_nothing_and_what_fails_does_so_when_it_is_asked_for() -> None:
    captured, here = capture_model(model), list[int]()

    def trace(place: Any) -> TracedRank:
        here.append(place["tp"])
        if place["tp"] == 2:
            raise InputError("no such rank")
        return TracedRank({"tp": 4}, place["tp"], captured)

    traces = Traces(trace, captured, 2)
    traces.ahead([{"tp": 0}, {"tp": 1}, {"tp": 3}], sure=False)  # guesses: one for each process
    assert here == [0]
    assert traces.at({"tp": 1}).rank == 1 and here == [0]
    assert traces.at({"tp": 1}).rank == 1 and here == [0, 1]
    assert traces.at({"tp": 3}).rank == 3 and here == [0, 1, 3]
    traces.ahead([{"tp": 2}, {"tp": 2}, {"tp": 3}, {"tp": 0}], sure=True)
    assert here == [0, 1, 3, 2]
    assert traces.at({"tp": 3}).captured is captured
    with pytest.raises(InputError, match="no such rank"):
        traces.at({"tp": 2})
    assert here == [0, 1, 3, 2, 2]


def test_not_a_number_is_one_object_in_all_traces() -> None:
    """Texts of ranks are compared, and NaN is equal to itself alone."""

    def parallel(net: nn.Module, mesh: Any) -> Any:
        def step(x: torch.Tensor) -> torch.Tensor:
            bad = torch.full((2, 1), float("nan"))
            loss = (net(x) + bad).sum()
            loss.backward()
            return loss

        return step

    def summed() -> Any:
        class Net(nn.Linear):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return super().forward(x).sum()

        return Net(4, 1), (torch.ones(2, 4),)

    captured, ranks = capture_model(summed), list[TracedRank]()
    for at in range(2):
        rank = TracedRank({"tp": 2}, at, captured)
        rank.trace(summed, lambda net, mesh: parallel(lambda x: nn.Linear.forward(net, x), mesh))
        ranks.append(rank)
    assert any("nan" in repr(step) for step in ranks[0].steps)
    sent: TracedRank = pickle.loads(pickle.dumps(ranks[1]))
    assert ranks[0].steps == ranks[1].steps == sent.steps
    assert "captured" not in vars(sent)
    other = Op("full", (), (Name("y"),), (("fill_value", (1.0, math.nan)),))
    assert pickle.loads(pickle.dumps(other)) != other
