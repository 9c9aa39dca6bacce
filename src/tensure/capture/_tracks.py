"""Ranks into tracks: one text for all ranks that do the same but for integers that follow from their place.

Dead steps go first, jointly: a collective stays on all of its ranks if one of them needs its result.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from tensure.bundle import Local, Place, Track
from tensure.errors import UnsupportedError
from tensure.program import COLLECTIVES, COMMUNICATION, Cat, Name, Op, Ref

from ._lift import Coordinates, lift_attr, lift_ops, shape_of_text
from ._placements import Part
from ._spelling import spelled

__all__ = [
    "RankTrace",
    "claims_outline",
    "live_steps",
    "locals_of",
    "needed_steps",
    "pruned",
    "reread",
    "tracks_of",
    "without_idle",
]


@dataclass(frozen=True)
class RankTrace:
    """What one rank did.

    Args:
        place: its coordinates, by axis in mesh order.
        steps: in order.
        claims: by local: the logical value it is a part of, and the part.
        outputs: the locals that must be there at the end.
    """

    place: Coordinates
    steps: tuple[Op, ...]
    claims: Mapping[str, tuple[str, Part]]
    outputs: frozenset[str]


def live_steps(traces: Sequence[RankTrace], kept_too: Collection[Name] = ()) -> list[RankTrace]:
    """The same without what nobody needs; names are counted anew, and do not tell what was dropped.

    Args:
        traces: of all ranks.
        kept_too: collectives that stay, read or not.
    """
    traces = [replace(trace, steps=tuple(spelled(trace.steps))) for trace in traces]
    kept = needed_steps(
        [trace.steps for trace in traces],
        [trace.outputs for trace in traces],
        _lonely(traces).union(kept_too),
    )
    return [pruned(trace, steps) for trace, steps in zip(traces, kept, strict=True)]


def needed_steps(
    texts: Sequence[Sequence[Op]], outputs: Sequence[frozenset[str]], needed: set[Any]
) -> list[list[Op]]:
    """Of each text what its outputs, or another text, need.

    Args:
        texts: of ranks, or of classes of them.
        outputs: of each, the locals that must be there at the end.
        needed: results of collectives, and keys of messages, that stay in any case.
    """
    needed = set(needed)
    while True:
        kept = [_live(steps, labels, needed) for steps, labels in zip(texts, outputs, strict=True)]
        grown: set[Any] = {step.outs[0] for steps in kept for step in steps if step.op in COLLECTIVES}
        grown |= {step.attr("key") for steps in kept for step in steps if step.op == "recv"}
        if grown <= needed:
            return kept
        needed |= grown


def without_idle(
    steps: Sequence[Op], claims: Mapping[str, tuple[str, Part]], outputs: frozenset[str]
) -> list[Op]:
    """A rank's steps but those whose results nobody reads; all that it does with others stays.

    Names do not tell any more which part of a split was taken.
    """
    joint: set[Any] = {out for step in steps if step.op in COMMUNICATION for out in step.outs}
    joint |= {step.attr("key") for step in steps if step.op == "send"}
    return list(_renamed(_live(steps, outputs, joint), claims))


def with_one_nan(steps: Sequence[Op]) -> list[Op]:
    """The same steps with one object for every NaN: Python takes a NaN for equal to itself alone."""
    return [
        replace(step, args=tuple(map(_one_nan, step.args)), attrs=_one_nan(step.attrs))
        if _has_nan(step.args) or _has_nan(step.attrs)
        else step
        for step in steps
    ]


def _has_nan(value: Any) -> bool:
    if isinstance(value, tuple):
        return any(map(_has_nan, value))
    return isinstance(value, float) and value != value


def _one_nan(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_one_nan, value))
    return math.nan if isinstance(value, float) and value != value else value


def _lonely(traces: Sequence[RankTrace]) -> set[Any]:
    """What ranks do together and not all of them do, or not alike: kept, for there the step hangs."""
    met: dict[tuple[Any, ...], dict[Coordinates, Any]] = {}
    sizes: dict[tuple[Any, ...], int] = {}
    sent, received = set[Any](), set[Any]()
    for trace in traces:
        for step in trace.steps:
            axes: Any = step.attr("axes")
            if step.op in COLLECTIVES:
                rest = tuple(item for item in trace.place if item[0] not in axes)
                met.setdefault((step.outs[0], axes, rest), {})[trace.place] = (step.op, step.attrs)
            elif step.op == "send":
                sent.add(step.attr("key"))
            elif step.op == "recv":
                received.add(step.attr("key"))
    for _, axes, rest in met:
        if (axes, rest) not in sizes:
            sizes[axes, rest] = sum(
                tuple(item for item in trace.place if item[0] not in axes) == rest for trace in traces
            )
    alone = {
        key[0]
        for key, members in met.items()
        if len(members) < sizes[key[1], key[2]] or len(set(map(repr, members.values()))) > 1
    }
    alone |= sent ^ received
    unsent = received - sent
    return alone | {
        step.outs[0]
        for trace in traces
        for step in trace.steps
        if step.op == "recv" and step.attr("key") in unsent
    }


def pruned(trace: RankTrace, steps: Sequence[Op]) -> RankTrace:
    """A trace with some of its steps; names are counted anew, and do not tell what was dropped."""
    read = {str(ref.name) for step in steps for ref in step.reads()} | trace.outputs
    claims = {label: found for label, found in trace.claims.items() if label in read}
    return replace(trace, steps=_renamed(steps, trace.claims), claims=claims)


def _live(steps: Sequence[Op], outputs: frozenset[str], needed: set[Any]) -> list[Op]:
    wanted = {Name(label) for label in outputs} | needed
    kept: list[Op] = []
    for step in reversed(steps):
        if step.attr("key") not in needed if step.op == "send" else wanted.isdisjoint(step.outs):
            continue
        kept.append(step)
        wanted.update(ref.name for ref in step.reads())
    return kept[::-1]


def _renamed(steps: Sequence[Op], claimed: Mapping[str, Any]) -> tuple[Op, ...]:
    counts: dict[str, int] = {}
    names: dict[Name, Name] = {}
    made: list[Op] = []
    for step in steps:
        for out in step.outs:
            if str(out) in claimed or step.op in COLLECTIVES:
                continue
            label = out.base.rpartition("_")[0] or out.base
            counts[label] = counts.get(label, -1) + 1
            names[out] = Name(f"{label}_{counts[label]}")
        made.append(
            Op(
                step.op,
                tuple(reread(arg, names) for arg in step.args),
                tuple(names.get(out, out) for out in step.outs),
                step.attrs,
                step.note,
            )
        )
    return tuple(made)


def reread(arg: Any, names: Mapping[Name, Name]) -> Any:
    """An operand with names replaced."""
    if isinstance(arg, Ref):
        return Ref(names.get(arg.name, arg.name), arg.box)
    if isinstance(arg, Cat):
        return Cat(arg.dim, tuple(reread(part, names) for part in arg.parts))
    return arg


# --- tracks -----------------------------------------------------------------------------------------


def tracks_of(
    traces: Sequence[RankTrace], mesh: Mapping[str, int], world: Mapping[str, int] | None = None
) -> dict[str, Track]:
    """One track for each class of ranks, by the axes that tell the classes apart.

    Args:
        traces: of every rank.
        mesh: sizes of the axes.
        world: sizes of those that ranks are numbered along; a message stays where it is along the others.

    Raises:
        UnsupportedError: a rank sends to one that is not there.
    """
    by_place = {trace.place: trace for trace in traces}
    # Messages first name their receiver by number; with the tracks known, by track and place.
    texts = {place: trace.steps for place, trace in by_place.items()}
    split: tuple[str, ...] = ()
    while True:
        addressed = {
            place: _addressed(steps, dict(place), split, mesh, world or mesh)
            for place, steps in texts.items()
        }
        outlines = {
            place: (shape_of_text(steps), claims_outline(by_place[place].claims))
            for place, steps in addressed.items()
        }
        found = _telling_axes(outlines, tuple(mesh))
        if set(found) <= set(split):
            break
        split = tuple(axis for axis in mesh if axis in {*split, *found})
    made: dict[str, Track] = {}
    for values in product(*(range(mesh[axis]) for axis in split)):
        fixed = dict(zip(split, values, strict=True))
        members = {
            place: steps
            for place, steps in addressed.items()
            if all(dict(place)[axis] == value for axis, value in fixed.items())
        }
        axes = tuple(axis for axis in mesh if axis not in split)
        free = {_along(place, axes): steps for place, steps in members.items()}
        claims = {_along(place, axes): by_place[place].claims for place in members}
        made[track_name(fixed)] = Track(
            axes, tuple(fixed.items()), None, locals_of(claims), {"step": lift_ops(free)}
        )
    return made


def track_name(fixed: Mapping[str, int]) -> str:
    """`ranks`, or the coordinates that all of its ranks share."""
    return "_".join(f"{axis}{value}" for axis, value in fixed.items()) or "ranks"


def _along(place: Coordinates, axes: Sequence[str]) -> Coordinates:
    return tuple((axis, at) for axis, at in place if axis in axes)


def _telling_axes(outlines: Mapping[Coordinates, Any], axes: Sequence[str]) -> tuple[str, ...]:
    telling: list[str] = []
    for at, axis in enumerate(axes):
        seen: dict[Coordinates, Any] = {}
        for place, outline in outlines.items():
            rest = (*place[:at], *place[at + 1 :])
            if seen.setdefault(rest, outline) != outline:
                telling.append(axis)
                break
    return tuple(telling)


def _addressed(
    steps: Sequence[Op],
    own: Mapping[str, int],
    split: Sequence[str],
    mesh: Mapping[str, int],
    world: Mapping[str, int],
) -> tuple[Op, ...]:
    made: list[Op] = []
    for step in steps:
        if step.op not in ("send", "recv"):
            made.append(step)
            continue
        key, other = step.attr("key"), step.attr("other")
        attrs: dict[str, Any] = {"key": key}
        if step.op == "send":
            assert isinstance(other, int)
            place = {**own, **_place(other, world)}
            attrs["to"] = track_name({axis: place[axis] for axis in mesh if axis in split})
            attrs["at"] = tuple(place[axis] for axis in mesh if axis not in split)
        made.append(Op(step.op, step.args, step.outs, tuple(sorted(attrs.items())), step.note))
    return tuple(made)


def _place(rank: int, mesh: Mapping[str, int]) -> dict[str, int]:
    found: dict[str, int] = {}
    for axis in reversed(list(mesh)):
        rank, found[axis] = divmod(rank, mesh[axis])
    if rank:
        raise UnsupportedError("a message to a rank outside of the mesh")
    return {axis: found[axis] for axis in mesh}


# --- claims -----------------------------------------------------------------------------------------


def claims_outline(claims: Mapping[str, tuple[str, Part]]) -> Any:
    """What must be equal for two ranks to share their claims: all but where runs begin and end."""
    return sorted(
        (label, of, tuple(len(runs) for runs in part.dims), part.sum, part.scale)
        for label, (of, part) in claims.items()
    )


def locals_of(
    claims: Mapping[Coordinates, Mapping[str, tuple[str, Part]]], *, is_sampled: bool = False
) -> dict[str, Local]:
    """Claims of ranks that share them, by local; `is_sampled` as in `lift_ops`."""
    first = next(iter(claims.values()))
    made: dict[str, Local] = {}
    for label, (of, part) in first.items():
        dims: list[Any] = []
        for dim in range(len(part.dims)):
            runs: Any = lift_attr(
                {place: table[label][1].dims[dim] for place, table in claims.items()}, is_sampled=is_sampled
            )
            dims.append((dim, runs))
        made[label] = Local((), Place(Name(of), tuple(dims), part.sum, None, part.scale))
    return made
