"""The records of a planned segment: fused steps, where each value lies, weights to make beforehand.

A step names Program values and weights; what a value's bytes are (layout, buffer) is in `Segment.values`, and
where a buffer begins is in `Segment.arena`. Knows no kernel, no torch and no Program beyond the op of a
HostStep. How steps come about is in `_segments.py`, how buffers are placed in `_arena.py`.

    N batch   C channels   H height   W width
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np

from tensure.program import Op, item_bytes

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Layout: TypeAlias = Literal["NCHW", "NHWC", "CHWN"]

ORDERS: Final[Mapping[Layout, tuple[int, ...]]] = {
    "NCHW": (0, 1, 2, 3),
    "NHWC": (0, 2, 3, 1),
    "CHWN": (1, 2, 3, 0),
}
"""Dims of a 4-D value as stored, outermost first. A value of another rank is row-major: NCHW here."""


def as_layouts(dims: Sequence[int]) -> list[tuple[Layout, Layout]]:
    """Layouts of operand and result under which a permutation of four dims keeps every byte in place.

    Result dim i is operand dim dims[i].
    """
    return [
        (source, target)
        for source in ORDERS
        for target in ORDERS
        if tuple(dims[dim] for dim in ORDERS[target]) == ORDERS[source]
    ]


@dataclass(frozen=True, slots=True)
class Activation:
    """What is applied to each element last: none, relu, relu6, silu, or clamp to low..high."""

    kind: Literal["none", "relu", "relu6", "silu", "clamp"] = "none"
    low: float = -math.inf
    high: float = math.inf

    def __str__(self) -> str:
        return f"clamp[{self.low:g},{self.high:g}]" if self.kind == "clamp" else self.kind


NO_ACTIVATION: Final = Activation()
RELU: Final = Activation("relu", 0.0)
RELU6: Final = Activation("relu6", 0.0, 6.0)
SILU: Final = Activation("silu")


@dataclass(frozen=True, slots=True)
class Window:
    """How a kernel walks over an image: all as (height, width), padding as (top, bottom, left, right)."""

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)

    def __str__(self) -> str:
        parts = ["x".join(map(str, self.kernel))]
        if self.stride != (1, 1):
            parts.append(f"stride {self.stride[0]},{self.stride[1]}")
        if any(self.padding):
            parts.append(f"padding {','.join(map(str, self.padding))}")
        if self.dilation != (1, 1):
            parts.append(f"dilation {self.dilation[0]},{self.dilation[1]}")
        return " ".join(parts)


@dataclass(frozen=True, slots=True)
class ConvStep:
    """out = activation(conv(x, weight) + bias + residual); x, residual and out share one layout."""

    out: str
    x: str
    weight: str
    bias: str | None
    residual: str | None
    activation: Activation
    window: Window
    groups: int
    depthwise: bool
    """One input channel for each group."""

    def reads(self) -> tuple[str, ...]:
        """Values, weights not among them."""
        return (self.x,) if self.residual is None else (self.x, self.residual)


@dataclass(frozen=True, slots=True)
class LinearStep:
    """out = activation(x @ weight.T + bias), x row-major with all dims but the last as rows."""

    out: str
    x: str
    weight: str
    bias: str | None
    activation: Activation

    def reads(self) -> tuple[str, ...]:
        """Values, weights not among them."""
        return (self.x,)


@dataclass(frozen=True, slots=True)
class PoolStep:
    """The largest or the mean of each window; the output's size is that of `Segment.values[out]`.

    With `ceil_mode` the last window may hang over the end. A mean divides by `divisor`, or else by the
    elements of the window, its padding counted or not.
    """

    out: str
    x: str
    kind: Literal["max", "avg"]
    window: Window
    ceil_mode: bool = False
    count_padding: bool = True
    divisor: int | None = None

    def reads(self) -> tuple[str, ...]:
        """One value."""
        return (self.x,)


@dataclass(frozen=True, slots=True)
class AdaptivePoolStep:
    """Means over windows that cover the image, as many as the output has: floor(i*in/out)..ceil(...)."""

    out: str
    x: str

    def reads(self) -> tuple[str, ...]:
        """One value."""
        return (self.x,)


@dataclass(frozen=True, slots=True)
class MeanStep:
    """The mean of each channel over the whole image; the output is [N, C] or [N, C, 1, 1]."""

    out: str
    x: str

    def reads(self) -> tuple[str, ...]:
        """One value."""
        return (self.x,)


@dataclass(frozen=True, slots=True)
class PointwiseStep:
    """out = activation(a op b): equal shapes, or b [N, C, 1, 1] spread over a's image (an SE scale)."""

    out: str
    kind: Literal["add", "mul"]
    a: str
    b: str
    activation: Activation

    def reads(self) -> tuple[str, ...]:
        """Both operands."""
        return (self.a, self.b)


