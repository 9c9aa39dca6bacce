"""Roots that are squared again: of sums of squares, the square of the root is the sum itself.

Norms of several tensors are put together from the norm of each, and norms of shards from those of ranks: a
root is taken, and squared, and summed. Plans have the sums alone, since (sqrt s)^2 = s wherever s is not
negative. That it is not must be seen: squares, magnitudes, and sums and joins of such; of what ranks sum up,
on all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tensure.program import COLLECTIVES, Name, Op, Ref

__all__ = ["unrooted"]

_SAME_SIGN: Final = frozenset(
    "sum mean view reshape select slice unsqueeze squeeze expand copy t transpose permute stack cat "
    "all_reduce all_gather reduce_scatter all_to_all add add_n mul sqrt".split()
)
"""Not negative if none of their operands is."""
_MOVES: Final = frozenset("view reshape select slice unsqueeze squeeze expand copy stack cat".split())
"""The square of such is such of squares."""


def unrooted(texts: Sequence[Sequence[Op]]) -> list[list[Op]]:
    """The steps of all ranks, or of one device, with a square of a root as what it is of.

    What nobody reads any more is left for others to drop.
    """
    doubted: set[Name] = set()
    while True:
        runs = [_Text(doubted) for _ in texts]
        made = [run.rewritten(steps) for run, steps in zip(runs, texts, strict=True)]
        found = {name for run in runs for name in run.signed} - doubted
        if not found:
            return made
        doubted |= found


@dataclass(slots=True)
class _Text:
    """One rank's steps.

    Args:
        doubted: collectives to which some rank brings what may be negative.
    """

    doubted: set[Name]
    signed: set[Name] = field(default_factory=set[Name])
    """Collectives to which this one does."""
    positive: set[Name] = field(default_factory=set[Name])
    """What is not negative."""
    squares: dict[Name, Ref] = field(default_factory=dict[Name, Ref])
    """The square of each value of which it is known."""
    stacked: dict[Name, tuple[Ref, ...]] = field(default_factory=dict[Name, "tuple[Ref, ...]"])
    """What is stacked in a square that was made here."""
    made: list[Op] = field(default_factory=list[Op])

    def rewritten(self, steps: Sequence[Op]) -> list[Op]:
        for step in steps:
            known = self._square(step.args[0]) if _is_square(step) else None
            if known is not None:
                step = Op("copy", (known,), step.outs, (), step.note)
            numbers = self._numbers(step)
            if numbers is not None:
                step = Op("add_n", numbers, step.outs, (), step.note)
            self.made.append(step)
            if len(step.outs) == 1:
                self._learn(step, step.outs[0])
        return self.made

    def _learn(self, step: Op, out: Name) -> None:
        if self._is_positive(step):
            if out not in self.doubted:
                self.positive.add(out)
        elif step.op in COLLECTIVES:
            self.signed.add(out)
        source = step.args[0] if step.op == "copy" else None
        if isinstance(source, Ref) and source.name in self.stacked:
            self.stacked[out] = self.stacked[source.name]
        if step.op == "sqrt" and self._holds(step.args[0]):
            self.squares[out] = step.args[0]  # type: ignore[assignment]
        elif step.op in _MOVES or step.op in ("mul", "div"):
            parts = [self._square(arg) for arg in step.args]
            found = tuple(part for part in parts if part is not None)
            if found and len(found) == len(parts):
                self._also(step, out, found)

    def _also(self, step: Op, out: Name, parts: tuple[Ref, ...]) -> None:
        """The same step on squares."""
        label, _, count = out.base.rpartition("_")
        name = Name(f"{label}_square_{count}")
        self.made.append(Op(step.op, parts, (name,), step.attrs, step.note))
        self.squares[out] = Ref(name)
        if step.op == "stack" and step.attr("dim", 0) == 0:
            self.stacked[name] = parts
        self.positive.add(name)

    def _is_positive(self, step: Op) -> bool:
        if step.op in ("abs", "exp") or _is_square(step):
            return True
        if step.op == "full":
            fill = step.attr("fill_value")
            return isinstance(fill, (int, float)) and fill >= 0
        if step.op == "div":
            return all(map(self._holds, step.args)) and not step.attrs
        by = step.attr("alpha", 1)
        is_sum = isinstance(by, (int, float)) and by >= 0 and step.attr("reduce", "sum") == "sum"
        return step.op in _SAME_SIGN and is_sum and all(map(self._holds, step.args))

    def _holds(self, arg: Any) -> bool:
        if isinstance(arg, Ref):
            return not arg.box and arg.name in self.positive
        return isinstance(arg, (int, float)) and arg >= 0

    def _numbers(self, step: Op) -> tuple[Ref, ...] | None:
        """What is stacked, of a sum over its first dim."""
        if step.op != "sum" or step.attr("dim") not in (0, (0,)) or step.attr("keepdim", False):
            return None
        return self.stacked.get(step.args[0].name) if isinstance(step.args[0], Ref) else None

    def _square(self, arg: Any) -> Ref | None:
        return self.squares.get(arg.name) if isinstance(arg, Ref) and not arg.box else None


def _is_square(step: Op) -> bool:
    if step.op == "mul" and isinstance(step.args[0], Ref):
        return step.args[0] == step.args[1]
    return step.op == "square" or (step.op == "pow" and isinstance(step.args[0], Ref) and step.args[1] == 2)
