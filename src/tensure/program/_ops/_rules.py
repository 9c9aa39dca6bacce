"""What shape rules and semantics share: promotion, broadcasting, dims, casts. Knows no op."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np

from .._affine import Affine
from .._dtypes import FLOATS, dtype_name, numpy_dtype
from .._records import TensorType
from ._table import Array, Number, Operand, OperandType, refuse

SIGNED: Final = frozenset({"i8", "i16", "i32", "i64"})
INTEGERS: Final = SIGNED | {"u8"}
NUMBERS: Final = INTEGERS | FLOATS
ANY: Final = NUMBERS | {"bool"}
HALVES: Final = frozenset({"f16", "bf16"})
INDICES: Final = frozenset({"i64", "i32"})

_RANK: Final = {name: position for position, name in enumerate(("bool", "u8", "i8", "i16", "i32", "i64"))}

# --- dtypes ---------------------------------------------------------------------------------------


def promote(a: str, b: str) -> str:
    """The dtype two tensor dtypes meet in, as ATen's promote_types."""
    if a == b:
        return a
    if a in FLOATS and b in FLOATS:
        if "f64" in (a, b):
            return "f64"
        return "f32"  # f16 with bf16 meets there too
    if a in FLOATS or b in FLOATS:
        return a if a in FLOATS else b
    if {a, b} == {"u8", "i8"}:
        return "i16"
    return max(a, b, key=_RANK.__getitem__)


def promoted(*operands: OperandType) -> str:
    """The result dtype of operands, as ATen's result_type.

    A tensor of rank 0 or a Python number changes the dtype only where its category (bool < integer <
    float) is higher than that of the tensors with dims; a Python float counts as f32, an int as i64.
    """
    dimmed = zero = number = None
    for item in operands:
        if isinstance(item, TensorType):
            if item.shape:
                dimmed = item.dtype if dimmed is None else promote(dimmed, item.dtype)
            else:
                zero = item.dtype if zero is None else promote(zero, item.dtype)
        elif item is not None:
            kind = number_dtype(item)
            number = kind if number is None else promote(number, kind)
    found = _over(dimmed, _over(zero, number))
    assert found is not None
    return found


def number_dtype(value: Number) -> str:
    """The dtype a Python number counts as."""
    return "bool" if isinstance(value, bool) else "i64" if isinstance(value, (int, Affine)) else "f32"


def _over(high: str | None, low: str | None) -> str | None:
    if high is None or low is None:
        return low if high is None else high
    if high in FLOATS:
        return high
    return promote(high, low) if high == "bool" or low in FLOATS else high


def as_float(dtype: str) -> str:
    """The dtype itself where it is a float, else f32."""
    return dtype if dtype in FLOATS else "f32"


def opmath(dtype: str) -> str:
    """The dtype arithmetic runs in: f32 for the half types, else the dtype itself."""
    return "f32" if dtype in HALVES else dtype


def need(operand: str, found: TensorType, dtypes: frozenset[str]) -> None:
    """Refuse an operand whose dtype is not among those given."""
    need_dtype(operand, found.dtype, dtypes)


def need_dtype(what: str, dtype: str, dtypes: frozenset[str]) -> None:
    """Refuse a dtype that is not among those given."""
    if dtype not in dtypes:
        raise refuse(f"{what} of dtype {dtype}", " ".join(sorted(dtypes)))


def same_dtype(**operands: TensorType | None) -> str:
    """The one dtype all these operands share (None is skipped)."""
    found = {name: item.dtype for name, item in operands.items() if item is not None}
    if len(set(found.values())) != 1:
        raise refuse(", ".join(f"{name} is {dtype}" for name, dtype in found.items()), "one dtype for all")
    return next(iter(found.values()))


# --- shapes ---------------------------------------------------------------------------------------


def need_rank(operand: str, found: TensorType, *ranks: int) -> None:
    """Refuse an operand whose rank is not among those given."""
    if len(found.shape) not in ranks:
        raise refuse(f"{operand} of type {found}", f"rank {' or '.join(map(str, ranks))}")


def need_shape(operand: str, found: TensorType | None, shape: tuple[int, ...]) -> None:
    """Refuse an operand (if there) whose shape is not the one given."""
    if found is not None and found.shape != shape:
        raise refuse(f"{operand} of shape {list(found.shape)}", f"{list(shape)}")


