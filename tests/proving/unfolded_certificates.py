"""A certificate of ranks taken together written out for each: every expression as the number it is there."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from tensure.bundle import Plan, canonical_json
from tensure.program import evaluate, expr
from tests.proving.folding_faults import grounded, places

Env: TypeAlias = Mapping[str, int]


def written_out(certificate: bytes, plan: Plan) -> bytes:
    """The same claims, rank by rank, with a value of its own for each place of a family."""
    read = json.loads(certificate)
    read["invocations"] = [_Invocation(item, plan).written_out() for item in read["invocations"]]
    return canonical_json(read)


class _Invocation:
    def __init__(self, item: Any, plan: Plan) -> None:
        self.item, self.plan = item, plan
        self.axes: dict[str, dict[str, tuple[int, int]]] = {}
        """The places of which a defined value is, those of what it is made of among them."""
        for label, _, _, operands, *_, where in item["values"]:
            found = {axis: (lo, hi) for axis, lo, hi in where}
            for operand in operands:
                if operand is not None and len(operand) == 4:
                    found.update(self.axes.get(operand[1], {}))
            self.axes[label] = found

    def written_out(self) -> Any:
        rows = [
            [rank, grounded(name, env), [self._term(term, env) for term in terms]]
            for cell, name, terms in self.item["locals"]
            for rank, env in places(self.plan, cell)
        ]
        return {**self.item, "folded": [], "values": list(self._values()), "locals": rows}

    def _values(self) -> Iterator[Any]:
        for label, op, given, operands, *rest, _ in self.item["values"]:
            box = self.axes[label]
            for spot in itertools.product(*(range(lo, hi) for lo, hi in box.values())):
                env = dict(zip(box, spot, strict=True))
                made = [
                    self._term(operand, env) if operand is not None and len(operand) == 4 else operand
                    for operand in operands
                ]
                yield [self._label(label, env), op, given, made, *rest, []]

    def _label(self, label: str, env: Env) -> str:
        return label + "".join(f"@{env[axis]}" for axis in self.axes.get(label, {}))

    def _term(self, term: Any, env: Env) -> Any:
        coef, label, region, limit = term
        return [coef, self._label(label, env), [_runs(runs, env) for runs in region], self._limit(limit, env)]

    def _limit(self, limit: Any, env: Env) -> Any:
        if limit is None:
            return None
        return [
            [
                [[letter, _runs(runs, env)] for letter, runs in shares],
                [[self._label(key, env) if isinstance(key, str) else key, at] for key, at in through],
            ]
            for shares, through in limit
        ]


def _runs(runs: Any, env: Env) -> Any:
    made: list[list[int]] = []
    for run in runs:
        lo, hi = (evaluate(expr(str(end)), env) for end in run)
        if made and made[-1][1] == lo:
            made[-1][1] = hi
        else:
            made.append([lo, hi])
    return made
