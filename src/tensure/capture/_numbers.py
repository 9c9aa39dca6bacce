"""Numbers that are stacked, summed by ranks, and added up, as norms are; and writes that fill a tensor.

A sum over ranks of stacked numbers is the stack of their sums. Writes that leave nothing of what was there
join what they write. Both hold for all values. Knows these moves and nothing of where they come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from tensure.program import Op, Ref

if TYPE_CHECKING:
    from ._flat import Pass

__all__ = ["numbers_sum", "stacked", "written_whole"]


def stacked(run: Pass, step: Op) -> None:
    """Numbers, such as the norms of several tensors: taken apart where ranks sum them up."""
    if all(run.shape(arg) == () for arg in step.args):
        run.stacked[step.outs[0]] = step.args


def numbers_sum(run: Pass, step: Op, pieces: Sequence[tuple[int, Ref | None]]) -> Ref | None:
    """The sum of numbers that stand one after another."""
    if run.shape(Ref(step.outs[0])) != () or any(count != 1 or piece is None for count, piece in pieces):
        return None
    return run.emit("add_n", tuple(run.emit("view", (piece,), step, size=()) for _, piece in pieces), step)


def written_whole(run: Pass, step: Op) -> Ref | None:
    """What was written one after another, where that is all there is now."""
    base, shape = step.args[0], run.shape(Ref(step.outs[0]))
    if not shape or not isinstance(base, Ref) or step.attr("step", 1) != 1:
        return None
    dim = cast("int", step.attr("dim", 0)) % len(shape)
    start, end, _ = slice(step.attr("start"), step.attr("end")).indices(shape[dim])
    before, pieces = run.written.get(base.name, (dim, ()))
    kept: list[Any] = (
        [piece for piece in pieces if piece[1] <= start or end <= piece[0]] if before == dim else []
    )
    found = tuple(sorted([*kept, (start, end, step.args[1])], key=lambda piece: piece[0]))
    run.written[step.outs[0]] = (dim, found)
    ends = [0, *(piece[1] for piece in found)]
    if len(found) == 1 or ends != [*(piece[0] for piece in found), shape[dim]]:
        return None
    return run.emit("cat", tuple(piece[2] for piece in found), step, dim=dim)
