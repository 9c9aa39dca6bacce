"""How a replay draws: so that the Program has values, its bounds are passed, and what it looks for occurs.

Drawn negative, leaves of which roots are taken would give no number, and nothing would be seen. A second
moment is what an optimizer keeps of squares, and its counter goes into powers; neither says so. Small
gradients are not clipped, and faults of clipping would not show. Nor would those of counting targets that are
not the class to be ignored, if none were.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from tensure.program import Name, Op, Program, Ref, expand, leaves

from ._looks import looks_of

__all__ = ["PLAIN", "Manner", "manner_of"]

_ROOTS: Final = frozenset({"sqrt", "rsqrt", "log"})
_LED_THROUGH: Final = frozenset(
    "add add_n sub rsub mul div neg copy _to_copy view expand maximum slice cat stack".split()
)


@dataclass(frozen=True, slots=True)
class Manner:
    """How numbers are drawn.

    Args:
        positive: leaves that are drawn as magnitudes.
        scale: how much larger than usual all are.
        marks: by leaf of integers, numbers that some of its elements are; the more the later they stand, so
            that parts have different counts of them.
    """

    positive: frozenset[str] = frozenset()
    scale: float = 1.0
    marks: Mapping[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])

    def unmarked(self) -> Manner:
        """The same without these numbers, for a Program that has no value for them."""
        return replace(self, marks={})


PLAIN: Final = Manner()
_LARGE: Final = 32.0


def manner_of(program: Program, entry: str, env: Mapping[str, int], seed: int) -> Manner:
    """For one seed; where the Program holds something to bounds, every second draw is large."""
    is_bounded = any(step.op == "clamp" for step in expand(program.blocks, program.entry(entry).body, env))
    scale = _LARGE if is_bounded and seed % 2 == 0 else 1.0
    return Manner(_rooted(program, entry, env), scale, looks_of(program, entry, env).marks)


def _rooted(program: Program, entry: str, env: Mapping[str, int]) -> frozenset[str]:
    """Floating leaves that a root or a logarithm rests on by sums, multiples and moves alone."""
    makers: dict[Name, Op] = {}
    wanted: list[Name] = []
    for step in expand(program.blocks, program.entry(entry).body, env):
        makers.update((out, step) for out in step.outs)
        if step.op in _ROOTS:
            wanted += _read(step)
    known = {label for label, want, _ in leaves(program, entry, env) if want.dtype[0] in "fb"}
    found, seen = set[str](), set[Name]()
    while wanted:
        name = wanted.pop()
        if name in seen:
            continue
        seen.add(name)
        made = makers.get(name)
        if made is None:
            found.add(str(name))
        elif made.op in _LED_THROUGH and not _is_square(made):
            wanted += _read(made)
        elif made.op == "pow" and not isinstance(made.args[0], Ref):
            wanted += _read(made)  # a number to the power of a counter
    return frozenset(found & known)


def _read(step: Op) -> list[Name]:
    return [ref.name for ref in step.reads()]


def _is_square(step: Op) -> bool:
    return step.op == "mul" and step.args[0] == step.args[1]
