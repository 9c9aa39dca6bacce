"""The checker's spellings: a step as one of several that say the same, views as parts of what was viewed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from tensure.program import Op

from ._check_index import FIRST, selected
from ._check_moves import MOVES, regrouped
from ._check_ops import REDUCTIONS, shapes_of
from ._check_piece import ONE, Shape, whole
from ._check_sums import CheckSums, Rel, Term, but, held_itself, is_rel, size, sliced

MAX_PARTS: Final = 8
"""Parts of a sum of which a view is opened."""


class CheckSpelled(CheckSums):
    """How a step is told, before it makes anything."""

    def make(self, step: Op, operands: Sequence[Any]) -> list[Rel]:
        """What an op makes; `CheckValues` knows."""
        raise NotImplementedError

    def opened(self, rel: tuple[Term, ...]) -> tuple[Term, ...]:
        """Every value that is a sum as its parts, and every view of one as views of them."""
        return tuple(itertools.chain.from_iterable(map(self._seen_apart, super().opened(rel))))

    def _seen_apart(self, term: Term) -> tuple[Term, ...]:
        coef, node, reg, limit = term
        item = self.defs[node]
        if item.op != "view" or limit is not None:
            return (term,)
        inner, outer, by = item.operands[0]
        form = self.defs[inner].form
        if form is None or len(form) > MAX_PARTS or not self.is_whole(inner, outer):
            return (term,)
        made: list[Term] = []
        for part, own in form.items():
            whole_part: Rel = ((ONE, part, self.spelled(part, outer), None),)
            (seen,) = self.make(Op("view", (), (), (("size", item.shape),)), [whole_part])
            if seen is None or len(seen) != 1 or seen[0][3] is not None:
                return (term,)
            factor, view, stands, _ = seen[0]
            made.append((coef * by * own * factor, view, self.spelled(view, selected(stands, reg)), None))
        return tuple(made)

    def told(self, op: str, attrs: dict[str, Any], operands: Sequence[Any]) -> tuple[str, Any, Any]:
        """A step in one spelling: a view says its whole shape, and is one of what was viewed first."""
        if not operands or not is_rel(operands[0]):
            return op, attrs, operands
        if op == "select":
            dim, at = attrs["dim"] % len(operands[0][0][2]), attrs["index"]
            one = {"dim": dim, "start": at, "end": at + 1 or None}
            cut = self.tidy(tuple((c, n, sliced(one, r), lim) for c, n, r, lim in operands[0]))
            op, attrs, operands = "squeeze", {"dim": (dim,)}, [cut]
        if op == "stack":
            dim = attrs.get("dim", 0) % (len(operands[0][0][2]) + 1)
            thin = [self._thin(rel, dim) if is_rel(rel) else None for rel in operands]
            return ("cat", {"dim": dim}, thin) if all(thin) else (op, attrs, operands)
        if op == "gather":
            return op, {**attrs, "dim": attrs["dim"] % len(operands[0][0][2])}, operands
        if op in REDUCTIONS:
            rank = len(operands[0][0][2])
            dims = tuple(sorted(d % rank for d in _dims_of(attrs, rank)))
            return op, {**attrs, "dim": dims}, operands
        if op in ("t", "transpose", "permute"):
            return self._turned(op, attrs, operands[0])
        if op not in ("view", "reshape", "flatten", "unsqueeze", "squeeze"):
            return op, attrs, operands
        (shape,) = shapes_of(op, attrs, [size(operands[0][0][2])]) or ((),)
        rel = operands[0]
        while len(rel) == 1 and size(rel[0][2]) != shape and (back := self._unviewed(rel[0])) is not None:
            rel = (back,)
        return "view", {"size": shape}, [rel]

    def stacked_behind(self, attrs: dict[str, Any], operands: Sequence[Any]) -> tuple[int, list[Rel]] | None:
        """The dim of a stack, and its tensors with the new dim behind one of size 1; None if there is none.

        A new dim of size 1 before a dim of size 1 or behind it: the same elements in the same shape.
        """
        if not all(is_rel(rel) for rel in operands) or not operands:
            return None
        dim = attrs.get("dim", 0) % (len(operands[0][0][2]) + 1)
        if any(size(rel[0][2])[dim : dim + 1] != (1,) for rel in operands):
            return None
        thin = [self._thin(rel, dim + 1) for rel in operands]
        return None if any(rel is None for rel in thin) else (dim, thin)

    def _thin(self, rel: Any, dim: int) -> Rel:
        """The same tensor with a dim of size 1 more."""
        made: list[Term] = []
        for coef, node, reg, limit in rel:
            item = self.defs[node]
            full = tuple(reg[d] if d in item.free else at for d, at in enumerate(whole(item.shape)))
            shape = (*size(full)[:dim], 1, *size(full)[dim:])
            (seen,) = self.make(Op("view", (), (), (("size", shape),)), [((ONE, node, full, None),)])
            if seen is None or size(seen[0][2]) != shape:
                return None
            part = (*reg[:dim], FIRST, *reg[dim:])
            view = self.defs[seen[0][1]]
            if limit is not None and view.op == "view" and view.operands[0][0] == node:
                limit = ((), ((0, limit),))
            elif limit is not None and (
                held_itself(limit) or not (item.op == view.op == "view" and item.operands == view.operands)
            ):
                return None
            made.append((coef * seen[0][0], seen[0][1], self.spelled(seen[0][1], part), limit))
        return tuple(made)

    def _turned(self, op: str, attrs: dict[str, Any], rel: Any) -> tuple[str, Any, Any]:
        """A transpose by where each dim comes from; of a transpose, as one of what was transposed first."""
        rank = len(rel[0][2])
        order = MOVES[op]([np.empty(tuple(range(2, 2 + rank)), np.bool_)], attrs).shape if rank < 9 else ()
        dims = tuple(n - 2 for n in order)
        while len(rel) == 1 and (item := self.defs[rel[0][1]]).op == "permute":
            coef, _, reg, limit = rel[0]
            if held_itself(limit):
                break
            inner, outer, by = item.operands[0]
            before: tuple[int, ...] = item.attrs["dims"]
            part = selected(outer, [reg[before.index(dim)] for dim in range(len(outer))])
            dims = tuple(before[dim] for dim in dims)
            left = None if limit is None else dict(limit[1]).get(0)
            rel = ((coef * by, inner, self.spelled(inner, part), left),)
        return "permute", {"dims": dims}, [rel]

    def _unviewed(self, term: Term) -> Term | None:
        """A part of a view as a part of what was viewed, where it is one."""
        coef, node, reg, limit = term
        item = self.defs[node]
        if item.op != "view" or held_itself(limit) or not math.prod(size(reg)):
            return None
        inner, outer, by = item.operands[0]
        spots = regrouped(reg, item.shape, size(outer))
        if spots is None:
            return None
        part = selected(outer, spots)
        left = None if limit is None else dict(limit[1]).get(0)
        return coef * by, inner, self.spelled(inner, part), left

    def unmoved(self, rel: Rel) -> Rel:
        """A part of what was viewed and transposed as a part of what that was before, in the same shape.

        A transpose that moves nothing but dims along which the part has one index leaves elements in order,
        as a view does: all of them together leave them as they were, if the shape is what it was.
        """
        if rel is None or len(rel) != 1:
            return rel
        term = rel[0]
        while (item := self.defs[term[1]]).op in ("view", "permute"):
            if item.free or held_itself(term[3]):
                return rel
            back = self._unviewed(term) if item.op == "view" else self._untransposed(term)
            if back is None:
                return rel
            term = back
        return (term,) if size(term[2]) == size(rel[0][2]) else rel

    def _untransposed(self, term: Term) -> Term | None:
        """A part of a transpose as a part of what was transposed, if its elements stand in the same order."""
        coef, node, reg, limit = term
        item = self.defs[node]
        inner, outer, by = item.operands[0]
        dims = [dim % len(outer) for dim in item.attrs["dims"]]
        moved = [dim for dim, index in zip(dims, reg, strict=True) if len(index) != 1]
        if moved != sorted(moved) or sorted(dims) != list(range(len(outer))):
            return None
        part = selected(outer, tuple(reg[dims.index(dim)] for dim in range(len(dims))))
        left = None if limit is None else dict(limit[1]).get(0)
        return coef * by, inner, self.spelled(inner, part), left

    def seen_alike(self, term: Term, claim: Term) -> bool:
        """Are these the same elements of one thing, seen in two shapes?

        Views of one thing count its elements alike, so that a part of one is the part of another with the
        same numbers; whether it is a part of what is viewed makes no difference.
        """
        (coef, node, reg, limit), (by, other, want, held) = term, claim
        one, two = self.defs[node], self.defs[other]
        if one.op != "view" or two.op != "view" or one.free or two.free:
            return False
        if one.operands != two.operands or coef != by or limit != held or held_itself(limit):
            return False
        return regrouped(reg, one.shape, two.shape) == want

    def _viewed(self, term: Term, shape: Shape) -> Rel:
        """A view of parts joined outermost, where it is the same parts joined along a dim further in."""
        coef, node, reg, limit = term
        item = self.defs[node]
        through = {} if limit is None else dict(limit[1])
        if item.op != "cat" or held_itself(limit) or len(shape) != len(item.shape):
            return None
        if not self.is_whole(node, reg):
            return None
        at = item.attrs.get("dim", 0) % len(shape)
        inner_dim = next((d for d, n in enumerate(shape) if n != 1), 0)
        rels: list[Rel] = []
        for place, (part_node, outer, by) in enumerate(item.operands):
            if but(size(outer), inner_dim) != but(shape, inner_dim) or set(item.shape[:at]) - {1}:
                return None
            rels.append(((coef * by, part_node, outer, through.get(place)),))
        return self.joined(rels, inner_dim)


def _dims_of(attrs: Mapping[str, Any], rank: int) -> Sequence[int]:
    dim: Any = attrs.get("dim")
    if dim is None or dim == ():
        return range(rank)
    return dim if isinstance(dim, tuple) else (dim,)
