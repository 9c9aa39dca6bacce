"""oneDNN's own convolution primitive: weights reordered beforehand, memories and scratchpad that stay.

`any` lets oneDNN choose the formats of its input and output as well, reordered before the timing; `nhwc`
gives it the layout that a network would hand it. Runs in a process of its own, with no torch in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from ._conv_cases import Floats, Problem
from ._conv_engine import ConvEngine
from ._onednn import ANY, NHWC, OneDnn
from ._records import Json

__all__ = ["setup"]


class OneDnnConv:
    """The primitive in one of the two formats."""

    def __init__(self, format_: str) -> None:
        self._format = format_
        self._dnn = OneDnn({"any": ANY, "nhwc": NHWC}[format_])
        self._shape: tuple[int, ...] = ()

    def prepare(self, problem: Problem, x_NCHW: Floats, w_OIHW: Floats, threads: int) -> Callable[[], object]:
        """The number of threads is part of what the primitive is generated for."""
        self._dnn.set_threads(threads)
        self._shape = problem.out_shape
        shapes = (problem.in_shape, problem.weight_shape, problem.out_shape)
        self._dnn.prepare(shapes, problem.stride, x_NCHW.ctypes.data, w_OIHW.ctypes.data)
        return self._dnn.convolve()

    def output(self) -> Floats:
        """Reordered into NCHW."""
        out = np.full(self._shape, np.nan, np.float32)
        self._dnn.read(self._shape, out.ctypes.data)
        return out

    def release(self) -> None:
        """Primitive and memories."""
        self._dnn.release()

    def facts(self) -> Mapping[str, Json]:
        """The scratchpad is stated by the primitive."""
        return {
            "computes": self._format,
            "version": f"oneDNN {self._dnn.version}",
            "weight_bytes": self._dnn.weight_bytes,
            "workspace_bytes": self._dnn.scratchpad_bytes,
        }


def setup(format_: str) -> ConvEngine:
    """The engine for `any` or `nhwc`."""
    return ConvEngine(OneDnnConv(format_))
