"""Chosen kernels as notes of a Plan's ops, and back.

A note changes no plan's digest, and no value beyond the rounding its accuracy class allows:
`kernel="direct NHWC"` says how the value of an op is made (in which order its products are added), `why` says
for people what the choice rests on. Ops inside blocks have no single name and get no note.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final

from tensure.bundle import Plan
from tensure.kernels import ALGORITHMS, LAYOUTS
from tensure.program import Item, Op

from ._conv_choice import Candidate, Choice

__all__ = ["kernels_noted", "note_kernels"]

_KEYS: Final = ("kernel", "why")
MAX_REASON: Final = 200


def note_kernels(plan: Plan, entry: str, choices: Mapping[str, Choice]) -> Plan:
    """The plan with a note at every op whose value a choice names; older notes of the same keys go."""
    tracks = {}
    for label, track in plan.tracks.items():
        bodies = dict(track.bodies)
        if entry in bodies:
            bodies[entry] = tuple(_noted(item, choices) for item in bodies[entry])
        tracks[label] = replace(track, bodies=bodies)
    return replace(plan, tracks=tracks)


def kernels_noted(plan: Plan, entry: str) -> dict[str, Candidate]:
    """What the notes of an entry ask for, by value; a note that names no kernel we have is passed over."""
    found = {}
    for op in _ops(plan, entry):
        words = str(dict(op.note).get("kernel", "")).split(" ")
        if len(words) == 2 and words[0] in ALGORITHMS and words[1] in LAYOUTS:
            found[str(op.outs[0])] = Candidate(*words)
    return found


def _noted(item: Item, choices: Mapping[str, Choice]) -> Item:
    if not isinstance(item, Op) or not item.outs or str(item.outs[0]) not in choices:
        return item
    choice = choices[str(item.outs[0])]
    kept = {key: value for key, value in item.note if key not in _KEYS}
    notes = {**kept, "kernel": str(choice.candidate), "why": choice.reason[:MAX_REASON]}
    return replace(item, note=tuple(sorted(notes.items())))


def _ops(plan: Plan, entry: str) -> Iterator[Op]:
    for track in plan.tracks.values():
        for item in track.bodies.get(entry, ()):
            if isinstance(item, Op) and item.outs:
                yield item
