"""What one step makes, decided backwards: is the claimed result what the op makes of these operands?

Knows relations and the checker's op rules; no rank, no plan, no order of steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any, Final

from tensure.program import Cat, Name, Op, Ref

from ._check_conditional import conditional
from ._check_elements import alike, written
from ._check_extremes import extreme
from ._check_index import Anywhere, selected
from ._check_joined import as_view, joined
from ._check_linear import every, single
from ._check_masked import masked_lookup
from ._check_masked_gather import masked_gather
from ._check_masked_rows import unmasked_rows
from ._check_ops import CONTRACTIONS, ELEMENTWISE, FLOATS, clean
from ._check_ops import follows as holds_as
from ._check_origins import same_elements
from ._check_piece import ONE, Piece, Reg, is_part, whole
from ._check_placed import placed
from ._check_products import multiplied
from ._check_runs import by_runs
from ._check_sums import Def, Limit, Rel, Term, is_rel, need, size
from ._check_values import CheckValues

MAX_MOVES: Final = 8
MAX_LED: Final = 64
"""Terms of a sum that a linear op is led through one by one."""


class CheckSteps(CheckValues):
    """Values, and steps on parts of them."""

    def follows(self, step: Op, operands: list[Any], at: int, claim: tuple[Term, ...]) -> bool:
        """Is the claim what result `at` of the step is, computed from these operands?"""
        if any(
            item is None and isinstance(arg, (Ref, Cat))
            for arg, item in zip(step.args, operands, strict=True)
        ):
            return False
        behind = self.stacked_behind(dict(step.attrs), operands) if step.op == "stack" else None
        if behind is not None:
            joins = Op("cat", step.args, step.outs, (("dim", behind[0]),))
            if self.follows(joins, behind[1], at, claim):
                return True
        op, attrs, operands = self.told(step.op, clean(step.op, dict(step.attrs)), operands)
        moved = self.passed(op, attrs, operands)
        if moved is not None and self.equal(claim, moved):
            return True
        if at == 0:
            flat = self.linear(op, attrs, operands, False)
            if flat is not None and self.equal(claim, flat):
                return True
            rest = self.biased(op, attrs, operands, claim)
            if rest is not None:
                given = attrs if op == "convolution" else {}
                return bool(rest[2]) and self._led(rest[0], given, rest[1], 0, rest[2])
        if op == "view" and len(claim) == 1 == len(operands[0]) and attrs["size"] == size(claim[0][2]):
            if self.seen_alike(operands[0][0], claim[0]):
                return True
        if at == 0 and by_runs(self, op, attrs, operands, claim):
            return True
        rows = unmasked_rows(self, op, attrs, operands, claim)
        if rows is not None and self._led(op, rows[0], rows[1], at, rows[2]):
            return True
        if op == "convolution_backward":
            way = self.gradient(attrs, operands, at)
            if way is None:
                return self.equal(claim, self.filled(0.0, (0,), self.defs[operands[0][0][1]].dtype))
            if at == 2:
                return self._without_places(way, claim)
            op, attrs, operands, at = way
        if len(claim) == 1 and (
            masked_lookup(self, op, operands, claim[0])
            or masked_gather(self, op, operands, claim[0])
            or placed(self, op, attrs, operands, claim[0])
        ):
            return True
        ways = self.ways(op, attrs, operands)
        if ways is not None and at == 1:
            return self._total_follows(op, attrs, operands, claim)
        if ways is not None:
            by, steps = ways
            if self._in_steps(steps, operands, tuple((coef * by, *rest) for coef, *rest in claim)):
                return True
        elif self._led(op, attrs, operands, at, claim):
            return True
        elif any(is_rel(item) and len(item) > 1 for item in operands):
            single_terms = [self.classed(item) if is_rel(item) else item for item in operands]
            if self._led(op, attrs, single_terms, at, claim):
                return True
        if at == 0 and (
            conditional(self, op, attrs, operands, claim)
            or joined(self, self._led, op, attrs, operands, claim)
        ):
            return True
        if at == 0 and (
            multiplied(self, op, operands, self.linear(op, attrs, operands, False), claim)
            or written(self, op, attrs, operands, claim)
            or alike(self, moved, claim)
        ):
            return True
        seen = as_view(op, attrs, operands)
        if seen[0] != op:
            return self.follows(
                Op(seen[0], step.args, step.outs, tuple(seen[1].items())), operands, at, claim
            )
        told = self._restated(op, operands, claim)
        return told is not None and self._piece(op, attrs, told, at, claim[0])

    def _restated(self, op: str, operands: Sequence[Any], claim: tuple[Term, ...]) -> list[Any] | None:
        """Operands as the claimed class has them, where each is the same element by element; else None.

        A view of a part and the same part of a view are two classes, and one tensor.
        """
        item = self.defs[claim[0][1]]
        if len(claim) != 1 or (item.op, len(item.operands)) != (op, len(operands)) or item.form is not None:
            return None
        told, is_other = list(operands), False
        for place, (mine, theirs) in enumerate(zip(operands, item.operands, strict=True)):
            if not is_rel(mine) or not is_part(theirs) or len(mine) != 1 or mine[0][1] == theirs[0]:
                continue
            coef, node, reg, limit = mine[0]
            part = _read_for(item, size(theirs[1]), claim[0][2])
            if limit is not None or part is None or size(reg) != size(part):
                return None
            same: Term = (ONE, theirs[0], self.spelled(theirs[0], selected(theirs[1], part)), None)
            other: Term = (ONE, node, reg, None)
            if not alike(self, (other,), (same,)) and not same_elements(self, other, same):
                return None
            told[place], is_other = ((coef, *same[1:]),), True
        return told if is_other else None

    def same(self, one: Rel, other: Rel) -> bool:
        """Are two relations one, as sums or element by element?"""
        return self.equal(one, other) or alike(self, one, other)

    def _without_places(self, way: Any, claim: tuple[Term, ...]) -> bool:
        """Is a row of numbers what a step that keeps the dims it sums over makes, those left out?"""
        op, attrs, operands, at = way
        rank, kept = len(operands[0][0][2]), list[Term]()
        for term in claim:
            back = self._unviewed(term)  # the same numbers in the same order
            shape = () if back is None else size(back[2])
            if back is None or (shape[:1], shape[2:]) != ((1,), (1,) * (rank - 2)) or len(term[2]) != 1:
                return False
            kept.append(back)
        return self._led(op, attrs, operands, at, tuple(kept))

    def _total_follows(
        self, op: str, attrs: dict[str, Any], operands: list[Any], claim: tuple[Term, ...]
    ) -> bool:
        if attrs["reduction"] == 1:
            return self.equal(claim, self._total(op, attrs, operands))
        return self._led(op, attrs, operands, 1, claim)

    def _in_steps(self, steps: Sequence[Any], operands: list[Any], claim: tuple[Term, ...]) -> bool:
        """One step, or two of which the second sums what the first makes of every sample."""
        (kind, given, args), *rest = steps
        if not rest:
            # A mean over tensors that were stacked is a sum of them, addends or not, term by term.
            flat = self.linear(kind, given, operands, False) if kind == "sum" else None
            if flat is not None and self.equal(claim, flat):
                return True
            return self._led(kind, given, list(args(operands)), 0, claim)
        if len(claim) != 1 or not is_rel(operands[1]) or len(operands[1]) != 1:
            return False
        whole = self.defs[claim[0][1]]
        each = self.defs[whole.operands[0][0]] if whole.op == "sum" and whole.operands else None
        if each is None or each.op != kind:
            return False
        rows = self._within(operands[1], each.operands[1])
        if rows == "no" or any(isinstance(index, Anywhere) for index in rows):
            return False
        samples: Term = (ONE, whole.operands[0][0], rows, None)
        (last, summed, _) = rest[0]
        return self._led(kind, given, operands, 0, (samples,)) and self._led(
            last, summed, [(samples,)], 0, claim
        )

    def _led(
        self, op: str, attrs: dict[str, Any], operands: list[Any], at: int, claim: tuple[Term, ...]
    ) -> bool:
        """By the rule for its op on single terms; a sum is led through term by term."""
        many = [place for place, item in enumerate(operands) if is_rel(item) and len(item) > 1]
        if not many:
            return len(claim) == 1 and self._piece(op, attrs, operands, at, claim[0])
        if op == "cat" and 1 < len(many) == len(operands):
            return self._joined_terms(attrs, operands, claim)
        if len(many) > 1 or not single(op, attrs, operands, many[0]):
            return False
        (place,) = many
        # A term may be a part of a sum, which the op was done on whole: as it stands, or its addends.
        whole, given = operands[place], (op, attrs, operands, at, place)
        apart = self.opened(whole), self.opened(claim)
        return self._term_by_term(*given, whole, claim) or self._term_by_term(*given, *apart)

    def _term_by_term(
        self,
        op: str,
        attrs: dict[str, Any],
        operands: list[Any],
        at: int,
        place: int,
        parts: tuple[Term, ...],
        claim: tuple[Term, ...],
    ) -> bool:
        """Is a claim the sum of what a linear op makes of the terms of one operand, each by itself?"""
        left = list(claim)
        if any(self.defs[node].dtype not in FLOATS for _, node, _, _ in (*parts, *left)):
            return False  # a cast to integers is no linear op
        if len(parts) != len(left) or len(parts) > MAX_LED:
            return False
        for term in parts:
            args = [*operands[:place], (term,), *operands[place + 1 :]]
            found = next((other for other in left if self._piece(op, attrs, args, at, other)), None)
            if found is None:
                return False
            left.remove(found)
        return True

    def _joined_terms(self, attrs: dict[str, Any], operands: list[Any], claim: tuple[Term, ...]) -> bool:
        """Is a claim, term by term, the join of what sums of the same values have in the same places?"""
        left, count = list(claim), len(operands[0])
        if len(left) != count or count > MAX_LED or any(len(item) != count for item in operands):
            return False
        for term in operands[0]:
            column = [
                [other for other in item if other[:2] + other[3:] == term[:2] + term[3:]] for item in operands
            ]
            if any(len(found) != 1 or self.defs[found[0][1]].dtype not in FLOATS for found in column):
                return False
            args = [(found[0],) for found in column]
            known = next((other for other in left if self._joins(attrs, args, other)), None)
            if known is None:
                return False
            left.remove(known)
        return True

    def _joins(self, attrs: dict[str, Any], parts: list[Any], claim: Term) -> bool:
        known = self.joined(parts, attrs.get("dim", 0) % len(parts[0][0][2]))
        return self._piece("cat", attrs, parts, 0, claim) or bool(known and self.equal(known, (claim,)))

    def _piece(self, op: str, attrs: dict[str, Any], operands: list[Any], at: int, claim: Term) -> bool:
        """Is a term what the step makes of single terms?"""
        swaps = op in ("add", "mul", "maximum", "minimum") and len(operands) == 2 and "alpha" not in attrs
        if self._fits(op, attrs, operands, at, claim):
            return True
        if swaps and self._fits(op, attrs, operands[::-1], at, claim):
            return True
        return any(self._fits(op, attrs, mine, at, claim) for mine in self._standing(op, operands, claim))

    def _standing(self, op: str, operands: list[Any], claim: Term) -> Iterator[list[Any]]:
        """Operands of a product, one of them said to stand where the claim does if it is the same there."""
        for place, rel in enumerate(operands if op in CONTRACTIONS else ()):
            if not is_rel(rel) or len(rel) != 1 or rel[0][3] is not None:
                continue
            coef, node, reg, _ = rel[0]
            one = self._origin(rel[0])
            for dim, index in enumerate(reg if one is not None else ()):
                for other in dict.fromkeys(claim[2]):
                    if other == index or len(other) != len(index) or other.stop > self.defs[node].shape[dim]:
                        continue
                    term: Term = (coef, node, (*reg[:dim], other, *reg[dim + 1 :]), None)
                    if one == self._origin(term):  # but for dims along which it only repeats
                        yield [*operands[:place], (term,), *operands[place + 1 :]]

    def _origin(self, term: Term) -> Term | None:
        """A part of views and transposes as a part of what repeats; None where nothing does."""
        for _ in range(MAX_MOVES):
            coef, node, reg, _limit = term
            item = self.defs[node]
            if item.free:
                return coef, node, self.spelled(node, reg), None
            back = self._unviewed(term)
            if item.op == "permute":
                inner, outer, by = item.operands[0]
                dims: tuple[int, ...] = item.attrs["dims"]
                part = selected(outer, [reg[dims.index(dim)] for dim in range(len(outer))])
                back = (coef * by, inner, self.spelled(inner, part), None)
            if back is None:
                return None
            term = back
        return None

    def _fits(self, op: str, attrs: dict[str, Any], operands: Sequence[Any], at: int, claim: Term) -> bool:
        coef, node, reg, limit = claim
        item = self.defs[node]
        if (item.op, item.out, len(item.operands)) != (op, at, len(operands)) or item.form is not None:
            return False
        factors: list[Fraction] = []
        regs: list[Reg | None] = []
        bare = limit is None
        for mine, theirs in zip(operands, item.operands, strict=True):
            if not is_rel(mine) or not is_part(theirs):
                number = None if mine is None else ("number", type(mine).__name__, repr(mine))
                if is_rel(mine) or number != theirs:
                    return False
                factors.append(ONE)
                regs.append(None)
                continue
            by, at_node, part, held = mine[0]
            if at_node != theirs[0]:
                return False
            factors.append(ONE if by is theirs[2] else by / theirs[2])
            regs.append(part)
            bare = bare and held is None and factors[-1] is ONE
        factor = ONE if bare else self._passes(item, operands, factors, limit)
        if factor is None:
            return False
        shares = () if limit is None else limit[0]
        # All that a rule is told: for the same it has the same answer, whatever values these are parts of.
        key = (self._kind(node), repr(attrs), tuple(regs), reg, shares)
        if key not in self._fitted:
            self._fitted[key] = self._holds_as(op, attrs, regs, at, claim)
        found = self._fitted[key]
        if found is None:
            return False
        found = found if factor is ONE else found * factor
        return found is coef or found == coef

    def _holds_as(
        self, op: str, attrs: dict[str, Any], regs: Sequence[Reg | None], at: int, claim: Term
    ) -> Fraction | None:
        """The factor with which a step on parts of what a class was made from makes a part of the class."""
        _, node, reg, limit = claim
        item = self.defs[node]
        parts: list[Any] = []
        for mine, theirs in zip(regs, item.operands, strict=True):
            part = None if mine is None else self._places(self.defs[theirs[0]].free, mine, theirs[1])
            if part == "no":
                return None
            parts.append(part)
        shapes = [size(part[1]) if is_part(part) else None for part in item.operands]
        shares = dict(limit[0]) if limit is not None else {}
        return holds_as(Piece(op, attrs, item.attrs, shapes, parts, item.shape, reg, shares, at))

    def _kind(self, node: int) -> int:
        """A number for all classes that are made alike, but for which classes they are made from."""
        if node not in self._kinds:
            item = self.defs[node]
            parts = [(p[1], self.defs[p[0]].free) if is_part(p) else None for p in item.operands]
            key = (item.op, repr(item.attrs), item.out, item.shape, *parts)
            self._kinds[node] = self._numbers.setdefault(key, len(self._numbers))
        return self._kinds[node]

    def _passes(
        self, item: Def, operands: Sequence[Any], factors: list[Fraction], limit: Limit
    ) -> Fraction | None:
        """The factor that comes out, if factors and limits of the operands may go through the op at all."""
        through = dict(limit[1]) if limit is not None else {}
        held = {
            place: rel[0][3] for place, rel in enumerate(operands) if is_rel(rel) and rel[0][3] is not None
        }
        if held != through:
            return None
        floats = item.dtype in FLOATS
        together = every(item.op, item.operands)
        made, left = ONE, dict(enumerate(factors))
        zeros = [at for at in together if is_part(item.operands[at]) and self.zero(item.operands[at][0])]
        left.update(dict.fromkeys(zeros, ONE))  # a multiple of nothing
        told = {factors[place] for place in together if place not in zeros}
        if floats and len(told) == 1:
            made *= next(iter(told))
            left.update(dict.fromkeys(together, ONE))
        for place, by in left.items():
            if by == 1:
                continue
            operand = item.operands[place]
            if not floats or self.defs[operand[0]].dtype not in FLOATS:
                return None
            if not single(item.op, item.attrs, item.operands, place):
                return None
            made *= by
        return made

    def _within(self, mine: Any, theirs: Any) -> Any:
        """Where the part a step reads stands in the part the value was made from; "no" when it does not."""
        if not is_rel(mine) or not is_part(theirs):
            number = None if mine is None else ("number", type(mine).__name__, repr(mine))
            return None if not is_rel(mine) and number == theirs else "no"
        _, node, reg, _ = mine[0]
        return self._places(self.defs[node].free, reg, theirs[1]) if node == theirs[0] else "no"

    def _places(self, free: frozenset[int], reg: Reg, whole: Reg) -> Any:
        """Where a part stands in another of the same value; "no" when it does not."""
        places = list[Any]()
        for dim, (index, outer) in enumerate(zip(reg, whole, strict=True)):
            if dim in free:
                places.append(Anywhere(len(index)))
                continue
            stands = index.within(outer)
            if stands is None:
                return "no"
            places.append(stands)
        return tuple(places)

    def met(self, op: str, attrs: dict[str, Any], members: list[Rel]) -> list[Rel]:
        known = [member for member in members if member is not None]
        nothing: list[Rel] = [None] * len(members)
        if len(known) < len(members):
            return nothing
        if (kind := attrs.get("reduce", "sum")) != "sum":
            return [extreme(self, kind, known) if op == "all_reduce" else None] * len(members)
        rank = len(known[0][0][2])
        if op == "all_gather":
            return [self.together(known, attrs["dim"] % rank)] * len(members)
        need(len({size(member[0][2]) for member in known}) == 1, "{} of several shapes", op)
        if op == "all_to_all":
            pieces = self._sent(known, attrs["split"] % rank)
            return [
                self.together([piece[to] for piece in pieces], attrs["cat"] % rank)
                for to in range(len(members))
            ]
        flat = tuple(itertools.chain.from_iterable(known))
        if any(self.defs[n].dtype not in FLOATS and limit is None for _, n, _, limit in flat):
            return nothing
        if op == "all_reduce":
            return [flat] * len(members)
        return self._split(flat, attrs["dim"] % rank, len(members))

    def joins(self, op: str, attrs: dict[str, Any], members: list[Rel]) -> list[tuple[list[Rel], int]] | None:
        """For collectives that join: whose parts each member gets, and along which dim."""
        known = [member for member in members if member is not None]
        if op not in ("all_gather", "all_to_all") or len(known) < len(members):
            return None
        rank = len(known[0][0][2])
        if op == "all_gather":
            return [(members, attrs["dim"] % rank)] * len(members)
        pieces = self._sent(known, attrs["split"] % rank)
        return [([piece[to] for piece in pieces], attrs["cat"] % rank) for to in range(len(members))]

    def is_join(self, parts: list[Rel], dim: int, claim: tuple[Term, ...]) -> bool:
        """Is a claim what tensors one after another are?"""
        args = tuple(Ref(Name("part")) for _ in parts)
        step = Op("cat", args, (), (("dim", dim),))
        return self._are_parts(parts, dim, claim) or self.follows(step, list(parts), 0, claim)

    def _are_parts(self, parts: list[Rel], dim: int, claim: tuple[Term, ...]) -> bool:
        """Is a claim all of a join whose parts are these, one by one?"""
        ((coef, node, reg, limit), *rest) = claim
        item = self.defs[node]
        if rest or limit is not None or item.op != "cat" or len(item.operands) != len(parts):
            return False
        if item.attrs.get("dim", 0) % len(item.shape) != dim or len(reg) != len(item.shape):
            return False
        if not all(index.is_whole(count) for index, count in zip(reg, item.shape, strict=True)):
            return False
        return all(
            is_part(theirs) and self.equal(mine, ((coef * theirs[2], theirs[0], theirs[1], None),))
            for mine, theirs in zip(parts, item.operands, strict=True)
        )

    def together(self, parts: list[Any], dim: int) -> Rel:
        """Tensors one after another: parts of one value, or a value joined of parts."""
        joined = self.joined(parts, dim)
        if joined is not None or any(part is None or len(part) != 1 for part in parts):
            return joined
        terms = [part[0] for part in parts]
        if len({term[0] for term in terms}) != 1 or any(term[3] is not None for term in terms):
            return None
        plain = [((ONE, node, reg, None),) for _, node, reg, _ in terms]
        (made,) = self.make(Op("cat", (), (), (("dim", dim),)), plain)
        return None if made is None else tuple((coef * terms[0][0], *rest) for coef, *rest in made)

    def _sent(self, members: Sequence[Any], dim: int) -> list[list[Rel]]:
        """What each member of an all-to-all gives to each."""
        return [[self.unmoved(part) for part in self._split(each, dim, len(members))] for each in members]

    def _split(self, rel: tuple[Term, ...], dim: int, count: int) -> list[Rel]:
        width, rest = divmod(len(rel[0][2][dim]), count)
        need(rest == 0, "parts that are not equal")
        cut = [slice(i * width, (i + 1) * width) for i in range(count)]
        return [
            self.tidy(tuple((c, n, (*r[:dim], r[dim][part], *r[dim + 1 :]), s) for c, n, r, s in rel))
            for part in cut
        ]


def _read_for(item: Def, shape: tuple[int, ...], reg: Reg) -> Reg | None:
    """What of an operand of this shape a part of a class is made from; all of it for all of the class."""
    if reg == whole(item.shape):
        return whole(shape)
    if item.op == "permute":
        dims: Sequence[int] = item.attrs["dims"]
        return tuple(reg[dims.index(dim)] for dim in range(len(dims)))
    return reg if item.op in ELEMENTWISE and shape == item.shape else None
