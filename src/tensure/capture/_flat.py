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
from typing import Any, TypeAlias

from tensure.program import Cat, Name, Op, Ref, TensorType, infer_collective, infer_step

from ._numbers import numbers_sum, stacked, written_whole
from ._padding import keeps_zeros, own_rows, padded, pads

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
    steps: Sequence[Op],
    leaves: Mapping[str, TensorType],
    mesh: Mapping[str, int],
    padded_at: Mapping[str, int] | None = None,
) -> tuple[list[Op], tuple[Meeting, ...]]:
    """The same steps, and beside every joined value what its parts are; whoever can reads the parts.

    What nobody reads any more is left for others to drop. The collectives are told too: it is for all
    members of a group to have the same (`agree`).

    Args:
        steps: of one rank, in order.
        leaves: types of the values it begins with.
        mesh: sizes of the axes.
        padded_at: where the rank stands, if what is written into zeros, or joined with them, is padded by
            them as a last shard is: it stays one part then, and its sum is reduced without the zeros.
    """
    found = Pass(dict(leaves), mesh, padded_at)
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


class Pass:
    def __init__(
        self, types: dict[str, TensorType], mesh: Mapping[str, int], place: Mapping[str, int] | None
    ) -> None:
        self.types, self.mesh, self.padded, self.place = types, mesh, place is not None, place or {}
        self.known: dict[Name, _Known] = {}
        self.same: dict[Name, Ref] = {}
        self.zeros: set[Name] = set()
        self.padding: dict[Name, tuple[Ref, int, tuple[int, ...]]] = {}
        """What has zeros after it: the value, its rows, the shape with the zeros."""
        self.rows: dict[Name, tuple[Ref, int, tuple[int, ...]]] = {}
        """The same seen in rows, as many for each rank of a group."""
        self.stacked: dict[Name, Sequence[Any]] = {}
        """Numbers of which a value is the stack."""
        self.written: dict[Name, tuple[int, tuple[tuple[int, int, Any], ...]]] = {}
        """What was written into memory: along which dim, from where to where, in order."""
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

    def pad(self, source: Ref, count: int, shape: tuple[int, ...], step: Op) -> Ref:
        """A value of `count` rows with zeros after it."""
        dtype = self._type(source).dtype
        rest = (shape[0] - count, *shape[1:])
        zeros = self.emit("full", (), step, size=rest, fill_value=0.0, dtype=dtype)
        made = self.emit("cat", (source, zeros), step)
        self.padding[made.name] = (source, count, shape)
        return made

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


Rule: TypeAlias = Callable[[Pass, Op], "_Known | Ref | None"]


def _full(run: Pass, step: Op) -> _Known | Ref | None:
    size, fill = step.attr("size"), step.attr("fill_value")
    if fill == 0:
        run.zeros.update(step.outs)
    if isinstance(size, tuple) and len(size) == 1 and isinstance(fill, float) and fill != fill:
        # Two halves, so that it counts as joined: memory that nobody has written yet.
        count: Any = size[0]
        return _Flat(((1, None), (count - 1, None))) if count > 1 else None
    return None


def _cat(run: Pass, step: Op) -> _Known | Ref | None:
    if run.padded and pads(run, step):
        return None
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


def _slice(run: Pass, step: Op) -> _Known | Ref | None:
    value = step.args[0]
    known = run.known.get(value.name) if isinstance(value, Ref) else None
    if known is None or step.attr("step", 1) != 1:
        return None
    dim: Any = step.attr("dim", 0)
    total = sum(count for count, _ in known.pieces)
    start, end, _ = slice(step.attr("start"), step.attr("end")).indices(total)
    if isinstance(known, _Flat):
        if start >= end and run.padded:
            dtype = run._type(value).dtype
            return run.emit("full", (), step, size=(0,), fill_value=0.0, dtype=dtype)
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