def broadcast(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape all of these broadcast to."""
    rank = max(map(len, shapes), default=0)
    out: list[int] = []
    for position in range(-rank, 0):
        sizes = {shape[position] for shape in shapes if len(shape) >= -position} - {1}
        if len(sizes) > 1:
            raise refuse(
                f"shapes {' and '.join(str(list(shape)) for shape in shapes)}",
                "shapes that broadcast together",
            )
        out.append(sizes.pop() if sizes else 1)
    return tuple(out)


def wrap(dim: int, rank: int, what: str = "dim") -> int:
    """A dim counted from the front; a rank of 0 counts as 1, as in ATen."""
    rank = max(rank, 1)
    if not -rank <= dim < rank:
        raise refuse(f"{what}={dim}", f"{-rank} to {rank - 1}")
    return dim % rank


def wrap_all(dims: Iterable[int] | None, rank: int, *, empty_is_all: bool = True) -> tuple[int, ...]:
    """Distinct dims from the front, rising; none (and, unless told otherwise, an empty list) is all."""
    listed = None if dims is None else list(dims)
    if listed is None or (not listed and empty_is_all):
        return tuple(range(rank))
    found = [wrap(dim, rank) for dim in listed]
    if len(set(found)) != len(found):
        raise refuse(f"dim={listed} names a dim twice", "distinct dims")
    return tuple(sorted(dim for dim in found if dim < rank))


def reduce_shape(shape: tuple[int, ...], dims: Sequence[int], keepdim: bool) -> tuple[int, ...]:
    """The shape after reducing these dims."""
    if keepdim:
        return tuple(1 if dim in dims else size for dim, size in enumerate(shape))
    return tuple(size for dim, size in enumerate(shape) if dim not in dims)


def each(name: str, value: Sequence[int], count: int, low: int, high: int = 1 << 31) -> tuple[int, ...]:
    """A list attribute with one entry per spatial dim, each in low..high; a single entry serves all."""
    if len(value) not in (1, count) or not all(low <= item <= high for item in value):
        raise refuse(f"{name}={list(value)}", f"{count} entries (or one for all) from {low} to {high}")
    return tuple(value) if len(value) == count else tuple(value) * count


def in_range(name: str, value: float, low: float, high: float = math.inf) -> None:
    """Refuse an attribute outside low..high (NaN too)."""
    if not low <= value <= high:
        raise refuse(f"{name}={value}", f"{low} to {high}" if high < math.inf else f"at least {low}")


# --- values ---------------------------------------------------------------------------------------


def cast(x: Array, dtype: str) -> Array:
    """The values in another dtype, as ATen converts: halves by way of f32, floats to integers towards zero.

    A float outside an integer dtype's range gives an unspecified integer, as in C.
    """
    target = numpy_dtype(dtype)
    if x.dtype == target:
        return x
    if dtype in HALVES or dtype_name(x.dtype) in HALVES:
        x = x.astype(np.float32)
    return x.astype(target)


def operand(x: Operand, dtype: str) -> Array:
    """An operand as arithmetic towards `dtype` takes it: halves widened, a number not rounded to a half."""
    assert x is not None
    if isinstance(x, np.ndarray):
        return cast(cast(x, dtype), opmath(dtype))
    return np.asarray(x).astype(numpy_dtype(opmath(dtype)))


def number(value: Number, dtype: str, what: str) -> Array:
    """A number as one element of `dtype`; refuses one that the dtype cannot hold."""
    if dtype in INTEGERS:
        info = np.iinfo(numpy_dtype(dtype))
        if not math.isfinite(value) or not int(info.min) <= int(value) <= int(info.max):
            raise refuse(f"{what}={value}", f"a number that fits {dtype}")
    with np.errstate(over="ignore"):
        found = cast(np.asarray(value, dtype=np.int64 if dtype in INTEGERS else np.float64), dtype)
    if dtype in FLOATS and math.isfinite(value) and not np.isfinite(found):
        raise refuse(f"{what}={value}", f"a number that fits {dtype}")
    return found


def double(x: Array) -> Array:
    """Floats as float64: sums and norms accumulate there and round once."""
    return cast(x, "f64") if dtype_name(x.dtype) in FLOATS else x


def single(x: Array) -> Array:
    """The half types as float32, everything else as it is."""
    return cast(x, opmath(dtype_name(x.dtype)))


def type_of(x: Any) -> Any:
    """The TensorType of an array; numbers and None as they are."""
    return TensorType(x.shape, dtype_name(x.dtype)) if isinstance(x, np.ndarray) else x


def check_index(values: Array, low: int, high: int, what: str) -> None:
    """Refuse index data outside low..high (high excluded): never wrapped, never clamped."""
    if values.size:
        least, most = int(values.min()), int(values.max())
        if least < low or most >= high:
            raise refuse(f"{what} holds {least if least < low else most}", f"{low} to {high - 1}")
