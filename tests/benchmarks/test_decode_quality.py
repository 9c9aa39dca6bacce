"""Divergence from the float model: what the figure is, on numbers and on a small model; its bar."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tests.runtime.small_models import write_small_gguf

from tensure.benchmarks import _engine_float, _engine_tensure
from tensure.benchmarks._decode_quality import quality_bars, within
from tensure.benchmarks._quality_engine import divergence
from tensure.benchmarks._records import Bar, Case, Measured, NotMeasured, Row
from tensure.benchmarks._statistics import spread

CASE = Case("c", 1)
LOGITS = arrays(np.float32, (3, 5), elements=st.floats(-20, 20, width=32))


@given(LOGITS, LOGITS, st.floats(-5, 5, width=32))
def test_divergence_is_zero_of_itself_and_never_below(a: Any, b: Any, shift: float) -> None:
    assert divergence(a, a)["kl"] == 0.0 and divergence(a, a)["top1"] == 1.0
    assert abs(divergence(a, a + np.float32(shift))["kl"]) < 1e-5  # a constant changes no probability
    found = divergence(a, b)
    assert found["kl"] >= -1e-12 and found["kl_max"] >= found["kl"] - 1e-12


def test_divergence_of_two_coins() -> None:
    p, q = np.array([[0.5, 0.5]]), np.array([[0.25, 0.75]])
    found = divergence(np.log(p).astype(np.float32), np.log(q).astype(np.float32))
    assert found["kl"] == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(2 / 3), rel=1e-6)
    assert found["top1"] == 0.0


def test_other_outputs_are_not_timed() -> None:
    logits = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
    right = {"shape": [4, 8]}
    assert within(CASE, "x", right, divergence(logits, logits + np.float32(0.01))) is None
    assert "a divergence of" in str(within(CASE, "x", right, divergence(logits, 3 * logits[::-1])))
    nan = np.where(np.arange(8) == 2, np.float32(np.nan), logits)
    assert within(CASE, "x", right, divergence(logits, nan)) is not None
    assert "[3, 8], not [4, 8]" in str(within(CASE, "x", right, divergence(logits, logits[:3])))


def test_small_model_in_both_modes(tmp_path: Path) -> None:
    """Exact is a good deal closer than fast; a text with one other token is far from both."""
    path = str(write_small_gguf(tmp_path / "small.gguf"))
    tokens = [(7 * i) % 250 for i in range(40)]
    case = {"threads": 1, "params": {"tokens": tokens, "expected": str(tmp_path / "logits.npy")}}
    assert _engine_float.setup(path).check(case) == {"shape": [40, 260]}
    engines = {mode: _engine_tensure.setup_quality(path, mode) for mode in ("exact", "fast")}
    found = {mode: engine.check(case) for mode, engine in engines.items()}
    assert found["exact"]["kl"] <= found["fast"]["kl"] < 1e-3
    assert engines["exact"].run(case)["wall_s"] > 0
    assert engines["exact"].facts()["kl"] == found["exact"]["kl"]
    case["params"]["tokens"] = [(tokens[0] + 1), *tokens[1:]]  # type: ignore[index]
    assert engines["exact"].check(case)["kl"] > 10 * found["fast"]["kl"]


def test_bar_is_the_ratio_to_llama_cpp() -> None:
    def row(engine: str, kl: float) -> Row:
        return Row("c", engine, 1, "tok/s", spread([1.0]), 1.0, {}, None, {"kl": kl})

    for kl, met in ((2e-3, True), (2.1e-3, False)):
        (bar,) = quality_bars([CASE], Measured(rows=[row("tensure fast", kl), row("llama.cpp", 2e-3)]))
        assert isinstance(bar, Bar) and bar.met is met and bar.better == "lower"
    (gap,) = quality_bars([CASE], Measured(rows=[row("tensure fast", 1e-3)]))
    assert isinstance(gap, NotMeasured) and gap.reason == "without llama.cpp"
