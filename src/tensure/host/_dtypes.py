"""Dtype names and torch's dtypes."""

from __future__ import annotations

from typing import Final

import torch

TORCH_DTYPES: Final[dict[str, torch.dtype]] = {
    "f64": torch.float64,
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "i64": torch.int64,
    "i32": torch.int32,
    "i16": torch.int16,
    "i8": torch.int8,
    "u8": torch.uint8,
    "bool": torch.bool,
}
NAMES: Final = {dtype: name for name, dtype in TORCH_DTYPES.items()}


def dtype_word(dtype: torch.dtype) -> str:
    """Our name of a torch dtype, torch's own where a Program has none."""
    return NAMES.get(dtype) or str(dtype).removeprefix("torch.")
