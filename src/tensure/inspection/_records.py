"""What a recorded run is made of: tensors with their facts, steps in the order they ran, one trace.

Every change of bytes makes a new name, in-place writes too, so that a trace is single-assignment whatever the
code did. Knows no torch and no model; `to_json` is the contract of `tensure inspect --json`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from tensure.kernels import Survey

__all__ = ["SCHEMA", "Argument", "Origin", "Quantised", "Step", "TensorFacts", "Trace"]

SCHEMA: Final = "tensure.inspect/1"

Origin: TypeAlias = Literal["input", "weight", "state", "constant", "value"]
"""`value` was made by a step; the others were there before the first."""

Memory: TypeAlias = Literal["contiguous", "channels_last", "permuted", "broadcast", "gapped", "none"]
"""`permuted` fills its bytes in another order, `broadcast` repeats some, `gapped` leaves some out."""

Argument: TypeAlias = "bool | int | float | str | None | tuple[Argument, ...]"
"""A step's argument that is no tensor; dtypes and devices as text."""


@dataclass(frozen=True, slots=True)
class Quantised:
    """How integers stand for numbers: `(q - zero_point) * scale`.

    `saturated` is the share of elements at either end of the integer range, None where that is not known. A
    `scale` per channel is given by its least and greatest, with the `axis` it runs along.
    """

    scale: tuple[float, float]
    zero_point: tuple[int, int]
    axis: int | None
    saturated: float | None = None


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """One tensor as a step left it.

    Args:
        name: unique in its trace.
        origin: where it came from.
        step: index of the step that made it, -1 if it was there before.
        shape, strides: in elements; no strides for a layout that has none.
        storage: number of the memory it lies in; tensors with the same one share bytes.
        offset: of its first element in that memory, in elements.
        alias_of: the first tensor seen in that memory, if that is another one.
        in_place: whether the step wrote it over what an earlier name stood for.
        statistics: over its values; None when not asked for, or where values are not numbers.
        digest: 32 hex digits over values, dtype and shape; depends on position and sign, any NaN equals
            any other in its place.
    """

    name: str
    origin: Origin
    step: int
    shape: tuple[int, ...]
    dtype: str
    device: str = "cpu"
    layout: str = "strided"
    strides: tuple[int, ...] | None = None
    memory: Memory = "contiguous"
    storage: int = 0
    offset: int = 0
    alias_of: str | None = None
    in_place: bool = False
    nbytes: int = 0
    statistics: Survey | None = None
    digest: str | None = None
    quantised: Quantised | None = None

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def type(self) -> str:
        """As `f32[1,3,224,224]`."""
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True)
class Step:
    """One op as it ran.

    Args:
        op: ATen's name where ATen has the op; `add_` writes in place.
        module: path of the innermost module, "" outside any.
        source: `file.py:12`, the innermost line outside the framework.
        phase: `forward`, or `backward` while gradients flow.
        reads: names of the tensors it was given, in order.
        arguments: what else it was given, by name.
        outs: names of the tensors it made.
        wrote: names whose bytes it changed.
        live_bytes: of all tensors alive after it, weights and inputs included.
        seconds: that the op itself took.
    """

    index: int
    op: str
    reads: tuple[str, ...]
    outs: tuple[str, ...]
    module: str = ""
    source: str = ""
    phase: Literal["forward", "backward"] = "forward"
    arguments: tuple[tuple[str, Argument], ...] = ()
    wrote: tuple[str, ...] = ()
    live_bytes: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class Trace:
    """A recorded run: grows while it runs, complete once `outputs` is set."""

    name: str
    how: str = ""
    """What ran it, in words: `torch, eager`, `kernels, avx512`."""
    tensors: dict[str, TensorFacts] = field(default_factory=dict[str, TensorFacts])
    """Every name, leaves too, in the order they were seen."""
    steps: list[Step] = field(default_factory=list[Step])
    outputs: Mapping[str, str] = field(default_factory=dict[str, str])
    """What the run handed back, by its own name -> tensor name."""
    peak_bytes: int = 0
    notes: tuple[str, ...] = ()
    """What a reader must know: what was not looked at, and why."""

    def leaves(self) -> list[TensorFacts]:
        """The tensors that were there before the first step read them."""
        return [facts for facts in self.tensors.values() if facts.step < 0]

    def made(self, step: Step) -> list[TensorFacts]:
        """The facts of what a step made."""
        return [self.tensors[name] for name in step.outs]

    def maker(self, name: str) -> Step | None:
        """The step that made a tensor; None for a leaf."""
        at = self.tensors[name].step
        return self.steps[at] if at >= 0 else None

    def to_json(self) -> dict[str, Any]:
        """The trace as plain JSON values; numbers that JSON has no form for are the texts NaN, Infinity."""
        return {
            "schema": SCHEMA,
            "name": self.name,
            "how": self.how,
            "steps": [_plain(dataclasses.asdict(step)) for step in self.steps],
            "tensors": [_tensor(facts) for facts in self.tensors.values()],
            "outputs": dict(self.outputs),
            "peak_bytes": self.peak_bytes,
            "notes": list(self.notes),
        }

    def dumps(self) -> str:
        """`to_json` as text."""
        return json.dumps(self.to_json(), allow_nan=False)


def _tensor(facts: TensorFacts) -> dict[str, Any]:
    found = {field.name: getattr(facts, field.name) for field in dataclasses.fields(facts)}
    for key in ("statistics", "quantised"):
        found[key] = None if found[key] is None else dataclasses.asdict(found[key])
    if found["statistics"] is not None:
        found["statistics"].pop("digest", None)
    return {**_plain(found), "rank": facts.rank}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, str) or not isinstance(value, Sequence):
        if isinstance(value, float) and not math.isfinite(value):
            return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        return value
    return [_plain(item) for item in value]
