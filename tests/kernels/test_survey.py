"""survey and histogram against numpy: every dtype, instruction set, number of threads, and any strides."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import FrozenInstanceError, asdict, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.kernels.survey_cases import DTYPES, FLOATS, any_bits, numbers, restrided

from tensure.errors import InputError, TensureError
from tensure.kernels import (
    ELEMENTS,
    Survey,
    available_isas,
    hash128_reference,
    histogram,
    histogram_at,
    histogram_reference,
    isa,
    survey,
    survey_at,
    survey_reference,
)

Array = NDArray[Any]

# Lengths about vectors, units of 4096 parts, and tasks of 64 units.
LENGTHS = (0, 1, 2, 3, 7, 15, 16, 17, 31, 33, 63, 65, 1000, 4095, 4096, 4097, 9001)


def differences(found: Survey, wanted: Survey) -> list[str]:
    """Where two surveys part: counts and places exactly, figures to 1e-9 of what they are made of."""
    parted = []
    scale = {"mean": wanted.l2 or 0.0, "std": wanted.std or 0.0, "l2": wanted.l2 or 0.0}
    for name, value in asdict(wanted).items():
        other = getattr(found, name)
        if name in scale and value is not None and other is not None:
            same = abs(other - value) <= 1e-9 * max(abs(value), scale[name]) or other == value
        else:
            same = name == "digest" or other == value
        if not same:
            parted.append(f"{name} is {other}, wanted {value}")
    return parted


def assert_surveyed(x: Array, limit: float | None = None, threads: int = 1) -> None:
    found = survey(x, limit=limit, threads=threads)
    assert differences(found, survey_reference(x, limit=limit)) == []
    assert found.digest is None


@pytest.mark.parametrize("element", ELEMENTS)
def test_agrees_with_numpy_at_every_length(element: str) -> None:
    rng = np.random.default_rng(1)
    for length in LENGTHS:
        for draw in (any_bits, numbers):
            assert_surveyed(draw(element, (length,), rng), limit=float(rng.choice([0, 1, 40, 1e30])))


@pytest.mark.parametrize("element", ELEMENTS)
def test_agrees_with_numpy_for_any_strides(element: str) -> None:
    rng = np.random.default_rng(2)
    for _ in range(25):
        shape = tuple(int(n) for n in rng.integers(1, 14, rng.integers(0, 5)))
        x = restrided(rng.choice([any_bits, numbers])(element, shape, rng), rng)  # type: ignore[arg-type]
        assert_surveyed(x, limit=25.0)
        assert survey(x) == survey(np.ascontiguousarray(x).reshape(x.shape))


def test_dims_past_eight_and_addresses_off_alignment() -> None:
    rng = np.random.default_rng(3)
    assert_surveyed(rng.normal(size=(2,) * 14).transpose(rng.permutation(14)))
    raw = np.zeros(40_003, np.uint8)
    for dtype in (np.float32, np.float64, np.complex64, np.int64, ml_dtypes.bfloat16):
        x = raw[3 : 3 + 32_000].view(dtype)
        x[:] = rng.normal(size=x.size).astype(dtype)
        assert_surveyed(x)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_mean_far_from_zero_does_not_cancel(dtype: type) -> None:
    rng = np.random.default_rng(4)
    for mean, std in ((1e6, 1.0), (-3e4, 1e-2), (1e8, 16.0), (0.0, 1e-30), (1e-3, 1e-9)):
        for outlier in (None, 1e9, -np.inf):
            x = (mean + std * rng.normal(size=70_000)).astype(dtype)
            if outlier is not None:
                x[0] = outlier  # where the shift would be taken from
            found, exact = survey(x), x[np.isfinite(x)].astype(np.longdouble)
            assert found.mean is not None and found.std is not None and found.l2 is not None
            assert abs(found.mean - exact.mean()) <= 1e-10 * np.abs(exact).mean()
            assert found.std == pytest.approx(float(exact.std()), rel=1e-9)
            assert found.l2 == pytest.approx(float(np.sqrt((exact * exact).sum())), rel=1e-9)


def test_the_naive_formula_would_have_been_caught() -> None:
    """A negative control: squares less the square of the mean, in double, fail the bound above."""
    x = (1e8 + np.random.default_rng(4).normal(size=70_000)).astype(np.float64)
    naive = math.sqrt(abs((x * x).mean() - x.mean() ** 2))
    assert abs(naive - x.std()) > 1e-6 * x.std()
    assert survey(x).std == pytest.approx(float(x.std()), rel=1e-9)


def test_the_comparison_sees_each_field() -> None:
    """A negative control of `differences`."""
    good = survey_reference(np.array([1, -2, 0, np.nan, np.inf, 1e-40], np.float32), limit=1.5)
    assert differences(good, good) == []
    for name, value in asdict(good).items():
        if name != "digest":
            wrong = replace(
                good, **{name: value * (1 + 1e-6) + (0 if isinstance(value, float) and value else 1)}
            )
            assert [line.split()[0] for line in differences(wrong, good)] == [name]


@pytest.mark.parametrize("element", FLOATS)
def test_what_is_rare_is_found_in_any_place(element: str) -> None:
    dtype = DTYPES[element]
    part = np.dtype(f"f{dtype.itemsize // 2}") if dtype.kind == "c" else dtype
    small = ml_dtypes.finfo(part).smallest_subnormal
    for place in (0, 1, 15, 16, 4095, 4096, 8191, 8192, 8999):
        for value, field in (
            (np.nan, "nans"),
            (-np.inf, "infinities"),
            (-small, "denormals"),
            (-0.0, "zeros"),
        ):
            parts = np.full(9000, 2, part)
            parts[place] = value
            found = survey(parts.view(dtype), limit=3.0)
            counts = {name: getattr(found, name) for name in ("nans", "infinities", "denormals", "zeros")}
            assert counts == {name: int(name == field) for name in counts}
            assert found.first_nonfinite == (place if not np.isfinite(np.float64(value)) else None)
            assert found.first_over == (place if value == -np.inf else None)
            assert found.over_limit == int(value == -np.inf)


def test_the_edges_between_classes() -> None:
    for element in ("f32", "f64", "f16", "bf16"):
        info = ml_dtypes.finfo(DTYPES[element])
        normal, small = info.smallest_normal, info.smallest_subnormal
        x = np.array([normal, -normal, normal - small, small, 0, info.max, -info.max], DTYPES[element])
        found = survey(x, limit=float(info.max))
        assert (found.denormals, found.zeros, found.over_limit, found.nans) == (2, 1, 0, 0)
        below = float(np.nextafter(np.float64(info.max), 0.0))
        assert survey(x, limit=below).over_limit == 2
        assert survey(x, limit=below).first_over == 5
        assert survey(x, limit=0.0).over_limit == 6


def test_a_limit_between_two_floats_is_not_rounded() -> None:
    x = np.array([1.0, np.nextafter(np.float32(1), np.float32(2))], np.float32)
    assert survey(x, limit=1.0 + 2.0**-40).over_limit == 1
    assert survey(x, limit=1.0 - 2.0**-40).over_limit == 2
    assert survey(x, limit=math.inf).over_limit == 0


def test_nothing_finite_and_nothing_at_all() -> None:
    for x in (np.full(5000, np.nan, np.float32), np.zeros((3, 0, 4), np.float16), np.array([np.inf])):
        found = survey(x)
        assert (found.minimum, found.maximum, found.mean, found.std, found.l2) == (
            None,
            None,
            None,
            None,
            0.0,
        )
        assert found.count == x.size
    assert survey(np.float32([[3]])[0, 0:1].reshape(())).mean == 3.0


def test_doubles_near_the_largest_have_a_mean() -> None:
    most = np.finfo(np.float64).max
    found = survey(np.tile([most, most / 2, -most], 5000))
    assert found.mean == pytest.approx(most / 6, rel=1e-9)
    assert (found.minimum, found.maximum, found.std, found.l2) == (-most, most, math.inf, math.inf)


def test_a_zero_has_no_sign_in_the_extremes() -> None:
    for x in ([-0.0, 0.0], [0.0, -0.0], [-0.0]):
        found = survey(np.array(x, np.float32))
        assert math.copysign(1, found.minimum or 0.0) == math.copysign(1, found.maximum or 0.0) == 1


def test_threads_change_no_bit() -> None:
    rng = np.random.default_rng(5)
    x = rng.normal(3, 2, 64 * 4096 * 3 + 17).astype(np.float32)
    x[[5, 600_000]] = np.nan
    for y in (x, x[::-1], x[: 3 * 64 * 4096].reshape(64, -1).T):
        one = survey(y, digest=True, limit=8.0)
        for threads in (2, 3, 64):
            assert survey(y, digest=True, limit=8.0, threads=threads) == one
        assert one.digest == hash128_reference(y)


def test_torch_tensors_where_they_lie() -> None:
    rng = np.random.default_rng(10)
    image = torch.from_numpy(rng.normal(size=(2, 5, 6, 7)).astype(np.float32))
    names = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16", torch.int64: "i64"}
    for dtype, name in names.items():
        plain = image.to(dtype)
        for x in (
            plain,
            plain.contiguous(memory_format=torch.channels_last),
            plain[:, 1:, ::2],
            plain[0, 0, 0, 0],
        ):
            strides = tuple(stride * x.element_size() for stride in x.stride())
            found = survey_at(x.data_ptr(), name, tuple(x.shape), strides, digest=True)
            values = x.float().numpy().astype(DTYPES[name])
            assert found == survey(values, digest=True)
            assert x.shape == () or survey_at(x.data_ptr(), name, x.shape, strides, digest=True) == found


def test_flushing_of_subnormals_changes_no_count() -> None:
    x = np.array([1e-40, -1e-45, 0, 1, np.nan] * 40, np.float32)
    before = survey(x, digest=True)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor flushes nothing")
    try:
        after = survey(x, digest=True)
    finally:
        torch.set_flush_denormal(False)
    assert (before.denormals, before.zeros) == (80, 40)
    counts = ("zeros", "denormals", "nans", "first_nonfinite", "digest")
    assert [getattr(after, name) for name in counts] == [getattr(before, name) for name in counts]


PEAK = """
import numpy as np
from tensure.kernels import survey
def peak_kib():  # of this program: ru_maxrss keeps what the process before exec had
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
x = np.broadcast_to(np.arange(64, dtype=np.float32)[:, None], (64, 1 << 20))[:, ::2]
survey(x[:, :100], digest=True, threads=2)
before = peak_kib()
found = survey(x, digest=True, threads=2)
survey_kib = peak_kib() - before
copied = survey(np.ascontiguousarray(x), digest=True)
print(survey_kib, peak_kib() - before, found.digest == copied.digest)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_no_copy_is_made_of_what_does_not_lie_in_order() -> None:
    """128 MiB of elements; the copy that follows shows that the measure sees one."""
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    ours, with_copy, same = done.stdout.split()
    assert int(ours) < 8 * 1024
    assert int(with_copy) > 100 * 1024
    assert same == "True"


