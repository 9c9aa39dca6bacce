"""The cost of a proof against the number of ranks, as one SVG: a point for each plan, and the bar."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

__all__ = ["scale_chart"]

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 640, 320, 56, 20, 34, 44
_FONT: Final = 'font-family="sans-serif" font-size="11"'
_OURS: Final = "#c2410c"
_LINE: Final = "#777777"


def scale_chart(title: str, points: Sequence[tuple[int, float]], bar_s: float) -> str:
    """The picture as text; the same points give the same bytes.

    Args:
        points: (ranks, CPU seconds), in any order; ranks are drawn on a logarithmic scale, seconds from 0.
        bar_s: the most that is allowed.
    """
    points = sorted(points)
    least, most = math.log2(points[0][0]), math.log2(points[-1][0])
    highest = 1.15 * max(bar_s, *(seconds for _, seconds in points))

    def x_of(ranks: int) -> float:
        wide = _WIDTH - _LEFT - _RIGHT
        return _LEFT + 12 + (wide - 24) * (math.log2(ranks) - least) / max(most - least, 1.0)

    def y_of(seconds: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * seconds / highest

    places = [(x_of(ranks), y_of(seconds), ranks, seconds) for ranks, seconds in points]
    bar = f"at most {bar_s:g} s"
    foot, edge = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" {_FONT}>',
        f"<title>{title}</title>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        f'<text x="{_LEFT}" y="18">{title}</text>',
        f'<path d="M{_LEFT} {_TOP}V{foot}H{edge}" fill="none" stroke="#000000"/>',
        f'<path d="M{_LEFT} {y_of(bar_s):.1f}H{edge}" stroke="{_LINE}" stroke-dasharray="5 4"/>',
        f'<text x="{edge}" y="{y_of(bar_s) - 4:.1f}" text-anchor="end" fill="{_LINE}">{bar}</text>',
        f'<text x="{(_LEFT + edge) / 2:.0f}" y="{_HEIGHT - 8}" text-anchor="middle">ranks</text>',
        f'<text x="14" y="{_TOP - 8}">CPU s</text>',
        f'<text x="{_LEFT - 6}" y="{foot}" text-anchor="end">0</text>',
        f'<path d="M{" L".join(f"{x:.1f} {y:.1f}" for x, y, *_ in places)}" fill="none" stroke="{_OURS}"/>',
    ]
    for x, y, ranks, seconds in places:
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{_OURS}"/>')
        parts.append(f'<text x="{x:.1f}" y="{y + 18:.1f}" text-anchor="middle">{seconds:.0f}</text>')
        parts.append(f'<text x="{x:.1f}" y="{foot + 15}" text-anchor="middle">{ranks:,}</text>')
    return "\n".join([*parts, "</svg>", ""])
