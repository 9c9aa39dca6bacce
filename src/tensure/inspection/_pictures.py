"""Small pictures of values that were kept: a histogram of each tensor, maps of its channels.

Bytes only, within a budget given. Knows tensors; does not know how a page draws them. Maps of all tensors are
of one size, the largest at which all of them fit; where not even the smallest fits, some steps go without.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import torch

from tensure.errors import InputError
from tensure.kernels import Survey, histogram_at

from ._facts import Looking, element_of, look
from ._page_data import number
from ._records import TensorFacts, Trace
from ._values import ValueStore

__all__ = ["BINS", "histograms", "maps"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

BINS: Final = 32
NOT_FINITE: Final = 255
"""The byte of a map that stands for NaN and the infinities; 0 to 254 run from `lo` to `hi`."""


@dataclass(frozen=True, slots=True)
class _Size:
    """Channels at most, and pixels along the longer side at most."""

    channels: int
    side: int


_LADDER: Final = (
    _Size(16, 32),
    _Size(16, 24),
    _Size(16, 16),
    _Size(9, 16),
    _Size(6, 16),
    _Size(4, 16),
    _Size(4, 12),
    _Size(2, 12),
    _Size(1, 12),
    _Size(1, 8),
)


def histograms(trace: Trace, values: ValueStore, max_chars: int) -> dict[str, Any] | None:
    """How the finite values of each tensor are spread over 32 cuts from its least to its greatest.

    A share s is kept as round(65535 sqrt(s)), so that rare values are not lost; 0 is none at all. None if
    they do not fit, or there are none.
    """
    of: list[int] = []
    parts: list[bytes] = []
    for at, facts in enumerate(trace.tensors.values()):
        if (len(of) + 1) * (BINS * 2 * 4 / 3 + 8) > max_chars:
            return None
        counts = _counts(facts, values)
        if counts is not None:
            share = np.sqrt(counts / counts.sum()) * 65535
            of.append(at)
            parts.append(np.where(counts > 0, np.maximum(np.rint(share), 1), 0).astype("<u2").tobytes())
    if not of:
        return None
    return {"bins": BINS, "of": of, "data": base64.b64encode(b"".join(parts)).decode()}


def _counts(facts: TensorFacts, values: ValueStore) -> Array | None:
    tensor = _kept(facts, values)
    if tensor is None:
        return None
    found: Survey | None = facts.statistics or look(tensor, Looking()).statistics
    element = element_of(tensor)
    if found is None or element is None or found.minimum is None or found.maximum is None:
        return None
    if not found.minimum < found.maximum or not math.isfinite(found.maximum - found.minimum):
        return None
    strides = tuple(stride * tensor.element_size() for stride in tensor.stride())
    try:
        counts = histogram_at(
            tensor.data_ptr(), element, tuple(tensor.shape), strides, found.minimum, found.maximum, BINS
        )
    except InputError:  # a span so small that no 32 edges lie in it
        return None
    return counts if counts.sum() else None


def _kept(facts: TensorFacts, values: ValueStore) -> torch.Tensor | None:
    """The values of a tensor, if they are there and plain."""
    if facts.name not in values:
        return None
    tensor = values.get(facts.name)
    plain = tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    return tensor if plain and not (tensor.is_conj() or tensor.is_neg()) else None


# --- maps ------------------------------------------------------------------------------------------


def maps(trace: Trace, values: ValueStore, max_chars: int) -> dict[str, Any] | None:
    """Channels of the first item of a batch as small images, for inputs and everything that steps made.

    Rank 4 gives one image a channel; rank 3 and 2 one image of the last two axes. Images are means of the
    pixels they cover; all of a tensor share one range, which leaves out the outermost 0.5 % on either side.
    """
    budget = max_chars * 3 // 4
    wanted = {
        at: shape
        for at, facts in enumerate(trace.tensors.values())
        if facts.origin in ("value", "input", "state") and facts.name in values
        if (shape := _planes(facts)) is not None
    }
    size = next((size for size in _LADDER if _total(wanted, size) <= budget), _LADDER[-1])
    chosen = list(_spread(wanted, size, budget))
    found: dict[str, list[Any]] = {key: [] for key in ("of", "shown", "channels", "h", "w", "lo", "hi")}
    parts: list[bytes] = []
    names = list(trace.tensors)
    for at in chosen:
        tensor = _kept(trace.tensors[names[at]], values)
        if tensor is None or tensor.is_complex():
            continue
        planes = _first(tensor)
        channels, height, width = _fit(wanted[at], size)
        pixels, lo, hi = _bytes_of(planes, channels, height, width)
        row = (at, channels, planes.shape[0], height, width, number(lo), number(hi))
        for key, value in zip(found, row, strict=True):
            found[key].append(value)
        parts.append(pixels)
    if not parts:
        return None
    data = base64.b64encode(b"".join(parts)).decode()
    return {**found, "left_out": len(wanted) - len(parts), "data": data}


_OVERHEAD: Final = 48
"""Bytes of JSON that a map's row takes, in terms of base64's payload."""


def _total(wanted: Mapping[int, tuple[int, int, int]], size: _Size) -> int:
    return sum(math.prod(_fit(shape, size)) + _OVERHEAD for shape in wanted.values())


def _spread(wanted: Mapping[int, tuple[int, int, int]], size: _Size, budget: int) -> Iterator[int]:
    """Those that fit, evenly spread over the run."""
    share = min(1.0, budget / max(1, _total(wanted, size)))
    spent = 0
    for rank, (at, shape) in enumerate(wanted.items()):
        cost = math.prod(_fit(shape, size)) + _OVERHEAD
        if int((rank + 1) * share) > int(rank * share) and spent + cost <= budget:
            spent += cost
            yield at


def _planes(facts: TensorFacts) -> tuple[int, int, int] | None:
    """Channels, height and width of what can be seen; None for what has less than two pixels a side."""
    shape = facts.shape
    if not 2 <= len(shape) <= 4 or min(shape) < 1 or facts.layout != "strided" or facts.dtype[0] == "c":
        return None
    channels = 1 if len(shape) < 4 else shape[1]
    height, width = shape[-2:]
    return (channels, height, width) if min(height, width) > 1 and height * width >= 9 else None


def _fit(shape: tuple[int, int, int], size: _Size) -> tuple[int, int, int]:
    """The channels shown and their size; a single plane may be as wide as four."""
    channels, height, width = shape
    side = size.side if channels > 1 else 2 * size.side
    shrink = min(1.0, side / max(height, width))
    return (
        min(channels, size.channels),
        max(min(height, 4), round(height * shrink)),
        max(min(width, 4), round(width * shrink)),
    )


def _first(tensor: torch.Tensor) -> torch.Tensor:
    """[channels, height, width] of the first item."""
    if tensor.dim() == 2:
        return tensor[None]
    return tensor[:1] if tensor.dim() == 3 else tensor[0]


def _bytes_of(planes: torch.Tensor, channels: int, height: int, width: int) -> tuple[bytes, float, float]:
    chosen = planes[:channels].detach()
    pixels = chosen.to(torch.float64 if chosen.dtype == torch.float64 else torch.float32).numpy()
    # numpy, not torch's pooling: one thread, where torch's many wait for each other over so small a task.
    with np.errstate(invalid="ignore", over="ignore"):
        small = _means(_means(pixels, 1, height), 2, width)
    finite = np.isfinite(small)
    seen = np.sort(small[finite], axis=None)
    if not seen.size:
        return bytes([NOT_FINITE]) * small.size, 0.0, 0.0
    cut = int(seen.size * 0.005)
    lo, hi = float(seen[cut]), float(seen[-1 - cut])
    if lo < 0 < hi:  # zero in the middle, so that the sign is seen
        lo, hi = -max(-lo, hi), max(-lo, hi)
    span = hi - lo
    with np.errstate(invalid="ignore", over="ignore"):
        levels = np.rint((small - lo) / span * 254) if span > 0 else np.zeros_like(small)
        levels = np.where(finite, np.clip(levels, 0, 254), NOT_FINITE)
    return levels.astype(np.uint8).tobytes(), lo, hi


def _means(pixels: Array, axis: int, count: int) -> Array:
    """Means of `count` runs along an axis, as even in length as they can be."""
    size = pixels.shape[axis]
    begins = np.arange(count) * size // count
    lengths: Array = np.diff(begins, append=size).reshape([-1 if at == axis else 1 for at in range(3)])
    means: Array = np.add.reduceat(pixels, begins, axis=axis, dtype=np.float64) / lengths
    return means
