"""What flat memory holds after each kind of step: joins, cuts, writes, views, and what ranks do together.

A rule answers with the parts of its result, or with another value that is the same; None where it knows no
more. Knows moves, and nothing of where they come from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import accumulate
from typing import Any, cast

from tensure.program import Op, Ref

from ._flat_pass import Flat, Known, Pass, Piece, Rows, Rule

__all__ = ["RULES"]


def _full(run: Pass, step: Op) -> Known | Ref | None:
    run.filled[step.outs[0]] = (step.attr("dtype"), step.attr("fill_value"))
    size, fill = step.attr("size"), step.attr("fill_value")
    if isinstance(size, tuple) and len(size) == 1 and isinstance(fill, float) and fill != fill:
        # Two halves, so that it counts as joined: memory that nobody has written yet.
        count: Any = size[0]
        return Flat(((1, None), (count - 1, None))) if count > 1 else None
    return None


def _cat(run: Pass, step: Op) -> Known | Ref | None:
    shapes = [run.shape(arg) for arg in step.args]
    dim: Any = step.attr("dim", 0)
    last = step.args[-1]
    is_blank = isinstance(last, Ref) and run.filled.get(last.name, ("", 1))[1] == 0
    if len(step.args) == 2 and dim == 0 and is_blank:
        run.padded[step.outs[0]] = (step.args[0], last)
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
        return Rows(shapes[0][0], tuple(rows)) if shapes[0] is not None else None  # type: ignore[arg-type]
    return None


def _stack(run: Pass, step: Op) -> None:
    """Numbers, such as the norms of several tensors: taken apart where ranks sum them up."""
    if all(run.shape(arg) == () for arg in step.args):
        run.stacked[step.outs[0]] = step.args


def _sum(run: Pass, step: Op) -> Known | Ref | None:
    """Of numbers, all of them."""
    known = run.known.get(step.args[0].name) if isinstance(step.args[0], Ref) else None
    if not isinstance(known, Flat) or run.shape(Ref(step.outs[0])) != ():
        return None
    if any(count != 1 or piece is None for count, piece in known.pieces):
        return None
    numbers = tuple(run.emit("view", (piece,), step, size=()) for _, piece in known.pieces)
    return run.emit("add_n", numbers, step)


def _slice(run: Pass, step: Op) -> Known | Ref | None:
    value, have = step.args[0], run.shape(step.args[0])
    if have is not None and len(have) == 1 and step.attr("step", 1) == 1:
        start, end, _ = slice(step.attr("start"), step.attr("end")).indices(have[0])
        rows = run.rows_of(value, start, end, step)
        if rows is not None:
            run.shaped[step.outs[0]] = rows
    known = run.known.get(value.name) if isinstance(value, Ref) else None
    if known is None or step.attr("step", 1) != 1:
        return None
    dim: Any = step.attr("dim", 0)
    total = sum(count for count, _ in known.pieces)
    start, end, _ = slice(step.attr("start"), step.attr("end")).indices(total)
    if isinstance(known, Flat):
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
    return Rows(known.count, tuple(kept)) if kept else None


def _slice_scatter(run: Pass, step: Op) -> Known | Ref | None:
    base, source = (run.flat(arg) for arg in step.args)
    written = _written(run, step)
    if written is not None:
        if base is not None and source is not None:
            flat = _scattered(run, step, base, source)
            if isinstance(flat, Flat) and len(flat.pieces) > 1:
                run.known[written.name] = flat
        return written
    return None if base is None or source is None else _scattered(run, step, base, source)


def _written(run: Pass, step: Op) -> Ref | None:
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
    rest = end if len(found) == 1 and start == 0 else shape[dim]
    if rest < shape[dim] and len(shape) > 1 and base.name in run.filled:
        # Rows that fill up a shard which is smaller than others.
        dtype, fill = run.filled[base.name]
        size = (*shape[:dim], shape[dim] - rest, *shape[dim + 1 :])
        blank = run.emit("full", (), step, dtype=dtype, fill_value=fill, size=size)
        return run.emit("cat", (step.args[1], blank), step, dim=dim)
    ends = [0, *(piece[1] for piece in found)]
    if len(found) == 1 or ends != [*(piece[0] for piece in found), shape[dim]]:
        return None
    return run.emit("cat", tuple(piece[2] for piece in found), step, dim=dim)


def _scattered(run: Pass, step: Op, base: Flat, source: Flat) -> Known | Ref | None:
    if step.attr("step", 1) != 1:
        return None
    total = sum(count for count, _ in base.pieces)
    start, end, _ = slice(step.attr("start"), step.attr("end")).indices(total)
    before, after = run.cut(base.pieces, 0, start, step), run.cut(base.pieces, end, total, step)
    return run.joined([*before, *source.pieces, *after])


def _view(run: Pass, step: Op) -> Known | Ref | None:
    value = step.args[0]
    have, want = run.shape(value), run.shape(Ref(step.outs[0]))
    if isinstance(value, Ref) and have is not None and want is not None and len(want) <= 2:
        if value.name in run.shaped:
            run.shaped[step.outs[0]] = run.shaped[value.name]
        elif have and have != want:
            run.shaped[step.outs[0]] = value
    if isinstance(value, Ref) and value.name in run.shaped and run.shape(run.shaped[value.name]) == want:
        return run.shaped[value.name]  # flattened, and put in shape again
    known = run.known.get(value.name) if isinstance(value, Ref) else None
    shape = run.shape(Ref(step.outs[0]))
    if known is None or shape is None:
        return None
    if isinstance(known, Flat):
        return known if len(shape) == 1 else None
    columns = sum(count for count, _ in known.pieces)
    if shape == (known.count, columns):
        return Rows(known.count, known.pieces)
    return Rows(known.count, known.pieces, laid=True) if len(shape) == 1 else None


def _each(run: Pass, step: Op) -> Known | Ref | None:
    """An op that does the same to every element."""
    value = step.args[0]
    known = run.known.get(value.name) if isinstance(value, Ref) else None
    source, made = run._type(value), run._type(Ref(step.outs[0]))
    is_same = source is not None and made is not None and source.dtype == made.dtype
    if step.op == "_to_copy" and is_same and isinstance(value, Ref) and value.name in run.shaped:
        run.shaped[step.outs[0]] = run.shaped[value.name]
    if known is None or any(isinstance(arg, Ref) for arg in step.args[1:]):
        return None
    if step.op == "_to_copy" and is_same:
        return known
    attrs: dict[str, Any] = dict(step.attrs)

    def each(count: int, piece: Ref | None) -> Ref | None:
        shaped = run.in_shape(piece)
        if piece is None:
            return None
        made = run.emit(step.op, (shaped, *step.args[1:]), step, **attrs)
        if isinstance(shaped, Ref) and shaped.name in run.padded and step.op in ("mul", "div"):
            value, blank = run.padded[shaped.name]  # a multiple of zeros is zeros
            run.padded[made.name] = (run.emit(step.op, (value, *step.args[1:]), step, **attrs), blank)
        if shaped is piece:
            return made
        return run.laid(made, (count,) if isinstance(known, Flat) else (known.count, count), step)

    pieces = tuple((count, each(count, piece)) for count, piece in known.pieces)
    return Flat(pieces) if isinstance(known, Flat) else Rows(known.count, pieces, known.laid)


def _copy(run: Pass, step: Op) -> Known | Ref | None:
    value = step.args[0]
    if isinstance(value, Ref) and value.name in run.shaped:
        run.shaped[step.outs[0]] = run.shaped[value.name]
    if isinstance(value, Ref) and value.name in run.stacked:
        run.stacked[step.outs[0]] = run.stacked[value.name]
    return run.known.get(value.name) if isinstance(value, Ref) else None


def _gather(run: Pass, step: Op) -> Known | Ref | None:
    flat = run.flat(step.args[0])
    if flat is None:
        return None
    name = str(step.outs[0])
    run.ends[name] = frozenset(accumulate(count for count, _ in flat.pieces))
    pieces = run.rejoined(flat.pieces, step, run.cuts[name]) if run.cuts is not None else flat.pieces
    if len(pieces) < 2 or any(piece is None for _, piece in pieces):
        return None
    axes: Any = step.attr("axes")
    group = math.prod(run.mesh[axis] for axis in axes)
    rows: list[Piece] = []
    for at, (count, piece) in enumerate(pieces):
        together = run.emit(
            "all_gather", (run.in_shape(piece),), step, f"{step.outs[0]}_{at}", axes=axes, dim=0
        )
        rows.append((count, run.laid(together, (group, count), step)))
    return Rows(group, tuple(rows), laid=True)


def _scatter(run: Pass, step: Op) -> Known | Ref | None:
    known = run.known.get(step.args[0].name) if isinstance(step.args[0], Ref) else None
    axes: Any = step.attr("axes")
    group = math.prod(run.mesh[axis] for axis in axes)
    if not isinstance(known, Rows) or not known.laid or known.count != group:
        return None
    if any(piece is None for _, piece in known.pieces):
        return None
    pieces: list[Piece] = []
    attrs: dict[str, Any] = dict(step.attrs)
    for at, (count, piece) in enumerate(known.pieces):
        shaped = run.in_shape(piece)
        rows = run.shape(shaped)
        name = f"{step.outs[0]}_{at}"
        if isinstance(shaped, Ref) and shaped.name in run.padded and rows is not None:
            # Zeros need not be summed: what is summed is cut then.
            value, blank = run.padded[shaped.name]
            total = run.emit("all_reduce", (value,), step, name, axes=axes, reduce=step.attr("reduce"))
            whole = run.emit("cat", (total, blank), step, dim=0)
            size = rows[0] // group
            start = run.member(axes) * size
            part = run.emit("slice", (whole,), step, dim=0, start=start, end=start + size)
            pieces.append((count, run.laid(part, (count,), step)))
            continue
        if shaped is not piece and rows is not None and rows[0] % group == 0:
            part = run.emit("reduce_scatter", (shaped,), step, name, **attrs)
            pieces.append((count, run.laid(part, (count,), step)))
            continue
        flat = run.emit("view", (piece,), step, size=(group * count,))
        pieces.append((count, run.emit("reduce_scatter", (flat,), step, name, **attrs)))
    return Flat(tuple(pieces))


def _reduce(run: Pass, step: Op) -> Known | Ref | None:
    """DDP's buckets, the sum of joined gradients; and norms."""
    source = step.args[0].name if isinstance(step.args[0], Ref) else None
    known = run.known.get(source) if source is not None else None
    if source in run.stacked:
        known = Flat(tuple((1, run.emit("view", (arg,), step, size=(1,))) for arg in run.stacked[source]))
    if known is None or any(piece is None for _, piece in known.pieces):
        return None
    attrs: dict[str, Any] = dict(step.attrs)
    pieces = tuple(
        (count, run.emit("all_reduce", (piece,), step, f"{step.outs[0]}_{at}", **attrs))
        for at, (count, piece) in enumerate(known.pieces)
    )
    return Flat(pieces) if isinstance(known, Flat) else Rows(known.count, pieces, known.laid)


RULES: Mapping[str, Rule] = {
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
