"""GGUF blocks of small integers -> float32: the checked face of native/dequantize, and its definition.

A block holds 32 elements. `d` and `m` are little-endian IEEE halves, `q` unsigned 4-bit or signed 8-bit
integers; byte i of a 4-bit block holds element i in its low half and element i + 16 in its high half
(layout: the GGUF specification and ggml's block_q4_0, block_q4_1, block_q8_0).

    q4_0   d, 16 bytes of pairs       (q - 8) * d
    q4_1   d, m, 16 bytes of pairs    q * d + m
    q8_0   d, 32 bytes                q * d

Knows nothing of files, shapes or the other GGUF encodings (tensure.program decodes those).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from tensure.errors import InputError, UnsupportedError
from tensure.kernels._isa import native

__all__ = ["ENCODINGS", "dequantize", "dequantize_reference"]

BLOCK_ELEMENTS = 32
MAX_THREADS = 1024

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


def dequantize(encoding: str, blocks: Bytes, out: Floats | None = None, threads: int = 1) -> Floats:
    """The float32 values of whole blocks, in order: 32 for each block.

    Equal bit for bit to `dequantize_reference`, whatever the instruction set and the number of threads;
    where the reference gives NaN (a stored scale is NaN, or infinite and times zero) so does this, with any
    payload.

    Args:
        encoding: a key of ENCODINGS: "q4_0", "q4_1" or "q8_0".
        blocks: 1-D uint8, contiguous, any address; may be read-only, such as a slice of a mapped file.
        out: 1-D float32, contiguous, writable, apart from `blocks`; made when None.
        threads: at most this many threads work; small inputs use fewer.

    Raises:
        InputError: an argument is not as described.
        UnsupportedError: an encoding outside the list, or no instruction set is in use.
    """
    block_bytes = _layout(encoding).block_bytes
    _check_vector("blocks", blocks, np.dtype(np.uint8))
    num_blocks, rest = divmod(blocks.size, block_bytes)
    if rest:
        raise InputError(
            f"{blocks.size} bytes are not whole {encoding} blocks",
            place="blocks",
            wanted=f"a multiple of {block_bytes} bytes",
        )
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= MAX_THREADS:
        raise InputError(f"got {threads!r}", place="threads", wanted=f"an integer from 1 to {MAX_THREADS}")
    num_elements = num_blocks * BLOCK_ELEMENTS
    if out is None:
        out = np.empty(num_elements, np.float32)
    else:
        _check_vector("out", out, np.dtype(np.float32))
        if out.size != num_elements:
            raise InputError(f"got {out.size} elements", place="out", wanted=f"{num_elements}")
        if not out.flags.writeable:
            raise InputError("got a read-only array", place="out", wanted="a writable one")
        if np.may_share_memory(blocks, out):
            raise InputError("overlaps blocks in memory", place="out", wanted="memory of its own")
    module = native()
    kernel: Callable[[Bytes, Floats, int], None] = getattr(module, f"dequantize_{encoding}")
    kernel(blocks, out, threads)
    return out


def dequantize_reference(encoding: str, blocks: Bytes) -> Floats:
    """What `dequantize` must give, in numpy, one line for each encoding; the definition, not a fast path."""
    layout = _layout(encoding)
    rows = np.frombuffer(np.ascontiguousarray(blocks).tobytes(), np.uint8).reshape(-1, layout.block_bytes)
    with np.errstate(invalid="ignore"):  # an infinite scale times zero is NaN, on purpose
        return layout.reference(rows).astype(np.float32, copy=False).reshape(-1)


def _half(rows: Bytes, offset: int) -> Floats:
    return rows[:, offset : offset + 2].copy().view("<f2").astype(np.float32)


def _pairs(rows: Bytes, offset: int) -> Floats:
    packed = rows[:, offset : offset + 16]
    return np.concatenate([packed & 15, packed >> 4], axis=1).astype(np.float32)


def _q4_0(rows: Bytes) -> Floats:
    return (_pairs(rows, 2) - np.float32(8)) * _half(rows, 0)


def _q4_1(rows: Bytes) -> Floats:
    return _pairs(rows, 4) * _half(rows, 0) + _half(rows, 2)


def _q8_0(rows: Bytes) -> Floats:
    return rows[:, 2:34].view(np.int8).astype(np.float32) * _half(rows, 0)


@dataclass(frozen=True, slots=True)
class _Layout:
    block_bytes: int
    reference: Callable[[Bytes], Floats]


_LAYOUTS = {"q4_0": _Layout(18, _q4_0), "q4_1": _Layout(20, _q4_1), "q8_0": _Layout(34, _q8_0)}

# Encoding to bytes of one block of 32 elements.
ENCODINGS: Mapping[str, int] = MappingProxyType(
    {name: layout.block_bytes for name, layout in _LAYOUTS.items()}
)


def _layout(encoding: str) -> _Layout:
    layout = _LAYOUTS.get(encoding)
    if layout is None:
        raise UnsupportedError(
            f"no kernel for {encoding!r}", place="encoding", wanted="one of " + ", ".join(_LAYOUTS)
        )
    return layout


def _check_vector(place: str, array: object, dtype: np.dtype[np.generic]) -> None:
    if not isinstance(array, np.ndarray):
        raise InputError(f"got {type(array).__name__}", place=place, wanted="a numpy array")
    if array.dtype != dtype or array.ndim != 1:
        raise InputError(
            f"got {array.dtype} with {array.ndim} dims", place=place, wanted=f"{dtype} with 1 dim"
        )
    if not array.flags.c_contiguous or not array.flags.aligned:
        raise InputError(
            "got elements that are strided or split across addresses",
            place=place,
            wanted="a contiguous, aligned array",
            next_step="Pass a copy: np.ascontiguousarray(...)",
        )
