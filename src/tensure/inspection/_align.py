"""Which tensor of one run is which of another: by the flow of data, never by position.

Leaves are matched by name, by content, or as the caller says. From them matches grow along the flow: a step
belongs to the one that does the same thing to matched tensors, an extra or missing step between them
notwithstanding. Values are never compared here, digests only to prefer one candidate to another.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from tensure.errors import InputError

from ._families import family, is_dequantiser
from ._flow import Flow
from ._records import Step, TensorFacts, Trace
from ._versions import is_version, split_version

__all__ = ["Alignment", "Pair", "align"]

How: TypeAlias = Literal["told", "name", "content", "flow", "gap", "output"]
"""Why two tensors are taken for the same: in falling order of how sure that is."""

_NEAR: Final = 64
"""Steps apart at which nearness stops counting."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A tensor of the one run and its counterpart in the other."""

    a: str
    b: str
    how: How
    sure: bool
    """Whether every tensor that both were made from is matched: else values may differ by design."""


@dataclass(slots=True)
class Alignment:
    """Pairs in the order of run A, and what stayed alone."""

    pairs: list[Pair] = field(default_factory=list[Pair])
    only_a: list[str] = field(default_factory=list[str])
    only_b: list[str] = field(default_factory=list[str])

    def to_b(self) -> dict[str, str]:
        """B's name by A's."""
        return {pair.a: pair.b for pair in self.pairs}


def align(
    a: Trace, b: Trace, *, rename: Mapping[str, str] | None = None, same_names: bool = False
) -> Alignment:
    """Match the tensors of two runs.

    Args:
        a, b: complete traces; digests help but are not needed.
        rename: names of A -> names of B that mean the same.
        same_names: the names are the model's own in both runs, so equal ones with equal shapes mean the same.

    Raises:
        InputError: `rename` names a tensor that is not there.
    """
    return _Aligner(a, b, dict(rename or {}), same_names).run()


