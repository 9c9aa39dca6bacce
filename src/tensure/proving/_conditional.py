"""Values that are right only where a rank has what an index points to, and what is left of them by its mask.

A rank that holds rows lo..hi of a table looks up where(mask, 0, i - lo) for mask = (i < lo) | (i >= hi): what
it makes of these rows equals what the Program makes of all of them wherever lo <= i < hi, and is something
else elsewhere. Its twin is the Program's value. Masked, or multiplied with what is masked alike, it is an
addend of that value, letter `?i`: kept where the index is in lo..hi, and 0 elsewhere; over ranks that have
all rows these add up. Only steps that have a value for every number lie between, so that 0 times it is 0.
Which entry of i an element depends on is an array of their numbers, moved as the value is: at most 2^22.
Knows no plan.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

import numpy as np

from tensure.program import Op, TensorType

from ._contraction import TERMS, terms_of
from ._index import shape_of, whole, whole_region
from ._limit import Limit, Share, limited
from ._linear import alone
from ._masked import _all, _bounds
from ._masked_gather import _indices
from ._masked_scatter import _is_blank
from ._relation import ONE, Relation, Term
from ._repeats import order_of
from ._rules import ELEMENTWISE
from ._steps import Call, Held, Number, Operand, bound
from ._sums import Sums
from ._values import FLOATS, Value, Values, is_part

MAX_NUMBERS: Final = 1 << 22
EVERYWHERE: Final = frozenset(
    "add sub rsub mul neg abs exp sin cos tanh sigmoid silu gelu relu leaky_relu erf square maximum "
    "minimum clamp silu_backward gelu_backward sigmoid_backward tanh_backward add_n hardtanh hardswish "
    "hardsigmoid".split()
)
"""Elementwise steps that have a value for every number."""
Numbers: TypeAlias = Any
"""An array of integers in the shape of a value."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The entries lo..hi of an index tensor: its value and the bounds."""

    node: int
    lo: int
    hi: int


@dataclass(frozen=True, slots=True)
class Twin:
    """All of the Program's value that a rank's is where the choice holds; which entry each element asks."""

    term: Term
    choice: Choice
    numbers: Numbers