@dataclass(frozen=True, slots=True)
class ActivationStep:
    """An activation of its own, for a value that others read before it."""

    out: str
    x: str
    activation: Activation

    def reads(self) -> tuple[str, ...]:
        """One value."""
        return (self.x,)


@dataclass(frozen=True, slots=True)
class SoftmaxStep:
    """exp(x) over its sum along the last dim, row-major."""

    out: str
    x: str

    def reads(self) -> tuple[str, ...]:
        """One value."""
        return (self.x,)


@dataclass(frozen=True, slots=True)
class MoveStep:
    """The same values in another layout."""

    out: str
    x: str
    source: Layout
    target: Layout

    def reads(self) -> tuple[str, ...]:
        """One value."""
        return (self.x,)


@dataclass(frozen=True, slots=True)
class HostStep:
    """An op nothing here fuses or no kernel computes, left to the host, and why. Operands are row-major.

    `inputs` are the values it reads, in the order of `op.reads()`; boxes and joins are the host's to take.
    """

    outs: tuple[str, ...]
    inputs: tuple[str, ...]
    op: Op
    reason: str

    @property
    def out(self) -> str:
        """The first result."""
        return self.outs[0] if self.outs else ""

    def reads(self) -> tuple[str, ...]:
        """Every value among the operands."""
        return self.inputs


Step: TypeAlias = (
    ConvStep
    | LinearStep
    | PoolStep
    | AdaptivePoolStep
    | MeanStep
    | PointwiseStep
    | ActivationStep
    | SoftmaxStep
    | MoveStep
    | HostStep
)


def writes(step: Step) -> tuple[str, ...]:
    """The values a step makes."""
    return step.outs if isinstance(step, HostStep) else (step.out,)


@dataclass(frozen=True, slots=True)
class Stored:
    """One value as it lies in memory: several values may share a buffer when their bytes are the same.

    Args:
        shape: as the Program has it, whatever the layout.
        dtype: of an element.
        layout: the order of the dims in memory.
        buffer: the name of the value that owns the bytes.
        place: "arena" for what steps make; inputs and weights are the caller's.
    """

    shape: tuple[int, ...]
    dtype: str
    layout: Layout
    buffer: str
    place: Literal["input", "weight", "arena"]

    @property
    def nbytes(self) -> int:
        """Whatever the layout."""
        return math.prod(self.shape) * item_bytes(self.dtype)

    def stored_shape(self) -> tuple[int, ...]:
        """The sizes in memory order."""
        return tuple(self.shape[dim] for dim in ORDERS[self.layout]) if len(self.shape) == 4 else self.shape


@dataclass(frozen=True, slots=True)
class FoldedNorm:
    """A weight and a bias to make once, with a batch norm folded in; `fold_norm` makes them.

    weight' = weight * s and bias' = (bias - mean) * s + shift for each output channel, with
    s = scale / sqrt(var + eps), computed in float64 and rounded once to f32. The result of the segment is
    therefore not bit-equal to computing the norm by itself.
    """

    weight: str
    bias: str
    from_weight: str
    from_bias: str | None
    scale: str | None
    shift: str | None
    mean: str
    var: str
    eps: float


def fold_norm(fold: FoldedNorm, arrays: Mapping[str, Array]) -> tuple[Array, Array]:
    """The f32 weight and bias of a fold from the Program's arrays."""

    def read(name: str | None, missing: float) -> Any:
        return missing if name is None else arrays[name].astype(np.float64)

    w = read(fold.from_weight, 0.0)
    s = read(fold.scale, 1.0) / np.sqrt(read(fold.var, 1.0) + fold.eps)
    bias = (read(fold.from_bias, 0.0) - read(fold.mean, 0.0)) * s + read(fold.shift, 0.0)
    weight = w * s.reshape(-1, *[1] * (w.ndim - 1))
    return np.ascontiguousarray(weight, np.float32), np.ascontiguousarray(bias, np.float32)


