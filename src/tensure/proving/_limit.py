"""Addends: where the making of a value was held to slices of what is summed.

A Limit belongs to a value. Its shares are slices of contracted letters of the value's own op; `through`
says which of its operands were limited themselves. Every op from a limited value down is linear in it,
so the addends of a partition of a letter add up to what they would be without that share. Knows no ops.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from ._index import Index, length, whole


@dataclass(frozen=True, slots=True)
class Share:
    """A slice of a contracted letter.

    Args:
        letter: the letter, of the value's own op.
        extent: its size.
        index: the slice of it.
    """

    letter: str
    extent: int
    index: Index


class Limit:
    """What of a value's making was held to slices.

    Args:
        shares: of the value's own contracted letters, each letter once, in order.
        through: limits of operands by position or, where the value is a sum, of its parts by their number.
            Several operands are limited only where the op is a sum of what it makes of each.
    """

    __slots__ = ("_hash", "shares", "skeleton", "through")

    def __init__(self, shares: Iterable[Share], through: Iterable[tuple[int, Limit]]) -> None:
        self.shares = tuple(sorted(shares, key=lambda share: share.letter))
        self.through = tuple(sorted(through, key=lambda item: item[0]))
        self.skeleton: tuple[object, ...] = (
            tuple((share.letter, share.extent) for share in self.shares),
            tuple((key, limit.skeleton) for key, limit in self.through),
        )
        self._hash = hash((self.shares, self.through))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return (
            isinstance(other, Limit)
            and self._hash == other._hash
            and self.shares == other.shares
            and self.through == other.through
        )

    def order(self) -> tuple[object, ...]:
        """A key to sort limits by that is the same in every process."""
        own = tuple((share.letter, share.index) for share in self.shares)
        return own, tuple((key, limit.order()) for key, limit in self.through)


Folded: TypeAlias = "tuple[int, Limit | None]"
"""How often, and which limit is left; None: the whole value."""


def limited(shares: Iterable[Share], through: Iterable[tuple[int, Limit]]) -> Limit | None:
    """A Limit, or None when nothing is limited."""
    found = Limit(shares, through)
    return found if found.shares or found.through else None


def fold(limits: Sequence[Limit]) -> Folded | None:
    """What addends of one value with these limits add up to, where that is one addend (or all) again.

    They differ in one share, whose slices are disjoint and are put together; or in their operands' limits,
    which fold; or in several, taken one after another.
    """
    counts: dict[Limit, int] = {}
    for limit in limits:
        counts[limit] = counts.get(limit, 0) + 1
    if len(set(counts.values())) != 1 or len({limit.skeleton for limit in counts}) != 1:
        return None
    times = next(iter(counts.values()))
    several = list(counts)
    if len(several) == 1:
        return times, several[0]
    places = range(-1 if several[0].through else 0, len(several[0].shares))
    varying = [place for place in places if len({_at(limit, place) for limit in several}) > 1]
    for place in varying:
        groups: dict[object, list[Limit]] = {}
        for limit in several:
            groups.setdefault(tuple(_at(limit, other) for other in varying if other != place), []).append(
                limit
            )
        if len(groups) == len(several):
            continue
        made = [_along(group, place) for group in groups.values()]
        if any(item is None for item in made) or len({item[0] for item in made if item}) != 1:
            continue
        left = [item[1] for item in made if item is not None]
        more = made[0][0] if made[0] is not None else 1
        if len(left) == 1:
            return times * more, left[0]
        rest = fold([limit for limit in left if limit is not None])
        if None not in left and rest is not None:
            return times * more * rest[0], rest[1]
    return None


def _at(limit: Limit, place: int) -> object:
    return limit.through if place < 0 else limit.shares[place]


def _along(limits: list[Limit], place: int) -> Folded | None:
    """Limits that differ at one place only, folded there."""
    first = limits[0]
    if place >= 0:
        share = first.shares[place]
        runs = sorted(run for limit in limits for run in limit.shares[place].index)
        if any(before[1] > after[0] for before, after in zip(runs, runs[1:], strict=False)):
            return None
        joined: list[tuple[int, int]] = []
        for lo, hi in runs:
            if joined and joined[-1][1] == lo:
                joined[-1] = (joined[-1][0], hi)
            else:
                joined.append((lo, hi))
        others = [*first.shares[:place], *first.shares[place + 1 :]]
        if tuple(joined) != whole(share.extent):
            others.append(Share(share.letter, share.extent, tuple(joined)))
        return 1, limited(others, first.through)
    made = [fold([limit.through[at][1] for limit in limits]) for at in range(len(first.through))]
    if any(item is None for item in made) or len({item[0] for item in made if item}) != 1:
        return None
    rows = [item for item in made if item is not None]
    if len({item[1] is None for item in rows}) != 1:
        return None  # a sum of a whole and of an addend is no addend
    keys = [key for key, _ in first.through]
    through = [(key, item[1]) for key, item in zip(keys, rows, strict=True) if item[1] is not None]
    return rows[0][0], limited(first.shares, through)


def share_of(letter: str, extent: int, index: Index) -> Share | None:
    """A share in its one spelling: which indices, in rising order; None when it is all of them."""
    runs = sorted(index)
    joined: list[tuple[int, int]] = []
    for lo, hi in runs:
        if joined and joined[-1][1] == lo:
            joined[-1] = (joined[-1][0], hi)
        else:
            joined.append((lo, hi))
    spelled = tuple(joined)
    return None if spelled == whole(extent) and length(index) == extent else Share(letter, extent, spelled)
