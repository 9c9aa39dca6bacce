"""Columns cut among ranks: entries picked where a rank has them, 0 elsewhere, are an addend over the columns.

gather(x, i) is the sum over all columns v of (i = v) times x[v]. With mask = (i < lo) | (i >= hi), what is
gathered from columns lo..hi at where(mask, 0, i - lo), and blanked by the mask, is that sum over lo..hi:
where the mask holds no such v is i, and elsewhere column i - lo of the part is column i. Whatever stands
at column 0 of the part is blanked. Index and result may have a dim of size 1 more than the mask, the
gathered one.
"""

from __future__ import annotations

from typing import Final, TypeGuard

from tensure.program import Op, TensorType

from ._index import Region, select, shape_of, whole, whole_region
from ._limit import limited, share_of
from ._masked import _all, _bounds, _shifted, _zero
from ._relation import ONE, Relation, Term
from ._steps import Call, Held, Number, bound
from ._sums import Sums
from ._values import FLOATS, Part, Value, Values, is_part

COLUMNS: Final = "v"
"""The letter that a gather sums over: the gathered dim of its table."""


def masked_gather(values: Sums, call: Call, terms: list[Term | Number]) -> Held | None:
    """The addend that a masking step makes of what was gathered; None for any other step."""
    if call.own or call.step.op not in ("where", "masked_fill") or len(terms) != 3:
        return None
    mask, blank, kept = terms if call.step.op == "where" else (terms[1], terms[2], terms[0])
    if not isinstance(mask, Term) or not isinstance(kept, Term) or not _zero(values, blank):
        return None
    if not kept.plain or not mask.plain or kept.region != whole_region(values.values[kept.node].type.shape):
        return None
    if shape_of(mask.region) != shape_of(kept.region) or call.types[0].dtype not in FLOATS:
        return None
    seen, squeezed = _picked(values, kept.node)
    if seen is None:
        return None
    table, places = seen.operands
    at = seen.given["dim"] % max(len(seen.type.shape), 1)
    if not _part(table) or not _part(places) or (squeezed is not None and squeezed != at):
        return None
    node, region, _ = table
    source = values.values[node]
    found = _indices(values, places, None if squeezed is None else at)
    if (
        found is None
        or not region
        or len(region[at]) != 1
        or at in source.free
        or source.type.dtype not in FLOATS
    ):
        return None
    chooser, rows, indices, lo, hi = found
    if region[at] != ((lo, hi),) or (mask.node, mask.region) != (chooser, rows):
        return None
    # The same gather of all columns, by indices that are not shifted; held to the columns that are here.
    own, spots, _ = indices
    spot = tuple(select(index, row) for index, row in zip(spots, rows, strict=True))
    kind = values.values[own].type.dtype
    index = Held(TensorType(shape_of(spot), kind), Relation((Term(own, values.spelled(own, spot)),)))
    if squeezed is not None:
        index = _viewed(values, index, seen.type.shape)
    full = (*region[:at], whole(source.type.shape[at]), *region[at + 1 :])
    wide = Held(TensorType(shape_of(full), source.type.dtype), Relation((Term(node, full),)))
    step = Op("gather", (), (), tuple(seen.given.items()))
    (made,) = values.general(Call(step, bound(step, [wide, index]), [wide, index], [seen.type], None, False))
    share = share_of(COLUMNS, source.type.shape[at], ((lo, hi),))
    term = made.relation.single
    if term is None or not term.plain or values.values[term.node].op != "gather" or share is None:
        return None
    part = Held(made.type, Relation((Term(term.node, term.region, ONE, limited((share,), ())),)))
    return part if squeezed is None else _viewed(values, part, call.types[0].shape)


def _viewed(values: Sums, held: Held, shape: tuple[int, ...]) -> Held:
    step = Op("view", (), (), (("size", shape),))
    found = TensorType(shape, held.type.dtype)
    (made,) = values.made(Call(step, bound(step, [held]), [held], [found], None, False))
    return made


def _part(operand: object) -> TypeGuard[Part]:
    return isinstance(operand, tuple) and is_part(operand) and operand[2] == 1


def _picked(values: Values, node: int) -> tuple[Value | None, int | None]:
    """A gather, seen as it is or without one dim of size 1: the gather, and that dim."""
    value = values.values[node]
    if value.op == "gather":
        return value, None
    if value.op != "view" or not _all(values, value.operands[0]):
        return None, None
    (operand,) = value.operands
    inner = values.values[operand[0]] if isinstance(operand, tuple) else value
    shape = inner.type.shape
    if inner.op != "gather":
        return None, None
    at = inner.given["dim"] % max(len(shape), 1)
    fits = bool(shape) and shape[at] == 1 and (*shape[:at], *shape[at + 1 :]) == value.type.shape
    return (inner, at) if fits else (None, None)


def _indices(values: Values, places: Part, thin: int | None) -> tuple[int, Region, Part, int, int] | None:
    """The mask, which of its entries, the indices before they were shifted, and the bounds lo and hi."""
    node, rows, _ = places
    if thin is not None:
        view = values.values[node]
        (operand, *rest) = view.operands or (None,)
        if view.op != "view" or rest or not isinstance(operand, tuple) or not _all(values, operand):
            return None
        shape = values.values[operand[0]].type.shape
        if view.type.shape != (*shape[:thin], 1, *shape[thin:]) or rows[thin] != whole(1):
            return None
        node, rows = operand[0], (*rows[:thin], *rows[thin + 1 :])
    found = _shifted(values, node)
    if found is None:
        return None
    chooser, indices, lo = found
    chosen = values.values[node]
    less = chosen.operands[2] if chosen.op == "where" else chosen.operands[0]
    bounds = _bounds(values, chooser)
    if bounds is None or not isinstance(less, tuple):
        return None
    compared, low, high = bounds
    if compared == less:  # bounds of what is shifted already
        low, high = low + lo, high + lo
    elif compared != indices:
        return None
    shapes = {values.values[at].type.shape for at in (node, chooser, less[0])}
    if low != lo or low >= high or len(shapes) != 1 or indices[2] != 1:
        return None
    if any(values.values[at].free for at in (node, chooser, less[0])):
        return None
    return chooser, rows, indices, lo, high
