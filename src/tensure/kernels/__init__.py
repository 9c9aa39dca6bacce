"""The C++ kernels of native/, and beside each a plain numpy reference that defines what it computes.

The instruction set is chosen once, at load, and can be forced with the environment variable TENSURE_ISA.
Arguments are checked here, with the caller's own words; the bindings check again and compute nothing. Knows
no Program and no torch: arrays in, arrays out.
"""

from __future__ import annotations

from tensure.kernels._dequantize import ENCODINGS, dequantize, dequantize_reference
from tensure.kernels._gemv import (
    ARITHMETICS,
    GEMV_FORMATS,
    Activations,
    GemvWeights,
    exact_is_fused,
    gemv,
    map_gguf,
    pack_int4,
    pack_int8,
    quantize_activations,
    read_memory,
)
from tensure.kernels._gemv_reference import decode_weights, gemv_reference
from tensure.kernels._isa import available_isas, built_isas, features, isa

__all__ = [
    "ARITHMETICS",
    "ENCODINGS",
    "GEMV_FORMATS",
    "Activations",
    "GemvWeights",
    "available_isas",
    "built_isas",
    "decode_weights",
    "dequantize",
    "dequantize_reference",
    "exact_is_fused",
    "features",
    "gemv",
    "gemv_reference",
    "isa",
    "map_gguf",
    "pack_int4",
    "pack_int8",
    "quantize_activations",
    "read_memory",
]
