"""Shards of several sizes in flat memory: rows with zeros after them, so that every rank has as many.

A gather of padded shards is cut again, and what is reduced is padded first. A value written into zeros is one
joined with the zeros that are left; and a rank's part of a sum of padded values is its rows of the sum
without the padding, and zeros. Both hold for all values. Knows these moves and nothing of where they come
from.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tensure.program import Op, Ref

if TYPE_CHECKING:
    from ._flat import Pass

__all__ = ["keeps_zeros", "own_rows", "padded", "pads"]


def pads(run: Pass, step: Op) -> bool:
    """Whether this puts zeros after a value; it is noted."""
    if len(step.args) != 2 or step.attr("dim", 0) != 0:
        return False
    source, zeros = step.args
    shape, written = run.shape(Ref(step.outs[0])), run.shape(source)
    if not isinstance(zeros, Ref) or zeros.name not in run.zeros or shape is None or written is None:
        return False
    if isinstance(source, Ref) and not source.box:
        run.padding[step.outs[0]] = (source, written[0], shape)
    return True


def padded(run: Pass, step: Op) -> Ref | None:
    """The first rows of zeros written over, as what was written and the zeros that are left."""
    base, source = step.args
    shape, written = run.shape(base), run.shape(source)
    if shape is None or written is None or not isinstance(source, Ref):
        return None
    count = written[0] if written else 0
    where = (step.attr("dim", 0), step.attr("start", 0), step.attr("step", 1))
    if where != (0, 0, 1) or written[1:] != shape[1:]:
        return None
    if count in (0, shape[0]):
        return source if count else Ref(base.name) if isinstance(base, Ref) else None
    return run.pad(source, count, shape, step)


def keeps_zeros(step: Op) -> bool:
    """Whether an op on one value and numbers gives zeros for zeros."""
    numbers = [arg for arg in step.args[1:] if isinstance(arg, (int, float))]
    return all(math.isfinite(number) and (step.op != "div" or number != 0) for number in numbers)


def own_rows(run: Pass, step: Op, piece: Ref, name: str, group: int) -> Ref:
    """This rank's part of the sum of values with zeros after them: rows of the sum, and zeros."""
    source, valid, shape = run.rows[piece.name]
    axes: Any = step.attr("axes")
    attrs: dict[str, Any] = {key: value for key, value in step.attrs if key != "dim"}
    total = run.emit("all_reduce", (source,), step, name, **attrs)
    at = 0
    for axis in run.mesh:
        if axis in axes:
            at = at * run.mesh[axis] + run.place[axis]
    rows, width = shape[0] // group, math.prod(shape[1:])
    low, high = min(at * rows, valid), min(at * rows + rows, valid)
    own = run.emit("slice", (total,), step, dim=0, start=low, end=high)
    flat = run.emit("view", (own,), step, size=((high - low) * width,))
    return flat if high - low == rows else run.pad(flat, (high - low) * width, (rows * width,), step)