class Conditional:
    """The twins of all values so far, and the ranges of index tensors."""

    def __init__(self, values: Sums) -> None:
        self._values = values
        self._twins: dict[int, Twin] = {}
        self._ranges: dict[int, int] = {}

    def take_range(self, step: Op, operands: Sequence[Operand]) -> None:
        """Note that an index tensor of a step of the Program that counts from 0 is below a size."""
        if step.op != "gather":
            return
        table, index = operands[:2]
        term = index.relation.single if isinstance(index, Held) else None
        if term is None or not isinstance(table, Held) or not self._values.is_whole(term.node, term.region):
            return
        dim = step.attr("dim")
        size = table.type.shape[dim % len(table.type.shape)] if isinstance(dim, int) else 0
        self._ranges[term.node] = min(size, self._ranges.get(term.node, size))

    # twins -----------------------------------------------------------------------------------------------

    def take(self, call: Call, terms: list[Term | Number], node: int) -> None:
        """Give a new value its twin, if it is made of what has one."""
        value = self._values.values[node]
        if value.out or value.type.dtype not in FLOATS or math.prod(value.type.shape) > MAX_NUMBERS:
            return
        if call.step.op == "index":
            twin = self._looked_up(call, terms)
        else:
            twins = [self._twin(item) for item in terms]
            twin = self._made(call, terms, twins) if any(twins) else None
        if twin is not None:
            self._twins[node] = twin

    def _twin(self, item: Term | Number) -> Twin | None:
        if not isinstance(item, Term) or item.limit is not None:
            return None
        found = self._twins.get(item.node)
        whole_of = found is not None and item.region == whole_region(
            self._values.values[item.node].type.shape
        )
        return found if whole_of else None

    def _looked_up(self, call: Call, terms: list[Term | Number]) -> Twin | None:
        values = self._values
        if len(terms) != 2 or not all(isinstance(term, Term) and term.plain for term in terms):
            return None
        table, places = (term for term in terms if isinstance(term, Term))
        found = _indices(values, (places.node, places.region, ONE), None)
        if found is None or not table.region or len(places.region) == 0:
            return None
        _, rows, (node, outer, _), lo, hi = found
        full = whole_region(values.values[node].type.shape)
        if outer != full or rows != full or node not in self._ranges:
            return None
        source = values.values[table.node]
        every = whole_region(source.type.shape)
        if table.region != (((lo, hi),), *every[1:]) or hi > self._ranges[node]:
            return None
        if self._ranges[node] > source.type.shape[0]:
            return None
        wide = Held(source.type, Relation((Term(table.node, every),)))
        index = Held(values.values[node].type, Relation((Term(node, full),)))
        made = self._again(call, [wide, index])
        if made is None:
            return None
        shape = shape_of(full)
        numbers = np.arange(math.prod(shape)).reshape(*shape, *(1 for _ in every[1:]))
        wanted = call.types[0].shape
        return Twin(made, Choice(node, lo, hi), np.broadcast_to(numbers, wanted))

    def _made(self, call: Call, terms: list[Term | Number], twins: Sequence[Twin | None]) -> Twin | None:
        choices = {twin.choice for twin in twins if twin is not None}
        numbers = _through(call, [None if twin is None else twin.numbers for twin in twins])
        if len(choices) != 1 or numbers is None:
            return None
        operands = self._replaced(call, terms, twins)
        made = None if operands is None else self._again(call, operands)
        return None if made is None else Twin(made, choices.pop(), numbers)

    def _replaced(
        self, call: Call, terms: Sequence[Term | Number], twins: Sequence[Twin | None]
    ) -> list[Operand] | None:
        """The operands with every twin in the place of what it is one of."""
        operands: list[Operand] = []
        for item, term, twin in zip(call.operands, terms, twins, strict=True):
            if not isinstance(item, Held) or not isinstance(term, Term):
                operands.append(item)
                continue
            made = term if twin is None else replace(twin.term, coef=twin.term.coef * term.coef)
            operands.append(Held(item.type, Relation((made,))))
        return operands

    def _again(self, call: Call, operands: list[Operand]) -> Term | None:
        """What the step makes of other operands: all of one value."""
        again = Call(call.step, bound(call.step, operands), operands, call.types, None, False)
        term = self._values.made(again)[0].relation.single
        fits = term is not None and term.limit is None and self._values.is_whole(term.node, term.region)
        return term if fits else None

    # what is left by a mask --------------------------------------------------------------------------------

    def kept(self, call: Call, terms: list[Term | Number]) -> Held | None:
        """An addend: what a mask leaves of a value that has a twin, or of its product with what is masked."""
        if call.own or len(call.types) != 1 or call.types[0].dtype not in FLOATS:
            return None
        twins = [self._twin(item) for item in terms]
        if not any(twins):
            return None
        if call.step.op in ("where", "masked_fill"):
            made = self._masked(call.step.op, terms)
            return None if made is None else Held(call.types[0], Relation((made,)))
        for at in sorted(alone(call.step.op, call.given, call.operands)):
            item = terms[at]
            addend = self._addend(item) if isinstance(item, Term) and twins[at] is None else None
            seen = None if addend is None else self._numbers(addend)
            if addend is None or seen is None:
                continue
            choice, numbers = seen
            if any(twin is not None and twin.choice != choice for twin in twins):
                continue
            held = [None if twin is None else twin.numbers for twin in twins]
            held[at] = numbers
            if not _agree(call, held):
                continue
            operands = self._replaced(call, terms, twins)
            if operands is not None:
                operands[at] = Held(call.operands[at].type, Relation((addend,)))  # type: ignore[union-attr]
                return self._values.general(replace(call, operands=operands))[0]
        return None

    def _masked(self, op: str, terms: list[Term | Number]) -> Term | None:
        """where(mask, 0, x) of all of a value or of its twin."""
        mask, blank, kept = terms if op == "where" else (terms[1], terms[2], terms[0])
        blank_ok = blank == 0 and blank is not None and not isinstance(blank, (Term, bool))
        if not isinstance(mask, Term) or not isinstance(kept, Term) or not blank_ok or kept.limit is not None:
            return None
        choice = self._choice(mask)
        twin = self._twin(kept)
        if twin is not None:
            if twin.choice != choice or not np.array_equal(
                twin.numbers.reshape(-1), np.arange(twin.numbers.size)
            ):
                return None
            kept = replace(twin.term, coef=twin.term.coef * kept.coef)
        return None if choice is None else self._left(kept, choice)

    def _left(self, term: Term, choice: Choice) -> Term | None:
        shape = self._values.values[term.node].type.shape
        same = (
            shape == self._values.values[choice.node].type.shape and not self._values.values[term.node].free
        )
        if not same or term.region != whole_region(shape) or choice.node not in self._ranges:
            return None
        share = Share(f"?{choice.node}", self._ranges[choice.node], ((choice.lo, choice.hi),))
        return replace(term, limit=limited((share,), ()))

    def _choice(self, mask: Term) -> Choice | None:
        """All entries of an index tensor that a mask (i < lo) | (i >= hi) leaves."""
        values = self._values
        found = _bounds(values, mask.node)
        if found is None or mask.region != whole_region(values.values[mask.node].type.shape):
            return None
        (node, region, coef), lo, hi = found
        less = values.values[node]
        if less.op == "sub" and less.given.get("alpha", 1) == 1 and is_part(less.operands[0]):
            number = less.operands[1]
            if isinstance(number, tuple) and number[:2] == ("number", "int"):
                shift = int(str(number[2]))
                node, region, coef = less.operands[0]  # type: ignore[misc]
                lo, hi = lo + shift, hi + shift
        if coef != 1 or region != whole_region(values.values[node].type.shape) or lo >= hi:
            return None
        return Choice(node, lo, hi) if hi <= self._ranges.get(node, 0) and lo >= 0 else None

    def _addend(self, term: Term) -> Term | None:
        """What is masked, seen as an addend: as it is claimed, or through views and transposes."""
        if term.limit is not None:
            return term
        value = self._values.values[term.node]
        if term.region != whole_region(value.type.shape) or value.type.dtype not in FLOATS:
            return None
        if value.op in ("where", "masked_fill"):
            return self._raw(value, term)
        if value.op not in ("view", "permute") or not _all(self._values, value.operands[0]):
            return None
        (part,) = value.operands
        inner = self._addend(Term(part[0], part[1]))  # type: ignore[index]
        if inner is None:
            return None
        held = Held(TensorType(shape_of(inner.region), value.type.dtype), Relation((inner,)))
        step = Op(value.op, (), (), tuple(value.given.items()))
        again = Call(step, bound(step, [held]), [held], [value.type], None, False)
        made = self._values.made(again)[0].relation.single
        return None if made is None else replace(made, coef=made.coef * term.coef)

    def _raw(self, value: Value, term: Term) -> Term | None:
        mask, blank, kept = (
            value.operands
            if value.op == "where"
            else (value.operands[1], value.operands[2], value.operands[0])
        )
        if not _is_blank(self._values, blank) or not isinstance(mask, tuple) or not isinstance(kept, tuple):
            return None
        if not is_part(mask) or not is_part(kept):
            return None
        choice = self._choice(Term(mask[0], mask[1]))
        return None if choice is None else self._left(Term(kept[0], kept[1], kept[2] * term.coef), choice)

    def _numbers(self, term: Term) -> tuple[Choice, Numbers] | None:
        """The choice an addend is left by, and which entry every element of it asks."""
        return None if term.limit is None else self._of_limit(self._values, term.node, term.limit)

    def _of_limit(self, values: Values, node: int, limit: Limit) -> tuple[Choice, Numbers] | None:
        value = values.values[node]
        if limit.shares:
            share = limit.shares[0]
            if len(limit.shares) != 1 or limit.through or not share.letter.startswith("?"):
                return None
            ((lo, hi), *more) = share.index
            numbers: Numbers = np.arange(math.prod(value.type.shape)).reshape(value.type.shape)
            return None if more else (Choice(int(share.letter[1:]), lo, hi), numbers)
        if len(limit.through) != 1 or value.op == "+":
            return None
        ((at, inner),) = limit.through
        part = value.operands[at]
        if not isinstance(part, tuple) or not _all(values, (*part[:2], ONE)):
            return None
        found = self._of_limit(values, part[0], inner)
        if found is None:
            return None
        held = [
            Held(TensorType(shape_of(p[1]), value.type.dtype), Relation((Term(p[0], p[1]),)))
            if isinstance(p, tuple) and is_part(p)
            else None
            for p in value.operands
        ]
        step = Op(value.op, (), (), ())
        call = Call(step, dict(value.given), list(held), [value.type], None, True)
        numbers = _through(call, [found[1] if k == at else None for k in range(len(held))])
        return None if numbers is None else (found[0], numbers)

    def put(self, call: Call, terms: list[Term | Number]) -> Held | None:
        """Rows lo..hi of what is added up by an index, of an addend left by that index."""
        if call.own or call.step.op != "index_put" or not call.given["accumulate"] or len(terms) != 3:
            return None
        zero, source, places = terms
        if not isinstance(zero, Term) or not isinstance(source, Term) or not isinstance(places, Term):
            return None
        values = self._values
        seen = None if source.limit is None else self._numbers(source)
        found = _indices(values, (places.node, places.region, ONE), None) if places.plain else None
        if seen is None or found is None or not _is_blank(values, (zero.node, zero.region, zero.coef)):
            return None
        choice, numbers = seen
        _, rows, (node, outer, _), lo, hi = found
        full = whole_region(values.values[node].type.shape)
        rank = len(full)
        spots = np.arange(math.prod(shape_of(full))).reshape(
            *shape_of(full), *(1 for _ in numbers.shape[rank:])
        )
        if (
            choice != Choice(node, lo, hi)
            or rows != full
            or outer != full
            or hi - lo != call.types[0].shape[0]
        ):
            return None
        if not np.array_equal(np.broadcast_to(spots, numbers.shape), numbers):
            return None
        size, kind = self._ranges[node], call.types[0].dtype
        wide = TensorType((size, *call.types[0].shape[1:]), kind)
        table = Held(wide, values.filled(0.0, wide))
        plain = Held(call.operands[1].type, Relation((replace(source, limit=None),)))  # type: ignore[union-attr]
        index = Held(values.values[node].type, Relation((Term(node, full),)))
        operands: list[Operand] = [table, plain, index]
        again = Call(call.step, bound(call.step, operands), operands, [wide], None, False)
        made = values.known(again)
        if made is None or made.region[0] != whole(size) or made.limit is not None:
            return None
        return Held(call.types[0], Relation((replace(made, region=(((lo, hi),), *made.region[1:])),)))


