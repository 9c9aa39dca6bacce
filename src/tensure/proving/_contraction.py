"""Sums of products by letters: einsum, and the products of matrices written as one.

A letter that stands in the result indexes it; one that does not is contracted. Every operand must
hold the same indices of a letter. One contracted letter may be cut: then the local result is the
addend for that slice. Knows nothing of values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from ._index import Index, Region, Shape, partitions
from ._relation import Share

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
) -> tuple[Region, Share | None] | None:
    """The region of the result and the addend, if any."""
    biased = op in ("linear", "integer_linear") and len(parts) == 3 and parts[2] is not None
    used = 3 if biased else 2 if op != "einsum" else len(parts)
    shapes, parts = shapes[:used], parts[:used]
    if any(shape is None for shape in shapes):
        return None
    found = terms_of(op, given, [len(shape or ()) for shape in shapes])
    if found is None:
        return None
    terms, out = found
    index_of: dict[str, Index] = {}
    size_of: dict[str, int] = {}
    for term, shape, part in zip(terms, shapes, parts, strict=True):
        for letter, size, index in zip(term, shape or (), part or (), strict=True):
            if index_of.setdefault(letter, index) != index or size_of.setdefault(letter, size) != size:
                return None
    cut = [
        letter
        for letter in index_of
        if letter not in out and not partitions([index_of[letter]], size_of[letter])
    ]
    region = tuple(index_of[letter] for letter in out)
    if not cut:
        return region, None
    if len(cut) > 1 or biased or op == "integer_linear":
        return None
    (letter,) = cut
    return region, Share(letter, size_of[letter], index_of[letter])
