"""A recording in one file, so that the run of today can be compared with that of next month's version.

A zip of three stored members, so that any tool can open it:

    trace.json       the trace, as `tensure inspect --json` gives it
    recording.json   whether names are the model's own; the kept tensors in order: name, dtype, shape
    values.bin       their values one after the other, C order, little-endian

Knows the file and reads it as a stranger's: three members and no others, nothing compressed, sizes worked out
and compared before anything is allocated, no pickle. What cannot be written down is how a step is computed
again: a recording from a file has no replays, and a comparison judges by the other run's steps.
"""

from __future__ import annotations

import json
import math
import os
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final

import torch

from tensure.bundle import write_file_atomic
from tensure.errors import FormatError, InputError, LimitError, TensureError, UnsupportedError
from tensure.host import dtype_word
from tensure.program import parse_json

from ._recording import Recording
from ._records import Trace
from ._trace_json import MAX_RANK, MAX_SIZE, trace_from_json
from ._values import MAX_BYTES, ValueStore

__all__ = ["TRACE_SUFFIX", "load_recording", "save_recording"]

TRACE_SUFFIX: Final = ".trace"
SCHEMA: Final = "tensure.recording/1"
MAX_JSON: Final = 128 << 20
MAX_ITEMS: Final = 1 << 23

_TRACE, _RECORDING, _VALUES = _MEMBERS = ("trace.json", "recording.json", "values.bin")
_PIECE: Final = 4 << 20
_DATE: Final = (1980, 1, 1, 0, 0, 0)
_END, _LOCATOR, _END64 = b"PK\x05\x06", b"PK\x06\x07", b"PK\x06\x06"
_MAX_DIRECTORY: Final = 4096
_MAX_DIGEST: Final = 200
_DTYPES: Final = {
    dtype_word(dtype): dtype
    for dtype in (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint64,
        torch.uint32,
        torch.uint16,
        torch.uint8,
        torch.bool,
        torch.complex64,
        torch.complex128,
    )
}


def save_recording(recording: Recording, path: str | os.PathLike[str], *, replace: bool = False) -> Path:
    """Write a recording, whole or not at all; returns its path. Values go along if they were kept.

    Raises:
        InputError: the file exists and `replace` is false, or it cannot be written.
        LimitError: a trace of over 128 MiB.
        UnsupportedError: a tensor of a dtype that the file has no word for.
    """
    trace, store = recording.trace, recording.values
    text = trace.dumps().encode()
    if len(text) > MAX_JSON:
        raise LimitError(
            f"a trace of {len(text)} bytes", file=path, wanted=f"at most {MAX_JSON}", next_step="Run less"
        )
    names = [name for name in trace.tensors if store is not None and name in store]
    listed = [_described(name, store.get(name), path) for name in names] if store is not None else []
    head = {"schema": SCHEMA, "program": recording.program, "kept": store is not None, "values": listed}

    def write(stream: IO[bytes]) -> None:
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr(zipfile.ZipInfo(_TRACE, _DATE), text)
            archive.writestr(zipfile.ZipInfo(_RECORDING, _DATE), json.dumps(head).encode())
            with archive.open(zipfile.ZipInfo(_VALUES, _DATE), "w", force_zip64=True) as values:
                for name in names:
                    assert store is not None
                    for piece in _pieces(store.get(name)):
                        values.write(piece)

    write_file_atomic(path, write, replace=replace)
    return Path(path)


def load_recording(path: str | os.PathLike[str]) -> Recording:
    """What `save_recording` wrote. Values are copied to disk of our own: the file may go or change.

    Raises:
        InputError: no such file. FormatError: another kind of file, or a broken one.
        LimitError: more than a recording may hold.
    """
    if not os.path.isfile(path):
        raise InputError(
            "is not a file" if os.path.exists(path) else "no such file",
            file=path,
            wanted=f"a recording ({TRACE_SUFFIX}), as tensure inspect -o writes it",
        )
    try:
        with open(path, "rb") as stream:
            _check_directory(stream)
            with zipfile.ZipFile(stream) as archive:
                return _read(archive, os.fstat(stream.fileno()).st_size)
    except TensureError as error:
        raise error.at(path) from None
    except (
        OSError, ValueError, EOFError, KeyError, RuntimeError, struct.error, zipfile.BadZipFile,
    ) as error:  # fmt: skip
        # RuntimeError: an encrypted member, or (as NotImplementedError) a way of packing we never use.
        raise FormatError(
            f"no recording: {str(error)[:160]}", file=path, wanted="a whole recording"
        ) from None


