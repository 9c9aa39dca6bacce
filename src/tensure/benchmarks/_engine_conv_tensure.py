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
from tensure.planning import ConvProblem, MachineNumbers, TuningCache, choose_conv

from ._conv_cases import Floats, Problem
from ._conv_engine import ConvEngine
from ._records import Json

__all__ = ["setup"]

AUTO: Final = "auto"
_NCHW: Final = "NCHW"


class TensureConv:
    """`algorithm` and `layout` as `tensure.kernels` names them; `disabled` switches a part of it off."""

    def __init__(self, algorithm: str, layout: str, disabled: frozenset[str]) -> None:
        self._algorithm, self._layout, self._disabled = algorithm, layout, disabled
        self._chosen = (algorithm, layout)
        self._n = 0
        self._out = np.empty((0,), np.float32)
        self._facts: dict[str, Json] = {}

    def prepare(self, problem: Problem, x_NCHW: Floats, w_OIHW: Floats, threads: int) -> Callable[[], object]:
        """The first call brings its own workspace, so that its growth is seen; the later ones reuse one."""
        algorithm, layout = self._algorithm, self._layout
        conv = kernels.Conv(
            problem.in_channels,
            problem.out_channels,
            kernel=(problem.kernel, problem.kernel),
            stride=(problem.stride, problem.stride),
        )
        if algorithm == AUTO:
            # A short measurement of the most promising ways, as a network is planned; outside every figure.
            asked = ConvProblem(conv, problem.n, x_NCHW.shape[2], x_NCHW.shape[3])
            choice = choose_conv(
                asked, MachineNumbers(), threads=threads, measure=TuningCache(threads=threads).measure
            )
            algorithm, layout = choice.candidate.algorithm, choice.candidate.layout
        self._chosen = (algorithm, layout)
        switches = set(kernels.SWITCHES) - self._disabled if self._disabled else None
        packed = kernels.pack_conv2d(w_OIHW, conv, algorithm=algorithm, layout=layout, switches=switches)
        x = kernels.convert_layout(x_NCHW, _NCHW, layout, threads=threads)
        self._n = problem.n
        self._out = out = kernels.aligned_floats(packed.output_shape(x.shape))
        out.fill(np.nan)
        needed = int(packed.workspace_bytes(x.shape, threads))
        self._facts = {"weight_bytes": packed.nbytes, "workspace_bytes": needed, **self._formula(problem)}
        if self._algorithm == AUTO:
            # As one step of a planned run: what a network's layer is.
            images = x.size // (problem.in_channels * x_NCHW.shape[2] * x_NCHW.shape[3])
            steps = kernels.StepList([x.shape], out.nbytes)
            place = kernels.Slot(0)
            steps.add_conv(packed, (images, *x_NCHW.shape[2:]), kernels.Input(0), place)
            steps.fill(np.nan)
            self._out = steps.view(place, out.shape)
            return lambda: steps.run([x], threads)
        held: list[npt.NDArray[np.uint8]] = []

        def call() -> None:
            kernels.conv2d(x, packed, out=out, workspace=held[0] if held else None, threads=threads)
            if needed and not held:
                held.append(kernels.aligned_bytes(needed))

        return call

    def output(self) -> Floats:
        """From the layout back to NCHW."""
        layout = self._chosen[1]
        num_images = self._n if layout in ("CHWN8", "CHWN16") else None
        return kernels.convert_layout(self._out, layout, _NCHW, num_images=num_images)

    def release(self) -> None:
        """Everything goes with the call, but the output."""
        self._out = np.empty((0,), np.float32)

    def facts(self) -> Mapping[str, Json]:
        """Algorithm, layout, instruction set, and the memory that was asked for."""
        without = f", without {', '.join(sorted(self._disabled))}" if self._disabled else ""
        return {
            "computes": f"{' '.join(self._chosen)}{without}",
            "algorithm": self._chosen[0],
            "layout": self._chosen[1],
            "version": f"tensure {kernels.isa()}",
            **self._facts,
        }

    def _formula(self, problem: Problem) -> dict[str, Json]:
        algorithm, layout = self._chosen
        if layout in ("CHWN8", "CHWN16"):  # images come in eights or sixteens
            lanes = int(layout.removeprefix("CHWN"))
            problem = replace(problem, n=-(-problem.n // lanes) * lanes)
        known = {"direct": 0, "im2win_full": problem.im2win_bytes, "im2col": problem.im2col_bytes}
        return {"formula_bytes": known[algorithm]} if algorithm in known else {}


def setup(algorithm: str = AUTO, layout: str = "", *disabled: str) -> ConvEngine:
    """The engine for an algorithm, a layout and the switches that are off."""
    unknown = set(disabled) - set(kernels.SWITCHES)
    if unknown:
        raise InputError(f"switch {sorted(unknown)[0]!r}", wanted=", ".join(kernels.SWITCHES))
    return ConvEngine(TensureConv(algorithm, layout, frozenset(disabled)))
