"""ONNX op types in listed ops: every family registers itself on import."""

from . import (
    _control,
    _convolution,
    _elementwise,
    _indexing,
    _normalization,
    _pooling,
    _quantized,
    _recurrent,
    _reductions,
    _resize,
    _shapes,
    _signal,
    _training,
)
from ._builder import CARRIERS, Builder, Held, Tensor
from ._graph import Scope, Walk, known_input, weight_of
from ._table import NEWEST, Row, onnx_rows

__all__ = [
    "CARRIERS",
    "FAMILIES",
    "NEWEST",
    "Builder",
    "Held",
    "Row",
    "Scope",
    "Tensor",
    "Walk",
    "known_input",
    "onnx_rows",
    "weight_of",
]

FAMILIES = (
    _elementwise,
    _reductions,
    _shapes,
    _indexing,
    _convolution,
    _pooling,
    _normalization,
    _resize,
    _recurrent,
    _quantized,
    _signal,
    _training,
    _control,
)
"""In the order of docs/onnx.md."""
