"""A report of many cases as one SVG: a panel for each batch and number of threads, a bar for each engine.

Works on the report's JSON form, like the tables, and draws the same medians; the line is the measured limit.
Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Final

from ._columns import engines_of
from ._records import OURS, Json

__all__ = ["bar_chart"]

_WIDTH, _PANEL, _LEFT, _TOP, _BOTTOM = 1000, 230, 46, 28, 22
_FONT: Final = 'font-family="sans-serif" font-size="11"'
_OURS: Final = "#c2410c"
_OTHERS: Final = ("#1e3a5f", "#35618f", "#6f9fc9", "#2f6f4f", "#7fb08f", "#5b4a8a", "#9b8cc4", "#777777")


def bar_chart(report: Mapping[str, Json]) -> str:
    """The picture as text; the same report gives the same bytes."""
    engines = engines_of(report)
    panels = _panels(report["rows"])
    legend_rows = -(-len(engines) // 5)
    head = 10 + 18 * legend_rows
    height = head + _PANEL * len(panels)
    top = max(
        [row["value"] for row in report["rows"]] + [limit["rate"] for limit in report["limits"]] + [1.0]
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" {_FONT}>',
        f"<title>{escape(report['about'])}: {escape(report['metric'])}</title>",
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        *_legend(engines),
    ]
    rates = {limit["threads"]: limit["rate"] for limit in report["limits"]}
    for number, (title, cases) in enumerate(panels.items()):
        parts += _panel(head + number * _PANEL, f"{title}, {report['metric']}", cases, engines, rates, top)
    return "\n".join([*parts, "</svg>", ""])


def _panels(rows: Sequence[Mapping[str, Json]]) -> dict[str, dict[str, list[Mapping[str, Json]]]]:
    """Title, short name of the case, its rows: a case is called `layer, what the panel has in common`."""
    found: dict[str, dict[str, list[Mapping[str, Json]]]] = {}
    for row in rows:
        short, _, title = row["case"].partition(", ")
        found.setdefault(title, {}).setdefault(short, []).append(row)
    return found


def _legend(engines: Sequence[str]) -> list[str]:
    parts = []
    for i, name in enumerate(engines):
        x, y = _LEFT + (i % 5) * 185, 8 + (i // 5) * 18
        parts.append(f'<rect x="{x}" y="{y}" width="11" height="11" fill="{_colour(engines, name)}"/>')
        parts.append(f'<text x="{x + 16}" y="{y + 10}">{escape(name)}</text>')
    return parts


def _panel(
    y: int,
    title: str,
    cases: Mapping[str, Sequence[Mapping[str, Json]]],
    engines: Sequence[str],
    rates: Mapping[int, float],
    top: float,
) -> list[str]:
    floor, scale = y + _PANEL - _BOTTOM, (_PANEL - _TOP - _BOTTOM) / (1.05 * top)
    parts = [f'<text x="{_LEFT}" y="{y + 18}" font-weight="bold">{escape(title)}</text>']
    step = _step(top)
    for i in range(int(top // step) + 1):
        at = floor - i * step * scale
        parts.append(f'<path d="M{_LEFT} {at:.1f}H{_WIDTH - 8}" stroke="#dddddd"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{i * step:g}</text>')
    width = (_WIDTH - 8 - _LEFT) / len(cases)
    bar = 0.86 * width / len(engines)
    for number, (name, rows) in enumerate(cases.items()):
        left = _LEFT + number * width + 0.07 * width
        for row in rows:
            x = left + engines.index(row["engine"]) * bar
            tall = row["value"] * scale
            tip = escape(f"{row['case']}, {row['engine']}: {row['value']:.1f}")
            parts.append(
                f'<rect x="{x:.1f}" y="{floor - tall:.1f}" width="{bar:.1f}" height="{tall:.1f}" '
                f'fill="{_colour(engines, row["engine"])}"><title>{tip}</title></rect>'
            )
        middle = left + 0.43 * width
        parts.append(f'<text x="{middle:.1f}" y="{floor + 14}" text-anchor="middle">{escape(name)}</text>')
    for rate in {rates[row["threads"]] for rows in cases.values() for row in rows if row["threads"] in rates}:
        at = floor - rate * scale
        parts.append(f'<path d="M{_LEFT} {at:.1f}H{_WIDTH - 8}" stroke="#b91c1c" stroke-dasharray="5 4"/>')
    return parts


def _colour(engines: Sequence[str], name: str) -> str:
    if name == OURS:
        return _OURS
    others = [engine for engine in engines if engine != OURS]
    return _OTHERS[others.index(name) % len(_OTHERS)]


def _step(top: float) -> float:
    """1, 2 or 5 times a power of ten, so that there are four to ten lines."""
    size = 1.0
    while True:
        for factor in (1, 2, 5):
            if top / (factor * size) <= 8:
                return factor * size
        size *= 10
