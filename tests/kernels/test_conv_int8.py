"""Convolution and matrix products of bytes, bit for bit, on every instruction set.

Held against torch in double precision (sums up to 2^53 are exact there), against the Program's integer ops
and against the project's reference.

Run as a program it computes under the instruction set and features of its own process.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kernels.conv_cases import Frame, Geometry, compact_geometries, draw_geometry, extent, plain_conv

from tensure.errors import InputError, UnsupportedError
from tensure.kernels import (
    Conv,
    Requantize,
    available_isas,
    conv2d_int8,
    conv2d_int8_reference,
    features,
    gemm_int8,
    isa,
    pack_conv2d_int8,
    pack_gemm_int8,
    requantize_reference,
)
from tensure.program._ops._table import evaluate_op

EXAMPLES = 60
OUTPUTS = ("int32", "int8", "uint8", "float32")
I32_MAX = 2**31 - 1
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Case:
    """Everything one call reads, in NHWC and OIHW."""

    conv: Conv
    x: np.ndarray
    w: np.ndarray
    zero_point: int
    bias: np.ndarray
    float_bias: np.ndarray
    scale: np.ndarray
    requantize: Requantize

    def arguments(self, output: str) -> dict[str, Any]:
        if output == "int32":
            return {"bias": self.bias}
        if output == "float32":
            return {"bias": self.float_bias, "scale": self.scale}
        narrow = self.requantize
        if output == "uint8":
            low, high = narrow.qmin + 128, narrow.qmax + 128
            narrow = replace(narrow, zero_point=narrow.zero_point + 128, qmin=low, qmax=high, dtype=np.uint8)
        return {"bias": self.bias, "requantize": narrow}


def case_of(geometry: Geometry, dtype: type = np.int8, kind: str = "any") -> Case:
    """Numbers of a geometry. `kind` "ends" puts x, w and the zero point at the ends of their ranges."""
    rng, conv = np.random.default_rng(geometry.seed), geometry.conv
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    shape = (geometry.n, geometry.h, geometry.w, conv.in_channels)
    if kind == "ends":
        x = rng.choice([low, high], shape).astype(dtype)
        w = rng.choice([-128, -128, 127], conv.weight_shape).astype(np.int8)
        zero_point = int(rng.choice([low, high]))
    else:
        x = rng.integers(low, high + 1, shape).astype(dtype)
        w = rng.integers(-128, 128, conv.weight_shape).astype(np.int8)
        zero_point = int(rng.integers(low, high + 1))
    channels = conv.out_channels
    # Shifts about where the sums end up in a byte's range, and some far from it.
    middle = -max(0, round(np.log2(conv.num_products)) + 7)
    shift = np.clip(middle + rng.integers(-3, 4, channels), -31, 8).astype(np.int32)
    qmin, qmax = sorted(int(v) for v in rng.integers(-128, 128, 2)) if rng.random() < 0.3 else (-128, 127)
    return Case(
        conv,
        x,
        w,
        zero_point,
        rng.integers(-(2**17), 2**17, channels).astype(np.int32),
        rng.standard_normal(channels).astype(np.float32),
        (rng.random(channels) * 1e-3).astype(np.float32),
        Requantize(
            rng.integers(2**30, 2**31, channels).astype(np.int32),
            shift,
            zero_point=int(rng.integers(-128, 128)),
            qmin=qmin,
            qmax=qmax,
        ),
    )


def compute(case: Case, output: str, threads: int = 1, skip: int = 0) -> np.ndarray:
    """conv2d_int8 with x and out framed and at any address; an operand that changes fails here."""
    packed = pack_conv2d_int8(case.w, case.conv)
    x = Frame.around(case.x, 85, skip)
    out = Frame.around(np.full(packed.output_shape(case.x.shape), 99, output), 7, (skip + 5) % 16)
    before = x.whole.tobytes()
    made = conv2d_int8(
        x.inner,
        packed,
        zero_point=case.zero_point,
        out=out.inner,
        threads=threads,
        **case.arguments(output),
    )
    assert made is out.inner
    assert out.guards_stand(), "wrote outside out"
    assert x.whole.tobytes() == before, "wrote into x"
    return made


def reference(case: Case, output: str) -> np.ndarray:
    return conv2d_int8_reference(
        case.x, case.w, case.conv, zero_point=case.zero_point, **case.arguments(output)
    )


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


geometries = st.composite(
    lambda draw: draw_geometry(lambda low, high: draw(st.integers(low, high)), limit=60_000)
)()
dtypes = st.sampled_from([np.int8, np.uint8])
kinds = st.sampled_from(["any", "any", "ends"])
outputs = st.sampled_from(OUTPUTS)


# --- values --------------------------------------------------------------------------------------


@settings(max_examples=EXAMPLES)
@given(geometries, dtypes, kinds, outputs, st.integers(1, 3), st.integers(0, 15))
def test_every_bit_is_the_reference_s(
    geometry: Geometry, dtype: type, kind: str, output: str, threads: int, skip: int
) -> None:
    case = case_of(geometry, dtype, kind)
    assert same(compute(case, output, threads, skip), reference(case, output))


@settings(max_examples=EXAMPLES // 2)
@given(geometries, dtypes, kinds)
def test_the_sums_are_torch_s_in_double_precision(geometry: Geometry, dtype: type, kind: str) -> None:
    """An independent implementation: no code of ours makes the expected value."""
    case = case_of(geometry, dtype, kind)
    centred = case.x.transpose(0, 3, 1, 2).astype(np.float64) - case.zero_point
    expected = plain_conv(centred, case.w, case.conv).transpose(0, 2, 3, 1) + case.bias
    assert np.array_equal(compute(case, "int32").astype(np.float64), expected)


@settings(max_examples=EXAMPLES // 2)
@given(geometries, dtypes, kinds)
def test_a_program_means_the_same(geometry: Geometry, dtype: type, kind: str) -> None:
    """The ops integer_convolution and requantize, which the prover and the microcontroller stand on."""
    case = case_of(geometry, dtype, kind)
    conv, narrow = case.conv, case.requantize
    (sums,) = evaluate_op(
        "integer_convolution",
        [np.ascontiguousarray(case.x.transpose(0, 3, 1, 2)), case.w, case.bias],
        {
            "stride": conv.stride,
            "padding": conv.padding,
            "dilation": conv.dilation,
            "groups": conv.groups,
            "input_zero_point": case.zero_point,
        },
    )
    assert same(compute(case, "int32"), np.ascontiguousarray(sums.transpose(0, 2, 3, 1)))
    shift = np.minimum(narrow.shift, 0).astype(np.int32)  # the op refuses a left shift that overflows
    case = replace(case, requantize=replace(narrow, shift=shift))
    (narrowed,) = evaluate_op(
        "requantize",
        [sums],
        {
            "multiplier": tuple(narrow.multiplier.tolist()),
            "shift": tuple(shift.tolist()),
            "zero_point": narrow.zero_point,
            "qmin": narrow.qmin,
            "qmax": narrow.qmax,
            "axis": 1,
        },
    )
    assert same(compute(case, "int8"), np.ascontiguousarray(narrowed.transpose(0, 2, 3, 1)))


SUMS = st.one_of(
    st.integers(-(2**31), I32_MAX),
    st.integers(-300, 300),
    st.sampled_from([-(2**31), 1 - 2**31, I32_MAX, -(2**30), 2**30, 0, -1, 1]),
)
MULTIPLIERS = st.one_of(
    st.integers(2**30, I32_MAX), st.integers(0, I32_MAX), st.sampled_from([2**30, I32_MAX, 0, 1, 3 << 29])
)


@settings(max_examples=4 * EXAMPLES)
@given(
    st.lists(st.tuples(SUMS, MULTIPLIERS, st.integers(-31, 30)), min_size=1, max_size=70),
    st.integers(-128, 127),
)
def test_rounding_of_any_sum(rows: list[tuple[int, int, int]], zero_point: int) -> None:
    """Sums reach the epilogue as biases: x is 0. Ties, both ends of 32 bits, every shift."""
    sums, multiplier, shift = (
        np.array(column, np.int64).astype(np.int32) for column in zip(*rows, strict=True)
    )
    narrow = Requantize(multiplier, shift, zero_point)
    packed = pack_gemm_int8(np.zeros((len(rows), 4), np.int8))
    found = gemm_int8(np.zeros((1, 4), np.int8), packed, bias=sums, requantize=narrow)
    assert same(found, requantize_reference(sums[None].astype(np.int64), narrow))
    plain = shift <= 0  # elsewhere the op refuses sums that leave 32 bits
    if plain.any():
        (expected,) = evaluate_op(
            "requantize",
            [sums[plain]],
            {
                "multiplier": tuple(multiplier[plain].tolist()),
                "shift": tuple(shift[plain].tolist()),
                "zero_point": zero_point,
                "axis": 0,
            },
        )
        assert np.array_equal(found[0, plain], expected)


EDGE = 2**30 - 255 * 128 * 4  # beyond it, four products could reach 2^30 and another way is taken
SMALL_SUMS = st.one_of(
    st.integers(1 - EDGE, EDGE - 1),
    st.integers(-300, 300),
    st.builds(lambda k, sign: sign * (EDGE - k), st.integers(1, 4), st.sampled_from([-1, 1])),
)


@settings(max_examples=4 * EXAMPLES)
@given(
    st.lists(st.tuples(SMALL_SUMS, MULTIPLIERS, st.integers(-31, 0)), min_size=1, max_size=40),
    st.integers(-128, 127),
    st.booleans(),
)
def test_rounding_of_small_sums_without_left_shifts(
    rows: list[tuple[int, int, int]], zero_point: int, beyond: bool
) -> None:
    """The shorter way, up to its edge; one sum beyond it sends all the longer way, to the same bytes."""
    columns = list(zip(*rows, strict=True))
    if beyond:
        columns = [(*column, last) for column, last in zip(columns, (EDGE, 2**30, -1), strict=True)]
    sums, multiplier, shift = (np.array(column, np.int32) for column in columns)
    narrow = Requantize(multiplier, shift, zero_point)
    packed = pack_gemm_int8(np.zeros((len(sums), 4), np.int8))
    found = gemm_int8(np.zeros((1, 4), np.int8), packed, bias=sums, requantize=narrow)
    assert same(found, requantize_reference(sums[None].astype(np.int64), narrow))


def test_ties_go_up_in_the_product_and_away_from_zero_in_the_shift() -> None:
    """By hand: 2^30 / 2^31 halves a sum; TensorFlow Lite's two roundings differ for negative ties."""
    half = Requantize(np.array([2**30], np.int32), np.array([0], np.int32))
    quarter = Requantize(np.array([2**30], np.int32), np.array([-1], np.int32))
    packed = pack_gemm_int8(np.zeros((1, 1), np.int8))

    def of(total: int, narrow: Requantize) -> int:
        found = gemm_int8(
            np.zeros((1, 1), np.int8), packed, bias=np.array([total], np.int32), requantize=narrow
        )
        return int(found[0, 0])

    assert [of(total, half) for total in (-5, -3, -1, 1, 3, 5)] == [-2, -1, 0, 1, 2, 3]
    assert [of(total, quarter) for total in (-10, -6, -2, 2, 6, 10)] == [-3, -2, -1, 1, 2, 3]


