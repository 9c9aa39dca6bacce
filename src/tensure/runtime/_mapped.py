"""Pages of a mapped file that are no longer needed in memory. Knows numpy and mmap only."""

from __future__ import annotations

import mmap

import numpy as np
from numpy.typing import NDArray

__all__ = ["forget_pages"]


def forget_pages(data: NDArray[np.uint8]) -> None:
    """Let the system drop the whole pages of `data` from this process; they are read again when touched.

    Does nothing for memory that is no mapped file. Only a hint: values never change.
    """
    mapping = _mapping_of(data)
    if mapping is None or not data.size:
        return
    begin = data.ctypes.data - np.frombuffer(mapping, np.uint8).ctypes.data
    first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (begin + data.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if last > first:
        mapping.madvise(mmap.MADV_DONTNEED, first, last - first)


def _mapping_of(array: object) -> mmap.mmap | None:
    while array is not None:
        if isinstance(array, mmap.mmap):
            return array
        array = array.obj if isinstance(array, memoryview) else getattr(array, "base", None)
    return None
