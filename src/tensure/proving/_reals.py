"""Records as they are read over the real numbers: wherever half floats are about, all floats are one kind.

Equality is over the reals, where a cast from one float to another is the identity. So before a Plan is
walked, floats get one dtype in a copy of both records; what is left of a cast between them is a copy, which
all rules know. Casts to and from integers and bools stay what they are. The checker has a reading of its
own (`_check_reals.py`). A note keeps what a step said, so that `_numerics.py` can tell where ranks round and
the Program does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from tensure.bundle import Local, Plan
from tensure.program import Block, Body, For, Op, Program

from ._literals import Literals
from ._values import FLOATS

HALVES: Final = frozenset({"f16", "bf16"})
WORDS: Final = frozenset({"dtype", "input_dtype"})
"""Attributes that name the dtype of a result, or of what it is the gradient of."""
SAID: Final = "said"
"""The note of a step that named another float."""


def over_reals(plan: Plan, program: Program) -> tuple[Plan, Program, Mapping[str, str] | None]:
    """Both with one float dtype: f64 if that is among theirs, else f32; and the floats declared, by base.

    The records themselves, and None, where no half float is named or where bytes are placed: a Plan with
    pools says of every byte where it lies, and what is right of it hangs on widths.
    """
    found = set(_floats(plan, program))
    if plan.pools or found.isdisjoint(HALVES):
        return plan, program, None
    reading = _Reading("f64" if "f64" in found else "f32", literals(program))
    declared = {base: value.dtype for base, value in program.values.items() if value.dtype in FLOATS}
    return reading.plan(plan), reading.program(program), declared


def literals(program: Program) -> Literals:
    """The Program's numbers."""
    return Literals(_steps(None, program))


def unclear_literal(plan: Plan, program: Program) -> str:
    """A literal in a half float that may be the rounding of another number, in words; empty if there is none.

    Args:
        plan, program: as given.
    """
    known = literals(program)
    for step in _steps(plan, program):
        number = known.unclear(step)
        if number is not None:
            return f"{step.outs[0]}, the {step.attr('dtype')} number {number}"
    return ""


def _floats(plan: Plan, program: Program) -> Iterator[str]:
    """Every float dtype that is named."""
    for table in (plan.locals, *(track.locals for track in plan.tracks.values())):
        yield from (local.dtype for local in table.values() if local.dtype is not None)
    yield from (value.dtype for value in program.values.values())
    for step in _steps(plan, program):
        yield from (str(value) for key, value in step.attrs if key in WORDS)


def _steps(plan: Plan | None, program: Program) -> Iterator[Op]:
    bodies = [entry.body for entry in program.entries.values()]
    bodies += [block.body for block in program.blocks.values()]
    if plan is not None:
        bodies += [block.body for block in plan.blocks.values()]
        bodies += [body for track in plan.tracks.values() for body in track.bodies.values()]
    todo = [item for body in bodies for item in body]
    while todo:
        item = todo.pop()
        if isinstance(item, For):
            todo.extend(item.body)
        elif isinstance(item, Op):
            yield item


@dataclass(frozen=True)
class _Reading:
    """Records with this dtype for all floats."""

    dtype: str
    literals: Literals
    """What literals of half floats stand for; of the Program's none is another's rounding."""

    def program(self, given: Program) -> Program:
        values = {
            base: replace(value, dtype=self.dtype) if value.dtype in FLOATS else value
            for base, value in given.values.items()
        }
        entries = {key: replace(entry, body=self._body(entry.body)) for key, entry in given.entries.items()}
        return replace(given, values=values, blocks=self._blocks(given.blocks), entries=entries)

    def plan(self, given: Plan) -> Plan:
        tracks = {
            key: replace(
                track,
                locals=self._locals(track.locals),
                bodies={entry: self._body(body) for entry, body in track.bodies.items()},
            )
            for key, track in given.tracks.items()
        }
        shared = self._locals(given.locals)
        return replace(given, locals=shared, blocks=self._blocks(given.blocks), tracks=tracks)

    def _locals(self, table: Mapping[str, Local]) -> dict[str, Local]:
        return {
            base: replace(local, dtype=self.dtype) if local.dtype in FLOATS else local
            for base, local in table.items()
        }

    def _blocks(self, blocks: Mapping[str, Block]) -> dict[str, Block]:
        return {key: replace(block, body=self._body(block.body)) for key, block in blocks.items()}

    def _body(self, body: Body) -> Body:
        return tuple(
            self._step(item)
            if isinstance(item, Op)
            else replace(item, body=self._body(item.body))
            if isinstance(item, For)
            else item
            for item in body
        )

    def _step(self, step: Op) -> Op:
        """One step over the reals; what is f32 from f16 is a float of what is a float."""
        said = next((value for key, value in step.attrs if key in WORDS and value in FLOATS), None)
        is_widened = step.attr("half_to_float") is True
        meant = self.literals.meant(step)
        if meant is not None:
            step = replace(
                step, attrs=tuple((k, meant if k == "fill_value" else value) for k, value in step.attrs)
            )
        note = tuple(item for item in step.note if item[0] != SAID)  # nobody else's word counts
        if said is None and not is_widened:
            return step if note == step.note else replace(step, note=note)
        attrs = tuple(
            (key, self.dtype)
            if key in WORDS and value in FLOATS
            else (key, False)
            if key == "half_to_float"
            else (key, value)
            for key, value in step.attrs
        )
        note = (*note, (SAID, "f32" if is_widened else said))
        return replace(step, attrs=attrs, note=tuple(sorted(note, key=lambda item: item[0])))
