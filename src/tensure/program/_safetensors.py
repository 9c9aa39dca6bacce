"""Safetensors files, read as hostile bytes and written in one canonical form.

Knows: the container (8-byte length, JSON header, tensors), and the sharded form with its index. Stricter than
upstream where upstream is lenient: duplicate keys, dimensions of 2^48 and more even where another is zero,
more than eight dimensions. Does not know what the tensors mean.

Format: https://github.com/huggingface/safetensors, README section "Format".
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from tensure.errors import FormatError, InputError, LimitError, TensureError, UnsupportedError

from ._encodings import ENCODINGS, MAX_DIM, encoded_nbytes
from ._files import map_file
from ._json_door import parse_json
from ._weights import StoredTensor

__all__ = [
    "SafetensorsFile",
    "open_safetensors",
    "parse_safetensors",
    "read_safetensors",
    "read_sharded",
    "safetensors_bytes",
    "write_safetensors",
]

MAX_HEADER_BYTES = 16 << 20  # upstream allows 100 MB; the largest published header is under 2 MB
MAX_HEADER_ITEMS = 1 << 19  # list items and keys; a tensor has about six
MAX_DIMS = 8
MAX_INDEX_BYTES = 32 << 20
MAX_SHARDS = 4096

_READ = {
    "F64": "f64", "F32": "f32", "F16": "f16", "BF16": "bf16", "I64": "i64", "I32": "i32", "I16": "i16",
    "I8": "i8", "U8": "u8", "BOOL": "bool",
}  # fmt: skip
_UNREAD = {
    "U16", "U32", "U64", "C64", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F4",
    "F6_E2M3", "F6_E3M2",
}  # fmt: skip
_WRITTEN = {encoding: dtype for dtype, encoding in _READ.items()}
_NUMPY = {
    "float64": "f64", "float32": "f32", "float16": "f16", "int64": "i64", "int32": "i32", "int16": "i16",
    "int8": "i8", "uint8": "u8", "bool": "bool",
}  # fmt: skip
_SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}\.safetensors")


@dataclass(frozen=True, slots=True, eq=False)
class SafetensorsFile:
    """What one file holds. Tensors are read-only slices of the mapped file, in the order they lie in it."""

    path: str
    metadata: Mapping[str, str]
    tensors: Mapping[str, StoredTensor]


def read_safetensors(path: str | os.PathLike[str]) -> dict[str, StoredTensor]:
    """The tensors of one file by name, nothing copied. Raises as `open_safetensors`."""
    return dict(open_safetensors(path).tensors)


def open_safetensors(path: str | os.PathLike[str]) -> SafetensorsFile:
    """The tensors of one file and its `__metadata__` strings, nothing copied.

    Raises:
        FormatError: the bytes break the format. LimitError: a header larger than any model needs.
        UnsupportedError: a dtype we have no arithmetic for.
        InputError: the file cannot be opened. Each names file and tensor or byte offset.
    """
    return parse_safetensors(map_file(path), os.fspath(path))


def read_sharded(index: str | os.PathLike[str]) -> dict[str, StoredTensor]:
    """The tensors of a sharded model, from its `model.safetensors.index.json`, in the index's order.

    Every shard must be a plain file name in the index's own folder and no symbolic link, and hold exactly
    the tensors that the index places in it. Raises as `open_safetensors`.
    """
    path = os.fspath(index)
    placed = _read_index(path)
    names = dict.fromkeys(placed.values())
    if len(names) > MAX_SHARDS:
        raise LimitError(f"{len(names)} shards", file=path, wanted=f"at most {MAX_SHARDS}")
    shards = dict(_open_shards(os.path.dirname(path) or ".", names))
    for name, shard in placed.items():
        if name not in shards[shard].tensors:
            raise FormatError(f"the tensor is not in {shard}", file=path, place=f"tensor {name[:80]!r}")
    for shard, found in shards.items():
        for name in found.tensors:
            if placed.get(name) != shard:
                raise FormatError(
                    f"the tensor lies in {shard}, where the index does not place it",
                    file=path,
                    place=f"tensor {name[:80]!r}",
                )
    return {name: shards[shard].tensors[name] for name, shard in placed.items()}


def parse_safetensors(data: npt.NDArray[np.uint8], file: str) -> SafetensorsFile:
    """`open_safetensors` for bytes already at hand; `file` is what errors call them."""
    try:
        return _parse(data, file)
    except TensureError as error:
        error.at(file)
        raise


def safetensors_bytes(
    tensors: Mapping[str, StoredTensor | npt.NDArray[np.generic]], metadata: Mapping[str, str] | None = None
) -> bytes:
    """The canonical file: equal tensors and metadata give equal bytes, whatever the order they come in.

    Tensors lie by falling element size, then by name, so that each is aligned to its element size.

    Raises:
        UnsupportedError: an encoding or array type that safetensors has no name for (all block encodings).
        FormatError: a name or a metadata item that could not be read back.
    """
    head, parts = _canonical(tensors, metadata)
    return b"".join([head, *(part.tobytes() for part in parts)])


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, StoredTensor | npt.NDArray[np.generic]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write the canonical file: it appears whole or not at all. Raises as `safetensors_bytes`."""
    head, parts = _canonical(tensors, metadata)
    target = os.fspath(path)
    draft = f"{target}.{secrets.token_hex(4)}.part"
    try:
        with open(draft, "xb") as stream:
            stream.write(head)
            for part in parts:
                stream.write(part.data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(draft, target)
    except OSError as error:
        raise InputError(f"cannot write: {error.strerror}", file=target) from error
    finally:
        if os.path.exists(draft):
            os.unlink(draft)


def _parse(data: npt.NDArray[np.uint8], file: str) -> SafetensorsFile:
    if data.size < 10:
        raise FormatError(f"{data.size} bytes", place="byte 0", wanted="at least 10")
    length = int.from_bytes(data[:8].tobytes(), "little")
    if length > data.size - 8:
        raise FormatError(
            f"a header of {length} bytes", place="byte 0", wanted=f"at most the {data.size - 8} bytes left"
        )
    # Checked before the copy: the length is a stranger's.
    if length > MAX_HEADER_BYTES:
        raise LimitError(f"a header of {length} bytes", place="byte 0", wanted=f"at most {MAX_HEADER_BYTES}")
    header = data[8 : 8 + length].tobytes()
    if header[:1] != b"{":
        raise FormatError(f"the header starts with {header[:1]!r}", place="byte 8", wanted="'{'")
    table = parse_json(header, max_bytes=MAX_HEADER_BYTES, max_depth=3, max_items=MAX_HEADER_ITEMS, base=8)
    metadata = _metadata(table.pop("__metadata__", {}))
    rows = [_row(name, entry) for name, entry in table.items()]
    rows.sort(key=lambda row: (row.begin, row.end))
    body = data[8 + length :]
    _check_cover(rows, body.size)
    tensors = {row.name: StoredTensor(row.shape, row.encoding, body[row.begin : row.end]) for row in rows}
    return SafetensorsFile(file, MappingProxyType(metadata), MappingProxyType(tensors))


def _metadata(found: Any) -> dict[str, str]:
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise FormatError("not strings by name", place="'__metadata__'", wanted="an object of strings")
    return found


@dataclass(frozen=True, slots=True)
class _Row:
    name: str
    encoding: str
    shape: tuple[int, ...]
    begin: int
    end: int


def _row(name: str, entry: Any) -> _Row:
    place = f"tensor {name[:80]!r}"
    if not name or not name.isprintable():
        raise FormatError("the tensor's name", place=place, wanted="printable characters, at least one")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        found = sorted(entry) if isinstance(entry, dict) else type(entry).__name__
        raise FormatError(f"{str(found)[:80]}", place=place, wanted="exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _READ:
        kind = UnsupportedError if isinstance(dtype, str) and dtype in _UNREAD else FormatError
        raise kind(f"dtype {str(dtype)[:40]!r}", place=place, wanted=" ".join(_READ))
    if not _whole(shape) or len(shape) > MAX_DIMS or any(dim >= MAX_DIM for dim in shape):
        raise FormatError(
            f"shape {str(shape)[:80]}",
            place=place,
            wanted=f"at most {MAX_DIMS} whole numbers, each below 2^48",
        )
    if not _whole(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise FormatError(f"data_offsets {str(offsets)[:80]}", place=place, wanted="two rising whole numbers")
    try:
        nbytes = encoded_nbytes(_READ[dtype], tuple(shape))
    except FormatError as error:
        raise error.at(place=place) from None
    if offsets[1] - offsets[0] != nbytes:
        raise FormatError(
            f"{offsets[1] - offsets[0]} bytes for {dtype} of shape {shape}", place=place, wanted=f"{nbytes}"
        )
    return _Row(name, _READ[dtype], tuple(shape), offsets[0], offsets[1])


def _whole(numbers: Any) -> bool:
    # `type` and not `isinstance`: JSON's true would pass for 1.
    return isinstance(numbers, list) and all(type(number) is int and number >= 0 for number in numbers)


def _check_cover(rows: list[_Row], size: int) -> None:
    end = 0
    for row in rows:
        if row.begin != end:
            fault = "overlaps the tensor before it" if row.begin < end else "leaves a hole before it"
            raise FormatError(
                f"offset {row.begin} {fault}", place=f"tensor {row.name[:80]!r}", wanted=f"{end}"
            )
        end = row.end
        if end > size:
            raise FormatError(
                f"ends at {end}, past the file", place=f"tensor {row.name[:80]!r}", wanted=f"at most {size}"
            )
    if end != size:
        raise FormatError(f"{size - end} bytes follow the last tensor", wanted="none")


def _canonical(
    tensors: Mapping[str, StoredTensor | npt.NDArray[np.generic]], metadata: Mapping[str, str] | None
) -> tuple[bytes, list[npt.NDArray[np.uint8]]]:
    stored = {name: _stored(name, tensor) for name, tensor in tensors.items()}
    order = sorted(stored, key=lambda name: (-ENCODINGS[stored[name].encoding].block_bytes, name))
    table: dict[str, Any] = {}
    if metadata:
        table["__metadata__"] = dict(sorted(_metadata(dict(metadata)).items()))
    end = 0
    for name in order:
        if name == "__metadata__" or not name or not name.isprintable():
            raise FormatError(
                "not a name for a tensor", place=f"tensor {name[:80]!r}", wanted="printable characters"
            )
        begin, end = end, end + stored[name].data.size
        table[name] = {
            "dtype": _WRITTEN[stored[name].encoding],
            "shape": list(stored[name].shape),
            "data_offsets": [begin, end],
        }
    try:
        header = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        raise FormatError("metadata that is no Unicode text", place="'__metadata__'") from error
    header += b" " * (-len(header) % 8)  # the tensors start at a multiple of 8
    if len(header) > MAX_HEADER_BYTES:
        raise LimitError(f"a header of {len(header)} bytes", wanted=f"at most {MAX_HEADER_BYTES}")
    return len(header).to_bytes(8, "little") + header, [stored[name].data for name in order]


def _stored(name: str, tensor: StoredTensor | npt.NDArray[np.generic]) -> StoredTensor:
    if isinstance(tensor, np.ndarray):
        encoding = _NUMPY.get(tensor.dtype.name)
        if encoding is None:
            raise UnsupportedError(
                f"array of {tensor.dtype}", place=f"tensor {name[:80]!r}", wanted=" ".join(_NUMPY)
            )
        return StoredTensor.from_array(tensor, encoding)
    if tensor.encoding not in _WRITTEN:
        raise UnsupportedError(
            f"encoding {tensor.encoding}", place=f"tensor {name[:80]!r}", wanted=" ".join(_WRITTEN)
        )
    return tensor


def _read_index(path: str) -> dict[str, str]:
    try:
        raw = map_file(path)
        if raw.size > MAX_INDEX_BYTES:
            raise LimitError(f"an index of {raw.size} bytes", wanted=f"at most {MAX_INDEX_BYTES}")
        found = parse_json(
            raw.tobytes(), max_bytes=MAX_INDEX_BYTES, max_depth=4, max_items=MAX_HEADER_ITEMS, floats=True
        )
        if not isinstance(found, dict) or not found.keys() <= {"metadata", "weight_map"}:
            raise FormatError("not an index", wanted="an object with weight_map and at most metadata")
        placed = found.get("weight_map")
        if not isinstance(placed, dict) or not placed:
            raise FormatError("no tensors", place="'weight_map'", wanted="shard names by tensor name")
        for name, shard in placed.items():
            if not isinstance(shard, str) or not _SHARD_NAME.fullmatch(shard):
                raise FormatError(
                    f"shard {str(shard)[:80]!r}",
                    place=f"tensor {name[:80]!r}",
                    wanted="a plain file name ending in .safetensors",
                )
    except TensureError as error:
        error.at(path)
        raise
    return placed


def _open_shards(folder: str, names: Mapping[str, None]) -> Iterator[tuple[str, SafetensorsFile]]:
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise InputError(f"cannot open: {error.strerror}", file=folder) from error
    try:
        for name in names:
            data = map_file(name, folder=descriptor, follow_symlinks=False)
            yield name, parse_safetensors(data, os.path.join(folder, name))
    finally:
        os.close(descriptor)
