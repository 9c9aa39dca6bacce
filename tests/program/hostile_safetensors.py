"""Safetensors files as editable parts: valid small ones for tests, and ones that lie in a single field.

Written from the format's description alone; shares nothing with the reader under test.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Parts:
    """One file. `header` is an object, or the raw text of one; its length is true unless overridden."""

    header: dict[str, Any] | bytes = field(default_factory=dict)
    data: bytes = b""
    length: int | None = None

    def serialise(self) -> bytes:
        text = self.header if isinstance(self.header, bytes) else json.dumps(self.header).encode()
        length = len(text) if self.length is None else self.length
        return (length & (2**64 - 1)).to_bytes(8, "little") + text + self.data

    def tensor(self, name: str) -> dict[str, Any]:
        assert isinstance(self.header, dict)
        found: dict[str, Any] = self.header[name]
        return found


def small() -> Parts:
    """A valid file with metadata, three tensors and an empty one."""
    header = {
        "__metadata__": {"format": "pt", "note": "two\nlines"},
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
        "c": {"dtype": "BOOL", "shape": [], "data_offsets": [32, 33]},
        "d": {"dtype": "I64", "shape": [0, 5], "data_offsets": [33, 33]},
    }
    return Parts(header, bytes(range(32)) + b"\1")


_ODD: tuple[Any, ...] = (
    0, 1, 24, 33, -1, 2**31, 2**32, 2**47, 2**48, 2**63, 2**64, 10**30, True, None, 1.0, 1e300, "", "F32",
    "é", [], [0], [1, 2], {}, {"a": 1}, [[[]]],
)  # fmt: skip


def mutate(parts: Parts, rng: random.Random) -> bytes:
    """One to three fields changed, re-serialised; now and then raw bytes damaged as well."""
    for _ in range(rng.randint(1, 3)):
        rng.choice(_MUTATIONS)(parts, rng)
    raw = bytearray(parts.serialise())
    if rng.random() < 0.25:
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    if rng.random() < 0.1:
        del raw[rng.randrange(len(raw)) :]
    return bytes(raw)


def _odd(rng: random.Random) -> Any:
    return copy.deepcopy(rng.choice(_ODD))  # a later mutation may change it


def _field(parts: Parts, rng: random.Random) -> None:
    assert isinstance(parts.header, dict)
    tensor = parts.header[rng.choice(list(parts.header))]
    if not isinstance(tensor, dict) or not tensor:
        return
    key = rng.choice(list(tensor))
    value = tensor[key]
    if isinstance(value, list) and value and rng.random() < 0.7:
        value[rng.randrange(len(value))] = _odd(rng)
    elif rng.random() < 0.2:
        del tensor[key]
    else:
        tensor[key] = _odd(rng)


def _table(parts: Parts, rng: random.Random) -> None:
    assert isinstance(parts.header, dict)
    name = rng.choice(list(parts.header) or ["a"])
    match rng.randrange(4):
        case 0:
            parts.header[rng.choice(("", "\n", "\ud800", "__metadata__", "x" * 500))] = copy.deepcopy(
                parts.header.get(name)
            )
        case 1:
            parts.header.pop(name, None)
        case 2:
            parts.header[name] = _odd(rng)
        case _:
            parts.header[name + "2"] = copy.deepcopy(parts.header.get(name))


def _extent(parts: Parts, rng: random.Random) -> None:
    match rng.randrange(3):
        case 0:
            parts.length = rng.choice((0, 1, 2, 8, 10**8, 2**31, 2**63, 2**64 - 1, 250))
        case 1:
            parts.data = parts.data[: rng.randrange(len(parts.data) + 1)]
        case _:
            parts.data += bytes(rng.randrange(9))


_MUTATIONS: tuple[Callable[[Parts, random.Random], None], ...] = (_field, _field, _field, _table, _extent)
