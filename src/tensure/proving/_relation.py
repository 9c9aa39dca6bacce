"""What a local tensor is, said in logical values: a sum of regions, each whole or an addend.

A Relation is a linear combination of Terms of one shape. `2 * y[0:3] + z[0:3]` has two; most have one. A
Term with a Limit is an addend: its value is the logical one made from slices of what is summed. Equality
is over the reals. Knows nothing of ops.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

from tensure.program import axes_in, fraction_words

from ._index import Index, Region, Shape, format_index, shape_of, whole
from ._limit import Limit, Share, fold

ONE = Fraction(1)


@dataclass(frozen=True, slots=True)
class Term:
    """`coef` times a region of the logical value `node`, or an addend of it."""

    node: int
    region: Region
    coef: Fraction = ONE
    limit: Limit | None = None

    @property
    def plain(self) -> bool:
        """A region of the value itself."""
        return self.coef == 1 and self.limit is None


@dataclass(frozen=True, slots=True)
class Relation:
    """The sum of its terms; they all have one shape."""

    terms: tuple[Term, ...]

    @property
    def shape(self) -> Shape:
        """Shape of the local."""
        return shape_of(self.terms[0].region)

    @property
    def single(self) -> Term | None:
        """The one term, if that is all there is."""
        return self.terms[0] if len(self.terms) == 1 else None

    @property
    def limited(self) -> bool:
        """Whether any term is an addend."""
        return any(term.limit is not None for term in self.terms)


def plain(node: int, region: Region) -> Relation:
    """A region of one logical value."""
    return Relation((Term(node, region),))


def combined(parts: Iterable[tuple[Fraction, Relation]]) -> Relation | None:
    """A linear combination; None when everything cancels."""
    sums: dict[tuple[int, Region, Limit | None], Fraction] = {}
    for factor, part in parts:
        for term in part.terms:
            key = (term.node, term.region, term.limit)
            coef, before = term.coef if factor is ONE else factor * term.coef, sums.get(key)
            sums[key] = coef if before is None else before + coef
    terms = [Term(node, region, coef, limit) for (node, region, limit), coef in sums.items() if coef]
    if len(terms) > 1:
        terms.sort(key=_node if len({term.node for term in terms}) == len(terms) else _order)
    return Relation(tuple(terms)) if terms else None


def total(parts: Iterable[tuple[Fraction, Relation]]) -> Relation | None:
    """A linear combination with the addends of one value put together where they fit."""
    summed = combined(parts)
    if summed is None or not summed.limited or len(summed.terms) == 1:
        return summed
    groups: dict[object, list[Term]] = {}
    rest: list[tuple[Fraction, Relation]] = []
    for term in summed.terms:
        if term.limit is None:
            rest.append((ONE, Relation((term,))))
        else:
            key = (term.node, term.region, term.coef, term.limit.skeleton)
            groups.setdefault(key, []).append(term)
    for terms in groups.values():
        made = fold([term.limit for term in terms if term.limit is not None])
        if made is None:
            rest.extend((ONE, Relation((term,))) for term in terms)
        else:
            rest.append((Fraction(made[0]), Relation((replace(terms[0], limit=made[1]),))))
    return combined(rest)


def scaled(relation: Relation, by: Fraction) -> Relation:
    """A multiple, by anything but 0."""
    return Relation(tuple(replace(term, coef=term.coef * by) for term in relation.terms))


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


@dataclass(frozen=True, slots=True)
class Told:
    """A value of the Program in words: `by` times it is `label`, which `origin` (module, line) made."""

    label: str
    by: Fraction
    origin: str = ""


def describe(relation: Relation, labels: Mapping[int, Told], shapes: Mapping[int, Shape]) -> str:
    """A relation in words: `addend (f 0:3) of i1[0] (down, net.py:16) + ...`."""
    return " + ".join(_words(term, labels, shapes) for term in relation.terms)


def _words(term: Term, labels: Mapping[int, Told], shapes: Mapping[int, Shape]) -> str:
    told = labels.get(term.node, Told("a value the program does not have", ONE))
    dims = [
        f"d{dim} {format_index(index)}"
        for dim, (index, size) in enumerate(zip(term.region, shapes[term.node], strict=True))
        if index != whole(size)
    ]
    text = f"{told.label}{{{', '.join(dims)}}}" if dims else told.label
    text += f" ({told.origin})" if told.origin else ""
    if term.limit is not None:
        slices = ", ".join(f"{share.letter} {format_index(share.index)}" for share in _shares(term.limit))
        text = f"the addend ({slices}) of {text}"
    coef = term.coef / told.by
    return text if coef == 1 else f"{fraction_words(coef)} * {text}"


def _shares(limit: Limit) -> list[Share]:
    found = list(limit.shares)
    for _, inner in limit.through:
        found.extend(_shares(inner))
    return found


def _node(term: Term) -> int:
    return term.node


def _order(term: Term) -> tuple[object, ...]:
    limit = () if term.limit is None else term.limit.order()
    if axes_in((term.region, limit)):  # regions of many places have no order but that of their text
        return (term.node, 1, repr(term.region), repr(limit), term.coef)
    return (term.node, 0, term.region, limit, term.coef)
