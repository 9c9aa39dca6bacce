"""A GGUF file's metadata and tensors, read as hostile bytes.

Knows: the container, versions 2 and 3, little-endian, as described by ggml's gguf.md. The whole table is
validated before one tensor is handed out: every count and length against the bytes left before anything is
allocated, every tensor against its exact place. A file's bytes are fully covered: header, table, tensors in
table order, zero padding, nothing else, so no second file can hide in one.

Does not know what the metadata means (`_gguf_tokenizer.py`, `from_gguf.py`) nor how a block decodes
(`_encodings.py`).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from tensure.errors import FormatError, LimitError, UnsupportedError

from ._encodings import MAX_DIM, encoded_nbytes
from ._files import map_file
from ._weights import StoredTensor

__all__ = ["GgufFile", "MetadataValue", "parse_gguf", "read_gguf"]

MetadataValue = bool | int | float | str | tuple[str, ...] | npt.NDArray[np.generic]

MAX_TABLE_BYTES = 128 << 20  # header, metadata and tensor table together
MAX_ENTRIES = 1 << 16  # metadata keys; also tensors
MAX_STRINGS = 1 << 21  # items of all string arrays together
MAX_TEXT_BYTES = 32 << 20  # bytes of all strings together: a str may take four times as much
MAX_STRING_BYTES = 4 << 20  # one string: chat templates and licences
MAX_ITEM_BYTES = 1 << 16  # one item of a string array
MAX_KEY_BYTES = (1 << 16) - 1
MAX_NAME_BYTES = 256  # of a tensor; ggml itself stops at 64
MAX_DIMS = 4  # GGML_MAX_DIMS
MAX_ALIGNMENT = 1 << 16

_GET_AGAIN = "Copy or download the file again, and compare its size and digest with its source"
_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS: Mapping[int, str] = MappingProxyType(
    {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", _BOOL: "B", 10: "Q", 11: "q", 12: "d"}
)
_TYPE_NAMES = (
    "uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "bool", "string", "array", "uint64",
    "int64", "float64",
)  # fmt: skip
_ARRAYS: Mapping[int, str] = MappingProxyType(
    {
        0: "u1",
        1: "i1",
        2: "<u2",
        3: "<i2",
        4: "<u4",
        5: "<i4",
        6: "<f4",
        _BOOL: "u1",
        10: "<u8",
        11: "<i8",
        12: "<f8",
    }
)
#: ggml tensor type numbers.
_TENSOR_TYPES: Mapping[int, str] = MappingProxyType(
    {
        0: "f32", 1: "f16", 2: "q4_0", 3: "q4_1", 6: "q5_0", 7: "q5_1", 8: "q8_0", 10: "q2_k", 11: "q3_k",
        12: "q4_k", 13: "q5_k", 14: "q6_k", 24: "i8", 25: "i16", 26: "i32", 27: "i64", 28: "f64", 30: "bf16",
    }
)  # fmt: skip
_UNREAD_TYPES: Mapping[int, str] = MappingProxyType(
    {
        4: "q4_2", 5: "q4_3", 9: "q8_1", 15: "q8_k", 16: "iq2_xxs", 17: "iq2_xs", 18: "iq3_xxs", 19: "iq1_s",
        20: "iq4_nl", 21: "iq3_s", 22: "iq2_s", 23: "iq4_xs", 29: "iq1_m", 31: "q4_0_4_4", 32: "q4_0_4_8",
        33: "q4_0_8_8", 34: "tq1_0", 35: "tq2_0", 36: "iq4_nl_4_4", 37: "iq4_nl_4_8", 38: "iq4_nl_8_8",
        39: "mxfp4", 40: "nvfp4", 41: "q1_0",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class GgufFile:
    """What one GGUF file holds. Tensors are read-only slices of the mapped file, in file order."""

    path: str
    version: int
    alignment: int
    metadata: Mapping[str, MetadataValue]
    tensors: Mapping[str, StoredTensor]


def read_gguf(path: str | os.PathLike[str]) -> GgufFile:
    """The metadata and tensors of a GGUF file, nothing decoded, nothing copied but the metadata.

    Raises:
        FormatError: the bytes break the format. LimitError: a table larger than any model needs.
        UnsupportedError: version 1, big-endian, a split file, a nested array, an unread tensor type.
        InputError: the file cannot be opened. Each names file, byte offset and key or tensor.
    """
    return parse_gguf(map_file(path), os.fspath(path))


def parse_gguf(data: npt.NDArray[np.uint8], file: str) -> GgufFile:
    """`read_gguf` for bytes already at hand; `file` is what errors call them."""
    cursor = _Cursor(data, file)
    version = _read_version(cursor)
    num_tensors = cursor.count("tensors", at_least_bytes=24, most=MAX_ENTRIES)
    num_keys = cursor.count("metadata keys", at_least_bytes=13, most=MAX_ENTRIES)
    metadata = _read_metadata(cursor, num_keys)
    alignment = _alignment(cursor, metadata)
    rows = _read_rows(cursor, num_tensors)
    tensors = _place(cursor, rows, alignment)
    return GgufFile(file, version, alignment, MappingProxyType(metadata), MappingProxyType(tensors))


class _Cursor:
    """A position in the table that never passes its end and never allocates more than the bytes left."""

    __slots__ = ("data", "end", "file", "place", "position", "strings_left", "text_left", "view")

    def __init__(self, data: npt.NDArray[np.uint8], file: str) -> None:
        self.data = data
        self.view = data.data
        self.end = data.size
        self.position = 0
        self.file = file
        self.place = ""
        self.strings_left = MAX_STRINGS
        self.text_left = MAX_TEXT_BYTES

    def where(self, offset: int | None = None) -> str:
        """The place for an error: byte offset, and the key or tensor being read."""
        at = f"byte {self.position if offset is None else offset}"
        return f"{at}, {self.place}" if self.place else at

    def bad(self, found: str, wanted: str | None = None, *, offset: int | None = None) -> FormatError:
        return FormatError(
            found, file=self.file, place=self.where(offset), wanted=wanted, next_step=_GET_AGAIN
        )

    def limit(self, found: str, wanted: str) -> LimitError:
        return LimitError(found, file=self.file, place=self.where(), wanted=wanted)

    def unsupported(self, found: str, wanted: str, next_step: str | None = None) -> UnsupportedError:
        return UnsupportedError(found, file=self.file, place=self.where(), wanted=wanted, next_step=next_step)

    def need(self, nbytes: int, what: str) -> int:
        """The position of the next `nbytes` bytes, which are then passed over."""
        start = self.position
        if nbytes > self.end - start:
            raise self.bad(f"{what} needs {nbytes} bytes", f"at most the {self.end - start} that are left")
        if start + nbytes > MAX_TABLE_BYTES:
            raise self.limit(
                f"{what} ends at byte {start + nbytes}", f"a table of at most {MAX_TABLE_BYTES} bytes"
            )
        self.position = start + nbytes
        return start

    def u32(self, what: str) -> int:
        return int.from_bytes(self.view[self.need(4, what) : self.position], "little")

    def u64(self, what: str) -> int:
        return int.from_bytes(self.view[self.need(8, what) : self.position], "little")

    def count(self, what: str, *, at_least_bytes: int, most: int) -> int:
        """A number of things, each of which takes at least so many bytes of those left."""
        start = self.position
        number = self.u64(f"the number of {what}")
        left = self.end - self.position
        if number > left // at_least_bytes:
            raise self.bad(
                f"{number} {what} cannot fit in the {left} bytes left",
                f"at most {left // at_least_bytes}",
                offset=start,
            )
        if number > most:
            raise self.limit(f"{number} {what}", f"at most {most}")
        return number

    def string(self, what: str, most: int) -> str:
        length = self.u64(f"the length of {what}")
        if length > self.end - self.position:
            left = self.end - self.position
            raise self.bad(
                f"{what} of {length} bytes", f"at most the {left} bytes left", offset=self.position - 8
            )
        if length > most:
            raise self.limit(f"{what} of {length} bytes", f"at most {most}")
        if length > self.text_left:
            raise self.limit(f"more than {MAX_TEXT_BYTES} bytes of text", "less")
        self.text_left -= length
        start = self.need(length, what)
        try:
            return str(self.view[start : start + length], "utf-8")
        except UnicodeDecodeError as error:
            raise self.bad(f"{what} is not valid UTF-8", offset=start + error.start) from error

    def name(self, what: str, most: int) -> str:
        """A non-empty string without control characters: it will stand in messages and paths of ours."""
        start = self.position
        name = self.string(what, most)
        if not name.isprintable() or not name:
            raise self.bad(f"{what} {name[:40]!r}", "printable characters, at least one", offset=start)
        return name


def _read_version(cursor: _Cursor) -> int:
    magic = bytes(cursor.view[cursor.need(4, "the magic number") : cursor.position])
    if magic != b"GGUF":
        raise cursor.bad(f"starts with {magic!r}", "b'GGUF'", offset=0)
    version = cursor.u32("the version")
    if version in (2, 3):
        return version
    if version == 1:
        raise cursor.unsupported(
            "GGUF version 1", "version 2 or 3", "Convert the model again with a current tool"
        )
    if version & 0xFFFF == 0:
        raise cursor.unsupported("a big-endian file", "little-endian", "Convert it with gguf-convert-endian")
    raise cursor.bad(f"version {version}", "2 or 3", offset=4)


def _read_metadata(cursor: _Cursor, count: int) -> dict[str, MetadataValue]:
    metadata: dict[str, MetadataValue] = {}
    for index in range(count):
        cursor.place = f"metadata key {index}"
        start = cursor.position
        key = cursor.name("a metadata key", MAX_KEY_BYTES)
        cursor.place = f"key {key[:80]!r}"
        if key in metadata:
            raise cursor.bad("the key stands there twice", offset=start)
        metadata[key] = _read_value(cursor)
    cursor.place = ""
    splits = metadata.get("split.count", 1)
    if splits not in (0, 1) or isinstance(splits, float):
        raise cursor.unsupported(
            f"one part of a model split in {splits!r}",
            "a whole model",
            "Merge the parts with llama-gguf-split --merge",
        )
    return metadata


def _read_value(cursor: _Cursor) -> MetadataValue:
    kind = cursor.u32("the value's type")
    if kind == _STRING:
        return cursor.string("a string", MAX_STRING_BYTES)
    if kind == _ARRAY:
        return _read_array(cursor)
    if kind not in _SCALARS:
        raise cursor.bad(f"value type {kind}", "0 to 12", offset=cursor.position - 4)
    code = "<" + _SCALARS[kind]
    start = cursor.need(struct.calcsize(code), f"a {_TYPE_NAMES[kind]}")
    value: int | float = struct.unpack_from(code, cursor.view, start)[0]
    if kind != _BOOL:
        return value
    if value not in (0, 1):
        raise cursor.bad(f"a bool stored as {value}", "0 or 1", offset=start)
    return bool(value)


def _read_array(cursor: _Cursor) -> MetadataValue:
    kind = cursor.u32("the array's item type")
    if kind == _ARRAY:
        raise cursor.unsupported("an array of arrays", "an array of numbers or strings")
    if kind != _STRING and kind not in _ARRAYS:
        raise cursor.bad(f"item type {kind}", "0 to 8 or 10 to 12", offset=cursor.position - 4)
    if kind == _STRING:
        return _read_strings(cursor)
    dtype = np.dtype(_ARRAYS[kind])
    start = cursor.position
    number = cursor.u64("the array's length")
    if number > (cursor.end - cursor.position) // dtype.itemsize:
        left = cursor.end - cursor.position
        raise cursor.bad(
            f"an array of {number} {_TYPE_NAMES[kind]}", f"at most the {left} bytes left", offset=start
        )
    first = cursor.need(number * dtype.itemsize, "an array")
    array = cursor.data[first : cursor.position].view(dtype).copy()
    if kind == _BOOL:
        if array.size and int(array.max()) > 1:
            raise cursor.bad(f"a bool stored as {int(array.max())}", "0 or 1", offset=first)
        array = array.view(np.bool_)
    array.flags.writeable = False
    return array


def _read_strings(cursor: _Cursor) -> tuple[str, ...]:
    number = cursor.count("strings", at_least_bytes=8, most=MAX_STRINGS)
    if number > cursor.strings_left:
        raise cursor.limit("too many strings in all arrays together", f"at most {MAX_STRINGS}")
    cursor.strings_left -= number
    key = cursor.place
    items: list[str] = []
    # A vocabulary has some 100,000 of these: a fast path for the good ones, the slow path says what is wrong.
    unpack, view, end = struct.Struct("<Q").unpack_from, cursor.view, min(cursor.end, MAX_TABLE_BYTES)
    for index in range(number):
        start = cursor.position + 8
        if start <= end:
            (length,) = unpack(view, start - 8)
            if length <= MAX_ITEM_BYTES and length <= end - start and length <= cursor.text_left:
                try:
                    items.append(str(view[start : start + length], "utf-8"))
                except UnicodeDecodeError as error:
                    cursor.place = f"{key}, item {index}"
                    raise cursor.bad("the string is not valid UTF-8", offset=start + error.start) from error
                cursor.position = start + length
                cursor.text_left -= length
                continue
        cursor.place = f"{key}, item {index}"
        items.append(cursor.string("a string", MAX_ITEM_BYTES))
    cursor.place = key
    return tuple(items)


def _alignment(cursor: _Cursor, metadata: dict[str, MetadataValue]) -> int:
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 1 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        cursor.place = "key 'general.alignment'"
        raise cursor.bad(f"alignment {alignment!r}", f"a power of two from 1 to {MAX_ALIGNMENT}")
    return alignment


@dataclass(frozen=True, slots=True)
class _Row:
    """One line of the tensor table: `at` is its own place, `offset` counts from the data section."""

    name: str
    at: int
    shape: tuple[int, ...]
    encoding: str
    nbytes: int
    offset: int


def _read_rows(cursor: _Cursor, count: int) -> list[_Row]:
    rows: dict[str, _Row] = {}
    for index in range(count):
        cursor.place = f"tensor {index}"
        at = cursor.position
        name = cursor.name("a tensor name", MAX_NAME_BYTES)
        cursor.place = f"tensor {name!r}"
        if name in rows:
            raise cursor.bad("the tensor stands there twice", offset=at)
        rows[name] = _read_row(cursor, name, at)
    cursor.place = ""
    return list(rows.values())


def _read_row(cursor: _Cursor, name: str, at: int) -> _Row:
    num_dims = cursor.u32("the number of dimensions")
    if num_dims > MAX_DIMS:
        raise cursor.bad(f"{num_dims} dimensions", f"at most {MAX_DIMS}", offset=cursor.position - 4)
    dims = [cursor.u64("a dimension") for _ in range(num_dims)]
    if any(dim >= MAX_DIM for dim in dims):
        raise cursor.bad(f"dimensions {dims}", "each below 2^48", offset=cursor.position - 8 * num_dims)
    kind = cursor.u32("the tensor type")
    if kind in _UNREAD_TYPES:
        raise cursor.unsupported(
            f"tensor type {_UNREAD_TYPES[kind]}",
            " ".join(_TENSOR_TYPES.values()),
            "Use a file quantised as Q8_0 or Q4_K_M",
        )
    if kind not in _TENSOR_TYPES:
        raise cursor.bad(f"tensor type {kind}", "a ggml type number", offset=cursor.position - 4)
    shape = tuple(reversed(dims))  # ggml writes the fastest-varying dimension first
    try:
        nbytes = encoded_nbytes(_TENSOR_TYPES[kind], shape)
    except FormatError as error:
        raise error.at(cursor.file, cursor.where(at)) from None
    return _Row(name, at, shape, _TENSOR_TYPES[kind], nbytes, cursor.u64("the tensor's offset"))


def _place(cursor: _Cursor, rows: list[_Row], alignment: int) -> dict[str, StoredTensor]:
    """Every tensor as its slice of the file, once all of them are known to lie exactly one after another."""
    size = cursor.end
    base = _aligned(cursor.position, alignment)
    spans = [(cursor.position, base, "the table")]
    expected = 0
    for row in rows:
        cursor.place = f"tensor {row.name!r}"
        if row.offset % alignment:
            raise cursor.bad(
                f"offset {row.offset}", f"a multiple of the alignment, {alignment}", offset=row.at
            )
        if row.nbytes > size or row.offset > size or base + row.offset + row.nbytes > size:
            raise cursor.bad(
                f"{row.nbytes} bytes at offset {row.offset} end past the file",
                f"at most {max(size - base, 0)} bytes of tensors",
                offset=row.at,
            )
        if row.offset != expected:
            fault = "overlaps the tensor before it" if row.offset < expected else "leaves a hole before it"
            raise cursor.bad(f"offset {row.offset} {fault}", f"{expected}", offset=row.at)
        end = row.offset + row.nbytes
        expected = _aligned(end, alignment)
        spans.append((base + end, base + expected, cursor.place))
    cursor.place = ""
    if size > base + expected:
        raise cursor.bad(
            f"{size - base - expected} bytes follow the last tensor", "none", offset=base + expected
        )
    for start, stop, after in spans:
        if cursor.data[start:stop].any():
            raise cursor.bad(f"padding after {after} is not zero", offset=start)
    return {
        row.name: StoredTensor(
            row.shape, row.encoding, cursor.data[base + row.offset : base + row.offset + row.nbytes]
        )
        for row in rows
    }


def _aligned(offset: int, alignment: int) -> int:
    return (offset + alignment - 1) & -alignment
