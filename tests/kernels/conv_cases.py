"""Geometries, data, an oracle and a judge for f32 convolution, written from its definition.

The oracle is torch's double-precision conv2d on an explicitly padded input: not our code, and not the
project's own reference either. Everything is stated in NCHW; `run` carries it into a layout and back with
conversions of its own, inside memory framed by NaN on the reading side and by a pattern on the writing side,
so that a kernel that reads or writes past an end is caught by any test.

Run as a module (`python -m tests.kernels.conv_cases digests`) it computes under the instruction set of its
own process, which TENSURE_ISA chooses.

Legend: N batch, C channels, H rows, W columns, O output channels, I input channels of one group.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tensure.errors import UnsupportedError
from tensure.kernels import (
    ALGORITHMS,
    LAYOUTS,
    Conv,
    PackedConv,
    conv2d,
    convert_layout,
    dequantize,
    isa,
    pack_conv2d,
)

Pick = Callable[[int, int], int]

LANES = {"CHWN8": 8, "CHWN16": 16}
ACTIVATIONS = ("none", "relu", "relu6", "silu")
# What the issue names. CHWN16 may be absent where there is no AVX-512; im2col is a baseline, Winograd a
# second accuracy class: neither is promised in every layout.
PROMISED = set(itertools.product(("direct", "im2win", "im2win_full"), ("NCHW", "NHWC", "CHWN", "CHWN8")))
UNIT = 2.0**-24  # half a unit in the last place of 1.0f
GUARD = 64  # elements on each side of a framed array


# --- geometries ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Geometry:
    """One convolution and the size of its input; `seed` makes its numbers."""

    n: int
    h: int
    w: int
    conv: Conv
    seed: int = 0

    @property
    def out_hw(self) -> tuple[int, int]:
        """Output rows and columns, from the definition."""
        top, bottom, left, right = self.conv.padding
        sizes = ((self.h + top + bottom, 0), (self.w + left + right, 1))
        return tuple((size - extent(self.conv, i)) // self.conv.stride[i] + 1 for size, i in sizes)  # type: ignore[return-value]

    @property
    def num_products(self) -> int:
        """K: how many products one output sums."""
        return self.conv.in_channels // self.conv.groups * self.conv.kernel[0] * self.conv.kernel[1]


def extent(conv: Conv, i: int) -> int:
    """Rows (i = 0) or columns (i = 1) that one window spans, dilation included."""
    return conv.dilation[i] * (conv.kernel[i] - 1) + 1


KERNELS = ((3, 3), (1, 1), (3, 1), (1, 3), (2, 2), (5, 5), (1, 7), (4, 3), (6, 1), (7, 7), (2, 5), (11, 11))
STRIDES = ((1, 1), (2, 2), (1, 2), (3, 1), (4, 4), (2, 3))
DILATIONS = ((1, 1), (1, 1), (1, 1), (2, 2), (1, 3), (3, 1))
CHANNELS = (1, 3, 4, 8, 16, 17, 19, 32, 33, 5, 64, 67)
GROUPINGS = ("one", "one", "one", "groups", "depthwise")


def draw_geometry(
    pick: Pick, kind: str = "any", limit: int = 400_000, images: Sequence[int] = ()
) -> Geometry:
    """A geometry from a source of integers `pick(low, high)`; at most about `limit` multiplications.

    `kind` is "any", or "winograd": 3x3, stride 1, dilation 1, one group. `images` limits the batch sizes.
    """

    def choose(options: Sequence[Any]) -> Any:
        return options[pick(0, len(options) - 1)]

    winograd = kind == "winograd"
    kernel = (3, 3) if winograd else choose(KERNELS)
    stride = (1, 1) if winograd else choose(STRIDES)
    dilation = (1, 1) if winograd else choose(DILATIONS)
    grouping = "one" if winograd else choose(GROUPINGS)
    if grouping == "one":
        groups, ci, co = 1, choose(CHANNELS), choose(CHANNELS)
    elif grouping == "groups":
        groups = pick(2, 5)
        ci, co = groups * pick(1, 9), groups * pick(1, 19)
    else:
        groups = ci = choose(CHANNELS)
        co = groups * pick(1, 3)
    n = choose(images or (1, 2, 3, 0, 5, 7, 8, 9, 10))
    ho, wo = pick(1, 9), choose((pick(1, 9), pick(10, 40)))
    num_products = ci // groups * kernel[0] * kernel[1]
    while n * co * ho * wo * num_products > limit and max(n, ho, wo) > 1:
        n, ho, wo = (-(-v // 2) if v == max(n, ho, wo) else v for v in (n, ho, wo))
    padded, pads = [], []
    for i, size in enumerate((ho, wo)):
        span = dilation[i] * (kernel[i] - 1) + 1
        padded.append((size - 1) * stride[i] + span + pick(0, stride[i] - 1))
        before = pick(0, min(span, padded[i]) - 1)
        pads += [before, pick(0, min(span, padded[i] - before) - 1)]
    conv = Conv(ci, co, kernel, stride, tuple(pads), dilation, groups)
    return Geometry(n, padded[0] - pads[0] - pads[1], padded[1] - pads[2] - pads[3], conv, pick(0, 2**16))


def special_geometries() -> Iterator[Geometry]:
    """Corners worth having in every run: small copies of known layers, tails, the largest windows."""
    yield Geometry(1, 35, 35, Conv(3, 96, (11, 11), (4, 4)))
    yield Geometry(1, 21, 21, Conv(3, 64, (7, 7), (2, 2), (3, 3, 3, 3)))
    yield Geometry(1, 7, 7, Conv(64, 128, (3, 3)))
    yield Geometry(2, 6, 6, Conv(33, 19, (3, 3), padding=(1, 1, 1, 1)))
    yield Geometry(1, 1, 1, Conv(1, 1, (1, 1)))
    yield Geometry(3, 5, 4, Conv(17, 5, (5, 4)))
    yield Geometry(2, 3, 3, Conv(4, 6, (5, 5), padding=(1, 1, 1, 1)))
    yield Geometry(9, 4, 4, Conv(3, 19, (3, 1), padding=(2, 0, 0, 0)))
    yield Geometry(2, 8, 1, Conv(5, 7, (6, 1)))
    yield Geometry(2, 4, 23, Conv(5, 7, (1, 9), (1, 2), (0, 0, 3, 8)))
    yield Geometry(2, 9, 9, Conv(48, 48, (3, 3), (2, 2), (0, 1, 0, 1), groups=48))
    yield Geometry(1, 9, 11, Conv(19, 38, (5, 5), (1, 1), (2, 2, 2, 2), groups=19))
    yield Geometry(1, 13, 12, Conv(12, 20, (3, 3), (1, 1), (2, 2, 2, 2), (2, 2), groups=4))
    yield Geometry(1, 2, 90, Conv(8, 130, (2, 3)))
    yield Geometry(17, 3, 3, Conv(3, 3, (2, 2)))
    yield Geometry(1, 3, 3, Conv(300, 70, (3, 3), padding=(1, 1, 1, 1)))


def compact_geometries() -> list[Geometry]:
    """About sixty: the special ones, and what a fixed seed draws."""
    pick = random.Random(2306).randint
    drawn = [draw_geometry(pick, limit=60_000) for _ in range(36)]
    winograd = [draw_geometry(pick, "winograd", limit=60_000) for _ in range(8)]
    return [*special_geometries(), *drawn, *winograd]


# --- numbers -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tensors:
    """float32 in NCHW and OIHW; bias and residual are always made, and used when asked for."""

    x: np.ndarray
    w: np.ndarray
    bias: np.ndarray
    residual: np.ndarray


def tensors(geometry: Geometry, integers: bool = False) -> Tensors:
    """Numbers of a geometry: normal at a scale of its own, or integers whose sums are all exact in f32."""
    rng, conv = np.random.default_rng(geometry.seed), geometry.conv
    shapes = (
        (geometry.n, conv.in_channels, geometry.h, geometry.w),
        (conv.out_channels, conv.in_channels // conv.groups, *conv.kernel),
        (conv.out_channels,),
        (geometry.n, conv.out_channels, *geometry.out_hw),
    )
    if integers:
        return Tensors(*(rng.integers(-15, 16, shape).astype(np.float32) for shape in shapes))
    x_scale, w_scale = 2.0 ** rng.integers(-12, 13, 2)
    scales = (x_scale, w_scale, x_scale * w_scale, x_scale * w_scale)
    return Tensors(
        *(
            np.float32(s) * rng.standard_normal(shape, np.float32)
            for s, shape in zip(scales, shapes, strict=True)
        )
    )


# --- the oracle --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Expected:
    """What must come out (float64, NCHW), and how far each element may be from it."""

    value: np.ndarray
    bound: np.ndarray


def plain_conv(x: np.ndarray, w: np.ndarray, conv: Conv) -> np.ndarray:
    """conv2d in float64 by torch, of an input padded beforehand."""
    import torch

    top, bottom, left, right = conv.padding
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (top, bottom), (left, right)))
    if not len(x):
        rows = (padded.shape[2] - extent(conv, 0)) // conv.stride[0] + 1
        return np.zeros(
            (0, conv.out_channels, rows, (padded.shape[3] - extent(conv, 1)) // conv.stride[1] + 1)
        )
    # One thread: waking and spinning a second one costs more than these few products.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return torch.nn.functional.conv2d(
            torch.from_numpy(padded),
            torch.from_numpy(w.astype(np.float64)),
            stride=conv.stride,
            dilation=conv.dilation,
            groups=conv.groups,
        ).numpy()
    finally:
        torch.set_num_threads(threads)


def activate(value: np.ndarray, activation: str) -> np.ndarray:
    """An activation in float64; NaN stays NaN."""
    if activation == "relu":
        return np.maximum(value, 0)
    if activation == "relu6":
        return np.minimum(np.maximum(value, 0), 6)
    if activation == "silu":
        return value / (1 + np.exp(np.minimum(-value, 700)))
    return value


def expect(
    given: Tensors,
    conv: Conv,
    *,
    bias: bool = False,
    residual: bool = False,
    activation: str = "none",
    algorithm: str = "direct",
) -> Expected:
    """The oracle's answer with its bound.

    Strict algorithms: |err| <= c u * sum of magnitudes, u = 2^-24. In any order of summation c = K + 3 holds
    always (Higham, Accuracy and Stability, 3.1) and 8 sqrt(K + 3) all but surely on random numbers (Higham
    and Mary, SIAM J. Sci. Comput. 41, 2019); the smaller one is taken: the first alone would not see one
    missing weight of 4,608.
    Winograd: 1e-4 of the largest output of the tensor; when the few outputs there are all cancel, 1e-5 of
    the largest sum of magnitudes. SiLU multiplies an error by at most 1.1 and adds that of its exp.
    """
    value = plain_conv(given.x, given.w, conv)
    magnitude = plain_conv(np.abs(given.x), np.abs(given.w), conv)
    if bias:
        value = value + given.bias[:, None, None]
        magnitude = magnitude + np.abs(given.bias)[:, None, None]
    if residual:
        value, magnitude = value + given.residual, magnitude + np.abs(given.residual)
    if algorithm == "winograd":
        largest = max(1e-4 * np.abs(value).max(initial=0), 1e-5 * magnitude.max(initial=0))
        bound = np.full_like(value, largest)
    else:
        roundings = given.w[0].size + 3
        bound = magnitude * min(roundings, 8 * roundings**0.5) * UNIT * 1.001 + 1e-37
    out = activate(value, activation)
    if activation == "silu":
        bound = 1.1 * bound + 16 * UNIT * np.abs(out) + 1e-35
    return Expected(out, bound)


def wrong(out: np.ndarray, expected: Expected) -> str:
    """What is wrong with an output, or "" when every element is within its bound; NaN and Inf must match."""
    value = expected.value
    if out.shape != value.shape:
        return f"shape {out.shape}, expected {value.shape}"
    finite = np.isfinite(value)
    with np.errstate(invalid="ignore"):
        good = np.where(finite, np.abs(out - value) <= expected.bound, out == value)
    good |= np.isnan(out) & np.isnan(value)
    if good.all():
        return ""
    at = tuple(int(i) for i in np.argwhere(~good)[0])
    return (
        f"{np.count_nonzero(~good)} of {good.size} wrong, first at {at}: {out[at]!r}, expected {value[at]!r} "
        f"within {expected.bound[at]:.3g}"
    )


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal bit for bit, NaN standing for any NaN."""
    if a.shape != b.shape or a.dtype != np.float32 or b.dtype != np.float32:
        return False
    nan = np.isnan(a)
    a_bits, b_bits = np.ascontiguousarray(a).view(np.uint32), np.ascontiguousarray(b).view(np.uint32)
    return bool(np.array_equal(nan, np.isnan(b)) and np.array_equal(a_bits[~nan], b_bits[~nan]))


