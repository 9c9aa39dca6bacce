"""The twelve convolutions of the im2win papers, as cases: shapes, inputs, FLOPs, sizes by formula.

No padding, groups or dilation. Inputs come from a seed, so that every process makes the same ones. Knows no
engine and no time.

Source of the layers: Shuai Lu et al., 2023 (im2win on CPU and GPU), their code's shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from tensure.errors import InputError

from ._records import Case, Json, Scope

__all__ = ["LAYERS", "LAYOUTS", "Floats", "Problem", "conv_cases", "layer", "problem_of"]

Floats = npt.NDArray[np.float32]
_FLOAT_BYTES: Final = 4


@dataclass(frozen=True, slots=True)
class Problem:
    """One convolution of `n` images, without padding; sizes in elements."""

    layer: str
    n: int
    in_channels: int
    height: int
    width: int
    out_channels: int
    kernel: int
    stride: int

    @property
    def out_height(self) -> int:
        """Rows of the output."""
        return (self.height - self.kernel) // self.stride + 1

    @property
    def out_width(self) -> int:
        """Columns of the output."""
        return (self.width - self.kernel) // self.stride + 1

    @property
    def flops(self) -> int:
        """A multiply and an add count as two."""
        return 2 * int(np.prod(self.out_shape)) * self.in_channels * self.kernel**2

    @property
    def in_shape(self) -> tuple[int, int, int, int]:
        """NCHW."""
        return self.n, self.in_channels, self.height, self.width

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """OIHW."""
        return self.out_channels, self.in_channels, self.kernel, self.kernel

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        """NCHW."""
        return self.n, self.out_channels, self.out_height, self.out_width

    @property
    def tensor_bytes(self) -> int:
        """Input, weights and output as f32."""
        return _FLOAT_BYTES * sum(int(np.prod(s)) for s in (self.in_shape, self.weight_shape, self.out_shape))

    @property
    def im2win_bytes(self) -> int:
        """The whole im2win buffer: each output row keeps its `kernel` input rows, column by column."""
        return _FLOAT_BYTES * self.n * self.in_channels * self.out_height * self.width * self.kernel

    @property
    def im2col_bytes(self) -> int:
        """The whole im2col matrix: each output pixel keeps its own window."""
        return _FLOAT_BYTES * self.n * self.in_channels * self.out_height * self.out_width * self.kernel**2

    def inputs(self) -> tuple[Floats, Floats]:
        """Input NCHW and weights OIHW, uniform in [-0.5, 0.5), the same for the same problem."""
        made = np.random.default_rng([self.n, *self.weight_shape, self.height])
        x, w = (made.random(shape, np.float32) for shape in (self.in_shape, self.weight_shape))
        x -= np.float32(0.5)
        w -= np.float32(0.5)
        return x, w


#: in_channels, height = width, out_channels, kernel, stride
_SHAPES: Final = {
    "conv1": (3, 227, 96, 11, 4),
    "conv2": (3, 231, 96, 11, 4),
    "conv3": (3, 227, 64, 7, 2),
    "conv4": (64, 224, 64, 7, 2),
    "conv5": (96, 24, 256, 5, 1),
    "conv6": (256, 12, 512, 3, 1),
    "conv7": (3, 224, 64, 3, 1),
    "conv8": (64, 112, 128, 3, 1),
    "conv9": (64, 56, 64, 3, 1),
    "conv10": (128, 28, 128, 3, 1),
    "conv11": (256, 14, 256, 3, 1),
    "conv12": (512, 7, 512, 3, 1),
}
LAYERS: Final = tuple(_SHAPES)
LAYOUTS: Final = ("NCHW", "NHWC", "CHWN", "CHWN8")


def layer(name: str, n: int) -> Problem:
    """A layer of the papers for a batch of n images."""
    channels, size, out_channels, kernel, stride = _SHAPES[name]
    return Problem(name, n, channels, size, size, out_channels, kernel, stride)


def conv_cases(scope: Scope, layers: Sequence[str], **params: Json) -> list[Case]:
    """A case for each number of threads, batch and layer; `params` reach the engines as they are."""
    found: list[Case] = []
    for threads in scope.threads:
        for n in scope.batches:
            for name in layers:
                problem = layer(name, n)
                label = f"{name}, N={n}" + ("" if threads == 1 else f", {threads} threads")
                found.append(
                    Case(label, threads, float(problem.flops), {"problem": asdict(problem), **params})
                )
    return found


def problem_of(case: Json) -> Problem:
    """The problem of a case as it crossed to another process."""
    try:
        return Problem(**case["params"]["problem"])
    except (KeyError, TypeError):
        raise InputError(f"case {case!r:.80}", wanted="the parameters of a convolution") from None
