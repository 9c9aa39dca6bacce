"""Sums of products by letters: einsum, and the products of matrices written as one.

A letter that stands in the result indexes it; one that does not is contracted. Every operand must
hold the same indices of a letter. Contracted letters may be cut: then the local result is the
addend for these slices. Knows nothing of values.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Final

from ._index import Index, Region, Shape, distinct, is_free, length
from ._limit import Share, share_of

TERMS: Final = frozenset(["einsum", "mm", "bmm", "matmul", "mv", "dot", "outer", "linear", "integer_linear"])
_LETTERS: Final = "abcdefg"


def terms_of(op: str, given: dict[str, Any], ranks: Sequence[int]) -> tuple[list[str], str] | None:
    """The letters of every operand and of the result; None for a form that has none here."""
    if op == "einsum":
        left, out = given["equation"].split("->")
        return left.split(","), out
    if op in ("mm", "bmm", "mv", "dot", "outer"):
        left, out = {
            "mm": "mk,kn->mn",
            "bmm": "bmk,bkn->bmn",
            "mv": "mk,k->m",
            "dot": "k,k->",
            "outer": "m,n->mn",
        }[op].split("->")
        return left.split(","), out
    if op == "matmul":
        one, other = ranks
        if one < 1 or other < 2 or other > max(one, 2) or (other > 2 and other != one):
            return None
        rows = _LETTERS[: one - 1]
        stack = rows[:-1] if other > 2 else ""
        return [f"{rows}k", f"{stack}kn"], f"{rows}n"
    rows = _LETTERS[: ranks[0] - 1]
    return [f"{rows}k", "nk", "n"][: len(ranks)], f"{rows}n"


def contract(
    op: str, given: dict[str, Any], shapes: Sequence[Shape | None], parts: Sequence[Region | None]
) -> tuple[Region, tuple[Share, ...], Fraction] | None:
    """The region of the result, the slices of contracted letters, and the factor of one that only repeats."""
    biased = op in ("linear", "integer_linear") and len(parts) == 3 and parts[2] is not None
    used = 3 if biased else 2 if op != "einsum" else len(parts)
    shapes, parts = shapes[:used], parts[:used]
    if any(shape is None for shape in shapes):
        return None
    found = terms_of(op, given, [len(shape or ()) for shape in shapes])
    if found is None:
        return None
    terms, out = found
    held: dict[str, set[Index]] = {}
    size_of: dict[str, int] = {}
    for term, shape, part in zip(terms, shapes, parts, strict=True):
        for letter, size, index in zip(term, shape or (), part or (), strict=True):
            held.setdefault(letter, set()).add(index)
            if size_of.setdefault(letter, size) != size:
                return None
    index_of: dict[str, Index] = {}
    for letter, indexes in held.items():
        fixed = [index for index in indexes if not is_free(index)]
        if len(fixed) > 1 or len({length(index) for index in indexes}) > 1:
            return None
        index_of[letter] = fixed[0] if fixed else next(iter(indexes))
    shares: list[Share] = []
    factor = Fraction(1)
    for letter, index in index_of.items():
        if letter in out:
            continue
        if is_free(index):
            if not size_of[letter]:
                return None
            factor *= Fraction(length(index), size_of[letter])
            continue
        share = share_of(letter, size_of[letter], index)
        if share is not None:
            if not distinct(index):
                return None
            shares.append(share)
    if (shares or factor != 1) and (biased or op == "integer_linear"):
        return None
    region = tuple(((0, length(index_of[c])),) if is_free(index_of[c]) else index_of[c] for c in out)
    return region, tuple(shares), factor
