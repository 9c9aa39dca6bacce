"""The C++ kernels of native/, and beside each a plain numpy reference that defines what it computes.

The instruction set is chosen once, at load, and can be forced with the environment variable TENSURE_ISA.
Arguments are checked here, with the caller's own words; the bindings check again and compute nothing. Knows
no Program and no torch: arrays in, arrays out.
"""

from __future__ import annotations

from tensure.kernels._dequantize import ENCODINGS, dequantize, dequantize_reference
from tensure.kernels._isa import available_isas, built_isas, features, isa

__all__ = [
    "ENCODINGS",
    "available_isas",
    "built_isas",
    "dequantize",
    "dequantize_reference",
    "features",
    "isa",
]
