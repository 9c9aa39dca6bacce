"""The checker's view of a part put back among zeros: is it the whole, held to those indices of a dim?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ._check_index import Index, all_of
from ._check_linear import value
from ._check_sums import CheckSums, Term, is_rel, size


def placed(values: CheckSums, op: str, attrs: dict[str, Any], operands: Sequence[Any], claim: Term) -> bool:
    """Does a step that puts a part among zeros make this addend, letter `@dim`, of the whole?"""
    coef, node, reg, limit = claim
    if op not in ("cat", "slice_scatter", "slice_backward", "constant_pad_nd") or limit is None or limit[1]:
        return False
    source = operands[1] if op == "slice_scatter" else operands[0]
    if op == "cat":
        kept = [item for item in operands if not _blank(values, item)]
        source = kept[0] if len(kept) == 1 else None
    if len(limit[0]) != 1 or not is_rel(source) or len(source) != 1:
        return False
    ((letter, index),) = limit[0]
    by, part, held, inner = source[0]
    if (
        not letter.startswith("@")
        or (by, part, inner) != (coef, node, None)
        or values.extent(node, letter) is None
    ):
        return False
    dim, shape = int(letter[1:]), size(reg)
    if not reg[dim].is_whole(values.defs[node].shape[dim]) or held[dim] != index:
        return False
    if (*reg[:dim], *reg[dim + 1 :]) != (*held[:dim], *held[dim + 1 :]):
        return False
    return index == _stands(values, op, attrs, operands, dim, shape)


def _blank(values: CheckSums, item: Any) -> bool:
    return is_rel(item) and len(item) == 1 and values.zero(item[0][1])


def _stands(
    values: CheckSums,
    op: str,
    attrs: dict[str, Any],
    operands: Sequence[Any],
    dim: int,
    shape: tuple[int, ...],
) -> Index | None:
    """Which indices of the dim of a result of this shape the part fills; None where that is not so."""
    rank = len(shape)
    if op == "constant_pad_nd":
        pads = list(attrs["pad"]) + [0] * (2 * rank - len(attrs["pad"]))
        before, after = pads[2 * (rank - 1 - dim)], pads[2 * (rank - 1 - dim) + 1]
        others = any(
            pads[2 * (rank - 1 - d)] or pads[2 * (rank - 1 - d) + 1] for d in range(rank) if d != dim
        )
        if value(attrs.get("value", 0)) != 0 or others or before < 0 or after < 0:
            return None
        return all_of(shape[dim])[before : shape[dim] - after]
    if attrs.get("dim", 0) % rank != dim:
        return None
    if op == "cat":
        start = 0
        for item in operands:
            width = len(item[0][2][dim])
            if not _blank(values, item):
                whole = sum(len(other[0][2][dim]) for other in operands)
                return all_of(whole)[start : start + width] if whole == shape[dim] else None
            start += width
        return None
    if op == "slice_backward":
        if tuple(attrs["input_sizes"]) != shape:
            return None
    else:
        target = operands[0]
        if not _blank(values, target) or size(target[0][2]) != shape:
            return None
    return all_of(shape[dim])[slice(attrs.get("start"), attrs.get("end"), attrs.get("step", 1))]
