"""The checker's view of a table's gradient cut by rows: are masked gradients rows lo..hi of all of it?

A step that adds up gradients into hi - lo rows, both indices and gradients masked outside lo..hi, makes those
rows of what the same step without masks makes of a longer table. Whether that is so of the longer one is
asked of its own rule. Written apart from the prover.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ._check_index import FIRST, Index, all_of, selected
from ._check_masked import _less, _plain
from ._check_masked_gather import _unshifted
from ._check_piece import is_part
from ._check_sums import CheckSums, Term, is_rel


def unmasked_rows(
    values: CheckSums, op: str, attrs: dict[str, Any], operands: Sequence[Any], claim: Sequence[Term]
) -> Any:
    """(attributes, operands, claim) of the step on a whole table; None for any other step."""
    if op != "embedding_dense_backward" or len(claim) != 1 or not is_rel(operands[0]):
        return None
    coef, node, reg, limit = claim[0]
    whole = values.defs[node]
    if whole.op != op or whole.attrs["num_weights"] != whole.shape[0]:
        return None
    if any(given.get("padding_idx", -1) >= 0 for given in (attrs, whole.attrs)):
        return None
    grad, places = operands
    if not _plain(places) or len(grad) != 1 or grad[0][3] is not None or len(reg[0].runs) != 1:
        return None
    ((lo, hi),) = reg[0].runs
    _, shifted, spots, _ = places[0]
    low = _less(values, values.defs[shifted])
    found = None if low is None or low[1] != lo else _unshifted(values, shifted, lo, hi)
    if found is None or attrs["num_weights"] != hi - lo:
        return None
    chooser, (own, outer, by) = found
    kept = _kept(values, grad[0], chooser, spots)
    if kept is None or by != 1:
        return None
    full = {**attrs, "num_weights": whole.attrs["num_weights"]}
    index = ((by, own, values.spelled(own, selected(outer, spots)), None),)
    return full, [(kept,), index], ((coef, node, (all_of(whole.shape[0]), *reg[1:]), limit),)


def _kept(values: CheckSums, grad: Term, chooser: int, spots: Sequence[Index]) -> Term | None:
    """The gradient before it was masked, each row of it as its index is."""
    coef, node, reg, _ = grad
    item, rank = values.defs[node], len(spots)
    if item.op not in ("where", "masked_fill"):
        return None
    mask, blank, kept = (
        item.operands if item.op == "where" else (item.operands[1], item.operands[2], item.operands[0])
    )
    zero = (
        values.zero(blank[0])
        if is_part(blank)
        else blank in (("number", "int", "0"), ("number", "float", "0.0"))
    )
    if not zero or not is_part(mask) or not is_part(kept) or mask[2] != 1:
        return None
    view = values.defs[mask[0]]
    under: Any = view.operands[0] if view.op == "view" else None
    if not is_part(under) or under[0] != chooser or not values.is_whole(under[0], under[1]):
        return None
    shape = values.defs[chooser].shape
    if view.shape != (*shape, 1) or mask[1] != (*map(all_of, shape), FIRST):
        return None
    if item.shape[:rank] != shape or reg[:rank] != tuple(spots) or tuple(map(len, kept[1])) != item.shape:
        return None
    part = selected(kept[1], reg)
    return coef * kept[2], kept[0], values.spelled(kept[0], part), None
