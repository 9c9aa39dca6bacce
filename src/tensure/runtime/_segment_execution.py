"""A Program's entry as one planned run of kernels: what `tensure.planning` planned, with weights packed.

Knows how a planned step becomes a kernel step. Does not know how steps were chosen, nor torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from threading import Lock
from typing import Any, Final

import numpy as np

from tensure.errors import InputError, UnsupportedError
from tensure.kernels import Conv, ImageShape, Input, PackedConv, Slot, StepList, pack_conv2d
from tensure.planning import (
    ORDERS,
    Activation,
    ActivationStep,
    AdaptivePoolStep,
    ConvStep,
    LinearStep,
    MeanStep,
    MoveStep,
    PointwiseStep,
    PoolStep,
    Segment,
    SoftmaxStep,
    Step,
    fold_norm,
)

from ._tensors import Array

__all__ = ["KERNEL_ACTIVATIONS", "SegmentExecution"]

KERNEL_ACTIVATIONS: Final = frozenset({"relu", "relu6", "silu"})
"""What to plan a segment with: those that kernels apply."""

_Floats = np.ndarray[Any, np.dtype[np.float32]]


class SegmentExecution:
    """Runs one planned segment on this machine's processor.

    Args:
        segment: planned with KERNEL_ACTIVATIONS.
        weights: float32 arrays by name, as the Program declares them.
        algorithms: of convolutions, by the value they make; "direct" where nothing is said.

    Raises:
        UnsupportedError: a step that no kernel computes; the message names op and reason.
    """

    def __init__(
        self,
        segment: Segment,
        weights: Mapping[str, Array],
        *,
        algorithms: Mapping[str, str] | None = None,
    ) -> None:
        if left := segment.host_steps():
            raise UnsupportedError(
                f"no kernel for {left[0].op.op} ({left[0].reason}), and {len(left) - 1} more",
                place=left[0].out,
                wanted="an entry whose every step has a kernel",
            )
        _check_values(segment)
        self._segment = segment
        self._lock = Lock()
        self._algorithms = dict(algorithms or {})
        self._weights: dict[str, Array] = dict(weights)
        for fold in segment.folds:
            self._weights[fold.weight], self._weights[fold.bias] = fold_norm(fold, weights)
        # A weight that is an operand by itself is handed in with every run, as an input is.
        held = [name for name, stored in segment.values.items() if stored.place == "weight"]
        self._held = [self._float(name) for name in held]
        names = [*segment.inputs, *held]
        self._inputs = {name: index for index, name in enumerate(names)}
        shapes = [segment.values[name].shape for name in names]
        self._steps = StepList(shapes, segment.arena.arena_bytes)
        self.packed_bytes = 0
        for step in segment.steps:
            try:
                self._add(step)
            except InputError as error:
                # Right in themselves, but nothing a kernel runs: a window of padding alone.
                raise UnsupportedError(
                    f"a kernel refuses it: {error}", place=step.out, wanted="a step that a kernel runs"
                ) from None

    @property
    def arena_bytes(self) -> int:
        """Of the values between the steps."""
        return self._steps.arena_bytes

    def run(self, inputs: Mapping[str, _Floats], threads: int = 1) -> dict[str, _Floats]:
        """The outputs of one call, as arrays of their own.

        Raises:
            InputError: an input is missing or not as the entry declares it.
        """
        given, values = self._given(inputs), self._segment.values
        with self._lock:  # one arena: callers take turns
            self._steps.run([*given, *self._held], threads)
            return {
                name: self._steps.view(self._slot(held), values[held].shape).copy()
                for name, held in self._segment.outputs
            }

    def run_whole(self, inputs: Mapping[str, _Floats], threads: int = 1) -> Iterator[tuple[Step, _Floats]]:
        """One run, then every step with what it made, in the value's own order of dims.

        Only a segment whose buffers do not share bytes (`apart`) still holds them all after a run.
        """
        given = self._given(inputs)
        with self._lock:
            self._steps.run([*given, *self._held], threads)
            for step in self._segment.steps:
                stored = self._segment.values[step.out]
                order = ORDERS[stored.layout] if len(stored.shape) == 4 else tuple(range(len(stored.shape)))
                lying = self._steps.view(self._slot(step.out), tuple(stored.shape[dim] for dim in order))
                yield step, lying.transpose(np.argsort(order)).copy() if order else lying.copy()

    def time_steps(self, inputs: Mapping[str, _Floats], threads: int = 1) -> list[tuple[Step, float]]:
        """Every step of one run with the seconds it took."""
        given = self._given(inputs)
        with self._lock:
            seconds = self._steps.time_steps([*given, *self._held], threads)
        return list(zip(self._segment.steps, seconds, strict=True))

    def _given(self, inputs: Mapping[str, _Floats]) -> list[_Floats]:
        return [np.require(inputs[name], requirements=["C", "ALIGNED"]) for name in self._segment.inputs]

    # --- steps ---

    def _add(self, step: Step) -> None:
        if isinstance(step, ConvStep):
            self._conv(step)
        elif isinstance(step, LinearStep):
            self._linear(step)
        elif isinstance(step, PoolStep):
            window = step.window
            self._steps.add_pool(
                self._image(step.x), step.kind, self._size(step.out),
                self._place(step.x), self._slot(step.out),
                kernel=window.kernel, stride=window.stride, padding=window.padding, dilation=window.dilation,
                count_padding=step.count_padding, divisor=step.divisor,
            )  # fmt: skip
        elif isinstance(step, AdaptivePoolStep):
            image, out_size = self._image(step.x), self._size(step.out)
            self._steps.add_adaptive_pool(image, out_size, self._place(step.x), self._slot(step.out))
        elif isinstance(step, MeanStep):
            self._steps.add_mean(self._image(step.x), self._place(step.x), self._slot(step.out))
        elif isinstance(step, PointwiseStep):
            spread = self._segment.values[step.a].shape != self._segment.values[step.b].shape
            self._steps.add_pointwise(
                self._image(step.a), step.kind,
                self._place(step.a), self._place(step.b), self._slot(step.out),
                spread=spread, activation=_name(step.activation),
            )  # fmt: skip
        elif isinstance(step, ActivationStep):
            count = math.prod(self._segment.values[step.x].shape)
            self._steps.add_activation(
                count, _name(step.activation), self._place(step.x), self._slot(step.out)
            )
        elif isinstance(step, SoftmaxStep):
            *rows, columns = self._segment.values[step.x].shape
            self._steps.add_softmax(math.prod(rows), columns, self._place(step.x), self._slot(step.out))
        elif isinstance(step, MoveStep):
            self._steps.add_move(self._image(step.x), step.target, self._place(step.x), self._slot(step.out))

    def _conv(self, step: ConvStep) -> None:
        values = self._segment.values
        x, w_OIHW = values[step.x], self._float(step.weight)
        num_images, channels, height, width = x.shape
        window = step.window
        conv = Conv(
            channels,
            len(w_OIHW),
            window.kernel,
            window.stride,
            window.padding,
            window.dilation,
            step.groups,
        )
        packed = self._pack(w_OIHW, conv, self._algorithms.get(step.out, "direct"), x.layout)
        self._steps.add_conv(
            packed, (num_images, height, width), self._place(step.x), self._slot(step.out),
            bias=None if step.bias is None else self._float(step.bias),
            residual=None if step.residual is None else self._place(step.residual),
            activation=_name(step.activation),
        )  # fmt: skip

    def _linear(self, step: LinearStep) -> None:
        w_OI = self._float(step.weight)
        out_features, in_features = w_OI.shape
        rows = math.prod(self._segment.values[step.x].shape[:-1])
        conv = Conv(in_features, out_features, (1, 1))
        packed = self._pack(w_OI.reshape(out_features, in_features, 1, 1), conv, "direct", "NHWC")
        bias = None if step.bias is None else self._float(step.bias)
        self._steps.add_conv(
            packed, (1, 1, rows), self._place(step.x), self._slot(step.out), bias=bias,
            activation=_name(step.activation),
        )  # fmt: skip

    def _pack(self, w_OIHW: _Floats, conv: Conv, algorithm: str, layout: str) -> PackedConv:
        packed = pack_conv2d(w_OIHW, conv, algorithm, layout)
        self.packed_bytes += packed.nbytes
        return packed

    # --- values ---

    def _float(self, name: str) -> _Floats:
        found = np.require(self._weights[name], requirements=["C", "ALIGNED"])
        if found.dtype != np.float32:
            raise UnsupportedError(f"{name} is {found.dtype}", place=name, wanted="float32 weights")
        return found

    def _place(self, name: str) -> Input | Slot:
        buffer = self._segment.values[name].buffer
        return Input(self._inputs[buffer]) if buffer in self._inputs else self._slot(name)

    def _slot(self, name: str) -> Slot:
        return Slot(self._segment.arena.offsets[self._segment.values[name].buffer])

    def _image(self, name: str) -> ImageShape:
        """A value of four dims as images; any other as one row of one channel."""
        stored = self._segment.values[name]
        if len(stored.shape) != 4:
            return ImageShape("NCHW", 1, 1, 1, math.prod(stored.shape))
        return ImageShape(stored.layout, *stored.shape)

    def _size(self, name: str) -> tuple[int, int]:
        height, width = self._segment.values[name].shape[2:4]
        return height, width


def _check_values(segment: Segment) -> None:
    """Refuse, as having no kernel, what kernels do not hold.

    Only float32, at least one dim, at least one element, and outputs that a step makes.
    """
    for name, stored in segment.values.items():
        if stored.dtype != "f32" or not stored.shape or 0 in stored.shape:
            raise UnsupportedError(
                f"{stored.dtype}{list(stored.shape)}", place=name, wanted="float32 with at least one element"
            )
    for name, held in segment.outputs:
        if segment.values[held].place != "arena":
            raise UnsupportedError("an output that no step makes", place=name, wanted="one that a step makes")


def _name(activation: Activation) -> str:
    if activation.kind == "clamp":
        raise UnsupportedError(
            f"{activation} as a kernel's activation", wanted=", ".join(sorted(KERNEL_ACTIVATIONS))
        )
    return activation.kind
