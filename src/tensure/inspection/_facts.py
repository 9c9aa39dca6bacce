"""One torch tensor looked at: type, memory, and one pass over its values. Changes nothing, keeps nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

import torch

from tensure.host import dtype_word
from tensure.kernels import ELEMENTS, Survey, survey_at

from ._records import Memory, Quantised

__all__ = ["Looking", "Sight", "element_of", "look", "memory_of", "stored_bytes", "type_of"]

_KINDS: Final = {
    torch.strided: "strided",
    torch.sparse_coo: "sparse_coo",
    torch.sparse_csr: "sparse_csr",
    torch.sparse_csc: "sparse_csc",
    torch.sparse_bsr: "sparse_bsr",
    torch.sparse_bsc: "sparse_bsc",
    torch.jagged: "jagged",
}


_ELEMENTS: Final = {
    torch.uint16: "u16",
    torch.uint32: "u32",
    torch.uint64: "u64",
    torch.complex64: "c64",
    torch.complex128: "c128",
}
"""Dtypes that a Program does not have, in the words of the kernels that look."""


@dataclass(frozen=True, slots=True)
class Looking:
    """What to find out about every tensor.

    Args:
        statistics: least, greatest, mean, deviation, norm, zeros, denormals, NaN and Inf.
        digest: 128 bits that depend on every value and its place.
        limit: count elements with |x| over this.
        threads: that look.
    """

    statistics: bool = True
    digest: bool = False
    limit: float | None = None
    threads: int = 1


@dataclass(frozen=True, slots=True)
class Sight:
    """What was seen of a tensor's values."""

    statistics: Survey | None = None
    digest: str | None = None
    quantised: Quantised | None = None


def type_of(tensor: torch.Tensor) -> tuple[tuple[int, ...], str, str]:
    """Shape, dtype and layout; an axis that differs from row to row counts -1."""
    if tensor.is_nested and tensor.layout is torch.strided:
        shape = (int(tensor.size(0)), *([-1] * (tensor.dim() - 1)))
        return shape, dtype_word(tensor.dtype), "nested"
    shape = tuple(size if isinstance(size, int) else -1 for size in tensor.shape)
    return shape, dtype_word(tensor.dtype), _KINDS.get(tensor.layout, str(tensor.layout))


def memory_of(tensor: torch.Tensor) -> tuple[tuple[int, ...] | None, Memory]:
    """Strides in elements, and how the tensor lies in its memory."""
    if tensor.layout is not torch.strided or tensor.is_nested:
        return None, "none"
    strides = tuple(tensor.stride())
    if tensor.is_contiguous():
        return strides, "contiguous"
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return strides, "channels_last"
    if tensor.dim() == 5 and tensor.is_contiguous(memory_format=torch.channels_last_3d):
        return strides, "channels_last"
    dense = 1
    for stride, size in sorted((s, n) for s, n in zip(strides, tensor.shape, strict=True) if n > 1):
        if stride == 0:
            return strides, "broadcast"
        if stride != dense:
            return strides, "gapped"
        dense *= size
    return strides, "permuted"


def stored_bytes(tensor: torch.Tensor) -> int:
    """Bytes of a tensor's elements; of a sparse or nested one, of what is stored, the indices too."""
    if tensor.layout is torch.sparse_coo:
        # _values, not values: a look must not coalesce.
        parts = [tensor._values(), tensor._indices()]
    elif tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        parts = [tensor.values(), tensor.crow_indices(), tensor.col_indices()]
    elif tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        parts = [tensor.values(), tensor.ccol_indices(), tensor.row_indices()]
    elif tensor.layout is torch.jagged:
        parts = [tensor.values(), tensor.offsets()]  # type: ignore[attr-defined]
    else:
        parts = [tensor]
    return sum(part.numel() * part.element_size() for part in parts)


