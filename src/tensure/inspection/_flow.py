"""One run as the aligner sees it: views looked through, readers at hand, what is matched above a step.

Knows one trace. Does not know the other run.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Final

from ._families import is_dequantiser, is_quantiser, is_view
from ._records import Step, TensorFacts, Trace

__all__ = ["Flow", "stand_ins"]

MAX_LOOK: Final = 64
"""Unmatched tensors that are walked through to tell what lies above a step."""


def stand_ins(trace: Trace) -> dict[str, str]:
    """Tensors that were rounded to integers and back -> what was rounded."""
    found: dict[str, str] = {}
    for step in trace.steps:
        if is_dequantiser(step.op) and step.reads and len(step.outs) == 1:
            source = trace.maker(step.reads[0])
            if source is not None and is_quantiser(source.op) and source.reads:
                found[step.outs[0]] = source.reads[0]
    return found


class Flow:
    """One run as the aligner sees it: views looked through, consumers at hand."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.root: dict[str, str] = {}
        """Each name -> the tensor whose values it shows, views undone."""
        rounded = stand_ins(trace)
        for step in trace.steps:
            if is_view(step.op) and step.reads and len(step.outs) == 1 and self._same_values(step):
                self.root[step.outs[0]] = self.root_of(step.reads[0])
            elif step.outs and step.outs[0] in rounded:
                # Rounded to a grid and back: it stands for what was rounded.
                self.root[step.outs[0]] = self.root_of(rounded[step.outs[0]])
        self.steps = [step for step in trace.steps if not (step.outs and step.outs[0] in self.root)]
        self.reads = {step.index: tuple([self.root_of(name) for name in step.reads]) for step in self.steps}
        self.readers: dict[str, list[int]] = defaultdict(list)
        for step in self.steps:
            for name in dict.fromkeys(self.reads[step.index]):
                self.readers[name].append(step.index)

    def _same_values(self, step: Step) -> bool:
        before, after = self.trace.tensors[step.reads[0]], self.trace.tensors[step.outs[0]]
        return before.dtype == after.dtype and before.size == after.size

    def root_of(self, name: str) -> str:
        """The tensor whose values a name shows."""
        return self.root.get(name, name)

    def facts(self, name: str) -> TensorFacts:
        """What is known of a tensor."""
        return self.trace.tensors[name]

    def unmatched(self, matched: Mapping[str, str]) -> dict[int, Step]:
        """The steps of which no result is matched, by index."""
        return {
            step.index: step
            for step in self.steps
            if step.outs and not any(self.root_of(out) in matched for out in step.outs)
        }

    def frontiers(self, matched: Mapping[str, str]) -> dict[int, frozenset[str]]:
        """By step: the nearest matched tensors above it."""
        above: dict[str, frozenset[str]] = {}
        found: dict[int, frozenset[str]] = {}
        for step in self.steps:
            names = frozenset[str]()
            for name in self.reads[step.index]:
                names |= frozenset({name}) if name in matched else above.get(name, frozenset())
            found[step.index] = names
            for out in step.outs:
                above[out] = names
        return found

    def nearest(self, names: Iterable[str], matched: Mapping[str, str]) -> set[str]:
        """The nearest matched tensors at or above some, as far as `MAX_LOOK` steps tell."""
        found: set[str] = set()
        seen: set[str] = set()
        waiting = list(names)
        while waiting and len(seen) < MAX_LOOK:
            name = waiting.pop()
            if name in matched:
                found.add(name)
                continue
            step = self.trace.maker(name)
            if name not in seen and step is not None:
                seen.add(name)
                waiting += self.reads.get(step.index, ())
        return found
