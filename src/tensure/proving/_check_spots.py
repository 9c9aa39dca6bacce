"""Where an element of a tensor stands, dim by dim, and what elements are taken of: words of the checker."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Final, TypeAlias

from ._check_index import FIRST, Index, all_of
from ._check_linear import value
from ._check_monomials import Stuck
from ._check_piece import Shape, is_part
from ._check_sums import is_rel

Spot: TypeAlias = tuple[Any, ...]
"""Where along a dim: ("on", axis, Index), axis None for a single index; ("by", entry, Index), the member of
the Index that an entry tells; ("any",) where it does not matter."""
ANY: Final[Spot] = ("any",)
Source: TypeAlias = "tuple[tuple[Fraction, int, tuple[Index, ...]], ...] | float | int | bool | None"
"""Terms of a relation, each (coefficient, class, region), or a number."""


def here(shape: Shape) -> tuple[Spot, ...]:
    """Every place of a result, each dim on its own axis."""
    return tuple(on_axis(axis, all_of(n)) for axis, n in enumerate(shape))


def on_axis(axis: Any, index: Index) -> Spot:
    """Along an axis; a single index is on none."""
    return ("on", None if len(index) == 1 else axis, index)


def source_of(item: Any) -> Source:
    """Terms of a relation or of an operand of a class, or a number."""
    if is_rel(item):
        if any(limit is not None for *_, limit in item):
            raise Stuck
        return tuple((coef, node, reg) for coef, node, reg, _ in item)
    if item is None or isinstance(item, (bool, int, float)):
        number: Source = item
        return number
    raise Stuck


def part_of(operand: Any) -> Source:
    """An operand of a class."""
    if is_part(operand):
        node, reg, coef = operand
        return ((coef, node, reg),)
    if operand is None:
        return None
    number = value(operand)
    if number is None:
        raise Stuck
    return float(number) if number.denominator != 1 else int(number)


def seen_as(inner: Shape, outer: Shape, spots: Sequence[Spot]) -> tuple[Spot, ...] | None:
    """Where in what was viewed, when only dims of size 1 come or go."""
    if [n for n in inner if n != 1] != [n for n in outer if n != 1]:
        return None
    left = [spot for n, spot in zip(outer, spots, strict=True) if n != 1]
    return tuple(left.pop(0) if n != 1 else ("on", None, FIRST) for n in inner)
