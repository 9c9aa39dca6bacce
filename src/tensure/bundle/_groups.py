"""Who stands where on the mesh, and who meets whom in a collective.

A rank's mesh coordinates are its own along its track's axes and those of the track's fixed names that
are mesh axes. A collective over some axes is met by all ranks whose coordinates agree along all others,
whatever their tracks, in mesh order. Knows no values.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TypeAlias

from tensure.errors import RecordError

from ._plan import Plan, Rank, coordinates

Axes: TypeAlias = tuple[str, ...]


class Groups:
    """The groups of a Plan's collectives; each is found once."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._at: dict[Rank, dict[str, int]] = {}
        self._tables: dict[tuple[Axes, str | None], dict[object, list[Rank]]] = {}
        self._found: dict[tuple[Axes, Rank], tuple[Rank, ...]] = {}
        self._near: dict[tuple[Axes, Axes], dict[tuple[int, ...], Rank]] = {}

    def of(self, rank: Rank, axes: object) -> tuple[Rank, ...]:
        """The members of a collective over `axes` that a rank takes part in, in mesh order.

        A track that stands at every place along the axes is its own world. Otherwise
        ranks of other tracks stand at the other places, and each place must be one rank's.

        Raises:
            RecordError: the axes are none of the rank's; a place is nobody's or several ranks'; a rank may
                or may not be a member because its coordinate along some axis is unknown.
        """
        own, track = self._coordinates(rank), self._plan.tracks[rank.track]
        if not isinstance(axes, tuple) or not all(axis in own for axis in axes):
            raise RecordError(
                f"a collective over {axes}",
                place=str(rank),
                wanted=f"axes of track {rank.track}: {', '.join(own) or 'none'}",
            )
        names = tuple(str(axis) for axis in axes)
        if (names, rank) not in self._found:
            alone = track.fills(names)
            if not alone:
                self._all_known(rank, names)
            members = self._table(names, rank.track if alone else None)[_but(own, names)]
            for member in (found := self._placed(members, names, rank)):
                self._found[names, member] = found
        return self._found[names, rank]

    def _coordinates(self, rank: Rank) -> dict[str, int]:
        if rank not in self._at:
            self._at[rank] = coordinates(self._plan, rank)
        return self._at[rank]

    def _table(self, axes: Axes, track: str | None) -> dict[object, list[Rank]]:
        """Ranks by their coordinates along all other axes."""
        if (axes, track) not in self._tables:
            table: dict[object, list[Rank]] = {}
            for rank in self._plan.ranks(track):
                table.setdefault(_but(self._coordinates(rank), axes), []).append(rank)
            self._tables[axes, track] = table
        return self._tables[axes, track]

    def _placed(self, members: Iterable[Rank], axes: Axes, rank: Rank) -> tuple[Rank, ...]:
        over = [axis for axis in self._plan.mesh if axis in axes]
        place = f"{rank}, a collective over {', '.join(axes)}"
        found: dict[tuple[int, ...], Rank] = {}
        for member in members:
            at = tuple(self._coordinates(member).get(axis, -1) for axis in over)
            if any(not 0 <= c < self._plan.mesh[axis] for c, axis in zip(at, over, strict=True)):
                raise RecordError(
                    f"{member} stands at {_spot(over, at)}", place=place, wanted="a place of the mesh"
                )
            if at in found:
                raise RecordError(
                    f"{found[at]} and {member} both stand at {_spot(over, at)}",
                    place=place,
                    wanted="one rank at each place",
                )
            found[at] = member
        if len(found) < math.prod(self._plan.mesh[axis] for axis in over):
            held = "; ".join(_spot(over, at) for at in sorted(found)[:4])
            raise RecordError(
                f"only {len(found)} ranks, at {held}", place=place, wanted="a rank at every place along them"
            )
        return tuple(found[at] for at in sorted(found))

    def _all_known(self, rank: Rank, axes: Axes) -> None:
        """Refuse when some rank agrees as far as is known, and more would have to be known."""
        own = self._coordinates(rank)
        for label in self._plan.tracks:
            first = next(iter(self._plan.ranks(label)))
            theirs = self._coordinates(first)
            if set(theirs) == set(own):
                continue
            common = tuple(axis for axis in own if axis in theirs and axis not in axes)
            table = self._near.setdefault((common, (label,)), {})
            if not table:
                for other in self._plan.ranks(label):
                    table.setdefault(tuple(self._coordinates(other)[axis] for axis in common), other)
            other = table.get(tuple(own[axis] for axis in common), rank)
            if other != rank:
                lost, axis = next(
                    (which, axis)
                    for axis in self._plan.mesh
                    for which, known in ((other, theirs), (rank, own))
                    if (axis in own or axis in theirs) and axis not in known
                )
                raise RecordError(
                    f"nothing says where {lost} stands along {axis}",
                    place=f"{rank}, a collective over {', '.join(axes)}",
                    wanted=f"{axis} among the axes or fixed names of track {lost.track}",
                )


def _but(at: dict[str, int], axes: Axes) -> frozenset[tuple[str, int]]:
    return frozenset((axis, place) for axis, place in at.items() if axis not in axes)


def _spot(axes: list[str], at: tuple[int, ...]) -> str:
    return ", ".join(f"{axis}={place}" for axis, place in zip(axes, at, strict=True))
