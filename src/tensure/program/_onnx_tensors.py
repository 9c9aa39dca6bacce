"""An ONNX TensorProto as a StoredTensor: shape, dtype and bytes agreed before memory is taken.

Knows: data types, where each keeps its values (raw, in typed lists, in other files), and how many bytes typed
lists may grow into. What lies in the file as raw or packed fixed-size numbers stays there: the tensor is a
view. Does not know what a tensor is for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import numpy as np
import numpy.typing as npt

from tensure.errors import TensureError

from ._encodings import ENCODINGS, MAX_DIM, encoded_nbytes
from ._onnx_external import External
from ._protobuf import Message, Wire, schema
from ._weights import StoredTensor

__all__ = ["DTYPE_WORDS", "TENSOR", "Tensors", "dtype_word", "read_entries"]

MAX_DIMS = 8
MAX_TENSORS = 1 << 16  # of a file, attributes included
MAX_DECODED_BYTES = 128 << 20  # what the typed lists of one file may grow into
MAX_ENTRIES = 1 << 12  # of one list of keys and values

#: By data type number; those that are no encoding of ours are named so that they can be refused by name.
DTYPE_WORDS: Final[Mapping[int, str]] = MappingProxyType(
    dict(
        enumerate(
            (
                "f32 u8 i8 u16 i16 i32 i64 string bool f16 f64 u32 u64 complex64 complex128 bf16 f8e4m3fn"
                " f8e4m3fnuz f8e5m2 f8e5m2fnuz u4 i4 f4e2m1 f8e8m0 u2 i2 f6e2m3 f6e3m2"
            ).split(),
            start=1,
        )
    )
)
_READ: Final = " ".join(word for word in DTYPE_WORDS.values() if word in ENCODINGS)

_FLOATS, _INT32S, _STRINGS, _INT64S, _RAW, _DOUBLES, _UINT64S = 4, 5, 6, 7, 9, 10, 11
_LISTS: Final = {_FLOATS: "float_data", _INT32S: "int32_data", _STRINGS: "string_data", _INT64S: "int64_data",
                 _RAW: "raw_data", _DOUBLES: "double_data", _UINT64S: "uint64_data"}  # fmt: skip
_SOURCES: Final = frozenset(_LISTS)
#: The typed list of each dtype; in int32_data, floats of 16 bits are their bit patterns.
_LIST_OF: Final = {
    "f32": _FLOATS, "f64": _DOUBLES, "i64": _INT64S, "i32": _INT32S, "i16": _INT32S, "i8": _INT32S,
    "u8": _INT32S, "bool": _INT32S, "f16": _INT32S, "bf16": _INT32S,
}  # fmt: skip
_NARROW: Final[Mapping[str, tuple[npt.DTypeLike, int, int]]] = MappingProxyType(
    {
        "i32": ("<i4", -(2**31), 2**31 - 1),
        "i16": ("<i2", -(2**15), 2**15 - 1),
        "i8": ("i1", -128, 127),
        "u8": ("u1", 0, 255),
        "bool": ("u1", 0, 1),
        "f16": ("<u2", 0, 2**16 - 1),
        "bf16": ("<u2", 0, 2**16 - 1),
    }
)

TENSOR = schema(
    "TensorProto",
    varint=(1, 2, _INT32S, _INT64S, _UINT64S, 14),
    fixed32=(_FLOATS,),
    fixed64=(_DOUBLES,),
    length=(1, 3, *_LISTS, 8, 13),
)
_ENTRY = schema("StringStringEntryProto", length=(1, 2))


def dtype_word(wire: Wire, number: int | None) -> str:
    """Our word for a data type number, also for those we do not read."""
    word = DTYPE_WORDS.get(number or 0)
    if word is None:
        raise wire.bad(f"data type {number or 0}", f"1 to {len(DTYPE_WORDS)}")
    return word


def read_entries(message: Message, number: int) -> dict[str, str]:
    """A list of keys and values, each key once."""
    wire = message.wire
    if message.count(number) > MAX_ENTRIES:
        raise wire.limit(f"{message.count(number)} keys and values", f"at most {MAX_ENTRIES}")
    entries: dict[str, str] = {}
    for entry in message.children(number, _ENTRY):
        key = entry.name(1, "a key")
        if key in entries:
            raise wire.bad(f"key {key[:40]!r} stands there twice", offset=entry.start)
        entries[key] = entry.text(2, "a value")
    return entries


class Tensors:
    """Reads the tensors of one file; keeps the account of how many, and what typed lists have grown into."""

    def __init__(self, external: External) -> None:
        self.external = external
        self.decoded_left = MAX_DECODED_BYTES
        self.tensors_left = MAX_TENSORS

    def read(self, message: Message) -> StoredTensor:
        """The tensor, its bytes a view of the file wherever they lie there as they are.

        Raises:
            FormatError: dims, type and bytes that do not agree. UnsupportedError: a dtype of no encoding of
            ours, a segment. LimitError: lists that would grow too large. And what `External.read` raises.
        """
        wire = message.wire
        self.tensors_left -= 1
        if self.tensors_left < 0:
            raise wire.limit("too many tensors", f"at most {MAX_TENSORS}")
        encoding = dtype_word(wire, message.int32(2))
        if encoding not in ENCODINGS:
            raise wire.unsupported(f"a tensor of {encoding}", _READ)
        if message.has(3):
            raise wire.unsupported("a segment of a tensor", "whole tensors")
        shape = message.int64s(1)
        if len(shape) > MAX_DIMS:
            raise wire.limit(f"{len(shape)} dimensions", f"at most {MAX_DIMS}")
        if any(not 0 <= dim < MAX_DIM for dim in shape):
            raise wire.bad(f"shape {list(shape)}", "dimensions of at least 0, each below 2^48")
        try:
            nbytes = encoded_nbytes(encoding, shape)
            data = self._data(message, encoding, math.prod(shape), nbytes)
            return StoredTensor(shape, encoding, data)
        except TensureError as error:
            raise error.at(wire.file, wire.where(message.start)) from None

    def _data(self, message: Message, encoding: str, count: int, nbytes: int) -> npt.NDArray[np.uint8]:
        wire = message.wire
        held = message.held(_SOURCES)
        if len(held) > 1:
            raise wire.bad("values in " + " and in ".join(_LISTS[number] for number in held), "one of them")
        entries = read_entries(message, 13)
        location = message.int32(14) or 0
        if location not in (0, 1):
            raise wire.bad(f"data location {location}", "0 or 1")
        if location == 1:
            if held:
                raise wire.bad(f"external data and {_LISTS[held[0]]}", "one of them")
            return self.external.read(entries, nbytes)
        if entries:
            # Followed by some readers and passed over by others, so that two of them see two models.
            raise wire.bad("external_data on a tensor that lies in the file", "data_location EXTERNAL")
        source = held[0] if held else _RAW
        if source == _RAW:
            start, end = message.span(_RAW) or (0, 0)
            if end - start != nbytes:
                raise wire.bad(
                    f"{end - start} bytes of data for {encoding} of shape {list(message.int64s(1))}",
                    f"{nbytes}",
                )
            return wire.data[start:end]
        if source != _LIST_OF[encoding]:
            raise wire.bad(f"{encoding} values in {_LISTS[source]}", _LISTS[_LIST_OF[encoding]])
        return self._typed(message, source, encoding, count)

    def _typed(self, message: Message, source: int, encoding: str, count: int) -> npt.NDArray[np.uint8]:
        wire = message.wire
        # Words in one piece are a view and cost nothing; all else is written anew, eight bytes a number.
        grown = 0 if source in (_FLOATS, _DOUBLES) and message.count(source) == 1 else 8

        def reserve(found: int) -> None:
            if found != count:
                raise wire.bad(f"{found} values in {_LISTS[source]}", f"{count}")
            self.decoded_left -= found * grown
            if self.decoded_left < 0:
                raise wire.limit(
                    f"lists of numbers that grow past {MAX_DECODED_BYTES} bytes",
                    "less",
                    "Save them as raw_data",
                )

        if source in (_FLOATS, _DOUBLES):
            return message.words(source, np.dtype("<f4" if source == _FLOATS else "<f8"), reserve).view(
                np.uint8
            )
        values = message.varints(source, reserve)
        if source == _INT64S:
            return values.astype("<u8", copy=False).view(np.uint8)
        dtype, least, most = _NARROW[encoding]
        low = values.astype(np.uint32).view(np.int32)  # an int32's low 32 bits, as protobuf reads it
        if low.size and not (least <= int(low.min()) and int(low.max()) <= most):
            wrong = int(low.min()) if int(low.min()) < least else int(low.max())
            raise wire.bad(f"value {wrong} for {encoding}", f"{least} to {most}")
        return low.astype(dtype).view(np.uint8)
