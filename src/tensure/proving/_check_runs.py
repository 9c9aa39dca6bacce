"""The checker's view of flat memory: tensors laid one after another in one dim, cut anywhere.

A claim on a flat tensor is asked stretch by stretch, cut wherever it or an operand goes on to another joined
tensor. A stretch of tensors seen in one dim is asked of the tensors in their own shape: element k of a view
is element k of what is viewed, counted row by row, so that a step that does the same to every element does it
to all of them or to a stretch. Of ranks taken together nothing is said. Written apart from the prover.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from math import prod
from typing import Any, Final

from tensure.program import Name, Op, Ref

from ._check_linear import value
from ._check_ops import ELEMENTWISE, FLOATS
from ._check_padded import by_part
from ._check_sums import Term, held_itself, is_rel, size, times

MAX_RUNS: Final = 1 << 12
STEPS: Final = ELEMENTWISE - {"requantize"}  # whose factors may go along a dim


def by_runs(values: Any, op: str, attrs: dict[str, Any], operands: Sequence[Any], claim: Any) -> bool:
    """Does a step on flat tensors make a claim, run by run?"""
    terms = [term for item in (claim, *operands) if is_rel(item) for term in item]
    if any(len(reg) > 1 or any(index.axes for index in reg) for _, _, reg, _ in terms):
        return False
    if op == "cat":
        return laid(values, operands, claim)
    if op == "constant_pad_nd":
        return _filled_up(values, attrs, operands, claim)
    if op == "slice_scatter":
        return written(values, attrs, operands, claim)
    if op == "sum":
        return summed(values, attrs, operands, claim)
    return runwise(values, op, attrs, operands, claim)


def runwise(values: Any, op: str, attrs: dict[str, Any], operands: Sequence[Any], claim: Any) -> bool:
    """Does an elementwise step on flat tensors make a flat claim, run by run?"""
    shape = size(claim[0][2])
    if op not in STEPS or len(shape) != 1 or not isinstance(shape[0], int) or not shape[0]:
        return False
    rels = [item for item in operands if is_rel(item)]
    if not all(size(item[0][2]) in (shape, ()) for item in rels):
        return False
    flat = [claim, *(item for item in rels if size(item[0][2]) == shape)]
    cuts = sorted({0, shape[0], *(cut for item in flat for cut in _seams(values, item))})
    if len(flat) == 1 or len(cuts) > MAX_RUNS:
        return False
    if len(cuts) == 2:
        return _power_of_nothing(values, op, operands, claim) or _in_shape(values, op, attrs, operands, claim)
    for start, stop in pairwise(cuts):
        mine = [
            _cut(values, item, start, stop) if is_rel(item) and size(item[0][2]) == shape else item
            for item in operands
        ]
        if not _made(values, op, attrs, mine, _cut(values, claim, start, stop)):
            return False
    return True


def _power_of_nothing(values: Any, op: str, operands: Sequence[Any], claim: Any) -> bool:
    """Is this 0 to a power of more than 0, which is 0?"""
    if op != "pow" or not is_rel(operands[0]) or is_rel(operands[1]):
        return False
    exponent = value(operands[1])
    zeros = all(values.zero(node) for _, node, _, _ in (*operands[0], *claim))
    return zeros and exponent is not None and exponent > 0


def laid(values: Any, parts: Sequence[Any], claim: Any) -> bool:
    """Is a flat claim these tensors one after another, run by run?"""
    if any(not is_rel(part) or len(part[0][2]) != 1 for part in parts) or len(claim[0][2]) != 1:
        return False
    widths = [len(part[0][2][0]) for part in parts]
    if not all(isinstance(width, int) for width in widths) or sum(widths) != len(claim[0][2][0]):
        return False
    ends = [0, *accumulate(widths)]
    return all(
        _same(values, part, _cut(values, claim, start, stop))
        for part, (start, stop) in zip(parts, pairwise(ends), strict=True)
        if start < stop
    )


def written(values: Any, attrs: dict[str, Any], operands: Sequence[Any], claim: Any) -> bool:
    """Is a flat claim a flat tensor with a stretch written over?"""
    base, source = operands
    if not is_rel(base) or len(base[0][2]) != 1 or attrs.get("step", 1) != 1:
        return False
    count = len(base[0][2][0])
    spots = range(count)[attrs.get("start") : attrs.get("end")]
    before, behind = _cut(values, base, 0, spots.start), _cut(values, base, spots.start + len(spots), count)
    return size(source[0][2]) == (len(spots),) and laid(values, [before, source, behind], claim)


def _filled_up(values: Any, attrs: dict[str, Any], operands: Sequence[Any], claim: Any) -> bool:
    """Is a flat claim a flat tensor with numbers before and behind?"""
    rel, pad = operands[0], tuple(attrs["pad"])
    if not is_rel(rel) or len(rel[0][2]) != 1 or len(pad) != 2 or min(pad) < 0:
        return False
    dtype = values.defs[rel[0][1]].dtype
    before, behind = (values.filled(attrs.get("value", 0), (count,), dtype) for count in pad)
    parts = [part for part, count in ((before, pad[0]), (rel, 1), (behind, pad[1])) if count]
    return dtype in FLOATS and laid(values, parts, claim)


def summed(values: Any, attrs: dict[str, Any], operands: Sequence[Any], claim: Any) -> bool:
    """Is a claim the sum of a flat tensor, run by run?"""
    rel = operands[0]
    if not is_rel(rel) or len(rel[0][2]) != 1 or size(claim[0][2]) != ():
        return False
    if set(attrs) != {"dim"} or tuple(attrs["dim"]) != (0,):
        return False
    count = len(rel[0][2][0])
    cuts = [0, *_seams(values, rel), count] if isinstance(count, int) and count else [0]
    if not 1 < len(cuts) <= MAX_RUNS or any(values.defs[node].dtype not in FLOATS for _, node, _, _ in claim):
        return False
    left = [term for term in values.opened(claim) if not values.zero(term[1])]
    for start, stop in pairwise(cuts):
        run = _cut(values, rel, start, stop)
        if all(values.zero(node) for _, node, _, _ in run):
            continue
        found = next((term for term in left if _sum_of(values, attrs, run, term, len(cuts) > 2)), None)
        if found is None:
            return False
        left.remove(found)
    return not left


def _sum_of(values: Any, attrs: dict[str, Any], run: Any, claim: Term, is_cut: bool) -> bool:
    """Is a term the sum of a run: by itself, or over that stretch of all elements of a tensor?"""
    coef, node, _, limit = claim
    item, spots = values.defs[node], set(_spots(values, run))
    if item.op == "sum" and len(spots) == 1 and (spot := next(iter(spots))) is not None:
        inner, outer, by = item.operands[0]
        shape, index = spot
        told = index.is_whole(prod(shape)) if limit is None else limit == ((("flat", index),), ())
        every_dim = tuple(item.attrs["dim"]) == tuple(range(len(shape)))
        if told and every_dim and size(outer) == shape and "dtype" not in item.attrs:
            one: Term = (coef * by, inner, values.spelled(inner, outer), None)
            if values.equal(_whole(values, run, shape), (one,)):
                return True
    return is_cut and _made(values, "sum", attrs, [run], (claim,))


def _same(values: Any, one: Any, other: Any) -> bool:
    """Are two flat tensors one, as sums or run by run?"""
    if values.equal(one, other):
        return True
    key = ("same", one, other)
    if key not in values.runs:
        cuts = sorted({0, len(one[0][2][0]), *_seams(values, one), *_seams(values, other)})
        values.runs[key] = 2 < len(cuts) <= MAX_RUNS and all(
            _same(values, _cut(values, one, start, stop), _cut(values, other, start, stop))
            for start, stop in pairwise(cuts)
        )
    known: bool = values.runs[key]
    return known


def _seams(values: Any, rel: tuple[Term, ...]) -> list[int]:
    """Where terms of a flat tensor go from one of several joined tensors to the next."""
    found = set[int]()
    for _, node, reg, limit in rel:
        item = values.defs[node]
        if item.op != "cat" or len(item.shape) != 1 or item.free or held_itself(limit):
            continue
        runs = by_part(reg[0], [len(outer[0]) for _, outer, _ in item.operands])
        found.update(list(accumulate(len(index) for _, index in runs))[:-1])
    return sorted(found)


def _cut(values: Any, rel: Any, start: int, stop: int) -> Any:
    return values.tidy(tuple((coef, node, (reg[0][start:stop],), limit) for coef, node, reg, limit in rel))


def _made(values: Any, op: str, attrs: dict[str, Any], operands: Sequence[Any], claim: Any) -> bool:
    """Is this what the step makes, by any of the checker's ways? Asked once of a run that joins repeat."""
    # Numbers as text: 1, 1.0 and True are three.
    told = tuple(item if is_rel(item) else repr(item) for item in operands)
    key = (op, repr(sorted(attrs.items())), told, claim)
    if key not in values.runs:
        args = tuple(Ref(Name("part")) if is_rel(item) else item for item in operands)
        step = Op(op, args, (), tuple(attrs.items()))
        values.runs[key] = values.follows(step, list(operands), 0, claim)
    known: bool = values.runs[key]
    return known


