"""What a live rank did, as bytes that other processes of the same job can read: JSON, and no pickle."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from tensure.errors import FormatError
from tensure.program import Arg, Attr, Attrs, Cat, Name, Op, Ref

from ._live import LiveRank
from ._model import Captured
from ._placements import Part
from ._places import place_of

__all__ = ["rank_from_bytes", "rank_to_bytes"]


def rank_to_bytes(rank: LiveRank) -> bytes:
    """Everything of a traced rank that a Plan needs; notes are written once each."""
    notes = _Notes({})
    row = {
        "world": list(rank.world.items()),
        "rank": rank.rank,
        "steps": [
            [step.op, [_arg(arg) for arg in step.args], [out.base for out in step.outs], step.attrs,
             notes.number(step.note)]
            for step in rank.steps
        ],
        "claims": {label: [of, _part(part)] for label, (of, part) in rank.claims.items()},
        "lacking": {label: [_part(part), dtype] for label, (part, dtype) in rank.lacking.items()},
        "outputs": sorted(rank.outputs),
        "contents": rank.contents,
        "bases": list(rank.bases.items()),
        "notes": list(notes.known),
    }  # fmt: skip
    return zlib.compress(json.dumps(row).encode(), 1)


def rank_from_bytes(data: bytes, captured: Captured) -> LiveRank:
    """The rank behind its bytes.

    Raises:
        FormatError: they are not of this form.
    """
    try:
        row = json.loads(zlib.decompress(data))
        world, number = dict(row["world"]), row["rank"]
        notes = [_attrs(note) for note in row["notes"]]
        found = LiveRank(world, number, captured)
        found.mesh = dict(world)
        found.place = place_of(number, world)
        found.steps = [
            Op(op, tuple(map(_read_arg, args)), tuple(map(Name, outs)), _attrs(attrs), notes[note])
            for op, args, outs, attrs, note in row["steps"]
        ]
        found.claims = {label: (of, _read_part(part)) for label, (of, part) in row["claims"].items()}
        found.lacking = {label: (_read_part(part), dtype) for label, (part, dtype) in row["lacking"].items()}
        found.outputs = set(row["outputs"])
        found.standing = {
            label: part for label, (_, part) in found.claims.items() if label not in found.outputs
        }
        found.contents = row["contents"]
        found.bases = {int(seed): list(map(str, bases)) for seed, bases in row["bases"]}
    except (ValueError, TypeError, KeyError, IndexError, zlib.error) as error:
        raise FormatError(f"the trace of a rank cannot be read: {error}") from None
    return found


@dataclass(slots=True)
class _Notes:
    known: dict[Attrs, int]

    def number(self, note: Attrs) -> int:
        return self.known.setdefault(note, len(self.known))


def _arg(arg: Arg) -> Any:
    if isinstance(arg, Ref):
        return {"ref": arg.name.base}
    if isinstance(arg, Cat):
        return {"cat": [arg.dim, [_arg(part) for part in arg.parts]]}
    if arg is None or isinstance(arg, (bool, int, float)):
        return arg
    raise FormatError(f"an operand {arg!r} in the trace of a rank")


def _read_arg(row: Any) -> Arg:
    if not isinstance(row, dict):
        return row  # type: ignore[no-any-return]
    if "ref" in row:
        return Ref(Name(row["ref"]))
    dim, parts = row["cat"]
    return Cat(dim, tuple(map(_read_arg, parts)))


def _attrs(row: Any) -> Attrs:
    return tuple((key, _attr(value)) for key, value in row)


def _attr(value: Any) -> Attr:
    return tuple(map(_attr, value)) if isinstance(value, list) else value


def _part(part: Part) -> Any:
    return [part.dims, part.sum, [part.scale.numerator, part.scale.denominator]]


def _read_part(row: Any) -> Part:
    dims, total, scale = row
    runs = tuple(tuple((lo, hi, step) for lo, hi, step in dim) for dim in dims)
    return Part(runs, tuple(total), Fraction(*scale))
