"""An ONNX file as the records of `_onnx.py`, read as hostile bytes.

Knows: ONNX's messages (onnx.proto, IR versions 3 to 14, opsets 13 to 22), how many of each a file may hold.
Initializers stay where they lie in the mapped file. Of what is well-formed, this refuses by name what nobody
here can compute with: sparse tensors, dtypes of no encoding of ours, other opsets.

Does not know the wire format (`_protobuf.py`), how a tensor lies in it (`_onnx_tensors.py`), other files
(`_onnx_external.py`), whether names hold together (`_onnx_scope.py`) nor what an op means (`from_onnx.py`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import numpy as np
import numpy.typing as npt

from tensure.errors import FormatError, TensureError

from ._encodings import ENCODINGS, MAX_DIM
from ._files import map_file
from ._onnx import OnnxAttr, OnnxFunction, OnnxGraph, OnnxModel, OnnxNode, OnnxRef, OnnxType
from ._onnx_external import External
from ._onnx_scope import check_names
from ._onnx_tensors import TENSOR, Tensors, dtype_word, read_entries
from ._protobuf import Message, Wire, schema
from ._weights import StoredTensor

__all__ = ["read_onnx", "read_onnx_bytes"]

OPSETS = (13, 22)  # of the default domain
IR_VERSIONS = (3, 14)
#: How many of each a file may hold, sub-graphs and functions included. Types: of inputs, outputs and values.
_MOST: Final[Mapping[str, int]] = MappingProxyType(
    {"nodes": 1 << 17, "graphs": 1 << 14, "initializers": 1 << 16, "types": 1 << 17, "functions": 1 << 12}
)
MAX_OPSETS = 1000
MAX_RANK = 64  # of a declared type: numpy's own limit; it is a hint, unlike a tensor's rank

_MODEL = schema("ModelProto", varint=(1,), length=(2, 7, 8, 14, 25))
_OPSET = schema("OperatorSetIdProto", varint=(2,), length=(1,))
_GRAPH = schema("GraphProto", length=(1, 2, 5, 11, 12, 13, 15))
_NODE = schema("NodeProto", length=(1, 2, 3, 4, 5, 7, 8))
_ATTRIBUTE = schema(
    "AttributeProto",
    varint=(3, 8, 20),
    fixed32=(2, 7),
    length=(1, 4, 5, 6, 7, 8, 9, 10, 11, 14, 15, 21, 22, 23),
)
_FUNCTION = schema("FunctionProto", length=(1, 4, 5, 6, 7, 9, 10, 11, 13))
_VALUE = schema("ValueInfoProto", length=(1, 2))
_KINDS: Final = {
    1: "tensor",
    4: "sequence",
    5: "map",
    7: "opaque",
    8: "sparse_tensor",
    9: "optional",
}
_KIND_FIELDS: Final = frozenset(_KINDS)
_TYPE = schema("TypeProto", length=tuple(_KINDS))
_TENSOR_TYPE = schema("TypeProto.Tensor", varint=(1,), length=(2,))
_SHAPE = schema("TensorShapeProto", length=(1,))
_DIM = schema("TensorShapeProto.Dimension", varint=(1,), length=(2,))

#: By attribute type: its name and the field that holds it.
_ATTRIBUTE_TYPES: Final[Mapping[int, tuple[str, int]]] = MappingProxyType(
    {
        1: ("FLOAT", 2), 2: ("INT", 3), 3: ("STRING", 4), 4: ("TENSOR", 5), 5: ("GRAPH", 6), 6: ("FLOATS", 7),
        7: ("INTS", 8), 8: ("STRINGS", 9), 9: ("TENSORS", 10), 10: ("GRAPHS", 11), 11: ("SPARSE_TENSOR", 22),
        12: ("SPARSE_TENSORS", 23), 13: ("TYPE_PROTO", 14), 14: ("TYPE_PROTOS", 15),
    }
)  # fmt: skip


def read_onnx(path: str | os.PathLike[str], *, opsets: tuple[int, int] = OPSETS) -> OnnxModel:
    """The model in an ONNX file, weights in other files beneath its folder included.

    Nothing is decoded and no initializer copied, unless it is stored as a list of varints.

    Args:
        path: the file.
        opsets: the versions of the default domain that are accepted, first and last.

    Raises:
        FormatError: the bytes break the format, or the names do not hold together. LimitError: more of
        something than any model needs. UnsupportedError: another opset, dtype or construct than we read.
        InputError: a file cannot be opened. Each names file and place.
    """
    file = os.fspath(path)
    return read_onnx_bytes(map_file(path), folder=os.path.dirname(file) or ".", file=file, opsets=opsets)


def read_onnx_bytes(
    data: bytes | npt.NDArray[np.uint8],
    *,
    folder: str | os.PathLike[str] | None = None,
    file: str = "model.onnx",
    opsets: tuple[int, int] = OPSETS,
) -> OnnxModel:
    """`read_onnx` for bytes already at hand.

    Args:
        data: the file; uint8, 1-D if an array.
        folder: where external data is looked for; without it, a model that has some is refused.
        file: what errors call the bytes.
        opsets: as for `read_onnx`.
    """
    if len(data) == 0:
        raise FormatError("the file is empty", file=file)
    view = np.frombuffer(data, dtype=np.uint8) if isinstance(data, bytes) else data.view()
    view.flags.writeable = False
    with External(folder) as external:
        try:
            model = _Reader(Wire(view, file), Tensors(external), opsets).model()
            check_names(model)
        except TensureError as error:
            error.at(file)
            raise
    return model


class _Reader:
    """Reads each kind of message; counts what the whole file may hold only so many of."""

    def __init__(self, wire: Wire, tensors: Tensors, accepted: tuple[int, int]) -> None:
        self.wire = wire
        self.accepted = accepted
        self.tensors = tensors
        self.left = dict(_MOST)

    def spend(self, what: str, count: int) -> None:
        self.left[what] -= count
        if self.left[what] < 0:
            raise self.wire.limit(f"too many {what}", f"at most {_MOST[what]}")

    def model(self) -> OnnxModel:
        wire = self.wire
        found = wire.message(_MODEL)
        ir_version = found.int64(1)
        if not found.has(7) or ir_version is None:
            raise wire.bad("no graph or no ir_version", "an ONNX model", offset=0)
        wire.trail.append("ir_version")
        if not IR_VERSIONS[0] <= ir_version <= IR_VERSIONS[1]:
            raise wire.unsupported(f"IR version {ir_version}", f"{IR_VERSIONS[0]} to {IR_VERSIONS[1]}")
        wire.trail.pop()
        opsets = self.opsets(found, 8)
        graph = found.child(7, _GRAPH)
        assert graph is not None
        self.spend("functions", found.count(25))
        functions: dict[tuple[str, str], OnnxFunction] = {}
        for index, message in enumerate(found.children(25, _FUNCTION)):
            wire.trail.append(f"function {index}")
            function = self.function(message)
            key = function.domain, function.name
            if key in functions:
                raise wire.bad(f"function {key!r} stands there twice", offset=message.start)
            functions[key] = function
            wire.trail.pop()
        wire.trail.append("graph")
        root = self.graph(graph, is_root=True)
        wire.trail.pop()
        return OnnxModel(
            graph=root,
            opsets=MappingProxyType(opsets),
            ir_version=ir_version,
            producer=found.text(2, "the producer"),
            functions=MappingProxyType(functions),
            metadata=MappingProxyType(read_entries(found, 14)),
        )

    def opsets(self, message: Message, number: int) -> dict[str, int]:
        wire = self.wire
        wire.trail.append("opset_import")
        if message.count(number) > MAX_OPSETS:
            raise wire.limit(f"{message.count(number)} opsets", f"at most {MAX_OPSETS}")
        opsets: dict[str, int] = {}
        for entry in message.children(number, _OPSET):
            domain, version = _domain(entry.name(1, "a domain")), entry.int64(2) or 0
            if version < 1:
                raise wire.bad(f"opset {version} of {domain[:60]!r}", "at least 1", offset=entry.start)
            if opsets.setdefault(domain, version) != version:
                raise wire.bad(f"two opsets of {domain[:60]!r}", "one", offset=entry.start)
            if not domain and not self.accepted[0] <= version <= self.accepted[1]:
                raise wire.unsupported(
                    f"opset {version}",
                    f"{self.accepted[0]} to {self.accepted[1]}",
                    "Convert it with onnx.version_converter, or export it again",
                )
        if not opsets:
            raise wire.bad("no opset at all", "at least one", offset=message.start)
        wire.trail.pop()
        return opsets

    # --- graphs --------------------------------------------------------------------------------------

    def graph(self, message: Message, *, is_root: bool = False) -> OnnxGraph:
        wire = self.wire
        if message.has(15):
            raise wire.unsupported("a sparse initializer", "dense initializers", "Save it as a dense tensor")
        self.spend("graphs", 1)
        self.spend("nodes", message.count(1))
        self.spend("initializers", message.count(5))
        self.spend("types", message.count(11) + message.count(12) + message.count(13))
        initializers, unread = self.initializers(message)
        inputs = self.values(message, 11, "input")
        for value in inputs:
            if is_root and value.dtype is None and value.kind == "unknown":
                raise wire.bad(f"input {value.name[:80]!r} has no type", "a type with an element type")
        return OnnxGraph(
            name=message.text(2, "a graph's name"),
            nodes=self.nodes(message, 1),
            inputs=inputs,
            outputs=self.values(message, 12, "output"),
            initializers=MappingProxyType(initializers),
            values=MappingProxyType({value.name: value for value in self.values(message, 13, "value")}),
            unread=MappingProxyType(unread),
        )

    def initializers(self, message: Message) -> tuple[dict[str, StoredTensor], dict[str, str]]:
        wire = self.wire
        read: dict[str, StoredTensor] = {}
        unread: dict[str, str] = {}
        for index, tensor in enumerate(message.children(5, TENSOR)):
            name = tensor.name(8, "an initializer's name")
            wire.trail.append(f"initializer {index} {name[:60]!r}")
            if not name or name in read or name in unread:
                raise wire.bad("its name is empty or taken", "a name of its own", offset=tensor.start)
            dtype = dtype_word(wire, tensor.int32(2))
            if dtype in ENCODINGS:
                read[name] = self.tensors.read(tensor)
            else:
                unread[name] = dtype  # refused where it is used, else harmless: its bytes are not looked at
            wire.trail.pop()
        return read, unread

    def nodes(self, message: Message, number: int) -> tuple[OnnxNode, ...]:
        nodes: list[OnnxNode] = []
        trail = self.wire.trail
        for index, node in enumerate(message.children(number, _NODE)):
            op_type = node.name(4, "an op")
            trail.append(f"node {index} {op_type[:60]!r}")
            nodes.append(self.node(node, op_type))
            trail.pop()
        return tuple(nodes)

    def node(self, message: Message, op_type: str) -> OnnxNode:
        wire = self.wire
        if not op_type:
            raise wire.bad("a node without an op", offset=message.start)
        if message.name(8, "an overload"):
            raise wire.unsupported("a call of an overloaded function", "functions without overloads")
        inputs, outputs = message.names(1, "an input"), message.names(2, "an output")
        if not any(outputs):
            raise wire.bad("a node without outputs", offset=message.start)
        name = message.text(3, "a node's name") if message.has(3) else ""
        domain = _domain(message.name(7, "a domain"))
        attrs = self.attributes(message, 5) if message.has(5) else _NO_ATTRS
        return OnnxNode(op_type, inputs, outputs, attrs, name, domain)

    def function(self, message: Message) -> OnnxFunction:
        wire = self.wire
        name = message.name(1, "a function's name")
        if not name:
            raise wire.bad("a function without a name", offset=message.start)
        wire.trail[-1] += f" {name[:60]!r}"
        if message.name(13, "an overload"):
            raise wire.unsupported("an overloaded function", "functions without overloads")
        self.spend("nodes", message.count(7))
        return OnnxFunction(
            name=name,
            domain=_domain(message.name(10, "a domain")),
            inputs=message.names(4, "an input"),
            outputs=message.names(5, "an output"),
            nodes=self.nodes(message, 7),
            attrs=message.names(6, "an attribute"),
            opsets=MappingProxyType(self.opsets(message, 9)),
            defaults=self.attributes(message, 11),
        )

    # --- attributes ----------------------------------------------------------------------------------

    def attributes(self, message: Message, number: int) -> Mapping[str, OnnxAttr]:
        wire = self.wire
        attrs: dict[str, OnnxAttr] = {}
        for attribute in message.children(number, _ATTRIBUTE):
            name = attribute.name(1, "an attribute's name")
            wire.trail.append(f"attribute {name[:60]!r}")
            if not name or name in attrs:
                raise wire.bad("its name is empty or taken", "a name of its own", offset=attribute.start)
            attrs[name] = self.attribute(attribute)
            wire.trail.pop()
        return MappingProxyType(attrs)

    def attribute(self, message: Message) -> OnnxAttr:
        wire = self.wire
        number = message.int32(20) or 0
        held = message.held(_ATTRIBUTE_VALUES)
        if message.has(21) and (reference := message.name(21, "a reference")):
            if held:
                raise wire.bad("a reference and a value", "one of them", offset=message.start)
            return OnnxRef(reference)
        if number not in _ATTRIBUTE_TYPES:
            raise wire.bad(f"attribute type {number}", f"1 to {len(_ATTRIBUTE_TYPES)}", offset=message.start)
        kind, field = _ATTRIBUTE_TYPES[number]
        if held not in ([], [field]):
            raise wire.bad(f"other values than its type, {kind}", "that one", offset=message.start)
        reader = _ATTRIBUTE_READERS.get(kind)
        if reader is None:
            raise wire.unsupported(f"an attribute of type {kind}", " ".join(_ATTRIBUTE_READERS))
        return reader(self, message, field)

    def optional_child(self, message: Message, field: int) -> Message:
        child = message.child(field, _CHILDREN[field])
        if child is None:
            raise self.wire.bad("an attribute without its value", offset=message.start)
        return child

    def strings(self, message: Message, field: int) -> tuple[str | bytes, ...]:
        return tuple(self.string(span) for span in message.spans(field))

    def string(self, span: tuple[int, int]) -> str | bytes:
        try:
            return self.wire.text(span, "a string")
        except FormatError:
            # An attribute's string may be any bytes; its length has been checked all the same.
            return bytes(self.wire.view[span[0] : span[1]])

    # --- types ---------------------------------------------------------------------------------------

    def values(self, message: Message, number: int, what: str) -> tuple[OnnxType, ...]:
        values: list[OnnxType] = []
        for index, value in enumerate(message.children(number, _VALUE)):
            self.wire.trail.append(f"{what} {index}")
            name = value.name(1, f"an {what}'s name")
            if not name:
                raise self.wire.bad("it has no name", offset=value.start)
            values.append(self.type(name, value.child(2, _TYPE)))
            self.wire.trail.pop()
        return tuple(values)

    def type(self, name: str, message: Message | None) -> OnnxType:
        held = [] if message is None else message.held(_KIND_FIELDS)
        if message is None or not held:
            return OnnxType(name, None, None, "unknown")
        if len(held) > 1:
            raise self.wire.bad("a type of two kinds", "one", offset=message.start)
        if held != [1]:
            return OnnxType(name, None, None, _KINDS[held[0]])
        tensor = message.child(1, _TENSOR_TYPE)
        assert tensor is not None
        number = tensor.int32(1) or 0
        dtype = dtype_word(self.wire, number) if number else None
        shape = tensor.child(2, _SHAPE)
        return OnnxType(
            name, dtype, None if shape is None else self.dims(shape), "unknown" if dtype is None else "tensor"
        )

    def dims(self, message: Message) -> tuple[int | str | None, ...]:
        wire = self.wire
        if message.count(1) > MAX_RANK:
            raise wire.limit(f"{message.count(1)} dimensions", f"at most {MAX_RANK}")
        dims: list[int | str | None] = []
        for dim in message.children(1, _DIM):
            size = dim.int64(1)
            if dim.has(2):
                if size is not None:
                    raise wire.bad("a dimension with a size and a name", "one of them", offset=dim.start)
                dims.append(dim.text(2, "a dimension's name") or None)
            elif size is None or size == -1:  # -1 is what some exporters write for "any"
                dims.append(None)
            elif 0 <= size < MAX_DIM:
                dims.append(size)
            else:
                raise wire.bad(f"dimension {size}", "at least 0 and below 2^48", offset=dim.start)
        return tuple(dims)


_CHILDREN: Final = {5: TENSOR, 6: _GRAPH, 14: _TYPE}
_ATTRIBUTE_VALUES: Final = frozenset(field for _, field in _ATTRIBUTE_TYPES.values())
_NO_ATTRS: Final[Mapping[str, OnnxAttr]] = MappingProxyType({})
# Where a number's own type has no field, it is zero: writers with implicit presence leave zeros out.
_ATTRIBUTE_READERS: Final[Mapping[str, Callable[[_Reader, Message, int], OnnxAttr]]] = MappingProxyType(
    {
        "FLOAT": lambda reader, message, field: message.float32(field) or 0.0,
        "INT": lambda reader, message, field: message.int64(field) or 0,
        "STRING": lambda reader, message, field: (reader.strings(message, field) or ("",))[-1],
        "TENSOR": lambda reader, message, field: reader.tensors.read(reader.optional_child(message, field)),
        "GRAPH": lambda reader, message, field: reader.graph(reader.optional_child(message, field)),
        "FLOATS": lambda reader, message, field: message.float32s(field),
        "INTS": lambda reader, message, field: message.int64s(field),
        "STRINGS": lambda reader, message, field: reader.strings(message, field),
        "TENSORS": lambda reader, message, field: tuple(
            reader.tensors.read(child) for child in message.children(field, TENSOR)
        ),
        "GRAPHS": lambda reader, message, field: tuple(
            reader.graph(child) for child in message.children(field, _GRAPH)
        ),
        "TYPE_PROTO": lambda reader, message, field: reader.type("", reader.optional_child(message, field)),
    }
)


def _domain(name: str) -> str:
    """The default domain has two names."""
    return "" if name == "ai.onnx" else name