def test_a_left_shift_saturates() -> None:
    narrow = Requantize(np.array([2**30], np.int32), np.array([20], np.int32), qmin=-100)
    packed = pack_gemm_int8(np.zeros((1, 1), np.int8))
    for total, expected in ((1 << 25, 127), (-(1 << 25), -100)):
        bias = np.array([total], np.int32)
        found = gemm_int8(np.zeros((1, 1), np.int8), packed, bias=bias, requantize=narrow)
        assert found[0, 0] == expected
        assert requantize_reference(np.array([[total]]), narrow)[0, 0] == expected


@pytest.mark.parametrize(
    ("dtype", "value", "zero_point"), [(np.int8, -128, 127), (np.uint8, 255, 0), (np.uint8, 0, 255)]
)
@pytest.mark.parametrize("weight", [-128, 127])
def test_the_largest_sums_that_fit(dtype: type, value: int, zero_point: int, weight: int) -> None:
    """Every product as large as products get, and as many of them as 32 bits hold."""
    depth = I32_MAX // (255 * 128)
    packed = pack_gemm_int8(np.full((3, depth), weight, np.int8))
    a_MK = np.full((2, depth), value, dtype)
    found = gemm_int8(a_MK, packed, zero_point=zero_point)
    assert (found == (value - zero_point) * weight * depth).all()


