"""All-to-alls with splits: one collective where all parts of a group are alike, messages where they are not.

Messages alone would not wait for a member that neither gives nor takes anything; so members meet besides, by
a collective of nothing: whoever does not call it hangs the others, as it does in truth.

A rank sees its own splits, and cannot know whether those of others are as even; so a call with splits is put
down with them (`gives`, `takes`), and settled here, when all ranks are known. Knows nothing of torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, product
from typing import Any, Protocol, TypeAlias

from tensure.errors import InputError, UnsupportedError
from tensure.program import Name, Op, Ref

from ._places import number_of
from ._tracks import reread

__all__ = ["even_exchanges", "settled_exchanges"]

Meeting: TypeAlias = "tuple[Name, tuple[str, ...], tuple[int, ...]]"
"""The result's name, the axes, and where the group stands along the others."""


class Traced(Protocol):
    """Of a traced rank, what is asked here."""

    place: dict[str, int]
    steps: list[Op]


def settled_exchanges(ranks: Sequence[Traced], mesh: Mapping[str, int], world: Mapping[str, int]) -> None:
    """Leave no all-to-all with splits in the steps of ranks that were all traced.

    Args:
        ranks: every rank, in the order of places.
        mesh: sizes of all axes.
        world: sizes of those that ranks are numbered along.

    Raises:
        InputError: a rank gives another one more or less than that takes: rows, of listed tensors elements.
        UnsupportedError: members of a group that say what they exchange in different ways.
    """
    met: dict[Meeting, dict[int, _Split | None]] = {}
    for at, rank in enumerate(ranks):
        for step in rank.steps:
            if step.op == "all_to_all":
                met.setdefault(_meeting(step, rank.place), {})[at] = _split(step)
    uneven = [
        key
        for key, members in met.items()
        if len({rows for split in members.values() for rows in (split.rows if split else (None,))}) > 1
    ]
    for key in uneven:
        _check(key, met[key], mesh, [rank.place for rank in ranks])
    for rank in ranks:
        if any(step.attr("gives") is not None for step in rank.steps):
            rank.steps = _settled(rank, frozenset(uneven), mesh, world)


def even_exchanges(steps: Sequence[Sequence[Op]]) -> list[list[Op]]:
    """The same of classes of ranks, where only even splits can be told.

    Args:
        steps: of every rank that was traced.

    Raises:
        UnsupportedError: uneven ones.
    """
    rows = dict[Any, set[int | None]]()
    for text in steps:
        for step in text:
            if step.op == "all_to_all":
                split = _split(step)
                rows.setdefault((step.outs, step.attr("axes")), set()).update(
                    split.rows if split else (None,)
                )
                if len(rows[step.outs, step.attr("axes")]) > 1:
                    raise UnsupportedError(
                        "an all-to-all of uneven splits where ranks are taken as classes",
                        place=_line(step) or None,
                        wanted="equal splits, or at most 256 ranks",
                    )
    return [[_plain(step) for step in text] for text in steps]


@dataclass(frozen=True, slots=True)
class _Split:
    """How many rows one rank gives to each member, and takes from each."""

    gives: tuple[int, ...]
    takes: tuple[int, ...]
    source: str

    @property
    def rows(self) -> tuple[int, ...]:
        return (*self.gives, *self.takes)


def _split(step: Op) -> _Split | None:
    gives, takes = step.attr("gives"), step.attr("takes")
    if not isinstance(gives, tuple) or not isinstance(takes, tuple):
        return None
    return _Split(tuple(map(_int, gives)), tuple(map(_int, takes)), _line(step))


def _line(step: Op) -> str:
    return ", ".join(str(value) for key, value in step.note if key in ("module", "source"))


def _int(value: Any) -> int:
    assert isinstance(value, int)
    return value


def _plain(step: Op) -> Op:
    """The collective without its splits."""
    attrs = tuple((key, value) for key, value in step.attrs if key not in ("gives", "takes"))
    return Op(step.op, step.args, step.outs, attrs, step.note)


def _meeting(step: Op, place: Mapping[str, int]) -> Meeting:
    axes: Any = step.attr("axes")
    return step.outs[0], axes, tuple(at for axis, at in place.items() if axis not in axes)


