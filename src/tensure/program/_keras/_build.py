"""A straight-line Program under construction: ops with their types worked out as they are written.

Knows the op table and names; knows nothing of Keras. Shapes are concrete from the first input on, so a
rule may ask for a size whenever it needs one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tensure.errors import LimitError

from .._dtypes import dtype_name
from .._fresh_names import FreshNames
from .._ops import infer_op, lookup
from .._records import Attrs, Entry, Name, Op, Program, Ref, TensorType, Value
from .._torch_ops import attributes
from .._weights import StoredTensor

__all__ = ["Builder", "Tensor"]

_MAX_OPS: Final = 8192
_MAX_CALLS: Final = 8192


@dataclass(frozen=True, slots=True)
class Tensor:
    """A value with its type."""

    name: Name
    type: TensorType

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes."""
        return self.type.shape

    @property
    def rank(self) -> int:
        """How many dims it has."""
        return len(self.type.shape)


Given = Tensor | int | float | None


@dataclass(slots=True)
class Builder:
    """What has been written so far."""

    names: FreshNames = field(default_factory=FreshNames)
    values: dict[str, Value] = field(default_factory=dict[str, Value])
    weights: dict[str, StoredTensor] = field(default_factory=dict[str, StoredTensor])
    inputs: list[Name] = field(default_factory=list[Name])
    body: list[Op] = field(default_factory=list[Op])
    _label: str = ""
    _calls: int = 0

    @contextmanager
    def inside(self, label: str) -> Iterator[None]:
        """Name and note what is written here after `label`, the path of a layer."""
        before, self._label = self._label, f"{self._label}.{label}" if self._label else label
        try:
            yield
        finally:
            self._label = before

    def input(self, wanted: str, found: TensorType) -> Tensor:
        """One more input of the entry."""
        name = Name(self.names.take(wanted))
        self.values[name.base] = Value(found.shape, found.dtype)
        self.inputs.append(name)
        return Tensor(name, found)

    def weight(self, label: str, array: npt.NDArray[Any]) -> Tensor:
        """A weight of the layer at hand, stored as it is if it lies in one piece."""
        dtype = dtype_name(array.dtype)
        name = Name(self.names.take(f"{self._label}.{label}"))
        whole = np.ascontiguousarray(array).reshape(array.shape)
        self.values[name.base] = Value(whole.shape, dtype, "weight")
        self.weights[name.base] = StoredTensor(whole.shape, dtype, whole.reshape(-1).view(np.uint8))
        return Tensor(name, TensorType(whole.shape, dtype))

    def op(self, kind: str, *args: Given, **attrs: Any) -> Tensor:
        """The only result of one more op.

        Raises:
            RecordError: the op cannot take these operands. LimitError: too many ops.
        """
        if len(self.body) >= _MAX_OPS:
            raise LimitError(f"over {_MAX_OPS} ops", wanted="fewer", next_step="Split the model.")
        given = dict(attributes(lookup(kind), attrs))
        (found,) = infer_op(kind, [arg.type if isinstance(arg, Tensor) else arg for arg in args], given)
        name = Name(self.names.take(self._label or kind))
        refs = tuple(Ref(arg.name) if isinstance(arg, Tensor) else arg for arg in args)
        self.body.append(Op(kind, refs, (name,), tuple(sorted(given.items())), self._note()))
        return Tensor(name, found)

    def count_call(self) -> None:
        """One more call of a layer: a few nested models, each called twice by the next, make millions.

        Raises:
            LimitError: too many.
        """
        self._calls += 1
        if self._calls > _MAX_CALLS:
            raise LimitError(
                f"over {_MAX_CALLS} calls of layers", wanted="fewer", next_step="Split the model."
            )

    def permute(self, x: Tensor, dims: Sequence[int]) -> Tensor:
        """Dims in another order."""
        return x if list(dims) == list(range(x.rank)) else self.op("permute", x, dims=tuple(dims))

    def view(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        """Another shape for the same elements."""
        return x if x.shape == tuple(shape) else self.op("view", x, size=tuple(shape))

    def program(self, outputs: Sequence[tuple[str, Tensor]]) -> Program:
        """All of it, with these values handed out under these names."""
        made: list[Name] = []
        for wanted, tensor in outputs:
            made.append(Name(self.names.take(wanted)))
            self.body.append(Op("copy", (Ref(tensor.name),), (made[-1],)))
        entry = Entry(tuple(self.inputs), tuple(self.body), tuple(made))
        return Program(values=self.values, entries={"run": entry})

    def _note(self) -> Attrs:
        # As plain as a name: what a file calls a layer goes no further.
        label = "".join(char if char.isascii() and char.isprintable() else "_" for char in self._label[:200])
        return (("module", label),) if label else ()
