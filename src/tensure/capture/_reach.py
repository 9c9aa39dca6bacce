"""Every plain value that a function can reach: closures, globals it names, defaults, attributes, containers.

Two looks at it tell a counter: numbers that differ, and objects that are no longer where they were. What runs
on without being reached by name is looked at besides: the environment, random numbers of Python and numpy.
What code reads from outside of the process (files, clocks) is not seen.
"""

from __future__ import annotations

import array
import collections
import decimal
import functools
import hashlib
import io
import itertools
import os
import random
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any, Final

import torch

from tensure.errors import UnsupportedError

from ._coordinate import is_coordinate
from ._held import PLAIN, cannot_be_read, held_by

__all__ = ["Look", "numbers_in_reach", "random_states_in_reach"]

MAX_VISITED: Final = 200_000
_CONTAINERS: Final = (list, tuple, set, frozenset, collections.deque, dict)
_BY_REPR: Final = (itertools.count, complex, bytearray, range, slice, decimal.Decimal, array.array)
_NOWHERE: Final = (tuple, frozenset, str, slice, range)
"""Objects that Python itself may share: where they are says nothing."""
_WANTED: Final = "micro-batches that see each other by accumulated gradients alone"
_INSTEAD: Final = "Loop over micro-batches in step() instead, without microbatch=."


@dataclass(frozen=True, slots=True)
class Look:
    """What a function can reach, once."""

    numbers: dict[str, Any] = field(default_factory=dict)
    """Plain values, by the way to them."""
    objects: dict[int, tuple[str, Any]] = field(default_factory=dict)
    """Everything else, by identity (it is kept, so that no other object takes it), with the way to it."""

    def change(self, later: Look) -> str | None:
        """Which number differs in a later look, in words; None if none does."""
        for path, value in self.numbers.items():
            if path in later.numbers and not _is_same(value, later.numbers[path]):
                return f"{path} is {_shown(later.numbers[path])} then, and was {_shown(value)}"
        for path in sorted(self.numbers.keys() ^ later.numbers.keys()):
            now, then = later.numbers.get(path), self.numbers.get(path)
            return f"{path} is {_shown(now)} then, and was {_shown(then)}"
        return None

    def moved(self, later: Look) -> str | None:
        """What is no longer where it was, in words: lists that turn, names that change places."""
        places = {path: at for at, (path, _) in self.objects.items()}
        for at, (path, value) in later.objects.items():
            # What is only found by another way first is where it was.
            if at in self.objects and places.get(path, at) != at and not isinstance(value, _NOWHERE):
                return f"{path} is then what was {self.objects[at][0]}"
        return None


def numbers_in_reach(function: Any) -> Look:
    """Every plain value that a function can reach, by the way to it; counters tell themselves by these.

    Raises:
        UnsupportedError: an iterator in reach does not tell where it is, or there is too much to look at.
    """
    found = Look()
    for path, value in _reached(function, found.objects):
        if is_coordinate(value):
            found.numbers[path] = str(value.form)  # whoever looks at the number itself asks where it stands
            continue
        if cannot_be_read(value):
            raise UnsupportedError(
                f"{path}, an iterator ({type(value).__qualname__}) that a micro-batch can reach and that "
                "does not tell where it is",
                wanted=_WANTED,
                next_step=_INSTEAD,
            )
        _note(found.numbers, path, value)
    table: Any = os.environ._data  # type: ignore[attr-defined]
    for name, item in dict.items(table):  # as it lies there: reading a rank of it by name is noted
        found.numbers[f"os.environ[{os.fsdecode(name)!r}]"] = item
    found.numbers["the state of random"] = _digest(repr(random.getstate()).encode())
    numpy = sys.modules.get("numpy.random")
    if numpy is not None:
        found.numbers["the state of numpy.random"] = _digest(_written(numpy.get_state(legacy=False)))
    return found


def random_states_in_reach(function: Any) -> dict[str, torch.Generator | torch.Tensor]:
    """Every generator, and every saved state of one, that a function can reach, by the way to it.

    Raises:
        UnsupportedError: there is too much to look at.
    """
    size = torch.default_generator.get_state().numel()
    return {
        path: value
        for path, value in _reached(function, {})
        if issubclass(type(value), torch.Generator)
        or (type(value) is torch.Tensor and value.dtype == torch.uint8 and value.numel() == size)
    }


