"""What test_conv_acceptance.py cannot ask from outside: SiLU over every float, sums of very many products.

Run as a module (`python -m tests.kernels.test_conv STEP`) it measures SiLU under the instruction set of its
own process, which TENSURE_ISA chooses, on every STEP-th float.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.kernels.conv_cases import Geometry, Way, offers, run, tensors, wrong

from tensure.kernels import ALGORITHMS, LAYOUTS, Conv, available_isas, conv2d, isa, pack_conv2d

ROOT = Path(__file__).resolve().parents[2]
STRICT = [c for c in itertools.product(ALGORITHMS, LAYOUTS) if c[0] != "winograd" and offers(*c)]

# The bits of 2^-25, below which x / (1 + e^-x) is x / 2 to the last bit, and of 88, beyond which our e^x is
# infinite.
FIRST, LAST = 0x33000000, 0x42B00000
# Largest relative error of SiLU: measured on every float of the range, the last digit rounded up.
SILU_ERROR = {"v2": 3.02e-7, "v3": 2.99e-7, "v4": 2.99e-7, "neon": 2.99e-7}
CHUNK = 1 << 22


def silu(x: np.ndarray) -> np.ndarray:
    """By conv2d: a 1x1 kernel of one weight, 1. CHWN, so that every lane of a vector works."""
    packed = pack_conv2d(np.ones((1, 1, 1, 1), np.float32), Conv(1, 1, (1, 1)), layout="CHWN")
    return conv2d(x.reshape(1, 1, 1, -1), packed, activation="silu").reshape(-1)


def relative_errors(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of y against SiLU in float64; no x is 0."""
    exact = x.astype(np.float64)
    exact /= 1 + np.exp(-exact)
    return np.abs(y / exact - 1)


def largest_error(step: int) -> float:
    """Of SiLU over every step-th float from 2^-25 to 88, of both signs."""
    worst = 0.0
    for first in range(FIRST, LAST + 1, CHUNK * step):
        bits = np.arange(first, min(first + CHUNK * step, LAST + 1), step, np.uint32)
        for sign in (0, 1 << 31):
            x = (bits | np.uint32(sign)).view(np.float32)
            worst = max(worst, float(relative_errors(x, silu(x)).max()))
    return worst


def measured_under(name: str, step: int) -> float:
    """largest_error in a process whose TENSURE_ISA is `name`."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.test_conv", str(step)],
        cwd=ROOT,
        env={**os.environ, "TENSURE_ISA": name},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found, error = done.stdout.split()
    assert found == name
    return float(error)


@pytest.mark.parametrize("name", available_isas())
def test_silu_is_as_exact_as_stated(name: str) -> None:
    """Every 499th float. The largest error must come near the stated one, too."""
    error = measured_under(name, 499)
    assert 0.8 * SILU_ERROR[name] <= error <= SILU_ERROR[name]


@pytest.mark.nightly
@pytest.mark.parametrize("name", available_isas())
def test_silu_is_as_exact_as_stated_on_every_float(name: str) -> None:
    error = measured_under(name, 1)
    assert 0.99 * SILU_ERROR[name] <= error <= SILU_ERROR[name]


def test_the_measurement_of_silu_sees_a_small_fault() -> None:
    """Negative control: one value in a thousand, off by four units in the last place."""
    x = np.linspace(-80, 80, 1000, dtype=np.float32)
    y = silu(x)
    assert relative_errors(x, y).max() <= SILU_ERROR[isa()]
    y[700] *= np.float32(1 + 2.0**-21)
    assert relative_errors(x, y).max() > SILU_ERROR[isa()]


def test_silu_at_the_ends() -> None:
    """Below -88 the result is -0, where the exact one is above -6e-37."""
    x = np.array([0.0, 2.0**-30, -88.1, -1000, 88.1, 3e38, np.inf, np.nan], np.float32)
    y = silu(x)
    assert np.array_equal(y[:2], [0.0, 2.0**-31])
    assert (y[2:4] == 0).all() and np.signbit(y[2:4]).all()
    assert np.array_equal(y[4:7], x[4:7])
    assert np.isnan(y[7])


@pytest.mark.parametrize("width", [2, 19], ids=["one output", "many outputs"])
def test_sums_of_thirty_thousand_products(width: int) -> None:
    """Exact on integers, within the bound on others. The caches cut sums of many outputs into parts."""
    conv = Conv(3000, 2, (5, 2))
    geometry = Geometry(1, 5, width, conv)
    assert geometry.num_products == 30_000
    whole, numbers = tensors(geometry, integers=True), tensors(geometry)
    exact, expected = Way("direct", "NHWC").expect(whole, conv), Way("direct", "NHWC").expect(numbers, conv)
    assert np.abs(exact.value).max() < 2**24
    exact = replace(exact, bound=np.zeros_like(exact.bound))
    for combo in STRICT:
        assert not wrong(run(whole, conv, Way(*combo)), exact), combo
        assert not wrong(run(numbers, conv, Way(*combo), 2), expected), combo
    whole.w[1, 2999, 4, 1] += 1
    assert wrong(run(whole, conv, Way("direct", "NHWC")), exact), "a weight that is 1 off must be seen"


if __name__ == "__main__":
    print(isa(), largest_error(int(sys.argv[1])))
