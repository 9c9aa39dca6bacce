"""What a translation is written with: tensors known or not, and the list of ops they come from.

A tensor is either known while the file is read (a constant, a shape, arithmetic on these) or a value of the
Program being written. `Builder.op` says one listed op: over known tensors it is computed at once by the op
table's own semantics, so that arithmetic on shapes vanishes; otherwise it becomes a step. Known tensors that
a step reads become weights.

Does not know ONNX ops (the families beside it) nor graphs (`_graph.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import numpy as np

from tensure.errors import FormatError, LimitError, UnsupportedError

from .._dtypes import FLOATS, dtype_name, numpy_dtype
from .._fresh_names import FreshNames
from .._ops import OpDef, evaluate_op, infer_op, lookup
from .._records import Attrs, Name, Op, Ref, TensorType, Value
from .._torch_ops import attributes
from .._weights import StoredTensor
from ._table import Attributes

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Number: TypeAlias = bool | int | float

MAX_OPS: Final = 1 << 18
"""Steps one file may expand to."""
_FOLD_ELEMENTS: Final = 1 << 16
"""A known tensor larger than this is not computed with while reading: it stays a weight as stored."""
_FOLD_TOTAL: Final = 1 << 26
"""Elements computed while reading one file."""
_FOLDED_FAMILIES: Final = ("_elementwise", "_activations", "_shapes", "_indexing", "_reductions")
_MOST_ENTRIES: Final = 1 << 16
_MOST_ELEMENTS: Final = 1 << 24
"""Of one array whose size a declared dim decides: a file of 100 bytes can declare 2^40."""
_MOST_BYTES: Final = 1 << 30
"""Of all such arrays of one file."""
CARRIERS: Final = {"u16": (16, "i32"), "u32": (32, "i64")}
"""Unsigned dtypes no Program has, held in the next wider signed one: bits, and the dtype that holds them."""
_LEAVES_RANGE: Final = frozenset(
    {
        "add",
        "sub",
        "rsub",
        "mul",
        "neg",
        "square",
        "pow",
        "bitwise_not",
        "bitwise_left_shift",
        "sum",
        "cumsum",
        "prod",
    }
)
_UNFIT_FOR_NUMBERS: Final = frozenset({"where", "masked_fill", "pow"})
_LARGEST_NUMBER: Final = 1 << 61


@dataclass(slots=True, eq=False)
class Tensor:
    """One tensor on its way into a Program: its type, its values if known, and where it lies if anywhere."""

    type: TensorType
    array: Array | None = None
    stored: StoredTensor | None = None
    ref: Ref | None = None
    label: str = ""
    bits: int = 0
    """16 or 32 where the file says uint16 or uint32: the values stay below 2^bits."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes, all known."""
        return self.type.shape

    @property
    def dtype(self) -> str:
        """Our name of the dtype."""
        return self.type.dtype

    @property
    def rank(self) -> int:
        """Number of dims."""
        return len(self.type.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.type.shape)

    @property
    def is_known(self) -> bool:
        """Whether the values are there while the file is read."""
        return self.array is not None or self.stored is not None

    def values(self) -> Array:
        """The values of a known tensor."""
        if self.array is None:
            assert self.stored is not None
            self.array = np.asarray(self.stored.decode())
        return self.array


Held: TypeAlias = "Tensor | tuple[Tensor, ...] | None"
"""What a name of a graph stands for: a tensor, a sequence of them, or nothing (an optional left out)."""


