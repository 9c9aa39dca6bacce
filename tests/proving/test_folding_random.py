"""Random plans whose names, keys, receivers and indices are expressions of a coordinate, folded and by numpy.

Most are wrong at some place. None that numpy tells from the Program is proved, and none that it does not is
refuted, be it with 4 ranks or with 128 times as many.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from tensure.bundle import Local, Place, Plan, Track
from tensure.program import Name, Op, Program, Ref, axis, expr, name, op
from tensure.proving import prove_plan
from tests.proving.test_folding_soundness import DP, goes_wrong, many, plan_of, program_of, whole

OTHERS = ("0", "1", "3", "3-dp", "dp+1", "dp-1", "2*dp", "dp+4", "dp//2", "(dp+1)%4")
ROW = ((0, ((DP, DP + 1, 1),)),)
MEMBER = axis("i")
LOCALS = {
    "x": Local((), Place(name("x"), ROW)),
    "y": Local((), Place(name("y"), ROW)),
    "s": whole("s"),
    "part": Local((), Place(name("s"), sum=("dp",))),
    "all": whole("y"),
    "t": Local(("i",)),
    "g": Local(("i",)),
    "r": Local(("i",)),
    "u": Local(("i",), Place(name("y"), ((0, ((MEMBER, MEMBER + 1, 1),)),))),
    "v": Local(("i", "j"), Place(name("s"), sum=("j",))),
}


class Draw:
    """One Plan at random for rows of exp and their sum."""

    def __init__(self, rng: np.random.Generator, plain: float) -> None:
        self._rng, self._plain = rng, plain

    def _so(self, chance: float) -> bool:
        return bool(self._rng.random() < chance)

    def _end(self) -> Any:
        return DP if self._so(self._plain) else expr(str(self._rng.choice(OTHERS)))

    def _copy(self, of: Name, *, out: Name) -> Op:
        return Op("copy", (Ref(of),), (out,))

    def body(self) -> list[Op]:
        y, s = name("y"), name("s")
        made, met = Name("t", (self._end(),)), Name("g", (self._end() if self._so(0.3) else 0,))
        steps = [op("exp", "x", out="y"), self._copy(y, out=made)]
        if self._so(0.4):
            steps.append(self._copy(y, out=Name("t", (self._end(),))))
        if self._so(0.5):
            steps.append(self._copy(y, out=Name("u", (self._end(),))))
        read = Ref(Name("t", (self._end(),))) if self._so(0.2) else Ref(made)
        steps.append(Op("all_gather", (read,), (met,), (("axes", ("dp",)), ("dim", 0))))
        steps.append(self._copy(met, out=name("all")))
        steps.append(op("sum", "y", out="part", dim=[0]))
        steps.append(op("all_reduce", "part", out="s", axes=("dp",), reduce="sum"))
        if self._so(0.4):
            zero = (("dtype", "f64"), ("fill_value", 0.0), ("size", (3,)))
            first, second = Name("v", (self._end(), 0)), Name("v", (self._end(), 1))
            steps.append(self._copy(s, out=first))
            steps.append(Op("full", (), (second,), zero) if self._so(0.5) else self._copy(s, out=second))
        return steps

    def plan(self, program: Program) -> Plan:
        sends, takes = self.body(), list[Op]()
        for message in range(int(self._rng.integers(3))):
            key = self._end()
            to = (("at", (self._end(),)), ("key", ("m", key)), ("to", "z"))
            sends.append(Op("send", (Ref(name("y")),), (), to))
            awaited = key if self._so(0.8) else self._end()
            takes.append(Op("recv", (), (Name("r", (message,)),), (("key", ("m", awaited)),)))
        tracks = {"a": Track(("dp",), (), None, {}, {"run": tuple(sends)})}
        cut = int(self._rng.integers(4))
        if cut:
            other = sends if self._so(0.7) else self.body()
            for label, steps, span in (("a", sends, (0, cut)), ("b", other, (cut, 4))):
                tracks[label] = Track(("dp",), (), None, {}, {"run": tuple(steps)}, (("dp", *span),))
        if takes:
            spans = (("dp", 0, 2),) if self._so(0.3) else ()
            tracks["z"] = Track(("dp",), (), None, {}, {"run": tuple(takes)}, spans)
        return plan_of(program, LOCALS, **tracks)


def campaign(count: int, seed: int, plain: float) -> Counter[str]:
    program = program_of({"x": (4, 3)}, [op("exp", "x", out="y"), op("sum", "y", out="s", dim=[0])], "y", "s")
    draw, counts = Draw(np.random.default_rng(seed), plain), Counter[str]()
    for _ in range(count):
        plan = draw.plan(program)
        wrong = goes_wrong(plan, program)
        for found in (prove_plan(plan, program, fold=("dp",)), prove_plan(many(plan), program)):
            status = found.proof.values.status
            assert status not in (("proved", "probable") if wrong else ("refuted",)), plan
            counts[f"{'wrong' if wrong else 'right'} {status}"] += 1
    return counts


@pytest.mark.parametrize("plain", [0.4, 0.8])
def test_random_plans(plain: float) -> None:
    counts = campaign(60, 3, plain)
    assert counts["right proved"] >= 4 and counts["wrong refuted"] >= 40


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(8))
def test_many_random_plans(seed: int) -> None:
    print(dict(campaign(600, seed, 0.4 + 0.05 * seed)))