def look(tensor: torch.Tensor, looking: Looking) -> Sight:
    """Statistics and digest of a tensor's values, in logical order whatever its strides.

    A sparse or nested tensor is looked at by its stored values; one without values here (on `meta`, fake, or
    of a dtype we have no words for) is not looked at.
    """
    if not (looking.statistics or looking.digest):
        return Sight()
    if tensor.is_quantized:
        return _quantised(tensor, looking)
    if tensor.is_nested and tensor.layout is torch.strided:
        return _joined(tensor.values(), looking, tensor._nested_tensor_size())
    if tensor.layout is not torch.strided:
        return _sparse(tensor, looking)
    dtype = element_of(tensor)
    if tensor.device.type != "cpu":
        if tensor.device.type == "meta":
            return Sight()
        tensor = tensor.cpu()
    if dtype is None or type(tensor).__torch_dispatch__ is not _PLAIN_DISPATCH:
        return Sight()
    if tensor.is_conj() or tensor.is_neg():
        tensor = tensor.resolve_conj().resolve_neg()
    item = tensor.element_size()
    found = survey_at(
        tensor.data_ptr(),
        dtype,
        tuple(tensor.shape),
        tuple([stride * item for stride in tensor.stride()]),
        digest=looking.digest,
        canonical_nan=True,
        statistics=looking.statistics,
        threads=looking.threads,
        limit=looking.limit,
    )
    return Sight(found if looking.statistics else None, found.digest.hex() if found.digest else None)


def element_of(tensor: torch.Tensor) -> str | None:
    """The dtype in the words of the kernels that look; None if they have none for it."""
    word = _ELEMENTS.get(tensor.dtype) or dtype_word(tensor.dtype)
    return word if word in ELEMENTS else None


_PLAIN_DISPATCH: Final = torch.Tensor.__torch_dispatch__


def _sparse(tensor: torch.Tensor, looking: Looking) -> Sight:
    """Statistics of the stored values; the digest is of those and of where they stand."""
    if tensor.layout is torch.sparse_coo:
        # _values and _indices: a look must not coalesce.
        return _joined(tensor._values(), looking, tensor._indices())
    if tensor.layout is torch.jagged:
        return _joined(tensor.values(), looking, tensor.offsets())  # type: ignore[attr-defined]
    compressed = tensor.layout in (torch.sparse_csr, torch.sparse_bsr)
    where = (
        (tensor.crow_indices(), tensor.col_indices())
        if compressed
        else (tensor.ccol_indices(), tensor.row_indices())
    )
    return _joined(tensor.values(), looking, *where)


def _joined(values: torch.Tensor, looking: Looking, *others: torch.Tensor) -> Sight:
    """The sight of `values`, its digest one of the other tensors too."""
    seen = look(values, looking)
    if seen.digest is None:
        return seen
    parts = [seen.digest] + [look(other, Looking(False, True)).digest or "" for other in others]
    return Sight(
        seen.statistics, blake2b(":".join(parts).encode(), digest_size=16).hexdigest(), seen.quantised
    )


def _quantised(tensor: torch.Tensor, looking: Looking) -> Sight:
    if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        scale, zero, axis = tensor.q_scale(), tensor.q_zero_point(), None
        scales, zeros = (scale, scale), (zero, zero)
        grid = torch.tensor([scale, float(zero)], dtype=torch.float64)
    else:
        s, z = tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()
        scales = (float(s.min()), float(s.max()))
        zeros = (int(z.min()), int(z.max()))
        axis = tensor.q_per_channel_axis()
        grid = torch.cat([s.double().reshape(-1), z.double().reshape(-1)])
    seen = _joined(tensor.int_repr(), looking, grid)
    return Sight(seen.statistics, seen.digest, Quantised(scales, zeros, axis, saturation(tensor.int_repr())))


def saturation(integers: torch.Tensor) -> float:
    """The share of elements at either end of an integer dtype's range."""
    if not integers.numel():
        return 0.0
    ends = torch.iinfo(integers.dtype)
    share = ((integers == ends.min) | (integers == ends.max)).float().mean()
    return 0.0 if math.isnan(float(share)) else float(share)
