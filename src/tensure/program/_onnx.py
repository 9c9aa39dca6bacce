"""An ONNX file as plain records: what stands in it, checked for form and size, nothing interpreted.

Knows the records and the limits of the reader (`_onnx_reader.py`) and what the importer (`from_onnx.py`) is
given. Does not know protobuf, what an op means, or how a Program is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from ._weights import StoredTensor

__all__ = ["OnnxAttr", "OnnxFunction", "OnnxGraph", "OnnxModel", "OnnxNode", "OnnxRef", "OnnxType"]


@dataclass(frozen=True, slots=True)
class OnnxType:
    """A declared type: dtype as our words say it (`f32`), dims as sizes, names, or None if not known.

    A dtype no encoding of ours has is still named (`string`, `u16`). Other kinds than tensors have no dtype.
    """

    name: str
    dtype: str | None
    shape: tuple[int | str | None, ...] | None
    kind: str = "tensor"
    """tensor, sequence, map, optional, sparse_tensor, opaque, or unknown where the file says nothing."""


@dataclass(frozen=True, slots=True)
class OnnxRef:
    """In a function's body: the function's own attribute of that name, as the call gives it."""

    name: str


OnnxAttr: TypeAlias = (
    "int | float | str | bytes | StoredTensor | OnnxGraph | OnnxType | OnnxRef | tuple[int, ...]"
    " | tuple[float, ...] | tuple[str | bytes, ...] | tuple[StoredTensor, ...] | tuple[OnnxGraph, ...]"
)
"""A string attribute is str where it is UTF-8, else bytes."""


@dataclass(frozen=True, slots=True)
class OnnxNode:
    """One node; an empty name among inputs or outputs is an optional one left out."""

    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, OnnxAttr] = field(default_factory=dict[str, "OnnxAttr"])
    name: str = ""
    domain: str = ""


@dataclass(frozen=True, slots=True)
class OnnxGraph:
    """Nodes in order (the reader has checked that every name is made before it is read, and made once)."""

    name: str
    nodes: tuple[OnnxNode, ...]
    inputs: tuple[OnnxType, ...]
    """Declared inputs; those that are initializers too are still listed here."""
    outputs: tuple[OnnxType, ...]
    initializers: Mapping[str, StoredTensor] = field(default_factory=dict[str, StoredTensor])
    values: Mapping[str, OnnxType] = field(default_factory=dict[str, OnnxType])
    """Types the file declares for inner values: hints, never trusted."""
    unread: Mapping[str, str] = field(default_factory=dict[str, str])
    """Initializers whose dtype no encoding of ours has, by name, with that dtype; nothing uses them."""


@dataclass(frozen=True, slots=True)
class OnnxFunction:
    """A model-local function."""

    name: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[OnnxNode, ...]
    attrs: tuple[str, ...] = ()
    """Attributes that a call must give."""
    opsets: Mapping[str, int] = field(default_factory=dict[str, int])
    defaults: Mapping[str, OnnxAttr] = field(default_factory=dict[str, "OnnxAttr"])
    """Attributes that a call may give, and what they are if it does not."""


@dataclass(frozen=True, slots=True)
class OnnxModel:
    """One file."""

    graph: OnnxGraph
    opsets: Mapping[str, int]
    """Version by domain; the default domain is the empty string."""
    ir_version: int
    producer: str = ""
    functions: Mapping[tuple[str, str], OnnxFunction] = field(
        default_factory=dict[tuple[str, str], OnnxFunction]
    )
    """By (domain, name)."""
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
