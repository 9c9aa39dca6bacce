"""Tensors laid one after another in flat memory, cut anywhere: steps on them, run by run.

A run is a stretch of a flat tensor that is a stretch of one tensor seen in one dim. What an elementwise step
makes of a run is that stretch of what the step makes of the tensors in their own shape, so that the step of
an optimizer on flat memory is the Program's own, parameter by parameter. Runs that continue each other are
one.
Knows how runs go together and no rules of ops.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import accumulate, pairwise
from typing import Any, Final, TypeAlias

from tensure.program import Op, TensorType, axes_in

from ._index import Index, Shape, clamped, distinct, length, select, shape_of
from ._limit import held_itself, limited, share_of
from ._linear import exact
from ._padded import stretches
from ._pieces import Pieces
from ._relation import ONE, Relation, Term, total
from ._rules import ELEMENTWISE
from ._steps import Call, Held, Operand, bound
from ._values import FLOATS

Single: TypeAlias = "Callable[[Operand], Any]"
"""One term for an operand."""
MAX_RUNS: Final = 1 << 12
_SCALING: Final = frozenset("mul div neg".split())


def runwise(values: Pieces, call: Call, single: Single) -> Relation | None:
    """An elementwise step on flat tensors as what it makes of each run; None for any other step."""
    size = _flat_size(call)
    if size is None or call.own or call.step.op not in ELEMENTWISE or len(call.types) != 1:
        return None
    flat = [item for item in call.operands if isinstance(item, Held) and item.type.shape == (size,)]
    rest = [item for item in call.operands if isinstance(item, Held) and item.type.shape != (size,)]
    if not flat or any(item.type.shape for item in rest):
        return None
    if any(found.dtype not in FLOATS for found in (*call.types, *(item.type for item in flat))):
        return None  # indices in one dim have rules of their own
    if call.step.op in _SCALING and len(flat) == 1 and not rest:
        return None  # a multiple, whatever it is of
    terms = [term for item in (*flat, *rest) for term in item.relation.terms]
    if any(term.limit is not None or axes_in(term.region) for term in terms):
        return None
    cuts = sorted({0, size, *(cut for item in flat for cut in seams(values, item))})
    if len(cuts) > MAX_RUNS:
        return None
    if len(cuts) == 2:
        return _one_run(values, call, single)
    made: list[Held] = []
    for start, stop in pairwise(cuts):
        operands: list[Operand] = [
            values.piece(item, 0, start, stop)
            if isinstance(item, Held) and item.type.shape == (size,)
            else item
            for item in call.operands
        ]
        run = replace(call, operands=operands, types=[_resized(call.types[0], (stop - start,))], want=None)
        found = _of_nothing(values, run) or _of_model(values, run) or _lifted(values, run, single)
        made.append(found or values.made(run)[0])
    return values.join(made, 0)


def _one_run(values: Pieces, call: Call, single: Single) -> Relation | None:
    """An elementwise step on one run; None where that is no other than any step."""
    size = call.types[0].shape[0]
    held = [item for item in call.operands if isinstance(item, Held)]
    spot = _spot(values, [item for item in held if item.type.shape == (size,)])
    if spot is None or _known(values, call) is not None:
        return None
    # A row may as well be meant to lose a dim of size 1: then what it makes must be known.
    is_row = sum(dim != 1 for dim in spot[0]) < 2
    found = _lifted(values, call, single, _known if is_row else None)
    return None if found is None else found.relation


def rejoined(values: Pieces, call: Call, single: Single) -> Relation | None:
    """Flat tensors one after another as a join of runs, none of them joined, neighbours of one value one run.

    None where they stand so already, and for any other step.
    """
    if call.own or call.step.op != "cat" or len(call.types[0].shape) != 1:
        return None
    parts = [item for item in call.operands if isinstance(item, Held)]
    if any(axes_in(term.region) for item in parts for term in item.relation.terms):
        return None
    runs = list[Held]()
    for item in parts:
        if item.type.shape[0] and not _add_runs(values, item, single, runs):
            return None
    kept: list[Held] = []
    for run in runs:
        together = values.merge([kept[-1], run], 0) if kept else None
        if together is None:
            kept.append(run)
        else:
            kept[-1] = Held(_resized(run.type, together.shape), together)
    if not kept or (len(kept) == len(parts) and all(a is b for a, b in zip(kept, parts, strict=True))):
        return None
    if len(kept) == 1:
        return kept[0].relation
    step = Op("cat", (), (), (("dim", 0),))
    operands: list[Operand] = list(kept)
    again = replace(call, step=step, given=bound(step, operands), operands=operands, want=None)
    return values.made(again)[0].relation


def filled_up(values: Pieces, call: Call) -> Relation | None:
    """A flat tensor with numbers before and behind."""
    if call.own or call.step.op != "constant_pad_nd" or len(call.types[0].shape) != 1:
        return None
    (held,), pad = call.operands, tuple(call.given["pad"])
    if not isinstance(held, Held) or len(pad) != 2 or min(pad) < 0:
        return None
    if any(axes_in(term.region) for term in held.relation.terms):
        return None
    numbers = [_resized(held.type, (count,)) for count in pad]
    before, behind = [Held(found, values.filled(call.given["value"], found)) for found in numbers]
    return values.join([part for part in (before, held, behind) if part.type.shape[0]], 0)


def written(values: Pieces, call: Call) -> Relation | None:
    """A stretch of a flat tensor written over: what is left before it, what is written, what is behind."""
    if call.own or call.step.op != "slice_scatter" or len(call.types[0].shape) != 1:
        return None
    base, source = call.operands
    if call.given["step"] != 1 or not isinstance(base, Held) or not isinstance(source, Held):
        return None
    if any(axes_in(term.region) for item in (base, source) for term in item.relation.terms):
        return None
    size = base.type.shape[0]
    start, stop = clamped(call.given["start"], call.given["end"], size)
    if source.type != _resized(base.type, (stop - start,)):
        return None
    pieces = [values.piece(base, 0, 0, start), source, values.piece(base, 0, stop, size)]
    return values.join([piece for piece in pieces if piece.type.shape[0]], 0)


def summed(values: Pieces, call: Call, single: Single) -> Relation | None:
    """The sum of a flat tensor as what is summed of each run: an addend of the sum of all of a tensor.

    Over a stretch of its elements, counted row by row: the letter `flat` of a sum over all dims.
    """
    if call.own or call.step.op != "sum":
        return None
    held = call.operands[0]
    if not isinstance(held, Held) or len(held.type.shape) != 1:
        return None
    if any(axes_in(term.region) for term in held.relation.terms):
        return None
    given = call.given
    if given["dim"] != (0,) or given["keepdim"] or given["dtype"] is not None or held.relation.limited:
        return None
    size = held.type.shape[0]
    cuts = [0, *seams(values, held), size]
    if not size or held.type.dtype not in FLOATS or len(cuts) > MAX_RUNS:
        return None
    parts = list[tuple[Fraction, Relation]]()
    for start, stop in pairwise(cuts):
        run = values.piece(held, 0, start, stop)
        found = _sum_in_shape(values, run, single)
        if len(cuts) == 2 and (found is None or any(term.node >= values.first_own for term in found.terms)):
            return None
        again = replace(call, operands=[run, *call.operands[1:]], want=None)
        parts.append((ONE, found if found is not None else values.made(again)[0].relation))
    made = total(parts)
    return None if made is None else values.resolve(values.without_zeros(made))


def _sum_in_shape(values: Pieces, run: Held, single: Single) -> Relation | None:
    """The sum of a run as an addend of the sum of all of the tensor that it is a stretch of."""
    spot = _spot(values, [run])
    seen = None if spot is None else _in_shape(values, run, spot[0])
    if spot is None or seen is None:
        return None
    shape, index = spot
    whole_of = Held(seen.type, Relation((single(seen),)))
    dims = tuple(range(len(shape)))
    step = Op("sum", (), (), (("dim", dims),))
    (made,) = values.made(
        Call(step, bound(step, [whole_of]), [whole_of], [_resized(run.type, ())], None, False)
    )
    term = made.relation.single
    if term is None or term.limit is not None:
        return None
    value = values.values[term.node]
    operand = value.operands[0] if value.operands else None
    share = share_of("flat", math.prod(shape), index)
    if share is None:
        return made.relation
    if value.op != "sum" or value.given["dim"] != dims or not distinct(index):
        return None
    if not isinstance(operand, tuple) or shape_of(operand[1]) != shape:
        return None
    return Relation((replace(term, limit=limited([share], ())),))


def seams(values: Pieces, held: Held) -> list[int]:
    """Where a flat tensor goes from one joined tensor to the next."""
    found = set[int]()
    for term in held.relation.terms:
        value = values.values[term.node]
        if value.op != "cat" or len(term.region) != 1 or held_itself(term.limit) or value.free:
            continue
        widths = [shape_of(item[1])[0] if isinstance(item, tuple) else 0 for item in value.operands]
        lengths = [length(index) for _, index in stretches(term.region[0], widths)]
        found.update(list(accumulate(lengths))[:-1])
    return sorted(found)


def _add_runs(values: Pieces, held: Held, single: Single, runs: list[Held]) -> bool:
    """Add a flat tensor run by run, as it is where it is no join; False where there are too many."""
    cuts = [0, *seams(values, held), held.type.shape[0]]
    if len(cuts) == 2:
        runs.append(_settled(values, held, single))
        return len(runs) <= MAX_RUNS
    return len(cuts) <= MAX_RUNS and all(
        _add_runs(values, values.piece(held, 0, start, stop), single, runs) for start, stop in pairwise(cuts)
    )


def _settled(values: Pieces, held: Held, single: Single) -> Held:
    """A sum of stretches of tensors seen in one dim as that stretch of their sum."""
    if len(held.relation.terms) == 1 or held.relation.limited:
        return held
    spot = _spot(values, [held])
    seen = None if spot is None else _in_shape(values, held, spot[0])
    return held if seen is None or spot is None else _stretch(values, seen, spot[1], single)


# in their own shape ----------------------------------------------------------------------------------------


def _lifted(
    values: Pieces, call: Call, single: Single, make: Callable[[Pieces, Call], Held | None] | None = None
) -> Held | None:
    """What a step makes of one run, where its operands are the same stretch of tensors of one shape.

    Args:
        make: what it makes of the tensors, if that is not whatever it may be.
    """
    size = call.types[0].shape[0]
    flat = [item for item in call.operands if isinstance(item, Held) and item.type.shape == (size,)]
    spot = _spot(values, flat)
    if spot is None:
        return None
    shape, index = spot
    operands: list[Operand] = []
    for item in call.operands:
        if not isinstance(item, Held) or item.type.shape != (size,):
            operands.append(item)
            continue
        seen = _in_shape(values, item, shape)
        if seen is None:
            return None
        operands.append(seen)
    again = replace(call, operands=operands, types=[_resized(call.types[0], shape)])
    made = values.made(again)[0] if make is None else make(values, again)
    return None if made is None else _stretch(values, made, index, single)


def _known(values: Pieces, call: Call) -> Held | None:
    """A part of a value of the Program's that a step makes; nothing is put down."""
    relation = values.linear(call)
    term = values.known(call) if relation is None else relation.single
    if term is None or term.node >= values.first_own:
        return None
    return Held(call.types[0], Relation((term,)))


