"""Our own engine as `bench net` times it: the module through from_torch, planned and run as one segment.

Reading, planning with short measurements and packing weights are outside the figure; the arena and the input
are reused, as a session does. Runs in a process of its own; torch makes the network and is idle afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version

import numpy as np
import torch

from tensure import kernels
from tensure.planning import TuningCache, plan_layouts
from tensure.program import Program
from tensure.program.from_torch import from_torch
from tensure.runtime import KERNEL_ACTIVATIONS, SegmentExecution

from ._net_engine import NetEngine, make_input
from ._networks import build_network
from ._records import Json
from ._text_engine import Floats

__all__ = ["setup"]


class SegmentNet:
    """A network as one segment, planned anew for each number of threads."""

    def __init__(self) -> None:
        self._program: Program | None = None
        self._weights: dict[str, Floats] = {}
        self._execution: SegmentExecution | None = None
        self._threads = 0
        self._input_name = ""
        self._x = np.empty((0,), np.float32)
        self._outputs: dict[str, Floats] = {}

    def load(self, network: str) -> None:
        """Batch norm is folded by from_torch."""
        self._execution = None
        model = from_torch(build_network(network), (torch.from_numpy(make_input()),), name=network)
        self._program = model.program
        self._weights = {
            name: np.asarray(stored.decode(), np.float32) for name, stored in model.weights.items()
        }
        self._input_name = str(model.program.entry().inputs[0])

    def set_input(self, x: Floats, threads: int) -> None:
        """NCHW, as the Program has it."""
        assert self._program is not None
        self._x = kernels.aligned_floats(x.shape)
        self._x[:] = x
        if self._execution is not None and threads == self._threads:
            return
        torch.set_num_threads(threads)
        known = TuningCache(threads=threads)
        planned = plan_layouts(
            self._program,
            threads=threads,
            measure=known.measure,
            move_cost=known.move,
            activations=KERNEL_ACTIVATIONS,
        )
        self._execution = SegmentExecution(planned.segment, self._weights, algorithms=planned.algorithms)
        self._threads = threads

    def infer(self) -> None:
        """One run of the segment."""
        assert self._execution is not None
        self._outputs = self._execution.run({self._input_name: self._x}, self._threads)

    def output(self) -> Floats:
        """The only output."""
        (out,) = self._outputs.values()
        return out

    def facts(self) -> Mapping[str, Json]:
        """f32 throughout."""
        execution = self._execution
        return {
            "weight_bytes": 0 if execution is None else execution.packed_bytes,
            "computes": "f32",
            "version": f"{version('tensure')} (kernels {kernels.isa()})",
            "through": "one segment",
            "arena_bytes": 0 if execution is None else execution.arena_bytes,
        }


def setup() -> NetEngine:
    """The engine; it takes no arguments."""
    return NetEngine(SegmentNet())
