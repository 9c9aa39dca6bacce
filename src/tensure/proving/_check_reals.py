"""How the checker reads records over the reals: where half floats are about, floats have one word.

Written apart from the prover's (`_reals.py`): whatever record it is handed is taken to pieces and built again
with other words. Integers and bools keep theirs, so a cast to or from them is never a copy. A Plan that
places bytes is read as it stands, and so is one without half floats. A literal of a half float that is none
of the Program's numbers and the rounding of one of them alone is that one, as rounding is left out; but a
number of few bits is what is written.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

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
    numbers = _numbers(program)
    return *_Words("f64" if "f64" in seen.met else "f32", numbers).read(plan, program), written


def _numbers(program: Program) -> list[set[float]]:
    """The Program's numbers: those that tensors are filled with, and those beside operands."""
    filled, beside = set[float](), set[float]()
    for step in _ops(
        *(item.body for item in program.entries.values()), *(item.body for item in program.blocks.values())
    ):
        filled.update(value for key, value in step.attrs if key == "fill_value" and type(value) is float)
        beside.update(arg for arg in step.args if type(arg) is float)
    return [filled, beside]


def _ops(*bodies: Any) -> Iterator[Op]:
    for body in bodies:
        for item in body:
            if isinstance(item, For):
                yield from _ops(item.body)
            elif isinstance(item, Op):
                yield item


_FLOAT: Final = float
_HALVES: Final = {"bf16": (8, 2.0**-126, 2.0**127), "f16": (11, 2.0**-14, 2.0**15)}
"""Bits of a significand, and between which sizes numbers have all of them."""


def _narrowed(number: float, dtype: str) -> float | None:
    """A number to the bits of a half float, ties to even; None where those are not all there."""
    bits, least, most = _HALVES[dtype]
    if not least <= abs(number) <= most:
        return None
    significand, exponent = math.frexp(number)
    return math.ldexp(round(math.ldexp(significand, bits)), exponent - bits)


@dataclass
class _Words:
    """What floats are called from here on; if nothing, what they are called is only noted."""

    float: str = ""
    numbers: Any = field(default_factory=list[Any])
    """The Program's: what literals of half floats are the rounding of."""
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
                if item.op == "full":
                    attrs = self.meant(dict(item.attrs), attrs)
                item = replace(item, attrs=attrs, note=words)  # the Plan's own notes count for nothing
            read.append(item)
        return tuple(read)

    def meant(self, given: Mapping[str, Any], attrs: tuple[Any, ...]) -> tuple[Any, ...]:
        number, dtype = given.get("fill_value"), given.get("dtype")
        if (
            dtype not in _HALVES
            or not isinstance(number, _FLOAT)
            or any(number in known for known in self.numbers)
        ):
            return attrs
        bits, *_ = _HALVES[dtype]
        if math.ldexp(math.frexp(number)[0], bits // 2).is_integer():
            return attrs
        for known in self.numbers:
            found = [item for item in known if _narrowed(item, dtype) == number]
            if found:
                return _filled(attrs, found[0]) if len(found) == 1 else attrs
        return attrs

    def said(self, key: str, value: Any) -> tuple[str, Any]:
        if key == "half_to_float":  # f32 from what is read as that anyway
            return key, False if self.float else value
        return key, self.word(value) if key.endswith("dtype") else value


def _filled(attrs: tuple[Any, ...], number: float) -> tuple[Any, ...]:
    return tuple((key, number if key == "fill_value" else value) for key, value in attrs)
