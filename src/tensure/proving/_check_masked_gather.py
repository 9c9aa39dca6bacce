"""The checker's view of columns cut among ranks: is a masked gather the addend of a gather over these?

Both are followed down to where every entry comes from: which row of which class, at which index. The entries
agree if rows and indices do, one by one; the columns at hand are lo..hi, the mask says (i < lo) | (i >= hi),
and where it does not hold the shifted index points to column i. Written apart from the prover.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from ._check_index import FIRST, Index, all_of, selected
from ._check_masked import _blank, _entire, _less, _number, _plain
from ._check_ops import FLOATS
from ._check_piece import Reg, is_part
from ._check_sums import CheckSums, Def, Term, size

Entries: TypeAlias = tuple[Def, Reg]
"""A gather, and which of its entries."""


def masked_gather(values: CheckSums, op: str, operands: Sequence[Any], claim: Term) -> bool:
    """Does a masking step make this addend of a gather?"""
    coef, node, reg, limit = claim
    if op not in ("where", "masked_fill") or coef != 1 or limit is None or len(operands) != 3:
        return False
    mask, blank, kept = operands if op == "where" else (operands[1], operands[2], operands[0])
    if not _plain(mask) or not _plain(kept) or not _blank(values, blank):
        return False
    here, there = _entries(values, kept[0][1], kept[0][2]), _entries(values, node, reg)
    if here is None or there is None or size(kept[0][2]) != size(reg) or size(mask[0][2]) != size(reg):
        return False
    (mine, at), (whole, spots) = here, there
    limit = limit if whole is values.defs[node] else _inner(limit)
    if limit is None or limit[1] or whole.dtype not in FLOATS:
        return False
    dim, rank = whole.attrs["dim"] % len(whole.shape), len(whole.shape)
    if mine.attrs["dim"] % rank != dim or len(mine.shape) != rank:
        return False
    if not all(is_part(part) and part[2] == 1 for part in (*mine.operands, *whole.operands)):
        return False
    (table, columns, _), (full, every, _) = mine.operands[0], whole.operands[0]
    source = values.defs[full]
    if table != full or dim in source.free or every[dim] != all_of(source.shape[dim]):
        return False
    if any(_of(columns[d], at[d]) != _of(every[d], spots[d]) for d in range(rank) if d != dim):
        return False
    if len(columns[dim].runs) != 1 or limit[0] != (("v", columns[dim]),):
        return False
    ((lo, hi),) = columns[dim].runs
    shifted = _index(values, mine.operands[1], at, dim, len(reg))
    if shifted is None:
        return False
    found = _unshifted(values, shifted[0], lo, hi)
    if found is None:
        return False
    chooser, (own, outer, by) = found
    if (mask[0][1], mask[0][2]) != (chooser, shifted[1]) or by != 1:
        return False
    # The index of every entry, before it was shifted, is the one that the logical gather reads.
    plain, every_one, _ = whole.operands[1]
    mine_at = seen(values, own, selected(outer, shifted[1]))
    return bool(mine_at == seen(values, plain, selected(every_one, spots)))


def seen(values: CheckSums, node: int, reg: Reg) -> Any:
    """Elements of a class, the same whatever dims of size 1 it is seen with."""
    item = values.defs[node]
    while item.op == "view" and is_part(item.operands[0]) and item.operands[0][2] == 1:
        inner, outer, _ = item.operands[0]
        if item.free or not values.is_whole(inner, outer):
            break
        left = [index for index, n in zip(reg, item.shape, strict=True) if n != 1]
        sizes = [n for n in item.shape if n != 1]
        item = values.defs[inner]
        if sizes != [n for n in item.shape if n != 1]:
            return inner, tuple(sizes), tuple(left)
        node, reg = inner, tuple(left.pop(0) if n != 1 else FIRST for n in item.shape)
    pairs = [(index, n) for index, n in zip(reg, item.shape, strict=True) if n != 1]
    return node, tuple(n for _, n in pairs), tuple(index for index, _ in pairs)


def _of(index: Index, spots: Index) -> Index:
    return index.select(spots)


def _inner(limit: Any) -> Any:
    return limit[1][0][1] if not limit[0] and len(limit[1]) == 1 and limit[1][0][0] == 0 else None


def _entries(values: CheckSums, node: int, reg: Reg) -> Entries | None:
    """Which entries of a gather these are, seen as it is or without its gathered dim, of size 1."""
    item = values.defs[node]
    if item.op == "gather":
        return item, reg
    if item.op != "view" or not is_part(item.operands[0]) or item.operands[0][2] != 1:
        return None
    inner, outer, _ = item.operands[0]
    under = values.defs[inner]
    if under.op != "gather" or item.free or not values.is_whole(inner, outer):
        return None
    dim = under.attrs["dim"] % len(under.shape)
    if under.shape[dim] != 1 or item.shape != (*under.shape[:dim], *under.shape[dim + 1 :]):
        return None
    return under, (*reg[:dim], FIRST, *reg[dim:])


def _index(values: CheckSums, part: Any, spots: Reg, dim: int, rank: int) -> tuple[int, Reg] | None:
    """Where the indices of entries stand in a class of the result's rank, a dim of size 1 put in or not."""
    node, outer, _ = part
    reg = selected(outer, spots)
    if len(reg) == rank:
        return node, reg
    item = values.defs[node]
    if item.op != "view" or not is_part(item.operands[0]) or item.operands[0][2] != 1 or item.free:
        return None
    inner, under, _ = item.operands[0]
    if item.shape != (*size(under)[:dim], 1, *size(under)[dim:]):
        return None
    return inner, selected(under, (*reg[:dim], *reg[dim + 1 :]))


def _unshifted(values: CheckSums, node: int, lo: int, hi: int) -> Any:
    """(class of the mask, part of the indices) of indices less lo, 0 where they are outside lo..hi."""
    item = values.defs[node]
    found = _less(values, item)
    if found is None or found[1] != lo or lo >= hi:
        return None
    indices, _, chooser = found
    (kept,) = item.operands[2:] if item.op == "where" else item.operands[:1]
    sides = values.defs[chooser]
    if sides.op not in ("bitwise_or", "logical_or") or not all(
        _entire(values, part) for part in sides.operands
    ):
        return None
    known = {values.defs[part[0]].op: values.defs[part[0]].operands for part in sides.operands}
    if known.keys() != {"lt", "ge"} or known["lt"][0] != known["ge"][0]:
        return None
    bounds = (_number(known["lt"][1]), _number(known["ge"][1]))
    compared = known["lt"][0]
    if bounds != ((0, hi - lo) if compared == kept else (lo, hi)) or compared not in (kept, indices):
        return None
    alike = [values.defs[at] for at in (node, chooser, kept[0])]
    same = all(other.shape == item.shape and not other.free for other in alike)
    return (chooser, indices) if same else None