def test_sums_that_could_leave_32_bits_are_refused() -> None:
    depth = I32_MAX // (255 * 128) + 1
    packed = pack_gemm_int8(np.full((1, depth), -128, np.int8))
    a_MK = np.zeros((1, depth), np.int8)
    with pytest.raises(InputError, match=f"{depth} products could reach {255 * 128 * depth}"):
        gemm_int8(a_MK, packed, zero_point=127)
    assert gemm_int8(a_MK, packed)[0, 0] == 0, "with a zero point in the middle they cannot"
    small = pack_gemm_int8(np.full((1, 1), -128, np.int8))
    bias = np.array([I32_MAX - 128 * 128 + 1], np.int32)
    with pytest.raises(InputError, match=f"could reach {2**31}"):
        gemm_int8(np.zeros((1, 1), np.int8), small, bias=bias)
    assert gemm_int8(np.full((1, 1), -128, np.int8), small, bias=bias - 1)[0, 0] == I32_MAX


# --- what changes no bit -------------------------------------------------------------------------


@settings(max_examples=EXAMPLES // 3)
@given(geometries, dtypes, outputs, st.integers(2, 9))
def test_threads_and_row_partitions_change_no_bit(
    geometry: Geometry, dtype: type, output: str, threads: int
) -> None:
    case = case_of(geometry, dtype)
    whole = compute(case, output)
    assert same(compute(case, output, threads), whole)
    conv, rows = case.conv, geometry.out_hw[0]
    parts = []
    for m in range(rows):
        top = m * conv.stride[0] - conv.padding[0]
        end = top + extent(conv, 0)
        pads = (max(-top, 0), max(end - geometry.h, 0), *conv.padding[2:])
        x = np.ascontiguousarray(case.x[:, max(top, 0) : min(end, geometry.h)])
        if not x.shape[1]:
            return  # a row that reads padding only: there is no input to hand over
        parts.append(compute(replace(case, x=x, conv=replace(conv, padding=pads)), output))
    assert same(np.concatenate(parts, axis=1), whole)


def test_a_workspace_s_contents_do_not_matter_and_nothing_past_it_is_written() -> None:
    for geometry in compact_geometries()[:12]:
        case = case_of(geometry)
        packed = pack_conv2d_int8(case.w, case.conv)
        need = packed.workspace_bytes(case.x.shape, np.int8, 2)
        for fill in (0, 255):
            room = np.full(need + 128, fill, np.uint8)
            skip = -room.ctypes.data % 64
            found = conv2d_int8(
                case.x,
                packed,
                zero_point=case.zero_point,
                bias=case.bias,
                workspace=room[skip : skip + need],
                threads=2,
            )
            assert same(found, reference(case, "int32"))
            assert (room[:skip] == fill).all()
            assert (room[skip + need :] == fill).all()


# --- matrix products ---------------------------------------------------------------------------------


@settings(max_examples=EXAMPLES // 2)
@given(st.integers(0, 40), st.integers(1, 70), st.integers(1, 70), dtypes, st.integers(0, 2**16))
def test_a_matrix_product_is_numpy_s(num_rows: int, num: int, depth: int, dtype: type, seed: int) -> None:
    rng = np.random.default_rng(seed)
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    a_MK = rng.integers(low, high + 1, (num_rows, depth)).astype(dtype)
    w_NK = rng.integers(-128, 128, (num, depth)).astype(np.int8)
    zero_point = int(rng.integers(low, high + 1))
    expected = (a_MK.astype(np.int64) - zero_point) @ w_NK.T.astype(np.int64)
    out = np.empty((num_rows, num), np.int32)
    gemm_int8(a_MK, pack_gemm_int8(w_NK), zero_point=zero_point, out=out, threads=2)
    assert np.array_equal(out, expected)


# --- every instruction set -------------------------------------------------------------------------------


def run_forced(**variables: str) -> subprocess.CompletedProcess[str]:
    """This file's program, in a process with these variables and no other of ours."""
    plain = {key: value for key, value in os.environ.items() if not key.startswith("TENSURE_")}
    return subprocess.run(
        [sys.executable, "-m", "tests.kernels.test_conv_int8"],
        cwd=ROOT,
        env=plain | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize("name", available_isas())
def test_every_instruction_set_here_gives_the_same_bits(name: str) -> None:
    done = run_forced(TENSURE_ISA=name)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split()[:2] == [name, "ok"]


def test_without_byte_dot_products_the_bits_are_the_same() -> None:
    done = run_forced(TENSURE_FEATURES="-vnni")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "vnni" not in done.stdout


def test_an_instruction_set_that_is_not_there_is_refused() -> None:
    done = run_forced(TENSURE_ISA="v9")
    assert done.returncode == 2, done
    assert "v9" in done.stdout


# --- refusals ------------------------------------------------------------------------------------------

X, W = np.zeros((1, 5, 6, 8), np.int8), np.zeros((4, 8, 3, 3), np.int8)
CONV = Conv(8, 4, (3, 3))
NARROW = Requantize(np.array([2**30], np.int32), np.array([0], np.int32))


def call(x: Any = X, **arguments: Any) -> np.ndarray:
    return conv2d_int8(x, pack_conv2d_int8(W, CONV), **arguments)


def read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


BAD: dict[str, tuple[Callable[[], object], str]] = {
    "weights: dtype": (lambda: pack_conv2d_int8(W.astype(np.uint8), CONV), "uint8"),
    "weights: shape": (lambda: pack_conv2d_int8(W[:3], CONV), r"\[3, 8, 3, 3\]"),
    "weights: strides": (lambda: pack_conv2d_int8(W[..., ::-1], CONV), "strides"),
    "weights: a list": (lambda: pack_conv2d_int8([1], CONV), "list"),
    "matrix: dims": (lambda: pack_gemm_int8(W), r"\[4, 8, 3, 3\]"),
    "matrix: empty": (lambda: pack_gemm_int8(np.zeros((3, 0), np.int8)), r"\[3, 0\]"),
    "packed": (lambda: conv2d_int8(X, W), "ndarray"),
    "x: dtype": (lambda: call(X.astype(np.int16)), "int16"),
    "x: float": (lambda: call(X.astype(np.float32)), "float32"),
    "x: channels": (lambda: call(np.zeros((1, 5, 6, 7), np.int8)), "7 channels"),
    "x: dims": (lambda: call(X[0]), r"\[5, 6, 8\]"),
    "x: strides": (lambda: call(X[:, :, ::-1]), "strides"),
    "x: too small": (lambda: call(X[:, :2].copy()), "height 2"),
    "x: None": (lambda: call(None), "NoneType"),
    "zero point above": (lambda: call(zero_point=128), "128"),
    "zero point below": (lambda: call(X.astype(np.uint8), zero_point=-1), "-1"),
    "zero point: a float": (lambda: call(zero_point=1.0), "1.0"),
    "zero point: a bool": (lambda: call(zero_point=True), "True"),
    "bias: dtype": (lambda: call(bias=np.zeros(4, np.int64)), "int64"),
    "bias: size": (lambda: call(bias=np.zeros(5, np.int32)), r"\[5\]"),
    "bias: ints beside a scale": (
        lambda: call(bias=np.zeros(4, np.int32), scale=np.ones(4, np.float32)),
        "int32",
    ),
    "scale: size": (lambda: call(scale=np.ones(3, np.float32)), r"\[3\]"),
    "scale: dtype": (lambda: call(scale=np.ones(4)), "float64"),
    "scale and requantize": (lambda: call(scale=np.ones(4, np.float32), requantize=NARROW), "one of them"),
    "requantize: a tuple": (lambda: call(requantize=(1, 2)), "tuple"),
    "requantize: channels": (
        lambda: call(requantize=Requantize(np.full(3, 2**30, np.int32), np.zeros(1, np.int32))),
        "3 numbers",
    ),
    "out: dtype": (lambda: call(out=np.empty((1, 3, 4, 4), np.int8)), "int8"),
    "out: shape": (lambda: call(out=np.empty((1, 3, 4, 5), np.int32)), r"\[1, 3, 4, 5\]"),
    "out: read-only": (lambda: call(out=read_only(np.empty((1, 3, 4, 4), np.int32))), "read-only"),
    "workspace: small": (lambda: call(workspace=np.empty(64, np.uint8)), "64 bytes"),
    "workspace: dtype": (lambda: call(workspace=np.empty(1 << 20, np.int8)), "ndarray"),
    "threads": (lambda: call(threads=0), "0"),
    "threads: a bool": (lambda: call(threads=True), "True"),
    "workspace of a dtype": (lambda: pack_conv2d_int8(W, CONV).workspace_bytes(X.shape, np.int16), "int16"),
    "gemm: dims": (lambda: gemm_int8(X, pack_gemm_int8(W[:, :, 0, 0].copy())), r"\[1, 5, 6, 8\]"),
    "gemm: depth": (
        lambda: gemm_int8(np.zeros((2, 9), np.int8), pack_gemm_int8(W[:, :, 0, 0].copy())),
        r"\[2, 9\]",
    ),
    "gemm: of a convolution": (
        lambda: gemm_int8(np.zeros((2, 8), np.int8), pack_conv2d_int8(W, CONV)),
        "3x3",
    ),
    "gemm: out": (
        lambda: gemm_int8(
            np.zeros((2, 8), np.int8), pack_gemm_int8(W[:, :, 0, 0].copy()), out=np.empty((4, 2), np.int32)
        ),
        r"\[4, 2\]",
    ),
    "multiplier below 0": (lambda: replace(NARROW, multiplier=np.array([-1], np.int32)), "-1"),
    "multiplier: dtype": (lambda: replace(NARROW, multiplier=np.array([1], np.int64)), "int64"),
    "shift above": (lambda: replace(NARROW, shift=np.array([0, 31], np.int32)), "31"),
    "shift below": (lambda: replace(NARROW, shift=np.array([-32], np.int32)), "-32"),
    "shift: dims": (lambda: replace(NARROW, shift=np.zeros((2, 2), np.int32)), r"\[2, 2\]"),
    "shift: empty": (lambda: replace(NARROW, shift=np.zeros(0, np.int32)), r"\[0\]"),
    "zero point of the output": (lambda: replace(NARROW, zero_point=128), "128"),
    "qmin": (lambda: replace(NARROW, qmin=-129), "-129"),
    "qmax below qmin": (lambda: replace(NARROW, qmin=5, qmax=4), "4"),
    "dtype of the output": (lambda: replace(NARROW, dtype=np.int16), "int16"),
}


@pytest.mark.parametrize("what", sorted(BAD))
def test_bad_arguments_are_refused_with_what_was_found(what: str) -> None:
    wrong, found = BAD[what]
    with pytest.raises(InputError, match=found) as caught:
        wrong()
    assert caught.value.wanted


def test_an_out_that_overlaps_an_operand_is_refused_untouched() -> None:
    room = np.full(4096, 7, np.uint8)
    x = room[: X.size].view(np.int8).reshape(X.shape)
    out = room[X.size - 64 : X.size - 64 + 4 * 48].view(np.int32).reshape(1, 3, 4, 4)
    with pytest.raises(InputError, match="overlaps x"):
        call(x, out=out)
    assert (room == 7).all()


# --- negative controls -------------------------------------------------------------------------------------

FAULTS: dict[str, Callable[[Case], Case]] = {
    "one weight off by one": lambda c: replace(c, w=flipped(c.w)),
    "one input off by one": lambda c: replace(c, x=flipped(c.x)),
    "zero point off by one": lambda c: replace(c, zero_point=c.zero_point + 1),
    "padding without the zero point": lambda c: replace(
        c, x=np.pad(c.x, [(0, 0), (1, 1), (1, 1), (0, 0)]), conv=replace(c.conv, padding=(0, 0, 0, 0))
    ),
    "one multiplier twice as large": lambda c: replace(
        c, requantize=replace(c.requantize, shift=c.requantize.shift + (np.arange(20) == 7).astype(np.int32))
    ),
    "bias of the neighbour": lambda c: replace(c, bias=np.roll(c.bias, 1)),
}


def flipped(array: np.ndarray) -> np.ndarray:
    changed = array.copy()
    changed.flat[changed.size // 3] ^= 1
    return changed


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_the_comparison_sees_a_planted_fault(fault: str) -> None:
    geometry = Geometry(1, 9, 9, Conv(5, 20, (3, 3), padding=(1, 1, 1, 1)), seed=4)
    case = case_of(geometry)
    case = replace(
        case, zero_point=17, requantize=replace(case.requantize, qmin=-128, qmax=127, zero_point=0)
    )
    damaged = FAULTS[fault](case)
    assert same(compute(case, "int8"), reference(case, "int8"))
    seen = [not same(compute(damaged, output), reference(case, output)) for output in ("int32", "int8")]
    assert any(seen)


def test_a_frame_of_bytes_sees_one_write_outside() -> None:
    frame = Frame.around(np.zeros(5, np.int8), 7, 3)
    assert frame.guards_stand()
    frame.whole[-1] = 0
    assert not frame.guards_stand()


# --- in a process of its own -------------------------------------------------------------------------------


def before_a_wall(values: np.ndarray) -> np.ndarray:
    """A copy whose last byte is the last before a page that must not be read."""
    libc, page = ctypes.CDLL(None, use_errno=True), mmap.PAGESIZE
    size = -(-values.nbytes // page) * page
    room = mmap.mmap(-1, size + page)
    whole = np.frombuffer(room, np.uint8)
    assert libc.mprotect(ctypes.c_void_p(whole.ctypes.data + size), page, 0) == 0
    inner = whole[size - values.nbytes : size].view(values.dtype).reshape(values.shape)
    inner[...] = values
    return inner


def forced() -> int:
    """Compare under this process's instruction set; the exit code of a TensureError otherwise."""
    try:
        name = isa()
        pick = random.Random(7).randint
        drawn = [*compact_geometries()[:48], *(draw_geometry(pick, limit=60_000) for _ in range(30))]
        for i, geometry in enumerate(drawn):
            case = case_of(geometry, (np.int8, np.uint8)[i % 2], ("any", "ends")[i % 3 == 0])
            case = replace(case, x=before_a_wall(case.x) if case.x.size else case.x)
            output = OUTPUTS[i % 4]
            packed = pack_conv2d_int8(case.w, case.conv)
            out = conv2d_int8(
                case.x, packed, zero_point=case.zero_point, threads=1 + i % 2, **case.arguments(output)
            )
            assert same(out, reference(case, output)), f"{geometry} {output}"
    except UnsupportedError as error:
        print(error)
        return error.exit_code
    print(name, "ok", *features())
    return 0


if __name__ == "__main__":
    sys.exit(forced())
