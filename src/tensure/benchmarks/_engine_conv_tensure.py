"""Our own convolution: one algorithm in one layout, or what Tensure chooses itself (`auto`).

Weights packed, input in the layout, output and workspace allocated beforehand: as a planned network runs it.
Runs in a process of its own, with no torch in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from tensure import kernels
from tensure.errors import InputError

from ._conv_cases import Floats, Problem
from ._conv_engine import ConvEngine, poisoned
from ._records import Json

__all__ = ["setup"]

AUTO: Final = ("direct", "NHWC")
"""What `auto` stands for until layers are measured and chosen one by one."""
_NCHW: Final = "NCHW"
_ALIGNMENT: Final = 64
"""What `conv2d` asks of a workspace."""


class TensureConv:
    """`algorithm` and `layout` as `tensure.kernels` names them; `disabled` switches a part of it off."""

    def __init__(self, algorithm: str, layout: str, disabled: frozenset[str]) -> None:
        self._algorithm, self._layout, self._disabled = algorithm, layout, disabled
        self._n = 0
        self._out = np.empty((0,), np.float32)
        self._facts: dict[str, Json] = {}

    def prepare(self, problem: Problem, x_NCHW: Floats, w_OIHW: Floats, threads: int) -> Callable[[], object]:
        """The first call brings its own workspace, so that its growth is seen; the later ones reuse one."""
        conv = kernels.Conv(
            problem.in_channels,
            problem.out_channels,
            kernel=(problem.kernel, problem.kernel),
            stride=(problem.stride, problem.stride),
        )
        switches = set(kernels.SWITCHES) - self._disabled if self._disabled else None
        packed = kernels.pack_conv2d(
            w_OIHW, conv, algorithm=self._algorithm, layout=self._layout, switches=switches
        )
        x = kernels.convert_layout(x_NCHW, _NCHW, self._layout, threads=threads)
        self._n = problem.n
        self._out = out = poisoned(packed.output_shape(x.shape))
        needed = int(packed.workspace_bytes(x.shape, threads))
        self._facts = {"weight_bytes": packed.nbytes, "workspace_bytes": needed, **self._formula(problem)}
        held: list[npt.NDArray[np.uint8]] = []

        def call() -> None:
            kernels.conv2d(x, packed, out=out, workspace=held[0] if held else None, threads=threads)
            if needed and not held:
                held.append(_aligned(needed))

        return call

    def output(self) -> Floats:
        """From the layout back to NCHW."""
        num_images = self._n if self._layout.startswith("CHWN") and self._layout != "CHWN" else None
        return kernels.convert_layout(self._out, self._layout, _NCHW, num_images=num_images)

    def release(self) -> None:
        """Everything goes with the call, but the output."""
        self._out = np.empty((0,), np.float32)

    def facts(self) -> Mapping[str, Json]:
        """Algorithm, layout, instruction set, and the memory that was asked for."""
        without = f", without {', '.join(sorted(self._disabled))}" if self._disabled else ""
        return {
            "computes": f"{self._algorithm} {self._layout}{without}",
            "algorithm": self._algorithm,
            "layout": self._layout,
            "version": f"tensure {kernels.isa()}",
            **self._facts,
        }

    def _formula(self, problem: Problem) -> dict[str, Json]:
        if self._layout == "CHWN8":  # images come in eights
            problem = replace(problem, n=-(-problem.n // 8) * 8)
        known = {"direct": 0, "im2win_full": problem.im2win_bytes, "im2col": problem.im2col_bytes}
        return {"formula_bytes": known[self._algorithm]} if self._algorithm in known else {}


def _aligned(num_bytes: int) -> npt.NDArray[np.uint8]:
    raw = np.empty(num_bytes + _ALIGNMENT, np.uint8)
    begin = -raw.ctypes.data % _ALIGNMENT
    return raw[begin : begin + num_bytes]


def setup(algorithm: str = "auto", layout: str = "", *disabled: str) -> ConvEngine:
    """The engine for an algorithm, a layout and the switches that are off."""
    if algorithm == "auto":
        algorithm, layout = AUTO
    unknown = set(disabled) - set(kernels.SWITCHES)
    if unknown:
        raise InputError(f"switch {sorted(unknown)[0]!r}", wanted=", ".join(kernels.SWITCHES))
    return ConvEngine(TensureConv(algorithm, layout, frozenset(disabled)))
