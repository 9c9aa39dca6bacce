"""HDF5 as Keras writes it, read in place in plain Python: groups, links within the file, arrays of
numbers.

Knows: superblock 0, symbol-table groups, version 1 object headers, compact, contiguous and chunked data,
deflate. Refuses by name what leads elsewhere or needs native code: soft and external links, external storage,
virtual datasets, every other filter. Every address is held against the file; nothing is allocated before the
declared size is held against the bytes stored; no stored byte is handed out twice, so that a thousand
datasets over the same bytes cannot make a thousand arrays; every visit is counted, so that a tree whose
branches are one node ends. Does not know what the arrays mean.

Source: "HDF5 File Format Specification Version 3.0", The HDF Group.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tensure.errors import FormatError, LimitError, UnsupportedError

__all__ = ["Hdf5File"]

Bytes = npt.NDArray[np.uint8]

_SIGNATURE: Final = b"\x89HDF\r\n\x1a\n"
_NOWHERE: Final = (1 << 64) - 1
_MAX_NAME: Final = 1024
_MAX_RANK: Final = 8
_MAX_DIM: Final = 1 << 40
_MAX_NODES: Final = 1 << 18
"""Visits of one file: of nodes, of each of their entries, of names, of messages."""
_COUNTED_BYTES: Final = 256
"""Of a message's body, copied at the cost of one visit."""
_MAX_CHUNKS: Final = 1 << 16
_MAX_MESSAGES: Final = 4096
_MAX_LEVELS: Final = 8

_FILTERS: Final = {1: "deflate", 2: "shuffle", 3: "fletcher32", 4: "szip", 5: "nbit", 6: "scaleoffset"}
_SPACE, _LINK_INFO, _TYPE, _LINK, _EXTERNAL, _LAYOUT, _PIPELINE = 1, 2, 3, 6, 7, 8, 11
_CONTINUED, _TABLE = 16, 17
_HARMLESS: Final = frozenset({0, 4, 5, 10, 12, 13, 14, 18, 19, 21, 22})
"""Padding, fill values, group hints, attributes, comments, times, reference counts."""


