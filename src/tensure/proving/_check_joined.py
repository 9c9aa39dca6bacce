"""The checker's view of steps on joined tensors: is each part of a result made of its slices of operands?

A claimed result that is a join along a dim is cut at its seams; one that is claimed as a sum may be that of
products over the parts of what is contracted. Each part is asked of its own rule. Written apart from the
prover.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from ._check_defined import all_defined
from ._check_ops import CONTRACTIONS, ELEMENTWISE, FLOATS, letters, shapes_of
from ._check_piece import Shape, is_part
from ._check_sums import Term, is_rel, size

MAX_PARTS: Final = 16
Asked = Callable[[str, dict[str, Any], list[Any], int, tuple[Term, ...]], bool]


def joined(values: Any, ask: Asked, op: str, attrs: dict[str, Any], operands: list[Any], claim: Any) -> bool:
    """Does a step make the claim part by part? `ask` is asked of each part."""
    if op not in ("permute", "view") and op not in ELEMENTWISE and op not in CONTRACTIONS:
        return False
    out = size(claim[0][2])
    if len(claim) == 1:
        seams = _seams(values, claim[0])
        for dim, widths in seams:
            dims = _followed(op, attrs, operands, dim, out)
            if dims is not None and _by_parts(values, ask, op, attrs, operands, claim, dims, dim, widths):
                return True
        if op == "view" and len(operands[0]) == 1:
            for at, widths in _seams(values, operands[0][0]):
                dims = _followed(op, attrs, [claim], at, size(operands[0][0][2]))
                if dims is not None and _by_parts(
                    values, ask, op, attrs, operands, claim, [at], dims[0] or 0, widths, True
                ):
                    return True
    return op in CONTRACTIONS and _summed(values, ask, op, attrs, operands, claim)


def _seams(values: Any, term: Term) -> list[tuple[int, list[int]]]:
    """Along which dim a term that is all of a join was joined, and how wide each part is."""
    item = values.defs[term[1]]
    if item.op != "cat" or len(item.operands) > MAX_PARTS:
        return []
    dim = item.attrs.get("dim", 0) % len(item.shape)
    if dim in item.free or not term[2][dim].is_whole(item.shape[dim]):
        return []
    return [(dim, [len(part[1][dim]) for part in item.operands if is_part(part)])]


def _by_parts(
    values: Any,
    ask: Asked,
    op: str,
    attrs: dict[str, Any],
    operands: list[Any],
    claim: Any,
    dims: Sequence[int | None],
    dim: int,
    widths: Sequence[int],
    is_theirs: bool = False,
) -> bool:
    """Part by part; `widths` are those of the result's parts, or of the operand's if it is said so."""
    start = 0
    for width in widths:
        cut = slice(start, start + width)
        start += width
        mine = [_scaled(values, item, at, cut, sum(widths)) for item, at in zip(operands, dims, strict=True)]
        part = _scaled(values, claim, dim, cut, sum(widths))
        if part is None or any(
            have is None and item is not None for have, item in zip(mine, operands, strict=True)
        ):
            return False
        given = {"size": size(part[0][2])} if op == "view" else attrs
        if not width or not _asked(values, ask, op, given, mine, part):
            return False
    return True


def _asked(values: Any, ask: Asked, op: str, attrs: dict[str, Any], operands: list[Any], part: Any) -> bool:
    op, attrs = as_view(op, attrs, operands)
    op, attrs, told = values.told(op, attrs, operands)
    moved = values.passed(op, attrs, told)
    if moved is not None and values.equal(part, moved):
        return True
    return ask(op, attrs, list(told), 0, part)


def _cut(values: Any, item: Any, dim: int | None, part: slice) -> Any:
    if dim is None or not is_rel(item):
        return item
    return values.tidy(tuple((c, n, (*r[:dim], r[dim][part], *r[dim + 1 :]), lim) for c, n, r, lim in item))


def as_view(op: str, attrs: dict[str, Any], operands: Sequence[Any]) -> tuple[str, dict[str, Any]]:
    """A transpose that moves nothing but dims of size 1 as the view that it is."""
    if op != "permute" or not is_rel(operands[0]):
        return op, attrs
    shape = size(operands[0][0][2])
    dims = [dim % len(shape) for dim in attrs["dims"]]
    long = [dim for dim in dims if shape[dim] != 1]
    return ("view", {"size": tuple(shape[dim] for dim in dims)}) if long == sorted(long) else (op, attrs)


def _scaled(values: Any, item: Any, dim: int | None, part: slice, count: int) -> Any:
    """A part of one of `count`, of a dim that a view may have regrouped; None: no such part.

    The dim begins where that of the count does, and ends with dims behind it where the other's do.
    """
    if dim is None or not is_rel(item):
        return item
    size_here = len(item[0][2][dim])
    (start, no), (stop, nor) = (divmod(end * size_here, count) for end in (part.start, part.stop))
    return None if no or nor else _cut(values, item, dim, slice(start, stop))


def _followed(
    op: str, attrs: dict[str, Any], operands: Sequence[Any], dim: int, out: Shape
) -> list[int | None] | None:
    """Which dim of every operand goes along a dim of the result."""
    shapes = [size(item[0][2]) if is_rel(item) else None for item in operands]
    first = shapes[0] or ()
    if op == "permute":
        return [attrs["dims"][dim]]
    if op == "view":
        before = 1
        for n in out[:dim]:
            before *= n
        passed = 1
        for at, n in enumerate(first):
            if passed == before and n != 1 and out[dim] != 1:
                return [
                    at
                ]  # both begin where the dims before them end, so a run of one is a run of the other
            passed *= n
        return None
    if op in ELEMENTWISE:
        back = len(out) - dim
        return [
            len(shape) - back
            if shape is not None and len(shape) >= back and shape[-back] == out[dim]
            else None
            for shape in shapes
        ]
    if None in shapes and op != "linear":
        return None
    held = [shape for shape in shapes if shape is not None]
    if len(held) != 2:
        return None
    terms, kept = letters(op, attrs, held)
    found = [term.index(kept[dim]) if kept[dim] in term else None for term in terms]
    return [*found, *[None] * (len(shapes) - len(found))]


def _summed(values: Any, ask: Asked, op: str, attrs: dict[str, Any], operands: list[Any], claim: Any) -> bool:
    """A product over a contracted dim that was joined: the sum of products over its parts."""
    rels = [item for item in operands if is_rel(item)]
    if len(rels) != 2 or any(len(rel) != 1 for rel in rels):
        return False
    shapes = [size(rel[0][2]) for rel in rels]
    terms, kept = letters(op, attrs, shapes)
    if any(values.defs[rel[0][1]].dtype not in FLOATS for rel in rels):
        return False
    if shapes_of(op, attrs, shapes) != [size(claim[0][2])] or not all_defined(values, rels):
        return False
    for at, rel in enumerate(rels):
        for dim, widths in _seams(values, rel[0]):
            letter = terms[at][dim]
            if letter in kept or not all(letter in term for term in terms):
                continue
            left, start, made = list(values.opened(claim)), 0, True
            for width in widths:
                cut = slice(start, start + width)
                start += width
                mine = [
                    _cut(values, one, term.index(letter), cut) for one, term in zip(rels, terms, strict=True)
                ]
                mine += [None] * (len(operands) - len(mine))
                if any(is_rel(one) and all(values.zero(n) for _, n, _, _ in one) for one in mine):
                    continue
                found = next((one for one in left if ask(op, attrs, mine, 0, (one,))), None)
                if found is None:
                    made = False
                    break
                left.remove(found)
            if made and all(values.zero(node) for _, node, _, _ in left):
                return True
    return False
