"""Steps that only cut, join or reshape: parts of values stay parts of the same values where they can.

Knows no rules but those of moves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any, Final

from tensure.program import Op, TensorType

from ._index import Region, Shape, clamped, cut, joined, select, shape_of, whole_region
from ._limit import held_itself, limited
from ._movement import regrouped, slice_of, viewed_whole
from ._padded import stretches, unpadded
from ._relation import ONE, Relation, Term, narrowed, total
from ._repeats import order_of
from ._steps import Call, Held, Operand, bound
from ._sums import Sums
from ._values import is_part

JOINS: Final = frozenset(["cat", "constant_pad_nd"])


class Pieces(Sums):
    """What moves make of relations, before any value is looked up."""

    def passes(self, call: Call) -> Relation | None:
        """Steps that make no new value: copies, slices of a dim, parts joined again."""
        op, given, first = call.step.op, call.given, call.operands[0] if call.operands else None
        if not isinstance(first, Held):
            return None
        if op == "copy" or (op == "_to_copy" and call.types[0].dtype == first.type.dtype):
            return first.relation
        if op in ("view", "expand") and call.types[0] == first.type:
            return first.relation
        if op == "permute" and given["dims"] == tuple(range(len(call.types[0].shape))):
            return first.relation
        if op == "view" and (back := self._each_viewed_back(first, call.types[0])) is not None:
            return back
        if op == "slice" and first.type.shape:
            terms = [(term, slice_of(given, term.region)) for term in first.relation.terms]
            kept = tuple(replace(term, region=region) for term, region in terms if region is not None)
            fits = len(kept) == len(terms) and shape_of(kept[0].region) == call.types[0].shape
            return self.tidy(Relation(kept)) if fits else None
        parts = [item for item in call.operands if isinstance(item, Held)]
        if op == "cat" and len({item.type.dtype for item in parts}) == 1:
            return self.merge(parts, given["dim"] % len(call.types[0].shape))
        if op == "slice_scatter" and given["step"] == 1 and len(parts) == 2:
            return self._written_over(parts[0], parts[1], given)
        return None

    def _written_over(self, target: Held, source: Held, given: Mapping[str, Any]) -> Relation | None:
        """A slice replaced by a part of the very value that is around it, its own for example."""
        shape = target.type.shape
        dim = given["dim"] % len(shape)
        start, stop = clamped(given["start"], given["end"], shape[dim])
        if target.type.dtype != source.type.dtype or stop - start != source.type.shape[dim]:
            return None
        around = self.piece(target, dim, 0, start), self.piece(target, dim, stop, shape[dim])
        return self.merge([around[0], source, around[1]], dim)

    def permuting(self, call: Call) -> Call:
        """A transpose in the one spelling; of a transpose, as one of what was transposed first."""
        (held,) = call.operands
        assert isinstance(held, Held)
        dims = tuple(order_of(call.given, len(held.type.shape)))
        while (term := held.relation.single) is not None and self.values[term.node].op == "permute":
            if held_itself(term.limit):
                break
            value = self.values[term.node]
            (operand,) = value.operands
            assert isinstance(operand, tuple)
            node, outer, coef = operand
            inner: tuple[int, ...] = value.given["dims"]
            back = [inner.index(dim) for dim in range(len(inner))]
            region = tuple(select(index, term.region[at]) for index, at in zip(outer, back, strict=True))
            limit = None if term.limit is None else dict(term.limit.through)[0]
            dims = tuple(inner[dim] for dim in dims)
            found = Term(node, self.spelled(node, region), term.coef * coef, limit)
            held = Held(TensorType(shape_of(region), held.type.dtype), Relation((found,)))
        step = Op("permute", call.step.args, call.step.outs, (("dims", dims),), call.step.note)
        return replace(call, step=step, given={"dims": dims}, operands=[held])

    def moving_ones(self, call: Call) -> Relation | None:
        """A transpose that moves nothing but dims of size 1 as a view; None for any other step."""
        held = call.operands[0] if call.step.op == "permute" and not call.own else None
        term = held.relation.single if isinstance(held, Held) else None
        if not isinstance(held, Held) or term is None:
            return None
        if not self._is_joined(term.node):
            return None  # a rank's own: what it is part for part (`_conditional`) is told by its transposes
        order = [dim for dim in order_of(call.given, len(held.type.shape)) if held.type.shape[dim] != 1]
        return self._as(held, call.types[0].shape, False).relation if order == sorted(order) else None

    def _is_joined(self, node: int) -> bool:
        """Whether a value is the Program's or a join, or a view of one."""
        value = self.values[node]
        part = value.operands[0] if value.op == "view" else None
        if node < self.first_own or value.op == "cat":
            return True
        return isinstance(part, tuple) and is_part(part) and self._is_joined(part[0])

    def unmoved(self, held: Held) -> Held:
        """A part of what was transposed and viewed as the part of what that was before, if it is one."""
        term, dtype = held.relation.single, held.type.dtype
        while term is not None and (value := self.values[term.node]).op in ("view", "permute"):
            operand, shape = value.operands[0], shape_of(term.region)
            if not isinstance(operand, tuple) or value.free or held_itself(term.limit):
                return held
            node, outer, coef = operand
            if value.op == "view":
                places = regrouped(term.region, value.type.shape, shape_of(outer))
            else:
                dims: tuple[int, ...] = value.given["dims"]
                places = tuple(term.region[dims.index(dim)] for dim in range(len(dims)))
                long = [dim for dim, size in zip(dims, shape, strict=True) if size != 1]
                places = places if long == sorted(long) else None  # else elements change their order
            if places is None:
                return held
            region = tuple(select(index, place) for index, place in zip(outer, places, strict=True))
            limit = None if term.limit is None else dict(term.limit.through)[0]
            term = Term(node, self.spelled(node, region), term.coef * coef, limit)
        if term is None or shape_of(term.region) != held.type.shape:
            return held
        return Held(TensorType(held.type.shape, dtype), Relation((term,)))

    def stacking(self, call: Call) -> Call:
        """A stack as a join of the same tensors with a dim of size 1 more."""
        shape = call.types[0].shape
        dim = call.given["dim"] % len(shape)
        thin = (*shape[:dim], 1, *shape[dim + 1 :])
        parts = [self._as(item, thin, call.own) for item in call.operands if isinstance(item, Held)]
        step = Op("cat", call.step.args, call.step.outs, (("dim", dim),), call.step.note)
        return replace(call, step=step, given={"dim": dim}, operands=list(parts))

    def selecting(self, call: Call) -> Call:
        """One index of a dim as a slice seen without that dim."""
        (held,) = call.operands
        assert isinstance(held, Held)
        dim, at = call.given["dim"] % len(held.type.shape), call.given["index"]
        at = at + held.type.shape[dim] if at < 0 else at
        shape = call.types[0].shape
        step = Op("view", call.step.args, call.step.outs, (("size", shape),), call.step.note)
        return replace(call, step=step, given={"size": shape}, operands=[self.piece(held, dim, at, at + 1)])

    def _as(self, held: Held, shape: Shape, own: bool) -> Held:
        """The same elements in another shape."""
        step = Op("view", (), (), (("size", shape),))
        found = TensorType(shape, held.type.dtype)
        return self.made(Call(step, bound(step, [held]), [held], [found], None, own))[0]

    def scalars(self, call: Call) -> list[tuple[Fraction, Relation]] | None:
        """The terms of a sum over tensors that were stacked, each seen as it was before."""
        (held,) = call.operands
        dims, shape = call.given["dim"], call.types[0].shape
        term = held.relation.single if isinstance(held, Held) else None
        if not isinstance(held, Held) or term is None or len(dims) != 1 or call.given["keepdim"]:
            return None
        (dim,) = dims
        size = held.type.shape[dim]
        joined = self.values[term.node]
        if call.given["dtype"] is not None or joined.type.shape[dim] != size or dim in joined.free:
            return None
        if size > 1 and (joined.op != "cat" or len(joined.operands) != size or joined.given["dim"] != dim):
            return None
        parts: list[tuple[Fraction, Relation]] = []
        for at in range(size):
            thin = self.piece(held, dim, at, at + 1)
            seen = self._viewed_back(thin, TensorType(shape, held.type.dtype))
            single = None if seen is None else seen.single
            inner = thin.relation.single
            if seen is None or single is None or inner is None or self.values[inner.node].op != "view":
                return None
            operand = self.values[inner.node].operands[0]
            if (
                not isinstance(operand, tuple)
                or operand[0] != single.node
                or shape_of(single.region) != shape
            ):
                return None
            parts.append((Fraction(1), seen))
        return parts

    def piece(self, held: Held, dim: int, lo: int, hi: int) -> Held:
        """Members lo..hi of a dim."""
        indexes = {term.region[dim]: cut(term.region[dim], lo, hi) for term in held.relation.terms}
        shape = (*held.type.shape[:dim], hi - lo, *held.type.shape[dim + 1 :])
        relation = narrowed(held.relation, dim, indexes)
        return Held(TensorType(shape, held.type.dtype), self.tidy(relation))

    def join(self, parts: list[Held], dim: int) -> Relation:
        """Tensors one after another along a dim: a region again where they are parts of one value."""
        merged = self.merge(parts, dim)
        if merged is not None:
            return merged
        step = Op("cat", (), (), (("dim", dim),))
        types = [part.type for part in parts]
        shape = list(types[0].shape)
        shape[dim] = sum(found.shape[dim] for found in types)
        want = TensorType(tuple(shape), types[0].dtype)
        operands: list[Operand] = list(parts)
        return self.made(Call(step, bound(step, operands), operands, [want], None, False))[0].relation

    def merge(self, parts: list[Held], dim: int) -> Relation | None:
        """Tensors one after another as regions of the same values, or None."""
        parts = [part for part in parts if part.type.shape[dim]] or parts[:1]
        first = parts[0].relation
        if any(len(part.relation.terms) != len(first.terms) for part in parts):
            return None
        columns = list(zip(*(part.relation.terms for part in parts), strict=True))
        if any(len({_but(term, dim) for term in column}) != 1 for column in columns):
            return None
        return Relation(
            tuple(
                replace(
                    column[0],
                    region=self.spelled(
                        column[0].node,
                        (
                            *column[0].region[:dim],
                            joined(term.region[dim] for term in column),
                            *column[0].region[dim + 1 :],
                        ),
                    ),
                )
                for column in columns
            )
        )

    def tidy(self, relation: Relation) -> Relation:
        """Parts of joined or padded values as parts of what was joined or padded."""
        if all(self.values[term.node].op not in JOINS for term in relation.terms):
            return relation
        return Relation(tuple(self._tidied(term) for term in relation.terms))

    def _tidied(self, term: Term) -> Term:
        while (value := self.values[term.node]).op in JOINS and not held_itself(term.limit):
            inner = self._unpadded(term) if value.op == "constant_pad_nd" else self._unjoined(term)
            if inner is None:
                return term
            term = inner
        return term

    def _inner(self, term: Term, at: int, places: Region) -> Term:
        """The part at `places` of an operand that a joined or padded value was made from."""
        operand = self.values[term.node].operands[at]
        assert isinstance(operand, tuple)
        node, outer, coef = operand
        region = tuple(select(index, place) for index, place in zip(outer, places, strict=True))
        limit = None if term.limit is None else dict(term.limit.through).get(at)
        return Term(node, self.spelled(node, region), term.coef * coef, limit)

    def _unpadded(self, term: Term) -> Term | None:
        """A part without padding as one of what was padded."""
        value = self.values[term.node]
        operand = value.operands[0]
        if not isinstance(operand, tuple) or value.free:
            return None
        places = unpadded(value.given["pad"], shape_of(operand[1]), term.region)
        return None if places is None else self._inner(term, 0, places)

    def _unjoined(self, term: Term) -> Term | None:
        """A part of joined values that is of one of them, or of several that are parts of one value."""
        value = self.values[term.node]
        dim = value.given["dim"] % len(term.region)
        widths = [shape_of(item[1])[dim] if isinstance(item, tuple) else 0 for item in value.operands]
        runs = stretches(term.region[dim], widths)
        if not runs or (len(runs) > 1 and self.is_whole(term.node, term.region)):
            return None
        dtype = value.type.dtype
        parts: list[Held] = []
        for at, run in runs:
            region = (*term.region[:dim], run, *term.region[dim + 1 :])
            inner = self._tidied(self._inner(term, at, region))
            parts.append(Held(TensorType(shape_of(inner.region), dtype), Relation((inner,))))
        merged = parts[0].relation if len(parts) == 1 else self.merge(parts, dim)
        return None if merged is None else merged.single

    def _each_viewed_back(self, held: Held, found: TensorType) -> Relation | None:
        """A view of a sum as the sum of what each of its terms is then; None where one is no such view."""
        terms = held.relation.terms
        if len(terms) == 1:
            return self._viewed_back(held, found)
        seen = [self._viewed_back(Held(held.type, Relation((term,))), found) for term in terms]
        if any(item is None or item.shape != found.shape for item in seen):
            return None
        summed = total((ONE, self.tidy(item)) for item in seen if item is not None)
        return None if summed is None else summed

    def _viewed_back(self, held: Held, found: TensorType) -> Relation | None:
        """A view of a view, as what was viewed first or as a view of that."""
        term = held.relation.single
        if term is None or held_itself(term.limit):
            return None
        if self.values[term.node].op == "cat":
            return self._viewed_cat(term, found)
        if self.values[term.node].op != "view":
            return None
        value = self.values[term.node]
        (operand,) = value.operands
        assert isinstance(operand, tuple)
        node, outer, coef = operand
        places = regrouped(term.region, value.type.shape, shape_of(outer))
        if places is None:
            return None
        region = tuple(select(index, place) for index, place in zip(outer, places, strict=True))
        limit = None if term.limit is None else dict(term.limit.through)[0]
        relation = Relation((Term(node, self.spelled(node, region), term.coef * coef, limit),))
        inner = Held(TensorType(shape_of(region), held.type.dtype), relation)
        if inner.type.shape == found.shape:
            return relation
        full = whole_region(shape_of(outer))
        lifted, again = self._seen_whole(term, node, found)
        if again is not None and lifted is not None and outer == full and shape_of(again) == found.shape:
            # The whole seen in a shape that it has elsewhere, or that this part of it suggests.
            all_of = Held(TensorType(shape_of(outer), held.type.dtype), Relation((Term(node, outer),)))
            seen = self._as(all_of, lifted, True).relation.single
            if seen is not None and self.values[seen.node].op == "view":
                through = limited((), [] if limit is None else [(0, limit)])
                part = self.spelled(seen.node, again)
                return Relation((Term(seen.node, part, term.coef * coef * seen.coef, through),))
        step = Op("view", (), (), (("size", found.shape),))
        own = self.is_whole(node, region)
        return self.made(Call(step, bound(step, [inner]), [inner], [found], None, own))[0].relation

    def _seen_whole(self, term: Term, node: int, found: TensorType) -> tuple[Shape | None, Region | None]:
        """The shape of the whole that a view of a part is a part of, and which.

        One head on a rank looks like features of one head: what the whole is viewed as elsewhere comes first.
        """
        shape = self.values[term.node].type.shape
        views = [self.values[at].type.shape for at in self.candidates.get(("view", (node, ONE)), ())]
        for whole in (*views, viewed_whole(term.region, shape, found.shape)):
            if whole is not None and math.prod(whole) == math.prod(shape):
                again = regrouped(term.region, shape, whole)
                if again is not None and shape_of(again) == found.shape:
                    return whole, again
        return None, None

    def _viewed_cat(self, term: Term, found: TensorType) -> Relation | None:
        """Parts joined along the outermost dim, viewed as the same parts joined along a dim further in."""
        value = self.values[term.node]
        rank, dim = len(value.type.shape), value.given["dim"] % len(value.type.shape)
        outer = next((at for at, size in enumerate(found.shape) if size != 1), 0)
        limits = {} if term.limit is None else dict(term.limit.through)
        if any(size != 1 for size in value.type.shape[:dim]) or not self.is_whole(term.node, term.region):
            return None
        parts: list[Held] = []
        for at, operand in enumerate(value.operands):
            assert isinstance(operand, tuple)
            node, region, coef = operand
            shape = shape_of(region)
            if len(found.shape) != rank or not _slab(shape, found.shape, outer):
                return None
            relation = Relation((Term(node, region, coef * term.coef, limits.get(at)),))
            parts.append(Held(TensorType(shape, found.dtype), relation))
        return self.join(parts, outer)


def _slab(part: Shape, whole: Shape, dim: int) -> bool:
    return (*part[:dim], 0, *part[dim + 1 :]) == (*whole[:dim], 0, *whole[dim + 1 :])


def _but(term: Term, dim: int) -> tuple[object, ...]:
    return (term.node, term.coef, term.limit, term.region[:dim], term.region[dim + 1 :])
