"""Medians and spread of repeated measurements, and ratios taken round by round. Knows no clock."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Spread", "median_ratio", "spread"]


@dataclass(frozen=True, slots=True)
class Spread:
    """Five numbers of a sample, and its size; quartiles by linear interpolation."""

    min: float
    q1: float
    median: float
    q3: float
    max: float
    num: int


def spread(values: Sequence[float]) -> Spread:
    """The five numbers of one or more values."""
    if len(values) == 1:
        only = values[0]
        return Spread(only, only, only, only, only, 1)
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(min(values), q1, median, q3, max(values), len(values))


def median_ratio(values: Sequence[float], others: Sequence[float]) -> float:
    """The median over rounds of value / other: what disturbs a whole round cancels."""
    return statistics.median(value / other for value, other in zip(values, others, strict=True))
