"""A table cut by rows: rows that are not here are masked, and what is looked up is an addend over rows.

out = where(mask, 0, table[lo:hi][where(mask, 0, i - lo)]) with mask = (i < lo) | (i >= hi) is the part of
table[i] that comes of rows lo..hi: a lookup is a sum of products with one-hot rows. Found in how values are
made, whatever their names. Knows no rules.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ._index import Region, select, shape_of, whole_region
from ._movement import regrouped
from ._relation import Term
from ._steps import Number
from ._values import Part, Values, is_part

ROWS = "v"
"""The letter that a lookup sums over: the rows of its table."""


@dataclass(frozen=True, slots=True)
class Lookup:
    """The rows lo..hi of a table looked up at some indices; masked elsewhere."""

    table: Part
    indices: Part
    lo: int
    hi: int
    places: Region
    """Which of the indices, as positions in their part."""


def masked_lookup(values: Values, op: str, terms: list[Term | Number]) -> Lookup | None:
    """The lookup that a masking step completes; None for any other step."""
    if op == "where":
        mask, blank, kept = terms
    elif op == "masked_fill":
        kept, mask, blank = terms
    else:
        return None
    if not isinstance(mask, Term) or not isinstance(kept, Term) or not _zero(values, blank):
        return None
    made = values.values[kept.node]
    if made.op != "embedding" or kept.limit is not None or mask.limit is not None or kept.coef != 1:
        return None
    table, places = made.operands
    if (
        not isinstance(table, tuple)
        or not isinstance(places, tuple)
        or len(table[1][0]) != 1
        or table[2] != 1
    ):
        return None
    found = _shifted(values, places[0])
    if found is None:
        return None
    node, indices, lo = found
    bounds = _bounds(values, node)
    lead = len(places[1])
    here = tuple(select(index, at) for index, at in zip(places[1], kept.region[:lead], strict=True))
    hi = table[1][0][0][1]
    if bounds not in ((indices, lo, hi), (_shifted_from(values, places[0]), 0, hi - lo)):
        return None
    if table[1][0][0][0] != lo:
        return None
    if (
        _mask_region(values, mask, node, lead) != here
        or kept.region[lead:] != whole_region(made.type.shape)[lead:]
    ):
        return None
    return Lookup(table, indices, lo, table[1][0][0][1], here)


def _mask_region(values: Values, mask: Term, node: int, lead: int) -> Region | None:
    """Where the mask of the rows stands, a last dim of size 1 apart."""
    if mask.region[lead:] != whole_region((1,) * (len(mask.region) - lead)) or len(mask.region) != lead + 1:
        return None
    value = values.values[mask.node]
    if value.op != "view" or not isinstance(value.operands[0], tuple) or value.operands[0][0] != node:
        return None
    inner = value.operands[0][1]
    places = regrouped(mask.region, value.type.shape, shape_of(inner))
    if places is None:
        return None
    return tuple(select(index, at) for index, at in zip(inner, places, strict=True))


def _shifted(values: Values, node: int) -> tuple[int, Part, int] | None:
    """Indices less `lo` where a mask does not hold, else 0: the mask, the indices, `lo`."""
    value = values.values[node]
    if value.op == "where":
        mask, blank, kept = value.operands
    elif value.op == "masked_fill":
        kept, mask, blank = value.operands
    else:
        return None
    if not _is_zero(values, blank) or not _all(values, mask) or not _all(values, kept):
        return None
    assert isinstance(mask, tuple) and isinstance(kept, tuple)
    less = values.values[kept[0]]
    if less.op != "sub" or less.given.get("alpha", 1) != 1 or not isinstance(less.operands[0], tuple):
        return None
    lo = _integer(less.operands[1])
    return None if lo is None or not is_part(less.operands[0]) else (mask[0], less.operands[0], lo)


def _shifted_from(values: Values, node: int) -> object:
    """The indices less `lo` that a mask chooses from."""
    value = values.values[node]
    return value.operands[2] if value.op == "where" else value.operands[0]


def _bounds(values: Values, node: int) -> tuple[Part, int, int] | None:
    """(indices, lo, hi) of a mask (i < lo) | (i >= hi)."""
    value = values.values[node]
    if value.op not in ("bitwise_or", "logical_or"):
        return None
    known: dict[str, tuple[Any, int | None]] = {}
    for operand in value.operands:
        if not _all(values, operand) or not isinstance(operand, tuple):
            return None
        side = values.values[operand[0]]
        known[side.op] = (side.operands[0], _integer(side.operands[1]) if len(side.operands) == 2 else None)
    below, above = known.get("lt"), known.get("ge")
    if below is None or above is None or below[0] != above[0] or below[1] is None or above[1] is None:
        return None
    return below[0], below[1], above[1]


def _all(values: Values, operand: object) -> bool:
    return (
        isinstance(operand, tuple)
        and is_part(operand)
        and values.is_whole(operand[0], operand[1])
        and operand[2] == 1
    )


def _zero(values: Values, item: Term | Number) -> bool:
    if isinstance(item, Term):
        return values.values[item.node].op == "full" and values.values[item.node].given["fill_value"] == 0
    return item == 0 and item is not None


def _is_zero(values: Values, operand: object) -> bool:
    if isinstance(operand, tuple) and is_part(operand):
        value = values.values[operand[0]]
        return value.op == "full" and value.given["fill_value"] == 0
    return _integer(operand) == 0


def _integer(operand: object) -> int | None:
    if isinstance(operand, tuple) and operand[:2] == ("number", "int"):
        return int(str(operand[2]))
    return None
