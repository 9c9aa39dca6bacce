"""Where a checkpoint's tensors lie, found without executing anything.

Knows the zip and the legacy layout of torch checkpoints, and the JSON table of weights in a torch.export
archive; what their streams say is `_converter_machine`'s business. Every declared size is held against the
bytes that are there. Does not know how to make a tensor.

Runs inside the converter child: nothing outside the standard library is imported. Sources of the layouts:
torch/serialization.py, torch/export/pt2_archive.
"""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Mapping
from typing import BinaryIO

from tensure.program._converter_machine import (
    MAX_DIMS,
    SAVE_STATE,
    Machine,
    Refused,
    Storage,
    TensorRecord,
    kind_of,
    tensor_record,
)

__all__ = ["Refused", "Storage", "TensorRecord", "scan_checkpoint"]

MAX_STREAM_BYTES = 64 << 20
MAX_TENSORS = 100_000
MAX_ENTRIES = 200_000
MAX_NAME_CHARS = 512

# torch/_export/serde/schema.py, ScalarType
_EXPORT_DTYPES: Mapping[int, tuple[str, int]] = {
    8: ("f64", 8),
    7: ("f32", 4),
    6: ("f16", 2),
    13: ("bf16", 2),
    5: ("i64", 8),
    4: ("i32", 4),
    3: ("i16", 2),
    2: ("i8", 1),
    1: ("u8", 1),
    12: ("bool", 1),
}


def scan_checkpoint(file: BinaryIO, size: int) -> tuple[str, dict[str, TensorRecord]]:
    """Give the layout ("zip", "legacy" or "export") and each tensor of a checkpoint of `size` bytes, by name.

    Raises:
        Refused: anything but a state dict of plain tensors, whole and consistent.
    """
    file.seek(0)
    head = file.read(4)
    if head == b"PK\x03\x04":
        layout, records = _scan_zip(file, size)
    elif head[:2] == b"\x80\x02":
        layout, records = "legacy", _scan_legacy(file, size)
    else:
        raise Refused(
            "format",
            f"the file starts with bytes {head.hex() or 'none'}",
            place="byte 0",
            wanted="a torch checkpoint (zip or legacy layout) or a torch.export archive",
        )
    if not records:
        raise Refused("format", "the checkpoint holds no tensor", wanted="a state dict")
    total = sum(record.nbytes for record in records.values())
    if total > 4 * size + (1 << 20):
        raise Refused(
            "limit", f"tensors of {total} bytes in a file of {size}", wanted="at most four times the file"
        )
    return layout, records


# --- zip layouts -------------------------------------------------------------------------------------------


def _scan_zip(file: BinaryIO, size: int) -> tuple[str, dict[str, TensorRecord]]:
    entries = _zip_entries(file, size)
    if "byteorder" in entries and _entry_bytes(file, entries["byteorder"], 16) != b"little":
        raise Refused(
            "unsupported", "tensors are not little-endian", place="byteorder", next_step="Save it again"
        )
    if "data.pkl" in entries:
        start, length = entries["data.pkl"]
        if length > MAX_STREAM_BYTES:
            raise Refused("limit", f"data.pkl has {length} bytes", wanted=f"at most {MAX_STREAM_BYTES}")
        data = _entry_bytes(file, entries["data.pkl"], MAX_STREAM_BYTES)
        machine = Machine(data, base=start, storages=entries)
        records = _state_dict(machine.run())
        if machine.position != len(data):
            raise Refused("format", "bytes follow the end of the stream", place="data.pkl")
        return "zip", records
    if "archive_format" in entries and _entry_bytes(file, entries["archive_format"], 16) == b"pt2":
        return "export", _scan_export(file, entries)
    raise Refused(
        "format", "the archive holds neither data.pkl nor a pt2 marker", wanted="a torch checkpoint"
    )


