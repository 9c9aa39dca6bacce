"""Protocol Buffers' wire format, walked as hostile bytes: a message's fields, in place, under fixed bounds.

Knows: tags, varints, lengths and fixed words; what a repeated optional field means (the last scalar wins,
messages merge: their bytes are read as if joined); packed and unpacked numbers. A field the schema does not
name is passed over unread. Nothing is copied but text and unpacked numbers, and no length is believed before
it is compared with the bytes that hold it.

Does not know any message: schemas come from the caller (`_onnx_reader.py`). Stricter than protobuf in what no
writer does: groups, a named field of another wire type, one field both packed and not.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tensure.errors import FormatError, LimitError, UnsupportedError

from ._varints import count_varints, decode_varints

__all__ = ["Message", "Schema", "Span", "Wire", "schema"]

MAX_BYTES = (1 << 31) - 1  # of a file: protobuf itself stops here
MAX_FIELDS = 1 << 20  # of a file, numbers in lists included; a node takes some twenty
MESSAGE_COST = 2  # fields counted for each message that is read, beside its own
MAX_DEPTH = 64  # of messages in messages
MAX_TEXT_BYTES = 32 << 20  # of all strings together: a str may take four times as much
STRING_COST = 64  # bytes counted for each string beside its own, so that half a million empty ones are all
MAX_STRING_BYTES = 4 << 20  # of one string
MAX_NAME_BYTES = 4096
MAX_FIELD_NUMBER = (1 << 29) - 1
MAX_PIECES = 1 << 12  # of one packed list, or of one message that is to be merged

_VARINT, _FIXED64, _LENGTH, _GROUP, _END_GROUP, _FIXED32 = 0, 1, 2, 3, 4, 5
_WIRE_NAMES = ("a varint", "64 bits", "a length", "a group", "a group's end", "32 bits", "type 6", "type 7")
_GET_AGAIN = "Copy or download the file again, and compare its size and digest with its source"

Span = tuple[int, int]
"""First byte and the byte after the last."""


@dataclass(frozen=True, slots=True)
class Schema:
    """The fields of a message that are read, as tags (field number * 8 + wire type)."""

    name: str
    tags: frozenset[int]
    numbers: frozenset[int]


def schema(
    name: str,
    *,
    varint: tuple[int, ...] = (),
    fixed32: tuple[int, ...] = (),
    fixed64: tuple[int, ...] = (),
    length: tuple[int, ...] = (),
) -> Schema:
    """A schema by wire type; a repeated number that may come packed stands under `length` too."""
    rows = ((_VARINT, varint), (_FIXED32, fixed32), (_FIXED64, fixed64), (_LENGTH, length))
    tags = frozenset(number << 3 | wire for wire, numbers in rows for number in numbers)
    return Schema(name, tags, frozenset(tag >> 3 for tag in tags))


class Wire:
    """One file's bytes and what may still be spent on them. `trail` says where the reader is, for errors."""

    __slots__ = ("data", "fields_left", "file", "names", "text_left", "trail", "view")

    def __init__(self, data: npt.NDArray[np.uint8], file: str) -> None:
        self.data = data
        self.view = data.data
        self.file = file
        self.trail: list[str] = []
        self.fields_left = MAX_FIELDS
        self.text_left = MAX_TEXT_BYTES
        self.names: dict[bytes, str] = {}
        if data.size > MAX_BYTES:
            raise LimitError(
                f"{data.size} bytes",
                file=file,
                wanted=f"at most {MAX_BYTES}",
                next_step="Save the weights as external data",
            )

    def message(self, schema: Schema) -> Message:
        """The whole file as one message."""
        return Message(self, schema, [(0, self.data.size)], 1)

    # --- errors --------------------------------------------------------------------------------------

    def where(self, offset: int | None = None) -> str:
        """The place for an error: byte offset, and the innermost things being read."""
        parts = [] if offset is None else [f"byte {offset}"]
        parts += self.trail if len(self.trail) <= 4 else [self.trail[0], "…", *self.trail[-3:]]
        return ", ".join(parts)

    def bad(self, found: str, wanted: str | None = None, *, offset: int | None = None) -> FormatError:
        return FormatError(
            found, file=self.file, place=self.where(offset), wanted=wanted, next_step=_GET_AGAIN
        )

    def limit(self, found: str, wanted: str, next_step: str | None = None) -> LimitError:
        return LimitError(found, file=self.file, place=self.where(), wanted=wanted, next_step=next_step)

    def unsupported(self, found: str, wanted: str, next_step: str | None = None) -> UnsupportedError:
        return UnsupportedError(found, file=self.file, place=self.where(), wanted=wanted, next_step=next_step)

    # --- bytes ---------------------------------------------------------------------------------------

    def spend(self, count: int) -> None:
        """Take `count` fields or list items from what the file may hold."""
        if count > self.fields_left:
            raise self.limit("more fields than a model needs", f"at most {MAX_FIELDS} in a file")
        self.fields_left -= count

    def varint(self, position: int, end: int) -> tuple[int, int]:
        """The number at `position` and the position behind it."""
        view, value, shift, start = self.view, 0, 0, position
        while position < end:
            byte = view[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if value >> 64:
                    break
                return value, position
            shift += 7
            if shift == 70:
                break
        else:
            raise self.bad("a number is cut off", offset=start)
        raise self.bad("a number of more than 64 bits", offset=start)

    def text(self, span: Span, what: str, most: int = MAX_STRING_BYTES) -> str:
        """A string: valid UTF-8, within what all strings together may take."""
        start, end = span
        length = end - start
        if length > most:
            raise self.limit(f"{what} of {length} bytes", f"at most {most}")
        if length + STRING_COST > self.text_left:
            raise self.limit(f"more than {MAX_TEXT_BYTES} bytes of text", "less")
        self.text_left -= length + STRING_COST
        try:
            return str(self.view[start:end], "utf-8")
        except UnicodeDecodeError as error:
            raise self.bad(f"{what} is not valid UTF-8", offset=start + error.start) from error

    def name(self, span: Span, what: str) -> str:
        """A string without control characters, perhaps empty; equal names are one object."""
        start, end = span
        known = self.names.get(bytes(self.view[start : min(end, start + MAX_NAME_BYTES + 1)]))
        if known is not None:
            return known
        name = self.text(span, what, MAX_NAME_BYTES)
        if not name.isprintable():
            raise self.bad(f"{what} {name[:40]!r}", "printable characters", offset=start)
        self.names[bytes(self.view[start:end])] = name
        return name


class Message:
    """The fields of one message that its schema names, as positions; read by the accessors below.

    `fields` has, by tag, the values of varints, the positions of fixed words, and first and last positions in
    turn of what has a length.
    """

    __slots__ = ("depth", "fields", "schema", "start", "wire")

    def __init__(self, wire: Wire, schema: Schema, spans: list[Span], depth: int) -> None:
        self.wire = wire
        self.schema = schema
        self.depth = depth
        self.start = spans[0][0]  # the first byte of its first piece
        if depth > MAX_DEPTH:
            raise wire.limit("messages in messages", f"at most {MAX_DEPTH} deep")
        wire.spend(MESSAGE_COST)
        self.fields: dict[int, array[int]] = {}
        for start, end in spans:
            self._walk(start, end)

    def _walk(self, position: int, end: int) -> None:
        wire, view, tags, fields = self.wire, self.wire.view, self.schema.tags, self.fields
        left = wire.fields_left
        while position < end:
            at = position
            tag = view[position]
            position += 1
            if tag >= 0x80:
                tag, position = wire.varint(at, end)
            left -= 1
            if left < 0:
                wire.spend(wire.fields_left + 1)
            kind = tag & 7
            first = 0
            if kind == _LENGTH:
                length = view[position] if position < end else 0x80
                position += 1
                if length >= 0x80:
                    length, position = wire.varint(position - 1, end)
                first = position
                value = position = position + length
                if position > end:
                    raise wire.bad(
                        f"field {tag >> 3} of {self.schema.name} has {length} bytes",
                        f"at most the {end - first} left in its message",
                        offset=at,
                    )
            elif kind == _VARINT:
                value = view[position] if position < end else 0x80
                position += 1
                if value >= 0x80:
                    value, position = wire.varint(position - 1, end)
            elif kind in (_FIXED32, _FIXED64):
                value = position
                position += 4 if kind == _FIXED32 else 8
                if position > end:
                    raise wire.bad(f"field {tag >> 3} of {self.schema.name} is cut off", offset=at)
            else:
                raise wire.bad(f"{_WIRE_NAMES[kind]} in {self.schema.name}", "no groups", offset=at)
            if not 8 <= tag < 1 << 32:
                raise wire.bad(
                    f"field number {tag >> 3} in {self.schema.name}", f"1 to {MAX_FIELD_NUMBER}", offset=at
                )
            if tag in tags:
                found = fields.get(tag)
                if found is None:
                    found = fields[tag] = array("Q")
                if kind == _LENGTH:
                    found.append(first)
                found.append(value)
            elif tag >> 3 in self.schema.numbers:
                raise wire.bad(
                    f"field {tag >> 3} of {self.schema.name} is {_WIRE_NAMES[kind]}",
                    "the type its schema gives it",
                    offset=at,
                )
        wire.fields_left = left

    def has(self, number: int) -> bool:
        """Whether the field stands there, in any form."""
        return any(tag >> 3 == number for tag in self.fields)

    def held(self, numbers: frozenset[int]) -> list[int]:
        """Those of these fields that stand there."""
        return sorted({tag >> 3 for tag in self.fields} & numbers)

    def spans(self, number: int) -> Iterable[Span]:
        """Every occurrence of a field that has a length, in order."""
        # Not a list: a million pairs would take twelve times the memory of the two arrays.
        found = self.fields.get(number << 3 | _LENGTH)
        return () if found is None else zip(found[::2], found[1::2], strict=True)

    def pieces(self, number: int) -> list[Span]:
        """As `spans`, where more than a few are no model's."""
        if self.count(number) > MAX_PIECES:
            raise self.wire.limit(
                f"field {number} of {self.schema.name} in {self.count(number)} pieces",
                f"at most {MAX_PIECES}",
            )
        return list(self.spans(number))

    def count(self, number: int) -> int:
        """How often a field that has a length occurs."""
        return len(self.fields.get(number << 3 | _LENGTH, ())) // 2

    def span(self, number: int) -> Span | None:
        """The last occurrence of a field that has a length."""
        found = self.fields.get(number << 3 | _LENGTH)
        return None if found is None else (found[-2], found[-1])

    def child(self, number: int, schema: Schema) -> Message | None:
        """An optional message: all its occurrences merged."""
        spans = self.pieces(number)
        return Message(self.wire, schema, spans, self.depth + 1) if spans else None

    def children(self, number: int, schema: Schema) -> Iterator[Message]:
        """A repeated message, one at a time."""
        for span in self.spans(number):
            yield Message(self.wire, schema, [span], self.depth + 1)

    def int64(self, number: int) -> int | None:
        """The last value, signed."""
        found = self.fields.get(number << 3)
        return None if found is None else _signed(found[-1], 64)

    def int32(self, number: int) -> int | None:
        """The last value, signed, its low 32 bits as in protobuf."""
        found = self.fields.get(number << 3)
        return None if found is None else _signed(found[-1] & 0xFFFFFFFF, 32)

    def float32(self, number: int) -> float | None:
        """The last value."""
        found = self.fields.get(number << 3 | _FIXED32)
        return None if found is None else float(struct.unpack_from("<f", self.wire.view, found[-1])[0])

    def text(self, number: int, what: str) -> str:
        """The last string, empty where there is none."""
        span = self.span(number)
        return "" if span is None else self.wire.text(span, what)

    def name(self, number: int, what: str) -> str:
        """The last string as a name (see `Wire.name`), empty where there is none."""
        span = self.span(number)
        return "" if span is None else self.wire.name(span, what)

    def names(self, number: int, what: str) -> tuple[str, ...]:
        """A repeated string as names."""
        wire = self.wire
        return tuple([wire.name(span, what) for span in self.spans(number)])

    def int64s(self, number: int) -> tuple[int, ...]:
        """A repeated int64, packed or not."""
        packed = self._packed(number, _VARINT)
        if packed is None:
            return tuple(_signed(value, 64) for value in self.fields.get(number << 3, ()))
        values: list[int] = []
        for start, end in packed:
            while start < end:
                self.wire.spend(1)
                value, start = self.wire.varint(start, end)
                values.append(_signed(value, 64))
        return tuple(values)

    def float32s(self, number: int) -> tuple[float, ...]:
        """A repeated float, packed or not."""
        return tuple(self.words(number, np.dtype("<f4"), self.wire.spend).tolist())

    def words(
        self, number: int, dtype: np.dtype[np.generic], reserve: Callable[[int], None]
    ) -> npt.NDArray[np.generic]:
        """A repeated fixed-size number, packed or not: a view of the file where it lies in one piece.

        `reserve` is told the number of items before any of them is copied.
        """
        size = dtype.itemsize
        kind = _FIXED32 if size == 4 else _FIXED64
        packed = self._packed(number, kind)
        if packed is None:
            at = self.fields.get(number << 3 | kind, array("Q"))
            reserve(len(at))
            rows = np.array(at, dtype=np.uint64)[:, None] + np.arange(size, dtype=np.uint64)
            words: npt.NDArray[np.generic] = self.wire.data[rows.reshape(-1)].view(dtype)
            return words
        for start, end in packed:
            if (end - start) % size:
                raise self.wire.bad(f"{end - start} bytes of {size}-byte numbers", offset=start)
        reserve(sum(end - start for start, end in packed) // size)
        pieces = [self.wire.data[start:end] for start, end in packed]
        joined = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        return joined.view(dtype)

    def varints(self, number: int, reserve: Callable[[int], None]) -> npt.NDArray[np.uint64]:
        """A repeated varint, packed or not. `reserve` is told the number of items before memory is taken."""
        packed = self._packed(number, _VARINT)
        if packed is None:
            found = self.fields.get(number << 3, array("Q"))
            reserve(len(found))
            return np.array(found, dtype=np.uint64)
        pieces = [self.wire.data[start:end] for start, end in packed]
        counts = [count_varints(piece) for piece in pieces]
        reserve(sum(counts))
        out = np.empty(sum(counts), dtype=np.uint64)
        done = 0
        for (start, _), piece, count in zip(packed, pieces, counts, strict=True):
            fault = decode_varints(piece, out[done : done + count])
            if fault is not None:
                raise self.wire.bad(fault[1], offset=start + fault[0])
            done += count
        return out

    def _packed(self, number: int, kind: int) -> list[Span] | None:
        packed = self.pieces(number)
        if packed and number << 3 | kind in self.fields:
            raise self.wire.bad(
                f"field {number} of {self.schema.name} is both packed and not", offset=self.start
            )
        return packed or None


def _signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> (bits - 1) else value
