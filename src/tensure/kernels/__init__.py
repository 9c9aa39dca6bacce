"""The C++ kernels of native/, and beside each a plain numpy reference that defines what it computes.

The instruction set is chosen once, at load, and can be forced with the environment variable TENSURE_ISA.
Arguments are checked here, with the caller's own words; the bindings check again and compute nothing. Knows
no Program and no torch: arrays in, arrays out.
"""

from __future__ import annotations

from tensure.kernels._buffers import aligned_bytes, aligned_floats, check_threads
from tensure.kernels._conv import (
    PackedConv,
    conv2d,
    convert_layout,
    im2win,
    pack_conv2d,
)
from tensure.kernels._conv_bf16 import (
    PackedConvBf16,
    conv2d_bf16,
    gemm_bf16,
    pack_conv2d_bf16,
    pack_gemm_bf16,
)
from tensure.kernels._conv_geometry import ACTIVATIONS, ALGORITHMS, LAYOUTS, SWITCHES, Conv, image_shape
from tensure.kernels._conv_int8 import (
    PackedConvInt8,
    Requantize,
    conv2d_int8,
    gemm_int8,
    pack_conv2d_int8,
    pack_gemm_int8,
)
from tensure.kernels._conv_int8_reference import conv2d_int8_reference, requantize_reference
from tensure.kernels._conv_reference import conv2d_reference, im2win_reference
from tensure.kernels._decoder import (
    KV_FORMATS,
    PAGE_TOKENS,
    PLAIN_KINDS,
    DecoderLayer,
    DecoderSizes,
    DecoderStage,
    PlainMatrix,
    StepRows,
)
from tensure.kernels._decoder_reference import decoder_reference
from tensure.kernels._dequantize import ENCODINGS, dequantize, dequantize_reference
from tensure.kernels._gemv import (
    ARITHMETICS,
    GEMV_FORMATS,
    Activations,
    Arithmetic,
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
from tensure.kernels._gemv_repack import repack_gguf, repacked_bytes
from tensure.kernels._isa import available_isas, built_isas, features, isa
from tensure.kernels._peak import PEAK_KINDS, measure_peak
from tensure.kernels._segment import ImageShape, Input, Slot, StepList
from tensure.kernels._survey import (
    ELEMENTS,
    Survey,
    hash128,
    histogram,
    histogram_at,
    survey,
    survey_at,
)
from tensure.kernels._survey_reference import hash128_reference, histogram_reference, survey_reference

__all__ = [
    "ACTIVATIONS",
    "ALGORITHMS",
    "LAYOUTS",
    "SWITCHES",
    "Conv",
    "PackedConv",
    "conv2d",
    "conv2d_reference",
    "convert_layout",
    "im2win",
    "im2win_reference",
    "pack_conv2d",
    "aligned_bytes",
    "check_threads",
    "aligned_floats",
    "image_shape",
    "ImageShape",
    "Input",
    "Slot",
    "StepList",
    "PackedConvInt8",
    "Requantize",
    "conv2d_int8",
    "conv2d_int8_reference",
    "gemm_int8",
    "pack_conv2d_int8",
    "pack_gemm_int8",
    "requantize_reference",
    "PackedConvBf16",
    "conv2d_bf16",
    "gemm_bf16",
    "pack_conv2d_bf16",
    "pack_gemm_bf16",
    "KV_FORMATS",
    "PAGE_TOKENS",
    "PLAIN_KINDS",
    "DecoderLayer",
    "DecoderSizes",
    "DecoderStage",
    "PlainMatrix",
    "StepRows",
    "decoder_reference",
    "ENCODINGS",
    "PEAK_KINDS",
    "available_isas",
    "built_isas",
    "dequantize",
    "dequantize_reference",
    "isa",
    "ARITHMETICS",
    "Arithmetic",
    "GEMV_FORMATS",
    "Activations",
    "GemvWeights",
    "decode_weights",
    "exact_is_fused",
    "features",
    "gemv",
    "gemv_reference",
    "map_gguf",
    "pack_int4",
    "pack_int8",
    "quantize_activations",
    "read_memory",
    "repack_gguf",
    "repacked_bytes",
    "measure_peak",
    "ELEMENTS",
    "Survey",
    "hash128",
    "hash128_reference",
    "histogram",
    "histogram_at",
    "histogram_reference",
    "survey",
    "survey_at",
    "survey_reference",
]