def _read(archive: zipfile.ZipFile, size: int) -> Recording:
    members = {info.filename: info for info in archive.infolist()}
    if tuple(members) != _MEMBERS or len(archive.infolist()) != len(_MEMBERS):
        found = ", ".join(name[:40] for name in members)
        raise FormatError(f"a zip of {found or 'nothing'}", wanted=", ".join(_MEMBERS))
    for info in members.values():
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise FormatError("is compressed", place=info.filename, wanted="stored members")
    if sum(info.file_size for info in members.values()) > size:
        raise FormatError("its members are larger than the file", wanted="a whole recording")
    trace = trace_from_json(_json(archive, members[_TRACE]))
    program, kept, listed = _head(_json(archive, members[_RECORDING]), trace)
    total = sum(math.prod(shape) * dtype.itemsize for _, dtype, shape in listed)
    if total != members[_VALUES].file_size:
        raise FormatError(f"{members[_VALUES].file_size} bytes", place=_VALUES, wanted=f"{total}")
    if total > MAX_BYTES:
        raise LimitError(f"{total} bytes of values", wanted=f"at most {MAX_BYTES}")
    return Recording(trace, _values(archive, listed) if kept else None, {}, program)


def _json(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Any:
    if info.file_size > MAX_JSON:
        raise LimitError(f"{info.file_size} bytes", place=info.filename, wanted=f"at most {MAX_JSON}")
    try:
        return parse_json(
            archive.read(info), max_bytes=MAX_JSON, max_depth=24, max_items=MAX_ITEMS, floats=True
        )
    except TensureError as error:
        where = f"{info.filename}, {error.place}" if error.place else info.filename
        raise type(error)(error.found, place=where, wanted=error.wanted) from None


def _head(document: Any, trace: Trace) -> tuple[str, bool, list[tuple[str, torch.dtype, tuple[int, ...]]]]:
    if not isinstance(document, dict) or set(document) != {"schema", "program", "kept", "values"}:
        raise FormatError("is no head of a recording", place=_RECORDING)
    if document["schema"] != SCHEMA:
        raise FormatError(f"the schema {str(document['schema'])[:60]!r}", place=_RECORDING, wanted=SCHEMA)
    program, kept, values = document["program"], document["kept"], document["values"]
    if not isinstance(program, str) or not isinstance(kept, bool) or not isinstance(values, list):
        raise FormatError("a field of another kind", place=_RECORDING)
    if len(program) > _MAX_DIGEST:
        raise LimitError(f"a digest of {len(program)} characters", place=_RECORDING, wanted="a digest")
    if values and not kept:
        raise FormatError("values that were not kept", place=_RECORDING)
    found: dict[str, tuple[str, torch.dtype, tuple[int, ...]]] = {}
    for at, item in enumerate(values):
        name, dtype, shape = _listed(item, f"{_RECORDING}, values[{at}]", trace)
        if name in found:
            raise FormatError(
                f"the name {name[:80]!r} stands there twice", place=f"{_RECORDING}, values[{at}]"
            )
        found[name] = name, dtype, shape
    return program, kept, list(found.values())


def _listed(item: Any, place: str, trace: Trace) -> tuple[str, torch.dtype, tuple[int, ...]]:
    if not isinstance(item, dict) or set(item) != {"name", "dtype", "shape"}:
        raise FormatError("is no tensor's name, dtype and shape", place=place)
    name, word, shape = item["name"], item["dtype"], item["shape"]
    if not isinstance(name, str) or name not in trace.tensors:
        raise FormatError(f"no tensor {str(name)[:80]!r} in the trace", place=place)
    if not isinstance(word, str) or word not in _DTYPES:
        raise FormatError(f"the dtype {str(word)[:40]!r}", place=place, wanted=", ".join(_DTYPES))
    sizes: list[int] = shape if isinstance(shape, list) else [-1]
    if len(sizes) > MAX_RANK or not all(type(size) is int and 0 <= size <= MAX_SIZE for size in sizes):
        raise FormatError("a shape that no tensor has", place=place)
    facts = trace.tensors[name]
    if facts.layout == "strided" and word == facts.dtype and tuple(sizes) != facts.shape:
        raise FormatError("another shape than in the trace", place=place, wanted=facts.type)
    # Sizes may be 0 beside huge ones: bound what is not 0, so that no product overflows torch.
    if math.prod(max(size, 1) for size in sizes) > MAX_SIZE:
        raise FormatError("a shape that no tensor has", place=place)
    return name, _DTYPES[word], tuple(sizes)


def _values(archive: zipfile.ZipFile, listed: list[tuple[str, torch.dtype, tuple[int, ...]]]) -> ValueStore:
    """The values in a store of our own; the whole member is read, so that its checksum is checked."""
    store = ValueStore()
    with archive.open(_VALUES) as stream:
        for name, dtype, shape in listed:
            nbytes = math.prod(shape) * dtype.itemsize
            data = bytearray(nbytes)
            _fill(stream, memoryview(data))
            flat = torch.frombuffer(data, dtype=dtype) if nbytes else torch.empty(0, dtype=dtype)
            if dtype is torch.bool and nbytes and max(data) > 1:
                raise FormatError("a truth value of neither 0 nor 1", place=f"{_VALUES}, {name[:80]}")
            store.put(name, flat.reshape(shape))
        stream.read(1)
    return store


def _fill(stream: IO[bytes], target: memoryview) -> None:
    at = 0
    while at < len(target):
        piece = stream.read(min(_PIECE, len(target) - at))
        if not piece:
            raise FormatError("ends too soon", place=_VALUES)
        target[at : at + len(piece)] = piece
        at += len(piece)


def _check_directory(stream: IO[bytes]) -> None:
    """The zip's own list must be short: Python's reader would take in a list of any length."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - 22))
    end = stream.read(22)
    if len(end) < 22 or end[:4] != _END:
        raise FormatError("no recording", wanted=f"a file that tensure inspect -o wrote ({TRACE_SUFFIX})")
    count, length = struct.unpack("<H", end[10:12])[0], struct.unpack("<I", end[12:16])[0]
    stream.seek(max(0, size - 42))
    locator = stream.read(20)
    if locator[:4] == _LOCATOR:
        at = struct.unpack("<Q", locator[8:16])[0]
        if at > size - 56:
            raise FormatError("its list of members lies outside the file")
        stream.seek(at)
        record = stream.read(56)
        if record[:4] != _END64:
            raise FormatError("its list of members is not where it says")
        count, length = struct.unpack("<QQ", record[32:48])
    if count != len(_MEMBERS) or length > _MAX_DIRECTORY:
        raise FormatError(f"a zip of {count} members", wanted=", ".join(_MEMBERS))
    stream.seek(0)


def _described(name: str, tensor: torch.Tensor, path: str | os.PathLike[str]) -> dict[str, Any]:
    word = dtype_word(tensor.dtype)
    if word not in _DTYPES:
        raise UnsupportedError(f"a tensor of dtype {word}", file=path, place=name[:80])
    return {"name": name, "dtype": word, "shape": list(tensor.shape)}


def _pieces(tensor: torch.Tensor) -> Iterator[memoryview]:
    # Not reshape: one element may keep any stride through it, and view refuses that.
    flat = tensor.detach().contiguous().as_strided((tensor.numel(),), (1,))
    count = max(1, _PIECE // tensor.element_size())
    for begin in range(0, flat.numel(), count):
        yield flat[begin : begin + count].view(torch.uint8).numpy().data
