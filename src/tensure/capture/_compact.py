"""A Plan that only moves boxes of tensors, in the largest unit along each dim in which all ends are whole.

The elements of a unit are moved together: what holds of the small Plan holds of the large one. Knows programs
and plans of copies, joins, messages and fills, and nothing of where they come from.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from tensure.bundle import Local, Plan, Track
from tensure.program import Cat, Op, Program, Ref, digest

__all__ = ["compacted"]


def compacted(program: Program, plan: Plan) -> tuple[Program, Plan, tuple[int, ...]]:
    """The Program and the Plan in units, and how long a unit is along each dim.

    Both must be of one entry `load`, of copies, sends, receipts and fills with integer ends and no others.
    """
    units: dict[int, int] = {}
    for dim, number in _numbers(program, plan):
        units[dim] = math.gcd(units.get(dim, 0), number)
    found = tuple(max(units.get(dim, 1), 1) for dim in range(max(units, default=-1) + 1))
    small = _Small(found)
    made = replace(
        program,
        values={
            base: replace(value, shape=small.shape(value.shape)) for base, value in program.values.items()
        },
    )
    tracks = {label: small.track(track) for label, track in plan.tracks.items()}
    return made, replace(plan, program=digest(made), tracks=tracks), found


def _numbers(program: Program, plan: Plan) -> Iterator[tuple[int, Any]]:
    for value in program.values.values():
        yield from enumerate(value.shape)
    for track in plan.tracks.values():
        for local in track.locals.values():
            for dim, runs in local.place.dims if local.place else ():
                for lo, hi, _ in runs:
                    yield from ((dim, lo), (dim, hi))
        for step in _steps(track):
            for arg in step.args:
                yield from _ends(arg)
            size: Any = step.attr("size") or ()
            yield from enumerate(size)


def _steps(track: Track) -> Iterator[Op]:
    for body in track.bodies.values():
        for step in body:
            assert isinstance(step, Op) and step.op in ("send", "recv", "full", "copy"), step
            yield step


def _ends(arg: Any) -> Iterator[tuple[int, Any]]:
    if isinstance(arg, Ref):
        for dim, lo, hi in arg.box:
            yield from ((dim, lo), (dim, hi))
    elif isinstance(arg, Cat):
        for part in arg.parts:
            yield from _ends(part)


class _Small:
    def __init__(self, units: tuple[int, ...]) -> None:
        self.units = units

    def shape(self, shape: Any) -> tuple[int, ...]:
        return tuple(size // self.units[dim] for dim, size in enumerate(shape))

    def track(self, track: Track) -> Track:
        return replace(
            track,
            locals={base: self._local(local) for base, local in track.locals.items()},
            bodies={
                key: tuple(self._step(step) for step in body if isinstance(step, Op))
                for key, body in track.bodies.items()
            },
        )

    def _local(self, local: Local) -> Local:
        if local.place is None:
            return local
        dims = tuple(
            (dim, tuple((self._end(dim, lo), self._end(dim, hi), by) for lo, hi, by in runs))
            for dim, runs in local.place.dims
        )
        return replace(local, place=replace(local.place, dims=dims))

    def _step(self, step: Op) -> Op:
        attrs: Any = tuple((key, self.shape(value) if key == "size" else value) for key, value in step.attrs)
        return replace(step, args=tuple(self._arg(arg) for arg in step.args), attrs=attrs)

    def _arg(self, arg: Any) -> Any:
        if isinstance(arg, Ref):
            box = tuple((dim, self._end(dim, lo), self._end(dim, hi)) for dim, lo, hi in arg.box)
            return Ref(arg.name, box)
        if isinstance(arg, Cat):
            return Cat(arg.dim, tuple(self._arg(part) for part in arg.parts))
        return arg

    def _end(self, dim: int, end: Any) -> int:
        return int(end) // self.units[dim]
