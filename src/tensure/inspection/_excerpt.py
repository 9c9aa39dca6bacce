"""A tensor's values in a few lines of text, whatever its size. Knows how values are written, no names."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch

__all__ = ["excerpt"]

MAX_WHOLE: Final = 64
EDGE: Final = 3
_WIDE: Final = frozenset({torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2})


def excerpt(tensor: torch.Tensor, *, width: int = 100) -> str:
    """All of a tensor of up to 64 elements, the edges of a larger one.

    A sparse or nested tensor is shown by its stored values, a quantised one by its integers.
    """
    tensor = tensor.detach()
    if tensor.is_quantized:
        tensor = tensor.int_repr()
    if tensor.layout is not torch.strided:
        # _values, not values: a look must not coalesce.
        tensor = tensor._values() if tensor.layout is torch.sparse_coo else tensor.values()
    threshold = MAX_WHOLE if tensor.numel() <= MAX_WHOLE else 0
    if tensor.dtype in _WIDE:
        tensor = _edges(tensor).float()
    array: Any = tensor.cpu().resolve_conj().resolve_neg().numpy()
    if not array.ndim:
        return repr(array.item())
    return np.array2string(
        array, max_line_width=width, precision=6, threshold=threshold, edgeitems=EDGE, separator=", "
    )


def _edges(tensor: torch.Tensor) -> torch.Tensor:
    """Enough of a tensor to show its edges; the rest need not be converted."""
    if tensor.numel() <= MAX_WHOLE:
        return tensor
    for dim, size in enumerate(tensor.shape):
        if size > 2 * EDGE + 1:
            # One more than is shown, so that the gap is shown as one.
            keep = torch.tensor([*range(EDGE + 1), *range(size - EDGE, size)], device=tensor.device)
            tensor = tensor.index_select(dim, keep)
    return tensor