class _Aligner:
    def __init__(self, a: Trace, b: Trace, rename: dict[str, str], same_names: bool) -> None:
        self.a, self.b = Flow(a), Flow(b)
        self.rename = rename
        self.same_names = same_names
        self.to_b: dict[str, str] = {}
        self.to_a: dict[str, str] = {}
        self.how: dict[str, How] = {}
        self.fresh: list[str] = []
        """Tensors of B that were matched since the flow was last followed."""
        self.versions_a = {
            name: split_version(name)
            for name, facts in a.tensors.items()
            if is_version(name) and facts.step >= 0
        }
        self.versions_b: dict[str, list[str]] = defaultdict(list)
        for name, facts in b.tensors.items():
            if is_version(name) and facts.step >= 0:
                self.versions_b[self.b.root_of(split_version(name)[0])].append(name)

    def run(self) -> Alignment:
        self._told()
        self._leaves()
        self._sources()
        if self.same_names:
            self._names()
            self._operands_of_matched()
        while True:
            before = len(self.to_b)
            self._along_the_flow()
            self._overwritten()
            self._across_gaps()
            if len(self.to_b) == before:
                break
        self._views()
        return self._result()

    def _match(self, a: str, b: str, how: How) -> bool:
        if a in self.to_b or b in self.to_a:
            return False
        self.to_b[a], self.to_a[b], self.how[a] = b, a, how
        self.fresh.append(b)
        return True

    # --- leaves and names ---

    def _told(self) -> None:
        for a, b in self.rename.items():
            for trace, name in ((self.a.trace, a), (self.b.trace, b)):
                if name not in trace.tensors:
                    raise InputError(f"rename speaks of {name[:80]!r}", wanted=f"a tensor of {trace.name}")
            self._match(self.a.root_of(a), self.b.root_of(b), "told")

    def _leaves(self) -> None:
        ours, theirs = self.a.trace.leaves(), self.b.trace.leaves()
        by_name = {facts.name: facts for facts in theirs}
        for facts in ours:
            other = by_name.get(facts.name)
            if other is not None and facts.size == other.size and facts.origin == other.origin:
                self._match(facts.name, other.name, "name")
        # By content: several leaves may hold the same values (zeros, say); those go in order.
        content: dict[tuple[str | None, tuple[int, ...]], list[str]] = defaultdict(list)
        for facts in theirs:
            if facts.name not in self.to_a and facts.digest:
                content[facts.digest, facts.shape].append(facts.name)
        for facts in ours:
            waiting = content.get((facts.digest, facts.shape))
            if facts.name not in self.to_b and waiting:
                self._match(facts.name, waiting.pop(0), "content")
        for origin in ("input",):
            left = [f for f in ours if f.origin == origin and f.name not in self.to_b]
            right = [f for f in theirs if f.origin == origin and f.name not in self.to_a]
            if len(left) == len(right) == 1 and left[0].size == right[0].size:
                self._match(left[0].name, right[0].name, "flow")

    def _sources(self) -> None:
        """Steps that read no tensor (zeros, ranges, random numbers), those of one kind in their order."""
        kinds: dict[tuple[object, ...], list[Step]] = defaultdict(list)
        for step in self.a.steps:
            if not step.reads and step.outs:
                kinds[self._kind(self.a, step)].append(step)
        for step in self.b.steps:
            waiting = kinds.get(self._kind(self.b, step)) if not step.reads and step.outs else None
            if waiting:
                digest = self.b.facts(step.outs[0]).digest
                same = [s for s in waiting if digest and self.a.facts(s.outs[0]).digest == digest]
                chosen = (same or waiting)[0]
                waiting.remove(chosen)
                self._match_steps(chosen, step, "flow")

    def _kind(self, flow: Flow, step: Step) -> tuple[object, ...]:
        return family(step.op), flow.facts(step.outs[0]).shape, step.arguments

    def _names(self) -> None:
        for step in self.a.steps:
            for name in step.outs:
                other = self.b.trace.tensors.get(name)
                if other is not None and other.step >= 0 and other.shape == self.a.facts(name).shape:
                    self._match(self.a.root_of(name), self.b.root_of(name), "name")

    def _operands_of_matched(self) -> None:
        """What steps matched by name read, where no name tells."""
        makers = {out: step for step in self.b.steps for out in step.outs}
        for step in self.a.steps:
            other = makers.get(self.to_b.get(step.outs[0], "")) if step.outs else None
            if other is not None and family(step.op) == family(other.op):
                self._match_operands(step, other)

    # --- steps ---

    def _along_the_flow(self) -> None:
        """Match steps that read matched tensors: first where nothing is left to choose, then as fits best.

        A step whose operands are all matched has the first claim. Else, where one network runs several
        times, a step behind a gap would take its counterpart of another turn, whose operands are not
        matched yet.
        """
        free = self.a.unmatched(self.to_b)
        self._follow(free, self.b.unmatched(self.to_a))
        for step in self.b.steps:
            if not step.outs or any(self.b.root_of(out) in self.to_a for out in step.outs):
                continue
            other = self._best(step, free, self._score)
            if other is not None and self._match_steps(other, step, "flow"):
                del free[other.index]
                self._follow(free)

    def _follow(self, free: dict[int, Step], begin: Iterable[int] = ()) -> None:
        """Match what reads the same matched tensors in both runs, and what follows from that.

        Equal arguments come first: of two slices of one tensor each is to find its own.
        """
        soon, later = list(begin), list[int]()
        heapq.heapify(soon)
        while soon or later or self.fresh:
            for name in self.fresh:
                for at in self.b.readers.get(name, ()):
                    heapq.heappush(soon, at)
            self.fresh.clear()
            if not soon and not later:
                break
            settled = bool(soon)
            step = self.b.trace.steps[heapq.heappop(soon if settled else later)]
            if not step.outs or any(self.b.root_of(out) in self.to_a for out in step.outs):
                continue
            other = self._best(step, free, self._score_of_same)
            if other is None:
                continue
            if settled and other.arguments != step.arguments:
                heapq.heappush(later, step.index)
            elif self._match_steps(other, step, "flow"):
                del free[other.index]

    def _best(
        self, step: Step, free: Mapping[int, Step], score: Callable[[Step, Step], float | None]
    ) -> Step | None:
        """The step of A that fits one of B best, the first of several."""
        found: dict[int, None] = {}
        for name in self.b.reads[step.index]:
            if name in self.to_a:
                found.update(dict.fromkeys(self.a.readers.get(self.to_a[name], ())))
        best: tuple[float, Step] | None = None
        for at in found:
            other = free.get(at)
            value = None if other is None else score(other, step)
            if other is not None and value is not None and (best is None or value > best[0]):
                best = (value, other)
        return None if best is None else best[1]

    def _score_of_same(self, a: Step, b: Step) -> float | None:
        """How well two steps fit whose operands are all matched with each other's."""
        ours, theirs = self.a.reads[a.index], self.b.reads[b.index]
        if len(ours) != len(theirs) or {self.to_b.get(name) for name in ours} != set(theirs):
            return None
        return self._score(a, b)

    def _score(self, a: Step, b: Step) -> float | None:
        """How well two steps fit; None if they do not do the same thing."""
        if family(a.op) != family(b.op) or not self._same_outs(a, b):
            return None
        ours, theirs = self.a.reads[a.index], self.b.reads[b.index]
        hits = sum(name in self.to_a and self.to_a[name] in ours for name in theirs)
        left = [name for name in ours if name not in self.to_b or self.to_b[name] not in theirs]
        bridged = self._bridged(left, theirs, ours)
        clashes = sum(name in self.to_b and name not in bridged for name in left)
        if not hits or clashes > hits:
            return None
        score = 4.0 * hits + 2.0 * bool(bridged) - 3.0 * clashes
        score += 2.0 * (a.module == b.module and bool(a.module)) + 1.0 * (a.phase == b.phase)
        score += 1.0 * (a.arguments == b.arguments) + 1.0 * (a.outs[0] == b.outs[0])
        digests = [self.a.facts(out).digest for out in a.outs], [self.b.facts(out).digest for out in b.outs]
        score += 3.0 * (digests[0] == digests[1] and None not in digests[0])
        return score - min(abs(a.index - b.index), _NEAR) / (2 * _NEAR)

    def _bridged(self, left: Sequence[str], theirs: Sequence[str], ours: Sequence[str]) -> set[str]:
        """The matched tensors of A from which both steps' other operands come, by way of steps of one run."""
        right = [name for name in theirs if name not in self.to_a or self.to_a[name] not in ours]
        if not left or not right:
            return set()
        above = {self.to_a[name] for name in self.b.nearest(right, self.to_a)}
        return above & self.a.nearest(left, self.to_b)

    def _same_outs(self, a: Step, b: Step) -> bool:
        if not a.outs or not b.outs:
            return False
        return self.a.facts(a.outs[0]).size == self.b.facts(b.outs[0]).size

    def _match_steps(self, a: Step, b: Step, how: How) -> bool:
        matched = False
        for x, y in zip(a.outs, b.outs, strict=False):
            if self.a.facts(x).size == self.b.facts(y).size:
                matched |= self._match(self.a.root_of(x), self.b.root_of(y), how)
        if matched:
            self._match_operands(a, b)
        return matched

    def _match_operands(self, a: Step, b: Step) -> None:
        """Leaves that both read in the same place are the same, unless matched otherwise: renamed ones."""
        ours, theirs = self.a.reads[a.index], self.b.reads[b.index]
        if len(ours) != len(theirs):
            return
        for x, y in zip(ours, theirs, strict=True):
            facts, other = self.a.facts(x), self.b.facts(y)
            if facts.shape != other.shape:
                continue
            leaves = facts.step < 0 and other.step < 0 and facts.origin == other.origin
            if leaves or self._stands_for_leaf(facts, other):
                self._match(x, y, "flow")

    def _stands_for_leaf(self, a: TensorFacts, b: TensorFacts) -> bool:
        """Whether one is a leaf and the other made of a leaf of integers."""
        leaf, made, flow = (a, b, self.b) if a.step < 0 else (b, a, self.a)
        step = flow.trace.maker(made.name)
        if leaf.step >= 0 or step is None or not is_dequantiser(step.op):
            return False
        return flow.facts(step.reads[0]).step < 0

    def _across_gaps(self) -> None:
        """Match steps whose nearest matched ancestors agree, whatever lies between in one run alone."""
        ours, theirs = self.a.unmatched(self.to_b), self.b.unmatched(self.to_a)
        if not ours or not theirs:
            return
        above_a = self.a.frontiers(self.to_b)
        above_b = self.b.frontiers(self.to_a)
        by_kind: dict[tuple[str, int], list[Step]] = defaultdict(list)
        for step in ours.values():
            by_kind[family(step.op), self.a.facts(step.outs[0]).size].append(step)
        filled: set[frozenset[str]] = set()
        below: set[str] = set()
        for step in theirs.values():
            if above_b[step.index] in filled or any(name in below for name in self.b.reads[step.index]):
                below.update(step.outs)
                continue  # one of each gap at a time: the flow goes on from there
            waiting = by_kind.get((family(step.op), self.b.facts(step.outs[0]).size), [])
            frontier = {self.to_a[name] for name in above_b[step.index]}
            best: tuple[float, Step] | None = None
            for other in waiting:
                shared = len(frontier & above_a[other.index])
                if not shared:
                    continue
                score = shared + 1.0 * (frontier == above_a[other.index])
                score += 2.0 * (other.module == step.module and bool(step.module))
                score -= min(abs(other.index - step.index), _NEAR) / (2 * _NEAR)
                if best is None or score > best[0]:
                    best = (score, other)
            if best is not None and self._match_steps(best[1], step, "gap"):
                waiting.remove(best[1])
                filled.add(above_b[step.index])
                below.update(step.outs)

    # --- views and the rest ---

    def _views(self) -> None:
        """Views of matched tensors, where both runs have one of the same shape."""
        shown: dict[tuple[str, tuple[int, ...]], list[str]] = defaultdict(list)
        for name, root in self.b.root.items():
            if name not in self.to_a and root in self.to_a:
                shown[root, self.b.facts(name).shape].append(name)
        for name, root in self.a.root.items():
            if name not in self.to_b and root in self.to_b:
                waiting = shown.get((self.to_b[root], self.a.facts(name).shape))
                if waiting:
                    self._match(name, waiting.pop(0), self.how[root])

    def _overwritten(self) -> None:
        """Tensors that matched steps changed through another one, where both runs have them."""
        for name, (base, step) in self.versions_a.items():
            root = self.to_b.get(self.a.root_of(base))
            if name in self.to_b or root is None:
                continue
            wanted = self.to_b.get(self.a.trace.steps[step].outs[0])
            for other in self.versions_b.get(root, ()):
                writer = self.b.trace.steps[split_version(other)[1]]
                same = self.a.facts(name).shape == self.b.facts(other).shape
                if same and wanted is not None and writer.outs[0] == wanted:
                    self._match(name, other, "flow")

    def _result(self) -> Alignment:
        order = {name: at for at, name in enumerate(self.a.trace.tensors)}
        pairs = [
            Pair(name, self.to_b[name], self.how[name], self._is_sure(name))
            for name in sorted(self.to_b, key=order.__getitem__)
        ]
        return Alignment(
            pairs,
            [name for name in self.a.trace.tensors if name not in self.to_b and name not in self.a.root],
            [name for name in self.b.trace.tensors if name not in self.to_a and name not in self.b.root],
        )

    def _is_sure(self, name: str) -> bool:
        if self.how[name] in ("told", "name", "content"):
            return True
        if name in self.a.root and self.a.root_of(name) in self.to_b:
            return self._is_sure(self.a.root_of(name))
        step, other = self.a.trace.maker(name), self.b.trace.maker(self.to_b[name])
        if step is None or other is None:
            # Known by where it is read alone: a weight under another name, or another weight.
            return self.a.facts(name).origin == "input"
        ours = self.a.reads.get(step.index, ())
        theirs = self.b.reads.get(other.index, ())
        if [self.to_b.get(x) for x in ours] != list(theirs):
            return False
        return all(self.how[x] != "flow" or self.a.facts(x).step >= 0 for x in ours)
