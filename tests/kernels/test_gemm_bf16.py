"""Convolution and matrix products of bfloat16, within the stated bound of float64.

A processor may lack bfloat16 dot products: then every call is a refusal, and that is what is tested.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kernels.conv_cases import Frame, Geometry, draw_geometry, plain_conv

from tensure.errors import InputError, UnsupportedError
from tensure.kernels import (
    Conv,
    conv2d_bf16,
    features,
    gemm_bf16,
    pack_conv2d_bf16,
    pack_gemm_bf16,
)

BF16 = np.dtype(ml_dtypes.bfloat16)
EXAMPLES = 40
HERE = "bf16" in features()
UNIT, LEAST = 2.0**-24, 2.0**-126

geometries = st.composite(
    lambda draw: draw_geometry(lambda low, high: draw(st.integers(low, high)), limit=60_000)
)()


def numbers(shape: tuple[int, ...], seed: int, scale: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (scale * rng.standard_normal(shape)).astype(BF16)


def within(found: np.ndarray, x_NHWC: np.ndarray, w_OIHW: np.ndarray, conv: Conv) -> str:
    """How `found` (float32, NHWC) breaks the bound that `_conv_bf16.py` states, or ""."""
    x, w = x_NHWC.transpose(0, 3, 1, 2).astype(np.float64), w_OIHW.astype(np.float64)
    exact, size = plain_conv(x, w, conv), plain_conv(abs(x), abs(w), conv)
    one = np.ones_like(x), np.ones_like(w)
    sums = plain_conv(abs(x), one[1], conv) + plain_conv(one[0], abs(w), conv)
    num = conv.num_products + conv.kernel[0] * conv.kernel[1]  # rounded up for odd channels
    bound = num * UNIT * (1 + num * UNIT) * size + (num + sums) * LEAST
    error = abs(found.transpose(0, 3, 1, 2).astype(np.float64) - exact)
    if (error <= bound).all():
        return ""
    worst = np.unravel_index((error - bound).argmax(), error.shape)
    return f"{worst}: off by {error[worst]:g}, allowed {bound[worst]:g}"


@pytest.mark.skipif(not HERE, reason="no bfloat16 dot products on this processor")
class TestValues:
    @settings(max_examples=EXAMPLES)
    @given(geometries, st.integers(-10, 10), st.integers(1, 3), st.integers(0, 15))
    def test_sums_stay_within_the_bound(
        self, geometry: Geometry, power: int, threads: int, skip: int
    ) -> None:
        conv = geometry.conv
        x = numbers((geometry.n, geometry.h, geometry.w, conv.in_channels), geometry.seed, 2.0**power)
        w = numbers(conv.weight_shape, geometry.seed + 1)
        packed = pack_conv2d_bf16(w, conv)
        # What stands beyond x is NaN: a kernel that lets it into a sum is seen.
        framed = Frame.around(x, np.nan, skip)
        out = Frame.around(np.full(packed.output_shape(x.shape), np.nan, np.float32), 7.0, skip)
        made = conv2d_bf16(framed.inner, packed, out=out.inner, threads=threads)
        assert made is out.inner
        assert out.guards_stand(), "wrote outside out"
        assert not within(made, x, w, conv)
        assert made.tobytes() == conv2d_bf16(x, packed).tobytes(), "threads or the address change a bit"

    @settings(max_examples=EXAMPLES)
    @given(st.integers(0, 40), st.integers(1, 70), st.integers(1, 200), st.integers(0, 2**16))
    def test_integers_come_out_exactly(self, num_rows: int, num: int, depth: int, seed: int) -> None:
        """Small integers: products and sums are exact in any order, so every bit is known."""
        rng = np.random.default_rng(seed)
        a_MK, w_NK = (rng.integers(-15, 16, (rows, depth)) for rows in (num_rows, num))
        found = gemm_bf16(a_MK.astype(BF16), pack_gemm_bf16(w_NK.astype(BF16)), threads=2)
        assert found.dtype == np.float32
        assert np.array_equal(found, a_MK @ w_NK.T)

    @pytest.mark.parametrize("activation", ["none", "relu", "relu6", "silu"])
    def test_bias_activation_and_the_last_rounding(self, activation: str) -> None:
        a_MK, w_NK, bias = numbers((9, 33), 1), numbers((37, 33), 2), np.linspace(-3, 9, 37, dtype=np.float32)
        packed = pack_gemm_bf16(w_NK)
        plain = gemm_bf16(a_MK, packed).astype(np.float64) + bias
        found = gemm_bf16(a_MK, packed, bias=bias, activation=activation)
        expected = {
            "none": plain,
            "relu": np.maximum(plain, 0),
            "relu6": np.clip(plain, 0, 6),
            "silu": plain / (1 + np.exp(-plain)),
        }[activation]
        assert np.allclose(found, expected, rtol=1e-6, atol=1e-6)
        narrow = gemm_bf16(a_MK, packed, bias=bias, activation=activation, dtype="bfloat16")
        assert narrow.dtype == BF16
        assert narrow.tobytes() == found.astype(BF16).tobytes()

    def test_bits_as_uint16_are_the_same(self) -> None:
        a_MK, w_NK = numbers((3, 10), 1), numbers((5, 10), 2)
        found = gemm_bf16(a_MK.view(np.uint16), pack_gemm_bf16(w_NK.view(np.uint16)))
        assert found.tobytes() == gemm_bf16(a_MK, pack_gemm_bf16(w_NK)).tobytes()
        out = np.empty((3, 5), np.uint16)
        gemm_bf16(a_MK, pack_gemm_bf16(w_NK), dtype="bfloat16", out=out)
        assert np.array_equal(out, found.astype(BF16).view(np.uint16))

    @pytest.mark.parametrize("channels", [1, 3, 4, 7])
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_what_is_not_finite_reaches_exactly_its_windows(self, channels: int, value: float) -> None:
        conv = Conv(channels, 5, (3, 2), padding=(1, 1, 0, 1))
        x, w = numbers((2, 6, 7, channels), 3), abs(numbers(conv.weight_shape, 4)) + BF16.type(0.5)
        x[0, 2, 3, channels - 1] = value
        found = conv2d_bf16(x, pack_conv2d_bf16(w, conv)).transpose(0, 3, 1, 2)
        mask = ~np.isfinite(x.astype(np.float64)).transpose(0, 3, 1, 2)
        reached = plain_conv(mask.astype(np.float64), np.ones(conv.weight_shape), conv) > 0
        assert np.array_equal(np.isfinite(found), ~reached)
        assert np.array_equal(found[reached], np.full(reached.sum(), value, np.float32), equal_nan=True)

    def test_rounding_to_bfloat16_keeps_nan_and_infinities(self) -> None:
        a_MK = np.array([[np.nan], [np.inf], [-np.inf], [3e38]], BF16)
        found = gemm_bf16(a_MK, pack_gemm_bf16(np.ones((1, 1), BF16)), dtype="bfloat16").astype(np.float32)
        assert np.isnan(found[0, 0])
        assert found[1:3, 0].tolist() == [np.inf, -np.inf]
        assert found[3, 0] == a_MK[3, 0]

    @pytest.mark.parametrize("fault", ["weight", "input", "order"])
    def test_the_bound_sees_a_planted_fault(self, fault: str) -> None:
        """Negative control: a weight or input wrong in its last bit, or two of them exchanged."""
        conv = Conv(6, 4, (3, 3))
        x, w = numbers((1, 6, 6, 6), 5), numbers(conv.weight_shape, 6)
        wrong_x, wrong_w = x.copy(), w.copy()
        if fault == "weight":
            wrong_w.view(np.uint16)[1, 2, 0, 1] ^= 1
        elif fault == "input":
            wrong_x.view(np.uint16)[0, 3, 3, 2] ^= 1
        else:
            wrong_w = np.ascontiguousarray(w[:, ::-1])
        assert not within(conv2d_bf16(x, pack_conv2d_bf16(w, conv)), x, w, conv)
        assert within(conv2d_bf16(wrong_x, pack_conv2d_bf16(wrong_w, conv)), x, w, conv)

    @pytest.mark.parametrize("what", ["a", "b", "c", "d", "e", "f", "g", "h"])
    def test_bad_arguments_are_refused_with_what_was_found(self, what: str) -> None:
        packed, a_MK = pack_gemm_bf16(numbers((4, 6), 1)), numbers((3, 6), 2)
        bad: dict[str, tuple[Callable[[], object], str]] = {
            "a": (lambda: gemm_bf16(a_MK.astype(np.float32), packed), "float32"),
            "b": (lambda: gemm_bf16(a_MK[:, :5].copy(), packed), r"\[3, 5\]"),
            "c": (lambda: gemm_bf16(a_MK, a_MK), "ndarray"),
            "d": (lambda: gemm_bf16(a_MK, packed, bias=np.zeros(5, np.float32)), r"\[5\]"),
            "e": (lambda: gemm_bf16(a_MK, packed, dtype="float16"), "float16"),
            "f": (lambda: gemm_bf16(a_MK, packed, activation="gelu"), "gelu"),
            "g": (lambda: gemm_bf16(a_MK, packed, out=np.empty((3, 4), np.float64)), "float64"),
            "h": (lambda: gemm_bf16(a_MK, packed, threads=0), "0"),
        }
        wrong, found = bad[what]
        with pytest.raises(InputError, match=found) as caught:
            wrong()
        assert caught.value.wanted


def pack_elsewhere(**variables: str) -> str:
    code = """