def _zip_entries(file: BinaryIO, size: int) -> dict[str, tuple[int, int]]:
    """Where each entry's bytes lie, by name below the archive's folder: stored, disjoint, inside the file."""
    _check_directory_size(file, size)
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, struct.error) as error:
        raise Refused("format", f"the zip directory cannot be read ({error})") from None
    entries: dict[str, tuple[int, int]] = {}
    spans: list[tuple[int, int, str]] = []
    folders: set[str] = set()
    for info in archive.infolist():
        folder, slash, name = info.filename.partition("/")
        place = f"entry {info.filename[:80]!r}"
        if not slash or not name or ".." in name.split("/"):
            raise Refused("format", "an entry lies outside the archive's folder", place=place)
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise Refused(
                "unsupported",
                f"the entry is compressed ({info.compress_size} bytes for {info.file_size})",
                place=place,
                wanted="entries stored as they are, as torch writes them",
            )
        if info.flag_bits & 0x1:
            raise Refused("unsupported", "the entry is encrypted", place=place)
        file.seek(info.header_offset)
        header = file.read(30)
        if len(header) != 30 or header[:4] != b"PK\x03\x04":
            raise Refused("format", "no entry header where the directory points", place=place)
        name_length, extra_length = struct.unpack_from("<HH", header, 26)
        if file.read(name_length) != info.orig_filename.encode("utf-8", "surrogatepass"):
            raise Refused("format", "the entry header and the directory differ on its name", place=place)
        start = info.header_offset + 30 + name_length + extra_length
        if start + info.file_size > size:
            raise Refused("format", f"bytes {start}+{info.file_size} run past the end ({size})", place=place)
        if name in entries:
            raise Refused("format", "the entry is there twice", place=place)
        folders.add(folder)
        entries[name] = (start, info.file_size)
        spans.append((info.header_offset, start + info.file_size, place))
    if len(folders) != 1:
        raise Refused("format", f"{len(folders)} top-level folders in the archive", wanted="one")
    spans.sort()
    if spans[0][0] != 0:
        raise Refused("format", "bytes lie before the first entry", wanted="an entry at byte 0")
    for (_, end, _), (start, _, place) in zip(spans, spans[1:], strict=False):
        if start < end:
            raise Refused("format", "the entry overlaps the one before it", place=place)
    return entries


def _check_directory_size(file: BinaryIO, size: int) -> None:
    tail_length = min(size, 22 + 65_535)
    file.seek(size - tail_length)
    tail = file.read(tail_length)
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or end + 22 > len(tail):
        raise Refused(
            "format", "the zip end record is missing", wanted="a whole file", next_step="Download it again"
        )
    count = struct.unpack_from("<H", tail, end + 10)[0]
    directory = struct.unpack_from("<I", tail, end + 12)[0]
    zip64 = tail.rfind(b"PK\x06\x06", 0, end)
    if zip64 >= 0 and zip64 + 56 <= len(tail):
        count64, directory64 = struct.unpack_from("<QQ", tail, zip64 + 32)
        count, directory = (
            max(count64, 0 if count == 0xFFFF else count),
            max(directory64, 0 if directory == 0xFFFFFFFF else directory),
        )
    if count > MAX_ENTRIES or directory > MAX_STREAM_BYTES:
        raise Refused(
            "limit",
            f"a zip directory of {count} entries in {directory} bytes",
            wanted=f"at most {MAX_ENTRIES} entries in {MAX_STREAM_BYTES} bytes",
        )


def _entry_bytes(file: BinaryIO, span: tuple[int, int], most: int) -> bytes:
    start, length = span
    file.seek(start)
    return file.read(min(length, most))


def _scan_export(file: BinaryIO, entries: Mapping[str, tuple[int, int]]) -> dict[str, TensorRecord]:
    """Weights and constants of a torch.export archive: raw bytes under JSON tables; nothing else is read."""
    records: dict[str, TensorRecord] = {}
    tables = [n for n in entries if n.startswith("data/weights/") and n.endswith("_weights_config.json")]
    tables += [n for n in entries if n.startswith("data/constants/") and n.endswith("_constants_config.json")]
    if sum(name.startswith("data/weights/") for name in tables) != 1:
        raise Refused(
            "unsupported", f"{len(tables)} weight tables in the archive", wanted="one exported model"
        )
    for table in tables:
        data = _entry_bytes(file, entries[table], MAX_STREAM_BYTES)
        try:
            config = _object(_object(json.loads(data), table).get("config"), table)
        except (ValueError, RecursionError):
            raise Refused("format", "the table is not JSON", place=table) from None
        folder = table.rpartition("/")[0]
        for name, row in config.items():
            place = f"tensor {name[:80]!r}"
            _check_name(name)
            if name in records:
                raise Refused("format", "the tensor is there twice", place=place)
            records[name] = _export_record(_object(row, place), folder, entries, place)
    return records


