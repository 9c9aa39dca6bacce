"""Numbers that are the same everywhere, carried through counts, masks and casts.

Where no target is the class that a loss ignores, a target compared with that class is one answer
everywhere; so are its negation, the count of targets, and what is masked by it. Knows no rules.
"""

from __future__ import annotations

import math
from typing import Any

from tensure.program import Op

from ._linear import alone
from ._relation import Relation
from ._steps import Call, Held, Number, Operand, bound
from ._sums import Sums
from ._values import FLOATS, is_part

PARTIAL = frozenset(
    "acos acosh addcdiv asin atanh div fmod log log10 log1p log2 pow reciprocal remainder rsqrt sqrt tan "
    "var".split()
)
"""Steps that have no value for some numbers."""
INTEGERS = frozenset(["i64", "i32", "i16", "i8"])


class Constants:
    """Values that are targets, and what is one number everywhere."""

    def __init__(self, values: Sums) -> None:
        self._values = values
        self._targets: set[tuple[int, object]] = set()
        self._below: dict[int, int] = {}
        """Values that indices are parts of, and below what these are."""
        self._aimed: set[tuple[int, object]] = set()
        """Values that targets are parts of, with the class that their loss ignores."""

    def take(self, step: Op, operands: list[Operand]) -> None:
        """Note the targets of a loss of the Program, and its indices that are counted from 0."""
        self._take_range(step, operands)
        if step.op != "nll_loss_forward":
            return
        target = operands[1]
        term = target.relation.single if isinstance(target, Held) else None
        if term is None:
            return
        at: object = (term.node, term.region, term.coef)
        while isinstance(at, tuple) and is_part(at):
            self._aimed.add((at[0], step.attr("ignore_index")))
            value = self._values.values[at[0]]
            at = value.operands[0] if value.op == "view" else None
        if not self._values.is_whole(term.node, term.region):
            return
        node, ignored = term.node, step.attr("ignore_index")
        self._targets.add((node, ignored))
        while (inner := self._viewed(node)) is not None:
            node = inner
            self._targets.add((node, ignored))

    def _take_range(self, step: Op, operands: list[Operand]) -> None:
        at = {"gather": 1, "scatter_add": 1, "nll_loss_forward": 1, "nll_loss_backward": 2}.get(step.op)
        if at is None:
            return
        index = operands[at]
        term = index.relation.single if isinstance(index, Held) else None
        table = operands[1 if step.op == "nll_loss_backward" else 0]
        if term is not None and isinstance(table, Held):
            shape, dim = table.type.shape, dict(step.attrs).get("dim", -1)
            count = shape[dim % len(shape)] if isinstance(dim, int) else 0
            part: object = (term.node, term.region, term.coef)
            while isinstance(part, tuple) and is_part(part):
                self._below[part[0]] = min(count, self._below.get(part[0], count))
                value = self._values.values[part[0]]
                part = value.operands[0] if value.op == "view" else None

    def below(self, part: object, count: int) -> bool:
        """Whether an operand is of indices of the Program's that are counted from 0 and below a number."""
        while isinstance(part, tuple) and is_part(part):
            if self._below.get(part[0], count + 1) <= count:
                return True
            value = self._values.values[part[0]]
            part = value.operands[0] if value.op == "view" else None
        return False

    def aimed(self, part: object, ignored: object) -> bool:
        """Is an operand of what targets are parts of, of a loss of the Program that ignores this class?"""
        while isinstance(part, tuple) and is_part(part) and part[2] == 1:
            if (part[0], ignored) in self._aimed:
                return True
            value = self._values.values[part[0]]
            part = value.operands[0] if value.op in ("view", "permute", "expand", "cat") else None
        return False

    def folded(self, call: Call) -> Relation | None:
        """The number that a step makes everywhere, or the operand that a constant mask leaves."""
        op, first = call.step.op, call.operands[0] if call.operands else None
        found = call.types[0]
        if not isinstance(first, Held):
            return None
        if op in ("eq", "ne") and self._values.targets and self._is_target(first, call.operands[1]):
            return self._values.filled(op == "ne", found)
        if op in ("masked_fill", "where"):
            return self._chosen(call)
        if found.dtype in FLOATS and len(call.types) == 1 and self._is_nothing(call):
            return self._values.filled(0.0, found)
        number = self._number(first)
        if number is None:
            return None
        if op in ("bitwise_not", "logical_not") and isinstance(number, bool):
            return self._values.filled(not number, found)
        if op == "sum" and first.type.dtype in (INTEGERS | {"bool"}) and found.dtype in INTEGERS:
            dims = call.given["dim"]
            return self._values.filled(int(number) * math.prod(first.type.shape[d] for d in dims), found)
        if op == "_to_copy" and found.dtype in FLOATS and first.type.dtype in (INTEGERS | {"bool"}):
            return self._values.filled(float(number), found) if abs(number) < 1 << 24 else None
        return None

    def _is_nothing(self, call: Call) -> bool:
        """Whether a step is linear in an operand that is zero everywhere; 0 / 0 is not 0."""
        if call.step.op == "div":
            return False
        for at in alone(call.step.op, call.given, call.operands):
            item = call.operands[at] if at < len(call.operands) else None
            others = [other for other in call.operands if isinstance(other, Held) and other is not item]
            if not call.own and not all(map(self._exists, others)):
                continue  # 0 times what has no value is not 0; all that the Program makes has one
            if isinstance(item, Held) and item.type.dtype in FLOATS:
                term = item.relation.single
                value = None if term is None else self._values.values[term.node]
                if value is not None and value.op == "full" and value.given["fill_value"] == 0:
                    return True
        return False

    def _exists(self, held: Held) -> bool:
        """Whether an operand has a value for all data, if all that the Program makes has."""
        values = self._values
        todo, seen = [term.node for term in held.relation.terms], set[int]()
        while todo:
            node = todo.pop()
            if node >= values.first_own and node not in seen:
                seen.add(node)
                value = values.values[node]
                if value.form is not None:
                    todo += value.form
                    continue
                if value.op in PARTIAL and value.type.dtype in FLOATS:
                    return False
                todo += [part[0] for part in value.operands if isinstance(part, tuple) and is_part(part)]
        return True

    def _chosen(self, call: Call) -> Relation | None:
        """What a mask leaves that is the same everywhere."""
        masks = call.operands[1] if call.step.op == "masked_fill" else call.operands[0]
        number = self._number(masks) if isinstance(masks, Held) else None
        if not isinstance(number, bool):
            return None
        one, other = call.operands[1:] if call.step.op == "where" else (call.operands[2], call.operands[0])
        kept, found = (one if number else other), call.types[0]
        if not isinstance(kept, Held):
            fits = found.dtype in FLOATS or isinstance(kept, int)
            return self._values.filled(kept, found) if fits and kept is not None else None
        if kept.type.dtype != found.dtype:
            return None
        if kept.type.shape == found.shape:
            return kept.relation
        step = Op("expand", (), (), (("size", found.shape),))
        given: dict[str, Any] = bound(step, [kept])
        return self._values.made(Call(step, given, [kept], [found], None, call.own))[0].relation

    def _number(self, held: Held) -> int | float | bool | None:
        """The number that stands everywhere, of what is no multiple."""
        term = held.relation.single
        value = None if term is None or term.limit is not None else self._values.values[term.node]
        if term is None or value is None or value.op != "full" or term.coef != 1:
            return None
        number: Number = value.given["fill_value"]
        return number

    def _is_target(self, held: Held, number: Operand) -> bool:
        term = held.relation.single
        if term is None or not term.plain or isinstance(number, bool) or not isinstance(number, int):
            return False
        node: int | None = term.node
        while node is not None:
            if (node, number) in self._targets:
                return True
            node = self._viewed(node)
        return False

    def _viewed(self, node: int) -> int | None:
        """What a value is a view of all of."""
        value = self._values.values[node]
        part = value.operands[0] if value.op == "view" else None
        if not isinstance(part, tuple) or not is_part(part) or part[2] != 1:
            return None
        return part[0] if self._values.is_whole(part[0], part[1]) else None
