"""Classes of ranks into tracks: what they do together is judged box by box, and every box gets a track.

Joint questions (which results somebody needs, who meets whom, who gets a message) are asked of boxes and
cells of the mesh, never of single ranks.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Final

from tensure.bundle import Local, Track
from tensure.errors import LimitError, RecordError, UnsupportedError
from tensure.program import COLLECTIVES, Attrs, Int, Name, Op, axis, combine

from ._boxes import Box, Cells, is_closed, outside
from ._classes import MAX_BOXES
from ._flat import Meeting
from ._lift import lift_ops, shape_of_text
from ._tracks import RankTrace, locals_of, needed_steps, pruned

__all__ = ["Class", "alike", "class_tracks", "classes_agree", "live_classes"]


@dataclass(frozen=True)
class Class:
    """A box of ranks, and the traces that settle the integers in what they do."""

    box: Box
    traces: tuple[RankTrace, ...]

    @property
    def steps(self) -> tuple[Op, ...]:
        return self.traces[0].steps


def classes_agree(boxes: Sequence[Box], met: Sequence[Sequence[Meeting]], mesh: Mapping[str, int]) -> bool:
    """Whether all members of each group meet with the same.

    Args:
        boxes: of ranks that do the same.
        met: the collectives of each box.
        mesh: sizes of the axes.
    """
    cells = Cells(boxes, tuple(mesh.values()))
    found: dict[Any, Any] = {}
    for box, meetings in zip(boxes, met, strict=True):
        for meeting in meetings:
            cells.add(found.setdefault(meeting, cells.none()), box)
    names = list(mesh)
    return all(is_closed(mask, [names.index(name) for name in axes]) for (axes, *_), mask in found.items())


def live_classes(
    classes: Sequence[Class], mesh: Mapping[str, int], kept_too: Collection[Name] = ()
) -> list[Class]:
    """The same without what nobody needs; `kept_too` as for `live_steps`."""
    traces = [trace for found in classes for trace in found.traces]
    kept = needed_steps(
        [trace.steps for trace in traces],
        [trace.outputs for trace in traces],
        _lonely(classes, mesh).union(kept_too),
    )
    left = iter([pruned(trace, steps) for trace, steps in zip(traces, kept, strict=True)])
    return [replace(found, traces=tuple(next(left) for _ in found.traces)) for found in classes]


def alike(classes: Sequence[Class]) -> bool:
    """Whether the traces of each class are one text but for integers that sums of multiples settle."""
    try:
        for found in classes:
            if len({shape_of_text(trace.steps) for trace in found.traces}) > 1:
                return False
            lift_ops({trace.place: trace.steps for trace in found.traces}, is_sampled=True)
    except RecordError:
        return False
    return True


def _lonely(classes: Sequence[Class], mesh: Mapping[str, int]) -> set[Any]:
    """What ranks do together and not all of them do, or not alike: kept, for there the step hangs."""
    names, boxes = list(mesh), [found.box for found in classes]
    sends = [(shifted(found.box, _key(step)[1], mesh)) for found in classes for step in found.steps
             if step.op == "send"]  # fmt: skip
    cells = Cells([*boxes, *sends], tuple(mesh.values()))
    met: dict[tuple[Any, ...], Any] = {}
    sent, received = dict[Any, Any](), dict[Any, Any]()
    receipts: dict[Any, set[Any]] = {}
    for found in classes:
        for step in found.steps:
            axes: Any = step.attr("axes")
            if step.op in COLLECTIVES:
                key = (step.outs[0], axes, step.op, repr(step.attrs))
                cells.add(met.setdefault(key, cells.none()), found.box)
            elif step.op in ("send", "recv"):
                side = sent if step.op == "send" else received
                token: Any = step.attr("key")
                box = found.box if step.op == "recv" else shifted(found.box, token[1], mesh)
                cells.add(side.setdefault(token, cells.none()), box)
                if step.op == "recv":
                    receipts.setdefault(token, set()).add(step.outs[0])
    alone = {
        out
        for (out, axes, *_), mask in met.items()
        if not is_closed(mask, [names.index(name) for name in axes])
    }
    none = cells.none()
    for token in sent.keys() | received.keys():
        if (sent.get(token, none) != received.get(token, none)).any():
            alone |= {token, *receipts.get(token, ())}
    return alone


def token(step: Op, distance: Mapping[str, int]) -> Op:
    """A message whose key says how far it goes, its tag and its turn: ranks of one class have the same."""
    key: Any = step.attr("key")
    far = tuple((name, by) for name, by in distance.items() if by)
    if step.op == "recv":
        far = tuple((name, -by) for name, by in far)
    return Op(step.op, step.args, step.outs, (("key", ("p2p", far, key[3], key[4])),), step.note)


def shifted(box: Box, far: Sequence[tuple[str, int]], mesh: Mapping[str, int]) -> Box:
    """Where a box's messages go.

    Raises:
        UnsupportedError: out of the mesh.
    """
    by = dict(far)
    moved = tuple(
        (low + by.get(name, 0), high + by.get(name, 0)) for name, (low, high) in zip(mesh, box, strict=True)
    )
    if any(low < 0 or high > length for (low, high), length in zip(moved, mesh.values(), strict=True)):
        raise UnsupportedError("a message to a rank outside of the mesh")
    return moved


# --- tracks -----------------------------------------------------------------------------------------


def class_tracks(
    classes: Sequence[Class], mesh: Mapping[str, int], world: Mapping[str, int]
) -> dict[str, Track]:
    """A track for each box; a box whose messages go to several tracks is cut.

    Args:
        classes: what is left of them, with messages as tokens.
        mesh: sizes of the axes.
        world: sizes of those that ranks are numbered along.

    Raises:
        LimitError: messages tell too many ranks apart.
    """
    lifted = [_lifted(found, mesh) for found in classes]
    joined = _joined([(found.box, at) for at, found in enumerate(classes)], lifted)
    boxes = _by_receiver(joined, lifted, mesh)
    names = {box: track_name(box, mesh) for box, _ in boxes}
    made: dict[str, Track] = {}
    for box, at in sorted(boxes):
        steps, locals_ = lifted[at]
        body = tuple(_addressed(step, box, names, mesh, world) for step in steps)
        axes = _axes_of(box, mesh)
        fixed = tuple((name, low) for name, (low, _) in zip(mesh, box, strict=True) if name not in axes)
        spans = tuple(
            (name, low, high)
            for (name, length), (low, high) in zip(mesh.items(), box, strict=True)
            if name in axes and high - low < length
        )
        made[names[box]] = Track(axes, fixed, None, dict(locals_), {"step": body}, spans)
    return made


def _lifted(found: Class, mesh: Mapping[str, int]) -> tuple[tuple[Op, ...], dict[str, Local]]:
    """Steps and locals of a class, with integers as expressions of the coordinates its ranks differ in."""
    wide = {name for name, (low, high) in zip(mesh, found.box, strict=True) if high - low > 1}
    traces = {tuple(item for item in trace.place if item[0] in wide): trace for trace in found.traces}
    steps = lift_ops({place: trace.steps for place, trace in traces.items()}, is_sampled=True)
    claims = {place: trace.claims for place, trace in traces.items()}
    return steps, locals_of(claims, is_sampled=True)


def _joined(
    boxes: Sequence[tuple[Box, int]], lifted: Sequence[tuple[tuple[Op, ...], Any]]
) -> list[tuple[Box, int]]:
    """Boxes beside each other that came out with one text, expressions included, as one."""
    left = sorted(boxes)
    for axis_at in range(len(left[0][0])):
        kept: dict[Any, list[tuple[Box, int]]] = {}
        for box, at in left:
            row = kept.setdefault((*box[:axis_at], *box[axis_at + 1 :]), [])
            (low, high), before = box[axis_at], row[-1] if row else None
            if before is not None and before[0][axis_at][1] == low and lifted[before[1]] == lifted[at]:
                start = before[0][axis_at][0]
                row[-1] = ((*box[:axis_at], (start, high), *box[axis_at + 1 :]), before[1])
            else:
                row.append((box, at))
        left = sorted(item for row in kept.values() for item in row)
    return left


def _axes_of(box: Box, mesh: Mapping[str, int]) -> tuple[str, ...]:
    """Those whose coordinates tell the ranks of a box apart, and those of one rank, which all tracks have."""
    return tuple(
        name
        for (name, length), (low, high) in zip(mesh.items(), box, strict=True)
        if high - low > 1 or length == 1
    )


def track_name(box: Box, mesh: Mapping[str, int]) -> str:
    """`ranks`, or the intervals of coordinates that its ranks have."""
    parts = [
        f"{name}{low}" if high - low == 1 else f"{name}{low}to{high - 1}"
        for (name, length), (low, high) in zip(mesh.items(), box, strict=True)
        if high - low < length
    ]
    return "_".join(parts) or "ranks"


def _by_receiver(
    boxes: Sequence[tuple[Box, int]],
    lifted: Sequence[tuple[tuple[Op, ...], Any]],
    mesh: Mapping[str, int],
) -> list[tuple[Box, int]]:
    """Boxes cut until all messages of a box go to one box.

    In a chain every cut makes another one necessary; after a few rounds it is cut into its single places, and
    cuts across it go on from one to the next.
    """
    found = list(boxes)
    ways = [sorted({_key(step)[1] for step in steps if step.op == "send"}) for steps, _ in lifted]
    for turn in range(_MAX_TURNS):
        there, cuts = dict.fromkeys(box for box, _ in found), list[tuple[Box, int]]()
        for box, at in found:
            pieces = [box]
            for way in ways[at]:
                pieces = [part for piece in pieces for part in _within_one(piece, way, there, mesh)]
            if len(pieces) > 1 and turn >= _MAX_ROUNDS:
                names = {name for way in ways[at] for name, _ in way}
                single = _single(box, [axis_at for axis_at, name in enumerate(mesh) if name in names])
                pieces = single if len(single) > 1 else pieces  # cut along the chain already: not across it
            cuts.extend((piece, at) for piece in pieces)
        if len(cuts) == len(found):
            return found
        if len(cuts) > MAX_BOXES:
            break
        found = cuts
    raise LimitError(
        f"messages that tell more than {MAX_BOXES} ranks apart",
        wanted="chains of fewer ranks",
    )


_MAX_ROUNDS: Final = 4
_MAX_TURNS: Final = 64


def _single(box: Box, along: Sequence[int]) -> list[Box]:
    """A box cut into its places along some axes."""
    runs = [
        [(place, place + 1) for place in range(low, high)] if at in along else [(low, high)]
        for at, (low, high) in enumerate(box)
    ]
    if math.prod(map(len, runs)) > MAX_BOXES:
        raise LimitError(
            f"messages that tell more than {MAX_BOXES} ranks apart", wanted="chains of fewer ranks"
        )
    return list(product(*runs))


def _within_one(
    box: Box, way: Sequence[tuple[str, int]], boxes: Mapping[Box, None], mesh: Mapping[str, int]
) -> list[Box]:
    """A box cut so that what is sent this way from a piece goes into one of the boxes."""
    moved = shifted(box, way, mesh)
    if moved in boxes:
        return [box]
    for other in boxes:
        if any(low >= stop or start >= high for (low, high), (start, stop) in zip(moved, other, strict=True)):
            continue
        if _holds(other, moved):
            return [box]
        for at, ((low, _), (from_, _)) in enumerate(zip(moved, box, strict=True)):
            by = low - from_
            pieces = outside(box, at, (other[at][0] - by, other[at][1] - by))
            if len(pieces) > 1:
                return [part for piece in pieces for part in _within_one(piece, way, boxes, mesh)]
    return [box]


def _addressed(
    step: Op, box: Box, names: Mapping[Box, str], mesh: Mapping[str, int], world: Mapping[str, int]
) -> Op:
    """A message with its receiver's track and place, and a key that names sender and receiver by number."""
    if step.op not in ("send", "recv"):
        return step
    _, far, tag, turn = _key(step)
    sign = 1 if step.op == "send" else -1
    own: dict[str, Int] = {
        name: low if high - low == 1 else axis(name) for name, (low, high) in zip(mesh, box, strict=True)
    }
    other = {name: combine("+", at, sign * dict(far).get(name, 0)) for name, at in own.items()}
    ends = (own, other) if step.op == "send" else (other, own)
    key = ("p2p", _number(ends[0], world), _number(ends[1], world), tag, turn)
    attrs: Attrs = (("key", key),)
    if step.op == "send":
        goal = shifted(box, far, mesh)
        target = goal if goal in names else next(found for found in names if _holds(found, goal))
        at = tuple(other[name] for name in _axes_of(target, mesh))
        attrs = (("at", at), ("key", key), ("to", names[target]))
    return Op(step.op, step.args, step.outs, attrs, step.note)


def _key(step: Op) -> Any:
    return step.attr("key")


def _holds(box: Box, inner: Box) -> bool:
    return all(start <= low and high <= stop for (low, high), (start, stop) in zip(inner, box, strict=True))


def _number(place: Mapping[str, Int], world: Mapping[str, int]) -> Int:
    """The number of the rank at a place."""
    total: Int = 0
    for name, length in world.items():
        total = combine("+", combine("*", total, length), place[name])
    return total
