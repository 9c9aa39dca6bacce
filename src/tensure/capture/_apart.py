"""Calls that are several: torch's decompositions into core ATen, and FSDP's copies in and out of flat memory.

Each function here does what the op does, by calls that are traced again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch._decomp import core_aten_decompositions, get_decompositions

from tensure.errors import UnsupportedError

from ._fused import FUSED

__all__ = ["CUSTOM", "SPELLED", "decompositions", "put_by_mask"]


def _copy_in(
    inputs: Sequence[torch.Tensor], output: torch.Tensor, sizes: Sequence[int], numel: int, rank: int
) -> tuple[torch.Tensor, torch.Tensor]:
    own = output.narrow(0, numel * rank, numel)
    for target, source in zip(torch.split(own, list(sizes)), inputs, strict=True):
        target.copy_(source)
    return own, output


def _split_out(
    tensor: torch.Tensor, sizes: Sequence[int], dim: int = 0, *, out: Sequence[torch.Tensor]
) -> None:
    for target, source in zip(out, torch.split(tensor, list(sizes), dim), strict=True):
        target.copy_(source.reshape(target.shape))


def _chunk_cat(tensors: Sequence[torch.Tensor], dim: int, num_chunks: int, *, out: torch.Tensor) -> None:
    """Each tensor in `num_chunks` parts along dim 0, the last ones padded; part after part in rows."""
    if dim != 0:
        raise NotImplementedError("chunk_cat along another dim than 0")
    rows = []
    for tensor in tensors:
        size = -(-tensor.shape[0] // num_chunks) * num_chunks
        if size != tensor.shape[0]:
            missing = tensor.new_zeros((size - tensor.shape[0], *tensor.shape[1:]))
            tensor = torch.cat([tensor, missing])
        rows.append(tensor.reshape(num_chunks, -1))
    out.copy_(torch.cat(rows, dim=1).reshape(out.shape))


def _copy_strided(tensor: torch.Tensor, stride: Sequence[int]) -> torch.Tensor:
    return tensor.new_empty_strided(tensor.shape, tuple(stride)).copy_(tensor)


def put_by_mask(
    target: torch.Tensor,
    indices: Sequence[torch.Tensor | None],
    values: torch.Tensor,
    accumulate: bool = False,
) -> torch.Tensor:
    """`target[mask] = number` as a choice by element.

    Raises:
        UnsupportedError: several values, whose places depend on the mask's values.
    """
    mask = indices[0]
    if len(indices) != 1 or mask is None or values.numel() != 1 or accumulate:
        raise UnsupportedError(
            "a write of several values by mask", wanted="one number for all, or torch.where"
        )
    mask = mask.reshape(*mask.shape, *[1] * (target.ndim - mask.ndim))
    return torch.where(mask, values.reshape(()).to(target.dtype), target)


def _interpolated(start: torch.Tensor, end: torch.Tensor, weight: Any) -> Any:
    return start + weight * (end - start)


def _plus_product(start: torch.Tensor, one: torch.Tensor, other: torch.Tensor, *, value: Any = 1) -> Any:
    return start + value * (one * other)


def _plus_quotient(start: torch.Tensor, one: torch.Tensor, other: torch.Tensor, *, value: Any = 1) -> Any:
    return start + value * (one / other)


def _norm(
    tensor: torch.Tensor, ord: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Any:
    """The root of a sum of squares, also of one element, where torch takes its magnitude."""
    if ord != 2 or tensor.is_complex():
        return NotImplemented
    tensor = tensor if dtype is None else tensor.to(dtype)
    dims = tuple(range(tensor.ndim)) if dim is None else dim
    return (tensor * tensor).sum(dims, keepdim=keepdim).sqrt()


def _power(tensor: Any, exponent: Any) -> Any:
    is_root = isinstance(exponent, float) and exponent == 0.5 and isinstance(tensor, torch.Tensor)
    return tensor.sqrt() if is_root and tensor.is_floating_point() else NotImplemented


def _norm_of_halves(tensor: torch.Tensor, shape: Sequence[int], weight: Any, bias: Any, eps: float) -> Any:
    """A layer norm of halves whose weights are wider, as torch computes it: in that dtype, then rounded."""
    wide = next((item.dtype for item in (weight, bias) if item is not None), tensor.dtype)
    if wide == tensor.dtype:
        return NotImplemented
    found, *kept = torch.ops.aten.native_layer_norm(tensor.to(wide), shape, weight, bias, eps)
    return found.to(tensor.dtype), *kept


SPELLED: Final[dict[str, Callable[..., Any]]] = {
    "lerp": _interpolated,
    "addcmul": _plus_product,
    "addcdiv": _plus_quotient,
    "linalg_vector_norm": _norm,
    "pow": _power,
    "native_layer_norm": _norm_of_halves,
}
"""Calls of ATen, by name without overload, as sums, products and roots, of which more is known.

Such a function may leave a call as it is.
"""

CUSTOM: Final[dict[str, Callable[..., Any]]] = {
    "fsdp::all_gather_copy_in": _copy_in,
    "fsdp::split_with_sizes_copy": _split_out,
    "fsdp::chunk_cat": _chunk_cat,
    "prims::copy_strided": _copy_strided,
    **FUSED,
}

_TABLE: Final[dict[Any, Callable[..., Any]]] = {}


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Torch's into core ATen and a few more, built once."""
    if not _TABLE:
        _TABLE.update(core_aten_decompositions())
        more = torch.ops.aten
        _TABLE.update(
            get_decompositions([more._safe_softmax, more.native_layer_norm_backward, more.linalg_vector_norm])
        )
    return _TABLE
