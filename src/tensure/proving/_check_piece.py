"""What the checker's op rules are asked about: a local op beside the logical one it may be a piece of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final, TypeAlias

from ._check_index import Index, all_of

ONE: Final = Fraction(1)
"""The one that is told by being it: most factors are."""
Reg: TypeAlias = tuple[Index, ...]
Shape: TypeAlias = tuple[int, ...]


@dataclass(slots=True)
class Piece:
    """A local op beside the logical op it is claimed to be a piece of.

    `parts` are the regions of the logical operands (of `shapes`) that the local op reads, `Anywhere` in dims
    along which an operand only repeats; `reg` is the region of the logical result `at` (of shape `out`) it is
    to make, `shares` the slices of contracted letters.
    """

    op: str
    mine: dict[str, Any]
    theirs: dict[str, Any]
    shapes: Sequence[Any]
    parts: Sequence[Any]
    out: Shape
    reg: Reg
    shares: dict[str, Index]
    at: int = 0


def whole(shape: Shape) -> Reg:
    """All of a tensor."""
    return tuple(map(all_of, shape))


def is_part(item: Any) -> bool:
    """A (class, region, factor) operand."""
    return isinstance(item, tuple) and item[0] != "number"


def holds(so: bool) -> Fraction | None:
    """A coefficient of 1, or none."""
    return ONE if so else None