# --- layouts and frames --------------------------------------------------------------------------------


def to_layout(x: np.ndarray, layout: str, fill: float = 0.0) -> np.ndarray:
    """A copy of NCHW in another layout; lanes without an image hold `fill`."""
    if layout in LANES:
        lanes, n = LANES[layout], x.shape[0]
        blocks = -(-n // lanes)
        padded = np.full((blocks * lanes, *x.shape[1:]), fill, x.dtype)
        padded[:n] = x
        return padded.reshape(blocks, lanes, *x.shape[1:]).transpose(0, 2, 3, 4, 1).copy()
    order = {"NCHW": (0, 1, 2, 3), "NHWC": (0, 2, 3, 1), "CHWN": (1, 2, 3, 0)}[layout]
    return x.transpose(order).copy()


def from_layout(y: np.ndarray, layout: str, n: int) -> np.ndarray:
    """Back to NCHW, keeping the first n images."""
    if layout in LANES:
        y = y.transpose(0, 4, 1, 2, 3)
        return np.ascontiguousarray(y.reshape(y.shape[0] * y.shape[1], *y.shape[2:])[:n])
    return np.ascontiguousarray(
        y.transpose({"NCHW": (0, 1, 2, 3), "NHWC": (0, 3, 1, 2), "CHWN": (3, 0, 1, 2)}[layout])
    )


@dataclass(frozen=True)
class Frame:
    """An array inside guards that hold one value, `skip` elements off the allocation's alignment."""

    whole: np.ndarray
    inner: np.ndarray
    fill: float

    @classmethod
    def around(cls, values: np.ndarray, fill: float, skip: int = 0) -> Frame:
        whole = np.full(values.size + 2 * GUARD + skip, fill, values.dtype)
        inner = whole[GUARD + skip : GUARD + skip + values.size].reshape(values.shape)
        inner[...] = values
        return cls(whole, inner, fill)

    def guards_stand(self) -> bool:
        """Whether nothing was written outside."""
        start = (self.inner.ctypes.data - self.whole.ctypes.data) // self.whole.itemsize
        rest = np.concatenate([self.whole[:start], self.whole[start + self.inner.size :]])
        return bool(np.array_equal(rest, np.full_like(rest, self.fill), equal_nan=bool(np.isnan(self.fill))))


# --- running -------------------------------------------------------------------------------------------


def offers(algorithm: str, layout: str) -> bool:
    """Whether a combination is there at all, asked with the simplest geometry that all algorithms take."""
    try:
        pack_conv2d(np.zeros((8, 8, 3, 3), np.float32), Conv(8, 8, (3, 3)), algorithm, layout)
    except UnsupportedError:
        return False
    return True


@dataclass(frozen=True)
class Way:
    """How to compute: a combination, and the epilogue."""

    algorithm: str
    layout: str
    bias: bool = False
    residual: bool = False
    activation: str = "none"
    switches: Any = field(default=None)

    def pack(self, w: np.ndarray, conv: Conv) -> PackedConv:
        return pack_conv2d(w, conv, algorithm=self.algorithm, layout=self.layout, switches=self.switches)

    def expect(self, given: Tensors, conv: Conv) -> Expected:
        return expect(
            given,
            conv,
            bias=self.bias,
            residual=self.residual,
            activation=self.activation,
            algorithm=self.algorithm,
        )


def run(
    given: Tensors, conv: Conv, way: Way, threads: int = 1, packed: PackedConv | None = None
) -> np.ndarray:
    """conv2d as a NCHW array, every operand framed and off its natural alignment.

    Whatever is read beyond an operand is NaN, whatever stood in `out` before is NaN, lanes without an image
    hold NaN: any of it in a result is seen. Writing outside `out`, or into an operand, fails here.
    """
    n, layout = len(given.x), way.layout
    skip = given.x.size % 16
    w = Frame.around(given.w, np.nan, 3)
    packed = packed or way.pack(w.inner, conv)
    x = Frame.around(to_layout(given.x, layout, np.nan), np.nan, skip)
    bias = Frame.around(given.bias, np.nan, (skip + 5) % 16) if way.bias else None
    residual = (
        Frame.around(to_layout(given.residual, layout, np.nan), np.nan, (skip + 1) % 16)
        if way.residual
        else None
    )
    shape = packed.output_shape(x.inner.shape)
    out = Frame.around(np.full(shape, np.nan, np.float32), 7.0, (skip + 9) % 16)
    before = [(f, f.whole.tobytes()) for f in (x, w, bias, residual) if f]
    result = conv2d(
        x.inner,
        packed,
        bias=bias.inner if bias else None,
        residual=residual.inner if residual else None,
        activation=way.activation,
        out=out.inner,
        threads=threads,
    )
    assert result is out.inner, "the caller's out is not what came back"
    assert out.guards_stand(), "wrote outside out"
    assert all(f.whole.tobytes() == bytes_before for f, bytes_before in before), "wrote into an operand"
    return from_layout(result, layout, n)


def part_of_rows(given: Tensors, conv: Conv, first: int, last: int) -> tuple[Tensors, Conv]:
    """What computes output rows first..last-1 alone: their input rows with halo, padding only at the ends."""
    top, _, left, right = conv.padding
    rows = given.x.shape[2]
    start = first * conv.stride[0] - top
    end = (last - 1) * conv.stride[0] - top + extent(conv, 0)
    x = np.ascontiguousarray(given.x[:, :, max(start, 0) : min(end, rows)])
    part = replace(conv, padding=(max(-start, 0), max(end - rows, 0), left, right))
    return replace(given, x=x, residual=given.residual[:, :, first:last]), part


# --- in a process of its own -----------------------------------------------------------------------------


def digests() -> None:
    """One line for each geometry and combination: name, SHA-256 of the bits; each held against the oracle."""
    combos = [c for c in itertools.product(ALGORITHMS, LAYOUTS) if offers(*c)]
    for i, geometry in enumerate(compact_geometries()):
        given, conv, expected = tensors(geometry), geometry.conv, {}
        for algorithm, layout in combos:
            is_plain = (conv.kernel, conv.stride, conv.dilation, conv.groups) == ((3, 3), (1, 1), (1, 1), 1)
            if algorithm == "winograd" and not is_plain:
                continue
            way = Way(algorithm, layout, i % 2 == 0, i % 3 == 0, ACTIVATIONS[i % 4])
            out = run(given, conv, way, threads=1 + i % 2)
            kind = algorithm == "winograd"
            if kind not in expected:
                expected[kind] = way.expect(given, conv)
            fault = wrong(out, expected[kind])
            assert not fault, f"{geometry} {way}: {fault}"
            print(f"{i}/{algorithm}/{layout}", hashlib.sha256(out.tobytes()).hexdigest())


def peak_growth(work: Callable[[], object]) -> int:
    """By how many bytes the peak of resident memory rises above what is resident now."""
    with open("/proc/self/clear_refs", "w") as control:
        control.write("5")  # peak := current
    before = _status_bytes("VmHWM")
    kept = work()
    after = _status_bytes("VmHWM")
    del kept
    return after - before


def _status_bytes(name: str) -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(f"{name}:"))


