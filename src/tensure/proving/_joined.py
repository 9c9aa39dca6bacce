"""Steps on tensors joined out of several: results of parts, joined again, or summed if that is contracted.

One product with joined weights is the join of their products; of two tensors joined alike and contracted it
is the sum of the products of their parts. Elementwise steps, transposes and views that keep the joined dim
are taken part by part. Only of joins that are no value of the Program. Knows no rules but how dims go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final, TypeAlias

from tensure.program import TensorType

from ._contraction import TERMS, terms_of
from ._index import whole
from ._movement import groups
from ._pieces import Pieces
from ._relation import ONE, Relation, total
from ._repeats import order_of
from ._rules import ELEMENTWISE
from ._steps import Call, Held, Operand

Along: TypeAlias = "tuple[list[int | None], int | None]"
"""For each operand the dim that is cut, and the result's; None: not cut, or summed over."""
MAX_PARTS: Final = 16


def joined_step(values: Pieces, call: Call, theirs: int) -> Relation | None:
    """What a step on joined operands makes of each part; None for any other step."""
    if len(call.types) != 1 or call.own:
        return None
    for at, item in enumerate(call.operands):
        term = item.relation.single if isinstance(item, Held) else None
        if term is None or not isinstance(item, Held) or term.node < theirs:
            continue
        value = values.values[term.node]
        if value.op != "cat" or len(value.operands) > MAX_PARTS:
            continue
        dim = value.given["dim"] % len(item.type.shape)
        if dim in value.free or term.region[dim] != whole(value.type.shape[dim]):
            continue
        along = _along(call, at, dim)
        if along is None:
            continue
        widths = [_width(part, dim) for part in value.operands]
        made = _taken(values, call, along, widths)
        if made is not None:
            return made
    return None


def _taken(values: Pieces, call: Call, along: Along, widths: Sequence[int]) -> Relation | None:
    dims, out = along
    results: list[Held] = []
    start = 0
    for width in widths:
        if not width:
            return None
        operands: list[Operand] = [
            values.piece(item, dim, start, start + width)
            if isinstance(item, Held) and dim is not None
            else item
            for item, dim in zip(call.operands, dims, strict=True)
        ]
        shape = list(call.types[0].shape)
        if out is not None:
            shape[out], rest = divmod(width * shape[out], sum(widths))  # a view may regroup it
            if rest:
                return None
        found = TensorType(tuple(shape), call.types[0].dtype)
        given = dict(call.given)
        step = call.step
        if step.op == "view":
            given = {"size": found.shape}
            step = replace(step, attrs=(("size", found.shape),))
        again = replace(call, step=step, given=given, operands=operands, types=[found], want=None)
        results += values.made(again)
        start += width
    if out is None:
        summed = total((ONE, item.relation) for item in results)
        return None if summed is None else values.resolve(values.without_zeros(summed))
    return values.join(results, out)


def _along(call: Call, at: int, dim: int) -> Along | None:
    """Which dims go with the joined one of an operand."""
    op, shapes = call.step.op, [item.type.shape if isinstance(item, Held) else None for item in call.operands]
    none: list[int | None] = [None] * len(shapes)
    out = call.types[0].shape
    if op == "permute":
        return [dim], order_of(call.given, len(shapes[0] or ())).index(dim)
    if op == "view":
        shape = shapes[0] or ()
        for before, after in groups(shape, out):
            kept = [d for d in range(*before) if shape[d] != 1]
            left = [d for d in range(*after) if out[d] != 1]
            if kept[:1] == [dim] and left:  # the outermost of what is regrouped: each part is a run of it
                return [dim], left[0]
        return None
    if op in ELEMENTWISE:
        back = len(shapes[at] or ()) - dim
        size = out[-back]
        cut = [
            len(shape) - back if shape is not None and len(shape) >= back and shape[-back] == size else None
            for shape in shapes
        ]
        return cut, len(out) - back
    if op in TERMS and not (op in ("linear", "integer_linear") and len(shapes) > 2 and shapes[2] is not None):
        held = [shape for shape in shapes if shape is not None]
        found = terms_of(op, call.given, [len(shape) for shape in held])
        if found is None or len(held) < 2:
            return None
        letter = found[0][at][dim]
        dims = [term.index(letter) if letter in term else None for term in found[0]]
        return [*dims, *none[len(dims) :]], found[1].index(letter) if letter in found[1] else None
    return None


def _width(part: object, dim: int) -> int:
    assert isinstance(part, tuple)
    region: tuple[tuple[tuple[int, int], ...], ...] = part[1]
    return sum(stop - start for start, stop in region[dim])
