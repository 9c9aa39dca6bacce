"""The part of `bench prove` that proves named plans: what its bars ask for, and a fault found where it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch

import tensure
from tensure.benchmarks import _prove_named
from tensure.benchmarks._prove_named import FAULTS, MAX_S, named_bars
from tensure.benchmarks._prove_named_case import named_case
from tensure.benchmarks._prove_named_fault import Fault, shrunken, with_fault
from tensure.benchmarks._records import Bar, NotMeasured
from tensure.capture import NAMED_PLANS, named_plan


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


GOOD: dict[str, Any] = {
    "places": 512, "status": "proved", "where": "", "source": "", "outputs": 9, "probable": 0, "wall_s": 9.0,
    "cpu_s": 8.0, "peak_gb": 0.5,
}  # fmt: skip


def answers(**changed: Any) -> Callable[..., Any]:
    """Cases that come out well, but for what is changed in plans; every fault is found."""

    def case(name: str, layers: int, *fault: int) -> Any:
        if not fault:
            return {**GOOD, **changed}
        (planted,) = (one for one in FAULTS if (one.name, one.layers) == (name, layers))
        where = f"x: grad: grad = copy(...); first astray on {planted.at}: relu_0 = relu(...): no such value"
        return {**GOOD, "status": "refuted", "where": where, "source": f"layers.{planted.layer}.feed_forward"}

    return case


def is_missed(bar: Bar) -> bool:
    return bar.value > bar.target if bar.better == "lower" else bar.value < bar.target


def failures(found: list[Bar | NotMeasured]) -> list[Bar | NotMeasured]:
    return [item for item in found if (item.wrong if isinstance(item, NotMeasured) else is_missed(item))]


def test_every_published_plan_has_its_bars() -> None:
    assert set(MAX_S) == set(NAMED_PLANS)
    found = list(named_bars(quick=False, case=answers()))
    assert not failures(found) and len(found) == 3 * len(MAX_S) + 1
    limits = {item.name.partition("@")[0]: item.target for item in found if item.name.endswith("proved in")}  # type: ignore[union-attr]
    assert limits == {
        "llama3-8b": 30, "llama3-70b": 120, "llama3-405b": 300,
        "deepseek-v3-16b": 60, "deepseek-v3-236b": 120, "deepseek-v3-671b": 300,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "count"),
    [
        ({"wall_s": 301.0}, 6),
        ({"wall_s": 31.0}, 1),
        ({"peak_gb": 8.1}, 6),
        ({"status": "unknown", "where": "no rule"}, 6),
        ({"status": "probable", "probable": 2}, 12),
        ({"status": "refuted"}, 6),
    ],
)
def test_a_bar_is_missed_by_what_it_asks_for(changed: Any, count: int) -> None:
    assert len(failures(list(named_bars(quick=False, case=answers(**changed))))) == count


def test_a_quick_run_sets_no_bar_on_time() -> None:
    found = list(named_bars(quick=True, case=answers(wall_s=1e6)))
    assert not failures(found) and len(found) == 3
    assert all(isinstance(item, Bar) and item.unit != "s" for item in found)


@pytest.mark.parametrize(
    "changed",
    [
        {"status": "proved"},
        {"status": "unknown"},
        {"where": "pp1_dp0_tp0: grad: first astray on pp1_dp0_tp0_mb3: relu_0 = relu(...)"},
        {"source": "layers.0.feed_forward"},
    ],
)
def test_a_fault_that_is_not_named_counts_as_missed(changed: Any) -> None:
    def case(*words: Any) -> Any:
        found = answers()(*words)
        return {**found, **changed} if len(words) > 2 else found

    told = failures(list(named_bars(quick=True, case=case)))
    assert [type(item) for item in told] == [NotMeasured, Bar]


def test_a_case_that_fails_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def run(command: list[str], **_: Any) -> Any:
        asked.append(command)
        return CompletedProcess(command, 1, "", "")

    monkeypatch.setattr(_prove_named.subprocess, "run", run)
    found = list(named_bars(quick=False))
    assert sum(isinstance(item, NotMeasured) and item.wrong for item in found) == 6 + len(FAULTS)
    assert [command[-2] for command in asked[:6]] == list(MAX_S)


def test_a_case_is_proved_from_its_name() -> None:
    found = named_case("llama3-8b@tp2", 1)
    assert found["status"] == "proved" and found["probable"] == 0
    assert found["places"] == 2 and found["outputs"] == 13 and found["peak_gb"] > 0


def test_a_fault_of_one_rank_and_micro_batch_is_refuted_by_name() -> None:
    planted = FAULTS[0]
    plan = named_plan(planted.name)
    plan = shrunken(replace(plan, config=plan.config.replace(layers=planted.layers)))
    fault = Fault(planted.layer, planted.rank, planted.microbatch)
    found = tensure.prove(with_fault(plan, fault), plan.model, mesh=plan.mesh)
    example = found.proof.values.counterexample
    assert found.plan.num_ranks() == 512
    assert found.proof.values.status == "refuted" and example is not None and example.confirmed
    assert "first astray on pp1_dp0_tp1_mb3: relu_0 = relu" in example.step
    assert example.source.startswith("layers.1.feed_forward, _prove_named_fault.py:")
