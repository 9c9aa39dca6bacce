"""A test's machine for segments: every step in plain numpy, on one real block of memory.

Values live at the arena's offsets in the layouts the segment says, so that a buffer in a wrong place or a
wrong layout gives wrong numbers. Slow; knows no kernel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tensure.planning import (
    Activation,
    ActivationStep,
    AdaptivePoolStep,
    ConvStep,
    HostStep,
    LinearStep,
    MeanStep,
    MoveStep,
    PointwiseStep,
    PoolStep,
    Segment,
    SoftmaxStep,
    Step,
    Window,
    fold_norm,
)
from tensure.planning._steps import ORDERS
from tensure.program import evaluate_op, numpy_dtype, read_operand, run_step

Array = np.ndarray[Any, Any]


class SegmentMachine:
    """Runs one segment on arrays by name."""

    def __init__(self, segment: Segment, given: Mapping[str, Array]) -> None:
        self.segment = segment
        self.given = dict(given)
        for fold in segment.folds:
            self.given[fold.weight], self.given[fold.bias] = fold_norm(fold, given)
        self.memory = np.full(segment.arena.arena_bytes, 0xA5, np.uint8)

    def run(self) -> dict[str, Array]:
        """The outputs by Program name."""
        for step in self.segment.steps:
            self.step(step)
        return {name: self.view(value).copy() for name, value in self.segment.outputs}

    def view(self, name: str) -> Array:
        """A value as the Program shapes it, on the bytes where it lies."""
        stored = self.segment.values[name]
        if stored.place == "arena":
            lo = self.segment.arena.offsets[stored.buffer]
            raw = self.memory[lo : lo + stored.nbytes].view(numpy_dtype(stored.dtype))
        else:
            raw = np.ascontiguousarray(self.given[stored.buffer]).reshape(-1)
        if len(stored.shape) != 4:
            return raw.reshape(stored.shape)
        return raw.reshape(stored.stored_shape()).transpose(np.argsort(ORDERS[stored.layout]))

    def step(self, step: Step) -> None:
        if isinstance(step, HostStep):
            names = iter(step.inputs)
            operands = [read_operand(arg, lambda ref: self.view(next(names))) for arg in step.op.args]
            for out, result in zip(step.outs, run_step(step.op, operands), strict=True):
                self.view(out)[...] = result
            return
        self.view(step.out)[...] = self.compute(step).reshape(self.segment.values[step.out].shape)

    def compute(self, step: Step) -> Array:
        x = np.ascontiguousarray(self.view(step.reads()[0]))
        if isinstance(step, ConvStep):
            bias = None if step.bias is None else self.given[step.bias]
            attrs = {**_window(step.window), "groups": step.groups}
            attrs.pop("kernel_size")
            (out,) = evaluate_op("convolution", [x, self.given[step.weight], bias], attrs)
            out = out if step.residual is None else out + self.view(step.residual)
            return activated(out, step.activation)
        if isinstance(step, LinearStep):
            bias = None if step.bias is None else self.given[step.bias]
            (out,) = evaluate_op("linear", [x, self.given[step.weight], bias], {})
            return activated(out, step.activation)
        if isinstance(step, PoolStep):
            attrs = {**_window(step.window), "ceil_mode": step.ceil_mode}
            if step.kind == "avg":
                attrs.pop("dilation")
                attrs |= {"count_include_pad": step.count_padding, "divisor_override": step.divisor}
            return evaluate_op(f"{step.kind}_pool2d", [x], attrs)[0]
        if isinstance(step, AdaptivePoolStep):
            size = self.segment.values[step.out].shape[2:]
            return evaluate_op("adaptive_avg_pool2d", [x], {"output_size": size})[0]
        if isinstance(step, MeanStep):
            return np.asarray(x.mean(axis=(2, 3), dtype=np.float64), np.float32)
        if isinstance(step, PointwiseStep):
            b = self.view(step.b)
            return activated(x + b if step.kind == "add" else x * b, step.activation)
        if isinstance(step, ActivationStep):
            return activated(x, step.activation)
        if isinstance(step, SoftmaxStep):
            return evaluate_op("softmax", [x], {"dim": -1})[0]
        assert isinstance(step, MoveStep)
        assert self.segment.values[step.x].layout == step.source != step.target
        return x


def activated(x: Array, activation: Activation) -> Array:
    if activation.kind == "silu":
        return np.asarray(x / (1 + np.exp(-x.astype(np.float64))), np.float32)
    low, high = np.float32(activation.low), np.float32(activation.high)
    return np.minimum(np.maximum(x, low), high)


def _window(window: Window) -> dict[str, Any]:
    return {
        "kernel_size": window.kernel,
        "stride": window.stride,
        "padding": window.padding,
        "dilation": window.dilation,
    }