@dataclass(frozen=True, slots=True)
class Arena:
    """Where each buffer begins in one block of memory.

    Args:
        offsets: in bytes, by buffer.
        arena_bytes: the size of the block.
        bound_bytes: what is live at the worst step: no placing can need less.
    """

    offsets: Mapping[str, int]
    arena_bytes: int
    bound_bytes: int


@dataclass(frozen=True, slots=True)
class Segment:
    """One entry of a Program as a straight list of fused steps over one arena.

    Args:
        steps: in order.
        values: every value that is an input or that a step reads or makes, by name.
        inputs: handed in, row-major, in the entry's order.
        outputs: each Program output with the value that holds it, row-major; in the arena until the end.
        folds: weights to make before the first run.
        arena: where the buffers lie.
        num_ops: of the Program's entry, before fusing.
    """

    steps: tuple[Step, ...]
    values: Mapping[str, Stored]
    inputs: tuple[str, ...]
    outputs: tuple[tuple[str, str], ...]
    folds: tuple[FoldedNorm, ...]
    arena: Arena
    num_ops: int

    def counts(self) -> dict[str, int]:
        """How many steps of each kind, the most frequent first."""
        return dict(Counter(_kind(step) for step in self.steps).most_common())

    def host_steps(self) -> tuple[HostStep, ...]:
        """What is left to the host."""
        return tuple(step for step in self.steps if isinstance(step, HostStep))

    def explain(self) -> str:
        """The plan in words: a line for each step, then what is left to the host and what is folded."""
        counts = ", ".join(f"{count} {kind}" for kind, count in self.counts().items()) or "none"
        made = {item.buffer: item.nbytes for item in self.values.values() if item.place == "arena"}
        arena = self.arena
        lines = [f"{self.num_ops} ops as {len(self.steps)} steps: {counts}"]
        lines.append(
            f"arena {arena.arena_bytes} bytes for values of {sum(made.values())}; {arena.bound_bytes} at once"
        )
        for at, step in enumerate(self.steps):
            lines.append(f"{at:4} {self._line(step)}")
        lines += [f"host: {step.out} = {step.op.op}: {step.reason}" for step in self.host_steps()]
        if self.folds:
            lines.append(
                f"{len(self.folds)} batch norms folded into weights in float64, rounded once to f32:"
            )
            lines.append("  results are not bit-equal to computing the norms by themselves")
            lines += [f"  {fold.weight} from {fold.from_weight} and {fold.mean}" for fold in self.folds]
        return "\n".join(lines) + "\n"

    def _line(self, step: Step) -> str:
        out = self.values[step.out] if step.out else None
        where = "" if out is None else f"  # {out.dtype}{list(out.shape)} {out.layout}"
        if out is not None and out.buffer in self.arena.offsets:
            where += f" at {self.arena.offsets[out.buffer]}"
        return f"{step.out} = {_formula(step)}{where}"


def _kind(step: Step) -> str:
    if isinstance(step, ConvStep):
        return "depthwise conv" if step.depthwise else "conv"
    if isinstance(step, PoolStep):
        return f"{step.kind} pool"
    if isinstance(step, PointwiseStep):
        return step.kind
    return type(step).__name__.removesuffix("Step").lower().replace("adaptivepool", "adaptive pool")


def _formula(step: Step) -> str:
    if isinstance(step, ConvStep):
        inner = f"{_kind(step)} {step.window}({step.x}, {step.weight})"
        if step.groups > 1 and not step.depthwise:
            inner = f"{inner} in {step.groups} groups"
        inner += "".join(f" + {term}" for term in (step.bias, step.residual) if term is not None)
        return _activated(inner, step.activation)
    if isinstance(step, LinearStep):
        inner = f"linear({step.x}, {step.weight})" + (f" + {step.bias}" if step.bias else "")
        return _activated(inner, step.activation)
    if isinstance(step, PointwiseStep):
        return _activated(f"{step.a} {'+' if step.kind == 'add' else '*'} {step.b}", step.activation)
    if isinstance(step, ActivationStep):
        return f"{step.activation}({step.x})"
    if isinstance(step, PoolStep):
        return f"{_kind(step)} {step.window}({step.x})"
    if isinstance(step, MoveStep):
        return f"{step.x} from {step.source} to {step.target}"
    if isinstance(step, HostStep):
        return f"host {step.op.op}({', '.join(step.inputs)})"
    return f"{_kind(step)}({step.x})"


def _activated(inner: str, activation: Activation) -> str:
    return inner if activation.kind == "none" else f"{activation}({inner})"
