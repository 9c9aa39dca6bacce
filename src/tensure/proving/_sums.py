"""Steps that are sums: numbers everywhere, linear combinations, products with a bias, mean losses.

What they make is said as terms and factors; only products are left to rules. Knows no plan.
"""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any, Final

from tensure.program import Op, TensorType

from ._index import whole_region
from ._linear import exact
from ._relation import ONE, Relation, Term, scaled, total
from ._steps import Call, Held, Number, Operand, bound
from ._values import FLOATS, Value, Values, number

MAX_WIDENED: Final = 8
"""Terms of a sum that are looked at for what is spread."""


class Sums(Values):
    """What linear steps make of relations."""

    targets: bool = False
    """Whether no target of a loss of the Program is the class that this loss ignores."""
    first_own: int = 1 << 60
    """The first value that is not the Program's: none as yet."""

    def counted(self, part: object, ignored: object) -> bool:
        """Whether an operand is known to be targets none of which is this class."""
        raise NotImplementedError

    def in_range(self, part: object, count: int) -> bool:
        """Whether an operand is known to be of indices counted from 0 and below a number."""
        raise NotImplementedError

    def counted_of(self, target: Held, ignored: object) -> bool:
        """The same of what a step reads."""
        term = target.relation.single
        return term is not None and self.counted((term.node, term.region, term.coef), ignored)

    def made(self, call: Call) -> list[Held]:
        """What any step makes."""
        raise NotImplementedError

    def general(self, call: Call) -> list[Held]:
        """What a step makes by the rule for its op."""
        raise NotImplementedError

    def known(self, call: Call, *, addends: bool = False) -> Term | None:
        """The part (or addend) of a value of the Program's that a step makes, by the rule for its op."""
        raise NotImplementedError

    def scalars(self, call: Call) -> list[tuple[Fraction, Relation]] | None:
        """The terms of a sum over tensors that were stacked."""
        raise NotImplementedError

    def constant(self, call: Call) -> Relation | None:
        """One number everywhere, and moves of it."""
        found, op = call.types[0], call.step.op
        if op == "full":
            return self.filled(call.given["fill_value"], found)
        held = [item for item in call.operands if isinstance(item, Held)]
        terms = [item.relation.single for item in held]
        if op not in _MOVES or len(held) != len(call.operands) or not terms or terms[0] is None:
            return None
        node, coef = terms[0].node, terms[0].coef
        if self.values[node].op != "full" or held[0].type.dtype != found.dtype:
            return None
        if any(term is None or (term.node, term.coef) != (node, coef) for term in terms[1:]):
            return None
        return scaled(self.filled(self.values[node].given["fill_value"], found), coef)

    def filled(self, value: Number, found: TensorType) -> Relation:
        """A number in every element of a type: a multiple of ones, or of a number that is no factor."""
        factor = exact(value) if found.dtype in FLOATS else None
        value = 1.0 if factor else 0.0 if factor is not None else value
        rank = len(found.shape)
        one = TensorType((1,) * rank, found.dtype)
        key = ("full", rank, found.dtype, number(value))
        node = self.put(Value("full", {"fill_value": value}, (), 0, one, None, frozenset(range(rank))), key)
        return Relation((Term(node, self.spelled(node, whole_region(found.shape)), factor or ONE),))

    def without_zeros(self, relation: Relation) -> Relation:
        """The same sum, terms that are zero everywhere left out, as long as one remains."""
        kept = tuple(term for term in relation.terms if not self.is_zero(term))
        return Relation(kept) if kept else relation

    def linear(self, call: Call) -> Relation | None:
        """Linear combinations of whole operands: sums, differences, multiples; products with a bias."""
        if call.types[0].dtype not in FLOATS:
            return None
        parts = self._parts(call)
        summed = None if parts is None else total(parts)
        if summed is None:
            return None
        summed = self.without_zeros(summed)
        if not call.own:
            summed = self._widened(summed, call.types[0])
        if not call.own and (summed.limited or self.aligned(summed) is not None):
            known = None if summed.limited else self._of_parts(call, summed)
            return self.resolve(summed) if known is None else Relation((known,))
        found = self.sum_of(summed, call.types[0])
        return found if found.single is not None else None  # a sum of parts is a value of its own

    def _of_parts(self, call: Call, summed: Relation) -> Term | None:
        """A sum of parts as what the Program makes by the same step of the same: there it is no sum."""
        singles = [item.relation.single for item in call.operands if isinstance(item, Held)]
        if None in singles or all(self.is_whole(term.node, term.region) for term in summed.terms):
            return None
        return self.known(call)

    def _widened(self, summed: Relation, found: TensorType) -> Relation:
        """What stands beside one index of a longer dim, as one of what is spread along that dim."""
        shape = list(found.shape)
        for dim, size in enumerate(shape):
            sizes = {
                self.values[term.node].type.shape[dim]
                for term in summed.terms
                if dim not in self.values[term.node].free
            }
            if size == 1 and len(sizes) == 2 and 1 in sizes:
                shape[dim] = max(sizes)
        if tuple(shape) == found.shape or summed.limited or len(summed.terms) > MAX_WIDENED:
            return summed
        return Relation(tuple(self._wide(term, found.shape, tuple(shape)) for term in summed.terms))

    def _wide(self, term: Term, mine: tuple[int, ...], shape: tuple[int, ...]) -> Term:
        value = self.values[term.node]
        own = value.type.shape
        pairs = zip(own, shape, strict=True)
        if not any(n == 1 != wide and dim not in value.free for dim, (n, wide) in enumerate(pairs)):
            return term
        long = tuple(
            wide if n == 1 and one == 1 else n for n, one, wide in zip(own, mine, shape, strict=True)
        )
        held = Held(value.type, Relation((Term(term.node, self.spelled(term.node, whole_region(own))),)))
        step, kind = Op("expand", (), (), (("size", long),)), TensorType(long, value.type.dtype)
        made = self.made(Call(step, bound(step, [held]), [held], [kind], None, True))[0].relation.single
        if made is None:
            return term
        return replace(made, region=self.spelled(made.node, term.region), coef=made.coef * term.coef)

    def is_zero(self, term: Term) -> bool:
        """Whether it is zero everywhere."""
        value = self.values[term.node]
        return value.op == "full" and value.type.dtype in FLOATS and value.given["fill_value"] == 0

    def _parts(self, call: Call) -> list[tuple[Fraction, Relation]] | None:
        """Factors and relations of a linear step; None where it is not one."""
        op, given, operands, found = call.step.op, call.given, call.operands, call.types[0]
        last = len(operands) == 3 and operands[2] is not None
        if op in ("addmm", "baddbmm") or (op in ("linear", "convolution") and last):
            return self._biased(call)
        if op in ("mul", "div"):
            return self._multiple(call)
        if op == "sum":
            return self.scalars(call)
        signs = _signs(op, given, len(operands))
        if signs is None:
            return None
        parts: list[tuple[Fraction, Relation]] = []
        for by, item in zip(signs, operands, strict=True):
            relation = self._spread(item, found, call.own)
            if relation is None:
                return None
            parts.append((by, relation))
        return parts

    def _spread(self, item: Operand, found: TensorType, own: bool) -> Relation | None:
        """An operand of a sum in the sum's own shape."""
        if not isinstance(item, Held):
            return self.filled(item, found) if exact(item) is not None else None
        if item.type.dtype != found.dtype:
            return None
        if item.type.shape == found.shape:
            return item.relation
        step = Op("expand", (), (), (("size", found.shape),))
        return self.made(Call(step, bound(step, [item]), [item], [found], None, own))[0].relation

    def _multiple(self, call: Call) -> list[tuple[Fraction, Relation]] | None:
        """One operand is a number, or one number everywhere."""
        op, found = call.step.op, call.types[0]
        orders = [(0, 1)] if op == "div" else [(0, 1), (1, 0)]
        if op == "div" and call.given.get("rounding_mode") is not None:
            return None
        for one, other in orders:
            held, factor = call.operands[one], self.factor(call.operands[other])
            if not isinstance(held, Held) or not factor or held.type != found:
                continue
            return [(1 / factor if op == "div" else factor, held.relation)]
        return None

    def factor(self, item: Operand) -> Fraction | None:
        if not isinstance(item, Held):
            return exact(item)
        term = item.relation.single
        value = None if term is None or term.limit is not None else self.values[term.node]
        if term is None or value is None or value.op != "full":
            return None
        number_ = exact(value.given["fill_value"])
        return None if number_ is None else term.coef * number_

    def _biased(self, call: Call) -> list[tuple[Fraction, Relation]] | None:
        """A product and a bias, which are two things."""
        op, given, found = call.step.op, call.given, call.types[0]
        if op in ("linear", "convolution"):
            product, bias, by, beta = call.operands[:2], call.operands[2], ONE, ONE
            if op == "convolution" and isinstance(bias, Held):
                # The bias of a channel is added at every place of it: of sums over channels, only once.
                bias = self._per_channel(bias, len(found.shape), call.own)
        else:
            product, bias = call.operands[1:], call.operands[0]
            by, beta = exact(given["alpha"]) or Fraction(0), exact(given["beta"]) or Fraction(0)
        spread = self._spread(bias, found, call.own)
        if not by or not beta or spread is None:
            return None
        attrs = call.step.attrs if op == "convolution" else ()
        step = Op({"addmm": "mm", "baddbmm": "bmm"}.get(op, op), (), (), attrs)
        args: list[Operand] = [*product, None] if op in ("linear", "convolution") else list(product)
        made = self.made(Call(step, bound(step, args), args, [found], None, call.own))
        return [(beta, spread), (by, made[0].relation)]

    def _per_channel(self, bias: Held, rank: int, own: bool) -> Held:
        """One number for a channel, seen with dims of size 1 for the places."""
        shape = (*bias.type.shape, *(1 for _ in range(rank - 2)))
        step = Op("view", (), (), (("size", shape),))
        found = TensorType(shape, bias.type.dtype)
        return self.made(Call(step, bound(step, [bias]), [bias], [found], None, own))[0]

    def convolution_gradients(self, call: Call) -> list[Held]:
        """Each gradient as a value of its own; one not asked for is empty.

        That of a bias is the sum of what comes in over samples and places, spelled as it is by hand: dims
        kept, then seen without them.
        """
        grad, types = call.operands[0], call.types
        mask, floats = call.given["output_mask"], types[0].dtype in FLOATS
        if not isinstance(grad, Held) or not floats or len(types) != 3:
            return self.general(call)
        rank, found = len(grad.type.shape), list[Held]()
        for at, (kept, want) in enumerate(zip(mask, types, strict=True)):
            if not kept:
                found.append(Held(want, self.filled(0.0, want)))
            elif at == 2:
                step = Op("sum", (), (), (("dim", (0, *range(2, rank))), ("keepdim", True)))
                wide = TensorType((1, *want.shape, *(1 for _ in range(rank - 2))), want.dtype)
                (summed,) = self.made(Call(step, bound(step, [grad]), [grad], [wide], None, call.own))
                seen = Op("view", (), (), (("size", want.shape),))
                found += self.made(Call(seen, bound(seen, [summed]), [summed], [want], None, call.own))
            else:
                alone = tuple(out == at for out in range(3))
                given = {**call.given, "output_mask": alone, "bias_sizes": None}
                empty = TensorType((0,), want.dtype)
                kinds = [want if out == at else empty for out in range(3)]
                found.append(self.general(replace(call, given=given, types=kinds))[at])
        return found

    def mean(self, call: Call) -> list[Held]:
        """A mean is a sum over the number of elements."""
        (held,) = call.operands
        assert isinstance(held, Held)
        count = math.prod(held.type.shape[dim] for dim in call.given["dim"])
        if not count or call.given["dtype"] is not None or held.type.dtype not in FLOATS:
            return self.general(call)
        step = replace(call.step, op="sum")
        (made,) = self.made(replace(call, step=step))
        return [Held(made.type, scaled(made.relation, Fraction(1, count)))]

    def loss(self, call: Call) -> list[Held]:
        """A summed loss is the sum of its samples', a mean one that over their number, if all count."""
        x, target, weight = call.operands[:3]
        assert isinstance(x, Held) and isinstance(target, Held)
        reduction, count = call.given["reduction"], math.prod(target.type.shape)
        every = self.counted_of(target, call.given["ignore_index"])
        counts = reduction == 2 or (reduction == 1 and every and weight is None and count)
        if not counts or len(target.type.shape) != 1:
            return self.general(call)
        each = TensorType(target.type.shape, x.type.dtype)
        given = {**call.given, "reduction": 0}
        samples = self.general(replace(call, given=given, types=[each, call.types[1]]))[0]
        step = Op("sum", (), (), (("dim", (0,)),))
        (made,) = self.made(Call(step, bound(step, [samples]), [samples], call.types[:1], None, call.own))
        if reduction == 2:
            return [made, self.general(call)[1]]
        total = Held(call.types[1], self.filled(float(count), call.types[1]))
        return [Held(made.type, scaled(made.relation, Fraction(1, count))), total]

    def loss_backward(self, call: Call) -> list[Held]:
        """The gradient of a summed or mean loss from that of each sample's."""
        grad, _, target, weight, total = call.operands
        assert isinstance(grad, Held) and isinstance(target, Held) and isinstance(total, Held)
        reduction, factor = call.given["reduction"], self.factor(total)
        every = self.counted_of(target, call.given["ignore_index"])
        counts = reduction in (0, 2) or (reduction == 1 and every and weight is None and factor)
        if not counts or len(target.type.shape) != 1:
            return self.general(call)
        each = TensorType(target.type.shape, grad.type.dtype)
        wide = grad
        if reduction:
            step = Op("expand", (), (), (("size", each.shape),))
            (wide,) = self.made(Call(step, bound(step, [grad]), [grad], [each], None, call.own))
        one = Held(total.type, self.filled(1.0, total.type))
        operands = [wide, *call.operands[1:4], one]
        made = self.general(replace(call, given={**call.given, "reduction": 0}, operands=operands))
        by = 1 / factor if reduction == 1 and factor else ONE
        return [Held(item.type, scaled(item.relation, by)) for item in made]


_MOVES: Final = frozenset("view permute select expand slice cat stack flip roll repeat copy".split())


def _signs(op: str, given: dict[str, Any], count: int) -> list[Fraction] | None:
    alpha = exact(given.get("alpha", 1))
    if alpha is None or not alpha:
        return None
    known = {"add": [ONE, alpha], "sub": [ONE, -alpha], "rsub": [-alpha, ONE], "neg": [-ONE]}
    return [ONE] * count if op == "add_n" else known.get(op)
