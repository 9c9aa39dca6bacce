"""Numbers put at shifted, masked places are some columns of the numbers put at the places themselves.

For mask = (i < lo) | (i >= hi), what scatter_add puts in hi - lo columns of zeros at where(mask, 0, i - lo),
numbers masked likewise, is columns lo..hi of what it puts at i: column 0 gets no more than 0 from what
is masked. Index and numbers have a dim of size 1 where the columns are. Knows no rules.
"""

from __future__ import annotations

from fractions import Fraction

from tensure.program import Op, TensorType

from ._equations import is_zero
from ._index import Region, select, shape_of, whole
from ._masked import _all, _is_zero
from ._masked_gather import _indices
from ._relation import ONE, Relation, Term
from ._steps import Call, Held, Number, Operand, bound
from ._sums import Sums
from ._values import FLOATS, Value, Values, is_part


def masked_scatter(values: Sums, call: Call, terms: list[Term | Number]) -> Held | None:
    """The columns that a masked scatter makes of a wider one; None for any other step."""
    if call.own or call.types[0].dtype not in FLOATS:
        return None
    if call.step.op == "index_put":
        terms = _in_lines(values, call, terms)
    elif call.step.op != "scatter_add":
        return None
    if len(terms) != 3:
        return None
    zero, places, source = terms
    if not all(isinstance(term, Term) and term.limit is None for term in terms):
        return None
    assert isinstance(zero, Term) and isinstance(places, Term) and isinstance(source, Term)
    shape = call.types[0].shape
    dim = call.given["dim"] % max(len(shape), 1) if call.step.op == "scatter_add" else 1
    thin = tuple(1 if at == dim else n for at, n in enumerate(shape))
    if shape_of(places.region) != thin or shape_of(source.region) != thin or places.coef != 1:
        return None
    if not is_zero(values, (zero.node, zero.region, zero.coef)):
        return None
    found = _indices(values, (places.node, places.region, ONE), dim)
    if found is None:
        return None
    chooser, rows, (node, outer, _), lo, hi = found
    kept = _kept(values, source, dim, chooser, rows)
    if kept is None or hi - lo != shape[dim]:
        return None
    spots = tuple(select(index, row) for index, row in zip(outer, rows, strict=True))
    index = _seen(values, Term(node, values.spelled(node, spots)), thin)
    numbers = _seen(values, kept, thin)
    term = numbers.relation.single
    if term is None:
        return None
    plain = Held(numbers.type, Relation((Term(term.node, term.region),)))
    sizes = {item.type.shape[dim] for item in values.values if item.op == "scatter_add" and not item.out}
    for size in sorted(sizes):
        wide = TensorType((*shape[:dim], size, *shape[dim + 1 :]), call.types[0].dtype)
        operands: list[Operand] = [Held(wide, values.filled(0.0, wide)), index, plain]
        step = Op("scatter_add", (), (), (("dim", dim),))
        again = Call(step, bound(step, operands), operands, [wide], None, False)
        made = values.known(again) if hi <= size else None
        if made is not None:
            region = (*made.region[:dim], ((lo, hi),), *made.region[dim + 1 :])
            if made.region[dim] == whole(size):
                return Held(call.types[0], Relation((Term(made.node, region, made.coef * term.coef),)))
    return None


def _in_lines(values: Sums, call: Call, terms: list[Term | Number]) -> list[Term | Number]:
    """Numbers put into a table, one in each line: what is put where, with a dim of size 1 for the columns."""
    shape = call.types[0].shape
    if len(terms) != 4 or len(shape) != 2 or not all(isinstance(term, Term) for term in terms):
        return []
    zero, numbers, lines, places = (term for term in terms if isinstance(term, Term))
    value = values.values[lines.node]
    counted = value.op == "arange" and (value.given["start"], value.given["step"]) == (0, 1)
    if not counted or lines.region != (whole(shape[0]),) or shape_of(places.region) != (shape[0],):
        return []
    if shape_of(numbers.region) != (shape[0],) or numbers.limit is not None or places.limit is not None:
        return []
    thin = (shape[0], 1)
    seen = [_seen(values, term, thin).relation.single for term in (places, numbers)]
    return [zero, *seen] if None not in seen else []


def _kept(values: Sums, term: Term, dim: int, chooser: int, rows: Region) -> Term | None:
    """What is put, where the mask does not hold: a masked value seen with a dim of size 1 more."""
    view = values.values[term.node]
    (part, *rest) = view.operands or (None,)
    if view.op != "view" or rest or not isinstance(part, tuple) or not is_part(part):
        return None
    masked, outer, coef = part
    value = values.values[masked]
    shape = value.type.shape
    if view.type.shape != (*shape[:dim], 1, *shape[dim:]) or not values.is_whole(masked, outer):
        return None
    if term.region[dim] != whole(1) or (*term.region[:dim], *term.region[dim + 1 :]) != rows:
        return None
    by = coef * term.coef
    if value.op == "+" and (less := _one_less(values, value, chooser)) is not None:
        ones = values.filled(1.0, TensorType(shape_of(rows), value.type.dtype)).terms[0]
        return Term(ones.node, ones.region, -less * by)
    if value.op not in ("where", "masked_fill") or value.free:
        return None
    mask, blank, kept = (
        value.operands if value.op == "where" else (value.operands[1], value.operands[2], value.operands[0])
    )
    if not _all(values, mask) or not _is_blank(values, blank) or not isinstance(kept, tuple):
        return None
    if mask[0] != chooser or values.values[chooser].type.shape != shape:  # type: ignore[index]
        return None
    if not is_part(kept) or shape_of(kept[1]) != shape:
        return None
    spots = tuple(select(index, row) for index, row in zip(kept[1], rows, strict=True))
    return Term(kept[0], values.spelled(kept[0], spots), kept[2] * by)


def _one_less(values: Values, value: Value, chooser: int) -> Fraction | None:
    """By how much a number is taken from a mask, as 0 and 1, where it is one: a - 1 of a is 0 or -1."""
    for node, by in (value.form or {}).items():
        cast = values.values[node]
        rest = [(other, coef) for other, coef in (value.form or {}).items() if other != node]
        if cast.op != "_to_copy" or len(rest) != 1 or not _all(values, cast.operands[0]):
            continue
        if cast.operands[0][0] == chooser and values.values[chooser].type.dtype == "bool":  # type: ignore[index]
            one = values.values[rest[0][0]]
            if one.op == "full" and one.given["fill_value"] == 1 and rest[0][1] == -by:
                return by
    return None


def _is_blank(values: Values, item: object) -> bool:
    return _is_zero(values, item) or item in (("number", "float", "0.0"), ("number", "int", "0"))


def _seen(values: Sums, term: Term, shape: tuple[int, ...]) -> Held:
    held = Held(TensorType(shape_of(term.region), values.values[term.node].type.dtype), Relation((term,)))
    step = Op("view", (), (), (("size", shape),))
    found = TensorType(shape, held.type.dtype)
    return values.made(Call(step, bound(step, [held]), [held], [found], None, False))[0]
