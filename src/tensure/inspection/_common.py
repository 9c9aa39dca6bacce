"""What two runs have in common, as far as it is known: pairs, those already judged, and the steps in between.

A region is the steps that make a tensor from trusted ones: the nearest tensors above it that both runs have
and that were judged. Knows recordings and their alignment. Does not judge.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import torch

from ._align import Alignment, Pair
from ._families import is_view
from ._flow import stand_ins
from ._recording import Recording
from ._records import Step
from ._versions import is_version, previous_version

__all__ = ["MAX_REGION", "Common", "region"]

MAX_REGION: Final = 256
"""Steps that are taken together."""


class Common:
    """Two runs and how far their comparison has come."""

    def __init__(self, a: Recording, b: Recording, alignment: Alignment) -> None:
        self.a, self.b = a, b
        self.to_b = alignment.to_b()
        self.to_a = {pair.b: pair.a for pair in alignment.pairs}
        self.stand_ins = stand_ins(b.trace)
        """Tensors of B that went through integers -> what was rounded."""
        self.aside: dict[str, Pair] = {}
        """Pairs that differ but are not sure to mean the same: decided by what comes after them."""
        self.judged: set[str] = set()
        self.tainted = set(a.uneven | b.uneven)
        """Tensors of which ranks have different copies, and what was made of those."""
        self.apart: set[str] = set()
        """Tensors that are not the same thing in both runs, though they were paired."""

    def is_trusted(self, name: str) -> bool:
        """Whether a tensor of A was judged and found to mean the same in B."""
        return name in self.judged and name not in self.aside and name not in self.apart

    def is_trusted_b(self, name: str) -> bool:
        """The same of a tensor of B."""
        return name in self.to_a and self.is_trusted(self.to_a[name])

    def region(self, name: str, taken: frozenset[str] = frozenset()) -> tuple[list[Step], list[str]]:
        """A's steps that make a tensor from trusted ones, in order, and the tensors made inside.

        Those `taken` in are made inside, trusted or not.
        """
        return region(self.a, name, lambda key: self.is_trusted(key) and key not in taken)

    def region_b(self, pair: Pair) -> list[Step]:
        """B's steps that make a pair's tensor from trusted ones, in order.

        What B makes an output from may be the counterpart of A's output: on trial itself, so not trusted.
        """
        return region(self.b, pair.b, lambda key: self.is_trusted_b(key) and self.to_a.get(key) != pair.a)[0]

    def given(self, name: str, taken: frozenset[str] = frozenset()) -> dict[str, torch.Tensor]:
        """B's values for the trusted tensors that A's region reads."""
        steps, _ = self.region(name, taken)
        made = {out for step in steps for out in step.outs}
        found: dict[str, torch.Tensor] = {}
        for step in steps:
            for read in step.reads:
                if read in made or read in found or not self.is_trusted(read):
                    continue
                facts = self.a.trace.tensors[read]
                value = self.value(self.b, self._operand(step, read))
                if value.numel() == facts.size:
                    found[read] = value.reshape(facts.shape)
        return found

    def given_back(self, pair: Pair) -> dict[str, torch.Tensor]:
        """A's values for what B's region reads."""
        found: dict[str, torch.Tensor] = {}
        for step in self.region_b(pair):
            for read in step.reads:
                if self.is_trusted_b(read) and self.to_a[read] != pair.a:
                    facts = self.b.trace.tensors[read]
                    value = self.value(self.a, self.to_a[read])
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

    def is_alone(self, step: Step, matched: Mapping[str, str]) -> bool:
        """Whether a step that computes has no counterpart, given what is matched."""
        return not is_view(step.op) and not any(out in matched for out in step.outs)

    def value(self, run: Recording, name: str) -> torch.Tensor:
        """A run's tensor."""
        assert run.values is not None
        return run.values.get(name)


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
