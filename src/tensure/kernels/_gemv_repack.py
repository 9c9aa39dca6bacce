"""GGUF blocks into gemv's own layouts, every weight to the bit: the checked face of native/gemv/repack.cc.

The own layouts run about twice as fast as blocks read in place. Knows nothing of files or models.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import numpy as np

from tensure.errors import UnsupportedError
from tensure.kernels._buffers import ALIGNMENT, aligned_bytes, check_buffer, check_out, check_threads
from tensure.kernels._gemv import (
    GEMV_FORMATS,
    Bytes,
    GemvWeights,
    check_shape,
    check_whole_blocks,
    map_gguf,
    stored_bytes,
)
from tensure.kernels._isa import native

__all__ = ["repack_gguf", "repacked_bytes"]

GROUP: Final = 32
OWN: Final[Mapping[str, str]] = MappingProxyType({"q4_0": "int4", "q4_1": "int4_min", "q8_0": "int8"})
"""The own layout that holds an encoding's weights; scales of q8_0 widen from half to float32."""


def repacked_bytes(encoding: str, num_rows: int, num_cols: int) -> int:
    """Bytes that `repack_gguf` needs at `out`.

    Raises:
        InputError: no such shape.
        UnsupportedError: an encoding that no own layout holds.
    """
    return sum(_places(encoding, num_rows, num_cols)[-1])


def repack_gguf(
    encoding: str, blocks: Bytes, num_rows: int, num_cols: int, *, out: Bytes | None = None, threads: int = 1
) -> GemvWeights:
    """The same weights as `map_gguf` gives, in "int4" (q4_0), "int4_min" (q4_1) or "int8" (q8_0), group 32.

    Rows are filled with zeros to a multiple of 16. Nothing is copied twice. Scales are taken as they are, Inf
    and NaN too.

    Args:
        blocks: the tensor's blocks: 1-D uint8, contiguous, any address.
        out: `repacked_bytes`, where the weights will lie: 1-D uint8, contiguous, writable, apart from blocks;
            made when None. A multiple of 64 is the best address.
        threads: at most this many threads work.

    Raises:
        InputError: sizes that do not fit.
        LimitError: no memory for the weights.
        UnsupportedError: an encoding that no own layout holds.
    """
    places = _places(encoding, num_rows, num_cols)
    source = map_gguf(encoding, blocks, num_rows, num_cols)
    check_threads(threads)
    need = sum(places[-1])
    if out is None:
        out = aligned_bytes(need)
    else:
        check_buffer("out", out, (np.uint8,), (need,))
        check_out(out, {"blocks": blocks})
    q, scales, minimums = (out[begin : begin + size] for begin, size in places)
    weights = GemvWeights(OWN[encoding], num_rows, num_cols, GROUP, q, scales, minimums)
    native().gemv_repack(
        GEMV_FORMATS[encoding].index, num_rows, num_cols, source.q, q, scales, minimums, threads
    )
    return weights


def _places(encoding: str, num_rows: int, num_cols: int) -> list[tuple[int, int]]:
    """Begin and bytes of integers, scales and minimums in one piece of memory, each at a multiple of 64."""
    if not isinstance(encoding, str) or encoding not in OWN:
        raise UnsupportedError(
            f"no own layout for {encoding!r:.60}", place="encoding", wanted="one of " + ", ".join(OWN)
        )
    check_shape(num_rows, num_cols)
    check_whole_blocks(num_cols, GEMV_FORMATS[encoding])
    places: list[tuple[int, int]] = []
    begin = 0
    for size in stored_bytes(OWN[encoding], num_rows, num_cols, GROUP):
        places.append((begin, size))
        begin += -(-size // ALIGNMENT) * ALIGNMENT
    return places
