"""A trace in a few figures: its size, its memory, and the first places where something is wrong.

Knows facts. Does not know how they are shown.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from tensure.errors import InputError

from ._records import Step, TensorFacts, Trace

__all__ = ["Summary", "select_steps", "summarize"]


@dataclass(frozen=True, slots=True)
class Summary:
    """A run in short.

    Args:
        num_steps, num_made: steps, and tensors that they made.
        peak_bytes: most bytes alive after a step; `peak_step` is that step, -1 without steps.
        nonfinite: the first tensor with a NaN or Inf, a leaf where it is first read; `num_nonfinite` in all.
        denormal: tensors with denormal numbers.
        over: tensors with elements over the run's limit.
        saturated: quantised tensors with elements at an end of their range, the worst first.
        in_place: steps that wrote over older tensors.
    """

    num_steps: int
    num_made: int
    peak_bytes: int
    peak_step: int
    nonfinite: TensorFacts | None
    num_nonfinite: int
    denormal: int
    over: int
    saturated: tuple[TensorFacts, ...]
    in_place: int


def summarize(trace: Trace) -> Summary:
    """The figures of a trace."""
    peak = max(trace.steps, key=lambda step: step.live_bytes, default=None)
    seen = [facts for facts in trace.tensors.values() if facts.statistics is not None]
    bad = [facts for facts in seen if facts.statistics and _nonfinite(facts)]
    read: dict[str, int] = {}
    for step in trace.steps:
        for name in step.reads:
            read.setdefault(name, step.index)
    last = len(trace.steps)

    def place(facts: TensorFacts) -> tuple[int, int]:
        return (facts.step, 1) if facts.step >= 0 else (read.get(facts.name, last), 0)

    saturated = [facts for facts in trace.tensors.values() if _saturation(facts)]
    return Summary(
        len(trace.steps),
        sum(len(step.outs) for step in trace.steps),
        trace.peak_bytes,
        -1 if peak is None else peak.index,
        min(bad, key=place, default=None),
        len(bad),
        sum(1 for facts in seen if facts.statistics and facts.statistics.denormals),
        sum(1 for facts in seen if facts.statistics and facts.statistics.over_limit),
        tuple(sorted(saturated, key=_saturation, reverse=True)),
        sum(1 for step in trace.steps if step.wrote),
    )


def select_steps(trace: Trace, globs: Sequence[str]) -> list[Step]:
    """The steps whose op, module or a tensor they made fits one of the patterns; all of them without any.

    Raises:
        InputError: a pattern that fits nothing.
    """
    if not globs:
        return list(trace.steps)
    for pattern in globs:
        if not any(_fits(step, pattern) for step in trace.steps):
            words = {word for step in trace.steps for word in (step.op, step.module, *step.outs) if word}
            near = difflib.get_close_matches(pattern[:200], sorted(words), n=1)
            raise InputError(
                f"no op, module or tensor fits {pattern[:80]!r}",
                next_step=f"Did you mean {near[0]!r}?" if near else None,
            )
    return [step for step in trace.steps if any(_fits(step, pattern) for pattern in globs)]


def _fits(step: Step, pattern: str) -> bool:
    return any(fnmatchcase(word, pattern) for word in (step.op, step.module, *step.outs))


def _nonfinite(facts: TensorFacts) -> bool:
    found = facts.statistics
    return found is not None and bool(found.nans or found.infinities)


def _saturation(facts: TensorFacts) -> float:
    return (facts.quantised.saturated or 0.0) if facts.quantised is not None else 0.0
