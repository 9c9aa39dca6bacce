"""The op table: every family of ops registers itself on import."""

from . import (
    _activations,
    _algebra,
    _attention,
    _backward,
    _communication,
    _convolution,
    _elementwise,
    _indexing,
    _integers,
    _normalization,
    _random,
    _reductions,
    _shapes,
)
from ._communication import collective, infer_collective
from ._table import OpDef, bind_op, evaluate_op, infer_op, is_listed, listed, lookup

__all__ = [
    "OpDef",
    "bind_op",
    "collective",
    "evaluate_op",
    "infer_collective",
    "infer_op",
    "is_listed",
    "listed",
    "lookup",
]

FAMILIES = (
    _elementwise,
    _activations,
    _reductions,
    _shapes,
    _indexing,
    _algebra,
    _convolution,
    _normalization,
    _attention,
    _backward,
    _integers,
    _random,
    _communication,
)
"""In the order of docs/ops.md."""
