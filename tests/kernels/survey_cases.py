"""Tensors for the tests of survey: every dtype, any strides, values where looking goes wrong."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from tensure.kernels import ELEMENTS

Array = NDArray[Any]

KINDS = {"f": "float", "i": "int", "u": "uint", "c": "complex"}


def numpy_of(element: str) -> np.dtype[Any]:
    """The numpy dtype of a name in ELEMENTS."""
    special = {"bf16": np.dtype(ml_dtypes.bfloat16), "bool": np.dtype(np.bool_)}
    return special.get(element) or np.dtype(KINDS[element[0]] + element[1:])


DTYPES = {name: numpy_of(name) for name in ELEMENTS}
FLOATS = ("f32", "f64", "f16", "bf16", "c64", "c128")


def any_bits(element: str, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Any bit pattern there is, NaNs of all kinds among them, but doubles whose squares would overflow."""
    dtype = DTYPES[element]
    raw = rng.integers(0, 256, int(np.prod(shape)) * dtype.itemsize, np.uint8)
    if element == "bool":
        raw &= 1
    if element in ("f64", "c128"):
        bits = raw.view(np.uint64)
        exponent = bits >> 52 & 0x7FF
        bits[(exponent > 0x5F0) & (exponent < 0x7FF)] &= ~np.uint64(1 << 62)
    return raw.view(dtype).reshape(shape)


def numbers(element: str, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Plain numbers around 20, some zeros, and in floats now and then what is not finite."""
    found = rng.normal(20, 30, shape)
    found[rng.random(shape) < 0.1] = 0
    if element in ("u8", "u16", "u32", "u64"):
        found = np.abs(found)
    if element in FLOATS and rng.random() < 0.5:
        found[rng.random(shape) < 0.01] = rng.choice([np.nan, np.inf, -np.inf])
    return np.asarray(found, np.float64).astype(DTYPES[element])


def restrided(x: Array, rng: np.random.Generator) -> Array:
    """A view of it: dims in another order, every second, backwards, or spread out."""
    if x.ndim == 0:
        return x
    y = x.transpose(rng.permutation(x.ndim))
    dim = int(rng.integers(x.ndim))
    cut = [slice(None)] * x.ndim
    cut[dim] = (slice(None), slice(None, None, 2), slice(None, None, -1), slice(1, None))[rng.integers(4)]
    y = y[tuple(cut)]
    return np.broadcast_to(y, (3, *y.shape)) if rng.random() < 0.2 else y
