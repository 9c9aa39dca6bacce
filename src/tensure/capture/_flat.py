"""Flat memory taken apart: a collective on joined tensors as the collectives of its parts.

FSDP copies a layer's shards into one flat buffer, gathers that, and cuts it again; gradients go back the same
way. A gather along dim 0 whose result is read in rows joins the rows of each part, and a reduce-scatter of
rows reduces the columns of each part; so the parts travel alone here, with the same values. Parts that
cannot be told apart stay together. Knows these moves and nothing of where they come from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

from tensure.program import Cat, Name, Op, Ref, TensorType, infer_collective, infer_step

__all__ = ["Meeting", "agree", "apart"]

Meeting: TypeAlias = "tuple[tuple[str, ...], str, str, Any]"
"""A collective as one member sees it: axes, name, op, shape of what it brings."""

Piece: TypeAlias = "tuple[int, Ref | None]"
"""Elements, or columns; and the value, None where nobody has written."""


@dataclass(frozen=True, slots=True)
class _Flat:
    """One after another along dim 0 of a 1-D value."""

    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class _Rows:
    """Side by side along dim 1 of a 2-D value of `count` rows; `laid`: the same read row by row in 1-D."""

    count: int
    pieces: tuple[Piece, ...]
    laid: bool = False


_Known: TypeAlias = "_Flat | _Rows"


def apart(
    steps: Sequence[Op], leaves: Mapping[str, TensorType], mesh: Mapping[str, int]
) -> tuple[list[Op], tuple[Meeting, ...]]:
    """The same steps, and beside every joined value what its parts are; whoever can reads the parts.

    What nobody reads any more is left for others to drop. The collectives are told too: it is for all
    members of a group to have the same (`agree`).

    Args:
        steps: of one rank, in order.
        leaves: types of the values it begins with.
        mesh: sizes of the axes.
    """
    found = _Pass(dict(leaves), mesh)
    return found.run(steps), tuple(found.met)


def agree(ranks: Sequence[tuple[Mapping[str, int], Sequence[Meeting]]], mesh: Mapping[str, int]) -> bool:
    """Whether all members of each group meet with the same; uneven shards leave some ranks other parts.

    Args:
        ranks: of every rank, its place and its collectives.
        mesh: sizes of the axes.
    """
    groups: dict[Any, list[Any]] = {}
    for place, met in ranks:
        for axes, name, op, shape in met:
            rest = tuple(at for axis, at in place.items() if axis not in axes)
            groups.setdefault((axes, rest, name), []).append((op, shape))
    return all(
        len(found) == math.prod(mesh[axis] for axis in axes) and len(set(found)) == 1
        for (axes, _, _), found in groups.items()
    )


class _Pass:
    def __init__(self, types: dict[str, TensorType], mesh: Mapping[str, int]) -> None:
        self.types, self.mesh = types, mesh
        self.known: dict[Name, _Known] = {}
        self.stacked: dict[Name, Sequence[Any]] = {}
        self.written: dict[Name, tuple[int, tuple[tuple[int, int, Any], ...]]] = {}
        """What was written into memory: along which dim, from where to where, in order."""
        self.same: dict[Name, Ref] = {}
        self.made: list[Op] = []
        self.met: list[Meeting] = []
        self.count = 0

    def run(self, steps: Sequence[Op]) -> list[Op]:
        for step in steps:
            step = Op(
                step.op, tuple(self._reread(arg) for arg in step.args), step.outs, step.attrs, step.note
            )
            self._emit(step)
            rule = _RULES.get(step.op)
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

    def flat(self, value: Any) -> _Flat | None:
        """A 1-D value as parts; one part if no more is known."""
        found = self.known.get(value.name) if isinstance(value, Ref) else None
        if found is not None:
            return found if isinstance(found, _Flat) else None
        shape = self.shape(value)
        return _Flat(((shape[0], value),)) if shape is not None and len(shape) == 1 else None

    def joined(self, pieces: Sequence[Piece]) -> _Flat | Ref | None:
        found = tuple(piece for piece in pieces if piece[0])
        if len(found) == 1 and found[0][1] is not None:
            return found[0][1]
        return _Flat(found) if found else None

    def cut(self, pieces: Sequence[Piece], start: int, end: int, step: Op) -> list[Piece]:
        """The pieces between two places, those that lie across cut."""
        found: list[Piece] = []
        at = 0
        for count, value in pieces:
            low, high = max(start, at), min(end, at + count)
            if low < high:
                if value is not None and (low, high) != (at, at + count):
                    value = self.emit("slice", (value,), step, dim=0, start=low - at, end=high - at)
                found.append((high - low, value))
            at += count
        return found


Rule: TypeAlias = Callable[[_Pass, Op], "_Known | Ref | None"]


def _full(run: _Pass, step: Op) -> _Known | Ref | None:
    size, fill = step.attr("size"), step.attr("fill_value")
    if isinstance(size, tuple) and len(size) == 1 and isinstance(fill, float) and fill != fill:
        # Two halves, so that it counts as joined: memory that nobody has written yet.
        count: Any = size[0]
        return _Flat(((1, None), (count - 1, None))) if count > 1 else None
    return None


def _cat(run: _Pass, step: Op) -> _Known | Ref | None:
    shapes = [run.shape(arg) for arg in step.args]
    dim: Any = step.attr("dim", 0)
    if any(shape is None for shape in shapes):
        return None
    ranks = {len(shape) for shape in shapes if shape is not None}
    if ranks == {1}:
        parts = [run.flat(arg) for arg in step.args]
        if any(part is None for part in parts):
            return None
        return run.joined([piece for part in parts if part is not None for piece in part.pieces])
    if ranks == {2} and dim % 2 == 1:
        rows = [(shape[1], arg) for shape, arg in zip(shapes, step.args, strict=True) if shape is not None]
        return _Rows(shapes[0][0], tuple(rows)) if shapes[0] is not None else None  # type: ignore[arg-type]
    return None


def _stack(run: _Pass, step: Op) -> None:
    """Numbers, such as the norms of several tensors: taken apart where ranks sum them up."""
    if all(run.shape(arg) == () for arg in step.args):
        run.stacked[step.outs[0]] = step.args


def _sum(run: _Pass, step: Op) -> _Known | Ref | None:
    """Of numbers, all of them."""
    known = run.known.get(step.args[0].name) if isinstance(step.args[0], Ref) else None
    if not isinstance(known, _Flat) or run.shape(Ref(step.outs[0])) != ():
        return None
    if any(count != 1 or piece is None for count, piece in known.pieces):
        return None
    numbers = tuple(run.emit("view", (piece,), step, size=()) for _, piece in known.pieces)
    return run.emit("add_n", numbers, step)


def _slice(run: _Pass, step: Op) -> _Known | Ref | None:
    value = step.args[0]
    known = run.known.get(value.name) if isinstance(value, Ref) else None
    if known is None or step.attr("step", 1) != 1:
        return None
    dim: Any = step.attr("dim", 0)
    total = sum(count for count, _ in known.pieces)
    start, end, _ = slice(step.attr("start"), step.attr("end")).indices(total)
    if isinstance(known, _Flat):
        return run.joined(run.cut(known.pieces, start, end, step))
    if known.laid or dim % 2 != 1:
        return None
    at, kept = 0, list[Piece]()
    for count, piece in known.pieces:
        if start <= at and at + count <= end:
            kept.append((count, piece))
        elif at < end and start < at + count:
            return None  # across a part
        at += count
    if len(kept) == 1 and kept[0][1] is not None:
        return kept[0][1]
    return _Rows(known.count, tuple(kept)) if kept else None


def _slice_scatter(run: _Pass, step: Op) -> _Known | Ref | None:
    base, source = (run.flat(arg) for arg in step.args)
    written = _written(run, step)
    if written is not None:
        if base is not None and source is not None:
            flat = _scattered(run, step, base, source)
            if isinstance(flat, _Flat) and len(flat.pieces) > 1:
                run.known[written.name] = flat
        return written
    return None if base is None or source is None else _scattered(run, step, base, source)


def _written(run: _Pass, step: Op) -> Ref | None:
    """Writes that leave nothing of what was there join what they write."""
    base, shape = step.args[0], run.shape(Ref(step.outs[0]))
    if shape is None or not isinstance(base, Ref) or step.attr("step", 1) != 1:
        return None
    dim = cast("int", step.attr("dim", 0)) % len(shape)
    start, end, _ = slice(step.attr("start"), step.attr("end")).indices(shape[dim])
    before, pieces = run.written.get(base.name, (dim, ()))
    kept = [piece for piece in pieces if piece[1] <= start or end <= piece[0]] if before == dim else []
    found = tuple(sorted([*kept, (start, end, step.args[1])], key=lambda piece: piece[0]))
    run.written[step.outs[0]] = (dim, found)
    ends = [0, *(piece[1] for piece in found)]
    if len(found) == 1 or ends != [*(piece[0] for piece in found), shape[dim]]:
        return None
    return run.emit("cat", tuple(piece[2] for piece in found), step, dim=dim)


def _scattered(run: _Pass, step: Op, base: _Flat, source: _Flat) -> _Known | Ref | None:
    if step.attr("step", 1) != 1:
        return None
    total = sum(count for count, _ in base.pieces)
    start, end, _ = slice(step.attr("start"), step.attr("end")).indices(total)
    before, after = run.cut(base.pieces, 0, start, step), run.cut(base.pieces, end, total, step)
    return run.joined([*before, *source.pieces, *after])


def _view(run: _Pass, step: Op) -> _Known | Ref | None:
    value = step.args[0]
    known = run.known.get(value.name) if isinstance(value, Ref) else None
    shape = run.shape(Ref(step.outs[0]))
    if known is None or shape is None:
        return None
    if isinstance(known, _Flat):
        return known if len(shape) == 1 else None
    columns = sum(count for count, _ in known.pieces)
    if shape == (known.count, columns):
        return _Rows(known.count, known.pieces)
    return _Rows(known.count, known.pieces, laid=True) if len(shape) == 1 else None


def _each(run: _Pass, step: Op) -> _Known | Ref | None:
    """An op that does the same to every element."""
    value = step.args[0]
    known = run.known.get(value.name) if isinstance(value, Ref) else None
    if known is None or any(isinstance(arg, Ref) for arg in step.args[1:]):
        return None
    if step.op == "_to_copy":
        source, made = run._type(value), run._type(Ref(step.outs[0]))
        if source is not None and made is not None and source.dtype == made.dtype:
            return known
    attrs: dict[str, Any] = dict(step.attrs)
    pieces = tuple(
        (
            count,
            None if piece is None else run.emit(step.op, (piece, *step.args[1:]), step, **attrs),
        )
        for count, piece in known.pieces
    )
    return _Flat(pieces) if isinstance(known, _Flat) else _Rows(known.count, pieces, known.laid)


def _copy(run: _Pass, step: Op) -> _Known | Ref | None:
    value = step.args[0]
    if isinstance(value, Ref) and value.name in run.stacked:
        run.stacked[step.outs[0]] = run.stacked[value.name]
    return run.known.get(value.name) if isinstance(value, Ref) else None


def _gather(run: _Pass, step: Op) -> _Known | Ref | None:
    known = run.known.get(step.args[0].name) if isinstance(step.args[0], Ref) else None
    if not isinstance(known, _Flat) or any(piece is None for _, piece in known.pieces):
        return None
    axes: Any = step.attr("axes")
    group = math.prod(run.mesh[axis] for axis in axes)
    rows: list[Piece] = []
    for at, (count, piece) in enumerate(known.pieces):
        together = run.emit("all_gather", (piece,), step, f"{step.outs[0]}_{at}", axes=axes, dim=0)
        rows.append((count, run.emit("view", (together,), step, size=(group, count))))
    return _Rows(group, tuple(rows), laid=True)


def _scatter(run: _Pass, step: Op) -> _Known | Ref | None:
    known = run.known.get(step.args[0].name) if isinstance(step.args[0], Ref) else None
    axes: Any = step.attr("axes")
    group = math.prod(run.mesh[axis] for axis in axes)
    if not isinstance(known, _Rows) or not known.laid or known.count != group:
        return None
    if any(piece is None for _, piece in known.pieces):
        return None
    pieces: list[Piece] = []
    attrs: dict[str, Any] = dict(step.attrs)
    for at, (count, piece) in enumerate(known.pieces):
        flat = run.emit("view", (piece,), step, size=(group * count,))
        name = f"{step.outs[0]}_{at}"
        pieces.append((count, run.emit("reduce_scatter", (flat,), step, name, **attrs)))
    return _Flat(tuple(pieces))


def _reduce(run: _Pass, step: Op) -> _Known | Ref | None:
    """DDP's buckets, the sum of joined gradients; and norms."""
    source = step.args[0].name if isinstance(step.args[0], Ref) else None
    known = run.known.get(source) if source is not None else None
    if source in run.stacked:
        known = _Flat(tuple((1, run.emit("view", (arg,), step, size=(1,))) for arg in run.stacked[source]))
    if known is None or any(piece is None for _, piece in known.pieces):
        return None
    attrs: dict[str, Any] = dict(step.attrs)
    pieces = tuple(
        (count, run.emit("all_reduce", (piece,), step, f"{step.outs[0]}_{at}", **attrs))
        for at, (count, piece) in enumerate(known.pieces)
    )
    return _Flat(pieces) if isinstance(known, _Flat) else _Rows(known.count, pieces, known.laid)


_RULES: Mapping[str, Rule] = {
    "full": _full,
    "cat": _cat,
    "stack": _stack,
    "sum": _sum,
    "slice": _slice,
    "slice_scatter": _slice_scatter,
    "view": _view,
    "reshape": _view,
    "copy": _copy,
    "_to_copy": _each,
    "mul": _each,
    "div": _each,
    "all_reduce": _reduce,
    "all_gather": _gather,
    "reduce_scatter": _scatter,
}
