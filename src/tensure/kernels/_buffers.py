"""Checks of the arrays of any dtype that a kernel's face is handed, and arrays where vectors like them.

Knows dtypes, shapes and addresses only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tensure.errors import InputError, LimitError

__all__ = [
    "aligned_array",
    "aligned_bytes",
    "aligned_floats",
    "as_bytes",
    "check_array",
    "check_buffer",
    "check_out",
    "check_threads",
    "check_workspace",
]

Bytes = NDArray[np.uint8]
Array = NDArray[Any]
Floats = NDArray[np.float32]

ALIGNMENT: Final = 64
MAX_THREADS: Final = 1024


def as_bytes(array: Array) -> Bytes:
    """The same memory, as a vector of bytes."""
    return array.reshape(-1).view(np.uint8)


def aligned_floats(shape: tuple[int, ...]) -> Floats:
    """A fresh float32 array from a multiple of 64 on."""
    return aligned_bytes(4 * math.prod(shape)).view(np.float32).reshape(shape)


def aligned_bytes(nbytes: int) -> Bytes:
    """Fresh bytes from a multiple of 64 on: a vector that straddles two cache lines loads at half speed.

    Raises:
        LimitError: there is not that much memory.
    """
    try:
        room = np.empty(nbytes + ALIGNMENT, np.uint8)
    except (MemoryError, ValueError):  # numpy has another error for sizes that are no size at all
        raise LimitError(f"no memory for {nbytes} bytes", wanted="fewer") from None
    skip = -room.ctypes.data % ALIGNMENT
    return room[skip : skip + nbytes]


def aligned_array(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """A fresh array from a multiple of 64 on."""
    return aligned_bytes(dtype.itemsize * math.prod(shape)).view(dtype).reshape(shape)


def check_threads(threads: object) -> None:
    """Refuse what is no number of threads."""
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= MAX_THREADS:
        raise InputError(f"got {threads!r}", place="threads", wanted=f"an integer from 1 to {MAX_THREADS}")


def check_array(place: str, array: object, shape: tuple[int, ...] | None = None) -> None:
    """Refuse what is no float32, contiguous, aligned array of the shape."""
    check_buffer(place, array, (np.float32,), shape)


def check_buffer(
    place: str, array: object, dtypes: Sequence[DTypeLike], shape: tuple[int, ...] | None = None
) -> None:
    """Refuse what is no contiguous, aligned array of one of the dtypes, and of the shape if one is given."""
    if not isinstance(array, np.ndarray):
        raise InputError(f"got {type(array).__name__}", place=place, wanted="a numpy array")
    if all(array.dtype != dtype for dtype in dtypes):
        names = " or ".join(np.dtype(dtype).name for dtype in dtypes)
        raise InputError(f"got {array.dtype}", place=place, wanted=names)
    if shape is not None and array.shape != shape:
        raise InputError(f"got shape {list(array.shape)}", place=place, wanted=f"{list(shape)}")
    if not array.flags.c_contiguous or not array.flags.aligned:
        raise InputError(
            f"got strides {list(array.strides)} for shape {list(array.shape)}",
            place=place,
            wanted="a C-contiguous, aligned array",
            next_step="Pass a copy: np.ascontiguousarray(...)",
        )


def check_out(out: Array, others: Mapping[str, Array | None]) -> None:
    """Refuse an output that cannot be written, or that shares memory with an operand."""
    if not out.flags.writeable:
        raise InputError("got a read-only array", place="out", wanted="a writable one")
    for name, other in others.items():
        if other is not None and np.may_share_memory(other, out):
            raise InputError(f"overlaps {name} in memory", place="out", wanted="memory of its own")


def check_workspace(workspace: object, need: int, others: Sequence[Array | None]) -> None:
    """Refuse a workspace that is no aligned, writable uint8 vector of `need` bytes of its own."""
    if not isinstance(workspace, np.ndarray) or workspace.dtype != np.uint8 or workspace.ndim != 1:
        raise InputError(f"got {type(workspace).__name__}", place="workspace", wanted="a uint8 vector")
    if workspace.size < need or not workspace.flags.c_contiguous or not workspace.flags.writeable:
        raise InputError(
            f"got {workspace.size} bytes", place="workspace", wanted=f"{need} contiguous, writable bytes"
        )
    if workspace.ctypes.data % ALIGNMENT and need:
        raise InputError("begins at no multiple of 64", place="workspace", wanted="an aligned vector")
    if any(other is not None and np.may_share_memory(workspace, other) for other in others):
        raise InputError("overlaps an operand in memory", place="workspace", wanted="memory of its own")
