"""Where two tensors part, and what was done to make the one of the other, as far as their values tell."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import torch

__all__ = ["Element", "describe_change", "first_difference", "flipped_bit"]

_BITS: Final = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_EXPONENT: Final = {"float64": (52, 63), "float32": (23, 31), "float16": (10, 15), "bfloat16": (7, 15)}
MAX_PATTERN: Final = 1 << 24
"""Elements of a tensor that is searched for patterns."""


@dataclass(frozen=True, slots=True)
class Element:
    """One element in which two tensors differ; `bit` is the only one that does, if there is only one."""

    index: tuple[int, ...]
    a: float | int | bool
    b: float | int | bool
    bit: int | None
    bit_role: str
    count: int
    """How many elements differ in all."""


def same_bits(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Elementwise: equal bits, or NaN in both."""
    if a.dtype != b.dtype:
        return torch.zeros(a.shape, dtype=torch.bool)
    if not (a.is_floating_point() or a.is_complex()):
        return a == b
    if a.is_complex():
        pairs = same_bits(torch.view_as_real(a), torch.view_as_real(b))
        return pairs.all(-1)
    words = _BITS[a.element_size()]
    equal = a.contiguous().view(words) == b.contiguous().view(words)
    return equal | (a.isnan() & b.isnan())


def first_difference(a: torch.Tensor, b: torch.Tensor, wrong: torch.Tensor | None = None) -> Element | None:
    """The first element that differs, or of those marked `wrong`, the one that is furthest off."""
    differs = ~same_bits(a, b) if wrong is None else wrong
    where = differs.reshape(-1).nonzero()
    if not where.numel():
        return None
    flat = int(where[0])
    if wrong is not None and a.is_floating_point():
        gap = (a.double() - b.double()).abs().reshape(-1)
        gap = torch.nan_to_num(gap, math.inf, math.inf, math.inf)
        flat = int(torch.where(wrong.reshape(-1), gap, torch.full_like(gap, -1.0)).argmax())
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), a.shape)) if a.dim() else ()
    x, y = a.reshape(-1)[flat], b.reshape(-1)[flat]
    bit, role = flipped_bit(x, y)
    return Element(index, x.item(), y.item(), bit, role, int(where.numel()))


def flipped_bit(x: torch.Tensor, y: torch.Tensor) -> tuple[int | None, str]:
    """The only bit in which two scalars of one dtype differ, counted from the least, and what it is for."""
    if x.dtype != y.dtype or x.is_complex() or x.dtype == torch.bool:
        return None, ""
    width = 8 * x.element_size()
    words = _BITS[x.element_size()]
    change = int(x.reshape(1).view(words).item()) ^ int(y.reshape(1).view(words).item())
    change &= (1 << width) - 1
    if not change or change & (change - 1):
        return None, ""
    bit = change.bit_length() - 1
    if not x.is_floating_point():
        return bit, "sign" if bit == width - 1 and x.dtype != torch.uint8 else "value"
    low, high = _EXPONENT[str(x.dtype).removeprefix("torch.")]
    return bit, "sign" if bit == high else "exponent" if bit >= low else "mantissa"


def describe_change(a: torch.Tensor, b: torch.Tensor) -> str:
    """What turns `a` into `b`, if it is one of the usual faults; "" otherwise."""
    if a.numel() != b.numel() or not a.numel() or a.numel() > MAX_PATTERN:
        return ""
    if a.dtype != b.dtype or a.is_complex():
        return ""
    flat_a, flat_b = a.reshape(-1), b.reshape(-1)
    for words, made in _simple(a):
        if made.shape == b.shape and bool(same_bits(made, b).all()):
            return words
    if a.is_floating_point() and a.dtype in (torch.float32, torch.float64):
        for words, dtype in (("bfloat16", torch.bfloat16), ("float16", torch.float16)):
            if bool(same_bits(a.to(dtype).to(a.dtype), b).all()):
                return f"it was rounded through {words}"
    differing = int((~same_bits(a.reshape(b.shape), b)).sum()) if a.shape == b.shape else a.numel()
    order_a, order_b = _sorted(flat_a), _sorted(flat_b)
    if differing > 1 and bool(same_bits(order_a, order_b).all()):
        return "the same values in another order" + _moved_rows(a, b)
    return ""


def _simple(a: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    found: list[tuple[str, torch.Tensor]] = []
    if a.dtype != torch.bool and a.dtype != torch.uint8:
        found.append(("every sign is flipped", -a))
    for dim in range(a.dim()):
        if a.shape[dim] > 1:
            found.append((f"it is reversed along axis {dim}", a.flip(dim)))
    if a.dim() > 1:
        found.append(("it is reversed", a.reshape(-1).flip(0).reshape(a.shape)))
        for one in range(a.dim()):
            for other in range(one + 1, a.dim()):
                turned = a.transpose(one, other)
                found.append((f"axes {one} and {other} are exchanged", turned))
                if a.shape[one] != a.shape[other]:
                    # The bytes of the transpose under the old shape.
                    found.append((f"axes {one} and {other} are exchanged", turned.reshape(a.shape)))
    return found


def _sorted(flat: torch.Tensor) -> torch.Tensor:
    return torch.sort(flat.float() if flat.dtype in (torch.float16, torch.bfloat16) else flat).values


def _moved_rows(a: torch.Tensor, b: torch.Tensor) -> str:
    """The axis along which whole slices moved, if there is one."""
    if a.shape != b.shape or a.dim() < 2:
        return ""
    for dim in range(a.dim()):
        size = a.shape[dim]
        if not 1 < size <= 4096:
            continue
        rows_a = {_bytes(row): at for at, row in enumerate(a.unbind(dim))}
        if all(_bytes(row) in rows_a for row in b.unbind(dim)):
            return f": slices along axis {dim} are permuted"
    return ""


def _bytes(row: torch.Tensor) -> Any:
    # One element may keep any stride through reshape, and view refuses it: lay it out anew.
    return row.contiguous().as_strided((row.numel(),), (1,)).view(torch.uint8).numpy().tobytes()
