"""Whether all members of a group make one call: what each brings, and what the ops of a Plan do not say.

A broadcast is a gather of which one part is kept, a barrier a sum that nobody reads: whose part, and which
call it was, are no attributes of the steps. So each member's call is put down with its step (`called`), and
looked at here, when all ranks are known. Who calls something else gets another name for it, so that the
walk of the Plan finds no partner; what is of several types stays, read or not, so that the walk sees the
types.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

from tensure.errors import RecordError, UnsupportedError
from tensure.program import COLLECTIVES, Attrs, Expr, Name, Op

from ._boxes import Box, Cells, is_closed
from ._lift import Coordinates, lift_attr
from ._tracks import reread

__all__ = ["BROUGHT", "CALL", "Unlike", "called", "settled_calls", "type_met", "unlike", "unlike_classes"]

CALL: Final = "call"
"""The note of a step that says which call it was, where its op does not."""
BROUGHT: Final = "brought"
"""The note of a step that says what it brings, where members bring several dtypes."""
_MEETS: Final = "meets"

Text: TypeAlias = "tuple[Mapping[str, int], Sequence[Op]]"
"""A rank's place, and its steps."""


class Unlike:
    """Collectives, by the names of their results, whose members do not do the same.

    Args:
        calls: those made under a name, each with the dtype that is brought, in order, if they are several.
        brought: the names under which members bring several types.
    """

    def __init__(self) -> None:
        self.calls: dict[Name, list[tuple[str, str]]] = {}
        self.brought: set[Name] = set()


def called(note: Attrs, call: str, dtype: str, shape: Sequence[int]) -> Attrs:
    """A note that says what a member does, until all ranks are known.

    Args:
        note: of the step.
        call: which call, as far as the op does not say; empty where it says all.
        dtype, shape: of what is brought.
    """
    return (*note, (_MEETS, (call, dtype, tuple(shape))))


def unlike(ranks: Sequence[Text]) -> Unlike:
    """What the members of some group do not do alike; who makes no call at all is left to others."""
    met: dict[Any, set[Any]] = {}
    for place, steps in ranks:
        for step in _joint(steps):
            axes: Any = step.attr("axes")
            rest = tuple(at for axis, at in place.items() if axis not in axes)
            met.setdefault((step.outs[0], axes, rest), set()).add(_said(step))
    found = Unlike()
    for (name, _, _), said in met.items():
        _note(found, name, said)
    return found


def unlike_classes(
    boxes: Sequence[Box], samples: Sequence[Sequence[Text]], mesh: Mapping[str, int]
) -> Unlike:
    """The same of classes of ranks.

    Args:
        boxes: of ranks that do the same.
        samples: of each, the ranks that settle all integers.
        mesh: sizes of the axes.

    Raises:
        UnsupportedError: ranks of one class that make several calls under one name.
    """
    names, found = list(mesh), Unlike()
    cells = Cells(boxes, tuple(mesh.values()))
    met: dict[Any, dict[Any, Any]] = {}
    for box, texts in zip(boxes, samples, strict=True):
        for steps in zip(*(_joint(steps) for _, steps in texts), strict=True):
            first = steps[0]
            axes: Any = first.attr("axes")
            _one_call(steps)
            said: dict[Coordinates, Any] = {
                tuple(place.items()): _said(step)[1:] for (place, _), step in zip(texts, steps, strict=True)
            }
            try:
                lifted: Any = lift_attr(said, is_sampled=True)
            except RecordError:
                lifted = None
            if lifted is None or not _axes_in(lifted).isdisjoint(axes):
                found.brought.add(first.outs[0])
                lifted = None
            masks = met.setdefault((first.outs[0], axes), {})
            call, _, brought = _said(first)
            cells.add(masks.setdefault((call, repr(lifted), brought[:1]), cells.none()), box)
    for (name, axes), masks in met.items():
        along = [names.index(axis) for axis in axes]
        _note(found, name, {said for said, mask in masks.items() if not is_closed(mask, along)})
    return found


def settled_calls(steps: Sequence[Op], found: Unlike) -> list[Op]:
    """The steps with no more said of their calls, and those that are not alike under names of their own."""
    names, made = dict[Name, Name](), list[Op]()
    for step in steps:
        args = tuple(reread(arg, names) for arg in step.args) if names else step.args
        outs, note = step.outs, step.note
        said: Any = dict(note).get(_MEETS)
        if said is not None:
            note = tuple(item for item in note if item[0] != _MEETS)
            note = (*note, (CALL, said[0])) if said[0] else note
            several = found.calls.get(outs[0], []) if step.op in COLLECTIVES else []
            if said[:2] in several:
                outs = (Name(f"{outs[0].base}_call{several.index(said[:2])}"),)
                names[step.outs[0]] = outs[0]
            if len({dtype for _, dtype in several}) > 1 and said[1]:
                note = (*note, (BROUGHT, f"{said[1]}[{','.join(map(str, said[2]))}]"))
        made.append(Op(step.op, args, outs, step.attrs, note))
    return made


def type_met(step: Op) -> tuple[str, tuple[int, ...]]:
    """What is brought, sent or received, while it is known."""
    _, dtype, shape = dict[str, Any](step.note).get(_MEETS, ("", "", ()))
    return dtype, shape


def _joint(steps: Sequence[Op]) -> list[Op]:
    return [step for step in steps if step.op in COLLECTIVES]


def _said(step: Op) -> tuple[str, Any, Any]:
    """The call, the op with its attributes, and the type that is brought."""
    call, dtype, shape = dict[str, Any](step.note).get(_MEETS, ("", "", ()))
    return call, (step.op, step.attrs), (dtype, shape)


def _axes_in(value: Any) -> set[str]:
    """The coordinates that integers in a value follow from."""
    if isinstance(value, tuple):
        return set[str]().union(*map(_axes_in, value))
    return set(value.names) if isinstance(value, Expr) else set()


def _note(found: Unlike, name: Name, said: set[Any]) -> None:
    """What is said under one name in one group; several calls of several groups are looked at together."""
    calls = {(call, *brought[:1]) for call, _, brought in said}
    if len(calls) > 1:
        found.calls[name] = sorted({*found.calls.get(name, ()), *calls})
    if len(said) > 1:
        found.brought.add(name)


def _one_call(steps: Sequence[Op]) -> None:
    calls = sorted({(call, dtype) for call, _, (dtype, _) in map(_said, steps)})
    if len(calls) > 1:
        one, other = (f"{call or steps[0].op} of {dtype}" for call, dtype in calls[:2])
        raise UnsupportedError(
            f"ranks that are taken together, one at a {one}, another at a {other}",
            place=str(dict(steps[0].note).get("source", "")) or None,
            wanted="one source and one dtype for all ranks, or at most 256 ranks",
        )
