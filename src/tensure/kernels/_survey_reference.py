"""What `survey` and `hash128` must give, in numpy: the definition, not a fast path.

Statistics in float64 over the whole tensor at once; the digest as the docstring of _survey.py has it, with
Python's integers for the polynomial.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from tensure.kernels._survey import ELEMENTS, Survey

__all__ = ["hash128_reference", "histogram_reference", "survey_reference"]

Array = NDArray[Any]

CHUNK_BYTES: Final = 4096
STRIPE_BYTES: Final = 64
PASSES: Final = 4
PRIME: Final = 2**127 - 1
SEED: Final = 0x243F6A8885A308D3

SMALLEST_NORMAL: Final = {"f16": 2.0**-14, "bf16": 2.0**-126, "f32": 2.0**-126, "f64": 2.0**-1022}
NAN_BITS: Final = {  # infinity, which every NaN is above, and the NaN that stands for all
    "f16": (0x7C00, 0x7E00),
    "bf16": (0x7F80, 0x7FC0),
    "f32": (0x7F800000, 0x7FC00000),
    "f64": (0x7FF0000000000000, 0x7FF8000000000000),
}

_MASK: Final = 2**64 - 1
_NAMES: Final = {np.dtype(ml_dtypes.bfloat16): "bf16", np.dtype(np.bool_): "bool"} | {
    np.dtype(f"{kind}{size}"): f"{kind}{8 * size}"
    for kind, sizes in (("f", (2, 4, 8)), ("i", (1, 2, 4, 8)), ("u", (1, 2, 4, 8)), ("c", (8, 16)))
    for size in sizes
}


def survey_reference(x: Array, *, limit: float | None = None) -> Survey:
    """Everything but the digest, over float64."""
    parts = _parts(x)
    with np.errstate(invalid="ignore"):  # numpy warns of signalling NaNs
        values = parts.astype(np.float64)
    finite = values[np.isfinite(values)]
    magnitude = np.abs(values)
    over = magnitude > (np.inf if limit is None else limit)
    denormal = np.zeros(parts.shape, bool)
    if _is_float(parts):
        denormal = (magnitude > 0) & (magnitude < SMALLEST_NORMAL[_NAMES[parts.dtype]])
    some = finite.size > 0
    with np.errstate(over="ignore", invalid="ignore"):
        return Survey(
            count=parts.size,
            minimum=float(finite.min()) if some else None,
            maximum=float(finite.max()) if some else None,
            mean=float(finite.mean()) if some else None,
            std=float(finite.std()) if some else None,
            l2=float(np.sqrt(np.sum(finite * finite))),
            zeros=int(np.sum(values == 0)),
            denormals=int(np.sum(denormal)),
            nans=int(np.sum(np.isnan(values))),
            infinities=int(np.sum(np.isinf(values))),
            first_nonfinite=_first(~np.isfinite(values)),
            over_limit=int(np.sum(over)),
            first_over=_first(over),
            digest=None,
        )


def histogram_reference(x: Array, lo: float, hi: float, bins: int) -> NDArray[np.int64]:
    """Counts by the formula in `histogram`."""
    values = _parts(x).astype(np.float64)
    values = values[(values >= lo) & (values <= hi)]
    cuts = np.minimum(((values - lo) * (bins / (hi - lo))).astype(np.int64), bins - 1)
    return np.bincount(cuts, minlength=bins).astype(np.int64)


def hash128_reference(x: Array, *, canonical_nan: bool = False) -> bytes:
    """The digest, one line for each line of its definition."""
    key, r, mix = _numbers()
    parts = _parts(x)
    if canonical_nan and _is_float(parts):
        bits = parts.view(f"u{parts.dtype.itemsize}")
        infinity, quiet = NAN_BITS[_NAMES[parts.dtype]]
        parts = np.where(bits & (2 ** (8 * bits.itemsize - 1) - 1) > infinity, bits.dtype.type(quiet), bits)
    data = parts.tobytes()
    h = 1
    for begin in range(0, len(data), CHUNK_BYTES):
        chunk = data[begin : begin + CHUNK_BYTES]
        words = np.frombuffer(chunk + bytes(-len(chunk) % STRIPE_BYTES), "<u4")
        for p in range(PASSES):
            added = (words + key[16 * p : 16 * p + len(words)]).astype(np.uint64)
            h = (h * r + int(np.sum(added[0::2] * added[1::2], dtype=np.uint64))) % PRIME
    for coefficient in (*x.shape, x.ndim, ELEMENTS.index(_NAMES[x.dtype])):
        h = (h * r + coefficient) % PRIME
    low, high = h & _MASK, h >> 64
    for step in (0, 2):
        low ^= _scrambled(high + mix[step])
        high ^= _scrambled(low + mix[step + 1])
    return low.to_bytes(8, "little") + high.to_bytes(8, "little")


def _scrambled(z: int) -> int:
    z &= _MASK
    for _ in range(2):
        z = (z ^ z >> 32) * 0xD6E8FEB86659FD93 & _MASK
    return z ^ z >> 32


@cache
def _numbers() -> tuple[NDArray[np.uint32], int, list[int]]:
    """The key's words, r, and the constants of the mix."""
    state = SEED

    def draw() -> int:
        nonlocal state
        state = (state + 0x9E3779B97F4A7C15) & _MASK
        z = state
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        z = (z ^ z >> 27) * 0x94D049BB133111EB & _MASK
        return z ^ z >> 31

    words = [draw() for _ in range((CHUNK_BYTES + (PASSES - 1) * STRIPE_BYTES) // 8)]
    low, high = draw(), draw()
    r = (low | high << 64) & PRIME
    return np.array(words, "<u8").view("<u4"), r, [draw() for _ in range(4)]


def _parts(x: Array) -> Array:
    """In C order; the two parts of complex numbers side by side."""
    flat = np.ascontiguousarray(x).reshape(-1)
    return flat.view(f"f{flat.dtype.itemsize // 2}") if flat.dtype.kind == "c" else flat


def _is_float(parts: Array) -> bool:
    return _NAMES[parts.dtype] in SMALLEST_NORMAL


def _first(found: NDArray[np.bool_]) -> int | None:
    return int(np.argmax(found)) if found.any() else None