@dataclass(slots=True)
class Hdf5File:
    """An HDF5 file in memory.

    Args:
        data: all of it.
        max_ratio: how many bytes one stored byte may inflate to.

    Raises:
        FormatError: it is no HDF5 file, or cut short. UnsupportedError: another version of the format.
    """

    data: Bytes
    max_ratio: int = 64
    _root: int = 0
    _left: int = 0
    _nodes: int = 0
    _groups: dict[int, Mapping[str, int]] = field(default_factory=dict[int, Mapping[str, int]])

    def __post_init__(self) -> None:
        if self.data.size < 96 or self._bytes(0, 8) != _SIGNATURE:
            raise FormatError("not an HDF5 file", wanted="its signature at byte 0")
        version, sizes, base, end, driver = (
            self.data[8],
            self._bytes(13, 2),
            self._int(24, 8),
            self._int(40, 8),
            self._int(48, 8),
        )
        if version != 0 or sizes != b"\x08\x08":
            raise UnsupportedError(
                f"HDF5 superblock version {version}", wanted="version 0, as Keras writes it"
            )
        if base != 0 or driver != _NOWHERE:
            raise UnsupportedError("an HDF5 file in several parts", wanted="one file")
        if end > self.data.size:
            raise FormatError(f"{self.data.size} bytes of HDF5", wanted=f"the {end} it says it has")
        self._root = self._int(64, 8)
        self._left = self.data.size

    def group(self, path: Sequence[str]) -> Mapping[str, int] | None:
        """The names in a group with the addresses of what they name; None if there is no such group."""
        address = self._root
        for at, part in enumerate(path):
            found = self._group(address, "/".join(path[:at])).get(part)
            if found is None:
                return None
            address = found
        return self._group(address, "/".join(path))

    def read(self, path: Sequence[str]) -> npt.NDArray[Any]:
        """The array at a path: a read-only view where it lies in one piece, else a new array.

        Raises:
            FormatError: nothing there, or its bytes are not all in the file.
            LimitError: its declared size is out of proportion, or its bytes were handed out before.
            UnsupportedError: a link, storage, filter or type outside what this reader knows.
        """
        parent, label = self.group(path[:-1]), "/".join(path)
        if parent is None or path[-1] not in parent:
            raise FormatError(f"no {label} in the HDF5 file")
        try:
            return self._dataset(parent[path[-1]])
        except (FormatError, LimitError, UnsupportedError) as error:
            raise error.at(place=label) from None
        except MemoryError as error:
            raise LimitError("an array this machine has no memory for", place=label) from error

    # --- groups ---

    def _group(self, address: int, label: str) -> Mapping[str, int]:
        if address in self._groups:
            return self._groups[address]
        table: bytes | None = None
        # A link tells where it leads; the record that there are links does not, so it comes last.
        for kind, body in sorted(self._messages(address), key=lambda message: message[0] != _LINK):
            if kind == _TABLE:
                table = body
            elif kind in (_LINK, _LINK_INFO):
                raise UnsupportedError(
                    f"{label or 'the root'} holds {_link_kind(kind, body)}",
                    wanted="plain groups, as Keras writes them",
                )
            elif kind not in _HARMLESS:
                raise UnsupportedError(f"{label or 'the root'} is no plain group (message {kind})")
        if table is None or len(table) < 16:
            raise FormatError(f"{label or 'the root'} is no group")
        tree, heap = struct.unpack_from("<QQ", table)
        found: dict[str, int] = {}
        names = self._heap(heap)
        for node in self._leaves(tree, 0, 8, 8):
            for name, target in self._symbols(node, names, label):
                if name in found:
                    raise FormatError(f"{name[:80]!r} stands twice in {label or 'the root'}")
                found[name] = target
        self._groups[address] = found
        return found

    def _heap(self, at: int) -> Bytes:
        if self._bytes(at, 4) != b"HEAP" or self._int(at + 4, 1) != 0:
            raise FormatError("no heap of names here", place=f"byte {at}")
        size, start = self._int(at + 8, 8), self._int(at + 24, 8)
        self._within(start, size)
        return self.data[start : start + size]

    def _symbols(self, at: int, names: Bytes, label: str) -> Iterator[tuple[str, int]]:
        if self._bytes(at, 4) != b"SNOD" or self._int(at + 4, 1) != 1:
            raise FormatError("no symbol table here", place=f"byte {at}")
        self._count()
        count = self._int(at + 6, 2)
        self._within(at + 8, 40 * count)
        for spot in range(at + 8, at + 8 + 40 * count, 40):
            self._count()
            start, target, cached = self._int(spot, 8), self._int(spot + 8, 8), self._int(spot + 16, 4)
            if start >= names.size:
                raise FormatError("a name outside its heap", place=f"byte {spot}")
            raw, stop, _ = names[start : start + _MAX_NAME + 1].tobytes().partition(b"\0")
            try:
                name = raw.decode("utf-8")
            except UnicodeDecodeError:
                raise FormatError("a name that is not UTF-8", place=f"byte {spot}") from None
            if not stop or not name or "/" in name:
                raise FormatError(f"the name {name[:80]!r} in {label or 'the root'}")
            if cached == 2:
                raise UnsupportedError(
                    f"{name[:80]!r} is a soft link", wanted="what it leads to, stored here"
                )
            if cached > 2:
                raise FormatError(f"{name[:80]!r} has cache type {cached}", wanted="0 or 1")
            yield name, target

    def _leaves(self, at: int, kind: int, key: int, child: int) -> Iterator[int]:
        """Addresses of a tree's leaves' children; for chunks, of their keys."""
        pending = [(at, -1)]
        while pending:
            at, level = pending.pop()
            self._count()
            if self._bytes(at, 4) != b"TREE" or self._int(at + 4, 1) != kind:
                raise FormatError("no tree of that kind here", place=f"byte {at}")
            found, used = self._int(at + 5, 1), self._int(at + 6, 2)
            if found > _MAX_LEVELS or level not in (-1, found):
                raise FormatError(
                    f"a tree node of level {found}", place=f"byte {at}", wanted=f"level {level}"
                )
            self._within(at + 24, used * (key + child) + key)
            self._count(used)
            spots = range(at + 24, at + 24 + used * (key + child), key + child)
            if found:
                pending += [(self._int(spot + key, 8), found - 1) for spot in reversed(spots)]
            else:
                for spot in spots:
                    yield self._int(spot + key, 8) if kind == 0 else spot

    # --- object headers ---

    def _messages(self, at: int) -> list[tuple[int, bytes]]:
        if self._int(at, 1) != 1:
            raise UnsupportedError(
                f"an object header of version {self._int(at, 1)}", place=f"byte {at}", wanted="version 1"
            )
        wanted = self._int(at + 2, 2)
        if wanted > _MAX_MESSAGES:
            raise LimitError(f"{wanted} messages in an object header", wanted=f"at most {_MAX_MESSAGES}")
        blocks = [(at + 16, self._int(at + 8, 4))]
        seen, found = set[int](), list[tuple[int, bytes]]()
        while blocks and len(found) < wanted:
            spot, size = blocks.pop(0)
            self._within(spot, size)
            if spot in seen:
                raise FormatError("an object header that continues into itself", place=f"byte {spot}")
            seen.add(spot)
            end = spot + size
            while spot + 8 <= end and len(found) < wanted:
                kind, length, flags = self._int(spot, 2), self._int(spot + 2, 2), self._int(spot + 4, 1)
                self._count(1 + length // _COUNTED_BYTES)
                if spot + 8 + length > end:
                    raise FormatError("a message runs past its block", place=f"byte {spot}")
                if flags & 2:
                    raise UnsupportedError("a shared message", place=f"byte {spot}", wanted="stored in place")
                body = self._bytes(spot + 8, length)
                if kind == _CONTINUED:
                    if length < 16:
                        raise FormatError("a continuation without an address", place=f"byte {spot}")
                    blocks.append(struct.unpack_from("<QQ", body))
                found.append((kind, body))
                spot += 8 + length
        if len(found) < wanted:
            raise FormatError(f"{len(found)} messages in an object header", wanted=f"{wanted}")
        return [(kind, body) for kind, body in found if kind != _CONTINUED]

    # --- datasets ---

    def _dataset(self, address: int) -> npt.NDArray[Any]:
        parts: dict[int, bytes] = {}
        for kind, body in self._messages(address):
            if kind == _EXTERNAL:
                raise UnsupportedError("data stored in another file", wanted="data in this file")
            if kind in (_SPACE, _TYPE, _LAYOUT, _PIPELINE):
                if kind in parts:
                    raise FormatError(f"two messages of kind {kind}", wanted="one")
                parts[kind] = body
            elif kind not in _HARMLESS:
                raise UnsupportedError(f"message {kind} of a dataset", wanted="a plain array")
        if not {_SPACE, _TYPE, _LAYOUT} <= parts.keys():
            raise FormatError("no array", wanted="its shape, type and layout")
        dtype = _dtype(parts[_TYPE])
        shape = _shape(parts[_SPACE])
        deflated = _deflated(parts[_PIPELINE]) if _PIPELINE in parts else False
        return self._array(parts[_LAYOUT], shape, dtype, deflated).reshape(shape)

    def _array(
        self, layout: bytes, shape: tuple[int, ...], dtype: np.dtype[Any], deflated: bool
    ) -> npt.NDArray[Any]:
        if len(layout) < 4 or layout[0] != 3:
            raise UnsupportedError(f"data layout version {layout[0] if layout else None}", wanted="version 3")
        size = math.prod(shape) * dtype.itemsize
        if layout[1] == 2:
            return self._chunks(layout, shape, dtype, deflated)
        if deflated:
            raise FormatError("a filter on data in one piece")
        if layout[1] == 0:
            found = layout[4 : 4 + struct.unpack_from("<H", layout, 2)[0]]
            if len(found) != size:
                raise FormatError(f"{len(found)} bytes for {list(shape)} {dtype}", wanted=f"{size}")
            return np.frombuffer(found, dtype)
        if layout[1] != 1 or len(layout) < 18:
            raise UnsupportedError(f"data layout {layout[1]}", wanted="compact, contiguous or chunked")
        at, stored = struct.unpack_from("<QQ", layout, 2)
        if size == 0:
            return np.empty(0, dtype)
        if stored != size or at == _NOWHERE:
            held = 0 if at == _NOWHERE else stored
            raise FormatError(f"{list(shape)} {dtype} declares {size} bytes, {held} are stored")
        self._spend(at, size)
        return self.data[at : at + size].view(dtype)

    def _chunks(
        self, layout: bytes, shape: tuple[int, ...], dtype: np.dtype[Any], deflated: bool
    ) -> npt.NDArray[Any]:
        rank = len(shape)
        if not rank or layout[2] != rank + 1 or len(layout) < 11 + 4 * (rank + 1):
            raise FormatError(f"chunks of rank {layout[2] - 1} for an array of rank {rank}")
        tree, *sides = struct.unpack_from(f"<Q{rank + 1}L", layout, 3)
        chunk, item = tuple(sides[:-1]), sides[-1]
        if item != dtype.itemsize or min(chunk) < 1:
            raise FormatError(f"chunks of {list(chunk)} with items of {item} bytes")
        counts = [-(-size // side) for size, side in zip(shape, chunk, strict=True)]
        if math.prod(counts) > _MAX_CHUNKS:
            raise LimitError(f"{math.prod(counts)} chunks", wanted=f"at most {_MAX_CHUNKS}")
        if not math.prod(shape):
            return np.empty(0, dtype)
        places = self._places(tree, chunk, shape)
        if len(places) != math.prod(counts):
            raise FormatError(f"{len(places)} chunks are stored", wanted=f"{math.prod(counts)}")
        size, whole = math.prod(chunk) * item, math.prod(shape) * item
        stored = self._spend_chunks(list(places.values()))
        if max(whole, size) > self.max_ratio * stored:
            raise LimitError(
                f"{list(shape)} {dtype} declares {whole} bytes, {stored} are stored",
                wanted=f"at most {self.max_ratio} times as many",
            )
        out = np.empty(shape, dtype)
        for spot, (at, length) in places.items():
            block = self._chunk(at, length, size, deflated).view(dtype).reshape(chunk)
            ends = [min(side, full - start) for side, full, start in zip(chunk, shape, spot, strict=True)]
            inside = tuple(slice(start, start + end) for start, end in zip(spot, ends, strict=True))
            out[inside] = block[tuple(slice(end) for end in ends)]
        return out

    def _places(
        self, tree: int, chunk: tuple[int, ...], shape: tuple[int, ...]
    ) -> dict[tuple[int, ...], tuple[int, int]]:
        """Where each chunk lies: (address, length) by its first element."""
        rank, found = len(shape), dict[tuple[int, ...], tuple[int, int]]()
        for key in self._leaves(tree, 1, 8 + 8 * (rank + 1), 8):
            length, mask = self._int(key, 4), self._int(key + 4, 4)
            spot = tuple(self._int(key + 8 + 8 * dim, 8) for dim in range(rank))
            inside = all(a % side == 0 and a < full for a, side, full in zip(spot, chunk, shape, strict=True))
            if mask or not inside or spot in found:
                raise FormatError(f"a chunk at {list(spot)} with mask {mask}", wanted="each chunk once")
            found[spot] = (self._int(key + 8 + 8 * (rank + 1), 8), length)
        return found

    def _chunk(self, at: int, length: int, size: int, deflated: bool) -> Bytes:
        if not deflated:
            if length != size:
                raise FormatError(f"a chunk of {length} bytes", wanted=f"{size}")
            return self.data[at : at + length]
        if size > self.max_ratio * length:
            raise LimitError(f"a chunk of {size} bytes in {length}", wanted=f"at most {self.max_ratio} to 1")
        machine = zlib.decompressobj()
        try:
            found = machine.decompress(self._bytes(at, length), size + 1)
        except zlib.error as error:
            raise FormatError(f"a chunk does not inflate: {error}", place=f"byte {at}") from error
        if len(found) != size:
            raise FormatError(f"a chunk inflates to {len(found)} bytes", wanted=f"{size}")
        return np.frombuffer(found, np.uint8)

    # --- bytes ---

    def _within(self, at: int, size: int) -> None:
        if at > self.data.size or size > self.data.size - at:
            raise FormatError(f"{size} bytes at byte {at}", wanted=f"an end before byte {self.data.size}")

    def _bytes(self, at: int, size: int) -> bytes:
        self._within(at, size)
        return self.data[at : at + size].tobytes()

    def _int(self, at: int, size: int) -> int:
        return int.from_bytes(self._bytes(at, size), "little")

    def _count(self, visits: int = 1) -> None:
        self._nodes += visits
        if self._nodes > _MAX_NODES:
            raise LimitError(f"over {_MAX_NODES} nodes, names and messages in an HDF5 file", wanted="fewer")

    def _spend_chunks(self, places: list[tuple[int, int]]) -> int:
        """Take the bytes of one array's chunks, no two of which overlap; how many there are."""
        end = 0
        for at, length in sorted(places):
            if at < end:
                raise LimitError(
                    "chunks that share their bytes", place=f"byte {at}", wanted="each byte in one"
                )
            self._spend(at, length)
            end = at + length
        return sum(length for _, length in places)

    def _spend(self, at: int, size: int) -> None:
        """Take `size` stored bytes from all there are."""
        self._within(at, size)
        if size > self._left:
            raise LimitError("datasets that share their bytes", wanted="each byte in one dataset")
        self._left -= size


def _link_kind(kind: int, body: bytes) -> str:
    target = body[2] if kind == _LINK and len(body) > 2 and body[1] & 8 else 0
    return {1: "a soft link", 64: "an external link"}.get(target, "links of the newer kind")


def _shape(body: bytes) -> tuple[int, ...]:
    head = {1: 8, 2: 4}.get(body[0] if body else 0)
    if head is None or len(body) < head:
        raise UnsupportedError("a dataspace of another version", wanted="1 or 2")
    rank = body[1]
    if rank > _MAX_RANK or len(body) < head + 8 * rank or (body[0] == 2 and body[3] == 2):
        raise FormatError(f"an array of rank {rank}", wanted=f"at most {_MAX_RANK}, with its sizes")
    shape = struct.unpack_from(f"<{rank}Q", body, head)
    if max(shape, default=0) > _MAX_DIM:
        raise LimitError(f"an array of shape {list(shape)}", wanted=f"dims of at most {_MAX_DIM}")
    return tuple(shape)


_FLOATS: Final = {
    2: (16, 10, 5, 0, 10, 15),
    4: (32, 23, 8, 0, 23, 127),
    8: (64, 52, 11, 0, 52, 1023),
}
"""By size: precision, exponent's place and size, mantissa's place and size, bias."""


def _dtype(body: bytes) -> np.dtype[Any]:
    if len(body) < 12:
        raise FormatError("a type without its fields")
    kind, bits, size = body[0] & 15, int.from_bytes(body[1:4], "little"), struct.unpack_from("<L", body, 4)[0]
    offset, precision = struct.unpack_from("<HH", body, 8)
    if kind == 0 and size in (1, 2, 4, 8) and not bits & 1 and (offset, precision) == (0, 8 * size):
        return np.dtype(f"<{'i' if bits & 8 else 'u'}{size}")
    if kind == 1 and size in _FLOATS and not bits & 0x41 and len(body) >= 20 and offset == 0:
        if (precision, *struct.unpack_from("<4BL", body, 12)) == _FLOATS[size]:
            return np.dtype(f"<f{size}")
    raise UnsupportedError(
        f"numbers of HDF5 class {kind}, {size} bytes", wanted="little-endian integers or IEEE floats"
    )


def _deflated(body: bytes) -> bool:
    """Whether the pipeline is deflate alone; no filters at all is False."""
    if len(body) < 2 or body[0] not in (1, 2):
        raise UnsupportedError("a filter pipeline of another version", wanted="1 or 2")
    count, at = body[1], 8 if body[0] == 1 else 2
    for _ in range(count):
        if at + 8 > len(body):
            raise FormatError("a filter pipeline cut short")
        number = struct.unpack_from("<H", body, at)[0]
        if number != 1 or count > 1:
            name = _FILTERS.get(number, f"number {number}")
            raise UnsupportedError(f"the HDF5 filter {name}", wanted="deflate alone, or none")
    return count == 1
