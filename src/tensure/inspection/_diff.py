"""Compare two recorded runs: judge each pair of tensors on its own step, then say where the first fault is.

A pair is judged by computing A's steps again, from what B had at the last tensors the two have in common:
what an earlier fault or earlier rounding did to B's inputs cancels out, so that only this step is on trial.
Steps that lie between (fused, inserted or left out in one run) are taken together. Knows recordings; does
not know what made them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from tensure.errors import InputError

from ._align import Alignment, Pair, align
from ._blame import finding_of, suspects_of
from ._common import Common
from ._difference import Class, Difference, Finding, Verdict
from ._doubt import Doubt
from ._families import family, is_exact, is_view, unset_outputs
from ._pair_judge import PairJudge
from ._recording import Recording
from ._unjudged import UNDECIDED, advice

__all__ = ["compare"]

Progress = Callable[[int, int], None]


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
    return _Comparison(a, b, alignment, rtol, atol).run(first_only, progress)


class _Comparison:
    """The course of a comparison: pairs in A's order, doubt kept until it is decided, faults written down."""

    def __init__(self, a: Recording, b: Recording, alignment: Alignment, rtol: float, atol: float) -> None:
        self.a, self.b = a, b
        self.result = Difference(a.trace, b.trace, alignment)
        self.common = Common(a, b, alignment)
        self.judge = PairJudge(self.common, rtol, atol)
        self.doubt = Doubt(self.common, self.judge)
        self.blamed: set[tuple[str, int | None]] = set()
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
                self.common.judged.add(pair.a)
                continue
            verdict = self.judge.judge(pair)
            doubtful = verdict.kind == "divergent" and not (
                self.doubt.is_sure(pair) and self.doubt.is_final(pair)
            )
            if doubtful or (verdict.kind == "within" and self.doubt.changed_on_the_same(pair)):
                self.common.aside[pair.a] = pair
                continue
            self._settle(pair, verdict)
            if first_only and self.result.findings:
                return self.result
        for name, source in self.common.stand_ins.items():
            judged = self.judge.stand_in(name, source)
            if judged is not None:
                self.result.verdicts.append(judged[0])
                self.result.findings += [judged[1]] if judged[1] is not None else []
        self._judge_outputs()
        self._judge_left()
        self.result.notes += advice(self.result.verdicts, self.result.unmatched)
        self.result.findings.sort(key=_when)
        return self.result

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
            self.result.unmatched += [*_ends(self.a, self.common.judged), *_ends(self.b, self._judged_b())]
        for a, b in names:
            if self._is_counterpart(a, b) and a not in self.common.aside:
                continue
            pair = Pair(a, b, "output", sure=True)
            kept = self.common.aside.pop(a, None)
            verdict = self.judge.judge(pair)
            if kept is not None and verdict.kind != "divergent":
                self.result.verdicts.append(Verdict(kept, "by_design", basis=f"the output is {b}"))
            self._settle(pair, verdict)

    def _judge_left(self) -> None:
        """What nothing after it could decide: where a run ends it counts as it is, elsewhere if sure."""
        left = sorted(
            self.common.aside.values(), key=lambda pair: (pair.a in self.goes_on, self._place(pair))
        )
        for pair in left:
            if self.common.aside.pop(pair.a, None) is None:
                continue
            verdict = self.judge.judge(pair)
            if verdict.kind == "divergent" and not pair.sure and pair.a in self.goes_on:
                verdict = replace(verdict, kind="unjudged", basis=UNDECIDED)
            self._settle(pair, verdict)

    def _judged_b(self) -> set[str]:
        return {self.common.to_b[name] for name in self.common.judged if name in self.common.to_b}

    def _is_counterpart(self, a: str, b: str) -> bool:
        """Whether two outputs are a pair, or a pair of which one was cast in the end."""
        if self.common.to_b.get(a) == b:
            return True
        cast_a, cast_b = _before_cast(self.a, a), _before_cast(self.b, b)
        return (cast_b is not None and self.common.to_b.get(a) == cast_b) or (
            cast_a is not None and self.common.to_b.get(cast_a) == b
        )

    def _in_order(self) -> list[Pair]:
        """Leaves where they are first read, then as A made them."""
        return sorted(self.result.alignment.pairs, key=self._place)

    def _place(self, pair: Pair) -> tuple[int, int]:
        made = self.a.trace.tensors[pair.a].step
        return (made, 1) if made >= 0 else (self.first_read.get(pair.a, len(self.a.trace.steps)), 0)

    def _settle(self, pair: Pair, verdict: Verdict) -> None:
        """Write a verdict down; it decides the pairs set aside in its region too."""
        _, inner = self.common.region(pair.a)
        inside = {name: self.common.aside[name] for name in inner if name in self.common.aside}
        waiting = sorted(inside.values(), key=self._place)
        if verdict.kind != "divergent":
            # A leaf that differs with nothing folded into it is a fault, however little comes of it; so are
            # other arguments that no others make up for.
            _, _, extra_a, extra_b = suspects_of(self.common, pair)
            folded = any(not is_exact(step.op) for step in (*extra_a, *extra_b))
            made_at = {other.a: self.a.trace.tensors[other.a].step for other in (*waiting, pair)}
            changed = {made_at[other.a] for other in (*waiting, pair) if self.doubt.does_otherwise(other)}
            for other in waiting:
                is_leaf = made_at[other.a] < 0
                blamed = not changed if is_leaf else changed == {made_at[other.a]}
                if other.sure and not folded and blamed:
                    del self.common.aside[other.a]
                    basis = "values given" if is_leaf else "other arguments"
                    self.result.verdicts.append(Verdict(other, "divergent", basis=basis))
                    self.common.judged.add(other.a)
                    self._find(other)
        for other in waiting:
            if self.common.aside.pop(other.a, None) is not None:
                kind: Class = "by_design"
                if verdict.kind in ("divergent", "unjudged"):
                    kind = verdict.kind
                basis = verdict.basis if kind == "unjudged" else f"decided by {pair.a}"
                self.result.verdicts.append(Verdict(other, kind, basis=basis))
                self.common.judged.add(other.a)
                if kind != "divergent":
                    self.common.apart.add(other.a)
        self.result.verdicts.append(verdict)
        self.common.judged.add(pair.a)
        if verdict.kind == "unjudged" and not pair.sure:
            self.common.apart.add(pair.a)
        if verdict.kind == "divergent":
            self._find(waiting[0] if waiting else pair)

    def _find(self, pair: Pair) -> None:
        """Write a fault down, once: what an extra step does to each of its readers is one fault."""
        finding = finding_of(self.common, self.judge, pair)
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
