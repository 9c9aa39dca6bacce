"""What `gemv` times is compared first; planted faults are seen. No real time is asserted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tests.benchmarks.fakes import FULL, World

from tensure import kernels
from tensure.benchmarks import _engine_gemv, _gemv
from tensure.benchmarks._engine_gemv import GemvEngine, setup, setup_torch
from tensure.benchmarks._limits import bandwidth
from tensure.benchmarks._measure import measure
from tensure.benchmarks._records import AbsentError, Case, EngineError, Limit, Scope
from tensure.benchmarks._table import table
from tensure.benchmarks._text_engine import pack, unpack
from tensure.errors import InputError

CASE = Case("c", 1)


def case(form: str, arithmetic: str = "fast", **params: object) -> dict[str, Any]:
    base = {"form": form, "arithmetic": arithmetic, "rows": 160, "cols": 256, "copies": 3, "passes": 2}
    return {"name": f"{form} {arithmetic}", "threads": 1, "params": {**base, **params}}


def test_the_bar_of_the_issue_is_on_int4_with_one_thread() -> None:
    cases = _gemv._cases(Scope(False, (1, 2)))
    assert len({item.name for item in cases}) == len(cases)
    bars = {item.name: item.share for item in cases if item.share is not None}
    assert bars == {"int4 group 32, from memory, 1 thread": 0.85}
    for item in cases:
        if "from memory" in item.name:
            assert item.work / item.params["passes"] > 200e6, "beyond any cache"


@pytest.mark.parametrize("form", ["int4", "int8", "q4_1", "q8_0"])
def test_the_work_is_the_bytes_as_stored(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a case counts, against the weights the engine makes."""
    seen: list[int] = []
    real = kernels.gemv

    def spy(weights: kernels.GemvWeights, *args: Any, **words: Any) -> Any:
        seen.append(weights.nbytes)
        return real(weights, *args, **words)

    monkeypatch.setattr(kernels, "gemv", spy)
    setup().check(case(form, rows=160, cols=_gemv.SIZE, copies=1))
    assert set(seen) == {_gemv.stored_bytes(form, 160)}


@pytest.mark.parametrize("form", ["int4", "int8", "q4_1", "q8_0"])
def test_ours_and_torch_give_the_same_products(form: str) -> None:
    ours = setup()
    fast, exact = ours.check(case(form)), ours.check(case(form, "exact"))
    assert _gemv.same_products(CASE, "tensure", exact, fast) is None
    assert ours.run(case(form))["wall_s"] > 0
    assert ours.facts()["peak_rss_bytes"] > 0
    if form in ("int4", "int8"):
        theirs = setup_torch()
        assert _gemv.same_products(CASE, "torch", fast, theirs.check(case(form))) is None
        assert theirs.run(case(form))["cpu_s"] >= 0
        with pytest.raises(AbsentError, match="bits are defined"):
            theirs.check(case(form, "exact"))
    else:
        with pytest.raises(AbsentError, match="GGUF"):
            setup_torch().check(case(form))


def test_other_products_are_not_the_same() -> None:
    """Planted faults: noise over the tolerance, another order, one large error, a row lost, no number."""
    rng = np.random.default_rng(0)
    right = rng.standard_normal(512).astype(np.float32)
    faults = {
        "noise": right + np.float32(2 * _gemv.TOLERANCE) * rng.standard_normal(512).astype(np.float32),
        "order": right[::-1],
        "one": np.where(np.arange(512) == 3, right + 10, right),
        "nan": np.where(np.arange(512) == 3, np.float32(np.nan), right),
    }
    for name, wrong in faults.items():
        assert _gemv.same_products(CASE, "torch", pack(right), pack(wrong)) is not None, name
    assert "511 products" in str(_gemv.same_products(CASE, "torch", pack(right), pack(right[:-1])))
    assert _gemv.same_products(CASE, "torch", pack(right), pack(right)) is None