def test_digest_alone_tells_nothing_else() -> None:
    found = survey(np.ones(5, np.float32), digest=True, statistics=False)
    assert (found.count, found.mean, found.l2, found.zeros) == (5, None, None, 0)
    assert found.digest == hash128_reference(np.ones(5, np.float32))


def test_memory_at_an_address() -> None:
    rng = np.random.default_rng(6)
    for element in ELEMENTS:
        x = restrided(numbers(element, (5, 6, 7), rng), rng)
        at = x.__array_interface__["data"][0]
        wanted = survey(x, digest=True, limit=9.0)
        assert survey_at(at, element, x.shape, x.strides, digest=True, limit=9.0) == wanted
        y = np.ascontiguousarray(x)
        at = y.__array_interface__["data"][0]
        assert survey_at(at, element, y.shape, digest=True, limit=9.0) == wanted
        counts = histogram_at(at, element, y.shape, None, -9.0, 70.0, 11)
        assert np.array_equal(counts, histogram(x, -9.0, 70.0, 11))
    assert survey_at(0, "f32", (3, 0)).count == 0


@pytest.mark.parametrize("element", ELEMENTS)
def test_histogram_agrees_with_its_formula_and_with_numpy(element: str) -> None:
    rng = np.random.default_rng(7)
    for length in LENGTHS:
        x = restrided(numbers(element, (length,), rng), rng)
        lo, hi, bins = float(rng.normal(0, 30)), float(rng.normal(90, 20)), int(rng.integers(1, 70))
        found = histogram(x, lo, hi, bins)
        assert np.array_equal(found, histogram_reference(x, lo, hi, bins))
        parts = np.ascontiguousarray(x)
        parts = parts.view(f"f{parts.itemsize // 2}") if parts.dtype.kind == "c" else parts.astype(np.float64)
        wanted, _ = np.histogram(parts[np.isfinite(parts)], bins, (lo, hi))
        assert np.abs(found - wanted).sum() <= 2 * (length // 1000)
    x = numbers(element, (100,), rng)
    assert histogram(x, -1e4, 1e4, 1).sum() == survey_reference(x).count - survey_reference(x).nans - (
        survey_reference(x).infinities
    )


def test_histogram_has_both_ends() -> None:
    x = np.array([0, 1, np.nextafter(1, 2), np.nextafter(0, -1), np.nan, np.inf, -np.inf], np.float64)
    assert histogram(x, 0.0, 1.0, 4).tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize(
    "x",
    [
        [1.0, 2.0],
        None,
        np.array(["a"]),
        np.array([None]),
        np.zeros(3, ">f4"),
        np.zeros(3, "M8[s]"),
        np.zeros(3, [("a", "f4")]),
        np.zeros(3, np.longdouble),
        np.zeros(3, ml_dtypes.float8_e5m2),
        np.zeros(3, "V4"),
    ],
)
def test_what_is_no_tensor_is_refused(x: Any) -> None:
    for call in (lambda: survey(x), lambda: histogram(x, 0.0, 1.0, 3)):
        with pytest.raises(InputError) as caught:
            call()
        assert "\n" not in str(caught.value)
        assert "incompatible" not in str(caught.value)


BAD_OPTIONS: list[dict[str, Any]] = [
    {"limit": -1.0},
    {"limit": math.nan},
    {"limit": "3"},
    {"threads": 0},
    {"threads": True},
    {"threads": 2**40},
]


@pytest.mark.parametrize("options", BAD_OPTIONS, ids=str)
def test_options_are_refused(options: dict[str, Any]) -> None:
    x = np.ones(3, np.float32)
    with pytest.raises(InputError):
        survey(x, **options)
    with pytest.raises(InputError):
        survey_at(x.ctypes.data, "f32", (3,), **options)


BAD_MEMORY: list[tuple[Any, ...]] = [
    (0, "f32", (3,)),
    (64, "f99", (3,)),
    (64, "f32", (-1,)),
    (64, "f32", [3]),
    (64, "f32", (3.0,)),
    (64, "f32", (3,), (4, 4)),
    (64, "f32", (3,), [4]),
    (64, "f32", (2**40, 2**40)),
    (64, "f32", (2**70,)),
    (64, "f32", (1,) * 65),
    (-1, "f32", (0,)),
    (2**64, "f32", (0,)),
    (None, "f32", (0,)),
]


@pytest.mark.parametrize("memory", BAD_MEMORY, ids=str)
def test_sizes_that_cannot_be_are_refused(memory: tuple[Any, ...]) -> None:
    with pytest.raises(InputError):
        survey_at(*memory)
    with pytest.raises(InputError):
        histogram_at(*memory[:3], memory[3] if len(memory) > 3 else None, 0.0, 1.0, 3)


@pytest.mark.parametrize(
    ("lo", "hi", "bins"),
    [
        (1.0, 1.0, 3),
        (2.0, 1.0, 3),
        (math.nan, 1.0, 3),
        (0.0, math.inf, 3),
        (-1.7e308, 1.7e308, 3),
        (0.0, 5e-324, 3),
        (0.0, 1.0, 0),
        (0.0, 1.0, True),
        (0.0, 1.0, 2**30),
        (0.0, 1.0, 2.0),
    ],
)
def test_ranges_that_cannot_be_cut_are_refused(lo: float, hi: float, bins: Any) -> None:
    with pytest.raises(InputError):
        histogram(np.ones(3), lo, hi, bins)


def test_a_survey_is_frozen_and_compares() -> None:
    one, two = survey(np.ones(3)), survey(np.ones(3))
    assert one == two
    assert hash(one) == hash(two)
    assert replace(one, zeros=1) != one
    assert one == Survey(**asdict(one))
    with pytest.raises(FrozenInstanceError):
        one.zeros = 3  # type: ignore[misc]


def answers() -> str:
    """Every figure and digest of a drawn set, as text: the same on every instruction set."""
    rng = np.random.default_rng(8)
    lines = []
    for element in ELEMENTS:
        for length in (*LENGTHS, 300_000):
            for draw in (any_bits, numbers):
                x = draw(element, (length,), rng)
                lines.append(f"{survey(x, digest=True, limit=30.0, canonical_nan=bool(length % 2))}")
                lines.append(f"{histogram(x, -3.0, 50.0, 7).tolist()}")
    return "\n".join(lines)


def forced(name: str) -> subprocess.CompletedProcess[str]:
    """This file as a program, in a process whose TENSURE_ISA is `name`."""
    return subprocess.run(
        [sys.executable, "-m", "tests.kernels.test_survey"],
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, "TENSURE_ISA": name},
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_instruction_set_here_gives_the_same_bits() -> None:
    wanted = answers()
    assert "nan" not in wanted.replace("nans", "")
    for name in available_isas():
        done = forced(name)
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"{name}\n{wanted}\n"


def test_an_instruction_set_that_is_not_there_is_refused() -> None:
    done = forced("v9")
    assert done.returncode == 2
    assert "v9" in done.stdout


if __name__ == "__main__":
    try:
        print(isa())
        print(answers())
    except TensureError as error:
        print(error)
        sys.exit(error.exit_code)
