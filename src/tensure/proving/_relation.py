"""What a local tensor is, said in logical values: a sum of regions, each whole or an addend.

A Relation is a linear combination of Terms of one shape. `2 * y[0:3] + z[0:3]` has two; most have
one with coefficient 1. A Term with a Share is an addend: its value is the logical one computed with a
contracted letter of its own op restricted to a slice; the addends of a partition of that letter add
up to the whole. Equality is over the reals. Knows nothing of ops.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

from ._index import Index, Region, Shape, format_index, partitions, shape_of, whole

ONE = Fraction(1)


@dataclass(frozen=True, slots=True)
class Share:
    """Which addend.

    Args:
        letter: the contracted letter of the value's own op.
        extent: its size.
        index: the slice of it.
    """

    letter: str
    extent: int
    index: Index


@dataclass(frozen=True, slots=True)
class Term:
    """`coef` times a region of the logical value `node`, or an addend of it."""

    node: int
    region: Region
    coef: Fraction = ONE
    share: Share | None = None

    @property
    def plain(self) -> bool:
        """A region of the value itself."""
        return self.coef == 1 and self.share is None


@dataclass(frozen=True, slots=True)
class Relation:
    """The sum of its terms; they all have one shape."""

    terms: tuple[Term, ...]

    @property
    def shape(self) -> Shape:
        """Shape of the local."""
        return shape_of(self.terms[0].region)

    @property
    def simple(self) -> Term | None:
        """The one plain term, if that is all there is."""
        return self.terms[0] if len(self.terms) == 1 and self.terms[0].plain else None


def plain(node: int, region: Region) -> Relation:
    """A region of one logical value."""
    return Relation((Term(node, region),))


def combined(parts: Iterable[tuple[Fraction, Relation]]) -> Relation | None:
    """A linear combination; None when everything cancels."""
    sums: dict[tuple[int, Region, Share | None], Fraction] = {}
    for factor, part in parts:
        for term in part.terms:
            key = (term.node, term.region, term.share)
            sums[key] = sums.get(key, Fraction(0)) + factor * term.coef
    terms = tuple(Term(node, region, coef, share) for (node, region, share), coef in sums.items() if coef)
    return Relation(tuple(sorted(terms, key=_order))) if terms else None


def total(members: list[Relation]) -> Relation | None:
    """The sum of all members of a group, with addends that partition a letter made whole."""
    summed = combined((ONE, member) for member in members)
    if summed is None:
        return None
    groups: dict[tuple[int, Region, Fraction, str], list[Share]] = {}
    rest: list[Term] = []
    for member in members:
        for term in member.terms:
            if term.share is None:
                rest.append(term)
            else:
                key = (term.node, term.region, term.coef, term.share.letter)
                groups.setdefault(key, []).append(term.share)
    for (node, region, coef, _), shares in groups.items():
        if partitions([share.index for share in shares], shares[0].extent):
            rest.append(Term(node, region, coef))
        else:
            rest.extend(Term(node, region, coef, share) for share in shares)
    return combined([(ONE, Relation((term,))) for term in rest])


def narrowed(relation: Relation, dim: int, index_of: Mapping[Index, Index]) -> Relation:
    """The same relation with the Index of one dim replaced."""
    return Relation(
        tuple(
            replace(
                term,
                region=(*term.region[:dim], index_of[term.region[dim]], *term.region[dim + 1 :]),
            )
            for term in relation.terms
        )
    )


def describe(relation: Relation, labels: Mapping[int, str], shapes: Mapping[int, Shape]) -> str:
    """A relation in words: `addend (f 0:3) of i1[0] + ...`."""
    return " + ".join(_words(term, labels, shapes) for term in relation.terms)


def _words(term: Term, labels: Mapping[int, str], shapes: Mapping[int, Shape]) -> str:
    label = labels.get(term.node, "a value the program does not have")
    dims = [
        f"d{dim} {format_index(index)}"
        for dim, (index, size) in enumerate(zip(term.region, shapes[term.node], strict=True))
        if index != whole(size)
    ]
    text = f"{label}{{{', '.join(dims)}}}" if dims else label
    if term.share is not None:
        text = f"the addend ({term.share.letter} {format_index(term.share.index)}) of {text}"
    return text if term.coef == 1 else f"{term.coef} * {text}"


def _order(term: Term) -> tuple[object, ...]:
    share = term.share
    return (
        term.node,
        term.region,
        () if share is None else (share.letter, share.index),
        term.coef,
    )