@pytest.mark.parametrize("arithmetic", ["fast", "exact"])
def test_our_own_wrong_product_is_not_timed(arithmetic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = kernels.gemv

    def wrong(weights: kernels.GemvWeights, x: Any, *, out: Any, **words: Any) -> Any:
        real(weights, x, out=out, **words)
        out *= np.float32(1.02)
        return out

    monkeypatch.setattr(kernels, "gemv", wrong)
    with pytest.raises(EngineError, match=r"differ from float64 by 0\.02"):
        setup().check(case("int4", arithmetic))


def test_unknown_form_is_refused() -> None:
    with pytest.raises(InputError, match="form 'q2_k'"):
        setup().check(case("q2_k"))


def test_every_copy_is_read_in_every_pass_and_the_last_case_let_go() -> None:
    calls: list[tuple[str, int]] = []

    def prepare(params: Any, threads: int) -> Callable[[int], Any]:
        calls.append((params["form"], -threads))

        def product(number: int) -> Any:
            calls.append((params["form"], number))
            return np.zeros(1, np.float32)

        return product

    engine = GemvEngine(prepare, {})
    engine.check(case("a"))
    engine.run(case("a"))
    engine.check(case("b"))
    assert calls == [("a", -1), ("a", 2), *[("a", n) for n in (0, 1, 2)] * 2, ("b", -1), ("b", 2)]


def test_copies_are_apart_and_aligned() -> None:
    arrays = [np.arange(100, dtype=np.uint8), np.arange(7, dtype=np.uint8), np.zeros(0, np.uint8)]
    copies = _engine_gemv._copies(arrays, 3)
    copies[1][0][:] = 255
    for number in (0, 2):
        assert all(np.array_equal(a, b) for a, b in zip(copies[number], arrays, strict=True))
    assert all(views[0].ctypes.data % 64 == 0 for views in copies)


@pytest.mark.parametrize(("seconds", "met"), [(2.0, True), (4.0, False)])
def test_bar_on_the_share_of_the_limit(seconds: float, met: bool) -> None:
    limit = Limit("memory bandwidth", 1, 20e9, "B/s", 20.0, "a sum")
    world = World(metric="GB/s", limits=lambda scope, cases: [limit])
    world.add("tensure", seconds)
    found = measure(world.benchmark(Case("c", 1, work=38e9, share=0.9)), FULL, clock=world.clock)
    assert [row.spread.median for row in found.rows] == [38 / seconds]
    (bar,) = found.bars
    assert (bar.name, bar.value, bar.met) == ("c: share of the limit", 38 / seconds / 20, met)
    report = {
        "metric": "GB/s",
        "better": "higher",
        "rows": [row.to_json() for row in found.rows],
        "limits": [{"name": "memory bandwidth"}],
        "bars": [{"name": bar.name, "value": bar.value, "target": bar.target, "better": bar.better}],
    }
    headings, rows = table(report)
    text = f"at least 90 % of the limit: {'met' if met else 'missed'}"
    assert rows[0][headings.index("bar")] == text


def test_without_a_limit_there_is_no_bar_on_a_share() -> None:
    world = World(metric="GB/s")
    world.add("tensure", 1.0)
    assert measure(world.benchmark(Case("c", 1, share=0.9)), FULL, clock=world.clock).bars == []


def test_the_limit_may_come_from_our_own_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that only our reader does not move."""
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 1.0
        return now

    def read(*args: Any, **words: Any) -> int:
        nonlocal now
        now -= 0.5
        return 0

    monkeypatch.setattr(kernels, "read_memory", read)
    found = bandwidth(1, buffer_bytes=1 << 16, clock=clock)
    assert found.how == "own reader, 1 stream, 0 bytes ahead"
    assert found.value == (1 << 16) / 0.5


def test_unpack_of_what_the_engine_says() -> None:
    assert unpack(setup().check(case("int8"))).shape == (160,)