def _export_record(
    row: Mapping[str, object], folder: str, entries: Mapping[str, tuple[int, int]], place: str
) -> TensorRecord:
    if row.get("use_pickle") is not False:
        raise Refused(
            "unsupported",
            "the tensor is stored as a serialised Python object",
            place=place,
            wanted="a plain dense tensor",
            next_step="Save model.state_dict() with torch.save or safetensors instead",
        )
    meta = _object(row.get("tensor_meta"), place)
    path = f"{folder}/{row.get('path_name')}"
    dtype = meta.get("dtype")
    if path not in entries:
        raise Refused("format", "the tensor's bytes are missing", place=place)
    if not isinstance(dtype, int) or dtype not in _EXPORT_DTYPES or meta.get("layout") != 7:
        raise Refused(
            "unsupported", f"scalar type {dtype!r:.20}, layout {meta.get('layout')!r:.20}", place=place
        )
    name, itemsize = _EXPORT_DTYPES[dtype]
    start, length = entries[path]
    if length % itemsize:
        raise Refused("format", f"{length} bytes for elements of {itemsize}", place=place)
    storage = Storage(path, name, itemsize, length // itemsize, start)
    return tensor_record(
        storage,
        _export_int(meta.get("storage_offset"), place),
        _export_ints(meta.get("sizes"), place),
        _export_ints(meta.get("strides"), place),
        place=place,
    )


def _object(value: object, place: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise Refused("format", "a JSON object is missing", place=place)
    return {str(key): item for key, item in value.items()}


def _export_int(value: object, place: str) -> object:
    if not isinstance(value, dict) or set(value) != {"as_int"}:
        raise Refused("unsupported", "a size is not a plain number", place=place)
    return value["as_int"]


def _export_ints(value: object, place: str) -> tuple[object, ...]:
    if not isinstance(value, list) or len(value) > MAX_DIMS:
        raise Refused("format", "sizes or strides are not a short list", place=place)
    return tuple(_export_int(item, place) for item in value)


# --- the legacy layout: four streams, then the storages' bytes ---------------------------------------------

_MAGIC = 0x1950A86A20F9469CFC6C


def _scan_legacy(file: BinaryIO, size: int) -> dict[str, TensorRecord]:
    file.seek(0)
    data = file.read(min(size, MAX_STREAM_BYTES))
    machine = Machine(data, base=0, storages=None)
    if machine.run() != _MAGIC:
        raise Refused(
            "unsupported",
            "a stream without torch's magic number",
            place="byte 0",
            wanted="a file written by torch.save",
            next_step="Save the model's state_dict() again with a current torch",
        )
    if machine.run() != 1001:
        raise Refused("unsupported", "another protocol than 1001", place="second stream")
    info = machine.run()
    if not isinstance(info, dict) or info.get("little_endian") is not True:
        raise Refused("unsupported", "tensors are not little-endian", place="third stream")
    state = machine.run()
    keys = machine.run()
    found = machine.legacy_storages
    if not isinstance(keys, list) or len(keys) != len(found) or not all(isinstance(k, str) for k in keys):
        raise Refused("format", "the list of storages does not match the tensors", place="fifth stream")
    at = machine.position
    placed: dict[str, Storage] = {}
    for key in keys:
        storage = found.get(key) if isinstance(key, str) else None
        if storage is None or key in placed:
            raise Refused("format", "the list of storages does not match the tensors", place="fifth stream")
        file.seek(at)
        count = file.read(8)
        length = storage.numel * storage.itemsize
        if len(count) != 8 or struct.unpack("<q", count)[0] != storage.numel or at + 8 + length > size:
            raise Refused(
                "format",
                f"storage {storage.key[:40]!r} does not have the {storage.numel} elements declared",
                place=f"byte {at}",
            )
        placed[storage.key] = Storage(storage.key, storage.dtype, storage.itemsize, storage.numel, at + 8)
        at += 8 + length
    if at != size:
        raise Refused("format", f"{size - at} bytes follow the last storage", place=f"byte {at}")
    return {
        name: TensorRecord(placed[r.storage.key], r.offset, r.shape, r.stride)
        for name, r in _state_dict(state).items()
    }


# --- the state dict ----------------------------------------------------------------------------------------


def _state_dict(value: object) -> dict[str, TensorRecord]:
    """The flat mapping of names to tensors, itself or one level down under "state_dict" or "model"."""
    if isinstance(value, dict) and not any(isinstance(item, TensorRecord) for item in value.values()):
        for key in ("state_dict", "model"):
            if isinstance(value.get(key), dict):
                value = value[key]
                break
    if not isinstance(value, dict):
        raise Refused(
            "unsupported",
            f"the checkpoint is a {kind_of(value)}",
            wanted="a state dict",
            next_step=SAVE_STATE,
        )
    records: dict[str, TensorRecord] = {}
    for name, item in value.items():
        if not isinstance(name, str):
            raise Refused("format", f"a state dict key is a {kind_of(name)}", wanted="a name")
        _check_name(name)
        if not isinstance(item, TensorRecord):
            raise Refused(
                "unsupported",
                f"the entry is a {kind_of(item)}",
                place=f"entry {name[:80]!r}",
                wanted="a tensor",
                next_step=SAVE_STATE,
            )
        records[name] = item
        if len(records) > MAX_TENSORS:
            raise Refused("limit", f"more than {MAX_TENSORS} tensors")
    return records


def _check_name(name: str) -> None:
    if not 0 < len(name) <= MAX_NAME_CHARS or not name.isprintable() or name == "__metadata__":
        raise Refused(
            "format", f"a tensor is named {name[:40]!r}", wanted=f"1 to {MAX_NAME_CHARS} printable characters"
        )
