"""Parts that are the same in several places: of a view of what repeats, one part as another.

Where a value repeats along a dim that a view merges with others, the view does not repeat along any of its
dims, and yet parts of it are equal: any that come of the same part but for the dim that repeats. A product
with what stands at other places may need the one that stands there. Knows no rules.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from tensure.program import Undecided

from ._index import Index, Region, length, select, shape_of
from ._movement import regrouped
from ._relation import Term
from ._repeats import order_of
from ._steps import Number
from ._values import Values, is_part

MAX_MOVES = 8


def restated(values: Values, terms: Sequence[Term | Number]) -> Iterator[list[Term | Number]]:
    """The operands with one of them said to stand where another does."""
    for at, item in enumerate(terms):
        if not isinstance(item, Term) or not _repeats(values, item):
            continue
        for other in terms:
            if not isinstance(other, Term) or other is item:
                continue
            for dim, index in enumerate(item.region):
                for place in dict.fromkeys(other.region):
                    if place != index and length(place) == length(index):
                        made = _standing(values, item, dim, place)
                        if made is not None:
                            yield [*terms[:at], made, *terms[at + 1 :]]


def _repeats(values: Values, term: Term) -> bool:
    return term.limit is None and _origin(values, term.node, term.region) is not None


def _standing(values: Values, term: Term, dim: int, place: Index) -> Term | None:
    """The same numbers at another place of one dim, if they are the same."""
    region = (*term.region[:dim], place, *term.region[dim + 1 :])
    try:
        if any(stop > values.values[term.node].type.shape[dim] for _, stop in place):
            return None
        one, other = (_origin(values, term.node, part) for part in (term.region, region))
        return replace(term, region=region) if one is not None and one == other else None
    except Undecided:  # this is a guess: not the same everywhere
        return None


def _origin(values: Values, node: int, region: Region) -> tuple[int, Region] | None:
    """A part of views and transposes as one of what repeats, dims along which it does only as so many."""
    for _ in range(MAX_MOVES):
        value = values.values[node]
        if value.free:
            return node, values.spelled(node, region)
        part = value.operands[0] if value.op in ("view", "permute") else None
        if not isinstance(part, tuple) or not is_part(part):
            return None
        node, outer, _ = part
        if value.op == "view":
            places = regrouped(region, value.type.shape, shape_of(outer))
        else:
            order = order_of(dict(value.given), len(region))
            places = tuple(region[order.index(dim)] for dim in range(len(region)))
        if places is None:
            return None
        region = tuple(select(index, spot) for index, spot in zip(outer, places, strict=True))
    return None
