"""measure_peak: a rate for every kind the processor has, a refusal for the others. No figure is asked for."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest

from tensure.errors import InputError, UnsupportedError
from tensure.kernels import PEAK_KINDS, available_isas, features, measure_peak

SHORT_S = 0.002
CODE = """
import sys
from tensure.errors import UnsupportedError
from tensure.kernels import PEAK_KINDS, measure_peak
for kind in PEAK_KINDS:
    try:
        print(kind, measure_peak(kind, 0.002))
    except UnsupportedError as error:
        print(kind, "refused:", error)
"""


def rates(**environment: str) -> dict[str, str]:
    plain = {key: value for key, value in os.environ.items() if not key.startswith("TENSURE_")}
    command = [sys.executable, "-c", CODE]
    done = subprocess.run(
        command, env=plain | environment, capture_output=True, text=True, check=True, timeout=60
    )
    return dict(line.split(" ", 1) for line in done.stdout.splitlines())


@pytest.mark.parametrize("kind", PEAK_KINDS)
def test_a_rate_is_a_positive_number(kind: str) -> None:
    if kind == "bf16" and "bf16" not in features():
        with pytest.raises(UnsupportedError, match="bfloat16"):
            measure_peak(kind, SHORT_S)
        return
    rate = measure_peak(kind, SHORT_S)
    assert math.isfinite(rate)
    assert rate > 1e6, "slower than a processor of 1980: the loop was not run, or its operations not counted"
    assert rate < 1e15, "faster than any core: the loop was optimised away"


def test_every_instruction_set_measures_what_it_has() -> None:
    for name in available_isas():
        found = rates(TENSURE_ISA=name)
        assert list(found) == list(PEAK_KINDS)
        assert 1e6 < float(found["f32"]) < 1e15
        assert 1e6 < float(found["int8"]) < 1e15
        if name in ("v2", "v3"):
            assert found["bf16"].startswith("refused:"), "no bfloat16 below x86-64-v4"
            assert name in found["bf16"]


def test_a_feature_that_is_taken_away_is_not_used() -> None:
    found = rates(TENSURE_FEATURES="-vnni,-bf16")
    assert found["bf16"].startswith("refused:")
    assert "bfloat16" in found["bf16"]
    assert float(found["int8"]) > 1e6, "without byte dot products the next best is measured"


@pytest.mark.parametrize("kind", ["f64", "F32", "", "f32 ", None, 0])
def test_an_unknown_kind_is_refused(kind: str) -> None:
    with pytest.raises(UnsupportedError, match="f32, int8, bf16") as caught:
        measure_peak(kind)
    assert caught.value.place == "kind"


@pytest.mark.parametrize("seconds", [0, -1, 60.5, math.nan, math.inf, "1", None, True])
def test_seconds_out_of_range_are_refused(seconds: float) -> None:
    with pytest.raises(InputError, match="at most 60") as caught:
        measure_peak("f32", seconds)
    assert caught.value.place == "seconds"
