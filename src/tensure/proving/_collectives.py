"""What the members of a collective come to have, one by one or taken together. Knows no messages."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tensure.bundle import Rank
from tensure.program import Op, TensorType, Undecided, infer_collective

from ._cells import Cells, Place
from ._cells import summed as sum_over
from ._extremes import EXTREMES, extreme
from ._index import shape_of
from ._instances import Instances
from ._logical import Logical
from ._relation import ONE, Relation, Term, total
from ._steps import Held
from ._values import FLOATS


class Collectives:
    """Relations of results from relations of what is brought."""

    def __init__(self, logical: Logical, cells: Cells, instances: Instances) -> None:
        self._logical, self._cells, self._instances = logical, cells, instances

    def meet(
        self, op: str, attrs: Mapping[str, Any], members: list[Held], types: list[TensorType]
    ) -> list[Relation]:
        """What each member comes to have, of what they bring in mesh order."""
        rank = len(members[0].type.shape)
        if op == "all_gather":
            joined = self._logical.join(members, attrs["dim"] % rank)
            return [joined] * len(members)
        if op == "all_to_all":
            split, cat = attrs["split"] % rank, attrs["cat"] % rank
            size = members[0].type.shape[split] // len(members)
            return [
                self._logical.join(
                    [
                        self._logical.unmoved(self._logical.piece(item, split, to * size, (to + 1) * size))
                        for item in members
                    ],
                    cat,
                )
                for to in range(len(members))
            ]
        kind = attrs.get("reduce", "sum")
        relations = [member.relation for member in members]
        found = members[0].type
        whole = self._added(members) if kind == "sum" else self._extreme(kind, members)
        if whole is None:
            whole = self._logical.ghost((op, kind, tuple(item.terms for item in relations)), found)
        whole = self._logical.resolve(self._logical.without_zeros(whole))
        if op == "all_reduce":
            return [whole] * len(members)
        dim = attrs["dim"] % rank
        size = found.shape[dim] // len(members)
        held = Held(found, whole)
        return [
            self._logical.piece(held, dim, to * size, (to + 1) * size).relation for to in range(len(members))
        ]

    def _extreme(self, kind: str, members: list[Held]) -> Relation | None:
        """The maximum (minimum) of maxima of parts, as one of the whole."""
        joined = extreme(self._logical, kind, members)
        if not isinstance(joined, Term):
            return joined
        term = members[0].relation.terms[0]
        given = dict(self._logical.values[term.node].given)
        part = Held(TensorType(shape_of(joined.region), members[0].type.dtype), Relation((joined,)))
        step = Op(EXTREMES[kind], (), (), tuple(given.items()))
        return self._logical.apply(step, [part], [members[0].type])[0].relation

    def _added(self, members: list[Held]) -> Relation | None:
        if members[0].type.dtype not in FLOATS and any(
            term.limit is None for member in members for term in member.relation.terms
        ):
            return None  # integers wrap: only the addends of one exact sum are put together
        return total((ONE, member.relation) for member in members)

    # ranks taken together ----------------------------------------------------------------------------

    def summed(self, rank: Rank, step: Op, held: Held) -> Held | None:
        """A sum over all places of one cell, if its addends fit together as they are."""
        axes: Any = step.attr("axes")
        if step.op not in ("all_reduce", "reduce_scatter") or (step.attr("reduce") or "sum") != "sum":
            return None
        boxes = self._cells.boxes(rank, axes)
        count = math.prod(hi - lo for lo, hi in boxes.values())
        (found, *_) = infer_collective(step.op, [held.type] * count, dict(step.attrs))
        if held.type.dtype not in FLOATS or not boxes.keys() <= self._cells.folded:
            return None
        whole = sum_over(held.relation, boxes, self._logical.families)
        if whole is None:
            return None
        whole = self._logical.resolve(self._logical.without_zeros(whole))
        if step.op == "all_reduce":
            return Held(found, whole)
        attrs: dict[str, Any] = dict(step.attrs)
        at, dim = 0, attrs["dim"] % len(held.type.shape)
        for axis, (lo, hi) in boxes.items():
            at = at * (hi - lo) + (self._cells.along(rank, axis) - lo)
        size = found.shape[dim]
        try:
            return self._logical.piece(Held(held.type, whole), dim, at * size, at * size + size)
        except Undecided:  # of what was joined: each place takes its own
            return None

    def members(self, payloads: Mapping[Rank, Held], axes: Any) -> list[tuple[Place, Rank, Held]]:
        """Every member's own, in mesh order."""
        members = [
            (place, rank, Held(held.type, self._instances.at(held.relation, dict(place))))
            for rank, held in payloads.items()
            for place in self._cells.places(rank, axes)
        ]
        return sorted(members, key=lambda member: member[0])

    def together(self, rank: Rank, rows: list[tuple[Place, Held]], axes: Any) -> Held:
        first = rows[0][1]
        if any(held.type != first.type for _, held in rows):
            raise Undecided("the type of what comes out", self._cells.folded & set(axes))
        boxes = self._cells.boxes(rank, axes)
        return Held(
            first.type, self._instances.together([(place, held.relation) for place, held in rows], boxes)
        )