def _of_nothing(values: Pieces, call: Call) -> Held | None:
    """Products and powers of zeros, which fill up flat memory."""
    op, held = call.step.op, [item for item in call.operands if isinstance(item, Held)]
    if op not in ("mul", "pow") or call.types[0].dtype not in FLOATS:
        return None
    exponent = exact(call.operands[1]) if op == "pow" else ONE
    zeros = all(values.is_zero(term) for item in held for term in item.relation.terms)
    if not zeros or exponent is None or exponent <= 0:
        return None
    return Held(call.types[0], values.filled(0.0, call.types[0]))


def _of_model(values: Pieces, call: Call) -> Held | None:
    """A part of a value of the Program's that a step makes in one dim, as the Program may do itself."""
    relation = values.linear(call)
    found = values.general(call)[0].relation if relation is None else relation
    term = values.renamed(found).single
    known = term is not None and term.node < values.first_own
    return Held(call.types[0], Relation((term,))) if known and term is not None else None


def _spot(values: Pieces, flat: Sequence[Held]) -> tuple[Shape, Index] | None:
    """The shape of the tensors that flat ones are seen of, and which stretch; None for no one answer."""
    found: tuple[Shape, Index] | None = None
    for term in (term for item in flat for term in item.relation.terms):
        value = values.values[term.node]
        if value.op == "full":
            continue
        if value.op != "view" or len(value.type.shape) != 1 or value.free or term.limit is not None:
            return None
        (operand,) = value.operands
        assert isinstance(operand, tuple)
        mine = (shape_of(operand[1]), term.region[0])
        if found not in (None, mine):
            return None
        found = mine
    return found


