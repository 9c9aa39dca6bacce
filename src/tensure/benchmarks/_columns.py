"""A report of many cases and engines: a row for each case and a column for each engine.

`settings.table` of the report names the view: `matrix` (with our share of the limit and our ratio to the best
peer), `ablation` (the figures, and what is left of them without a part) or `paper` (the figures, the ratio of
layouts, the memory). Works on the report's JSON form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeAlias

from ._format import bar_text, emphasised, number, percent
from ._records import OURS, Json, is_ours

__all__ = ["columns", "engines_of"]

Grid: TypeAlias = tuple[list[str], list[list[str]]]
_MEGA: Final = 1e6
_WIDE: Final = ("direct", "im2win", "full im2win")


def columns(report: Mapping[str, Json]) -> list[Grid]:
    """Headings and rows of every table of the report's view."""
    return [grid for view in _VIEWS[report["settings"]["table"]] if (grid := view(report))[1]]


def engines_of(report: Mapping[str, Json]) -> list[str]:
    """Ours first, then the others in the order they took turns."""
    found = dict.fromkeys(row["engine"] for row in report["rows"])
    return [name for name in found if name == OURS] + [name for name in found if name != OURS]


def _by_case(report: Mapping[str, Json]) -> dict[str, dict[str, Mapping[str, Json]]]:
    found: dict[str, dict[str, Mapping[str, Json]]] = {}
    for row in report["rows"]:
        found.setdefault(row["case"], {})[row["engine"]] = row
    return found


def _figures(report: Mapping[str, Json]) -> Grid:
    """Medians; the best of a case is in bold."""
    names = engines_of(report)
    best = max if report["better"] == "higher" else min
    rows = []
    for case, engines in _by_case(report).items():
        top = best(row["value"] for row in engines.values())
        cells = [_value(engines.get(name), top) for name in names]
        rows.append([case, *cells])
    return [f"{report['metric']}, median", *names], rows


def _matrix(report: Mapping[str, Json]) -> Grid:
    """The figures, and how ours stand to the limit, to the best peer and to the bar."""
    headings, rows = _figures(report)
    cases = _by_case(report)
    bars = {bar["name"]: bar_text(bar) for bar in report["bars"]}
    better = min if report["better"] == "higher" else max
    more: dict[str, list[str]] = {"of the limit": [], "vs best peer": [], "error": [], "bar": []}
    for case in (row[0] for row in rows):
        ours = cases[case].get(OURS)
        ratios = [x for name, x in ours["ratios"].items() if not is_ours(name)] if ours else []
        more["of the limit"].append(percent(ours["of_limit"]) if ours else "")
        more["vs best peer"].append(f"{better(ratios):.2f}" if ratios else "")
        more["error"].append(f"{ours['max_error']:.0e}" if ours and "max_error" in ours else "")
        more["bar"].append(bars.get(case, ""))
    kept = {name: cells for name, cells in more.items() if any(cells)}
    return (
        [*headings, *kept],
        [[*row, *(cells[i] for cells in kept.values())] for i, row in enumerate(rows)],
    )


def _layout_ratios(report: Mapping[str, Json]) -> Grid:
    """NHWC over NCHW for each algorithm: the median of the ratio inside a round."""
    rows = []
    for case, engines in _by_case(report).items():
        cells = [_ratio(engines.get(f"{name} NHWC"), f"{name} NCHW") for name in _WIDE]
        if any(cells):
            rows.append([case, *cells])
    return ["NHWC over NCHW", *_WIDE], rows


def _left(report: Mapping[str, Json]) -> Grid:
    """What is left of the figure with everything on: `A without x` over `A`, or over ours without one."""
    names = [name for name in engines_of(report) if " without " in name]
    rows = []
    for case, engines in _by_case(report).items():
        cells = []
        for name in names:
            whole = name.partition(" without ")[0]
            cells.append(_ratio(engines.get(name), whole if whole in engines else OURS))
        if any(cells):
            rows.append([case, *cells])
    return ["left of the whole", *names], rows


def _memory(report: Mapping[str, Json]) -> Grid:
    """The whole im2win buffer in NHWC beside its formula, im2col's, and the footprint with all tensors."""
    headings = [
        "memory, MB", "input, weights, output", "im2win buffer by formula", "as allocated", "growth measured",
        "im2col by formula", "im2win / im2col", "footprint im2win / im2col", "growth, direct",
        "growth, fused im2win",
    ]  # fmt: skip
    rows = []
    for case, engines in _by_case(report).items():
        full = engines.get("full im2win NHWC")
        if full is None:
            continue
        tensors, win, col = (full[f"{name}_bytes"] for name in ("tensor", "im2win", "im2col"))
        rows.append([
            case, _mega(tensors), _mega(win), _mega(full.get("workspace_bytes")),
            _mega(full.get("growth_bytes")), _mega(col), f"{win / col:.2f}",
            f"{(tensors + win) / (tensors + col):.2f}", _mega(_growth(engines.get("direct NHWC"))),
            _mega(_growth(engines.get("im2win NHWC"))),
        ])  # fmt: skip
    return headings, rows


def _growth(row: Mapping[str, Json] | None) -> float | None:
    return None if row is None else row.get("growth_bytes")


def _value(row: Mapping[str, Json] | None, top: float) -> str:
    if row is None:
        return ""
    text = number(row["value"])
    return emphasised(text) if row["value"] == top else text


def _ratio(row: Mapping[str, Json] | None, other: str) -> str:
    ratio = None if row is None else row["ratios"].get(other)
    return "" if ratio is None else f"{ratio:.2f}"


def _mega(value: float | None) -> str:
    return "" if value is None else f"{value / _MEGA:.2f}"


_VIEWS: Final[Mapping[str, Sequence[Callable[[Mapping[str, Json]], Grid]]]] = {
    "matrix": (_matrix,),
    "ablation": (_figures, _left),
    "paper": (_figures, _layout_ratios, _memory),
}