# --- which entry each element asks ------------------------------------------------------------------------


def _through(call: Call, numbers: Sequence[Numbers | None]) -> Numbers | None:
    """Of a result, from those of its operands; None where an element would ask several."""
    op, out = call.step.op, call.types[0].shape
    if op == "permute" and numbers[0] is not None:
        return numbers[0].transpose(order_of(call.given, numbers[0].ndim))
    if op == "view" and numbers[0] is not None:
        return numbers[0].reshape(out)
    if op == "sum" and numbers[0] is not None:
        dims, keep = call.given["dim"], call.given["keepdim"]
        thin = _first(numbers[0], dims)
        return None if thin is None else np.broadcast_to(thin if keep else thin.reshape(out), out)
    aligned = _aligned(call, numbers)
    if aligned is None:
        return None
    arrays, contracted = aligned
    first = _first(arrays[0], contracted)
    if first is None or not _agree(call, numbers):
        return None
    kept = [dim for dim in range(first.ndim) if dim not in contracted]
    return np.broadcast_to(first.transpose([*contracted, *kept]).reshape([first.shape[d] for d in kept]), out)


def _agree(call: Call, numbers: Sequence[Numbers | None]) -> bool:
    """Whether all operands ask the same entry wherever they meet."""
    aligned = _aligned(call, numbers)
    if aligned is None:
        return False
    arrays, _ = aligned
    pairs = [np.broadcast_arrays(arrays[0], other) for other in arrays[1:]]
    return all(np.array_equal(one, other) for one, other in pairs)


