"""Compare two recorded runs: judge each pair of tensors on its own step, then say where the first fault is.

A pair is judged by computing A's steps again, from what B had at the last tensors the two have in common:
what an earlier fault or earlier rounding did to B's inputs cancels out, so that only this step is on trial.
Steps that lie between (fused, inserted or left out in one run) are taken together. Knows recordings; does
not know what made them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final

import torch

from tensure.errors import InputError

from ._align import Alignment, Pair, align
from ._bounds import EPSILON, Expected, expect
from ._difference import Class, Difference, Finding, Verdict
from ._explain import same_bits
from ._families import family, is_exact, is_view, unset_outputs
from ._flow import stand_ins
from ._narrow import Suspects, explain, explain_stand_in
from ._recording import Recording
from ._records import Step, TensorFacts
from ._rounded_once import is_off_by_itself
from ._unjudged import BLACK_BOX, BOTH_FROM_FILES, TOO_FAR, UNDECIDED, advice
from ._versions import is_version, previous_version

__all__ = ["compare"]

Progress = Callable[[int, int], None]
_DEEPER: Final = 3
"""Levels of trusted operands that are computed again for a run that is a black box."""
MAX_REGION: Final = 256
"""Steps that are taken together."""
MAX_DOUBT: Final = 64
"""Steps over which other arguments may still be made up for by a later difference."""


def compare(
    a: Recording,
    b: Recording,
    *,
    rename: Mapping[str, str] | None = None,
    rtol: float = 0.0,
    atol: float = 0.0,
    first_only: bool = False,
    progress: Progress | None = None,
) -> Difference:
    """Where two runs agree and where they part.

    Args:
        a, b: recorded with values kept (`keep=True`) and digests.
        rename: names in A -> names in B that mean the same.
        rtol, atol: allowed on top of the bound that rounding grows: `atol + rtol |expected|`.
        first_only: stop at the first fault.

    Raises:
        InputError: values were not kept, or `rename` names a tensor that is not there.
    """
    for run in (a, b):
        if run.values is None:
            raise InputError(
                f"the values of {run.trace.name} were not kept", next_step="Record with keep=True"
            )
    alignment = align(a.trace, b.trace, rename=rename, same_names=bool(a.program) and a.program == b.program)
    judge = _Judge(a, b, alignment, rtol, atol)
    return judge.run(first_only, progress)


class _Judge:
    def __init__(self, a: Recording, b: Recording, alignment: Alignment, rtol: float, atol: float) -> None:
        self.a, self.b = a, b
        self.rtol, self.atol = rtol, atol
        self.result = Difference(a.trace, b.trace, alignment)
        self.to_b = alignment.to_b()
        self.aside: dict[str, Pair] = {}
        """Pairs that differ but are not sure to mean the same: decided by what comes after them."""
        self.judged: set[str] = set()
        self.stand_ins = stand_ins(b.trace)
        self.to_a = {pair.b: pair.a for pair in alignment.pairs}
        self.tainted = set(a.uneven | b.uneven)
        """Tensors of which ranks have different copies, and what was made of those."""
        self.apart: set[str] = set()
        """Tensors that are not the same thing in both runs, though they were paired."""
        self.blamed: set[tuple[str, int | None]] = set()
        self.differ_later = self._differ_later()
        """Tensors of A that come into a later step which B lacks, or has with other arguments."""
        self.first_read: dict[str, int] = {}
        for step in a.trace.steps:
            for name in step.reads:
                self.first_read.setdefault(name, step.index)
        self.goes_on = {name for step in a.trace.steps if not is_view(step.op) for name in step.reads}
        """Tensors of A from which others are computed."""

    def run(self, first_only: bool, progress: Progress | None) -> Difference:
        pairs = self._in_order()
        for at, pair in enumerate(pairs):
            if progress is not None:
                progress(at, len(pairs))
            if self._is_unset(pair.a):
                self.judged.add(pair.a)
                continue
            verdict = self._judge(pair)
            doubtful = verdict.kind == "divergent" and not (self._is_sure(pair) and self._is_final(pair))
            if doubtful or (verdict.kind == "within" and self._changed_on_the_same(pair)):
                self.aside[pair.a] = pair
                continue
            self._settle(pair, verdict)
            if first_only and self.result.findings:
                return self.result
        for name, source in self.stand_ins.items():
            self._judge_stand_in(name, source)
        self._judge_outputs()
        self._judge_left()
        self.result.notes += advice(self.result.verdicts, self.result.unmatched)
        self.result.findings.sort(key=_when)
        return self.result

    def _is_sure(self, pair: Pair) -> bool:
        """Whether a pair that differs must mean the same: no leaf, nor made of a leaf that is in doubt."""
        step = self.a.trace.maker(pair.a)
        if not pair.sure or step is None or self._changed_arguments(pair):
            return False
        return not any(read in self.aside and self.a.trace.tensors[read].step < 0 for read in step.reads)

    def _is_final(self, pair: Pair) -> bool:
        """Whether nothing after a pair that differs can make up for other arguments before it.

        `4 * x` for `2 * x` is a fault, unless the program goes on with another factor in another place.
        """
        if pair.a not in self.differ_later:
            return True
        steps, inner = self._region(pair.a)
        return len(steps) > MAX_DOUBT or not any(
            name in self.aside and self._does_otherwise(self.aside[name]) for name in inner
        )

    def _differ_later(self) -> set[str]:
        """What comes into a step that the runs do not share as it is."""
        found: set[str] = set()
        for step in reversed(self.a.trace.steps):
            if any(out in found for out in step.outs) or self._is_only_in_a(step):
                found.update(step.reads)
        return found

    def _is_only_in_a(self, step: Step) -> bool:
        """Whether B has no such step, one with other arguments, or a step of its own before it."""
        if self._is_alone(step, self.to_b):
            return True
        makers = [self.b.trace.maker(self.to_b[out]) for out in step.outs if out in self.to_b]
        for other in makers:
            if other is None:
                continue
            before = [self.b.trace.maker(read) for read in other.reads]
            if _have_other_arguments(step, other) or any(
                maker is not None and self._is_alone(maker, self.to_a) for maker in before
            ):
                return True
        return False

    def _changed_arguments(self, pair: Pair) -> bool:
        """Whether the two steps do the same op with other arguments."""
        one, other = self.a.trace.maker(pair.a), self.b.trace.maker(pair.b)
        return one is not None and other is not None and _have_other_arguments(one, other)

    def _does_otherwise(self, pair: Pair) -> bool:
        """Whether the two steps' arguments differ in more than their spelling."""
        return self._changed_arguments(pair) and (
            self._changed_on_the_same(pair) or not self._does_its_part(pair)
        )

    def _changed_on_the_same(self, pair: Pair) -> bool:
        """Whether other arguments gave another result of the very same operands: that is no rounding."""
        one, other = self.a.trace.maker(pair.a), self.b.trace.maker(pair.b)
        if one is None or other is None or not self._changed_arguments(pair):
            return False
        return len(one.reads) == len(other.reads) and all(
            _same_digest(self.a.trace.tensors[x], self.b.trace.tensors[y])
            for x, y in zip(one.reads, other.reads, strict=True)
        )

    def _judge_outputs(self) -> None:
        """What the runs hand back is the same thing, whatever came of the alignment."""
        ours, theirs = self.a.trace.outputs, self.b.trace.outputs
        names = [(ours[key], theirs[key]) for key in ours if key in theirs]
        if not names and len(ours) == len(theirs):
            names = list(zip(ours.values(), theirs.values(), strict=True))
        else:
            alone = (key for key in (*ours, *theirs) if (key in ours) != (key in theirs))
            self.result.unmatched += [f"output {key}" for key in alone]
        if not ours or not theirs:
            self.result.unmatched += [*_ends(self.a, self.judged), *_ends(self.b, self._judged_b())]
        for a, b in names:
            if self._is_counterpart(a, b) and a not in self.aside:
                continue
            pair = Pair(a, b, "output", sure=True)
            kept = self.aside.pop(a, None)
            verdict = self._judge(pair)
            if kept is not None and verdict.kind != "divergent":
                self.result.verdicts.append(Verdict(kept, "by_design", basis=f"the output is {b}"))
            self._settle(pair, verdict)

    def _judge_left(self) -> None:
        """What nothing after it could decide: where a run ends it counts as it is, elsewhere if sure."""
        left = sorted(self.aside.values(), key=lambda pair: (pair.a in self.goes_on, self._place(pair)))
        for pair in left:
            if self.aside.pop(pair.a, None) is None:
                continue
            verdict = self._judge(pair)
            if verdict.kind == "divergent" and not pair.sure and pair.a in self.goes_on:
                verdict = replace(verdict, kind="unjudged", basis=UNDECIDED)
            self._settle(pair, verdict)

    def _judged_b(self) -> set[str]:
        return {self.to_b[name] for name in self.judged if name in self.to_b}

    def _is_counterpart(self, a: str, b: str) -> bool:
        """Whether two outputs are a pair, or a pair of which one was cast in the end."""
        if self.to_b.get(a) == b:
            return True
        cast_a, cast_b = _before_cast(self.a, a), _before_cast(self.b, b)
        return (cast_b is not None and self.to_b.get(a) == cast_b) or (
            cast_a is not None and self.to_b.get(cast_a) == b
        )

    def _in_order(self) -> list[Pair]:
        """Leaves where they are first read, then as A made them."""
        return sorted(self.result.alignment.pairs, key=self._place)

    def _place(self, pair: Pair) -> tuple[int, int]:
        made = self.a.trace.tensors[pair.a].step
        return (made, 1) if made >= 0 else (self.first_read.get(pair.a, len(self.a.trace.steps)), 0)

    def _settle(self, pair: Pair, verdict: Verdict) -> None:
        """Write a verdict down; it decides the pairs set aside in its region too."""
        _, inner = self._region(pair.a)
        inside = {name: self.aside[name] for name in inner if name in self.aside}
        waiting = sorted(inside.values(), key=self._place)
        if verdict.kind != "divergent":
            # A leaf that differs with nothing folded into it is a fault, however little comes of it; so are
            # other arguments that no others make up for.
            _, _, extra_a, extra_b = self._suspects(pair)
            folded = any(not is_exact(step.op) for step in (*extra_a, *extra_b))
            made_at = {other.a: self.a.trace.tensors[other.a].step for other in (*waiting, pair)}
            changed = {made_at[other.a] for other in (*waiting, pair) if self._does_otherwise(other)}
            for other in waiting:
                is_leaf = made_at[other.a] < 0
                blamed = not changed if is_leaf else changed == {made_at[other.a]}
                if other.sure and not folded and blamed:
                    del self.aside[other.a]
                    basis = "values given" if is_leaf else "other arguments"
                    self.result.verdicts.append(Verdict(other, "divergent", basis=basis))
                    self.judged.add(other.a)
                    self._find(other)
        for other in waiting:
            if self.aside.pop(other.a, None) is not None:
                kind: Class = "by_design"
                if verdict.kind in ("divergent", "unjudged"):
                    kind = verdict.kind
                basis = verdict.basis if kind == "unjudged" else f"decided by {pair.a}"
                self.result.verdicts.append(Verdict(other, kind, basis=basis))
                self.judged.add(other.a)
                if kind != "divergent":
                    self.apart.add(other.a)
        self.result.verdicts.append(verdict)
        self.judged.add(pair.a)
        if verdict.kind == "unjudged" and not pair.sure:
            self.apart.add(pair.a)
        if verdict.kind == "divergent":
            self._find(waiting[0] if waiting else pair)

    def _find(self, pair: Pair) -> None:
        """Write a fault down, once: what an extra step does to each of its readers is one fault."""
        finding = self._finding(pair)
        blamed = None if finding.step_b is None else finding.step_b.index
        if finding.kind == "leaf" or self.b.trace.tensors[pair.b].step == blamed:
            self.result.findings.append(finding)
        elif (finding.kind, blamed) not in self.blamed:
            self.blamed.add((finding.kind, blamed))
            self.result.findings.append(finding)

    def _is_unset(self, name: str) -> bool:
        """Whether it is memory that the step did not set: whatever lay there."""
        step = self.a.trace.maker(name)
        return step is not None and any(step.outs[at : at + 1] == (name,) for at in unset_outputs(step.op))

    # --- one pair ---

    def _judge(self, pair: Pair) -> Verdict:
        fa, fb = self.a.trace.tensors[pair.a], self.b.trace.tensors[pair.b]
        if _same_digest(fa, fb):
            return Verdict(pair, "identical", basis="digest")
        if is_version(pair.a) and fa.step >= 0:
            return Verdict(pair, "within", basis="judged where it was written")
        if not self._has_values(pair):
            return Verdict(pair, "unjudged", basis="values that were not there to keep")
        x, y = self._value(self.a, pair.a), self._value(self.b, pair.b)
        if x.numel() != y.numel():
            return Verdict(pair, "unjudged", basis="different sizes")
        y = y.reshape(x.shape)
        if x.dtype == y.dtype and bool(same_bits(x, y).all()):
            if fa.layout != "strided" and fa.digest is not None and fb.digest is not None:
                return Verdict(pair, "divergent", basis="the same values in other places")
            return Verdict(pair, "identical", basis="values")
        gap = _gap(x, y)
        if fa.step < 0 or fb.quantised is not None:
            return self._judge_leaf(pair, fa, fb, x, y, gap)
        dtype = _coarser(fa.dtype, fb.dtype)
        theirs = self._expected(self.a, self.b, pair.a, dtype, self._given(pair.a))
        if theirs is None:
            swapped = self._expected(self.b, self.a, pair.b, dtype, self._given_back(pair))
            if swapped is None:
                return self._estimate(pair, x, dtype, gap)
            kind, excess = self._hold(swapped, x)
            return Verdict(pair, kind, gap, excess, swapped.reduction, "B's steps on A's operands")
        kind, excess = self._hold(theirs, y)
        if kind == "divergent" and not self.b.replays:
            kind, excess = self._hold_deeper(pair, dtype, y, excess)
        if kind == "divergent" and self._is_tainted(pair.a):
            self.tainted.add(pair.a)
            return Verdict(pair, "unjudged", gap, excess, theirs.reduction, "ranks differ in an operand")
        if kind == "within":
            for run, name in ((self.a, pair.a), (self.b, pair.b)):
                if is_off_by_itself(run, name, partial(self._value, run)):
                    basis = "an op that rounds once"
                    return Verdict(pair, "divergent", gap, excess, theirs.reduction, basis)
            # B does as A's steps say. Does A itself?
            own = self._expected(self.a, self.a, pair.a, fa.dtype, {})
            if own is not None:
                own_kind, own_excess = self._hold(own, x)
                if own_kind == "divergent":
                    return Verdict(pair, own_kind, gap, own_excess, own.reduction, "A's own steps")
        return Verdict(pair, kind, gap, excess, theirs.reduction, "A's steps on B's operands")

    def _hold_deeper(
        self, pair: Pair, dtype: str, found: torch.Tensor, excess: float | None
    ) -> tuple[Class, float | None]:
        """Whether B keeps to A's steps from further back.

        B is a black box that may have had its operands in another form than it shows: sums in parts, say.
        """
        taken = frozenset[str]()
        for _ in range(_DEEPER):
            steps, _ = self._region(pair.a, taken)
            taken |= {read for step in steps for read in step.reads if self.a.trace.tensors[read].step >= 0}
            expected = self._expected(self.a, self.b, pair.a, dtype, self._given(pair.a, taken))
            if expected is not None and self._hold(expected, found)[0] == "within":
                return "within", self._hold(expected, found)[1]
        return "divergent", excess

    def _has_values(self, pair: Pair) -> bool:
        assert self.a.values is not None
        assert self.b.values is not None
        return pair.a in self.a.values and pair.b in self.b.values

    def _is_tainted(self, name: str) -> bool:
        step = self.a.trace.maker(name)
        return step is not None and any(read in self.tainted for read in step.reads)

    def _judge_leaf(
        self, pair: Pair, fa: TensorFacts, fb: TensorFacts, x: torch.Tensor, y: torch.Tensor, gap: float
    ) -> Verdict:
        """A leaf may differ by its dtype's rounding, or by a step of the integers it came through."""
        bound = self.atol + self.rtol * x.double().abs() if x.is_floating_point() else None
        quantised = fb.quantised or fa.quantised
        if bound is not None and fa.dtype != fb.dtype and {fa.dtype, fb.dtype} <= set(EPSILON):
            bound = bound + EPSILON[_coarser(fa.dtype, fb.dtype)] * x.double().abs()
        elif bound is not None and quantised is not None:
            bound = bound + 0.5000001 * quantised.scale[1]
        elif not (self.rtol or self.atol):
            return Verdict(pair, "divergent", gap, None, basis="values given")
        if bound is None:
            return Verdict(pair, "divergent", gap, None, basis="values given")
        kind, excess = self._hold(Expected(x.double(), bound, 1), y)
        return Verdict(pair, kind, gap, excess, basis="values given, rounded")

    def _judge_stand_in(self, name: str, source: str) -> None:
        """Numbers that went through integers: off by half a step of the grid, or at its end."""
        facts = self.b.trace.tensors[name]
        ours = self.to_a.get(source)
        step = self.b.trace.maker(name)
        if facts.quantised is None or ours is None or step is None:
            return
        before, after = self._value(self.b, source), self._value(self.b, name)
        integers = self._value(self.b, step.reads[0])
        bound = torch.full_like(before, (0.5 + 1e-3) * facts.quantised.scale[1], dtype=torch.float64)
        inside = (integers > integers.min()) & (integers < integers.max())
        held = torch.where(
            inside.reshape(before.shape), after.reshape(before.shape).double(), before.double()
        )
        kind, excess = self._hold(Expected(before.double(), bound, 1), held)
        pair = Pair(ours, name, "flow", sure=True)
        self.result.verdicts.append(
            Verdict(pair, kind, _gap(before, after), excess, basis="through integers")
        )
        if kind == "divergent":
            self.result.findings.append(
                explain_stand_in(self.b, pair, source, step, facts.quantised.scale[1])
            )

    def _hold(self, expected: Expected, found: torch.Tensor) -> tuple[Any, float | None]:
        """Whether found values keep to what was expected."""
        value = expected.value.reshape(found.shape) if expected.value.numel() == found.numel() else None
        if value is None:
            return "divergent", None
        bound = expected.bound
        if value.is_complex() or found.is_complex():
            bound = None if bound is None else torch.stack([bound, bound], -1)
            value = torch.view_as_real(value.to(torch.complex128))
            found = torch.view_as_real(found.to(torch.complex128))
            if bound is None and not (self.rtol or self.atol):
                return ("within" if bool(same_bits(value, found).all()) else "divergent"), None
        if bound is None and not (self.rtol or self.atol):
            value = value.to(found.dtype)
            return ("within" if bool(same_bits(value, found).all()) else "divergent"), None
        wide = found.double()
        value = value.double()
        allowed = self.atol + self.rtol * value.abs()
        if bound is not None:
            allowed = allowed + bound.reshape(found.shape)
        error = (wide - value).abs()
        # NaN and Inf must stand where they should; an overflow of the narrower dtype is its own rounding.
        top = torch.finfo(found.dtype).max if found.is_floating_point() else float("inf")
        value_here = torch.where(value.abs() > top, torch.sign(value) * float("inf"), value)
        same = (wide == value_here) | (wide.isnan() & value_here.isnan())
        ratio = torch.where(same, torch.zeros_like(error), error / allowed.clamp_min(_TINY))
        ratio = torch.nan_to_num(ratio, nan=float("inf"), posinf=float("inf"))
        worst = float(ratio.max()) if ratio.numel() else 0.0
        return ("within" if worst <= 1.0 else "divergent"), worst

    def _estimate(self, pair: Pair, x: torch.Tensor, dtype: str, gap: float) -> Verdict:
        """Neither run's step can be computed again: judged by size alone, and said so."""
        eps = EPSILON.get(dtype)
        reason = self._why_not_again(pair)
        if eps is None or not x.is_floating_point():
            return Verdict(pair, "unjudged", gap, None, basis=reason)
        scale = float(torch.nan_to_num(x.double()).square().mean().sqrt())
        allowed = self.atol + (self.rtol + 1024 * eps) * max(scale, _TINY)
        if gap <= allowed:
            return Verdict(pair, "within", gap, gap / allowed, basis="size alone")
        return Verdict(pair, "unjudged", gap, gap / allowed, basis=reason)

    def _why_not_again(self, pair: Pair) -> str:
        """Why neither run's steps to a tensor can be computed again."""
        if not self.a.replays and not self.b.replays:
            return BOTH_FROM_FILES
        steps = (self._region(pair.a)[0], self.a), (self._region_b(pair), self.b)
        far = any(len(region) > MAX_REGION for region, run in steps if run.replays)
        return TOO_FAR if far else BLACK_BOX

    # --- regions ---

    def _region(self, name: str, taken: frozenset[str] = frozenset()) -> tuple[list[Step], list[str]]:
        """A's steps that make a tensor from trusted ones, in order, and the tensors made inside.

        Those `taken` in are made inside, trusted or not.
        """
        return region(self.a, name, lambda key: self._is_trusted(key) and key not in taken)

    def _region_b(self, pair: Pair) -> list[Step]:
        """B's steps that make a pair's tensor from trusted ones, in order.

        What B makes an output from may be the counterpart of A's output: on trial itself, so not trusted.
        """
        return region(self.b, pair.b, lambda key: self._is_trusted_b(key) and self.to_a.get(key) != pair.a)[0]

    def _is_trusted_b(self, name: str) -> bool:
        return name in self.to_a and self._is_trusted(self.to_a[name])

    def _is_trusted(self, name: str) -> bool:
        return name in self.judged and name not in self.aside and name not in self.apart

    def _given(self, name: str, taken: frozenset[str] = frozenset()) -> dict[str, torch.Tensor]:
        """B's values for the trusted tensors that A's region reads."""
        steps, _ = self._region(name, taken)
        made = {out for step in steps for out in step.outs}
        found: dict[str, torch.Tensor] = {}
        for step in steps:
            for read in step.reads:
                if read in made or read in found or not self._is_trusted(read):
                    continue
                facts = self.a.trace.tensors[read]
                value = self._value(self.b, self._operand(step, read))
                if value.numel() == facts.size:
                    found[read] = value.reshape(facts.shape)
        return found

    def _operand(self, step: Step, read: str) -> str:
        """B's name for what A's step reads: what B's own step reads there, if it went through integers."""
        matched = next((self.to_b[out] for out in step.outs if out in self.to_b), None)
        other = None if matched is None else self.b.trace.maker(matched)
        if other is not None and len(other.reads) == len(step.reads):
            name = other.reads[step.reads.index(read)]
            if name in self.stand_ins and self.stand_ins[name] == self.to_b[read]:
                return name
        return self.to_b[read]

    def _given_back(self, pair: Pair) -> dict[str, torch.Tensor]:
        """A's values for what B's region reads."""
        found: dict[str, torch.Tensor] = {}
        for step in self._region_b(pair):
            for read in step.reads:
                if self._is_trusted_b(read) and self.to_a[read] != pair.a:
                    facts = self.b.trace.tensors[read]
                    value = self._value(self.a, self.to_a[read])
                    if value.numel() == facts.size:
                        found[read] = value.reshape(facts.shape)
        return found

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
        return expect(run, steps, name, given, dtype, lambda key: self._value(run, key))

    def _value(self, run: Recording, name: str) -> torch.Tensor:
        assert run.values is not None
        return run.values.get(name)

    # --- a fault ---

    def _finding(self, pair: Pair) -> Finding:
        steps_a, steps_b, extra_a, extra_b = self._suspects(pair)
        innocent = bool(extra_a or extra_b) and self._does_its_part(pair)
        writer = self._overwriter(steps_a, steps_b)
        return explain(self.a, self.b, pair, Suspects(steps_a, steps_b, extra_a, extra_b, innocent, writer))

    def _suspects(self, pair: Pair) -> tuple[list[Step], list[Step], list[Step], list[Step]]:
        """A's and B's steps that make a pair of trusted tensors, and those of each that the other lacks."""
        steps_a, _ = self._region(pair.a)
        steps_b = self._region_b(pair)
        extra_a = [step for step in steps_a if self._is_alone(step, self.to_b)]
        return steps_a, steps_b, extra_a, [step for step in steps_b if self._is_alone(step, self.to_a)]

    def _overwriter(self, steps_a: list[Step], steps_b: list[Step]) -> Step | None:
        """The step of B that wrote over what A reads here, if B reads what it left."""
        reads_a = {read for step in steps_a for read in step.reads}
        for step in steps_b:
            for read in step.reads:
                maker = self.b.trace.maker(read)
                if maker is None or self.to_a.get(read) in reads_a:
                    continue
                if is_version(read) and not any(is_version(name) for name in reads_a):
                    return maker
                if any(self.to_a.get(name) in reads_a for name in maker.wrote):
                    return maker
        return None

    def _is_alone(self, step: Step, matched: Mapping[str, str]) -> bool:
        return not is_view(step.op) and not any(out in matched for out in step.outs)

    def _does_its_part(self, pair: Pair) -> bool:
        """Whether B's last step gives what A's would have given of the same operands."""
        step_a, step_b = self.a.trace.maker(pair.a), self.b.trace.maker(pair.b)
        if step_a is None or step_b is None:
            return False
        in_place = list(zip(step_a.reads, step_b.reads, strict=False))
        if len(step_a.reads) == len(step_b.reads) and self._gives(pair, step_a, dict(in_place)):
            return True
        theirs = set(step_b.reads)
        ours = [read for read in step_a.reads if read in self.to_b and self.to_b[read] not in theirs]
        strange = [read for read in step_b.reads if read not in self.to_a]
        if not ours or len(ours) != len(strange):
            return False
        trusted = {read: self.to_b[read] for read in step_a.reads if self._is_trusted(read)}
        return self._gives(pair, step_a, trusted | dict(zip(ours, strange, strict=True)))

    def _gives(self, pair: Pair, step_a: Step, names: Mapping[str, str]) -> bool:
        """Whether A's step gives B's result of these tensors of B, by A's names."""
        given: dict[str, torch.Tensor] = {}
        for read, name in names.items():
            value, facts = self._value(self.b, name), self.a.trace.tensors[read]
            if value.numel() != facts.size:
                return False
            given[read] = value.reshape(facts.shape)
        fa, fb = self.a.trace.tensors[pair.a], self.b.trace.tensors[pair.b]
        dtype = _coarser(fa.dtype, fb.dtype)
        found = expect(self.a, [step_a], pair.a, given, dtype, lambda key: self._value(self.a, key))
        return found is not None and self._hold(found, self._value(self.b, pair.b))[0] == "within"


