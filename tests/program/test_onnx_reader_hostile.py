"""ONNX files that lie: what the catalogue of attacks lists is refused, each for its own reason."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from tensure.errors import FormatError, LimitError, TensureError, UnsupportedError
from tensure.program import _encodings, _onnx_reader, _onnx_scope, _onnx_tensors, _protobuf
from tensure.program._onnx import OnnxModel
from tensure.program._onnx_reader import read_onnx_bytes

from .hostile_onnx import (
    GROUP,
    Message,
    attribute,
    entry,
    function,
    graph,
    header,
    ints,
    laughs,
    model,
    node,
    opset,
    packed,
    small,
    sub_graph,
    tensor,
    value,
)

GRAPH, NODES, INITIALIZERS, INPUTS = 7, 1, 5, 11


def read(whole: Message) -> OnnxModel:
    return read_onnx_bytes(whole.serialise(), file="m.onnx")


# --- the catalogue: each attack is refused for its own reason --------------------------------------------


@dataclass(frozen=True)
class Attack:
    """One lie in an otherwise valid file. `row` is its number in the catalogue of bad inputs."""

    row: int
    name: str
    change: Callable[[Message], Message | None]
    error: type[TensureError]
    message: str

    def raw(self) -> bytes:
        whole = small()
        return (self.change(whole) or whole).serialise()


def _at(path: tuple[int, ...], change: Callable[[Message], object]) -> Callable[[Message], None]:
    """Change the message under these field numbers."""

    def changed(whole: Message) -> None:
        change(whole.at(*path))

    return changed


def _top(change: Callable[[Message], object]) -> Callable[[Message], None]:
    return _at((), change)


def _graph(change: Callable[[Message], object]) -> Callable[[Message], None]:
    return _at((GRAPH,), change)


def _weights(change: Callable[[Message], object]) -> Callable[[Message], None]:
    return _at((GRAPH, INITIALIZERS), change)


def _node(change: Callable[[Message], object]) -> Callable[[Message], None]:
    return _at((GRAPH, NODES), change)


def _extra(*parts: Message) -> Callable[[Message], None]:
    """More initializers."""

    def change(whole: Message) -> None:
        for part in parts:
            whole.at(GRAPH).add(INITIALIZERS, part)

    return change


def _whole(*nodes: Message, functions: tuple[Message, ...] = (), **_: Any) -> Callable[[Message], Message]:
    found = graph(nodes, [value("x")], [value("y")])
    return lambda _: model(found, opset(17), opset(1, "own"), functions=functions)


def _dims(*dims: int) -> Callable[[Message], None]:
    def change(weights: Message) -> None:
        weights.drop(1)
        for dim in dims:
            weights.add(1, dim)

    return _weights(change)


def _deep(levels: int) -> Message:
    """Graphs in graphs: each is three messages deep."""
    inner = graph([node("Neg", "x", "a0")], [], [value("a0", None)])
    for level in range(1, levels + 1):
        loop = node("Loop", "", f"a{level}", sub_graph("body", inner))
        inner = graph([loop], [], [value(f"a{level}", None)])
    inner.add(INPUTS, value("x"))
    return model(inner)


def _group(whole: Message) -> None:
    whole.fields.insert(0, Message().add(30, b"", wire=GROUP).fields[0])


RAW, MARK = 9, "*/_ORT_MEM_ADDR_/*"
ATTACKS = [
    Attack(
        25,
        "a length past the file",
        _top(lambda m: setattr(m.fields[-1], "length", 2**31)),
        FormatError,
        "left",
    ),
    Attack(
        25,
        "a length of 2^64-1",
        _node(lambda n: setattr(n.field(4), "length", 2**64 - 1)),
        FormatError,
        "left",
    ),
    Attack(
        25,
        "a child longer than its message",
        _node(lambda n: setattr(n.fields[-1], "length", 99)),
        FormatError,
        "at most the .* left in its message",
    ),
    Attack(25, "a number cut off", _top(lambda m: m.add(8, b"\x10\x80")), FormatError, "cut off"),
    Attack(
        25,
        "a number of 70 bits",
        _top(lambda m: m.add(8, b"\x10" + b"\xff" * 9 + b"\x7f")),
        FormatError,
        "64 bits",
    ),
    Attack(
        25,
        "a number of eleven bytes",
        _top(lambda m: m.add(8, b"\x10" + b"\x80" * 10 + b"\1")),
        FormatError,
        "64 bits",
    ),
    Attack(25, "field number 0", _top(lambda m: m.add(0, 1)), FormatError, "field number 0"),
    Attack(25, "field number 2^29", _top(lambda m: m.add(2**29, 1)), FormatError, "field number 536870912"),
    Attack(25, "a group", _group, FormatError, "a group in ModelProto"),
    Attack(25, "wire type 7", _top(lambda m: m.add(30, 1, wire=7)), FormatError, "type 7"),
    Attack(
        25,
        "a name that is a number",
        _node(lambda n: n.put(4, 7)),
        FormatError,
        "field 4 of NodeProto is a varint",
    ),
    Attack(
        25,
        "a float of 64 bits",
        _at(
            (
                7,
                1,
            ),
            lambda m: m.add(5, Message().add(1, "q").add(2, b"12345678", wire=1)),
        ),
        FormatError,
        "is 64 bits",
    ),
    Attack(
        25, "a name that is no UTF-8", _node(lambda n: n.put(4, b"a\xff")), FormatError, "not valid UTF-8"
    ),
    Attack(25, "escape codes in a name", _node(lambda n: n.put(2, "\x1b[2J")), FormatError, "printable"),
    Attack(25, "a name over 4 KiB", _node(lambda n: n.put(4, "n" * 4097)), LimitError, "4096"),
    Attack(25, "graphs 30 deep", lambda w: _deep(30), LimitError, "at most 64 deep"),
    Attack(
        25,
        "floats of 7 bytes",
        _extra(header("e", "f32", (1,)).add(4, bytes(7))),
        FormatError,
        "7 bytes of 4-byte",
    ),
    Attack(
        25,
        "packed and not",
        _extra(header("e", "i64", (2,)).add(7, b"\1").add(7, 1)),
        FormatError,
        "both packed",
    ),
    Attack(
        25,
        "a value twice",
        _weights(lambda t: t.add(4, bytes(48))),
        FormatError,
        "float_data and in raw_data",
    ),
    Attack(
        25, "too few bytes", _weights(lambda t: t.put(RAW, bytes(47))), FormatError, "47 bytes .* wanted 48"
    ),
    Attack(
        25, "too many bytes", _weights(lambda t: t.put(RAW, bytes(49))), FormatError, "49 bytes .* wanted 48"
    ),
    Attack(25, "no bytes", _weights(lambda t: t.drop(RAW)), FormatError, "0 bytes .* wanted 48"),
    Attack(
        25,
        "too few in a list",
        _extra(header("e", "i64", (9,)).add(7, b"\1\2")),
        FormatError,
        "2 values .* wanted 9",
    ),
    Attack(
        25,
        "another dtype's list",
        _extra(header("e", "i64", (1,)).add(5, b"\1")),
        FormatError,
        "i64 values in int32",
    ),
    Attack(
        25,
        "an int8 of 200",
        _extra(header("e", "i8", (1,)).add(5, packed([200]))),
        FormatError,
        "value 200 for i8",
    ),
    Attack(
        25, "a bool of 2", _extra(header("e", "bool", (1,)).add(5, b"\2")), FormatError, "value 2 for bool"
    ),
    Attack(
        25,
        "a list that is cut off",
        _extra(header("e", "i64", (1,)).add(7, b"\1\x80")),
        FormatError,
        "cut off",
    ),
    Attack(
        25,
        "2^60 elements in a list",
        _extra(header("e", "i64", (2**30, 2**28)).add(7, b"\1")),
        FormatError,
        "1 values in int64_data; wanted 288230376151711744",
    ),
    Attack(25, "a product past 2^62", _dims(2**40, 2**40), FormatError, r"at most 2\^62"),
    Attack(25, "a product that wraps to 48", _dims(2**32, 2**32, 12), FormatError, r"at most 2\^62"),
    Attack(25, "a negative dimension", _dims(-3, -4), FormatError, r"each below 2\^48"),
    Attack(71, "2^48 beside 0", _extra(header("e", "f32", (2**48, 0))), FormatError, r"each below 2\^48"),
    Attack(71, "nine empty dimensions", _extra(header("e", "f32", [0] * 9)), LimitError, "9 dimensions"),
    Attack(25, "data type 0", _weights(lambda t: t.put(2, 0)), FormatError, "data type 0"),
    Attack(25, "no data type", _weights(lambda t: t.drop(2)), FormatError, "data type 0"),
    Attack(25, "data type 99", _weights(lambda t: t.put(2, 99)), FormatError, "data type 99"),
    Attack(
        25,
        "a dtype we do not read",
        _weights(lambda t: t.put(2, 13)),
        UnsupportedError,
        "'w' is an initializer of u64",
    ),
    Attack(
        25,
        "a constant of strings",
        _whole(node("Constant", "", "y", attribute("v", 4, 5, header("", "string", ())))),
        UnsupportedError,
        "attribute 'v': a tensor of string",
    ),
    Attack(25, "a segment", _weights(lambda t: t.add(3, Message())), UnsupportedError, "segment"),
    Attack(25, "a sparse initializer", _graph(lambda g: g.add(15, Message())), UnsupportedError, "sparse"),
    Attack(
        25,
        "a sparse attribute",
        _node(lambda n: n.add(5, attribute("s", 11, 22, Message()))),
        UnsupportedError,
        "SPARSE",
    ),
    Attack(
        25,
        "two initializers of one name",
        _extra(tensor("w", np.ones(1))),
        FormatError,
        "'w': its name is empty or taken",
    ),
    Attack(
        25, "an initializer without a name", _weights(lambda t: t.put(8, "")), FormatError, "empty or taken"
    ),
    Attack(
        28,
        "external data of no folder",
        _weights(lambda t: t.drop(RAW).add(13, entry("location", "w")).add(14, 1)),
        TensureError,
        "given as bytes",
    ),
    Attack(
        28,
        "an address in memory",
        _weights(lambda t: t.drop(RAW).add(13, entry("location", MARK)).add(14, 1)),
        FormatError,
        "reserved for addresses",
    ),
    Attack(
        28,
        "an address, not said to be external",
        _weights(lambda t: t.add(13, entry("location", MARK))),
        FormatError,
        "external_data on a tensor that lies in the file",
    ),
    Attack(
        28,
        "external data and raw data",
        _weights(lambda t: t.add(13, entry("location", "w")).add(14, 1)),
        FormatError,
        "external data and raw_data",
    ),
    Attack(28, "data location 7", _weights(lambda t: t.add(14, 7)), FormatError, "data location 7"),
    Attack(
        29,
        "an input without a type",
        _at(
            (
                7,
                11,
            ),
            lambda m: m.drop(2),
        ),
        FormatError,
        "'x' has no type",
    ),
    Attack(
        29,
        "an input without an element type",
        _at(
            (
                7,
                11,
                2,
                1,
            ),
            lambda m: m.drop(1),
        ),
        FormatError,
        "'x' has no type",
    ),
    Attack(
        29,
        "an empty type",
        _at(
            (
                7,
                11,
            ),
            lambda m: m.put(2, Message()),
        ),
        FormatError,
        "'x' has no type",
    ),
    Attack(
        29,
        "element type 77",
        _at(
            (
                7,
                11,
                2,
                1,
            ),
            lambda m: m.put(1, 77),
        ),
        FormatError,
        "data type 77",
    ),
    Attack(
        29,
        "a type of two kinds",
        _at(
            (
                7,
                11,
                2,
            ),
            lambda m: m.add(4, Message()),
        ),
        FormatError,
        "two kinds",
    ),
    Attack(
        29,
        "an input without a name",
        _at(
            (
                7,
                11,
            ),
            lambda m: m.drop(1),
        ),
        FormatError,
        "no name",
    ),
    Attack(
        29,
        "a negative dimension of a type",
        _at(
            (
                7,
                11,
                2,
                1,
                2,
                1,
            ),
            lambda m: m.put(2, 0).drop(2).add(1, -2),
        ),
        FormatError,
        "dimension -2",
    ),
    Attack(
        29,
        "a dimension of 2^48",
        _at(
            (
                7,
                11,
                2,
                1,
                2,
                1,
            ),
            lambda m: m.drop(2).add(1, 2**48),
        ),
        FormatError,
        "dimension 2814",
    ),
    Attack(
        29,
        "a size and a name",
        _at(
            (
                7,
                11,
                2,
                1,
                2,
                1,
            ),
            lambda m: m.add(1, 4),
        ),
        FormatError,
        "a size and a name",
    ),
    Attack(29, "no graph", _top(lambda m: m.drop(7)), FormatError, "no graph"),
    Attack(29, "no IR version", _top(lambda m: m.drop(1)), FormatError, "no ir_version"),
    Attack(
        29, "IR version 99", _top(lambda m: m.put(1, 99)), UnsupportedError, "IR version 99; wanted 3 to 14"
    ),
    Attack(29, "no opset", _top(lambda m: m.drop(8)), FormatError, "no opset"),
    Attack(
        29, "opset 12", _top(lambda m: m.put(8, opset(12))), UnsupportedError, "opset 12; wanted 13 to 22"
    ),
    Attack(
        29,
        "opset 23",
        _top(lambda m: m.put(8, opset(23, "ai.onnx"))),
        UnsupportedError,
        "opset 23; wanted 13 to 22",
    ),
    Attack(29, "opset -1", _top(lambda m: m.put(8, opset(-1))), FormatError, "opset -1"),
    Attack(29, "two opsets of one domain", _top(lambda m: m.add(8, opset(18))), FormatError, "two opsets"),
    Attack(29, "a domain without an opset", _node(lambda n: n.add(7, "com.evil")), FormatError, "'com.evil'"),
    Attack(29, "a node without an op", _node(lambda n: n.drop(4)), FormatError, "without an op"),
    Attack(29, "a node without outputs", _node(lambda n: n.drop(2)), FormatError, "without outputs"),
    Attack(
        29,
        "two attributes of one name",
        _node(lambda n: n.add(5, ints("axes", 1))),
        FormatError,
        "'axes': its name",
    ),
    Attack(
        29,
        "an attribute without a type",
        _at(
            (
                7,
                1,
                5,
            ),
            lambda m: m.drop(20),
        ),
        FormatError,
        "attribute type 0",
    ),
    Attack(
        29,
        "an attribute of another type",
        _at(
            (
                7,
                1,
                5,
            ),
            lambda m: m.put(20, 1),
        ),
        FormatError,
        "than its type, FLOAT",
    ),
    Attack(
        29,
        "an attribute of two values",
        _at(
            (
                7,
                1,
                5,
            ),
            lambda m: m.add(3, 1),
        ),
        FormatError,
        "than its type, INTS",
    ),
    Attack(
        29,
        "a graph that is not there",
        _at(
            (
                7,
                1,
                5,
            ),
            lambda m: m.put(20, 5).drop(8),
        ),
        FormatError,
        "without its value",
    ),
    Attack(
        29,
        "a reference outside a function",
        _at(
            (
                7,
                1,
                5,
            ),
            lambda m: m.drop(8).add(21, "q"),
        ),
        FormatError,
        "refers to 'q'",
    ),
    Attack(
        29,
        "a name read before it is made",
        _whole(node("Neg", "h", "y"), node("Neg", "x", "h")),
        FormatError,
        "node 0 .*'h' is not made before",
    ),
    Attack(
        29, "a node that reads itself", _whole(node("Neg", "y", "y")), FormatError, "'y' is not made before"
    ),
    Attack(
        29,
        "a name made twice",
        _whole(node("Neg", "x", "y"), node("Neg", "x", "y")),
        FormatError,
        "'y' is made twice",
    ),
    Attack(29, "an output that is an input", _whole(node("Neg", "x", "x")), FormatError, "'x' is made twice"),
    Attack(
        29, "two outputs of one name", _whole(node("Split", "x", "y y")), FormatError, "'y' is made twice"
    ),
    Attack(
        29, "an output nobody makes", _whole(node("Neg", "x", "h")), FormatError, "output 'y' is not made"
    ),
    Attack(29, "two inputs of one name", _graph(lambda g: g.add(11, value("x"))), FormatError, "two inputs"),
    Attack(
        29,
        "a branch's name used outside",
        _whole(
            node("If", "x", "h", sub_graph("b", graph([node("Neg", "x", "i")], [], [value("i", None)]))),
            node("Neg", "i", "y"),
        ),
        FormatError,
        "node 1 .*'i' is not made before",
    ),
    Attack(
        29,
        "a branch that reads what comes later",
        _whole(
            node("If", "x", "h", sub_graph("b", graph([node("Neg", "y", "i")], [], [value("i", None)]))),
            node("Neg", "h", "y"),
        ),
        FormatError,
        "node 0 'the If', b, node 0 .*'y' is not made before",
    ),
    Attack(
        29,
        "a branch that hides an outer name",
        _whole(node("If", "x", "y", sub_graph("b", graph([node("Neg", "x", "x")], [], [value("x", None)])))),
        FormatError,
        "'x' is made twice",
    ),
    Attack(
        29,
        "a function that calls itself",
        _whole(
            node("f", "x", "y", domain="own"),
            functions=(
                function("f", [node("g", "x", "y", domain="own")]),
                function("g", [node("f", "x", "y", domain="own")]),
            ),
        ),
        FormatError,
        "a function that calls itself",
    ),
    Attack(29, "functions that double", lambda _: laughs(40), LimitError, "with every function written out"),
    Attack(
        29,
        "two functions of one name",
        _top(lambda m: m.add(25, function("Twice", []))),
        FormatError,
        "stands there twice",
    ),
    Attack(
        29,
        "a function's output nobody makes",
        _top(lambda m: m.add(25, function("f", []))),
        FormatError,
        "output 'y'",
    ),
    Attack(29, "an overload", _node(lambda n: n.add(8, "v2")), UnsupportedError, "overload"),
    Attack(
        29,
        "metadata twice",
        _top(lambda m: m.add(14, entry("source", "b"))),
        FormatError,
        "'source' stands there twice",
    ),
]


def test_the_unharmed_file_is_accepted() -> None:
    """The control of every attack below: without its one lie, the same file reads."""
    assert len(read(small()).graph.nodes) == 6
    assert len(read(_deep(20)).graph.nodes) == 1
    assert len(read(laughs(15)).functions) == 16


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: f"{attack.row} {attack.name}")
def test_the_catalogue_is_refused(attack: Attack) -> None:
    start = time.process_time()
    with pytest.raises(attack.error, match=f"^m.onnx, .*{attack.message}") as caught:
        read_onnx_bytes(attack.raw(), file="m.onnx")
    assert len(str(caught.value)) < 500
    assert time.process_time() - start < 1


def test_the_catalogue_has_no_two_rows_of_one_name() -> None:
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS)


@pytest.mark.parametrize(
    ("name", "where", "weaken"),
    [
        ("graphs 30 deep", _protobuf, {"MAX_DEPTH": 200}),
        ("a name over 4 KiB", _protobuf, {"MAX_NAME_BYTES": 5000}),
        ("nine empty dimensions", _onnx_tensors, {"MAX_DIMS": 16}),
        ("2^48 beside 0", _onnx_tensors, {"MAX_DIM": 2**64}),
        ("functions that double", _onnx_scope, {"MAX_EXPANDED_NODES": 2**60}),
        ("IR version 99", _onnx_reader, {"IR_VERSIONS": (3, 200)}),
        ("a name read before it is made", _onnx_reader, {"check_names": lambda model: None}),
        ("a branch that reads what comes later", _onnx_scope._Scope, {"read": lambda *_: None}),
        ("a name made twice", _onnx_scope._Scope, {"make": lambda scope, name, own: scope.made.add(name)}),
        ("an int8 of 200", _onnx_tensors, {"_NARROW": {**_onnx_tensors._NARROW, "i8": ("i1", -999, 999)}}),
    ],
)
def test_a_weakened_reader_no_longer_refuses_for_that_reason(
    name: str, where: Any, weaken: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    attack = next(attack for attack in ATTACKS if attack.name == name)
    for constant, changed in weaken.items():
        monkeypatch.setattr(where, constant, changed)
        if hasattr(_encodings, constant):
            monkeypatch.setattr(_encodings, constant, changed)
    assert read_onnx_bytes(attack.raw(), file="m.onnx").graph.name == "g"


@pytest.mark.parametrize("version", [1, 12, 23, 2**63 - 1])
def test_another_range_of_opsets_is_for_who_asks(version: int) -> None:
    raw = small().put(8, opset(version)).add(8, opset(1, "own")).serialise()
    with pytest.raises(UnsupportedError, match=f"opset {version}; wanted 13 to 22"):
        read_onnx_bytes(raw)
    assert read_onnx_bytes(raw, opsets=(1, 2**63)).opsets == {"": version, "own": 1}


def test_what_is_no_model_is_refused() -> None:
    for raw in (b"", b"\0", b"PK\3\4", b"GGUF" + bytes(100), b"not a model at all", bytes(1000)):
        with pytest.raises(FormatError):
            read_onnx_bytes(raw)


def test_every_cut_of_a_file_is_refused() -> None:
    """A file cut between two fields of its outermost message lacks something that comes later."""
    raw = Message([*small().fields[:2], *small().fields[3:], small().fields[2]]).serialise()
    read_onnx_bytes(raw)
    for end in range(len(raw)):
        with pytest.raises(TensureError):
            read_onnx_bytes(raw[:end])
