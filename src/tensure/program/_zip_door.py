"""Entries of a zip archive from a stranger, read in place: nothing is extracted, no name is ever a path.

Knows: the central directory, zip64, stored and deflated entries. Every size is held against the archive
before it is believed: entries may not overlap, a deflated one may not claim more than a ratio of what is
stored, and both records of an entry must agree. Does not know what the entries mean.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tensure.errors import FormatError, LimitError, UnsupportedError

__all__ = ["ZipEntry", "read_zip"]

Bytes = npt.NDArray[np.uint8]

_END: Final = struct.Struct("<4s4H2LH")
_END64_AT: Final = struct.Struct("<4sLQL")
_END64: Final = struct.Struct("<4sQ2H2L4Q")
_CENTRAL: Final = struct.Struct("<4s6H3L5H2L")
_LOCAL: Final = struct.Struct("<4s5H3L2H")
_MAX_NAME: Final = 1024
_ENCRYPTED, _SIZES_LATER = 1, 8
_NO_SIZE: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class ZipEntry:
    """One entry: `stored` bytes in the archive that stand for `size` bytes."""

    name: str
    stored: int
    size: int
    _method: int
    _crc: int
    _data: Bytes

    def read(self, *, max_bytes: int, max_ratio: int) -> Bytes:
        """The entry's bytes: a view of the archive where it is stored, else inflated; checksum compared.

        Raises:
            LimitError: it claims over `max_bytes`, or over `max_ratio` times what is stored.
            FormatError: it does not inflate to the size and checksum the archive gives.
        """
        if self.size > max_bytes:
            raise LimitError(f"{self.name} is {self.size} bytes", wanted=f"at most {max_bytes}")
        found = self._data if self._method == 0 else self._inflate(max_ratio)
        if found.size != self.size or zlib.crc32(found.data) != self._crc:
            raise FormatError(f"{self.name} is not what the archive's checksum says", wanted="a whole file")
        return found

    def _inflate(self, max_ratio: int) -> Bytes:
        if self.size > max_ratio * max(self.stored, 1):
            raise LimitError(
                f"{self.name} claims {self.size} bytes in {self.stored}", wanted=f"at most {max_ratio} to 1"
            )
        machine = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            found = machine.decompress(self._data.data, self.size + 1)
        except zlib.error as error:
            raise FormatError(f"{self.name} does not inflate: {error}") from error
        return np.frombuffer(found, np.uint8)


def read_zip(data: Bytes, *, max_entries: int) -> Mapping[str, ZipEntry]:
    """Every entry by name, in the order of the directory.

    Raises:
        FormatError: no whole zip archive, entries that overlap or contradict themselves, a name twice, or a
            name with `..`, a backslash, a leading slash or a control character.
        LimitError: over `max_entries`. UnsupportedError: encrypted, split, or another compression.
    """
    start, end, count = _directory(data)
    if count > max_entries:
        raise LimitError(f"{count} entries in the archive", wanted=f"at most {max_entries}")
    found: dict[str, ZipEntry] = {}
    spans: list[tuple[int, int, str]] = []
    at = start
    for _ in range(count):
        entry, span, at = _entry(data, at, start, end)
        if entry.name in found:
            raise FormatError(f"{entry.name[:80]!r} stands there twice", wanted="each entry once")
        found[entry.name] = entry
        spans.append((*span, entry.name))
    if at != end:
        raise FormatError(f"the archive's directory ends at byte {at}", wanted=f"byte {end}, as it says")
    spans.sort()
    for (_, stop, name), (begin, _, other) in zip(spans, spans[1:], strict=False):
        if begin < stop:
            raise FormatError(f"{name[:80]!r} and {other[:80]!r} share bytes", wanted="entries side by side")
    return found


def _unpack(form: struct.Struct, data: Bytes, at: int, what: str, signature: bytes) -> tuple[Any, ...]:
    if at < 0 or at + form.size > data.size:
        raise FormatError(f"{what} lies outside the file", place=f"byte {at}")
    fields = form.unpack_from(data.data, at)
    if fields[0] != signature:
        raise FormatError(f"no {what} here", place=f"byte {at}")
    return fields


def _directory(data: Bytes) -> tuple[int, int, int]:
    """Where the central directory begins and ends, and how many entries it has."""
    tail = data[-(_END.size + 0xFFFF) :].tobytes()
    place = tail.rfind(b"PK\5\6")
    if place < 0 or place + _END.size > len(tail):
        raise FormatError("not a zip archive: its end record is missing", wanted="a whole .keras file")
    at = data.size - len(tail) + place
    _, disk, start_disk, here, count, size, start, comment = _END.unpack_from(tail, place)
    if at + _END.size + comment != data.size:
        raise FormatError("bytes behind the zip archive", place=f"byte {at + _END.size + comment}")
    end = at
    if here == 0xFFFF or count == 0xFFFF or size == _NO_SIZE or start == _NO_SIZE:
        where = at - _END64_AT.size
        _, disk, end, _ = _unpack(_END64_AT, data, where, "zip64 locator", b"PK\6\7")
        fields = _unpack(_END64, data, end, "zip64 end record", b"PK\6\6")
        disk, start_disk, here, count, size, start = (disk | fields[4], *fields[5:])
        if end + 12 + fields[1] != where:
            raise FormatError("bytes between the zip64 records", place=f"byte {end}")
    if disk or start_disk or here != count:
        raise UnsupportedError("an archive in several parts", wanted="one file")
    if start + size != end:
        raise FormatError(f"the archive's directory at {start}, {size} bytes", wanted=f"an end at byte {end}")
    return start, end, count


def _entry(data: Bytes, at: int, start: int, end: int) -> tuple[ZipEntry, tuple[int, int], int]:
    """The entry at one directory record, the bytes it covers, and where the next record is."""
    fields = _unpack(_CENTRAL, data, at, "directory record", b"PK\1\2")
    flags, method, crc, stored, size = fields[3], fields[4], *fields[7:10]
    name_size, extra_size, comment_size, disk, offset = *fields[10:14], fields[16]
    after = at + _CENTRAL.size + name_size + extra_size + comment_size
    if after > end:
        raise FormatError("a directory record runs past the directory", place=f"byte {at}")
    raw = data[at + _CENTRAL.size : at + _CENTRAL.size + name_size].tobytes()
    name = _name(raw, at)
    if flags & _ENCRYPTED:
        raise UnsupportedError(f"{name} is encrypted", wanted="plain entries")
    if method not in (0, 8):
        raise UnsupportedError(f"{name} is compressed by method {method}", wanted="stored or deflated")
    if disk not in (0, 0xFFFF):
        raise UnsupportedError("an archive in several parts", wanted="one file")
    place = at + _CENTRAL.size + name_size
    size, stored, offset = _wide(data[place : place + extra_size].tobytes(), name, size, stored, offset)
    if offset >= start:
        raise FormatError(f"{name} at byte {offset}", wanted="before the directory")
    local = _unpack(_LOCAL, data, offset, f"entry {name!r}", b"PK\3\4")
    body = offset + _LOCAL.size + local[9] + local[10]
    if body + stored > start:
        raise FormatError(f"{name} of {stored} bytes at {body}", wanted=f"an end before byte {start}")
    if data[offset + _LOCAL.size : offset + _LOCAL.size + local[9]].tobytes() != raw or local[3] != method:
        raise FormatError(f"two records of {name} disagree", place=f"byte {offset}")
    sizes = (local[6], local[7], local[8])
    if not flags & _SIZES_LATER and any(
        here not in (there, _NO_SIZE) for here, there in zip(sizes, (crc, stored, size), strict=True)
    ):
        raise FormatError(f"two records of {name} disagree on its size", place=f"byte {offset}")
    if method == 0 and stored != size:
        raise FormatError(f"{name} is {stored} bytes stored as {size}", wanted="the same")
    entry = ZipEntry(name, stored, size, method, crc, data[body : body + stored])
    return entry, (offset, body + stored), after


def _name(raw: bytes, at: int) -> str:
    if not 0 < len(raw) <= _MAX_NAME:
        raise FormatError(
            f"an entry name of {len(raw)} bytes", wanted=f"1 to {_MAX_NAME}", place=f"byte {at}"
        )
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise FormatError("an entry name that is not UTF-8", place=f"byte {at}") from None
    parts = name.split("/")
    if ".." in parts or name.startswith("/") or "\\" in name or ":" in name or not name.isprintable():
        raise FormatError(f"the entry name {name[:80]!r}", wanted="a plain relative name")
    return name


def _wide(extra: bytes, name: str, size: int, stored: int, offset: int) -> tuple[int, int, int]:
    """Sizes and offset with what the zip64 field says in place of the marks for it."""
    narrow, wide = [size, stored, offset], list[int]()
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            if length % 8 > 4 or at + 4 + length > len(extra) or wide:
                raise FormatError(f"the zip64 field of {name} is damaged")
            wide = list(struct.unpack_from(f"<{length // 8}Q", extra, at + 4))
        at += 4 + length
    for position, value in enumerate(narrow):
        if value == _NO_SIZE:
            if not wide:
                raise FormatError(f"the zip64 field of {name} is missing")
            narrow[position] = wide.pop(0)
    return narrow[0], narrow[1], narrow[2]
