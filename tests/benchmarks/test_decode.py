"""What decode and prefill compare and time, on a model of three weights: no real engine, no real time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.runtime.small_models import write_small_gguf

from tensure.benchmarks import _engine_float, _engine_tensure
from tensure.benchmarks._bench import bench, names
from tensure.benchmarks._decode import decode_bars, prefill_bars
from tensure.benchmarks._limits import bandwidth, f32_rate
from tensure.benchmarks._records import Bar, Case, Measured, NotMeasured, Row
from tensure.benchmarks._statistics import spread
from tensure.benchmarks._text_cases import TOLERANCES, same_logits
from tensure.benchmarks._text_engine import TextEngine, memory_facts, pack, unpack
from tensure.errors import InputError, NotYetError

CASE = Case("c", 1)
LOGITS = np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32)


def packed(rows: NDArray[np.float32]) -> list[str]:
    return [pack(row) for row in rows]


@given(st.lists(st.floats(width=32, allow_nan=False), max_size=20))
def test_pack_round_trip(values: list[float]) -> None:
    array = np.array(values, np.float32)
    assert np.array_equal(unpack(pack(array)), array)


@pytest.mark.parametrize("engine", TOLERANCES)
def test_same_logits_are_the_same(engine: str) -> None:
    assert same_logits(CASE, engine, packed(LOGITS), packed(LOGITS)) is None
    shifted = LOGITS + np.float32(3)  # a constant changes no probability
    assert same_logits(CASE, "llama.cpp", packed(LOGITS), packed(shifted)) is None


@pytest.mark.parametrize("engine", TOLERANCES)
def test_other_logits_are_not(engine: str) -> None:
    """Planted faults: noise over the tolerance, another order, another sign, a lost vector, no number."""
    noise = np.random.default_rng(1).standard_normal(LOGITS.shape).astype(np.float32)
    faults = {
        "noise": LOGITS + 2 * TOLERANCES[engine] * noise,
        "order": LOGITS[:, ::-1],
        "sign": -LOGITS,
        "next position": np.roll(LOGITS, 1, axis=0),
        "scale": LOGITS * np.float32(1.2),
        "nan": np.where(np.arange(64) == 3, np.float32(np.nan), LOGITS),
    }
    for fault, rows in faults.items():
        assert same_logits(CASE, engine, packed(LOGITS), packed(rows)) is not None, fault
    assert "4 logits vectors" in str(same_logits(CASE, engine, packed(LOGITS), packed(LOGITS[:4])))
    assert "63 logits" in str(same_logits(CASE, engine, packed(LOGITS), packed(LOGITS[:, :63])))
    within = LOGITS + 0.3 * TOLERANCES[engine] * noise
    assert same_logits(CASE, engine, packed(LOGITS), packed(within)) is None


class Ticking:
    """A model whose next token is the sum so far, on a clock that moves one second a token."""

    def __init__(self) -> None:
        self.now, self.sum, self.threads = 0.0, 0, 0
        self.steps: list[int] = []

    def set_threads(self, threads: int) -> None:
        self.threads = threads

    def prefill(self, tokens: Sequence[int]) -> int:
        self.sum, self.steps = 0, []
        for token in tokens:
            self.step(token)
        self.steps = []
        return self.sum

    def step(self, token: int) -> int:
        self.now += 1.0
        self.sum += token
        self.steps.append(token)
        return self.sum

    def best(self, logits: int) -> int:
        return logits

    def to_array(self, logits: int) -> NDArray[np.float32]:
        return np.array([logits], np.float32)

    def facts(self) -> Mapping[str, int]:
        return {"weight_bytes": 12}


def case(task: str, **params: object) -> dict[str, object]:
    base = {"task": task, "prompt": [1, 2], "forced": [10, 20], "tokens": 3}
    return {"threads": 2, "params": {**base, **params}}


def test_check_gives_logits_after_prompt_and_forced_tokens() -> None:
    model = Ticking()
    assert [float(unpack(t)[0]) for t in TextEngine(model).check(case("decode"))] == [3.0, 13.0, 33.0]
    assert model.threads == 2


def test_decode_times_greedy_tokens_and_not_the_prompt() -> None:
    model = Ticking()
    engine = TextEngine(model, clock=lambda: model.now)
    assert engine.run(case("decode"))["wall_s"] == 3.0
    assert model.steps == [3, 6, 12]
    assert engine.run(case("prefill"))["wall_s"] == 2.0
    assert engine.facts()["weight_bytes"] == 12
    with pytest.raises(InputError, match="task 'train'"):
        engine.run(case("train"))


def test_our_decoder_in_both_modes_is_the_float_model(tmp_path: Path) -> None:
    """Prompt and forced token through `PagedDecoder`; a wrong forced token is seen."""
    path = str(write_small_gguf(tmp_path / "small.gguf"))
    prompt, forced = [1, 2, 3, 4, 5], 20
    wanted = _engine_float.setup(path).check({"params": {"prompts": [prompt], "forced": [forced]}})
    for mode, name in (("exact", "tensure"), ("fast", "tensure fast")):
        engine = _engine_tensure.setup(path, mode)
        asked = case("decode", prompt=prompt, forced=[forced], tokens=4)
        assert same_logits(CASE, name, wanted, engine.check(asked)) is None
        assert same_logits(CASE, name, wanted, engine.check(asked)) is None  # from an empty cache again
        other = case("decode", prompt=prompt, forced=[21], tokens=4)
        assert same_logits(CASE, name, wanted, engine.check(other)) is not None
        assert engine.run(asked)["wall_s"] > 0 and engine.facts()["through"] == "PagedDecoder"


def measured(**ratios: dict[str, float]) -> Measured:
    rows = [
        Row("c", name.replace("_", " "), 1, "tok/s", spread([1.0]), 1.0, own, None, {})
        for name, own in ratios.items()
    ]
    return Measured(rows=rows)


def test_decode_bars_are_both_modes_over_llama_cpp() -> None:
    found = measured(tensure={"llama.cpp": 1.6}, tensure_fast={"llama.cpp": 1.59})
    found.rows.append(Row("c", "llama.cpp", 1, "tok/s", spread([1.0]), 1.0, {}, None, {}))
    bars = decode_bars([CASE], found)
    assert [(bar.name, bar.met) for bar in bars if isinstance(bar, Bar)] == [
        ("c: tensure over llama.cpp", True),
        ("c: tensure fast over llama.cpp", False),
    ]
    gaps = decode_bars([CASE], measured(tensure={}, tensure_fast={}))
    assert [gap.reason for gap in gaps if isinstance(gap, NotMeasured)] == ["without llama.cpp"] * 2


def test_prefill_bars_are_like_against_like() -> None:
    found = measured(
        tensure={"llama.cpp": 0.9}, tensure_fast={"transformers bf16": 1.0}, transformers_bf16={}
    )
    found.rows.append(Row("c", "llama.cpp", 1, "tok/s", spread([1.0]), 1.0, {}, None, {}))
    bars = prefill_bars([CASE], found)
    assert [(bar.name, bar.met) for bar in bars if isinstance(bar, Bar)] == [
        ("c: tensure fast over transformers bf16", True),
        ("c: tensure over llama.cpp", False),
    ]


def test_memory_is_that_of_this_process() -> None:
    facts = memory_facts()
    assert 1e6 < facts["rss_bytes"] <= facts["peak_rss_bytes"]


def test_limits_are_the_best_of_all_tries() -> None:
    """Clock reads come in pairs; the shortest try must win."""
    lengths = iter([2.0, 0.5] + [1.0] * 100)
    state = {"now": 0.0, "begun": False}

    def clock() -> float:
        if state["begun"]:
            state["now"] += next(lengths)
        state["begun"] = not state["begun"]
        return float(state["now"])

    measured = bandwidth(1, buffer_bytes=1 << 20, clock=clock)
    assert measured.value == (1 << 20) / 0.5 and measured.unit == "B/s" and measured.how
    assert f32_rate(1, size=8, clock=clock).value == 2.0 * 8**3


def test_names_and_what_is_to_come() -> None:
    assert {
        "conv",
        "decode",
        "decode-batch",
        "decode-quality",
        "decode-start",
        "prefill",
        "net",
        "start",
    } <= set(names())
    with pytest.raises(NotYetError, match=r"bench series is not built yet.*time series"):
        bench("series")
    with pytest.raises(InputError, match="Did you mean 'decode'"):
        bench("decod")
    with pytest.raises(InputError, match="threads 4096"):
        bench("decode", threads=4096)
    with pytest.raises(InputError, match="threads 0"):
        bench("start", threads=0)
    with pytest.raises(InputError, match="bench start has no batch size"):
        bench("start", batches=[8])
    with pytest.raises(InputError, match=r"batch \[0\]"):
        bench("conv", batches=[0])