def _aligned(call: Call, numbers: Sequence[Numbers | None]) -> tuple[list[Numbers], tuple[int, ...]] | None:
    """The arrays over all places where operands meet, and which of their dims are summed over."""
    op, out = call.step.op, call.types[0].shape
    held = [item for item in numbers if item is not None]
    if op in ELEMENTWISE:
        if op not in EVERYWHERE:
            return None
        return [item.reshape((*(1 for _ in range(len(out) - item.ndim)), *item.shape)) for item in held], ()
    shapes = [item.type.shape for item in call.operands if isinstance(item, Held)]
    if op not in TERMS or len(shapes) != len([item for item in call.operands if item is not None]):
        return None
    found = terms_of(op, call.given, [len(shape) for shape in shapes])
    if found is None or len(shapes) != 2:
        return None
    terms, kept = found
    letters = [*kept, *sorted({c for term in terms for c in term if c not in kept})]
    arrays: list[Numbers] = []
    for term, item in zip(terms, numbers, strict=False):
        if item is None:
            continue
        order = sorted(range(len(term)), key=[letters.index(c) for c in term].__getitem__)
        moved = item.transpose(order)
        there = sorted(term, key=letters.index)
        arrays.append(moved.reshape([moved.shape[there.index(c)] if c in there else 1 for c in letters]))
    return arrays, tuple(range(len(kept), len(letters)))


def _first(numbers: Numbers, dims: Sequence[int]) -> Numbers | None:
    """The first along dims, where all along them are the same."""
    for dim in dims:
        thin = numbers.take([0], axis=dim)
        if not np.array_equal(np.broadcast_to(thin, numbers.shape), numbers):
            return None
        numbers = thin
    return numbers
