"""How the checker reads records over the reals: a half float is a float, so its word is that of float32.

Written apart from the prover's (`_reals.py`): whatever record it is handed is taken to pieces and built again
with other words. Integers, bools and float64 keep theirs, so a cast to or from them is never a copy. A Plan
that places bytes is read as it stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tensure.bundle import Local, Plan
from tensure.program import For, Op, Program


def read_over_reals(plan: Plan, program: Program) -> tuple[Plan, Program]:
    """Copies of both that name no half float."""
    if plan.pools:
        return plan, program
    values = {base: replace(item, dtype=_word(item.dtype)) for base, item in program.values.items()}
    entries = {label: replace(item, body=_steps(item.body)) for label, item in program.entries.items()}
    tracks = {
        label: replace(
            item,
            locals=_held(item.locals),
            bodies={entry: _steps(body) for entry, body in item.bodies.items()},
        )
        for label, item in plan.tracks.items()
    }
    return (
        replace(plan, locals=_held(plan.locals), blocks=_called(plan.blocks), tracks=tracks),
        replace(program, values=values, blocks=_called(program.blocks), entries=entries),
    )


def _word(dtype: Any) -> Any:
    return "f32" if dtype == "f16" or dtype == "bf16" else dtype


def _held(table: Mapping[str, Local]) -> dict[str, Local]:
    return {base: replace(item, dtype=_word(item.dtype)) for base, item in table.items()}


def _called(blocks: Mapping[str, Any]) -> dict[str, Any]:
    return {label: replace(item, body=_steps(item.body)) for label, item in blocks.items()}


def _steps(body: tuple[Any, ...]) -> tuple[Any, ...]:
    read: list[Any] = []
    for item in body:
        if isinstance(item, For):
            item = replace(item, body=_steps(item.body))
        elif isinstance(item, Op):
            item = replace(item, attrs=tuple(_said(key, value) for key, value in item.attrs))
        read.append(item)
    return tuple(read)


def _said(key: str, value: Any) -> tuple[str, Any]:
    if key == "half_to_float":  # f32 from what is read as f32
        return key, False
    return key, _word(value) if key.endswith("dtype") else value
