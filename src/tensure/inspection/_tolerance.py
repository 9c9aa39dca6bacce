"""Whether values keep to what was expected of them, and how far two tensors are from each other.

Knows tensors and bounds. Knows no run.
"""

from __future__ import annotations

from typing import Final, Literal

import torch

from ._bounds import EPSILON, Expected
from ._explain import same_bits

__all__ = ["TINY", "coarser", "gap", "hold"]

TINY: Final = 1e-300


def hold(
    expected: Expected, found: torch.Tensor, rtol: float, atol: float
) -> tuple[Literal["within", "divergent"], float | None]:
    """Whether found values keep to what was expected, and the largest share of its bound an error takes.

    `atol + rtol |expected|` is allowed on top of the bound.
    """
    value = expected.value.reshape(found.shape) if expected.value.numel() == found.numel() else None
    if value is None:
        return "divergent", None
    bound = expected.bound
    if value.is_complex() or found.is_complex():
        bound = None if bound is None else torch.stack([bound, bound], -1)
        value = torch.view_as_real(value.to(torch.complex128))
        found = torch.view_as_real(found.to(torch.complex128))
        if bound is None and not (rtol or atol):
            return ("within" if bool(same_bits(value, found).all()) else "divergent"), None
    if bound is None and not (rtol or atol):
        value = value.to(found.dtype)
        return ("within" if bool(same_bits(value, found).all()) else "divergent"), None
    wide = found.double()
    value = value.double()
    allowed = atol + rtol * value.abs()
    if bound is not None:
        allowed = allowed + bound.reshape(found.shape)
    error = (wide - value).abs()
    # NaN and Inf must stand where they should; an overflow of the narrower dtype is its own rounding.
    top = torch.finfo(found.dtype).max if found.is_floating_point() else float("inf")
    value_here = torch.where(value.abs() > top, torch.sign(value) * float("inf"), value)
    same = (wide == value_here) | (wide.isnan() & value_here.isnan())
    ratio = torch.where(same, torch.zeros_like(error), error / allowed.clamp_min(TINY))
    ratio = torch.nan_to_num(ratio, nan=float("inf"), posinf=float("inf"))
    worst = float(ratio.max()) if ratio.numel() else 0.0
    return ("within" if worst <= 1.0 else "divergent"), worst


def gap(x: torch.Tensor, y: torch.Tensor) -> float:
    """The largest |x - y|; two NaNs are equal, a NaN and a number infinitely apart."""
    if not x.numel():
        return 0.0
    if x.is_complex() or y.is_complex():
        return float((x.to(torch.complex128) - y.to(torch.complex128)).abs().max())
    difference = (x.double() - y.double()).abs()
    difference = torch.where(x.double() == y.double(), torch.zeros_like(difference), difference)
    both = x.double().isnan() & y.double().isnan()
    return float(torch.nan_to_num(torch.where(both, 0.0, difference), nan=float("inf")).max())


def coarser(a: str, b: str) -> str:
    """Of two float dtypes the one that rounds more; of others the float one."""
    if a in EPSILON and b in EPSILON:
        return a if EPSILON[a] >= EPSILON[b] else b
    return a if a in EPSILON else b
