"""The checker's view of parts of padded and joined values: where in what was padded or joined they stand.

Index by index, written apart from the prover.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ._check_piece import Reg, Shape


def inside_padding(attrs: dict[str, Any], inner: Shape, reg: Reg) -> Reg | None:
    """Places in what was padded; None where any of the part is padding, or elements were taken off.

    A padded dim is `before` fillings, then what was padded in order, then fillings: element i of it is
    element i - before of what was padded wherever that exists.
    """
    pad: Sequence[int] = attrs["pad"]
    if min(pad, default=0) < 0 or len(reg) != len(inner) or len(pad) > 2 * len(inner):
        return None
    before = [0] * len(inner)
    for k in range(len(pad) // 2):
        before[len(inner) - 1 - k] = pad[2 * k]
    places = tuple(tuple(i - first for i in at) for first, at in zip(before, reg, strict=True))
    there = all(0 <= i < n for at, n in zip(places, inner, strict=True) for i in at)
    return places if there else None


def by_part(index: tuple[int, ...], widths: Sequence[int]) -> list[tuple[int, tuple[int, ...]]]:
    """Indices along joined parts as (part, places in it), in their order, neighbours of one part together.

    Nothing where one is beyond the parts.
    """
    whose = [(part, place) for part, width in enumerate(widths) for place in range(width)]
    if max(index, default=0) >= len(whose):
        return []
    found: list[tuple[int, list[int]]] = []
    for i in index:
        part, place = whose[i]
        if not found or found[-1][0] != part:
            found.append((part, []))
        found[-1][1].append(place)
    return [(part, tuple(places)) for part, places in found]
