"""The checker's view of parts of padded and joined values: where in what was padded or joined they stand.

Run by run, written apart from the prover.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from ._check_index import Index, Run, joined
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
    places = tuple(at.shifted(-first) for first, at in zip(before, reg, strict=True))
    there = all(at.start >= 0 and at.stop <= n for at, n in zip(places, inner, strict=True))
    return places if there else None


def by_part(index: Index, widths: Sequence[int]) -> list[tuple[int, Index]]:
    """Indices along joined parts as (part, places in it), in their order, neighbours of one part together.

    Nothing where one is beyond the parts.
    """
    ends = list(accumulate(widths))
    if not ends or index.start < 0 or index.stop > ends[-1]:
        return []
    found: list[tuple[int, list[Run]]] = []
    for start, stop in index.runs:
        while start < stop:
            part = bisect_right(ends, start)  # the first that ends behind it: none of width 0
            first, end = ends[part] - widths[part], min(stop, ends[part])
            if not found or found[-1][0] != part:
                found.append((part, []))
            found[-1][1].append((start - first, end - first))
            start = end
    return [(part, joined(runs)) for part, runs in found]
