"""Parts of padded values and of joined ones, as parts of what was padded or joined.

Knows moves of indices only; no plan and no rule.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from ._index import Index, Region, Shape, joined


def unpadded(pad: Sequence[int], inner: Shape, region: Region) -> Region | None:
    """The part of what was padded that a part of the padded value is; None where it has padding in it.

    Sound: element i of a padded dim is element i - before of what was padded, whatever it was padded with,
    as long as that exists. Dims that lose elements (negative pads) are left alone.
    """
    rank = len(inner)
    if any(width < 0 for width in pad) or rank != len(region):
        return None
    found: list[Index] = []
    for dim, (size, index) in enumerate(zip(inner, region, strict=True)):
        back = 2 * (rank - 1 - dim)
        before = pad[back] if back < len(pad) else 0
        if any(lo < before or hi > before + size for lo, hi in index):
            return None
        found.append(tuple((lo - before, hi - before) for lo, hi in index))
    return tuple(found)


def stretches(index: Index, widths: Sequence[int]) -> list[tuple[int, Index]]:
    """An Index along joined parts of these widths, as (part, Index in it) in order.

    Sound: joined again in this order they are the elements of `index`, one by one.
    """
    stops = list(accumulate(widths))
    found: list[tuple[int, list[Index]]] = []
    if not stops or any(lo < 0 or hi > stops[-1] for lo, hi in index):
        return []
    for lo, hi in index:
        at = bisect_right(stops, lo)
        while lo < hi:
            start, end = stops[at] - widths[at], min(hi, stops[at])
            if widths[at]:
                if not found or found[-1][0] != at:
                    found.append((at, []))
                found[-1][1].append(((lo - start, end - start),))
            lo, at = end, at + 1
    return [(at, joined(runs)) for at, runs in found]