_TINY: Final = 1e-300


def _have_other_arguments(a: Step, b: Step) -> bool:
    """Whether two steps do the same op with other arguments."""
    return a.op == b.op and a.arguments != b.arguments


def _ends(run: Recording, judged: set[str]) -> list[str]:
    """What a run whose outputs nobody named ended in, as far as it has no counterpart."""
    read = {name for step in run.trace.steps for name in step.reads}
    found: list[str] = []
    for step in run.trace.steps:
        if step.outs and step.outs[0] not in read and not is_view(step.op) and not unset_outputs(step.op):
            if step.outs[0] not in judged:
                found.append(step.outs[0])
    return found


def _before_cast(run: Recording, name: str) -> str | None:
    """What a cast was made from; None for what is no cast."""
    step = run.trace.maker(name)
    return step.reads[0] if step is not None and step.reads and family(step.op) in _CASTS else None


_CASTS: Final = frozenset({"_to_copy", "to", "type_as"})


def _when(finding: Finding) -> int:
    """Where in the run a fault shows first."""
    step = finding.step_b or finding.step_a
    return step.index if step is not None else -1


def region(run: Recording, name: str, trusted: Callable[[str], bool]) -> tuple[list[Step], list[str]]:
    """The steps that make a tensor from trusted ones and leaves, in order; the tensors made on the way."""
    steps: dict[int, Step] = {}
    inside: list[str] = []
    waiting = [name]
    while waiting:
        key = waiting.pop()
        step = run.trace.maker(key)
        if step is None or step.index in steps:
            continue
        steps[step.index] = step
        if len(steps) > MAX_REGION:
            break
        before = (previous_version(run.trace, key),) if is_version(key) else ()
        for read in (*step.reads, *before):
            if not trusted(read):
                inside.append(read)
                waiting.append(read)
    return [steps[at] for at in sorted(steps)], inside


def _same_digest(a: TensorFacts, b: TensorFacts) -> bool:
    return a.digest is not None and a.digest == b.digest and a.shape == b.shape and a.dtype == b.dtype


def _gap(x: torch.Tensor, y: torch.Tensor) -> float:
    if not x.numel():
        return 0.0
    if x.is_complex() or y.is_complex():
        return float((x.to(torch.complex128) - y.to(torch.complex128)).abs().max())
    difference = (x.double() - y.double()).abs()
    difference = torch.where(x.double() == y.double(), torch.zeros_like(difference), difference)
    both = x.double().isnan() & y.double().isnan()
    return float(torch.nan_to_num(torch.where(both, 0.0, difference), nan=float("inf")).max())


def _coarser(a: str, b: str) -> str:
    if a in EPSILON and b in EPSILON:
        return a if EPSILON[a] >= EPSILON[b] else b
    return a if a in EPSILON else b
