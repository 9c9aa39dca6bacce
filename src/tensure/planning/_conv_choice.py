"""Which algorithm and layout a convolution runs with: a cost model, then a short measurement of the best few.

    seconds = max(operations / (peak * filled), bytes / bandwidth) + what is made first + tiles * a constant

`filled` is the share of a register tile's lanes and rows that carry results. The model only orders
candidates; `choose_conv` times the first few and takes the fastest, so that a wrong constant costs a
measurement and no more. Measured times are kept by machine, instruction set, threads, library version and
shape (`_tuning.py`). Knows the numbers of a machine, not how anything is timed: the measure is handed in.

Accuracy classes: "strict" (sums in a fixed order, fused) never meets Winograd; "1e-4" may, and says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from tensure.errors import UnsupportedError
from tensure.kernels import Conv

__all__ = [
    "ACCURACIES",
    "Accuracy",
    "Candidate",
    "Choice",
    "ConvProblem",
    "MachineNumbers",
    "candidates",
    "choose_conv",
    "predict_s",
]

Accuracy: TypeAlias = Literal["strict", "1e-4"]
ACCURACIES: Final[tuple[Accuracy, ...]] = ("strict", "1e-4")

LANE_LAYOUTS: Final = {"CHWN": 1, "CHWN8": 8, "CHWN16": 16}
NUM_MEASURED: Final = 3
CLOSE: Final = 1.6
"""A candidate predicted to take longer than the best by this factor is not worth measuring."""


@dataclass(frozen=True, slots=True)
class ConvProblem:
    """A convolution and what it is applied to."""

    conv: Conv
    num_images: int
    height: int
    width: int

    @property
    def out_size(self) -> tuple[int, int]:
        """Rows and columns of the output."""
        return self.conv.out_size(self.height, self.width)

    @property
    def flops(self) -> int:
        """Of the definition."""
        return self.conv.flops(self.num_images, self.height, self.width)

    def key(self) -> str:
        """A text that names the problem, for caches and messages."""
        conv = self.conv
        parts = (
            conv.in_channels,
            conv.out_channels,
            *conv.kernel,
            *conv.stride,
            *conv.padding,
            *conv.dilation,
        )
        return f"{self.num_images}x{self.height}x{self.width}:" + ",".join(map(str, (*parts, conv.groups)))


@dataclass(frozen=True, slots=True, order=True)
class Candidate:
    """One way to run a convolution."""

    algorithm: str
    layout: str

    def __str__(self) -> str:
        return f"{self.algorithm} {self.layout}"


BASE: Final = Candidate("direct", "NHWC")
WORTH_CHANGING: Final = 1.03
"""What is measured to be less than this much faster than BASE is left: a short measurement is no surer."""


@dataclass(frozen=True, slots=True)
class MachineNumbers:
    """What the model needs of one machine: operations and bytes a second of one thread, lanes, cache.

    The defaults are round numbers of a server core; they order candidates well enough, and choices rest on
    measurements.
    """

    peak_flops: float = 1.0e11
    l2_bytes_per_s: float = 8.0e10
    memory_bytes_per_s: float = 2.0e10
    lanes: int = 16
    l2_bytes: int = 1 << 20
    tile_s: float = 2.0e-8


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen, and why.

    Args:
        candidate: the way to run.
        seconds: measured, or predicted when nothing was measured.
        measured: whether `seconds` was.
        reason: a sentence for people.
        considered: every candidate that was timed, or else predicted, with its seconds.
    """

    candidate: Candidate
    seconds: float
    measured: bool
    reason: str
    considered: Mapping[Candidate, float] = field(default_factory=dict[Candidate, float])


Measure: TypeAlias = Callable[[ConvProblem, Candidate], float]


def candidates(
    problem: ConvProblem, accuracy: Accuracy = "strict", layouts: Sequence[str] | None = None
) -> list[Candidate]:
    """Every way to run this problem within an accuracy class, in these layouts (all five when None).

    Raises:
        UnsupportedError: no such accuracy class.
    """
    if accuracy not in ACCURACIES:
        raise UnsupportedError(f"accuracy {accuracy!r:.40}", wanted=" or ".join(ACCURACIES))
    conv = problem.conv
    found = [
        Candidate(algorithm, layout)
        for layout in (layouts or ("NHWC", "NCHW", *LANE_LAYOUTS))
        # Windows one row high are the image itself: im2win would be direct and a copy.
        for algorithm in (("direct", "im2win") if conv.kernel[0] > 1 else ("direct",))
    ]
    fits = (conv.kernel, conv.stride, conv.dilation, conv.groups) == ((3, 3), (1, 1), (1, 1), 1)
    if accuracy == "1e-4" and fits and (layouts is None or "NHWC" in layouts):
        found.append(Candidate("winograd", "NHWC"))
    return found


