"""A Program with its weights in memory, running on this machine.

An entry without states whose every step has a kernel runs as one planned segment of our kernels; any other
runs through torch, op by op. Knows how to load weights once (each block is checked as it is read) and to run
an entry. Does not know bundles, receipts or what the numbers mean. torch is imported when it is first
needed, not before.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING, Final, TypeAlias

from tensure.errors import UnsupportedError
from tensure.planning import (
    LAYOUTS,
    ConvStep,
    Layout,
    Segment,
    candidates,
    conv_problem,
    kernels_noted,
    plan_segment,
)
from tensure.program import Program, Weights

from ._machine import num_threads
from ._segment_execution import KERNEL_ACTIVATIONS, SegmentExecution
from ._tensors import Array, to_array, to_tensor

if TYPE_CHECKING:
    import torch

    from tensure.bundle import Plan
    from tensure.host import Runner

__all__ = ["HostExecution", "States"]

MAX_SEGMENTS: Final = 8
"""Of one Program at different sizes, each with packed weights of its own."""

States: TypeAlias = "dict[str, torch.Tensor]"


class HostExecution:
    """Runs the entries of one Program on this machine's processor.

    Raises:
        DamageError: a block of the weights is not what was signed.
    """

    def __init__(self, program: Program, weights: Weights, plan: Plan | None = None) -> None:
        # libgomp's threads spin while they wait. Where others use the processors too, or a quota holds them
        # back, that made decoding ten times slower (0.70 s a token for 0.066, two threads on one free core).
        # It is read once, when torch is loaded; a choice of the caller's stands.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        self._program = program
        self._weights = weights
        self._plan = plan
        self._arrays: dict[str, Array] | None = None
        self._lock = Lock()
        self._segments: dict[tuple[str, tuple[tuple[str, int], ...]], SegmentExecution | None] = {}

    @cached_property
    def _runner(self) -> Runner:
        from tensure.host import Runner, load_weights

        if not any(self._segments.values()):
            self._arrays = None  # nothing else needs them decoded
        return Runner(self._program, load_weights(self._weights))

    def load(self) -> None:
        """Read every weight now, so that damage shows before the first run."""
        if self._arrays is None and "_runner" not in self.__dict__:
            for label, entry in self._program.entries.items():
                if not entry.params and self._segment(label, {}) is not None:
                    return
            _ = self._runner

    def run(self, entry: str, params: Mapping[str, int], inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs of one call; states start at zero and are dropped."""
        segment = self._segment(entry, params)
        if segment is not None:
            return dict(segment.run(inputs, num_threads()))
        outputs, _ = self.step(entry, params, inputs, self.zero_states(entry, params), in_place=True)
        return outputs

    def has_segment(self, entry: str, params: Mapping[str, int]) -> bool:
        """Whether a call like this runs through our kernels alone, and not through torch."""
        return self._segment(entry, params) is not None

    def _segment(self, entry: str, params: Mapping[str, int]) -> SegmentExecution | None:
        """The entry at these parameters as one segment, or None when a step of it has no kernel."""
        key = (entry, tuple(sorted(params.items())))
        with self._lock:
            if key in self._segments:
                found = self._segments.pop(key)
            else:
                found = self._planned(entry, params)
            self._segments[key] = found  # the last to be asked for is the last to go
            while len(self._segments) > MAX_SEGMENTS:
                self._segments.pop(next(iter(self._segments)))
            return found

    def _planned(self, entry: str, params: Mapping[str, int]) -> SegmentExecution | None:
        if self._program.entry(entry).states:
            return None
        try:
            segment, algorithms = self._chosen(entry, params)
            if segment.host_steps():
                return None  # before any weight is decoded
            if self._arrays is None:
                self._arrays = {name: stored.decode() for name, stored in self._weights.items()}
            return SegmentExecution(segment, self._arrays, algorithms=algorithms)
        except UnsupportedError:
            return None

    def _chosen(self, entry: str, params: Mapping[str, int]) -> tuple[Segment, dict[str, str]]:
        """The segment with the strict kernels that the plan notes; direct convolution in NHWC elsewhere.

        A note is advice: one that stands at a value no convolution makes, that does not fit the convolution,
        or that is not strict, is passed over.
        """
        noted = {} if self._plan is None else kernels_noted(self._plan, entry)
        plain = plan_segment(self._program, entry, params, activations=KERNEL_ACTIVATIONS)
        layouts: dict[str, Layout] = {}
        algorithms: dict[str, str] = {}
        for step in plain.steps:
            if not isinstance(step, ConvStep) or step.out not in noted:
                continue
            found = noted[step.out]
            fitting = candidates(conv_problem(plain, step), "strict", LAYOUTS)
            for layout in LAYOUTS:
                if found in fitting and found.layout == layout:
                    layouts[step.out], algorithms[step.out] = layout, found.algorithm
        if not layouts:
            return plain, {}
        segment = plan_segment(self._program, entry, params, layouts=layouts, activations=KERNEL_ACTIVATIONS)
        return segment, algorithms

    def step(
        self,
        entry: str,
        params: Mapping[str, int],
        inputs: Mapping[str, Array],
        states: States,
        *,
        in_place: bool,
    ) -> tuple[dict[str, Array], States]:
        """The outputs of one call and the states after it; with `in_place` the given states are used up."""
        import torch

        with torch.inference_mode():
            tensors = {name: to_tensor(array) for name, array in inputs.items()}
            outputs, after = self._runner.run(
                tensors, entry=entry, params=params, states=states, in_place=in_place
            )
            return {name: to_array(tensor) for name, tensor in outputs.items()}, dict(after)

    def zero_states(self, entry: str, params: Mapping[str, int]) -> States:
        """Fresh states, all zero."""
        import torch

        from tensure.host import zero_states

        with torch.inference_mode():
            return dict(zero_states(self._program, entry, params))