def peak() -> None:
    """What the measurement sees of memory that is freed at once, and of no memory at all; in bytes."""
    print(peak_growth(lambda: np.ones(40 << 20, np.uint8).sum()), peak_growth(lambda: None))


def memory() -> None:
    """One line for each combination and thread count: name, growth of the peak, im2win formula; in bytes."""
    print("control/1", peak_growth(lambda: np.ones(3 << 20, np.uint8)), 3 << 20)
    geometry = Geometry(1, 58, 58, Conv(64, 64, (3, 3)))
    given = tensors(geometry)
    dequantize("q4_0", np.zeros(18 * 5000, np.uint8), threads=2)  # the threads themselves are not conv2d's
    for algorithm, layout in sorted(PROMISED):
        if algorithm == "im2col":
            continue
        way = Way(algorithm, layout)
        for threads in (1, 2):
            packed = way.pack(given.w, geometry.conv)
            small = to_layout(given.x[:, :, :5, :5], layout)
            conv2d(small, packed, threads=threads)  # code pages are read in here
            x = to_layout(given.x, layout)
            out = np.ones(packed.output_shape(x.shape), np.float32)
            grown = peak_growth(lambda: conv2d(x, packed, out=out, threads=threads))  # noqa: B023
            images = LANES.get(layout, 1)
            formula = 4 * images * 64 * geometry.out_hw[0] * geometry.w * 3
            print(f"{algorithm}/{layout}/{threads}", grown, formula)


def conversions() -> None:
    """Round trips under this process's instruction set."""
    x = np.random.default_rng(0).standard_normal((19, 5, 3, 7), np.float32)
    for source, target in itertools.product(LAYOUTS, LAYOUTS):
        moved = convert_layout(to_layout(x, source), source, target, num_images=19)
        assert same_bits(moved, to_layout(x, target)), f"{source} -> {target}"


def main(job: str) -> int:
    try:
        name = isa()
        {"digests": digests, "memory": memory, "peak": peak, "conversions": conversions}[job]()
    except UnsupportedError as error:
        print(error)
        return error.exit_code
    print(name, "ok")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
