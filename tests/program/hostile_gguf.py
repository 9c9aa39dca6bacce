"""GGUF files as editable parts: valid small ones for tests, and ones that lie in a single field.

Written from the format's description alone; shares nothing with the reader under test.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tensure.program._weights import StoredTensor

TYPE_IDS = {
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "q2_k": 10, "q3_k": 11,
    "q4_k": 12, "q5_k": 13, "q6_k": 14, "i8": 24, "i16": 25, "i32": 26, "i64": 27, "f64": 28, "bf16": 30,
}  # fmt: skip
U32, I32, F32, BOOL, STRING, ARRAY, U64 = 4, 5, 6, 7, 8, 9, 10


def u32(value: int) -> bytes:
    return struct.pack("<I", value & 0xFFFFFFFF)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value & 0xFFFFFFFFFFFFFFFF)


def text(value: bytes | str, length: int | None = None) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return u64(len(raw) if length is None else length) + raw


def array(kind: int, items: Sequence[bytes], count: int | None = None) -> bytes:
    return u32(kind) + u64(len(items) if count is None else count) + b"".join(items)


@dataclass
class Entry:
    key: bytes
    kind: int
    payload: bytes
    key_length: int | None = None


@dataclass
class Info:
    name: bytes
    dims: list[int]  # fastest-varying first, as in the file
    kind: int
    offset: int
    num_dims: int | None = None
    name_length: int | None = None


@dataclass
class Parts:
    """One file. Counts are the true ones unless overridden."""

    entries: list[Entry] = field(default_factory=list)
    infos: list[Info] = field(default_factory=list)
    data: bytes = b""
    magic: bytes = b"GGUF"
    version: int = 3
    num_infos: int | None = None
    num_entries: int | None = None
    alignment: int = 32
    padding: bytes = b"\0"

    def serialise(self) -> bytes:
        out = self.magic + u32(self.version)
        out += u64(len(self.infos) if self.num_infos is None else self.num_infos)
        out += u64(len(self.entries) if self.num_entries is None else self.num_entries)
        for entry in self.entries:
            out += text(entry.key, entry.key_length) + u32(entry.kind) + entry.payload
        for info in self.infos:
            out += text(info.name, info.name_length)
            out += u32(len(info.dims) if info.num_dims is None else info.num_dims)
            out += b"".join(u64(dim) for dim in info.dims) + u32(info.kind) + u64(info.offset)
        gap = -len(out) % self.alignment
        return out + (self.padding * gap)[:gap] + self.data

    def entry(self, key: str) -> Entry:
        return next(entry for entry in self.entries if entry.key == key.encode())

    def info(self, name: str) -> Info:
        return next(info for info in self.infos if info.name == name.encode())


def typed(value: object) -> tuple[int, bytes]:
    """GGUF type and payload of a Python value."""
    if isinstance(value, bool):
        return BOOL, bytes([value])
    if isinstance(value, int):
        return (U32, u32(value)) if 0 <= value < 1 << 32 else (11, struct.pack("<q", value))
    if isinstance(value, float):
        return F32, struct.pack("<f", value)
    if isinstance(value, str):
        return STRING, text(value)
    items = list(value)  # type: ignore[call-overload]
    if items and isinstance(items[0], float):
        return ARRAY, array(F32, [struct.pack("<f", item) for item in items])
    if items and isinstance(items[0], int):
        return ARRAY, array(I32, [struct.pack("<i", item) for item in items])
    return ARRAY, array(STRING, [text(item) for item in items])


def parts_of(
    metadata: Mapping[str, object], tensors: Mapping[str, StoredTensor], alignment: int = 32
) -> Parts:
    """A valid file with this metadata and these tensors."""
    values = dict(metadata)
    if alignment != 32:
        values["general.alignment"] = alignment
    parts = Parts([Entry(key.encode(), *typed(value)) for key, value in values.items()], alignment=alignment)
    for name, tensor in tensors.items():
        parts.data += b"\0" * (-len(parts.data) % alignment)
        dims = list(reversed(tensor.shape))
        parts.infos.append(Info(name.encode(), dims, TYPE_IDS[tensor.encoding], len(parts.data)))
        parts.data += tensor.data.tobytes()
    return parts


def write_gguf(path: Path, metadata: Mapping[str, object], tensors: Mapping[str, StoredTensor]) -> Path:
    """A valid small GGUF file on disk."""
    path.write_bytes(parts_of(metadata, tensors).serialise())
    return path


def small(alignment: int = 32) -> Parts:
    """A valid file with every kind of metadata value and three tensors."""
    rng = np.random.default_rng(7)
    metadata: dict[str, object] = {
        "general.architecture": "llama",
        "llama.context_length": 64,
        "llama.rope.freq_base": 1e4,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.tokens": ["<s>", "a", "b", "ab"],
        "tokenizer.ggml.token_type": [3, 1, 1, 1],
        "tokenizer.ggml.scores": [0.0, -1.0, -2.0, -3.0],
        "tokenizer.ggml.model": "llama",
    }
    tensors = {
        "token_embd.weight": StoredTensor.from_array(rng.standard_normal((4, 32), dtype=np.float32), "q8_0"),
        "blk.0.weight": StoredTensor.from_array(rng.standard_normal((3, 64), dtype=np.float32), "q4_1"),
        "output_norm.weight": StoredTensor.from_array(rng.standard_normal(5, dtype=np.float32), "f32"),
    }
    return parts_of(metadata, tensors, alignment)


_ODD = (
    0, 1, 2, 3, 31, 32, 33, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**47, 2**48, 2**61, 2**63 - 1, 2**63,
    2**64 - 1,
)  # fmt: skip


def mutate(parts: Parts, rng: random.Random) -> bytes:
    """One to three fields changed, re-serialised; now and then raw bytes damaged as well."""
    for _ in range(rng.randint(1, 3)):
        rng.choice(_MUTATIONS)(parts, rng)
    raw = bytearray(parts.serialise())
    if rng.random() < 0.2:
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    if rng.random() < 0.1:
        del raw[rng.randrange(len(raw)) :]
    return bytes(raw)


def _counts(parts: Parts, rng: random.Random) -> None:
    setattr(parts, rng.choice(("num_infos", "num_entries", "version", "alignment")), rng.choice(_ODD) or 1)
    parts.alignment = min(parts.alignment, 4096)


def _entry(parts: Parts, rng: random.Random) -> None:
    if not parts.entries:
        return
    entry = rng.choice(parts.entries)
    match rng.randrange(6):
        case 0:
            entry.key = rng.choice(
                (b"", b"\xff", b"a\0b", rng.choice(parts.entries).key, b"general.alignment")
            )
        case 1:
            entry.kind = rng.choice((*range(14), 2**31, 2**32 - 1))
        case 2:
            entry.key_length = rng.choice(_ODD)
        case 3:
            entry.payload = entry.payload[: rng.randrange(len(entry.payload) + 1)]
        case 4:
            width = rng.choice((1, 4, 8))
            at = rng.randrange(max(1, len(entry.payload) - width))
            value = rng.choice(_ODD).to_bytes(8, "little")[:width]
            entry.payload = entry.payload[:at] + value + entry.payload[at + width :]
        case _:
            parts.entries.insert(rng.randrange(len(parts.entries)), entry)


def _info(parts: Parts, rng: random.Random) -> None:
    if not parts.infos:
        return
    info = rng.choice(parts.infos)
    match rng.randrange(7):
        case 0:
            info.name = rng.choice((b"", b"\xff", b"a\nb", rng.choice(parts.infos).name, b"x" * 300))
        case 1:
            info.kind = rng.choice((*range(45), 2**31, 2**32 - 1))
        case 2:
            info.num_dims = rng.choice((0, 1, 3, 4, 5, 2**31, 2**32 - 1))
        case 3:
            info.dims = [rng.choice(_ODD) for _ in range(rng.randrange(6))]
        case 4:
            info.offset = rng.choice((*_ODD, info.offset + 32, max(0, info.offset - 32)))
        case 5:
            info.name_length = rng.choice(_ODD)
        case _:
            parts.infos.insert(rng.randrange(len(parts.infos)), info)


def _data(parts: Parts, rng: random.Random) -> None:
    match rng.randrange(4):
        case 0:
            parts.data = parts.data[: rng.randrange(len(parts.data) + 1)]
        case 1:
            parts.data += bytes(rng.randrange(40))
        case 2:
            parts.data += b"PK\3\4"
        case _:
            parts.padding = b"\1"


_MUTATIONS: tuple[Callable[[Parts, random.Random], None], ...] = (
    _counts,
    _entry,
    _entry,
    _info,
    _info,
    _data,
)