@dataclass(slots=True)
class Builder:
    """The Program being written, and the node in hand."""

    names: FreshNames
    values: dict[str, Value] = field(default_factory=dict[str, Value])
    weights: dict[str, StoredTensor] = field(default_factory=dict[str, StoredTensor])
    body: list[Op] = field(default_factory=list[Op])
    version: int = 0
    """Of the domain of the node in hand."""
    num_outs: int = 1
    """Results the node in hand names, up to the last one that is read."""
    wanted: str = "value"
    """What the node's first result is called in the file."""
    note: Attrs = ()
    run_graph: Callable[[Any, Sequence[Held]], list[Held]] | None = None
    """Runs a subgraph of the node in hand on these inputs, in its scope."""
    folded: int = 0
    roomed: int = 0
    """Bytes of arrays whose size the file declares without storing them."""
    _shared: dict[tuple[TensorType, bytes], Ref] = field(default_factory=dict[tuple[TensorType, bytes], Ref])

    def room(self, sizes: Sequence[int], what: str) -> None:
        """Ask for an array of 8-byte elements before it is made: the sizes are what the file declares.

        Raises:
            LimitError: too many elements, or too many bytes with all that was asked for before.
        """
        elements = math.prod(sizes)
        if elements > _MOST_ELEMENTS:
            raise LimitError(f"{what} of {elements} elements", wanted=f"at most {_MOST_ELEMENTS}")
        self.roomed += 8 * elements
        if self.roomed > _MOST_BYTES:
            raise LimitError(
                f"{what} of {elements} elements, {self.roomed} bytes with those before",
                wanted=f"at most {_MOST_BYTES} bytes in one file",
            )

    # --- tensors ---

    def known(self, values: Any, dtype: str | None = None) -> Tensor:
        """A tensor of these values."""
        array = np.asarray(values) if dtype is None else np.asarray(values, numpy_dtype(dtype))
        return Tensor(TensorType(array.shape, dtype_name(array.dtype)), array)

    def full(self, shape: Sequence[int], value: Number, dtype: str) -> Tensor:
        """One value everywhere, known where small."""
        number = bool(value) if dtype == "bool" else float(value) if dtype in FLOATS else int(value)
        return self.op("full", size=tuple(shape), fill_value=number, dtype=dtype)

    def const(self, x: Tensor, what: str) -> Array:
        """The values of a tensor that must be known while the file is read.

        Raises:
            UnsupportedError: they come from the model's inputs.
        """
        if not x.is_known:
            raise UnsupportedError(
                f"{what} depends on the model's inputs",
                wanted="a value known when the file is read",
                next_step="If it is a graph input, give its value by inputs={name: array}",
            )
        return x.values()

    def ints(self, x: Tensor, what: str) -> tuple[int, ...]:
        """Known integers of a tensor of rank 0 or 1."""
        if x.dtype in FLOATS or x.dtype == "bool" or x.rank > 1 or x.size > _MOST_ENTRIES:
            raise FormatError(f"{what} is {x.type}", wanted="a list of integers")
        return tuple(int(item) for item in self.const(x, what).reshape(-1))

    def number(self, x: Tensor, what: str) -> Number:
        """The one known value of a tensor."""
        if x.size != 1:
            raise FormatError(f"{what} of shape {list(x.shape)}", wanted="one element")
        found: Number = self.const(x, what).reshape(-1)[0].astype(object if x.dtype != "bf16" else np.float64)
        return found if isinstance(found, bool | int) else float(found)

    # --- steps ---

    def op(self, kind: str, *args: Any, **attrs: Any) -> Tensor:
        """The one result of a listed op; operands are Tensors, numbers or None."""
        (found,) = self.many(kind, *args, **attrs)
        return found

    def many(self, kind: str, *args: Any, **attrs: Any) -> tuple[Tensor, ...]:
        """All results of a listed op; what may leave the range of an unsigned dtype is wrapped into it."""
        made = self._plain(kind, args, attrs)
        bits = max((arg.bits for arg in args if isinstance(arg, Tensor)), default=0)
        if not bits:
            return made
        carrier = "i32" if bits == 16 else "i64"
        if kind in _LEAVES_RANGE:
            made = self._plain("remainder", (*made, 1 << bits), {})
        for found in made:
            found.bits = bits if found.dtype == carrier and kind != "_to_copy" else 0
        return made

    def _plain(self, kind: str, args: Sequence[Any], attrs: dict[str, Any]) -> tuple[Tensor, ...]:
        definition = lookup(kind)
        operands = [arg.type if isinstance(arg, Tensor) else arg for arg in args]
        attrs = {key: _attr(value) for key, value in attrs.items()}
        types = infer_op(kind, operands, attrs)
        if self._folds(definition, args, types):
            self.folded += sum(math.prod(found.shape) for found in types)
            plain = [arg.values() if isinstance(arg, Tensor) else arg for arg in args]
            return tuple(self.known(result) for result in evaluate_op(kind, plain, attrs))
        if len(self.body) >= MAX_OPS:
            raise LimitError(f"over {MAX_OPS} steps", wanted="a smaller model or fewer repetitions")
        outs = tuple(Name(self.names.take(self.wanted)) for _ in types)
        self.body.append(
            Op(
                kind,
                tuple(self._operand(definition, at, args) for at in range(len(args))),
                outs,
                attributes(definition, attrs),
                self.note,
            )
        )
        return tuple(Tensor(found, ref=Ref(out)) for found, out in zip(types, outs, strict=True))

    def _folds(self, definition: OpDef, args: Sequence[Any], types: Sequence[TensorType]) -> bool:
        made = sum(math.prod(found.shape) for found in types)
        return (
            definition.family.endswith(_FOLDED_FAMILIES)
            and made <= _FOLD_ELEMENTS
            and self.folded + made <= _FOLD_TOTAL
            and all(arg.is_known and arg.size <= _FOLD_ELEMENTS for arg in args if isinstance(arg, Tensor))
        )

    def _operand(self, definition: OpDef, at: int, args: Sequence[Any]) -> Any:
        arg = args[at]
        if not isinstance(arg, Tensor):
            return arg
        spec = definition.operands[min(at, len(definition.operands) - 1)]
        if spec.number and arg.is_known and arg.size == 1 and definition.name not in _UNFIT_FOR_NUMBERS:
            others = [item for item in args if isinstance(item, Tensor) and not item.is_known]
            fits = any(item.dtype == arg.dtype and item.rank >= max(arg.rank, 1) for item in others)
            value = self.number(arg, "an operand") if fits else None
            if value is not None and abs(value) < _LARGEST_NUMBER:
                return value
        return self.ref(arg)

    def ref(self, x: Tensor) -> Ref:
        """Where a tensor lies in the Program; a known one becomes a weight."""
        if x.ref is None:
            x.ref = self._weight(x)
        return x.ref

    def _weight(self, x: Tensor) -> Ref:
        stored = x.stored
        if stored is None:
            stored = StoredTensor.from_array(np.ascontiguousarray(x.values()).reshape(x.shape), x.dtype)
        key = (x.type, stored.data.tobytes()) if stored.data.size <= _MOST_ENTRIES else None
        if key is not None and key in self._shared:
            return self._shared[key]
        base = self.names.take(x.label or "const")
        self.values[base] = Value(x.shape, x.dtype, "weight")
        self.weights[base] = stored
        found = Ref(Name(base))
        if key is not None:
            self._shared[key] = found
        return found

    # --- what many translations say ---

    def cast(self, x: Tensor, dtype: str) -> Tensor:
        """The values in another dtype, uint16 and uint32 among them."""
        if dtype in CARRIERS:
            bits, carrier = CARRIERS[dtype]
            if x.bits != bits:
                x = self.cast(self.op("remainder", self.cast(x, "i64"), 1 << bits), carrier)
                x.bits = bits
            return x
        if x.bits and x.dtype == dtype:
            return self.op("_to_copy", x, dtype=dtype)
        return x if x.dtype == dtype else self.op("_to_copy", x, dtype=dtype)

    def reshape(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        """The same elements under another shape."""
        return x if tuple(shape) == x.shape else self.op("view", x, size=tuple(shape))

    def permute(self, x: Tensor, dims: Sequence[int]) -> Tensor:
        """Dims in another order."""
        return x if list(dims) == list(range(x.rank)) else self.op("permute", x, dims=tuple(dims))

    def expand(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        """Broadcast to a shape."""
        return x if tuple(shape) == x.shape else self.op("expand", x, size=tuple(shape))

    def slice(self, x: Tensor, dim: int, start: int, end: int, step: int = 1) -> Tensor:
        """Elements start..end of a dim."""
        if (start, step) == (0, 1) and end >= x.shape[dim]:
            return x
        return self.op("slice", x, dim=dim, start=start, end=end, step=step)

    def pick(self, x: Tensor, dim: int, index: Sequence[int] | Array) -> Tensor:
        """The slices of a dim at these known places."""
        places = np.asarray(index, np.int64)
        # The lengths first: the dim may be declared far larger than the list of places.
        if places.size == x.shape[dim] and np.array_equal(places, np.arange(places.size)):
            return x
        return self.op("index_select", x, self.known(places), dim=dim)


def axis_of(axis: int, rank: int, what: str = "axis") -> int:
    """A dim counted from the front.

    Raises:
        FormatError: outside -rank..rank-1.
    """
    if not -rank <= axis < rank:
        raise FormatError(f"{what}={axis} of a tensor of rank {rank}", wanted=f"{-rank} to {rank - 1}")
    return axis % rank


def axes_of(axes: Sequence[int], rank: int) -> tuple[int, ...]:
    """Distinct dims counted from the front, rising."""
    found = [axis_of(axis, rank, "axes") for axis in axes]
    if len(set(found)) != len(found):
        raise FormatError(f"axes {list(axes)}", wanted="distinct axes")
    return tuple(sorted(found))


def list_of(attrs: Attributes, name: str, count: int, default: int, *, low: int = 0) -> tuple[int, ...]:
    """A list attribute with one entry for each of `count` dims.

    Raises:
        FormatError: of another length, or an entry below `low` or not below 2^31.
    """
    value = attrs[name]
    if value is None:
        return (default,) * count
    if len(value) != count or not all(low <= item < 1 << 31 for item in value):
        raise FormatError(f"{name}={list(value)}", wanted=f"{count} entries of at least {low}")
    return tuple(value)


def _attr(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_attr(item) for item in value)
    if isinstance(value, np.generic):
        return value.item()
    return value
