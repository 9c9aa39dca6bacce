"""One rank's steps with what is known of flat values: which parts they are, and what was flattened.

Keeps the books for the rules of `_flat_rules.py`; knows none of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeAlias

from tensure.program import Cat, Name, Op, Ref, TensorType, infer_collective, infer_step

__all__ = ["Flat", "Known", "Meeting", "Pass", "Piece", "Rows", "Rule"]

Meeting: TypeAlias = "tuple[tuple[str, ...], str, str, Any]"
"""A collective as one member sees it: axes, name, op, shape of what it brings."""

Piece: TypeAlias = "tuple[int, Ref | None]"
"""Elements, or columns; and the value, None where nobody has written."""


@dataclass(frozen=True, slots=True)
class Flat:
    """One after another along dim 0 of a 1-D value."""

    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class Rows:
    """Side by side along dim 1 of a 2-D value of `count` rows; `laid`: the same read row by row in 1-D."""

    count: int
    pieces: tuple[Piece, ...]
    laid: bool = False


Known: TypeAlias = "Flat | Rows"


class Pass:
    def __init__(
        self,
        types: dict[str, TensorType],
        mesh: Mapping[str, int],
        place: Mapping[str, int],
        cuts: Mapping[str, frozenset[int]] | None = None,
    ) -> None:
        self.types, self.mesh, self.place, self.cuts = types, mesh, place, cuts
        self.ends: dict[str, frozenset[int]] = {}
        """Where the parts of what is gathered end."""
        self.known: dict[Name, Known] = {}
        self.stacked: dict[Name, Sequence[Any]] = {}
        self.written: dict[Name, tuple[int, tuple[tuple[int, int, Any], ...]]] = {}
        """What was written into memory: along which dim, from where to where, in order."""
        self.filled: dict[Name, tuple[Any, ...]] = {}
        """Dtype and number of what holds one number everywhere."""
        self.padded: dict[Name, tuple[Any, Any]] = {}
        """Rows, and the zeros behind them."""
        self.shaped: dict[Name, Ref] = {}
        """A tensor of several dims whose elements, in order, a value has too."""
        self.same: dict[Name, Ref] = {}
        self.made: list[Op] = []
        self.met: list[Meeting] = []
        self.count = 0

    def run(self, steps: Sequence[Op], rules: Mapping[str, Rule]) -> list[Op]:
        """Every step, and beside those that a rule knows what their parts are."""
        for step in steps:
            step = Op(
                step.op, tuple(self._reread(arg) for arg in step.args), step.outs, step.attrs, step.note
            )
            self._emit(step)
            rule = rules.get(step.op)
            if rule is None or len(step.outs) != 1:
                continue
            found = rule(self, step)
            if isinstance(found, Ref):
                self.same[step.outs[0]] = found
            elif found is not None and len(found.pieces) > 1:
                self.known[step.outs[0]] = found
        return self.made

    # steps -------------------------------------------------------------------------------------------

    def _emit(self, step: Op) -> None:
        self.made.append(step)
        if step.op == "send":
            return
        if step.op == "recv":
            return  # its type is the sender's business; nothing flat comes that way
        operands = [self._type(arg) for arg in step.args]
        if "axes" in dict(step.attrs):
            shape = getattr(operands[0], "shape", None)
            self.met.append((step.attr("axes"), str(step.outs[0]), step.op, shape))  # type: ignore[arg-type]
        if any(
            isinstance(arg, Ref) and found is None for arg, found in zip(step.args, operands, strict=True)
        ):
            return
        if "axes" in dict(step.attrs):
            count = math.prod(self.mesh[axis] for axis in dict(step.attrs)["axes"])  # type: ignore[index, misc, union-attr]
            types = infer_collective(step.op, operands * count, dict(step.attrs))[:1]
        else:
            types = infer_step(step, operands)
        self.types.update(zip(map(str, step.outs), types, strict=True))

    def emit(self, op: str, args: tuple[Any, ...], step: Op, name: str | None = None, **attrs: Any) -> Ref:
        """A step beside the one at hand."""
        if name is None:
            name, self.count = f"part_{self.count}", self.count + 1
        self._emit(Op(op, args, (Name(name),), tuple(sorted(attrs.items())), step.note))
        return Ref(Name(name))

    def _type(self, arg: Any) -> Any:
        return self.types.get(str(arg.name)) if isinstance(arg, Ref) and not arg.box else arg

    def _reread(self, arg: Any) -> Any:
        if isinstance(arg, Ref):
            return self.same.get(arg.name, arg) if not arg.box else arg
        return Cat(arg.dim, tuple(map(self._reread, arg.parts))) if isinstance(arg, Cat) else arg

    # values ------------------------------------------------------------------------------------------

    def shape(self, value: Any) -> tuple[int, ...] | None:
        found = self._type(value)
        return found.shape if isinstance(found, TensorType) else None

    def flat(self, value: Any) -> Flat | None:
        """A 1-D value as parts; one part if no more is known."""
        found = self.known.get(value.name) if isinstance(value, Ref) else None
        if found is not None:
            return found if isinstance(found, Flat) else None
        shape = self.shape(value)
        return Flat(((shape[0], value),)) if shape is not None and len(shape) == 1 else None

    def joined(self, pieces: Sequence[Piece]) -> Flat | Ref | None:
        found = tuple(piece for piece in pieces if piece[0])
        if len(found) == 1 and found[0][1] is not None:
            return found[0][1]
        return Flat(found) if found else None

    def cut(self, pieces: Sequence[Piece], start: int, end: int, step: Op) -> list[Piece]:
        """The pieces between two places, those that lie across cut."""
        found: list[Piece] = []
        at = 0
        for count, value in pieces:
            low, high = max(start, at), min(end, at + count)
            if low < high:
                if value is not None and (low, high) != (at, at + count):
                    value = self.part(value, low - at, high - at, step)
                found.append((high - low, value))
            at += count
        return found

    def part(self, value: Ref, start: int, end: int, step: Op) -> Ref:
        """Elements of a flat value; rows of what was flattened, where they are."""
        rows = self.rows_of(value, start, end, step)
        if rows is not None:
            return self.laid(rows, (end - start,), step)
        return self.emit("slice", (value,), step, dim=0, start=start, end=end)

    def rows_of(self, value: Any, start: int, end: int, step: Op) -> Ref | None:
        """Elements of a flat value as rows of what was flattened."""
        shaped = self.shaped.get(value.name) if isinstance(value, Ref) else None
        shape = None if shaped is None else self.shape(shaped)
        row = math.prod(shape[1:]) if shape else 0
        if shaped is None or not row or start % row or end % row:
            return None
        return self.emit("slice", (shaped,), step, dim=0, start=start // row, end=end // row)

    def member(self, axes: Sequence[str]) -> int:
        """Which of its group along these axes the rank is."""
        number = 0
        for axis in axes:
            number = number * self.mesh[axis] + self.place[axis]
        return number

    def laid(self, value: Ref, size: tuple[int, ...], step: Op) -> Ref:
        """In another shape."""
        made = self.emit("view", (value,), step, size=size)
        self.shaped[made.name] = value
        return made

    def in_shape(self, piece: Any) -> Any:
        """The tensor that was flattened: ranks that join or scatter rows of it do so with its elements."""
        return self.shaped.get(piece.name, piece) if isinstance(piece, Ref) else piece

    def rejoined(self, pieces: Sequence[Piece], step: Op, ends: frozenset[int]) -> tuple[Piece, ...]:
        """Pieces joined again but for where they may end."""
        found, open_ = list[Piece](), list[Piece]()
        for end, piece in zip(accumulate(count for count, _ in pieces), pieces, strict=True):
            open_.append(piece)
            if end not in ends:
                continue
            values = [value for _, value in open_]
            known = [value for value in values if value is not None]
            value = None if len(known) < len(values) else known[0]
            if len(known) == len(values) > 1:
                value = self.emit("cat", tuple(known), step)
            found.append((sum(count for count, _ in open_), value))
            open_ = []
        return tuple(found)


Rule: TypeAlias = Callable[[Pass, Op], "Known | Ref | None"]
