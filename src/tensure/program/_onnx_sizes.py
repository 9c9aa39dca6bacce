"""The open sizes of an ONNX graph's inputs: what they are called, and what a caller says they are.

Most have a name of their own (`batch`, `seq`), and one name is one size wherever it stands. Those without are
called by input and dim: `ids.1`. Knows declared types. Does not know shapes of inner values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, TypeGuard

from tensure.errors import InputError

from ._onnx import OnnxGraph, OnnxType

__all__ = ["SettledSizes", "is_size_name", "settle_sizes", "size_label"]

MAX_SIZE: Final = (1 << 48) - 1
MAX_LISTED: Final = 16


@dataclass(frozen=True, slots=True)
class SettledSizes:
    """Sizes as given: by the file's name for them, and by (input, dim) for those without one."""

    by_name: dict[str, int] = field(default_factory=dict[str, int])
    by_place: dict[tuple[str, int], int] = field(default_factory=dict[tuple[str, int], int])


def is_size_name(dim: int | str | None) -> TypeGuard[str]:
    """Whether a dim is a name that means one size: exporters also write `?` for any size."""
    return isinstance(dim, str) and any(char.isalnum() for char in dim)


def size_label(spec: OnnxType, at: int) -> str:
    """What to call an open dim of an input: the file's name for it, or input and dim."""
    dim = (spec.shape or ())[at]
    return dim if is_size_name(dim) else f"{spec.name}.{at}"


def settle_sizes(graph: OnnxGraph, given: Mapping[str, int]) -> SettledSizes:
    """Which open size each of `given` is.

    Args:
        given: by the file's name of a size, or `input.dim`; a name of the file comes first.

    Raises:
        InputError: no size of that name is open, one is given twice and differently, or is no size.
    """
    specs = {spec.name: spec for spec in graph.inputs if spec.name not in graph.initializers}
    names = {dim for spec in specs.values() for dim in spec.shape or () if is_size_name(dim)}
    found = SettledSizes()
    for key, size in given.items():
        if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= MAX_SIZE:
            raise InputError(f"size {key!r} is {size!r}"[:200], wanted="a whole number of at least 0")
        name, place = key, _place(key, specs)
        if key not in names:
            if place is None:
                raise InputError(f"no size is called {key[:80]!r}", wanted=_wanted(specs))
            dim = (specs[place[0]].shape or ())[place[1]]
            if not is_size_name(dim):
                found.by_place[place] = size
                continue
            name = dim
        if found.by_name.setdefault(name, size) != size:
            raise InputError(
                f"size {name!r} is {found.by_name[name]} and {size}", wanted="one size for one name"
            )
    return found


def _place(key: str, specs: Mapping[str, OnnxType]) -> tuple[str, int] | None:
    """The input and dim that `ids.1` speaks of; None if there is no such dim, or it is not open."""
    name, _, digits = key.rpartition(".")
    if name not in specs or not digits.isascii() or not digits.isdigit() or len(digits) > 3:
        return None
    place = name, int(digits)
    shape = specs[name].shape or ()
    return place if place[1] < len(shape) and not isinstance(shape[place[1]], int) else None


def _wanted(specs: Mapping[str, OnnxType]) -> str:
    """The open sizes by what they may be called."""
    labels = [
        size_label(spec, at)
        for spec in specs.values()
        for at, dim in enumerate(spec.shape or ())
        if not isinstance(dim, int)
    ]
    listed = list(dict.fromkeys(labels))
    if not listed:
        return "none: every size of the file is fixed"
    return f"one of {', '.join(listed[:MAX_LISTED])}" + ", ..." * (len(listed) > MAX_LISTED)
