"""Which ranks do the same: few are traced, and what they asked of their place says for whom they stand.

A rank is traced with its place watched. Whoever would get the same answers does the same steps; integers in
them may follow from coordinates that torch was told. So the mesh is cut into boxes in which nobody can tell
one rank from another but by such integers, and along the axes they may follow from some ranks more are
traced: in texts that agree at the first, the second and the last place of an interval, and at the far corner
of the box, integers that are one sum of multiples there are taken to be so between. Where texts do not
agree, short intervals are traced place by place, and long ones are halved until they do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tensure.errors import LimitError
from tensure.program import Op

from ._boxes import Box, boxes_of, corner, members, size
from ._form import Condition, Form
from ._lift import shape_of_text
from ._rank import TracedRank
from ._tracks import claims_outline

__all__ = ["MAX_BOXES", "MAX_TRACED", "RankClass", "classes_of"]

MAX_TRACED: Final = 256
MAX_BOXES: Final = 4096
MAX_AHEAD: Final = 8
"""Places along an axis that are looked at ahead of time."""
_SHORT: Final = 16
"""Places that are traced one by one where texts do not agree."""


@dataclass(frozen=True)
class RankClass:
    """Ranks that do the same steps.

    Args:
        box: where they stand.
        samples: traced ones, at the corners of the box and beside its first; they settle all integers.
        reason: what their code asked of their place, and where; along which axes it was taken to be regular.
    """

    box: Box
    samples: tuple[TracedRank, ...]
    reason: str


def classes_of(
    trace: Callable[[Mapping[str, int]], TracedRank],
    mesh: Mapping[str, int],
    progress: Callable[[int, int], None] | None = None,
    ahead: Callable[[Sequence[Mapping[str, int]], bool], None] | None = None,
) -> list[RankClass]:
    """The mesh in boxes of ranks that do the same, in the order of their first places.

    Args:
        trace: of the rank at a place, with its place watched.
        mesh: sizes of all axes.
        progress: told (ranks that are settled, ranks in all).
        ahead: told at which places ranks will be traced next, so that it be done at once, and whether that is
            more than a guess.

    Raises:
        LimitError: too many ranks do something of their own; names the line that tells them apart.
    """
    return _Search(trace, tuple(mesh), tuple(mesh.values()), progress, ahead).run()


@dataclass
class _Search:
    trace: Callable[[Mapping[str, int]], TracedRank]
    axes: tuple[str, ...]
    shape: tuple[int, ...]
    progress: Callable[[int, int], None] | None
    ahead: Callable[[Sequence[Mapping[str, int]], bool], None] | None
    traced: list[TracedRank] = field(default_factory=list[TracedRank])
    settled: list[RankClass] = field(default_factory=list[RankClass])

    def run(self) -> list[RankClass]:
        whole = tuple((0, length) for length in self.shape)
        left, done = [whole], 0
        while left:
            box = left.pop()
            pieces = self.settle(box)
            if pieces:
                left.extend(reversed(pieces))
                continue
            done += size(box)
            if self.progress is not None:
                self.progress(done, size(whole))
        return sorted(self.settled, key=lambda found: found.box)

    def settle(self, box: Box) -> list[Box]:
        """Take a box as a class, or the boxes it has to be cut into."""
        if len(self.settled) >= MAX_BOXES:
            raise self._too_many(MAX_BOXES, "tracks")
        base = self.at(corner(box))
        alike = members(_conditions(base), box, self.axes)
        if not alike.all():
            pieces = [*boxes_of(alike, box), *boxes_of(~alike, box)]
            self._foresee([place for piece in pieces for place in self._beginnings(piece, base)], sure=False)
            return pieces
        wide = [at for at, (low, high) in enumerate(box) if high - low > 1]
        soft = [at for at in wide if self.axes[at] in _soft(base)]
        first = corner(box)
        samples = {first: base}
        lines = [(at, place) for at in soft for place in (box[at][0] + 1, box[at][1] - 1)]
        self._foresee(
            [
                *((*first[:at], place, *first[at + 1 :]) for at, place in lines),
                tuple(high - 1 if at in soft else low for at, (low, high) in enumerate(box)),
            ],
            sure=True,
        )
        for at in soft:
            low, high = box[at]
            line = [(*first[:at], place, *first[at + 1 :]) for place in sorted({low, low + 1, high - 1})]
            found = [samples.setdefault(place, self.at(place)) for place in line]
            if not _regular(found, [place[at] - low for place in line]):
                return _cut(box, at)
        if len(soft) > 1:
            corners = tuple(high - 1 if at in soft else low for at, (low, high) in enumerate(box))
            samples.setdefault(corners, self.at(corners))
            if not self._is_additive(samples, box, soft):
                return _cut(box, min(soft, key=lambda at: box[at][1] - box[at][0]))
        # What torch was not told does not show in the steps, but it does in claims and for messages.
        for at in wide:
            low, high = box[at]
            for place in {low + 1, high - 1}:
                spot = (*first[:at], place, *first[at + 1 :])
                samples.setdefault(spot, self.at(spot) if at in soft else base.moved(self._named(spot)))
        far = tuple(high - 1 for _, high in box)
        samples.setdefault(far, self.at(far))
        for at in wide:
            if not _keep_distance(samples.values(), self.axes[at]):
                return _cut(box, at)
        self.settled.append(RankClass(box, tuple(samples.values()), self._reason(box, base, soft)))
        return []

    def _foresee(self, places: Iterable[tuple[int, ...]], *, sure: bool) -> None:
        """Have ranks traced that will be asked for, as far as one can tell."""
        if self.ahead is not None:
            named = [self._named(place) for place in places]
            self.ahead([place for place in named if self._known(place) is None], sure)

    def _beginnings(self, box: Box, base: TracedRank) -> list[tuple[int, ...]]:
        """Where the boxes may begin that this one will be cut into: along the axes that were asked about."""
        first = corner(box)
        asked = {axis for condition in _conditions(base) for axis in condition.form.axes()}
        return [
            (*first[:at], place, *first[at + 1 :])
            for at, (low, high) in enumerate(box)
            if self.axes[at] in asked
            for place in range(low, min(high, low + MAX_AHEAD))
        ] or [first]

    def _known(self, named: Mapping[str, int]) -> TracedRank | None:
        """Of the ranks that were traced, one that was told the same as the one at this place."""
        for found in self.traced:
            same = all(found.place[axis] == named[axis] for axis in _soft(found))
            if same and all(condition.holds(named) for condition in _conditions(found)):
                return found
        return None

    def at(self, place: tuple[int, ...]) -> TracedRank:
        """The rank at a place: traced, or as one was that was told the same."""
        named = self._named(place)
        found = self._known(named)
        if found is not None:
            return found if found.place == named else found.moved(named)
        if len(self.traced) >= MAX_TRACED:
            raise self._too_many(MAX_TRACED, "traces")
        self.traced.append(self.trace(named))
        return self.traced[-1]

    def _named(self, place: tuple[int, ...]) -> dict[str, int]:
        return dict(zip(self.axes, place, strict=True))

    def _is_additive(
        self, samples: Mapping[tuple[int, ...], TracedRank], box: Box, soft: Sequence[int]
    ) -> bool:
        """Whether at the far corner integers are what the first places along each axis say."""
        first = corner(box)
        start = _integers(samples[first])
        expected = list(start)
        for at in soft:
            beside = (*first[:at], box[at][0] + 1, *first[at + 1 :])
            far = box[at][1] - 1 - box[at][0]
            slopes = zip(start, _integers(samples[beside]), strict=True)
            expected = [
                have + far * (other - one) for have, (one, other) in zip(expected, slopes, strict=True)
            ]
        corners = tuple(high - 1 if at in soft else low for at, (low, high) in enumerate(box))
        found = samples[corners]
        return _outline(found) == _outline(samples[first]) and _integers(found) == expected

    # words -------------------------------------------------------------------------------------------

    def _reason(self, box: Box, base: TracedRank, soft: Sequence[int]) -> str:
        asked: dict[str, list[str]] = {}
        assert base.reads is not None
        for condition, line in base.reads.conditions.items():
            asked.setdefault(line, []).append(str(condition))
        parts = [
            f"{line}: {', '.join(found[:3])}{f' and {len(found) - 3} more' if len(found) > 3 else ''}"
            for line, found in asked.items()
        ]
        for at in soft:
            name = self.axes[at]
            parts.append(f"torch is told {name} at {base.reads.soft[name]}: taken to be regular along it")
        read = {name for found in base.reads.conditions for name in found.form.axes()} | set(_soft(base))
        unread = [
            name
            for name, length in zip(self.axes, self.shape, strict=True)
            if name not in read and length > 1
        ]
        if unread:
            parts.append(f"no coordinate is read along {', '.join(unread)}")
        return "; ".join(parts)

    def _too_many(self, limit: int, what: str) -> LimitError:
        counts: dict[str, set[Condition]] = {}
        for found in self.traced:
            assert found.reads is not None
            for condition, line in found.reads.conditions.items():
                counts.setdefault(line, set()).add(condition)
            for name, line in found.reads.soft.items():
                told = Condition(Form(0, ((name, 1),)), "==", found.place[name], True)
                counts.setdefault(line, set()).add(told)
        worst = max(counts, key=lambda line: len(counts[line])) if counts else None
        return LimitError(
            f"more than {limit} {what} for ranks that each do something of their own",
            place=worst,
            wanted="code that most ranks run alike; this line tells most of them apart",
        )


def _cut(box: Box, at: int) -> list[Box]:
    """A box cut along one axis: place by place, or in halves where it is long."""
    low, high = box[at]
    ends = range(low, high + 1) if high - low <= _SHORT else (low, (low + high) // 2, high)
    return [
        (*box[:at], (one, other), *box[at + 1 :]) for one, other in zip(ends, list(ends)[1:], strict=False)
    ]


def _conditions(rank: TracedRank) -> Mapping[Condition, str]:
    assert rank.reads is not None
    return rank.reads.conditions


def _soft(rank: TracedRank) -> Mapping[str, str]:
    assert rank.reads is not None
    return rank.reads.soft


# --- what must agree --------------------------------------------------------------------------------


def _outline(rank: TracedRank) -> Any:
    """All of a trace but integers in attributes and claims."""
    if rank.outline is None:
        lacking = sorted((label, dtype) for label, (_, dtype) in rank.lacking.items())
        rank.outline = (
            shape_of_text([_without_partner(step) for step in rank.steps]),
            claims_outline(rank.claims),
            tuple(sorted(rank.outputs)),
            tuple(lacking),
            rank.shapes,
            frozenset(_conditions(rank)),
            frozenset(_soft(rank)),
        )
    return rank.outline


def _without_partner(step: Op) -> Op:
    """A message as the distance that it goes: that is looked at by itself."""
    if step.op not in ("send", "recv"):
        return step
    key: Any = step.attr("key")
    attrs = (("key", (key[0], repr(key[3]), repr(key[4]))), ("over", step.attr("over")))
    return Op(step.op, step.args, step.outs, attrs, step.note)


def _integers(rank: TracedRank) -> list[int]:
    """All integers in attributes and claims, in order."""
    if rank.integers is None:
        found: list[int] = []
        for step in rank.steps:
            _gather([value for _, value in _without_partner(step).attrs], found)
        for _, (_, part) in sorted(rank.claims.items()):
            _gather(part.dims, found)
        rank.integers = found
    return rank.integers


def _gather(value: Any, into: list[int]) -> None:
    if isinstance(value, (tuple, list)):
        for item in value:
            _gather(item, into)
    elif isinstance(value, int) and not isinstance(value, bool):
        into.append(value)


def _regular(ranks: Sequence[TracedRank], distances: Sequence[int]) -> bool:
    """Whether integers of ranks along an axis are one multiple of the distance more, each."""
    first, second = ranks[0], ranks[1]
    if any(_outline(rank) != _outline(first) for rank in ranks[1:]):
        return False
    start = _integers(first)
    slopes = [other - one for one, other in zip(start, _integers(second), strict=True)]
    return all(
        _integers(rank) == [one + far * slope for one, slope in zip(start, slopes, strict=True)]
        for rank, far in zip(ranks, distances, strict=True)
    )


def _keep_distance(ranks: Any, axis: str) -> bool:
    """Whether every message goes equally far along an axis on all of these ranks."""
    distances = [tuple(delta.get(axis, 0) for delta in rank.distances()) for rank in ranks]
    return len(set(distances)) == 1
