"""Records as they are read over the real numbers: the half floats say the same as float32 there.

Equality is over the reals, where a cast from one float to another is the identity. So before a Plan is
walked, f16 and bf16 are written f32 in a copy of both records; what is left of a cast is a copy, which all
rules know. Casts to and from integers and bools stay what they are, and so does f64. The checker has a
reading of its own (`_check_reals.py`). A note keeps what a step said, so that `_numerics.py` can tell where
ranks round and the Program does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final

from tensure.bundle import Local, Plan
from tensure.program import Block, Body, For, Op, Program

HALVES: Final = frozenset({"f16", "bf16"})
WORDS: Final = frozenset({"dtype", "input_dtype"})
"""Attributes that name the dtype of a result, or of what it is the gradient of."""
SAID: Final = "said"
"""The note of a step that named a half float."""


def over_reals(plan: Plan, program: Program) -> tuple[Plan, Program]:
    """Both with f32 for every half float; themselves where there is none, or where bytes are placed.

    A Plan with pools says of every byte where it lies, and what is right of it hangs on widths.
    """
    if plan.pools or not _is_mixed(plan, program):
        return plan, program
    wide = replace(
        program,
        values={
            base: replace(value, dtype="f32") if value.dtype in HALVES else value
            for base, value in program.values.items()
        },
        blocks=_blocks(program.blocks),
        entries={key: replace(entry, body=_body(entry.body)) for key, entry in program.entries.items()},
    )
    tracks = {
        key: replace(
            track,
            locals=_locals(track.locals),
            bodies={entry: _body(body) for entry, body in track.bodies.items()},
        )
        for key, track in plan.tracks.items()
    }
    return replace(plan, locals=_locals(plan.locals), blocks=_blocks(plan.blocks), tracks=tracks), wide


def half_values(plan: Plan, program: Program) -> dict[str, str] | None:
    """The half floats among the dtypes that a Program declares, by base; None where nobody is read anew."""
    if plan.pools or not _is_mixed(plan, program):
        return None
    return {base: value.dtype for base, value in program.values.items() if value.dtype in HALVES}


def _is_mixed(plan: Plan, program: Program) -> bool:
    tables = [plan.locals, *(track.locals for track in plan.tracks.values())]
    return (
        any(value.dtype in HALVES for value in program.values.values())
        or any(local.dtype in HALVES for table in tables for local in table.values())
        or any(_names_half(step) for step in _steps(plan, program))
    )


def _names_half(step: Op) -> bool:
    return any(key in WORDS and value in HALVES for key, value in step.attrs)


def _steps(plan: Plan, program: Program) -> Iterator[Op]:
    bodies = [entry.body for entry in program.entries.values()]
    bodies += [block.body for block in (*program.blocks.values(), *plan.blocks.values())]
    bodies += [body for track in plan.tracks.values() for body in track.bodies.values()]
    todo = [item for body in bodies for item in body]
    while todo:
        item = todo.pop()
        if isinstance(item, For):
            todo.extend(item.body)
        elif isinstance(item, Op):
            yield item


def _locals(table: Mapping[str, Local]) -> dict[str, Local]:
    return {
        base: replace(local, dtype="f32") if local.dtype in HALVES else local for base, local in table.items()
    }


def _blocks(blocks: Mapping[str, Block]) -> dict[str, Block]:
    return {key: replace(block, body=_body(block.body)) for key, block in blocks.items()}


def _body(body: Body) -> Body:
    return tuple(
        _step(item)
        if isinstance(item, Op)
        else replace(item, body=_body(item.body))
        if isinstance(item, For)
        else item
        for item in body
    )


def _step(step: Op) -> Op:
    """One step over the reals; what is f32 from f16 is f32 of what is f32."""
    said = next((value for key, value in step.attrs if key in WORDS and value in HALVES), None)
    is_widened = step.attr("half_to_float") is True
    note = tuple(item for item in step.note if item[0] != SAID)  # nobody else's word counts
    if said is None and not is_widened:
        return step if note == step.note else replace(step, note=note)
    attrs = tuple(
        (key, "f32")
        if key in WORDS and value in HALVES
        else (key, False)
        if key == "half_to_float"
        else (key, value)
        for key, value in step.attrs
    )
    note = (*note, (SAID, "f32" if is_widened else said))
    return replace(step, attrs=attrs, note=tuple(sorted(note, key=lambda item: item[0])))
