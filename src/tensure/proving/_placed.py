"""A part put back at its own place among zeros: an addend of the whole, held to some indices of a dim.

Its letter is `@dim`: the value is zero outside the slice, so those of a partition add up to the whole.
"""

from __future__ import annotations

from typing import Any

from ._index import Index, clamped, shape_of
from ._limit import Share, share_of
from ._linear import exact
from ._relation import Term
from ._steps import Number
from ._values import FLOATS, Values


def placed(
    values: Values, op: str, given: dict[str, Any], terms: list[Term | Number], shape: tuple[int, ...]
) -> tuple[Term, tuple[Share, ...]] | None:
    """The whole and the slice that is there; None for steps that put nothing back in its place."""
    found = _spot(values, op, given, terms, shape)
    if found is None:
        return None
    term, dim, start, stop = found
    value = values.values[term.node]
    at: Index = ((start, stop),)
    if term.limit is not None or term.region[dim] != at or value.type.shape[dim] != shape[dim]:
        return None
    if dim in value.free or value.type.dtype not in FLOATS:
        return None
    region = (*term.region[:dim], ((0, shape[dim]),), *term.region[dim + 1 :])
    share = share_of(f"@{dim}", shape[dim], at)
    return Term(term.node, region, term.coef), () if share is None else (share,)


def _is_zero(values: Values, term: Term) -> bool:
    value = values.values[term.node]
    return value.op == "full" and value.given["fill_value"] == 0


def _spot(
    values: Values, op: str, given: dict[str, Any], terms: list[Term | Number], shape: tuple[int, ...]
) -> tuple[Term, int, int, int] | None:
    """What is put where: (part, dim, start, stop)."""
    if op == "slice_scatter" and given["step"] == 1:
        target, source = terms
        if not isinstance(target, Term) or not _is_zero(values, target):
            return None
        dim = given["dim"] % len(shape)
        start, stop = clamped(given["start"], given["end"], shape[dim])
        return (source, dim, start, stop) if isinstance(source, Term) else None
    if op == "cat":
        dim = given["dim"] % len(shape)
        blank = [isinstance(item, Term) and _is_zero(values, item) for item in terms]
        if blank.count(False) != 1:
            return None
        at = blank.index(False)
        widths = [shape_of(item.region)[dim] if isinstance(item, Term) else 0 for item in terms]
        part, start = terms[at], sum(widths[:at])
        return (part, dim, start, start + widths[at]) if isinstance(part, Term) else None
    if op == "slice_backward" and given["step"] == 1 and isinstance(terms[0], Term):
        dim = given["dim"] % len(shape)
        start, stop = clamped(given["start"], given["end"], shape[dim])
        return terms[0], dim, start, stop
    if op == "constant_pad_nd" and exact(given["value"]) == 0 and isinstance(terms[0], Term):
        pads = list(zip(given["pad"][::2], given["pad"][1::2], strict=True))
        padded = [back for back, ends in enumerate(pads) if any(ends)]
        if len(padded) == 1 and min(pads[padded[0]]) >= 0:
            dim = len(shape) - 1 - padded[0]
            before, after = pads[padded[0]]
            return terms[0], dim, before, shape[dim] - after
    return None
