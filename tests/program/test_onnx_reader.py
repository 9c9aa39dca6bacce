"""ONNX files: what other writers write, we read, as the onnx package does."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensure.errors import FormatError, UnsupportedError
from tensure.program import _protobuf, _varints
from tensure.program._files import map_file
from tensure.program._onnx import OnnxGraph, OnnxModel, OnnxNode, OnnxRef, OnnxType
from tensure.program._onnx_reader import read_onnx, read_onnx_bytes
from tensure.program._weights import StoredTensor

from .hostile_onnx import (
    Message,
    attribute,
    function,
    graph,
    header,
    ints,
    model,
    node,
    opset,
    packed,
    small,
    tensor,
    value,
    varint,
)
from .onnx_peer import compare

GRAPH, NODES, INITIALIZERS, INPUTS, OUTPUTS = 7, 1, 5, 11, 12


def read(whole: Message) -> OnnxModel:
    return read_onnx_bytes(whole.serialise(), file="m.onnx")


def _chain(*initializers: Message, **changes: Any) -> Message:
    """x -> Relu -> y, with these initializers beside."""
    return model(graph([node("Relu", "x", "y")], [value("x")], [value("y")], initializers), **changes)


# --- what is right is read ---------------------------------------------------------------------------


def test_a_small_file_reads_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(small().serialise())
    found = read_onnx(path)
    assert (found.opsets, found.ir_version, found.producer) == ({"": 17, "own": 1}, 8, "test")
    assert found.metadata == {"source": "hand"}
    nodes = found.graph.nodes
    assert [part.op_type for part in nodes] == ["MatMul", "Constant", "If", "Clip", "Twice", "Add"]
    assert nodes[3].inputs == ("r", "", "top")
    assert (nodes[0].name, nodes[4].domain) == ("the MatMul", "own")
    assert nodes[0].attrs == {"axes": (0, -1), "alpha": 0.5}
    assert nodes[3].attrs == {"mode": "reflect", "to": 1}
    assert nodes[4].attrs == {"gain": (1.0, 2.0)}
    assert nodes[5].attrs == {"names": ("a", b"\xff"), "t": OnnxType("", "i64", (2,))}
    assert found.graph.inputs == (OnnxType("x", "f32", ("batch", 3)),)
    assert found.graph.values == {"h": OnnxType("h", "f32", ("batch", 4))}
    then = nodes[2].attrs["then_branch"]
    assert isinstance(then, OnnxGraph)
    assert then.nodes == (OnnxNode("Neg", ("h",), ("n",), name="the Neg"),)
    assert then.initializers["k"].decode().tolist() == [1, 1]
    decoded = {name: stored.decode().tolist() for name, stored in found.graph.initializers.items()}
    assert decoded["b"] == [0, 1, 2, 3]
    assert (decoded["top"], decoded["halves"], decoded["wide"]) == (-1, [1.0, -2.0], [2.5])
    own = found.functions["own", "Twice"]
    assert (own.inputs, own.outputs, own.attrs) == (("x",), ("y",), ("gain",))
    assert own.nodes[0].attrs == {"g": OnnxRef("gain")}


def test_raw_initializers_are_slices_of_the_mapping(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    weights = np.arange(1 << 16, dtype=np.float32)
    listed = header("l", "f32", (1 << 16,)).add(4, weights.tobytes())
    path.write_bytes(_chain(tensor("w", weights), listed).serialise())
    mapped = map_file(path)
    found = read_onnx_bytes(mapped)
    start = mapped.__array_interface__["data"][0]
    for name in "wl":
        at = found.graph.initializers[name].data.__array_interface__["data"][0]
        assert start < at < start + mapped.size
        assert not found.graph.initializers[name].data.flags.writeable
        assert found.graph.initializers[name].decode().tobytes() == weights.tobytes()


EXTREMES: Mapping[str, npt.NDArray[np.generic]] = {
    "i64": np.array([0, -1, 2**63 - 1, -(2**63), 300]),
    "i32": np.array([0, -1, 2**31 - 1, -(2**31), 300], dtype=np.int32),
    "i16": np.array([0, -1, 2**15 - 1, -(2**15), 300], dtype=np.int16),
    "i8": np.array([0, -1, 127, -128], dtype=np.int8),
    "u8": np.array([0, 1, 255, 128], dtype=np.uint8),
    "bool": np.array([True, False, True]),
    "f16": np.array([0.5, -np.inf, np.nan], dtype=np.float16),
    "bf16": np.array([0.5, -np.inf, np.nan], dtype=ml_dtypes.bfloat16),
}


@pytest.mark.parametrize("dtype", EXTREMES)
@pytest.mark.parametrize("form", ["packed", "unpacked", "pieces"])
def test_typed_lists_hold_every_value(dtype: str, form: str) -> None:
    values = EXTREMES[dtype]
    bits = values.view(np.uint16) if dtype in ("f16", "bf16") else values
    numbers = [int(bit) for bit in bits.tolist()]
    stored = header("w", dtype, values.shape)
    number = 7 if dtype == "i64" else 5
    for part in {"packed": [numbers], "unpacked": [], "pieces": [numbers[:1], numbers[1:]]}[form]:
        stored.add(number, packed(part))
    for item in numbers if form == "unpacked" else ():
        stored.add(number, item)
    decoded = read(_chain(stored)).graph.initializers["w"].decode()
    assert decoded.dtype == values.dtype
    assert decoded.tobytes() == values.tobytes()


def test_an_int32_in_five_bytes_is_what_protobuf_makes_of_it() -> None:
    stored = header("w", "i32", (2,)).add(5, varint(2**32 - 1) + varint(-1))
    assert read(_chain(stored)).graph.initializers["w"].decode().tolist() == [-1, -1]


@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 300), max_size=60), st.integers(10, 40))
@settings(max_examples=200, deadline=None)
def test_varints_decode_as_one_by_one(values: list[int], chunk: int) -> None:
    before, _varints.CHUNK_BYTES = _varints.CHUNK_BYTES, chunk
    try:
        raw = np.frombuffer(packed(values) or b"", dtype=np.uint8) if values else np.empty(0, np.uint8)
        out = np.empty(_varints.count_varints(raw), dtype=np.uint64)
        assert _varints.decode_varints(raw, out) is None
        assert out.tolist() == values
    finally:
        _varints.CHUNK_BYTES = before


@pytest.mark.parametrize(
    ("raw", "where"),
    [
        (b"\x01\x80", 1),
        (b"\x01" + b"\x80" * 10 + b"\x01", 1),
        (b"\xff" * 9 + b"\x02", 0),
        (b"\x80" * 40, 0),
    ],
)
def test_varints_that_are_none(raw: bytes, where: int) -> None:
    found = _varints.decode_varints(np.frombuffer(raw, np.uint8), np.empty(9, np.uint64))
    assert found is not None
    assert found[0] == where
    wire = _protobuf.Wire(np.frombuffer(raw, np.uint8), "x")
    with pytest.raises(FormatError, match=f"byte {where}: a number"):
        wire.varint(where, len(raw))


def test_repeated_optional_fields_as_protobuf_has_them() -> None:
    """The last scalar wins; two halves of a graph are one graph."""
    whole = Message().add(1, 3).add(1, 8).add(8, opset(17)).add(2, "first").add(2, "last")
    whole.add(7, graph([node("Relu", "x", "h")], [value("x")], []))
    whole.add(7, graph([node("Relu", "h", "y")], [], [value("y")]))
    found = read(whole)
    assert (found.ir_version, found.producer, len(found.graph.nodes)) == (8, "last", 2)


def test_unknown_fields_are_passed_over() -> None:
    whole = small().add(99, "x" * 5).add(98, 7).add(97, 1.0).add(96, b"12345678", wire=1)
    whole.at(GRAPH, NODES).add(500, b"\xff\xff")
    assert len(read(whole).graph.nodes) == 6


def test_what_nobody_reads_may_be_of_any_dtype() -> None:
    words = header("words", "string", (1,)).add(6, "hello")
    found = read(_chain(words, tensor("n", np.array([1], np.uint32))))
    assert found.graph.unread == {"words": "string", "n": "u32"}
    whole = model(graph([node("Identity", "words", "y")], [], [value("y", None)], [words]))
    with pytest.raises(UnsupportedError, match=r"graph, node 0 .*'words' is an initializer of string"):
        read(whole)


def test_a_type_may_be_of_any_kind() -> None:
    sequence = Message().add(1, "s").add(2, Message().add(4, Message().add(1, Message())))
    whole = model(graph([node("SequenceAt", "s i", "y")], [sequence, value("i", "u32", None)], [value("y")]))
    whole.at(GRAPH).add(13, value("y", "f32", (-1, "n")))
    found = read(whole).graph
    assert found.inputs == (OnnxType("s", None, None, "sequence"), OnnxType("i", "u32", None))
    assert found.values["y"].shape == (None, "n")


def test_lists_of_tensors_and_graphs_and_what_a_function_leaves_open() -> None:
    inner = graph([node("Neg", "x", "i")], [], [value("i", None)])
    lists = [
        attribute("ts", 9, 10, tensor("", np.ones(1, np.int8)), tensor("", np.zeros(2, np.int16))),
        attribute("gs", 10, 11, inner, inner),
    ]
    own = function("f", [node("Neg", "x", "y", Message().add(1, "k").add(21, "with").add(20, 2))])
    own.add(11, attribute("with", 2, 3, -5))
    found = read(model(graph([node("f", "x", "y", *lists, domain="own")], [value("x")], [value("y")]),
                       opset(17), opset(1, "own"), functions=[own]))  # fmt: skip
    tensors, graphs = (found.graph.nodes[0].attrs[name] for name in ("ts", "gs"))
    assert isinstance(tensors, tuple)
    assert [stored.dtype for stored in tensors if isinstance(stored, StoredTensor)] == ["i8", "i16"]
    assert isinstance(graphs, tuple)
    assert [part.nodes[0].op_type for part in graphs if isinstance(part, OnnxGraph)] == ["Neg", "Neg"]
    assert found.functions["own", "f"].defaults == {"with": -5}
    assert found.functions["own", "f"].nodes[0].attrs == {"k": OnnxRef("with")}


def test_zeros_left_out_are_zeros() -> None:
    """Writers with implicit presence write no field for 0, 0.0 and the empty string."""
    attrs = [Message().add(1, name).add(20, kind) for name, kind in (("f", 1), ("i", 2), ("s", 3), ("n", 7))]
    whole = model(graph([node("Relu", "x", "y", *attrs)], [value("x")], [value("y")]))
    assert read(whole).graph.nodes[0].attrs == {"f": 0.0, "i": 0, "s": "", "n": ()}


def test_twenty_five_megabytes_read_at_once(tmp_path: Path) -> None:
    path = tmp_path / "big.onnx"
    nodes = [node("Add", f"v{i} w{i % 8}", f"v{i + 1}", ints("axes", 1, 2, 3)) for i in range(1000)]
    weights = [tensor(f"w{i}", np.zeros(800_000, np.float32)) for i in range(8)]
    path.write_bytes(model(graph(nodes, [value("v0")], [value("v1000")], weights)).serialise())
    assert path.stat().st_size > 25e6
    best = 9.0
    for _ in range(3):
        start = time.process_time()
        read_onnx(path)
        best = min(best, time.process_time() - start)
    assert best < 0.5


# --- the same as the onnx package has it ---------------------------------------------------------------


def test_the_onnx_package_reads_our_test_file_alike() -> None:
    raw = small().serialise()
    assert compare(raw, read_onnx_bytes(raw))


def test_the_comparison_sees_a_difference() -> None:
    """Its control: one bit of one weight, and one digit of one attribute."""
    pytest.importorskip("onnx")
    whole = small()
    found = read(whole)
    whole.at(GRAPH, INITIALIZERS).put(9, b"\1" + bytes(47))
    with pytest.raises(AssertionError):
        compare(whole.serialise(), found)
    whole = small()
    whole.at(GRAPH, NODES, 5).field(8).value = 1
    with pytest.raises(AssertionError):
        compare(whole.serialise(), found)


_ARRAYS = st.sampled_from("f4 f8 f2 i8 i4 i1 u1 ?".split()).map(np.dtype)


@given(st.lists(st.tuples(_ARRAYS, st.lists(st.integers(0, 4), max_size=4), st.booleans()), max_size=5))
@settings(max_examples=40, deadline=None)
def test_reads_what_the_onnx_package_writes(drawn: list[tuple[Any, list[int], bool]]) -> None:
    onnx = pytest.importorskip("onnx")
    rng = np.random.default_rng(len(drawn))
    tensors = []
    for index, (dtype, shape, raw) in enumerate(drawn):
        values = (rng.standard_normal(shape) * 50).astype(dtype)
        kind = onnx.helper.np_dtype_to_tensor_dtype(dtype)
        flat = values.tobytes() if raw else values.reshape(-1)
        tensors.append(onnx.helper.make_tensor(f"t{index}", kind, shape, flat, raw=raw))
    built = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("Relu", ["x"], ["y"])],
            "drawn",
            [onnx.helper.make_tensor_value_info("x", 1, ["n", 3])],
            [onnx.helper.make_tensor_value_info("y", 1, None)],
            tensors,
        ),
        opset_imports=[onnx.helper.make_opsetid("", 21)],
    )
    raw_model = built.SerializeToString()
    assert compare(raw_model, read_onnx_bytes(raw_model))


def test_the_onnx_packages_own_models_read_alike() -> None:
    onnx = pytest.importorskip("onnx")
    paths = sorted((Path(onnx.__file__).parent / "backend" / "test" / "data").rglob("*.onnx"))
    assert len(paths) > 100
    refused = 0
    for path in paths:
        try:
            found = read_onnx_bytes(map_file(path), opsets=(1, 99))
        except UnsupportedError:
            refused += 1
            continue
        assert compare(path.read_bytes(), found)
    assert refused < len(paths) // 10
