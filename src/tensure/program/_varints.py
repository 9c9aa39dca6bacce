"""Many packed varints at once: base-128 numbers of 64 bits, decoded by numpy in bounded pieces.

Does not know messages, signs or what the numbers are for.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["count_varints", "decode_varints"]

CHUNK_BYTES = 1 << 18  # decoded at a time: temporaries stay at a few MiB


def count_varints(packed: npt.NDArray[np.uint8]) -> int:
    """How many numbers end in these bytes."""
    return sum(
        int(np.count_nonzero(packed[at : at + CHUNK_BYTES] < 0x80))
        for at in range(0, packed.size, CHUNK_BYTES)
    )


def decode_varints(packed: npt.NDArray[np.uint8], out: npt.NDArray[np.uint64]) -> tuple[int, str] | None:
    """Fill `out` with all numbers of `packed`; returns where and why that is not possible, else None.

    `out` has one place for each byte of `packed` that ends a number.
    """
    begin = done = 0
    while begin < packed.size:
        chunk = packed[begin : begin + CHUNK_BYTES]
        last = np.flatnonzero(chunk < 0x80)
        if last.size == 0:
            # A number has at most ten bytes, so a chunk without an end is either the rest or too long.
            return begin, "a number is cut off" if chunk.size < 10 else "a number of more than 64 bits"
        first = np.empty_like(last)
        first[0] = 0
        first[1:] = last[:-1] + 1
        width = last - first + 1
        longest = int(width.max())
        if longest > 10:
            return begin + int(first[int(width.argmax())]), "a number of more than 64 bits"
        values = (chunk[first] & np.uint8(0x7F)).astype(np.uint64)
        for k in range(1, longest):
            which = np.flatnonzero(width > k)
            part = chunk[first[which] + k] & np.uint8(0x7F)
            if k == 9 and part.size and int(part.max()) > 1:
                at = int(first[which[int(part.argmax())]])
                return begin + at, "a number of more than 64 bits"
            values[which] |= part.astype(np.uint64) << np.uint64(7 * k)
        out[done : done + last.size] = values
        done += last.size
        begin += int(last[-1]) + 1
    return None
