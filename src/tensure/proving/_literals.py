"""Literals of half floats, which may be the rounding of numbers that the Program has.

A constant made in the model's dtype is 0.1 on the single device and 205/2048 on ranks in bfloat16: the same
line of the same text. Over the reals rounding is left out, of literals too: a literal that is none of the
Program's numbers, and the rounding of one alone, is that one. Numbers of few bits (3, 0.5) are as written,
so that an integer is never another. The checker has a reading of its own (`_check_reals.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from tensure.program import Op, numpy_dtype

_BITS = {"bf16": 8, "f16": 11}


def rounded(number: float, dtype: str) -> float:
    """A number as a float of this dtype holds it."""
    with np.errstate(over="ignore"):
        return float(np.asarray(number, np.float32).astype(numpy_dtype(dtype)))


class Literals:
    """The Program's numbers: those of tensors, and those that stand in steps."""

    def __init__(self, steps: Iterable[Op]) -> None:
        self._groups: tuple[set[float], set[float]] = (set(), set())
        for step in steps:
            fill: Any = step.attr("fill_value")
            if step.op == "full" and _is_float(fill):
                self._groups[0].add(fill)
            self._groups[1].update(arg for arg in step.args if isinstance(arg, float) and _is_float(arg))

    def meant(self, step: Op) -> float | None:
        """The Program's number that a literal of a half float is the rounding of, if that is one alone."""
        number: Any = step.attr("fill_value")
        dtype = step.attr("dtype")
        if step.op != "full" or dtype not in _BITS or not _is_float(number) or self._has(number):
            return None
        if _is_short(number, str(dtype)):
            return None
        for group in self._groups:
            found = [item for item in group if rounded(item, str(dtype)) == number]
            if found:
                return found[0] if len(found) == 1 else None
        return None

    def unclear(self, step: Op) -> float | None:
        """A literal of a half float that may be the rounding of who knows what: it needs most of its bits."""
        number: Any = step.attr("fill_value")
        dtype = step.attr("dtype")
        if step.op != "full" or dtype not in _BITS or not _is_float(number) or self._has(number):
            return None
        if self.meant(step) is not None:
            return None
        near = any(rounded(item, str(dtype)) == number for group in self._groups for item in group)
        return number if near or not _is_short(number, str(dtype)) else None

    def _has(self, number: float) -> bool:
        return any(number in group for group in self._groups)


def _is_short(number: float, dtype: str) -> bool:
    """Whether half of the bits of a dtype are enough."""
    significand, _ = math.frexp(number)
    return (significand * 2.0 ** (_BITS[dtype] // 2)).is_integer()


def _is_float(number: object) -> bool:
    return isinstance(number, float) and math.isfinite(number)