def _in_shape(values: Any, op: str, attrs: dict[str, Any], operands: Sequence[Any], claim: Any) -> bool:
    """Does the step make all of the tensors that these are one stretch of, in their own shape?"""
    shape = size(claim[0][2])
    spots = {
        spot
        for item in (claim, *operands)
        if is_rel(item) and size(item[0][2]) == shape
        for spot in _spots(values, item)
    }
    if len(spots) != 1 or (spot := next(iter(spots))) is None or not spot[0]:
        return False
    seen = [
        _whole(values, item, spot[0]) if is_rel(item) and size(item[0][2]) == shape else item
        for item in (claim, *operands)
    ]
    return _made(values, op, attrs, seen[1:], seen[0])


def _spots(values: Any, rel: tuple[Term, ...]) -> list[Any]:
    """Of what shape, and which stretch of it, each term is seen; None for one that is no such view."""
    found: list[Any] = []
    for _, node, reg, limit in rel:
        item = values.defs[node]
        if item.op == "full" and limit is None:
            continue  # the same wherever it stands, in any shape
        if item.op != "view" or len(item.shape) != 1 or item.free or limit is not None:
            return [None]
        found.append((size(item.operands[0][1]), reg[0]))
    return found


def _whole(values: Any, rel: tuple[Term, ...], shape: tuple[int, ...]) -> tuple[Term, ...]:
    """What each term is a stretch of, in that one's own shape."""
    made: list[Term] = []
    for coef, node, _, _ in rel:
        item = values.defs[node]
        if item.op == "full":
            made.extend(times(values.filled(item.attrs["fill_value"], shape, item.dtype), coef))
            continue
        inner, outer, by = item.operands[0]
        made.append((coef * by, inner, values.spelled(inner, outer), None))
    return tuple(made)
