"""ONNX files as editable trees of fields: valid small ones for tests, and ones that lie in a single place.

Written from onnx.proto and the wire format's description alone; shares nothing with the reader under test.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

VARINT, FIXED64, LENGTH, GROUP, END_GROUP, FIXED32 = range(6)
#: Data type numbers by our words for them.
TYPES = {
    "f32": 1, "u8": 2, "i8": 3, "u16": 4, "i16": 5, "i32": 6, "i64": 7, "string": 8, "bool": 9, "f16": 10,
    "f64": 11, "u32": 12, "u64": 13, "bf16": 16, "i4": 22,
}  # fmt: skip


def varint(value: int) -> bytes:
    value &= 2**64 - 1
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def packed(values: Sequence[int]) -> bytes:
    return b"".join(varint(value) for value in values)


@dataclass
class Field:
    """One field. Its length is the true one unless overridden."""

    number: int
    value: int | float | bytes | Message
    wire: int = -1
    length: int | None = None

    def __post_init__(self) -> None:
        if self.wire < 0:
            kinds = {int: VARINT, float: FIXED32}
            self.wire = kinds.get(type(self.value), LENGTH)

    def serialise(self) -> bytes:
        tag = varint(self.number << 3 | self.wire)
        if self.wire == LENGTH:
            raw = self.value.serialise() if isinstance(self.value, Message) else _raw(self.value)
            return tag + varint(len(raw) if self.length is None else self.length) + raw
        if self.wire == FIXED32:
            return tag + _raw(self.value)[:4].ljust(4, b"\0")
        if self.wire == FIXED64:
            return tag + _raw(self.value)[:8].ljust(8, b"\0")
        return tag + (varint(self.value) if isinstance(self.value, int) else b"\0")


def _raw(value: float | bytes | Message) -> bytes:
    if isinstance(value, Message):
        return value.serialise()
    if isinstance(value, float):
        return struct.pack("<f", value)
    return value if isinstance(value, bytes) else varint(value)


@dataclass
class Message:
    """A message: fields in the order they are written."""

    fields: list[Field] = field(default_factory=list)

    def serialise(self) -> bytes:
        return b"".join(part.serialise() for part in self.fields)

    def add(self, number: int, value: float | str | bytes | Message, **changes: int) -> Message:
        self.fields.append(Field(number, value.encode() if isinstance(value, str) else value, **changes))
        return self

    def field(self, number: int, index: int = 0) -> Field:
        return [part for part in self.fields if part.number == number][index]

    def at(self, *path: int) -> Message:
        """The message under these field numbers, the first of each."""
        found = self
        for number in path:
            value = found.field(number).value
            assert isinstance(value, Message)
            found = value
        return found

    def put(self, number: int, value: float | str | bytes | Message, **changes: int) -> Message:
        """Replace every occurrence of a field by this one."""
        self.drop(number)
        return self.add(number, value, **changes)

    def drop(self, number: int) -> Message:
        self.fields = [part for part in self.fields if part.number != number]
        return self

    def walk(self) -> Iterator[Message]:
        yield self
        for part in self.fields:
            if isinstance(part.value, Message):
                yield from part.value.walk()


# --- ONNX's messages ----------------------------------------------------------------------------------


def entry(key: str, value: str) -> Message:
    return Message().add(1, key).add(2, value)


def value(name: str, dtype: str | None = "f32", dims: Sequence[int | str] | None = ()) -> Message:
    found = Message().add(1, name)
    if dtype is None:
        return found
    tensor_type = Message().add(1, TYPES[dtype])
    if dims is not None:
        shape = Message()
        for dim in dims:
            shape.add(1, Message().add(1, dim) if isinstance(dim, int) else Message().add(2, dim))
        tensor_type.add(2, shape)
    return found.add(2, Message().add(1, tensor_type))


def tensor(name: str, values: npt.NDArray[np.generic]) -> Message:
    """A tensor with raw data; bfloat16 comes as its own dtype."""
    word = values.dtype.name
    word = word if word in ("bool", "bfloat16") else word[0] + str(values.dtype.itemsize * 8)
    found = header(name, "bf16" if word == "bfloat16" else word, values.shape)
    return found.add(9, values.tobytes())


def header(name: str, dtype: str, dims: Sequence[int]) -> Message:
    """A tensor without values."""
    found = Message()
    for dim in dims:
        found.add(1, dim)
    return found.add(2, TYPES[dtype]).add(8, name)


def external(name: str, dtype: str, dims: Sequence[int], **entries: str) -> Message:
    """A tensor in another file."""
    found = header(name, dtype, dims)
    for key, text in entries.items():
        found.add(13, entry(key, text))
    return found.add(14, 1)


def attribute(name: str, kind: int, number: int, *values: float | str | bytes | Message) -> Message:
    found = Message().add(1, name)
    for item in values:
        found.add(number, item)
    return found.add(20, kind)


def ints(name: str, *values: int) -> Message:
    return attribute(name, 7, 8, *values)


def sub_graph(name: str, found: Message) -> Message:
    return attribute(name, 5, 6, found)


def node(op_type: str, inputs: str, outputs: str, *attributes: Message, domain: str = "") -> Message:
    """A node; names are separated by spaces, and `-` stands for one left out."""
    found = Message()
    for number, names in ((1, inputs), (2, outputs)):
        for name in names.split():
            found.add(number, "" if name == "-" else name)
    found.add(3, f"the {op_type}").add(4, op_type)
    for part in attributes:
        found.add(5, part)
    return found.add(7, domain) if domain else found


def graph(
    nodes: Sequence[Message],
    inputs: Sequence[Message],
    outputs: Sequence[Message],
    initializers: Sequence[Message] = (),
) -> Message:
    found = Message()
    for part in nodes:
        found.add(1, part)
    found.add(2, "g")
    for number, parts in ((5, initializers), (11, inputs), (12, outputs)):
        for part in parts:
            found.add(number, part)
    return found


def opset(version: int, domain: str = "") -> Message:
    return Message().add(1, domain).add(2, version)


def model(found: Message, *opsets: Message, functions: Sequence[Message] = ()) -> Message:
    whole = Message().add(1, 8).add(2, "test").add(7, found)
    for part in opsets or (opset(17),):
        whole.add(8, part)
    for part in functions:
        whole.add(25, part)
    return whole


def function(
    name: str, nodes: Sequence[Message], inputs: str = "x", outputs: str = "y", attrs: str = ""
) -> Message:
    found = Message().add(1, name)
    for number, names in ((4, inputs), (5, outputs), (6, attrs)):
        for part in names.split():
            found.add(number, part)
    for part in nodes:
        found.add(7, part)
    return found.add(9, opset(17)).add(9, opset(1, "own")).add(10, "own")


def small() -> Message:
    """A valid file with every kind of attribute, tensor list and scope, but for external data."""
    weights = np.arange(12, dtype=np.float32).reshape(3, 4)
    branch = graph([node("Neg", "h", "n")], [], [value("n", None)], [tensor("k", np.ones(2, np.int8))])
    other = graph([node("Identity", "h", "o")], [], [value("o", None)])
    nodes = [
        node("MatMul", "x w", "h", ints("axes", 0, -1), attribute("alpha", 1, 2, 0.5)),
        node("Constant", "", "c", attribute("value", 4, 5, tensor("", np.array(True)))),
        node("If", "c", "r", sub_graph("then_branch", branch), sub_graph("else_branch", other)),
        node("Clip", "r - top", "p", attribute("mode", 3, 4, "reflect"), attribute("to", 2, 3, 1)),
        node("Twice", "p", "q", attribute("gain", 6, 7, 1.0, 2.0), domain="own"),
        node("Add", "q b", "y", attribute("names", 8, 9, "a", b"\xff"), attribute("t", 13, 14, _type())),
    ]
    listed = header("b", "f32", (4,))
    for number in (0.0, 1.0, 2.0, 3.0):
        listed.add(4, number)
    found = graph(
        nodes,
        [value("x", "f32", ("batch", 3))],
        [value("y", "f32", ("batch", 4))],
        [
            tensor("w", weights),
            listed,
            header("top", "i64", ()).add(7, packed([-1])),
            header("halves", "f16", (2,)).add(5, packed([0x3C00, 0xC000])),
            header("wide", "f64", (1,)).add(10, struct.pack("<d", 2.5)),
        ],
    )
    found.add(13, value("h", "f32", ("batch", 4)))
    body = [
        node("Mul", "x x", "s", Message().add(1, "g").add(21, "gain").add(20, 6)),
        node("Add", "s x", "y"),
    ]
    whole = model(found, opset(17), opset(1, "own"), functions=[function("Twice", body, attrs="gain")])
    return whole.add(14, entry("source", "hand"))


def laughs(levels: int) -> Message:
    """Functions that each call the next one twice."""
    chain = [
        function(
            f"f{i}", [node(f"f{i + 1}", "x", "h", domain="own"), node(f"f{i + 1}", "h", "y", domain="own")]
        )
        for i in range(levels)
    ]
    chain.append(function(f"f{levels}", [node("Neg", "x", "y")]))
    found = graph([node("f0", "x", "y", domain="own")], [value("x")], [value("y")])
    return model(found, opset(17), opset(1, "own"), functions=chain)


def _type() -> Message:
    return value("", "i64", (2,)).at(2)


# --- mutation -----------------------------------------------------------------------------------------

_ODD = (
    0, 1, 2, 7, 8, 9, 13, 22, 127, 128, 255, 2**31 - 1, 2**31, 2**32, 2**47, 2**48, 2**61, 2**63 - 1, 2**63,
    2**64 - 1,
)  # fmt: skip


def mutate(whole: Message, rng: random.Random) -> bytes:
    """One to three changes of the tree, re-serialised; now and then raw bytes damaged as well."""
    for _ in range(rng.randint(1, 3)):
        holders = [message for message in whole.walk() if message.fields]
        if not holders:
            break
        message = rng.choice(holders)
        rng.choice(_MUTATIONS)(message, rng.choice(message.fields), rng, holders)
    raw = bytearray(whole.serialise()) or bytearray(1)
    if rng.random() < 0.2:
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    if rng.random() < 0.1:
        del raw[rng.randrange(len(raw)) :]
    return bytes(raw)


_Mutation = Callable[[Message, Field, random.Random, list[Message]], None]


def _value(message: Message, part: Field, rng: random.Random, holders: list[Message]) -> None:
    if isinstance(part.value, int):
        part.value = rng.choice((*_ODD, part.value + 1))
    elif isinstance(part.value, bytes):
        names = [f.value for m in holders for f in m.fields if isinstance(f.value, bytes)]
        part.value = rng.choice(
            (b"", b"\xff\xfe", b"a\nb", rng.choice(names), part.value[:-1], part.value + b"\x80")
        )
    elif isinstance(part.value, float):
        part.value = float("nan")


def _length(message: Message, part: Field, rng: random.Random, holders: list[Message]) -> None:
    part.length = rng.choice(_ODD)


def _number(message: Message, part: Field, rng: random.Random, holders: list[Message]) -> None:
    part.number = rng.choice((0, *range(1, 26), 2**29 - 1, 2**29))


def _wire(message: Message, part: Field, rng: random.Random, holders: list[Message]) -> None:
    part.wire = rng.randrange(8)


def _drop(message: Message, part: Field, rng: random.Random, holders: list[Message]) -> None:
    message.fields.remove(part)


def _twice(message: Message, part: Field, rng: random.Random, holders: list[Message]) -> None:
    message.fields.insert(rng.randrange(len(message.fields) + 1), part)


def _graft(message: Message, part: Field, rng: random.Random, holders: list[Message]) -> None:
    """Another place's message: a graph for a tensor, an attribute of another node."""
    # Its bytes, not itself: a tree must not come to hold its own root.
    part.value = rng.choice(holders).serialise()
    part.wire = LENGTH


def _swap(message: Message, part: Field, rng: random.Random, holders: list[Message]) -> None:
    rng.shuffle(message.fields)


_MUTATIONS: tuple[_Mutation, ...] = (
    _value, _value, _value, _length, _number, _wire, _drop, _twice, _graft, _swap
)  # fmt: skip
