"""Flat memory in words: which tensors lie in it one after another.

What lies in flat memory as the Program has it is no fault of whoever laid it there, though the Program has no
such tensor. Knows values and no steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Final, TypeAlias

from ._index import format_index, whole_region
from ._relation import ONE
from ._values import Value, is_part

Labels: TypeAlias = Mapping[int, tuple[str, Fraction]]
MAX_DEEP: Final = 4
MAX_SAID: Final = 3


def label_of(values: Sequence[Value], node: int, labels: Labels) -> tuple[str, Fraction] | None:
    """The name of a value, or what is laid in it; None where that is nothing of the Program's."""
    if node in labels:
        return labels[node]
    parts = _parts(values, node, labels, 0)
    if not parts:
        return None
    common = next((coef for coef, _ in parts if coef), ONE)  # told before all of them
    told = [text if coef in (common, 0) else f"{coef / common} * {text}" for coef, text in parts[:MAX_SAID]]
    rest = [f"{len(parts) - MAX_SAID} more"] if len(parts) > MAX_SAID else []
    return f"({', '.join([*told, *rest])}, laid flat)", 1 / common


def _parts(
    values: Sequence[Value], node: int, labels: Labels, deep: int
) -> list[tuple[Fraction, str]] | None:
    """What lies one after another in a value, as multiples of what has a name; 0 times what fills up."""
    value = values[node]
    if node in labels:
        name, by = labels[node]
        return [(1 / by, name)]
    if len(value.type.shape) != 1 or deep > MAX_DEEP:
        return None
    if 0 in value.free:
        return [(Fraction(0), "a number")]
    if value.op not in ("view", "cat"):
        return None
    found: list[tuple[Fraction, str]] = []
    for item in value.operands:
        parts = (
            _parts(values, item[0], labels, deep + 1) if isinstance(item, tuple) and is_part(item) else None
        )
        if not parts or not isinstance(item, tuple):
            return None
        inner, region, coef = item
        if region != whole_region(values[inner].type.shape) and not values[inner].free:
            dims = ", ".join(f"d{dim} {format_index(index)}" for dim, index in enumerate(region))
            parts = [(parts[0][0], f"{' and '.join(text for _, text in parts)}{{{dims}}}")]
        found += [(coef * by, text) for by, text in parts]
    return found
