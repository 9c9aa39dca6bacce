"""Where the bytes of a stored tensor lie, by shape and stored order."""

from __future__ import annotations

from typing import Any

import numpy as np


def cells(
    shape: tuple[int, ...], order: tuple[int, ...] | None, width: int
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The byte number, from the start of the tensor, of every byte of every element: int64[*shape, width].

    `order` lists the dims as stored, outermost first; None means as the shape says.
    """
    stored = order or tuple(range(len(shape)))
    numbers = np.arange(int(np.prod(shape, dtype=np.int64)) * width, dtype=np.int64)
    numbers = numbers.reshape(*(shape[dim] for dim in stored), width)
    back = [stored.index(dim) for dim in range(len(shape))]
    return numbers.transpose(*back, len(shape))
