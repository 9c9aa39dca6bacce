"""Where the elements of flat memory come from: parameters laid one after another, and cut for ranks.

Sharded optimizers step a part of that. A part of a flat parameter that begins or ends within a row is
several boxes of it: the rest of the first row, whole rows, the begin of the last.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from tensure.program import FLOATS, Name, Op, Ref

from ._placements import Part

__all__ = ["Piece", "boxes", "is_copy", "layout_of"]

Piece: TypeAlias = "tuple[str | None, int, int]"
"""The parameter, none for what only fills up, and which of its elements, counted in order."""
_SAME: Final = frozenset("view reshape copy".split())
_FILLING: Final = frozenset("mul add sub".split())


def is_copy(step: Op) -> bool:
    """Whether a step gives what it reads, as it is or in another float dtype."""
    return step.op == "copy" or (step.op == "_to_copy" and step.attr("dtype") in (None, *FLOATS))


def layout_of(
    name: Name, makers: Mapping[Name, Op], leaf: Callable[[Name], tuple[str, Sequence[int]] | None]
) -> list[Piece] | None:
    """What a value is one after another; None where it is anything else.

    Args:
        name: the value.
        makers: the step behind each value.
        leaf: the parameter that a value is, with its shape.
    """
    found = _content(name, makers, leaf)
    return None if found is None else found[0]


def boxes(shape: Sequence[int], start: int, stop: int) -> list[Part]:
    """Elements start to stop of a tensor, counted in order, as boxes in that order."""
    if start >= stop:
        return []
    if not shape:
        return [Part(())]
    row = math.prod(shape[1:])
    first, last = start // row, (stop - 1) // row
    if start % row == 0 and stop % row == 0:
        return [Part((((first, last + 1, 1),), *(((0, size, 1),) for size in shape[1:])))]
    if first == last:
        inner = boxes(shape[1:], start - first * row, stop - first * row)
        return [Part((((first, first + 1, 1),), *part.dims)) for part in inner]
    cut = (first + 1) * row if start % row else stop // row * row
    return [*boxes(shape, start, cut), *boxes(shape, cut, stop)]


def _content(
    name: Name, makers: Mapping[Name, Op], leaf: Callable[[Name], tuple[str, Sequence[int]] | None]
) -> tuple[list[Piece], tuple[int, ...]] | None:
    known = leaf(name)
    if known is not None:
        return [(known[0], 0, math.prod(known[1]))], tuple(known[1])
    step = makers.get(name)
    if step is None:
        return None
    size: Any = step.attr("size")
    if step.op == "full" and isinstance(size, tuple):
        return [(None, 0, math.prod(size))], size
    reads = [arg for arg in step.args if isinstance(arg, Ref) or step.op not in _FILLING]
    parts = [_content(arg.name, makers, leaf) if isinstance(arg, Ref) else None for arg in reads]
    if not parts or None in parts:
        return None
    pieces, shape = parts[0]  # type: ignore[misc]
    if step.op in _FILLING and all(name is None for found in parts for name, _, _ in found[0]):  # type: ignore[index]
        return pieces, shape  # numbers, and nothing of a parameter
    if step.op in _SAME or is_copy(step):
        return pieces, _size(size, shape) if step.op in ("view", "reshape") else shape
    attrs: dict[str, Any] = dict(step.attrs)
    if step.op == "constant_pad_nd" and len(shape) == 1:
        before, after = attrs["pad"]
        around: list[Piece] = [(None, 0, max(0, count)) for count in (before, after)]
        kept = _cut(pieces, max(0, -before), shape[0] - max(0, -after))
        return [*around[:1], *kept, *around[1:]], (before + shape[0] + after,)
    if attrs.get("dim", 0) != 0 or attrs.get("step", 1) != 1 or not shape:
        return None
    row = math.prod(shape[1:])
    start, stop, _ = slice(attrs.get("start"), attrs.get("end")).indices(shape[0])
    if step.op == "cat":
        together = [piece for found in parts for piece in found[0]]  # type: ignore[index]
        rows = sum(found[1][0] for found in parts)  # type: ignore[index, misc]
        return together, (rows, *shape[1:])
    if step.op == "slice":
        return _cut(pieces, start * row, stop * row), (max(0, stop - start), *shape[1:])
    if step.op == "slice_scatter":
        inner = parts[1][0]  # type: ignore[index]
        total = shape[0] * row
        return [*_cut(pieces, 0, start * row), *inner, *_cut(pieces, stop * row, total)], shape
    return None


def _size(size: Sequence[int], shape: Sequence[int]) -> tuple[int, ...]:
    """A size with the one that follows from the others."""
    rest = math.prod(shape) // max(1, -math.prod(size)) if -1 in size else 0
    return tuple(rest if item == -1 else item for item in size)


def _cut(pieces: Sequence[Piece], start: int, stop: int) -> list[Piece]:
    found, at = list[Piece](), 0
    for label, low, high in pieces:
        one, other = max(start - at, 0), min(stop - at, high - low)
        if one < other:
            found.append((label, low + one, low + other))
        at += high - low
    return found
