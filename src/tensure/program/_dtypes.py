"""The dtype names records use, and their numpy counterparts. bf16 comes from `ml_dtypes`."""

from __future__ import annotations

from typing import Any, Final

import ml_dtypes
import numpy as np

from tensure.errors import UnsupportedError

DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "f64": np.dtype(np.float64),
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "i64": np.dtype(np.int64),
    "i32": np.dtype(np.int32),
    "i16": np.dtype(np.int16),
    "i8": np.dtype(np.int8),
    "u8": np.dtype(np.uint8),
    "bool": np.dtype(np.bool_),
}
_NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}
FLOATS: Final = frozenset({"f64", "f32", "f16", "bf16"})


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The numpy dtype of a dtype name."""
    try:
        return DTYPES[name]
    except KeyError:
        raise UnsupportedError(f"dtype {name!r}", wanted=" ".join(DTYPES)) from None


def dtype_name(dtype: np.dtype[Any]) -> str:
    """The dtype name of a numpy dtype."""
    try:
        return _NAMES[np.dtype(dtype)]
    except KeyError:
        raise UnsupportedError(f"numpy dtype {dtype}", wanted=" ".join(DTYPES)) from None


def item_bytes(name: str) -> int:
    """Bytes of one element."""
    return numpy_dtype(name).itemsize
