"""Canonical bytes and digests of tensors: dtype and shape are part of what is hashed."""

from __future__ import annotations

import hashlib
import sys
from typing import Any

import numpy as np

from ._dtypes import dtype_name


def tensor_digest(array: np.ndarray[Any, np.dtype[Any]]) -> str:
    """`sha256:<hex>` of one tensor.

    Hashed are a header `tensure/tensor/1`, dtype and shape, then the elements, C-contiguous and
    little-endian, NaN bits as stored. A reshape or a cast changes the digest; a memory layout does not.
    """
    if array.dtype.byteorder == ">" or (array.dtype.byteorder == "=" and sys.byteorder == "big"):
        array = array.astype(array.dtype.newbyteorder("<"))
    canonical = np.ascontiguousarray(array)
    header = f"tensure/tensor/1\0{dtype_name(array.dtype)}|{','.join(map(str, array.shape))}\0"
    state = hashlib.sha256(header.encode())
    state.update(canonical.reshape(-1).view(np.uint8).data)
    return f"sha256:{state.hexdigest()}"
