"""Whether our reader and the onnx package make the same of one file: an AssertionError where they do not."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest

from tensure.program._onnx import OnnxGraph, OnnxModel, OnnxNode, OnnxRef, OnnxType
from tensure.program._weights import StoredTensor

from .hostile_onnx import TYPES

__all__ = ["compare"]


def compare(raw: bytes, found: OnnxModel) -> bool:
    """Raise unless the onnx package makes the same of these bytes; False if it cannot read them at all.

    That may be: it looks into messages that we pass over unread, and some may be damaged.
    """
    onnx = pytest.importorskip("onnx")
    from google.protobuf.message import DecodeError

    try:
        peer = onnx.ModelProto.FromString(raw)
    except DecodeError:
        return False
    assert found.ir_version == peer.ir_version
    versions = {"" if part.domain == "ai.onnx" else part.domain: part.version for part in peer.opset_import}
    assert found.opsets == versions
    _compare_graph(onnx, peer.graph, found.graph)
    for part in peer.functions:
        own = found.functions[part.domain, part.name]
        assert (own.inputs, own.outputs) == (tuple(part.input), tuple(part.output))
        _compare_nodes(onnx, part.node, own.nodes)
    return True


def _compare_graph(onnx: Any, peer: Any, found: OnnxGraph) -> None:
    assert found.name == peer.name
    assert [part.name for part in peer.input] == [part.name for part in found.inputs]
    assert [part.name for part in peer.output] == [part.name for part in found.outputs]
    assert {part.name for part in peer.initializer} == found.initializers.keys() | found.unread.keys()
    for part in peer.initializer:
        if part.name in found.initializers:
            _compare_tensor(onnx, part, found.initializers[part.name])
    for part, mine in zip(peer.input, found.inputs, strict=True):
        _compare_type(part.type, mine)
    for part in peer.value_info:
        assert part.name in found.values
    _compare_nodes(onnx, peer.node, found.nodes)


def _compare_type(peer: Any, found: OnnxType) -> None:
    if found.kind != "tensor":
        return
    assert TYPES.get(found.dtype or "", peer.tensor_type.elem_type) == peer.tensor_type.elem_type
    dims = [
        (dim.dim_param or None) if dim.HasField("dim_param") else dim.dim_value if dim.HasField("dim_value")
        and dim.dim_value >= 0 else None for dim in peer.tensor_type.shape.dim
    ]  # fmt: skip
    assert list(found.shape or ()) == dims


def _compare_tensor(onnx: Any, peer: Any, found: StoredTensor) -> None:
    values = onnx.numpy_helper.to_array(peer)
    decoded = found.decode()
    assert (decoded.shape, decoded.dtype) == (values.shape, values.dtype)
    assert decoded.tobytes() == values.tobytes()


def _compare_nodes(onnx: Any, peers: Any, nodes: tuple[OnnxNode, ...]) -> None:
    assert len(peers) == len(nodes)
    for peer, mine in zip(peers, nodes, strict=True):
        assert (peer.op_type, tuple(peer.input), tuple(peer.output), peer.name) == (
            mine.op_type, mine.inputs, mine.outputs, mine.name,
        )  # fmt: skip
        assert {part.name for part in peer.attribute} == mine.attrs.keys()
        for part in peer.attribute:
            _compare_attribute(onnx, part, mine.attrs[part.name])


def _compare_attribute(onnx: Any, peer: Any, found: object) -> None:
    if isinstance(found, OnnxRef):
        assert peer.ref_attr_name == found.name
        return
    wanted = onnx.helper.get_attribute_value(peer)
    if isinstance(found, StoredTensor):
        _compare_tensor(onnx, wanted, found)
    elif isinstance(found, OnnxGraph):
        _compare_graph(onnx, wanted, found)
    elif isinstance(found, OnnxType):
        _compare_type(wanted, found)
    elif isinstance(found, tuple):
        mine = [item.encode() if isinstance(item, str) else item for item in found]
        assert np.array_equal(mine, list(wanted), equal_nan=peer.type == 6)
    elif isinstance(found, float):
        assert struct.pack("<d", found) == struct.pack("<d", wanted)
    else:
        assert (found.encode() if isinstance(found, str) else found) == wanted
