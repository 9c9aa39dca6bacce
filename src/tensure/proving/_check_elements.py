"""The checker's view of exponentials, losses and one-hot sums: an element of a tensor written out.

Every element is a sum of monomials: factors, which are elements of classes or what is told of them, times one
exponential. Where an element stands is kept for each dim of a class: on an axis of the result, at an index
that is read from another class, or bound by a sum. So spreads and views with dims of size 1 disappear, and
softmax, its logarithm, their gradients, per-sample losses and numbers put among zeros have one spelling:
sum_b exp(f_b + c) is exp(lse(f) + c), log(exp(f)) is f, exp(f) exp(g) is exp(f + g), 1 / exp(f) is exp(-f);
sum_b [b = i] is 1 over all of a dim that i is an index of. An exponential is positive, so nothing is lost by
dividing by it; no other factor cancels. Equal writings are equal tensors over the reals, whatever is left
unopened. Written apart from the prover, which knows values and no elements.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from ._check_defined import defined
from ._check_index import FIRST, all_of
from ._check_linear import value
from ._check_monomials import NONE, Stuck, Written, closed, exp_of, mentions, plus, times
from ._check_openers import OPENERS
from ._check_ops import FLOATS
from ._check_piece import ONE, Reg, Shape, is_part
from ._check_spots import ANY, Source, Spot, here, on_axis, part_of, seen_as, source_of
from ._check_sums import Rel, size

MAX_OPENED: Final = 1 << 12
MAX_DEEP: Final = 40


def written(values: Any, op: str, attrs: dict[str, Any], operands: Sequence[Any], claim: Any) -> bool:
    """Does a step make the claim, element by element?"""
    shape = size(claim[0][2])
    if op not in OPENERS:
        return False
    writer = _Writer(values)
    try:
        sources = [source_of(item) for item in operands]
        have = OPENERS[op](writer, attrs, sources, shape, here(shape))
        return have is not None and have == writer.of(source_of(claim), here(shape))
    except (Stuck, RecursionError):
        return False


def alike(values: Any, one: Rel, other: Rel) -> bool:
    """Are two relations the same, element by element?"""
    if one is None or other is None or size(one[0][2]) != size(other[0][2]):
        return False
    writer, spots = _Writer(values), here(size(one[0][2]))
    try:
        return writer.of(source_of(one), spots) == writer.of(source_of(other), spots)
    except (Stuck, RecursionError):
        return False


class _Writer:
    """Writes elements out; what cannot be opened is taken as it is."""

    def __init__(self, values: Any) -> None:
        self.values = values
        self.left, self.deep, self.fresh = MAX_OPENED, 0, 0
        self._known: dict[Any, Written] = {}

    def shape(self, source: Source) -> Shape:
        """The shape of a source; () for a number."""
        return size(source[0][2]) if isinstance(source, tuple) else ()

    def of(self, source: Source, spots: Sequence[Spot]) -> Written:
        """The element of a source that stands at these spots of it."""
        if not isinstance(source, tuple):
            number = value(source)
            if number is None:
                raise Stuck
            return {(NONE, NONE): number} if number else {}
        made: Written = {}
        for coef, node, reg in source:
            made = plus(made, self.element(node, self._placed(node, reg, spots)), coef)
        return made

    def spread(self, source: Source, out: Shape, spots: Sequence[Spot]) -> Written:
        """The element of a source that is spread to a shape."""
        if not isinstance(source, tuple):
            return self.of(source, ())
        return self.of(source, self.narrow(self.shape(source), out, spots))

    def narrow(self, shape: Shape, out: Shape, spots: Sequence[Spot]) -> tuple[Spot, ...]:
        """Where in what is spread to `out`."""
        skip = len(out) - len(shape)
        if skip < 0:
            raise Stuck
        found: list[Spot] = []
        for dim, n in enumerate(shape):
            if n == out[skip + dim] and n != 1:
                found.append(spots[skip + dim])
            elif n == 1:
                found.append(("on", None, FIRST))
            else:
                raise Stuck
        return tuple(found)

    def element(self, node: int, spots: tuple[Spot, ...]) -> Written:
        """An element of a class."""
        key = (node, spots)
        if key in self._known:
            return self._known[key]
        self.left -= 1
        if self.left < 0 or self.deep > MAX_DEEP:
            raise Stuck
        item = self.values.defs[node]
        if item.dtype not in FLOATS:
            raise Stuck
        self.deep += 1
        try:
            made = self._opened(item, spots)
        except Stuck:
            made = None
        finally:
            self.deep -= 1
        kind = "value" if made is not None or defined(self.values, node) else "partial"
        self._known[key] = self.atom((kind, node, spots)) if made is None else made
        return self._known[key]

    def entry(self, source: Source, spots: Sequence[Spot]) -> Any:
        """Which element of which class is read, of any dtype: (class, spots).

        Of a class that only has another shape: (("view", class, sizes), spots), dims of size 1 left out.
        """
        if not isinstance(source, tuple) or len(source) != 1 or source[0][0] != 1:
            raise Stuck
        _, node, reg = source[0]
        found = self._placed(node, reg, spots)
        item = self.values.defs[node]
        while item.op == "view" and is_part(item.operands[0]) and item.operands[0][2] == 1:
            inner, outer, _ = item.operands[0]
            again = seen_as(size(outer), item.shape, found)
            if again is None:
                if item.free or not self.values.is_whole(inner, outer):
                    break
                pairs = [(n, spot) for n, spot in zip(item.shape, found, strict=True) if n != 1]
                return ("view", inner, tuple(n for n, _ in pairs)), tuple(spot for _, spot in pairs)
            found, node = self._placed(inner, outer, again), inner
            item = self.values.defs[node]
        return node, found

    def below(self, entry: Any, count: int) -> bool:
        """Is an entry an index of the Program's, into no more members? A rank's own steps say nothing."""
        node, spots = entry
        viewed = isinstance(node, tuple)
        node = node[1] if viewed else node
        shape = self.values.defs[node].shape
        for part, most in self.values.below.get(node, ()):
            inside = not viewed and all(
                spot[0] == "on" and spot[2].within(outer) is not None
                for spot, outer in zip(spots, part, strict=True)
            )
            if most <= count and (inside or all(at.is_whole(n) for at, n in zip(part, shape, strict=True))):
                return True
        return False

    def by(self, source: Source, spots: Sequence[Spot], count: int) -> Spot:
        """The place of a dim of this size that an entry tells."""
        return ("by", self.entry(source, spots), all_of(count))

    def hits_once(self, item: Any, pair: Any) -> bool:
        """Is a factor 1 at one member of what is summed over, and 0 at all others?"""
        atom, count = item
        if count != 1 or atom[0] != "is" or atom[1][:2] != ("on", pair[0]):
            return False
        if mentions(atom[2], (pair,)):
            return False
        return bool(atom[1][2] == all_of(pair[1]) and self.below(atom[2], pair[1]))

    def bound(self, count: int) -> tuple[Any, ...]:
        """New names for what is summed over."""
        self.fresh += count
        return tuple(("new", self.fresh - at) for at in range(count))

    def atom(self, what: Any) -> Written:
        return {(frozenset([(what, 1)]), NONE): ONE}

    def _placed(self, node: int, reg: Reg, spots: Sequence[Spot]) -> tuple[Spot, ...]:
        """Spots of a part as spots of its class."""
        item, found = self.values.defs[node], list[Spot]()
        for dim, (index, spot) in enumerate(zip(reg, spots, strict=True)):
            if dim in item.free:
                found.append(ANY)
            elif spot[0] == "on":
                if spot[2].stop > len(index):
                    raise Stuck
                found.append(on_axis(spot[1], index.select(spot[2])))
            elif spot[0] == "by" and spot[2].stop <= len(index):
                found.append(("by", spot[1], index.select(spot[2])))
            else:
                raise Stuck
        return tuple(found)

    def _opened(self, item: Any, spots: tuple[Spot, ...]) -> Written | None:
        if item.op == "full":
            number = value(item.attrs["fill_value"])
            if number is None:
                return None
            return {(NONE, NONE): number} if number else {}
        if item.form is not None:
            made: Written = {}
            for part, by in item.form.items():
                inner = self.values.defs[part]
                pairs = zip(inner.shape, item.shape, strict=True)
                if any(n != wanted and dim not in inner.free for dim, (n, wanted) in enumerate(pairs)):
                    return None
                free = [ANY if dim in inner.free else spot for dim, spot in enumerate(spots)]
                made = plus(made, self.element(part, tuple(free)), by)
            return made
        if item.out or item.op not in OPENERS:
            return None
        return OPENERS[item.op](self, item.attrs, [part_of(o) for o in item.operands], item.shape, spots)

    # sums along a dim ------------------------------------------------------------------------------------

    def along(self, source: Source, spots: Sequence[Spot], dims: Sequence[int]) -> tuple[Written, Any]:
        """The element with these dims bound, and what they are bound by, with the number of each."""
        shape, names = self.shape(source), self.bound(len(dims))
        found = list(spots)
        for dim, label in zip(dims, names, strict=True):
            if not shape[dim]:
                raise Stuck
            found[dim] = ("on", label, all_of(shape[dim]))
        return self.of(source, found), tuple(zip(names, (shape[dim] for dim in dims), strict=True))

    def log_sum(self, made: Written, names: Any) -> Written:
        """log(sum(exp)) over what is bound: what is not bound leaves it, and what only repeats is counted."""
        inside = {key: coef for key, coef in made.items() if mentions(key, names)}
        rest = {key: coef for key, coef in made.items() if key not in inside}
        if not inside:
            raise Stuck
        seen = tuple(pair for pair in names if mentions(tuple(inside), (pair,)))
        for pair in names:
            if pair not in seen and pair[1] != 1:
                rest = plus(rest, self.atom(("log", pair[1])), ONE)
        return plus(rest, self.atom(("lse", *closed(frozenset(inside.items()), seen))), ONE)

    def summed(self, made: Written, names: Any) -> Written:
        """The sum over what is bound, monomial by monomial."""
        total: Written = {}
        for (factors, exponent), coef in made.items():
            seen = tuple(pair for pair in names if mentions((factors, exponent), (pair,)))
            for pair in names:
                coef = coef if pair in seen else coef * pair[1]
            held = frozenset(item for item in factors if mentions(item, seen))
            powers = frozenset(item for item in exponent if mentions(item, seen))
            rest: Written = {(factors - held, exponent - powers): coef}
            if (
                held
                and not powers
                and len(held) == len(seen) == 1
                and self.hits_once(next(iter(held)), seen[0])
            ):
                pass  # [b = i] over all of a dim that i is an index of
            elif powers and not held:
                rest = times(rest, exp_of(self.atom(("lse", *closed(powers, seen)))))
            elif seen:
                rest = times(rest, self.atom(("sum", *closed((held, powers), seen))))
            total = plus(total, rest, ONE)
        return total
