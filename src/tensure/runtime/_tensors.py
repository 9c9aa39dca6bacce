"""Arrays to torch tensors and back, bit for bit. Knows dtypes (bf16 included); knows no Program."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from tensure.program import numpy_dtype

if TYPE_CHECKING:
    import torch

__all__ = ["Array", "to_array", "to_tensor"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


def to_tensor(array: Array) -> torch.Tensor:
    """A torch tensor with the same values and shape, sharing no memory with `array`."""
    import torch

    copied = np.array(array, order="C", copy=True)
    if copied.dtype == numpy_dtype("bf16"):
        # torch does not take ml_dtypes arrays; the bits are the same.
        return torch.from_numpy(copied.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(copied)


def to_array(tensor: torch.Tensor) -> Array:
    """A numpy array with the same values and shape, sharing no memory with `tensor`."""
    import torch

    plain = tensor.detach().contiguous()
    if plain.dtype == torch.bfloat16:
        return np.array(plain.view(torch.int16).numpy()).view(numpy_dtype("bf16"))
    return np.array(plain.numpy())
