"""What `gemm` times is compared first; planted faults are seen. No real time is asserted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from tensure import kernels
from tensure.benchmarks import _gemm
from tensure.benchmarks._conv_cases import Problem
from tensure.benchmarks._engine_gemm import GemmEngine, setup, setup_torch
from tensure.benchmarks._limits import register_peak
from tensure.benchmarks._records import AbsentError, Case, EngineError, Scope
from tensure.benchmarks._text_engine import pack, unpack

SMALL = Problem("small", 1, 20, 9, 9, 24, 3, 1)
FORMS = ["conv", "int8", *(["bf16"] if "bf16" in kernels.features() else [])]


def case(form: str) -> dict[str, Any]:
    params: dict[str, Any] = {"form": "int8" if form == "conv" else form, "repeats": 2}
    params |= {"problem": asdict(SMALL)} if form == "conv" else {"matrix": [5, 33, 70]}
    return {"name": form, "threads": 1, "params": params}


def record(form: str) -> Case:
    return Case(form, 1, params=case(form)["params"])


def test_the_bar_of_the_issue_is_on_the_convolutions_with_one_thread() -> None:
    cases = _gemm._int8_cases(Scope(False, (1, 2)))
    assert len({item.name for item in cases}) == len(cases)
    bars = {item.name: item.share for item in cases if item.share is not None}
    assert bars == {f"conv{i} int8": 0.70 for i in (8, 9, 10, 11)}
    (first,) = (item for item in cases if item.name == "conv8 int8")
    assert first.work == 2 * 110 * 110 * 128 * 64 * 9 * first.params["repeats"]


@pytest.mark.parametrize("form", FORMS)
def test_ours_and_torch_give_the_same_outputs(form: str) -> None:
    ours, theirs = setup(), setup_torch()
    found = ours.check(case(form))
    assert unpack(found).size == (7 * 7 * 24 if form == "conv" else 5 * 33)
    assert ours.run(case(form))["wall_s"] > 0
    assert ours.facts()["peak_rss_bytes"] > 0
    try:
        other = theirs.check(case(form))
    except AbsentError as error:
        assert "torch refuses" in str(error)
        return
    assert _gemm.same_outputs(record(form), "torch", found, other) is None
    assert theirs.run(case(form))["cpu_s"] >= 0


@pytest.mark.parametrize("form", FORMS)
def test_other_outputs_are_not_the_same(form: str) -> None:
    """Planted faults: one output off, another order, one lost, no number."""
    right = unpack(setup().check(case(form)))
    one = right.copy()
    one[right.size // 2] += 2 if form == "conv" else 0.02 * np.abs(right).max()
    nan = np.where(np.arange(right.size) == 3, np.float32(np.nan), right)
    for wrong in (one, right[::-1], nan):
        assert _gemm.same_outputs(record(form), "torch", pack(right), pack(wrong)) is not None
    assert "outputs, not" in str(_gemm.same_outputs(record(form), "torch", pack(right), pack(right[:-1])))
    assert _gemm.same_outputs(record(form), "torch", pack(right), pack(right)) is None


FAULTS = {"conv": "conv2d_int8", "int8": "gemm_int8", "bf16": "gemm_bf16"}


@pytest.mark.parametrize("form", FORMS)
def test_our_own_wrong_output_is_not_timed(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., Any] = getattr(kernels, FAULTS[form])

    def wrong(*args: Any, out: Any, **words: Any) -> Any:
        made = real(*args, out=out, **words)
        flat = made.reshape(-1)
        flat[3] = 0 if flat[3] else 1
        flat[4] = flat[4] + flat.dtype.type(1)
        if form == "bf16":
            made *= made.dtype.type(1.05)
        return made

    monkeypatch.setattr(kernels, FAULTS[form], wrong)
    with pytest.raises(EngineError, match=r"exact sums|float64"):
        setup().check(case(form))


def test_every_repeat_is_made_and_the_last_case_let_go() -> None:
    calls: list[str] = []

    def prepare(asked: Any, threads: int) -> Callable[[], Any]:
        calls.append(f"prepare {asked['name']} {threads}")

        def call() -> Any:
            calls.append(asked["name"])
            return np.zeros(4, np.uint8)

        return call

    engine = GemmEngine(prepare, {})
    engine.check(case("int8"))
    engine.run(case("int8"))
    engine.check(case("conv"))
    assert calls == ["prepare int8 1", "int8", "int8", "int8", "prepare conv 1", "conv"]


def test_the_limit_adds_up_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "measure_peak", lambda kind, seconds: 2.5e11)
    found = register_peak("int8", 2, 0.1)
    assert found.value == 5e11
    assert "int8" in found.how
