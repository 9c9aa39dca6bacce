"""Figures and bars as people read them. Knows no table."""

from __future__ import annotations

from collections.abc import Mapping

from ._records import Json

__all__ = ["bar_text", "emphasised", "mega", "number", "percent"]

_MEGA = 1e6


def number(value: float) -> str:
    """Three figures, without an exponent for what people read."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 0.001 or value == 0 else f"{value:.1e}"


def percent(value: float | None) -> str:
    """A share; two figures when it is small."""
    return "" if value is None else f"{100 * value:.2g} %" if value < 0.1 else f"{100 * value:.0f} %"


def mega(value: float | None) -> str:
    """Bytes in megabytes, whole."""
    return "" if value is None else f"{value / _MEGA:,.0f}"


def bar_text(bar: Mapping[str, Json]) -> str:
    """`at least 92 %: met`; a value that is no number is missed."""
    higher = bar["better"] == "higher"
    met = bar["value"] >= bar["target"] if higher else bar["value"] <= bar["target"]
    target = percent(bar["target"]) if bar["unit"].startswith("of the ") else number(bar["target"])
    return f"{'at least' if higher else 'at most'} {target}: {'met' if met else 'missed'}"


def emphasised(cell: str) -> str:
    """In bold."""
    return f"**{cell}**"