def _in_shape(values: Pieces, held: Held, shape: Shape) -> Held | None:
    """The tensors that a flat one is a stretch of, in their own shape."""
    found, parts = _resized(held.type, shape), list[tuple[Any, Relation]]()
    for term in held.relation.terms:
        value = values.values[term.node]
        if value.op == "full":
            number = values.filled(value.given["fill_value"], found)
            parts.append((term.coef, number))
            continue
        (operand,) = value.operands
        assert isinstance(operand, tuple)
        node, outer, by = operand
        parts.append((term.coef, Relation((Term(node, values.spelled(node, outer), by),))))
    summed = total(parts)
    return None if summed is None else Held(found, values.resolve(values.without_zeros(summed)))


def _stretch(values: Pieces, held: Held, index: Index, single: Single) -> Held:
    """A stretch of a tensor seen in one dim."""
    term = single(held)
    size = math.prod(held.type.shape)
    one = Held(held.type, Relation((term,)))
    step, found = Op("view", (), (), (("size", (size,)),)), _resized(held.type, (size,))
    (seen,) = values.made(Call(step, bound(step, [one]), [one], [found], None, False))
    cut = Relation(tuple(replace(t, region=(select(t.region[0], index),)) for t in seen.relation.terms))
    spelled = Relation(tuple(replace(t, region=values.spelled(t.node, t.region)) for t in cut.terms))
    return Held(_resized(held.type, (length(index),)), values.tidy(spelled))


def _flat_size(call: Call) -> int | None:
    shape = call.types[0].shape
    return shape[0] if len(shape) == 1 and isinstance(shape[0], int) and shape[0] else None


def _resized(found: TensorType, shape: Shape) -> TensorType:
    return TensorType(shape, found.dtype)
