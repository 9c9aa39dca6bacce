"""The gradient of a table cut by rows: gradients masked as their indices are make rows lo..hi of all of it.

For mask = (i < lo) | (i >= hi), what embedding_dense_backward adds up in hi - lo rows of gradients that are 0
where the mask holds, at where(mask, 0, i - lo), is rows lo..hi of what it adds up at i. Knows no rules.
"""

from __future__ import annotations

from dataclasses import replace

from tensure.program import Op, TensorType

from ._index import Region, select, shape_of, whole
from ._masked import _all, _mask_region
from ._masked_gather import _indices
from ._masked_scatter import _is_blank
from ._relation import ONE, Relation, Term
from ._steps import Call, Held, Number, Operand, bound
from ._sums import Sums
from ._values import Values, is_part


def masked_rows(values: Sums, call: Call, terms: list[Term | Number]) -> Held | None:
    """The rows that masked gradients make of a longer table's; None for any other step."""
    if call.own or call.step.op != "embedding_dense_backward":
        return None
    grad, places = terms
    if not isinstance(grad, Term) or not isinstance(places, Term) or places.coef != 1:
        return None
    if grad.limit is not None or places.limit is not None or call.given["padding_idx"] >= 0:
        return None
    found = _indices(values, (places.node, places.region, ONE), None)
    if found is None:
        return None
    chooser, rows, (node, outer, _), lo, hi = found
    kept = _kept(values, grad, chooser, rows)
    if kept is None or hi - lo != call.given["num_weights"]:
        return None
    spots = tuple(select(index, row) for index, row in zip(outer, rows, strict=True))
    kind = values.values[node].type.dtype
    index = Held(TensorType(shape_of(spots), kind), Relation((Term(node, values.spelled(node, spots)),)))
    source = Held(TensorType(shape_of(kept.region), call.types[0].dtype), Relation((kept,)))
    operands: list[Operand] = [source, index]
    sizes = {v.type.shape[0] for v in values.values if v.op == "embedding_dense_backward"}
    for size in sorted(size for size in sizes if size >= hi):
        wide = TensorType((size, *call.types[0].shape[1:]), call.types[0].dtype)
        given = {**call.given, "num_weights": size}
        step = Op("embedding_dense_backward", (), (), tuple(given.items()))
        again = Call(step, bound(step, operands), operands, [wide], call.want, False)
        made = values.known(again, addends=True)
        if made is not None and made.region[0] == whole(size):
            return Held(call.types[0], Relation((replace(made, region=(((lo, hi),), *made.region[1:])),)))
    return None


def _kept(values: Values, term: Term, chooser: int, rows: Region) -> Term | None:
    """What a gradient is where the mask of the indices does not hold, if it is 0 where that holds."""
    value = values.values[term.node]
    if value.op not in ("where", "masked_fill"):
        return None
    mask, blank, kept = (
        value.operands if value.op == "where" else (value.operands[1], value.operands[2], value.operands[0])
    )
    if not isinstance(mask, tuple) or not is_part(mask) or not _is_blank(values, blank):
        return None
    if not isinstance(kept, tuple) or not is_part(kept) or shape_of(kept[1]) != value.type.shape:
        return None
    if not _all(values, mask) or term.region[: len(rows)] != rows:
        return None
    seen = Term(mask[0], mask[1])
    places = _mask_region(values, seen, chooser, len(rows))
    if places is None or shape_of(places) != values.values[chooser].type.shape:
        return None
    if places != tuple(whole(n) for n in values.values[chooser].type.shape):
        return None
    spots = tuple(select(index, at) for index, at in zip(kept[1], term.region, strict=True))
    return Term(kept[0], values.spelled(kept[0], spots), kept[2] * term.coef)