def _slice_scatter(run: Pass, step: Op) -> _Known | Ref | None:
    found = _scattered(run, step)
    whole = None if isinstance(found, Ref) else written_whole(run, step)
    if whole is not None and isinstance(found, _Flat) and len(found.pieces) > 1:
        run.known[whole.name] = found
    return whole or found


def _scattered(run: Pass, step: Op) -> _Known | Ref | None:
    base, source = (run.flat(arg) for arg in step.args)
    if run.padded and isinstance(step.args[0], Ref) and step.args[0].name in run.zeros:
        return padded(run, step)
    if base is None or source is None or step.attr("step", 1) != 1:
        return None
    total = sum(count for count, _ in base.pieces)
    start, end, _ = slice(step.attr("start"), step.attr("end")).indices(total)
    before, after = run.cut(base.pieces, 0, start, step), run.cut(base.pieces, end, total, step)
    return run.joined([*before, *source.pieces, *after])


def _view(run: Pass, step: Op) -> _Known | Ref | None:
    value = step.args[0]
    if isinstance(value, Ref) and value.name in run.zeros:
        run.zeros.update(step.outs)  # in another shape
    padding = run.padding.get(value.name) if isinstance(value, Ref) else None
    shape = run.shape(Ref(step.outs[0]))
    if padding is not None and shape is not None and len(shape) == 1:
        source, count, rows = padding
        flat = run.emit("view", (source,), step, size=(count * math.prod(rows[1:]),))
        return run.pad(flat, count * math.prod(rows[1:]), (math.prod(rows),), step)
    if padding is not None and shape is not None and len(shape) == 2 and padding[2][0] % shape[0] == 0:
        run.rows[step.outs[0]] = padding
    known = run.known.get(value.name) if isinstance(value, Ref) else None
    if known is None or shape is None:
        return None
    if isinstance(known, _Flat):
        return known if len(shape) == 1 else None
    columns = sum(count for count, _ in known.pieces)
    if shape == (known.count, columns):
        return _Rows(known.count, known.pieces)
    return _Rows(known.count, known.pieces, laid=True) if len(shape) == 1 else None


def _each(run: Pass, step: Op) -> _Known | Ref | None:
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

    def done(piece: Ref | None) -> Ref | None:
        if piece is None:
            return None
        made = run.emit(step.op, (piece, *step.args[1:]), step, **attrs)
        if piece.name in run.rows and keeps_zeros(step):
            source, count, shape = run.rows[piece.name]
            run.rows[made.name] = (run.emit(step.op, (source, *step.args[1:]), step, **attrs), count, shape)
        return made

    pieces = tuple((count, done(piece)) for count, piece in known.pieces)
    return _Flat(pieces) if isinstance(known, _Flat) else _Rows(known.count, pieces, known.laid)


def _copy(run: Pass, step: Op) -> _Known | Ref | None:
    value = step.args[0]
    if isinstance(value, Ref) and value.name in run.stacked:
        run.stacked[step.outs[0]] = run.stacked[value.name]
    return run.known.get(value.name) if isinstance(value, Ref) else None


def _gather(run: Pass, step: Op) -> _Known | Ref | None:
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


def _scatter(run: Pass, step: Op) -> _Known | Ref | None:
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
        name = f"{step.outs[0]}_{at}"
        if isinstance(piece, Ref) and piece.name in run.rows:
            pieces.append((count, own_rows(run, step, piece, name, group)))
            continue
        flat = run.emit("view", (piece,), step, size=(group * count,))
        pieces.append((count, run.emit("reduce_scatter", (flat,), step, name, **attrs)))
    return _Flat(tuple(pieces))


def _reduce(run: Pass, step: Op) -> _Known | Ref | None:
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


def _sum(run: Pass, step: Op) -> _Known | Ref | None:
    """Of numbers, all of them."""
    known = run.known.get(step.args[0].name) if isinstance(step.args[0], Ref) else None
    return numbers_sum(run, step, known.pieces) if isinstance(known, _Flat) else None


_RULES: Mapping[str, Rule] = {
    "full": _full,
    "cat": _cat,
    "stack": stacked,
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