import numpy as np
from tensure.errors import UnsupportedError
from tensure.kernels import pack_gemm_bf16
try:
    pack_gemm_bf16(np.zeros((2, 4), np.uint16))
    print("taken")
except UnsupportedError as error:
    print("refused:", error)
"""
    plain = {key: value for key, value in os.environ.items() if not key.startswith("TENSURE_")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, env=plain | variables, capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout


@pytest.mark.parametrize(
    "variables", [{"TENSURE_FEATURES": "-bf16"}, {"TENSURE_ISA": "v2"}, {"TENSURE_ISA": "v3"}]
)
def test_without_the_instruction_everything_is_refused(variables: dict[str, str]) -> None:
    """Never a slow imitation: the message says what is missing and what to use."""
    from tensure.kernels import available_isas

    if variables.get("TENSURE_ISA", available_isas()[0]) not in available_isas():
        variables = {"TENSURE_FEATURES": "-bf16"}
    said = pack_elsewhere(**variables)
    assert said.startswith("refused: no bfloat16 dot products"), said
    assert "float32" in said


def test_this_processor_takes_or_refuses() -> None:
    assert pack_elsewhere().startswith("taken" if HERE else "refused")


BAD_WEIGHTS: dict[str, tuple[Any, str]] = {
    "dtype": (np.zeros((2, 4), np.float32), "float32"),
    "dims": (np.zeros((2, 4, 1), np.uint16), r"\[2, 4, 1\]"),
    "empty": (np.zeros((0, 4), np.uint16), r"\[0, 4\]"),
    "a list": ([[1.0]], "list"),
    "strides": (np.zeros((4, 4), np.uint16)[:, ::2], "strides"),
}


@pytest.mark.parametrize("what", sorted(BAD_WEIGHTS))
def test_bad_weights_are_refused_on_every_processor(what: str) -> None:
    weights, found = BAD_WEIGHTS[what]
    with pytest.raises((InputError, UnsupportedError), match=found if HERE or what != "strides" else None):
        pack_gemm_bf16(weights)
