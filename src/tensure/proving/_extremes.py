"""A maximum over a cut dim is the maximum of the parts' maxima; likewise a minimum.

max(S) over a union of index sets is the largest of the max over each, and taking an index twice changes
nothing: so parts need not be disjoint, and their union is what counts. It is no addend: nothing of it may
enter a sum, so that maxima of parts stay values of their own until a collective joins them. Knows no rules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from ._index import Index, Region, index_of, members
from ._relation import ONE, Relation, Term
from ._steps import Held
from ._values import Values, is_part

EXTREMES: Final = {"max": "amax", "min": "amin"}


def extreme(values: Values, kind: str, held: Sequence[Held]) -> Relation | Term | None:
    """What a maximum (minimum) over ranks is: one relation that all have, or a value it is to be taken of.

    A Term: the part of a value of which it is the maximum, over the dims that each rank's was taken over.
    """
    if kind not in EXTREMES or not held:
        return None
    first = held[0].relation
    if all(item.relation == first for item in held):
        return first
    parts = [_taken_of(values, EXTREMES[kind], item.relation) for item in held]
    known = [part for part in parts if part is not None]
    if len(known) < len(held) or len({(node, repr(sorted(given.items()))) for node, _, given in known}) != 1:
        return None
    node, region, given = known[0]
    regions = {other for _, other, _ in known}
    differing = [dim for dim in range(len(region)) if len({other[dim] for other in regions}) > 1]
    if len(differing) != 1 or differing[0] not in given["dim"]:
        return None  # boxes that differ along two dims, or along one that is kept, are not joined
    (dim,) = differing
    if dim in values.values[node].free:
        return None
    union: Index = index_of(sorted({at for other in regions for at in members(other[dim])}))
    return Term(node, (*region[:dim], union, *region[dim + 1 :]))


def _taken_of(values: Values, op: str, relation: Relation) -> tuple[int, Region, Mapping[str, Any]] | None:
    """(node, region, attributes) of a part, when a relation is all of the maximum over it."""
    term = relation.single
    if term is None or not term.plain or not values.is_whole(term.node, term.region):
        return None
    value = values.values[term.node]
    if value.op != op or value.out or len(value.operands) != 1:
        return None
    (part,) = value.operands
    if not isinstance(part, tuple) or not is_part(part) or part[2] != ONE:
        return None
    return part[0], part[1], value.given
