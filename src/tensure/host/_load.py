"""Stored weights as torch tensors, decoded once, in memory torch allocated.

Alignment is part of repeatability: a BLAS may sum in another order on an unaligned operand, so every tensor
here begins where torch's allocator puts it, never inside somebody's mapped file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch

from tensure import kernels
from tensure.program import StoredTensor

from ._dtypes import TORCH_DTYPES


def load_weights(
    weights: Mapping[str, StoredTensor], *, threads: int | None = None
) -> dict[str, torch.Tensor]:
    """Every weight decoded, by name, each with memory of its own.

    Block encodings become float32; plain ones keep their dtype, bf16 included.

    Args:
        weights: as a reader or bundle gives them.
        threads: for the native decoders; torch's own number when left out.
    """
    workers = torch.get_num_threads() if threads is None else threads
    return {key: _load(stored, workers) for key, stored in weights.items()}


def _load(stored: StoredTensor, threads: int) -> torch.Tensor:
    dtype = TORCH_DTYPES[stored.dtype]
    count = math.prod(stored.shape)
    made = torch.empty(count, dtype=dtype)
    if stored.encoding in kernels.ENCODINGS and count:
        kernels.dequantize(stored.encoding, np.ascontiguousarray(stored.data), made.numpy(), threads)
    elif stored.encoding == stored.dtype != "bool":
        made.view(torch.uint8).numpy()[:] = stored.data
    else:
        made.numpy()[:] = stored.decode().reshape(-1)
    return made.reshape(stored.shape)
