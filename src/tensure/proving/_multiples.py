"""By what one number an output is off, everywhere: a forgotten division is told as that, and not as a step.

Knows numbers that were drawn and computed in float64, and says nothing of what is proved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

import numpy as np

from tensure.program import fraction_words

__all__ = ["Multiple", "common_multiple", "factor_words", "multiple_of", "multiple_words"]

SAME: Final = 1e-9
"""Relative to a part's largest value: how near to a multiple it must come."""
EXACT: Final = 1e-12
LEAST: Final = 1e-9
"""A part with no value above this, such as a gradient that is zero but for rounding, tells nothing."""
MAX_DENOMINATOR: Final = 1024
FEW: Final = 2
"""Any number is some multiple of another: of fewer than these, only a simple fraction is no accident."""


@dataclass(frozen=True, slots=True)
class Multiple:
    """What a part of a value is of what it should be.

    Args:
        factor: NaN where no one number does it.
        elements: how many that are not zero say so.
    """

    factor: float
    elements: int


def multiple_of(have: np.ndarray[Any, Any], want: np.ndarray[Any, Any]) -> Multiple | None:
    """By what a part is off; None where both are zero, which any factor fits."""
    if have.shape != want.shape:
        return Multiple(float("nan"), have.size)
    one, other = have.astype(np.float64).ravel(), want.astype(np.float64).ravel()
    size = max(np.abs(one).max(initial=0.0), np.abs(other).max(initial=0.0))
    if size <= LEAST:
        return None
    with np.errstate(all="ignore"):
        factor = float(one @ other / (other @ other))
        is_near = bool((np.abs(one - factor * other) <= SAME * np.abs(factor * other).max()).all())
    return Multiple(factor if is_near else float("nan"), int((np.abs(other) > LEAST * size).sum()))


def common_multiple(parts: Sequence[Multiple]) -> Fraction | None:
    """The one factor of all parts of an output, if there is one and it is neither 0 nor 1."""
    if not parts or not all(np.isfinite(part.factor) and part.factor for part in parts):
        return None
    first = parts[0].factor
    if any(abs(part.factor - first) > SAME * abs(first) for part in parts):
        return None
    simple = Fraction(first).limit_denominator(MAX_DENOMINATOR)
    off = abs(float(simple) - first)
    if max(part.elements for part in parts) < FEW and off > EXACT * abs(first):
        return None
    found = simple if off <= SAME * abs(first) else Fraction(first)
    return None if found == 1 else found


def multiple_words(factors: Mapping[str, str]) -> str:
    """`loss and all gradients are 2 times the model's`; empty where outputs do not share one factor.

    Args:
        factors: by output, in words; those of every output, empty where it has none or is right.
    """
    off = [label for label, factor in factors.items() if factor]
    if len(off) < FEW or len({factors[label] for label in off}) > 1:
        return ""
    gradients = [label for label in factors if label.startswith("grad.")]
    rest = [label for label in off if label not in gradients]
    if len(off) == len(factors) and not gradients:
        names = "all outputs"
    elif len(gradients) >= FEW and set(gradients) <= set(off):
        names = " and ".join([", ".join(rest[:3]), "all gradients"] if rest else ["all gradients"])
    else:
        more = f" and {len(off) - 3} more" if len(off) > 3 else ""
        names = ", ".join(off[:3]) + more
    return f"{names} are {factors[off[0]]} times the model's"


def factor_words(factor: Fraction | None) -> str:
    """`2`, `1/4`, `~0.123457`; empty for none."""
    return "" if factor is None else fraction_words(factor)
