"""The verdict tensor by tensor: which outputs are derived, which are shown wrong, which are left open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from tensure.bundle import Plan, Verdict
from tensure.program import Program

__all__ = ["Shown", "TensorVerdict", "tensor_verdicts"]

Shown: TypeAlias = "dict[str, str]"
"""Values that a replay has shown wrong, and what multiple of the program's each is, empty if none."""

_RANKED = ("proved", "derived", "probable", "unknown", "refuted")


@dataclass(frozen=True, slots=True)
class TensorVerdict:
    """One output of the program.

    Args:
        name: of the output.
        status: as a Verdict's; `derived` where every rule held but another tensor kept the whole from
            being proved and its certificate from being checked.
        rank, why: the first rank where it is in doubt, and what was found there.
        step, source: the step that first went astray, and its line.
        factor: what multiple of the program's it is on every rank, as a fraction; empty if none.
    """

    name: str
    status: str
    rank: str = ""
    why: str = ""
    step: str = ""
    source: str = ""
    factor: str = ""


class Doubted(Protocol):
    """What is read of a doubt."""

    @property
    def rank(self) -> str: ...

    @property
    def local(self) -> str: ...

    @property
    def why(self) -> str: ...


class Begun(Protocol):
    """What is read of a suspect."""

    @property
    def step(self) -> str: ...

    @property
    def source(self) -> str: ...


class Walked(Protocol):
    """What is read of one walk."""

    @property
    def entry(self) -> str: ...

    @property
    def doubts(self) -> Sequence[Doubted]: ...

    @property
    def ended(self) -> bool:
        """Whether every rank came to its end."""
        ...

    def suspected(self, doubt: Doubted) -> Begun | None:
        """The step that first went astray."""
        ...


def tensor_verdicts(
    plan: Plan, program: Program, walks: Sequence[Walked], values: Verdict, wrong: Mapping[str, str]
) -> tuple[TensorVerdict, ...]:
    """A verdict for every output, the weakest over all invocations.

    Args:
        values: the verdict on all of them.
        wrong: the outputs that a replay has shown to be wrong, with the multiple that each is.
    """
    found: dict[str, TensorVerdict] = {}
    for walk in walks:
        first: dict[str, Doubted] = {}
        for doubt in walk.doubts:
            first.setdefault(claimed_base(plan, doubt.local), doubt)
        for output in program.entry(walk.entry).outputs:
            label = output.base
            one = _of(label, first.get(label), walk, values, wrong.get(label))
            if label not in found or _RANKED.index(one.status) > _RANKED.index(found[label].status):
                found[label] = one
    return tuple(found.values())


def _of(label: str, doubt: Doubted | None, walk: Walked, values: Verdict, wrong: str | None) -> TensorVerdict:
    if doubt is None and not walk.ended:
        return TensorVerdict(label, "unknown", why="ranks do not come to the end of the step")
    if doubt is None:
        return TensorVerdict(label, "proved" if values.status == "proved" else "derived")
    begun = walk.suspected(doubt)
    status = "refuted" if wrong is not None else "unknown" if values.status == "refuted" else values.status
    step, source = ("", "") if begun is None else (begun.step, begun.source)
    return TensorVerdict(label, status, doubt.rank, doubt.why, step, source, wrong or "")


def claimed_base(plan: Plan, local: str) -> str:
    """The base of the logical value that a local claims to be a part of."""
    base = local.partition("[")[0]
    for track in plan.tracks:
        found = plan.local(track, base)
        if found is not None and found.place is not None:
            return found.place.of.base
    return base