def _members(key: Meeting, mesh: Mapping[str, int]) -> list[dict[str, int]]:
    """Places of a group's ranks, in its order."""
    _, axes, rest = key
    spans = [axis for axis in mesh if axis in axes]
    fixed = dict(zip((axis for axis in mesh if axis not in axes), rest, strict=True))
    return [
        {**fixed, **dict(zip(spans, at, strict=True))}
        for at in product(*(range(mesh[axis]) for axis in spans))
    ]


def _check(
    key: Meeting,
    splits: Mapping[int, _Split | None],
    mesh: Mapping[str, int],
    places: Sequence[Mapping[str, int]],
) -> None:
    """What one gives is what the other takes. Who is not there is left to hang, and found."""
    numbers = {tuple(place[axis] for axis in mesh): at for at, place in enumerate(places)}
    group = [numbers[tuple(place[axis] for axis in mesh)] for place in _members(key, mesh)]
    for one, (giver, given) in enumerate((at, splits.get(at)) for at in group):
        for other, (taker, taken) in enumerate((at, splits.get(at)) for at in group):
            if giver not in splits or taker not in splits:
                continue
            if given is None or taken is None:
                raise UnsupportedError(
                    "an all-to-all with splits on some ranks, and of a list of equal parts on others",
                    wanted="one form on all ranks",
                )
            if given.gives[other] != taken.takes[one]:
                raise InputError(
                    f"in an all-to-all rank {giver} gives rank {taker} a part of {given.gives[other]}, and "
                    f"that takes one of {taken.takes[one]}",
                    place=taken.source or None,
                    wanted="output splits of one that are input splits of the other",
                )


def _settled(
    rank: Traced, uneven: frozenset[Meeting], mesh: Mapping[str, int], world: Mapping[str, int]
) -> list[Op]:
    names, made = dict[Name, Name](), list[Op]()
    for step in rank.steps:
        args = tuple(reread(arg, names) for arg in step.args)
        step = Op(step.op, args, step.outs, step.attrs, step.note)
        split = _split(step) if step.op == "all_to_all" else None
        if split is None:
            made.append(step)
            continue
        key = _meeting(step, rank.place)
        if key not in uneven:
            made.append(_plain(step))
            continue
        joined = Name(f"joined_{step.outs[0].base}")
        names[step.outs[0]] = joined
        made += _messages(step, split, joined, _members(key, mesh), rank.place, world)
    return made


def _messages(
    step: Op,
    split: _Split,
    joined: Name,
    group: Sequence[Mapping[str, int]],
    own: Mapping[str, int],
    world: Mapping[str, int],
) -> list[Op]:
    """A meeting; each part on its way, the own one kept; then those of others, joined in the group's order.

    What is met with is empty, and joined too, so that nobody drops it.
    """
    (value,) = step.args
    base, axes = step.outs[0].base, step.attr("axes")
    here = next(at for at, place in enumerate(group) if place == own)
    parts = dict[int, Ref]()
    none = Name(f"none_{base}")
    steps = [
        Op("slice", (value,), (none,), (("dim", 0), ("end", 0), ("start", 0)), step.note),
        Op("all_gather", (Ref(none),), step.outs, (("axes", axes), ("dim", 0)), step.note),
    ]
    starts = (0, *accumulate(split.gives))
    for at, place in enumerate(group):
        if not split.gives[at]:
            continue
        part = Name(f"part_{base}_{at}")
        cut = (("dim", 0), ("end", starts[at + 1]), ("start", starts[at]))
        steps.append(Op("slice", (value,), (part,), cut, step.note))
        if at == here:
            parts[at] = Ref(part)
        else:
            attrs = _letter(
                base, number_of(own, world), number_of(place, world), number_of(place, world), axes
            )
            steps.append(Op("send", (Ref(part),), (), attrs, step.note))
    for at, place in enumerate(group):
        if at != here and split.takes[at]:
            got = Name(f"recv_{base}_{at}")
            attrs = _letter(
                base, number_of(place, world), number_of(own, world), number_of(place, world), axes
            )
            steps.append(Op("recv", (), (got,), attrs, step.note))
            parts[at] = Ref(got)
    ordered = (*(parts[at] for at in sorted(parts)), Ref(step.outs[0]))
    if len(ordered) == 1:
        return [*steps, Op("copy", ordered, (joined,), (), step.note)]
    return [*steps, Op("cat", ordered, (joined,), (("dim", 0),), step.note)]


def _letter(base: str, sender: int, receiver: int, other: int, axes: Any) -> Any:
    return (("key", ("p2p", sender, receiver, base)), ("other", other), ("over", axes))