def _reached(function: Any, seen: dict[int, tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Everything that a function can reach, once, by the way to it."""
    open_values: list[tuple[str, Any]] = [("microbatch", function)]
    while open_values:
        path, value = open_values.pop()
        if type(value) in PLAIN or is_coordinate(value):
            yield path, value
            continue
        if id(value) in seen:
            continue
        if len(seen) >= MAX_VISITED:
            raise UnsupportedError(
                f"more than {MAX_VISITED:,} objects that a micro-batch can reach ({path} is the next)",
                wanted="few enough to see that none of them makes another micro-batch another one",
                next_step=_INSTEAD,
            )
        seen[id(value)] = path, value
        yield path, value
        if type(value) is not itertools.count:
            open_values.extend((path + more, item) for more, item in held_by(value))


def _note(numbers: dict[str, Any], path: str, value: Any) -> None:
    """Put down what of a value can be compared."""
    kind = type(value)
    if kind in PLAIN:
        numbers[path] = value
    elif kind in _BY_REPR:
        numbers[path] = repr(value)
    elif isinstance(value, FunctionType):
        numbers[f"the code of {path}"] = value.__code__
    elif isinstance(value, _CONTAINERS):
        numbers[f"the length of {path}"] = len(value)
        if isinstance(value, dict):
            numbers[f"the keys of {path}"] = tuple(key for key in value if type(key) in PLAIN)
        elif isinstance(value, (set, frozenset)):
            numbers[f"the items of {path}"] = frozenset(item for item in value if type(item) in PLAIN)
    elif isinstance(value, random.Random):
        numbers[f"the state of {path}"] = _state(value, path)
    elif isinstance(value, io.IOBase):
        numbers[f"the place in {path}"] = _place(value)
    elif kind.__module__.partition(".")[0] == "numpy":
        _note_numpy(numbers, path, value)
    elif isinstance(value, functools._lru_cache_wrapper):
        numbers[f"what {path} had to compute"] = value.cache_info().misses


def _note_numpy(numbers: dict[str, Any], path: str, value: Any) -> None:
    """Arrays, scalars and generators of random numbers by their bytes."""
    import numpy

    if isinstance(value, numpy.random.Generator):
        value = value.bit_generator
    if isinstance(value, numpy.random.RandomState):
        numbers[f"the value of {path}"] = _digest(_written(value.get_state(legacy=False)))
    elif isinstance(value, numpy.random.BitGenerator):
        numbers[f"the value of {path}"] = _digest(_written(value.state))
    elif isinstance(value, (numpy.ndarray, numpy.generic)):
        numbers[f"the value of {path}"] = _digest(_written(value))


def _written(value: Any) -> bytes:
    """Arrays by shape, dtype and bytes, in whatever dicts and sequences; all else by its text."""
    if isinstance(value, Mapping):
        return b"{" + b",".join(_written(key) + b":" + _written(item) for key, item in value.items()) + b"}"
    if isinstance(value, (tuple, list)):
        return b"[" + b",".join(map(_written, value)) + b"]"
    if hasattr(value, "tobytes") and getattr(value, "dtype", None) is not None and not value.dtype.hasobject:
        return f"{value.dtype}{value.shape}".encode() + bytes(value.tobytes())
    return repr(value).encode()


def _state(value: random.Random, path: str) -> str:
    try:
        return _digest(repr(value.getstate()).encode())
    except NotImplementedError:
        raise UnsupportedError(
            f"{path}, random numbers of the system that a micro-batch can reach",
            wanted=_WANTED,
            next_step=_INSTEAD,
        ) from None


def _place(value: io.IOBase) -> int | None:
    """Where a file is read; what is only written (a log) is not looked at."""
    try:
        return value.tell() if value.readable() and value.seekable() else None
    except (OSError, ValueError):
        return None


def _digest(text: bytes) -> str:
    return hashlib.blake2b(text, digest_size=8).hexdigest()


def _is_same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    return one is other or (repr(one) == repr(other) if isinstance(one, float) else bool(one == other))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