def predict_s(problem: ConvProblem, candidate: Candidate, machine: MachineNumbers, threads: int = 1) -> float:
    """The model's seconds of one run."""
    conv, (rows, columns) = problem.conv, problem.out_size
    images, pixels = max(problem.num_images, 1), rows * columns
    in_floats = images * conv.in_channels * problem.height * problem.width
    out_floats = images * conv.out_channels * pixels
    weight_floats = conv.out_channels * conv.num_products
    each_out = conv.out_channels // conv.groups
    flops, made_floats = float(problem.flops), 0.0
    if candidate.layout in LANE_LAYOUTS:
        block = LANE_LAYOUTS[candidate.layout]
        lanes = min(machine.lanes, block) if block > 1 else machine.lanes
        filled = images / (-(-images // lanes) * lanes)
        weak = _filled(each_out, 4)
        tiles = -(-images // lanes) * pixels * conv.groups * -(-each_out // 4) / 6
    elif candidate.layout == "NHWC" and conv.groups == conv.in_channels == conv.out_channels > 1:
        # Depthwise: bound by loads, about three to a product of the plain tile.
        filled, weak, tiles = _filled(conv.in_channels, machine.lanes) / 2.5, 1.0, images * pixels * 0.1
    else:
        filled = _filled(each_out, machine.lanes)
        weak = 1.0 if images * pixels >= 6 else images * pixels / 6
        tiles = images * pixels / 6 * conv.groups * -(-each_out // (4 * machine.lanes))
    if candidate.layout == "NCHW":
        # Each output channel of a pixel is stored by itself.
        made_floats += 8.0 * out_floats
    if candidate.algorithm == "im2win":
        windows = images * conv.in_channels * rows * (problem.width + sum(conv.padding[2:])) * conv.kernel[0]
        made_floats += windows * (6.0 if conv.in_channels < 8 and candidate.layout == "NHWC" else 2.0)
        if candidate.layout == "NCHW":
            made_floats += 4.0 * windows
    elif any(conv.padding) and candidate.algorithm != "winograd":
        made_floats += 2.0 * in_floats
    if candidate.algorithm == "winograd":
        blocks = images * -(-rows // 4) * -(-columns // 4)
        flops = 2.0 * 36 * blocks * conv.in_channels * conv.out_channels
        made_floats += 36.0 * blocks * (conv.in_channels + conv.out_channels) * 1.5
        weight_floats *= 4
        tiles *= 2.0
        # A tile of six rows of weights read for few output tiles is bound by reading them.
        made_floats += 36.0 * conv.in_channels * conv.out_channels * max(0.0, 1.0 - blocks / 40)
    seconds = flops / (machine.peak_flops * max(filled * weak, 1e-3))
    moved = 4.0 * (in_floats + out_floats + weight_floats)
    fast = machine.l2_bytes_per_s if moved < machine.l2_bytes else machine.memory_bytes_per_s
    seconds = max(seconds, moved / fast) + 4.0 * made_floats / machine.l2_bytes_per_s + tiles * machine.tile_s
    return seconds / max(1, min(threads, images * rows))


def choose_conv(
    problem: ConvProblem,
    machine: MachineNumbers,
    *,
    threads: int = 1,
    accuracy: Accuracy = "strict",
    layouts: Sequence[str] | None = None,
    measure: Measure | None = None,
    most: int = NUM_MEASURED,
) -> Choice:
    """The fastest candidate.

    By measurement of the `most` best predicted ones and of direct convolution in NHWC; by the model alone
    where no measure is given.
    """
    predicted = {
        candidate: predict_s(problem, candidate, machine, threads)
        for candidate in candidates(problem, accuracy, layouts)
    }
    order = sorted(predicted, key=lambda candidate: (predicted[candidate], candidate))
    best = order[0]
    if measure is None:
        reason = f"{best} predicted at {_micros(predicted[best])}, next {_next(order, predicted)}"
        return Choice(best, predicted[best], False, reason, predicted)
    near = [candidate for candidate in order if predicted[candidate] <= CLOSE * predicted[best]][:most]
    if BASE in predicted and BASE not in near:
        near.append(BASE)  # what wins most often is never left to the model alone
    measured = {candidate: measure(problem, candidate) for candidate in near}
    order = sorted(measured, key=lambda candidate: (measured[candidate], candidate))
    if BASE in measured and measured[BASE] <= WORTH_CHANGING * measured[order[0]]:
        order.remove(BASE)
        order.insert(0, BASE)
    best = order[0]
    reason = f"{best} measured at {_micros(measured[best])}, next {_next(order, measured)}"
    return Choice(best, measured[best], True, reason, measured)


def _filled(size: int, lanes: int) -> float:
    return size / (-(-size // lanes) * lanes)


def _micros(seconds: float) -> str:
    return f"{1e6 * seconds:.3g} us"


def _next(order: Sequence[Candidate], seconds: Mapping[Candidate, float]) -> str:
    return "none" if len(order) < 2 else f"{order[1]} at {_micros(seconds[order[1]])}"
