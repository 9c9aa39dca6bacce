"""The checker's classes of values, their parts and addends, and when two sums of them are one.

A class is how a value is made: op, attributes and operands, each a part of another class times a factor.
An addend is a class made from slices of what is summed, down a path of linear ops; whether addends make a
whole is decided between the ends of the slices, index by index alike. Written apart from the prover.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final, NoReturn, TypeAlias

from tensure.program import Affine

from ._check_defined import defined
from ._check_index import Index, all_of, concatenated, selected
from ._check_linear import every, single
from ._check_ops import FLOATS, extent
from ._check_padded import by_part, inside_padding
from ._check_piece import ONE, Reg, Shape, is_part

Limit: TypeAlias = "tuple[tuple[tuple[str, Index], ...], tuple[tuple[int, Any], ...]] | None"
"""(slices of own letters, limits of operands by position, or of a sum's parts by class)."""
Term: TypeAlias = tuple[Fraction, int, Reg, Limit]  # coefficient, class, region, addend
Rel: TypeAlias = "tuple[Term, ...] | None"  # None: nothing is known of it
MINUS: Final = Fraction(-1)
MAX_LEAD: Final = 64


class Refused(Exception):
    """A claim that does not follow; never leaves the checker."""


@dataclass(frozen=True, slots=True)
class Def:
    """How a class of equal logical values is made; operands are (class, region, factor), numbers or None."""

    op: str
    attrs: dict[str, Any]
    operands: tuple[Any, ...]
    out: int
    shape: Shape
    dtype: str
    form: Mapping[int, Fraction] | None = None
    free: frozenset[int] = frozenset()


class CheckSums:
    """Classes, and sums of them."""

    def __init__(self) -> None:
        self.defs: list[Def] = []
        self._equal: dict[Any, bool] = {}
        self._vanish: dict[Any, bool] = {}
        self._extents: dict[tuple[int, str], int] = {}
        self._kinds: dict[int, int] = {}
        self._numbers: dict[Any, int] = {}
        self._fitted: dict[Any, Fraction | None] = {}
        self.runs: dict[Any, bool] = {}
        """What is known of stretches of flat tensors."""
        self.ranges: dict[int, int] = {}
        """Of classes that the Program uses as an index counted from 0: below what they are."""
        self.families: dict[int, frozenset[str]] = {}
        """The axes along which a class is another value at every place, if there are any."""
        self.theirs = 1 << 60
        """The first class that is not the Program's; while it is read, there is none."""
        self.exist: set[int] = set()
        """Classes of others that are known to have a value for all data."""

    def spelled(self, node: int, reg: Reg) -> Reg:
        """Where a value only repeats, a region says no more than how many."""
        return spelled(self.defs[node], reg)

    def is_whole(self, node: int, reg: Reg) -> bool:
        """All of a value, but for dims along which it only repeats."""
        item = self.defs[node]
        return all(d in item.free or reg[d].is_whole(n) for d, n in enumerate(item.shape))

    def tidy(self, rel: tuple[Term, ...]) -> tuple[Term, ...]:
        """Parts of joined or padded values as parts of what was joined or padded."""
        return tuple(self._tidied(term) for term in rel)

    def _tidied(self, term: Term) -> Term:
        coef, node, reg, limit = term
        item = self.defs[node]
        if item.op not in ("cat", "constant_pad_nd") or held_itself(limit):
            return (coef, node, self.spelled(node, reg), limit)
        if item.op == "constant_pad_nd":
            source = item.operands[0]
            spots = None if item.free else inside_padding(item.attrs, size(source[1]), reg)
            return term if spots is None else self._tidied(self._of(term, 0, spots))
        dim = item.attrs.get("dim", 0) % len(reg)
        runs = by_part(reg[dim], [len(outer[dim]) for _, outer, _ in item.operands])
        if not runs or (len(runs) > 1 and self.is_whole(node, reg)):
            return term
        made = [self._tidied(self._of(term, at, (*reg[:dim], run, *reg[dim + 1 :]))) for at, run in runs]
        one = (made[0],) if len(made) == 1 else self.joined([(part,) for part in made], dim)
        return term if one is None else one[0]

    def _of(self, term: Term, at: int, places: Reg) -> Term:
        """The part at these places of an operand that a joined or padded class was made from."""
        coef, node, _, limit = term
        inner, outer, by = self.defs[node].operands[at]
        left = None if limit is None else dict(limit[1]).get(at)
        return coef * by, inner, self.spelled(inner, selected(outer, places)), left

    def joined(self, rels: Sequence[Any], dim: int) -> Rel:
        """Parts of one value one after another; None when they are of several."""
        if not rels or any(rel is None for rel in rels):
            return None
        rels = [rel for rel in rels if rel[0][2][dim]] or rels[:1]
        made: list[Term] = []
        for column in zip(*rels, strict=False):
            coef, node, reg, limit = column[0]
            if len({len(rel) for rel in rels}) != 1 or any(
                (c, n, but(r, dim), lim) != (coef, node, but(reg, dim), limit) for c, n, r, lim in column
            ):
                return None
            run = concatenated(term[2][dim] for term in column)
            made.append((coef, node, self.spelled(node, (*reg[:dim], run, *reg[dim + 1 :])), limit))
        return tuple(made)

    def equal(self, one: Rel, other: Rel) -> bool:
        """Are two relations the same: is their difference nothing at every index of what was sliced?"""
        if one is None or other is None:
            return False
        if one == other:
            return True
        if one and other and size(one[0][2]) != size(other[0][2]):
            return False  # zeros of another shape
        if one and other and any(isinstance(n, int) and n == 0 for n in size(one[0][2])):
            return True  # there is no element in which they could differ
        key = of_one_part(one, other)
        if key is None:
            return self._cancel(one, other) or self._cancel(self.opened(one), self.opened(other))
        if key not in self._equal:  # which part it is of makes no difference
            self._equal[key] = self._cancel(one, other) or self._cancel(self.opened(one), self.opened(other))
        return self._equal[key]

    def _cancel(self, one: tuple[Term, ...], other: tuple[Term, ...]) -> bool:
        sides = [{node for _, node, _, _ in rel} for rel in (one, other)]
        if not all(self.zero(node) or defined(self, node) for node in sides[0] ^ sides[1]):
            return False  # what stands on one side alone cancels there, if it has a value at all
        groups: dict[tuple[int, Reg], list[tuple[Fraction, Limit]]] = {}
        for coef, node, reg, limit in one:
            groups.setdefault((node, reg), []).append((coef, limit))
        for coef, node, reg, limit in other:
            groups.setdefault((node, reg), []).append((MINUS if coef is ONE else -coef, limit))
        return all(self.zero(node) or self._nothing(node, items) for (node, _), items in groups.items())

    def zero(self, node: int) -> bool:
        """Is a value zero everywhere?"""
        item = self.defs[node]
        return item.op == "full" and item.dtype in FLOATS and item.attrs["fill_value"] == 0

    def opened(self, rel: tuple[Term, ...]) -> tuple[Term, ...]:
        """Every value that is itself a sum as its parts."""
        made: list[Term] = []
        for coef, node, reg, limit in rel:
            form = self.defs[node].form
            if form is None or (limit is not None and limit[0]):  # what is held to indices stays as it is
                made.append((coef, node, self.spelled(node, reg), limit))
                continue
            through = None if limit is None else dict(limit[1])
            for part, by in form.items():
                inner = None if through is None else through[part]
                made.append((coef if by is ONE else coef * by, part, self.spelled(part, reg), inner))
        return tuple(made)

    def _nothing(self, node: int, items: list[tuple[Fraction, Limit]]) -> bool:
        """Do addends (and wholes, and multiples) of one value add up to zero?"""
        merged: dict[Limit, Fraction] = {}
        for coef, limit in items:
            before = merged.get(limit)
            merged[limit] = coef if before is None else before + coef
        items = [(coef, limit) for limit, coef in merged.items() if coef]
        if not items:
            return True
        letters = {letter for _, limit in items if limit for letter, _ in limit[0]}
        if letters and any(limit is not None and limit[1] for _, limit in items):
            return self._vanishes(node, items, min(letters))
        if letters:  # of the value no more is asked than how long its letters are
            told = (tuple(items), tuple([self.extent(node, letter) for letter in sorted(letters)]))
            if told not in self._vanish:
                self._vanish[told] = self._vanishes(node, items, min(letters))
            return self._vanish[told]
        keys = {key for _, limit in items if limit for key, _ in limit[1]}
        if not keys:
            return sum(coef for coef, _ in items) == 0
        item = self.defs[node]
        if len(keys) > 1 and item.form is None and not self._every(item, keys):
            return False
        for key in keys:
            inner = [(coef, None if limit is None else dict(limit[1])[key]) for coef, limit in items]
            if not self._nothing(key if item.form is not None else item.operands[key][0], inner):
                return False
        return True

    def _every(self, item: Def, keys: set[int]) -> bool:
        """Are these the operands that an op is a sum over, but for those that are zero everywhere?

        An op that is a sum of what it makes of each makes nothing of these, however often they are added up.
        """
        together = every(item.op, item.operands)
        return keys <= set(together) and all(
            at in keys or (is_part(item.operands[at]) and self.zero(item.operands[at][0])) for at in together
        )

    def _vanishes(self, node: int, items: list[tuple[Fraction, Limit]], letter: str) -> bool:
        """Do they add up to zero at every index of a letter?"""
        held = [(coef, limit, _slice(limit, letter)) for coef, limit in items]
        seen: set[tuple[int, ...]] = set()
        for there in _held_by([index for _, _, index in held], self.extent(node, letter)):
            if there not in seen:
                seen.add(there)
                left = [(held[at][0], _without(held[at][1], letter)) for at in there]
                if not self._nothing(node, left):
                    return False
        return True

    def extent(self, node: int, letter: str) -> int:
        """The size of a contracted letter of a value's op."""
        if letter.startswith("?"):  # ranges are still being found while the Program is read
            return self._extent(node, letter)
        key = (node, letter)
        if key not in self._extents:
            self._extents[key] = self._extent(node, letter)
        return self._extents[key]

    def _extent(self, node: int, letter: str) -> int:
        item = self.defs[node]
        if letter.startswith("?"):  # the elements of a tensor of indices of the same shape
            at = int(letter[1:])
            known = self.defs[at].shape == item.shape and not item.free and item.dtype in FLOATS
            return self.ranges[at] if known and at in self.ranges else refuse("no addend by such an index")
        if letter.startswith("@"):  # the indices of a dim of the value itself
            dim = int(letter[1:]) if letter[1:].isdecimal() and len(letter) < 4 else len(item.shape)
            known = dim < len(item.shape) and dim not in item.free and item.dtype in FLOATS
            return item.shape[dim] if known else refuse(f"no addend over {letter[:40]!r} there")
        shapes = [size(part[1]) if is_part(part) else None for part in item.operands]
        found = extent(item.op, item.attrs, shapes, letter)
        return found if found is not None else refuse(f"no addend over {letter[:40]!r} there")

    def sound(self, node: int, limit: Any) -> bool:
        """Is a limit one of this value: slices of its letters, and through operands it is linear in?"""
        if limit is None:
            return True
        item = self.defs[node]
        shares, through = limit
        keys = tuple(key for key, _ in through)
        for letter, index in shares:
            if not index.distinct or index.start < 0 or index.stop > self.extent(node, letter):
                return False
        if item.form is not None:
            if shares:
                return not keys and all(letter.startswith("@") for letter, _ in shares)
            return set(keys) == set(item.form) and all(self.sound(k, lim) for k, lim in through)
        if item.dtype not in FLOATS and keys:
            return False
        if not all(0 <= key < len(item.operands) and is_part(item.operands[key]) for key in keys):
            return False
        linear = not keys or self._every(item, set(keys))
        linear = linear or (len(keys) == 1 and single(item.op, item.attrs, item.operands, keys[0]))
        return linear and all(
            self.defs[item.operands[key][0]].dtype in FLOATS and self.sound(item.operands[key][0], lim)
            for key, lim in through
        )


# --- small things ---------------------------------------------------------------------------------------


def is_rel(item: Any) -> bool:
    """A relation, and not a number or None."""
    return isinstance(item, tuple) and bool(item) and item[0] != "number"


def held_itself(limit: Limit) -> bool:
    """Is a value's own op held to slices, so that no operand of it says as much?"""
    return limit is not None and bool(limit[0])


def spelled(item: Def, reg: Reg) -> Reg:
    """A part of a class in the one way it is written."""
    if not item.free:
        return reg
    return tuple([all_of(len(at)) if dim in item.free else at for dim, at in enumerate(reg)])


def size(reg: Reg) -> Shape:
    """The shape of a part."""
    return tuple(map(len, reg))


def sliced(attrs: Mapping[str, Any], reg: Reg) -> Reg:
    """A slice of a part."""
    dim = attrs.get("dim", 0) % len(reg)
    part = slice(attrs.get("start"), attrs.get("end"), attrs.get("step", 1))
    return (*reg[:dim], reg[dim][part], *reg[dim + 1 :])


def need(so: bool, why: str, *of: object) -> None:
    """Refuse unless; `of` is put into the braces of `why`, and only then written out."""
    if not so:
        refuse(why.format(*of) if of else why)


def refuse(why: str) -> NoReturn:
    """Refuse."""
    raise Refused(why)


def times(rel: Any, by: Fraction) -> tuple[Term, ...]:
    if by is ONE or by == 1:
        return tuple(rel)
    return tuple([(by if coef is ONE else coef * by, *rest) for coef, *rest in rel])


def but(reg: Any, dim: int) -> Any:
    return (*reg[:dim], *reg[dim + 1 :])


def spread(shapes: Sequence[Shape]) -> Shape | None:
    """The shape operands broadcast to; None when they do not."""
    rank = max(map(len, shapes))
    found: list[int] = []
    for back in range(rank, 0, -1):
        sizes = {shape[-back] for shape in shapes if len(shape) >= back} - {1}
        if len(sizes) > 1:
            return None
        found.append(sizes.pop() if sizes else 1)
    return tuple(found)


def _held_by(parts: Sequence[Index | None], size: int) -> Iterator[tuple[int, ...]]:
    """Which of the parts (None: all indices) hold an index, for every index of a letter.

    Between two ends every index is held by the same parts. Where the ends are those of many places and move
    together, so does what is between them; an index outside of all is asked for, whether there is one or not.
    """
    ends: dict[Any, list[tuple[int, int]]] = {}
    for at, part in enumerate(parts):
        for start, stop in () if part is None else part.runs:
            ends.setdefault(start, []).append((at, 1))
            ends.setdefault(stop, []).append((at, -1))
    every = tuple(at for at, part in enumerate(parts) if part is None)
    moving: Any = next((end for end in ends if isinstance(end, Affine)), None)
    if moving is not None:
        by = moving - moving.constant
        ends = {end - by: changes for end, changes in ends.items()}
        yield every
    elif size and 0 not in ends:
        yield every  # nothing begins below 0: a limit that does is refused
    counts: dict[int, int] = {}
    for end in sorted(ends):
        for at, change in ends[end]:
            counts[at] = counts.get(at, 0) + change
            if not counts[at]:
                del counts[at]
        if moving is not None or end < size:
            yield (*every, *sorted(counts))


def of_one_part(one: tuple[Term, ...], other: tuple[Term, ...]) -> Any:
    """The factors and classes of two sums of one and the same part of each class, no addends; else None."""
    if not one or not other:
        return None
    part, number = one[0][2], hash(one[0][2])
    for _, _, reg, limit in (*one, *other):
        if limit is not None or hash(reg) != number or reg != part:
            return None
    return tuple((coef, node) for coef, node, *_ in one), tuple((coef, node) for coef, node, *_ in other)


def _slice(limit: Limit, letter: str) -> Index | None:
    return None if limit is None else dict(limit[0]).get(letter)


def _without(limit: Limit, letter: str) -> Limit:
    if limit is None:
        return None
    left = tuple(item for item in limit[0] if item[0] != letter)
    return (left, limit[1]) if left or limit[1] else None
