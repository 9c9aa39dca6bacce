"""What comparing two runs found: a verdict for each pair of tensors, and each fault with its place."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from ._align import Alignment, Pair
from ._explain import Element
from ._records import Step, Trace

__all__ = ["SCHEMA", "Class", "Difference", "Finding", "Verdict"]

SCHEMA: Final = "tensure.diff/1"

Class: TypeAlias = Literal["identical", "within", "divergent", "by_design", "unjudged"]
"""`by_design`: other values in an intermediate that the next common tensor does not depend on (a folded
weight);
`unjudged`: neither run can compute it again from what is known."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One pair judged.

    `gap` is the largest |a - b| of the two runs' values, `excess` the largest ratio of an error to its bound
    (over 1 is divergent; None where bits must be the same). `reduction` is the most terms one sum adds.
    """

    pair: Pair
    kind: Class
    gap: float = 0.0
    excess: float | None = None
    reduction: int = 1
    basis: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault.

    Args:
        kind: `leaf` (a weight, input or state differs), `step` (an op gave what it should not), `order` (a
            step read memory that another one had written over).
        a, b: names of the first tensors that part.
        step_a, step_b: what made them, or for a leaf first read them; the step to blame in `step_b`.
        region_a, region_b: the smallest part of either run that holds the fault, as step indices.
        element: where they part.
        change: what was done, if the values tell.
        arguments: arguments of the two steps that differ, as (name, in A, in B).
        text: all that in a sentence.
    """

    kind: Literal["leaf", "step", "order"]
    a: str
    b: str
    step_a: Step | None
    step_b: Step | None
    region_a: tuple[int, ...]
    region_b: tuple[int, ...]
    element: Element | None
    change: str
    arguments: tuple[tuple[str, str, str], ...]
    text: str


@dataclass(slots=True)
class Difference:
    """Two runs compared; `notes` are those of either run, with which one it is."""

    a: Trace
    b: Trace
    alignment: Alignment
    verdicts: list[Verdict] = field(default_factory=list[Verdict])
    findings: list[Finding] = field(default_factory=list[Finding])
    notes: list[str] = field(default_factory=list[str])
    unmatched: list[str] = field(default_factory=list[str])
    """Results of either run that the other has no counterpart of."""

    def __post_init__(self) -> None:
        self.notes += [
            f"{run}: {note}" for run, trace in (("A", self.a), ("B", self.b)) for note in trace.notes
        ]

    @property
    def kind(self) -> Literal["identical", "within", "divergent", "unjudged"]:
        """The worst of all pairs; `unjudged` if nothing could be compared."""
        if self.findings:
            return "divergent"
        counts = self.counts()
        if not self.verdicts or counts["unjudged"] or self.unmatched:
            return "unjudged"
        return "within" if counts["within"] or counts["by_design"] else "identical"

    @property
    def first(self) -> Finding | None:
        """The first divergent tensor."""
        return self.findings[0] if self.findings else None

    def counts(self) -> Counter[str]:
        """How many pairs of each class."""
        return Counter(verdict.kind for verdict in self.verdicts)

    def to_json(self) -> dict[str, Any]:
        """The contract of `tensure diff --json`."""
        return {
            "schema": SCHEMA,
            "a": self.a.name,
            "b": self.b.name,
            "kind": self.kind,
            "counts": dict(self.counts()),
            "findings": [_plain(dataclasses.asdict(finding)) for finding in self.findings],
            "pairs": [_plain(dataclasses.asdict(verdict)) for verdict in self.verdicts],
            "only_a": self.alignment.only_a,
            "only_b": self.alignment.only_b,
            "unmatched": list(self.unmatched),
            "notes": list(self.notes),
        }

    def dumps(self) -> str:
        """`to_json` as text."""
        return json.dumps(self.to_json(), allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
