"""One pair of tensors judged: A's steps are computed again from what B had, and B's tensor is held to that.

Knows what both runs have in common so far. Does not know in which order pairs come, nor what becomes of a
verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, Literal

import torch

from ._align import Pair
from ._bounds import EPSILON, Expected, expect
from ._common import MAX_REGION, Common, region
from ._difference import Class, Finding, Verdict
from ._explain import same_bits
from ._narrow import explain_stand_in
from ._recording import Recording
from ._records import Step, TensorFacts
from ._rounded_once import is_off_by_itself
from ._tolerance import TINY, coarser, hold
from ._tolerance import gap as gap_of
from ._unjudged import BLACK_BOX, BOTH_FROM_FILES, TOO_FAR
from ._versions import is_version

__all__ = ["PairJudge", "same_digest"]

_DEEPER: Final = 3
"""Levels of trusted operands that are computed again for a run that is a black box."""


class PairJudge:
    """Judges pairs of one comparison; `rtol` and `atol` are allowed on top of every bound."""

    def __init__(self, common: Common, rtol: float, atol: float) -> None:
        self.common, self.a, self.b = common, common.a, common.b
        self.rtol, self.atol = rtol, atol

    def judge(self, pair: Pair) -> Verdict:
        """Whether the two are the same to the bit, within what rounding allows, or not."""
        fa, fb = self.a.trace.tensors[pair.a], self.b.trace.tensors[pair.b]
        if same_digest(fa, fb):
            return Verdict(pair, "identical", basis="digest")
        if is_version(pair.a) and fa.step >= 0:
            return Verdict(pair, "within", basis="judged where it was written")
        if not self._has_values(pair):
            return Verdict(pair, "unjudged", basis="values that were not there to keep")
        x, y = self.common.value(self.a, pair.a), self.common.value(self.b, pair.b)
        if x.numel() != y.numel():
            return Verdict(pair, "unjudged", basis="different sizes")
        y = y.reshape(x.shape)
        if x.dtype == y.dtype and bool(same_bits(x, y).all()):
            if fa.layout != "strided" and fa.digest is not None and fb.digest is not None:
                return Verdict(pair, "divergent", basis="the same values in other places")
            return Verdict(pair, "identical", basis="values")
        gap = gap_of(x, y)
        if fa.step < 0 or fb.quantised is not None:
            return self._judge_leaf(pair, fa, fb, x, y, gap)
        dtype = coarser(fa.dtype, fb.dtype)
        theirs = self._expected(self.a, self.b, pair.a, dtype, self.common.given(pair.a))
        if theirs is None:
            swapped = self._expected(self.b, self.a, pair.b, dtype, self.common.given_back(pair))
            if swapped is None:
                return self._estimate(pair, x, dtype, gap)
            held, excess = self._hold(swapped, x)
            return Verdict(pair, held, gap, excess, swapped.reduction, "B's steps on A's operands")
        kind: Class
        kind, excess = self._hold(theirs, y)
        if kind == "divergent" and not self.b.replays:
            kind, excess = self._hold_deeper(pair, dtype, y, excess)
        if kind == "divergent" and self._is_tainted(pair.a):
            self.common.tainted.add(pair.a)
            return Verdict(pair, "unjudged", gap, excess, theirs.reduction, "ranks differ in an operand")
        if kind == "within":
            for run, name in ((self.a, pair.a), (self.b, pair.b)):
                if is_off_by_itself(run, name, partial(self.common.value, run)):
                    basis = "an op that rounds once"
                    return Verdict(pair, "divergent", gap, excess, theirs.reduction, basis)
            # B does as A's steps say. Does A itself?
            own = self._expected(self.a, self.a, pair.a, fa.dtype, {})
            if own is not None:
                own_kind, own_excess = self._hold(own, x)
                if own_kind == "divergent":
                    return Verdict(pair, own_kind, gap, own_excess, own.reduction, "A's own steps")
        return Verdict(pair, kind, gap, excess, theirs.reduction, "A's steps on B's operands")

    def stand_in(self, name: str, source: str) -> tuple[Verdict, Finding | None] | None:
        """B's numbers that went through integers: off by half a step of the grid, or at its end.

        None where the grid or the counterpart of what was rounded is not known.
        """
        facts = self.b.trace.tensors[name]
        ours = self.common.to_a.get(source)
        step = self.b.trace.maker(name)
        if facts.quantised is None or ours is None or step is None:
            return None
        before, after = self.common.value(self.b, source), self.common.value(self.b, name)
        integers = self.common.value(self.b, step.reads[0])
        bound = torch.full_like(before, (0.5 + 1e-3) * facts.quantised.scale[1], dtype=torch.float64)
        inside = (integers > integers.min()) & (integers < integers.max())
        held = torch.where(
            inside.reshape(before.shape), after.reshape(before.shape).double(), before.double()
        )
        kind, excess = self._hold(Expected(before.double(), bound, 1), held)
        pair = Pair(ours, name, "flow", sure=True)
        verdict = Verdict(pair, kind, gap_of(before, after), excess, basis="through integers")
        if kind != "divergent":
            return verdict, None
        return verdict, explain_stand_in(self.b, pair, source, step, facts.quantised.scale[1])

    def does_its_part(self, pair: Pair) -> bool:
        """Whether B's last step gives what A's would have given of the same operands."""
        step_a, step_b = self.a.trace.maker(pair.a), self.b.trace.maker(pair.b)
        if step_a is None or step_b is None:
            return False
        in_place = list(zip(step_a.reads, step_b.reads, strict=False))
        if len(step_a.reads) == len(step_b.reads) and self._gives(pair, step_a, dict(in_place)):
            return True
        theirs = set(step_b.reads)
        ours = [
            read for read in step_a.reads if read in self.common.to_b and self.common.to_b[read] not in theirs
        ]
        strange = [read for read in step_b.reads if read not in self.common.to_a]
        if not ours or len(ours) != len(strange):
            return False
        trusted = {read: self.common.to_b[read] for read in step_a.reads if self.common.is_trusted(read)}
        return self._gives(pair, step_a, trusted | dict(zip(ours, strange, strict=True)))

    def _gives(self, pair: Pair, step_a: Step, names: Mapping[str, str]) -> bool:
        """Whether A's step gives B's result of these tensors of B, by A's names."""
        given: dict[str, torch.Tensor] = {}
        for read, name in names.items():
            value, facts = self.common.value(self.b, name), self.a.trace.tensors[read]
            if value.numel() != facts.size:
                return False
            given[read] = value.reshape(facts.shape)
        fa, fb = self.a.trace.tensors[pair.a], self.b.trace.tensors[pair.b]
        dtype = coarser(fa.dtype, fb.dtype)
        found = expect(self.a, [step_a], pair.a, given, dtype, lambda key: self.common.value(self.a, key))
        return found is not None and self._hold(found, self.common.value(self.b, pair.b))[0] == "within"

    def _hold_deeper(
        self, pair: Pair, dtype: str, found: torch.Tensor, excess: float | None
    ) -> tuple[Class, float | None]:
        """Whether B keeps to A's steps from further back.

        B is a black box that may have had its operands in another form than it shows: sums in parts, say.
        """
        taken = frozenset[str]()
        for _ in range(_DEEPER):
            steps, _ = self.common.region(pair.a, taken)
            taken |= {read for step in steps for read in step.reads if self.a.trace.tensors[read].step >= 0}
            expected = self._expected(self.a, self.b, pair.a, dtype, self.common.given(pair.a, taken))
            if expected is not None and self._hold(expected, found)[0] == "within":
                return "within", self._hold(expected, found)[1]
        return "divergent", excess

    def _has_values(self, pair: Pair) -> bool:
        assert self.a.values is not None
        assert self.b.values is not None
        return pair.a in self.a.values and pair.b in self.b.values

    def _is_tainted(self, name: str) -> bool:
        step = self.a.trace.maker(name)
        return step is not None and any(read in self.common.tainted for read in step.reads)

    def _judge_leaf(
        self, pair: Pair, fa: TensorFacts, fb: TensorFacts, x: torch.Tensor, y: torch.Tensor, gap: float
    ) -> Verdict:
        """A leaf may differ by its dtype's rounding, or by a step of the integers it came through."""
        bound = self.atol + self.rtol * x.double().abs() if x.is_floating_point() else None
        quantised = fb.quantised or fa.quantised
        if bound is not None and fa.dtype != fb.dtype and {fa.dtype, fb.dtype} <= set(EPSILON):
            bound = bound + EPSILON[coarser(fa.dtype, fb.dtype)] * x.double().abs()
        elif bound is not None and quantised is not None:
            bound = bound + 0.5000001 * quantised.scale[1]
        elif not (self.rtol or self.atol):
            return Verdict(pair, "divergent", gap, None, basis="values given")
        if bound is None:
            return Verdict(pair, "divergent", gap, None, basis="values given")
        kind, excess = self._hold(Expected(x.double(), bound, 1), y)
        return Verdict(pair, kind, gap, excess, basis="values given, rounded")

    def _estimate(self, pair: Pair, x: torch.Tensor, dtype: str, gap: float) -> Verdict:
        """Neither run's step can be computed again: judged by size alone, and said so."""
        eps = EPSILON.get(dtype)
        reason = self._why_not_again(pair)
        if eps is None or not x.is_floating_point():
            return Verdict(pair, "unjudged", gap, None, basis=reason)
        scale = float(torch.nan_to_num(x.double()).square().mean().sqrt())
        allowed = self.atol + (self.rtol + 1024 * eps) * max(scale, TINY)
        if gap <= allowed:
            return Verdict(pair, "within", gap, gap / allowed, basis="size alone")
        return Verdict(pair, "unjudged", gap, gap / allowed, basis=reason)

    def _why_not_again(self, pair: Pair) -> str:
        """Why neither run's steps to a tensor can be computed again."""
        if not self.a.replays and not self.b.replays:
            return BOTH_FROM_FILES
        steps = (self.common.region(pair.a)[0], self.a), (self.common.region_b(pair), self.b)
        far = any(len(region) > MAX_REGION for region, run in steps if run.replays)
        return TOO_FAR if far else BLACK_BOX

    def _expected(
        self, run: Recording, other: Recording, name: str, dtype: str, given: Mapping[str, torch.Tensor]
    ) -> Expected | None:
        trusted: Callable[[str], bool] = given.__contains__ if given else lambda key: False
        if run is other:  # on its own operands: the step alone
            step = run.trace.maker(name)
            steps = [] if step is None else [step]
        else:
            steps, _ = region(run, name, trusted)
        if not steps or len(steps) > MAX_REGION:
            return None
        return expect(run, steps, name, given, dtype, lambda key: self.common.value(run, key))

    def _hold(
        self, expected: Expected, found: torch.Tensor
    ) -> tuple[Literal["within", "divergent"], float | None]:
        return hold(expected, found, self.rtol, self.atol)


def same_digest(a: TensorFacts, b: TensorFacts) -> bool:
    """Whether two tensors are known to be the same to the bit, shape and dtype too."""
    return a.digest is not None and a.digest == b.digest and a.shape == b.shape and a.dtype == b.dtype
