"""How the checker reads records over the reals: where half floats are about, floats have one word.

Written apart from the prover's (`_reals.py`): whatever record it is handed is taken to pieces and built again
with other words. Integers and bools keep theirs, so a cast to or from them is never a copy. A Plan that
places bytes is read as it stands, and so is one without half floats.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tensure.bundle import Local, Plan
from tensure.program import For, Op, Program

from ._check_kinds import AsWritten


def read_over_reals(plan: Plan, program: Program) -> tuple[Plan, Program, AsWritten | None]:
    """Both as they are, or copies in which every float has the widest word; and what words there were."""
    seen = _Words()
    seen.read(plan, program)
    if plan.pools or not seen.met & {"f16", "bf16"}:
        return plan, program, None
    written = AsWritten(plan, {base: value.dtype for base, value in program.values.items()})
    return *_Words("f64" if "f64" in seen.met else "f32").read(plan, program), written


@dataclass
class _Words:
    """What floats are called from here on; if nothing, what they are called is only noted."""

    float: str = ""
    met: set[Any] = field(default_factory=set[Any])

    def read(self, plan: Plan, program: Program) -> tuple[Plan, Program]:
        values = {base: replace(item, dtype=self.word(item.dtype)) for base, item in program.values.items()}
        entries = {
            label: replace(item, body=self.steps(item.body)) for label, item in program.entries.items()
        }
        tracks = {
            label: replace(
                item,
                locals=self.held(item.locals),
                bodies={entry: self.steps(body) for entry, body in item.bodies.items()},
            )
            for label, item in plan.tracks.items()
        }
        return (
            replace(plan, locals=self.held(plan.locals), blocks=self.called(plan.blocks), tracks=tracks),
            replace(program, values=values, blocks=self.called(program.blocks), entries=entries),
        )

    def word(self, dtype: Any) -> Any:
        self.met.add(dtype)
        return self.float or dtype if dtype in ("f16", "bf16", "f32", "f64") else dtype

    def held(self, table: Mapping[str, Local]) -> dict[str, Local]:
        return {base: replace(item, dtype=self.word(item.dtype)) for base, item in table.items()}

    def called(self, blocks: Mapping[str, Any]) -> dict[str, Any]:
        return {label: replace(item, body=self.steps(item.body)) for label, item in blocks.items()}

    def steps(self, body: tuple[Any, ...]) -> tuple[Any, ...]:
        read: list[Any] = []
        for item in body:
            if isinstance(item, For):
                item = replace(item, body=self.steps(item.body))
            elif isinstance(item, Op):
                words = tuple((key, value) for key, value in item.attrs if isinstance(value, (str, bool)))
                attrs = tuple(self.said(key, value) for key, value in item.attrs)
                item = replace(item, attrs=attrs, note=words)  # the Plan's own notes count for nothing
            read.append(item)
        return tuple(read)

    def said(self, key: str, value: Any) -> tuple[str, Any]:
        if key == "half_to_float":  # f32 from what is read as that anyway
            return key, False if self.float else value
        return key, self.word(value) if key.endswith("dtype") else value
