"""The checker's rules for ops that put, shift or pool: shapes of results, and the few parts that follow.

Of whole operands anything follows (`_check_ops.follows` says so before it asks here); of parts only what is
cut along dims that the op does not look across. Written apart from the prover's rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Final

from ._check_index import all_of
from ._check_piece import Piece, Shape, holds
from ._check_training import TrainingRule

__all__ = ["WHOLE"]


def _first(attrs: dict[str, Any], shapes: Sequence[Any]) -> list[Shape]:
    return [shapes[0]]


def _no_part(p: Piece) -> Fraction | None:
    return None


def _same(p: Piece) -> bool:
    return repr(sorted(p.mine.items())) == repr(sorted(p.theirs.items()))


def _rolled(p: Piece) -> Fraction | None:
    """Rows stay apart along every dim that nothing is shifted along; without dims all are one row."""
    part, rank = p.parts[0], len(p.out)
    dims = {dim % rank for dim in p.theirs.get("dims", ())}
    inside = bool(dims) and all(part[dim].is_whole(p.out[dim]) for dim in dims)
    return holds(_same(p) and not p.shares and inside and part == p.reg)


def _put(p: Piece) -> Fraction | None:
    """Numbers put along a dim: each other dim is one of rows, all of which the index has."""
    base, at, source = p.parts
    along = p.theirs["dim"] % len(p.out)
    for dim, n in enumerate(p.out):
        if dim == along:
            if not all(part[dim].is_whole(shape[dim]) for part, shape in zip(p.parts, p.shapes, strict=True)):
                return None
        elif not base[dim] == at[dim] == source[dim] or {shape[dim] for shape in p.shapes} != {n}:
            return None
    return holds(_same(p) and not p.shares and p.shapes[1] == p.shapes[2] and p.reg == base)


def _one_hot(p: Piece) -> Fraction | None:
    return holds(_same(p) and not p.shares and p.reg == (*p.parts[0], all_of(p.out[-1])))


def _pooled(attrs: dict[str, Any], shapes: Sequence[Any]) -> list[Shape]:
    return [(*shapes[0][:-2], *attrs["output_size"])]


_OF_FIRST: Final = TrainingRule(_first, _no_part)

WHOLE: Final[dict[str, TrainingRule]] = {
    **dict.fromkeys(("index_add", "scatter_reduce", "select_scatter", "batch_norm", "group_norm"), _OF_FIRST),
    "scatter": TrainingRule(_first, _put),
    "roll": TrainingRule(_first, _rolled),
    "one_hot": TrainingRule(lambda attrs, shapes: [(*shapes[0], attrs["num_classes"])], _one_hot),
    "adaptive_avg_pool2d": TrainingRule(_pooled, _no_part),
}
