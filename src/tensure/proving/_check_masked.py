"""The checker's view of a table cut by rows: is a masked lookup the addend of a lookup over these rows?

where(mask, 0, table[lo:hi][where(mask, 0, i - lo)]) with mask = (i < lo) | (i >= hi) is, for every i, the sum
over the rows lo..hi of (i = row) times the row. All of it is read off how the classes are made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ._check_index import FIRST, Index, selected
from ._check_piece import Reg, is_part
from ._check_sums import CheckSums, Def, Term, is_rel, size


def masked_lookup(values: CheckSums, op: str, operands: Sequence[Any], claim: Term) -> bool:
    """Does a masking step make this addend of a lookup?"""
    coef, node, reg, limit = claim
    whole = values.defs[node]
    if (
        op not in ("where", "masked_fill")
        or coef != 1
        or whole.op != "embedding"
        or limit is None
        or limit[1]
    ):
        return False
    mask, blank, kept = operands if op == "where" else (operands[1], operands[2], operands[0])
    if not _plain(mask) or not _plain(kept) or not _blank(values, blank):
        return False
    part = values.defs[kept[0][1]]
    if part.op != "embedding" or not all(
        is_part(item) and item[2] == 1 for item in (*part.operands, *whole.operands)
    ):
        return False
    (table, rows, _), (full, every, _) = part.operands[0], whole.operands[0]
    shifted, chosen, _ = part.operands[1]
    low = _less(values, values.defs[shifted])
    if low is None or table != full or len(rows[0].runs) != 1:
        return False
    indices, low_of, chooser = low
    ((lo, hi),) = rows[0].runs
    if lo != low_of:
        return False
    item = values.defs[shifted]
    less = item.operands[2] if item.op == "where" else item.operands[0]
    seen = _outside(values, values.defs[chooser], lo, hi) == indices
    seen = seen or _outside(values, values.defs[chooser], 0, hi - lo) == less
    if not seen or indices[0] != whole.operands[1][0]:
        return False
    lead = len(chosen)
    here = selected(chosen, kept[0][2][:lead])
    if _where(values, mask[0], chooser) != (*here, FIRST):
        return False
    # Row of the logical table by row of the local one, index by index, column by column.
    at, stands = selected(indices[1], here), selected(whole.operands[1][1], reg[:lead])
    columns, local = selected(every[1:], reg[lead:]), selected(rows[1:], kept[0][2][lead:])
    shares = dict(limit[0])
    return (
        at == stands
        and columns == local
        and every[0][lo:hi] == Index(((lo, hi),))
        and shares == {"v": rows[0]}
    )


def _plain(item: Any) -> bool:
    return is_rel(item) and len(item) == 1 and item[0][0] == 1 and item[0][3] is None


def _blank(values: CheckSums, item: Any) -> bool:
    if is_rel(item):
        return len(item) == 1 and _zeros(values.defs[item[0][1]])
    return item is not None and item == 0


def _zeros(item: Def) -> bool:
    return item.op == "full" and item.attrs["fill_value"] == 0


def _number(item: Any) -> int | None:
    return int(item[2]) if isinstance(item, tuple) and item[:2] == ("number", "int") else None


def _entire(values: CheckSums, part: Any) -> bool:
    return is_part(part) and part[2] == 1 and values.is_whole(part[0], part[1])


def _less(values: CheckSums, item: Def) -> Any:
    """(indices, lo, class of the mask) of indices less lo, 0 where the mask holds."""
    if item.op not in ("where", "masked_fill"):
        return None
    mask, blank, kept = (
        item.operands if item.op == "where" else (item.operands[1], item.operands[2], item.operands[0])
    )
    zero = _zeros(values.defs[blank[0]]) if is_part(blank) else _number(blank) == 0
    if not zero or not _entire(values, mask) or not _entire(values, kept):
        return None
    less = values.defs[kept[0]]
    lo = _number(less.operands[1]) if less.op == "sub" and "alpha" not in less.attrs else None
    return None if lo is None or not is_part(less.operands[0]) else (less.operands[0], lo, mask[0])


def _outside(values: CheckSums, item: Def, lo: int, hi: int) -> Any:
    """The indices of a mask that holds below lo and from hi on."""
    if item.op not in ("bitwise_or", "logical_or") or not all(
        _entire(values, part) for part in item.operands
    ):
        return None
    sides = {values.defs[part[0]].op: values.defs[part[0]].operands for part in item.operands}
    if sides.keys() != {"lt", "ge"} or sides["lt"][0] != sides["ge"][0] or not is_part(sides["lt"][0]):
        return None
    return sides["lt"][0] if (_number(sides["lt"][1]), _number(sides["ge"][1])) == (lo, hi) else None


def _where(values: CheckSums, term: Term, chooser: int) -> Reg | None:
    """Where a mask seen with a last dim of its own stands in the mask itself, that dim after it."""
    _, node, reg, _ = term
    item = values.defs[node]
    if item.op != "view" or item.operands[0][0] != chooser:
        return None
    inner = item.operands[0][1]
    shape = (*size(inner), 1)
    if item.shape != shape or tuple(map(len, reg))[-1:] != (1,):
        return None
    return (*selected(inner, reg[:-1]), reg[-1])
