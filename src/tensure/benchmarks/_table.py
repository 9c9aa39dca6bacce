"""A report as a table: the same columns for the screen and for documents.

Works on the report's JSON form, so that a table in a document comes from a file in results/ and from
nothing else. What was not measured stands below the table, and losses stay in it.
"""

from __future__ import annotations

from collections.abc import Mapping

from ._records import OURS, Json, share_name

__all__ = ["markdown", "table"]

_MEGA = 1e6
_TEXT_COLUMNS = ("case", "engine", "min to max", "bar")


def table(report: Mapping[str, Json]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of text, best first within each case; a column nobody fills is left out."""
    rows = report["rows"]
    peer = _peer(report)
    columns: dict[str, list[str]] = {
        "case": [row["case"] for row in rows],
        "engine": [_engine(row) for row in rows],
        f"{report['metric']}, median": [_number(row["value"]) for row in rows],
        "min to max": [f"{_number(row['min'])} to {_number(row['max'])}" for row in rows],
        f"vs {peer}": [_ratio(row, peer) for row in rows],
        f"of the {_limit_name(report)} limit": [_percent(row["of_limit"]) for row in rows],
        "weights, MB": [_mega(row.get("weight_bytes")) for row in rows],
        "peak memory, MB": [_mega(row.get("peak_rss_bytes")) for row in rows],
        "bar": [_bar(report, row) for row in rows],
    }
    kept = {name: cells for name, cells in columns.items() if any(cells)}
    sign = -1 if report["better"] == "higher" else 1
    cases = list(dict.fromkeys(row["case"] for row in rows))
    order = sorted(range(len(rows)), key=lambda i: (cases.index(rows[i]["case"]), sign * rows[i]["value"]))
    return list(kept), [[cells[i] for cells in kept.values()] for i in order]


def markdown(report: Mapping[str, Json]) -> str:
    """The table with what it rests on: machine, versions, limits, what is missing."""
    headings, rows = table(report)
    rule = [":--" if name in _TEXT_COLUMNS else "--:" for name in headings]
    grid = [_line(headings), _line(rule), *(_line(_loud(row)) for row in rows)]
    metric = report["metric"]
    below = [
        _setting(report),
        *(f"Limit, {_threads(item['threads'])}: {_limit(item, metric)}." for item in report["limits"]),
        *(f"Not measured: {item['name']} ({item['reason']})." for item in report["not_measured"]),
    ]
    return "\n".join([*grid, "", "  \n".join(below), ""])


def _peer(report: Mapping[str, Json]) -> str:
    """The engine that ratios are shown against: the first peer that was measured."""
    engines = [row["engine"] for row in report["rows"] if row["engine"] != OURS]
    return engines[0] if engines else "peer"


def _limit_name(report: Mapping[str, Json]) -> str:
    return report["limits"][0]["name"] if report["limits"] else "machine's"


def _engine(row: Mapping[str, Json]) -> str:
    computes = row.get("computes")
    return f"{row['engine']} ({computes})" if computes and computes not in row["engine"] else row["engine"]


def _ratio(row: Mapping[str, Json], peer: str) -> str:
    if row["engine"] == peer:
        return "1"
    ratio = row["ratios"].get(peer)
    return "" if ratio is None else f"{ratio:.2f}"


def _bar(report: Mapping[str, Json], row: Mapping[str, Json]) -> str:
    for bar in report["bars"]:
        if bar["name"] == row["case"] and row["engine"] == OURS:
            higher = bar["better"] == "higher"
            met = bar["value"] >= bar["target"] if higher else bar["value"] <= bar["target"]
            side = "at least" if higher else "at most"
            return f"{side} {_number(bar['target'])}: {'met' if met else 'missed'}"
        if bar["name"] == share_name(row["case"]) and row["engine"] == OURS:
            met = bar["value"] >= bar["target"]
            return f"at least {_percent(bar['target'])} of the limit: {'met' if met else 'missed'}"
    return ""


def _setting(report: Mapping[str, Json]) -> str:
    machine, versions = report["machine"], report["versions"]
    rounds = sorted({row["rounds"] for row in report["rows"]})
    kind = "a quick slice" if report["quick"] else "full run"
    clock = "processor time" if report["clock"] == "cpu" else "elapsed time"
    packages = ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers") if name in versions)
    return (
        f"{report['about'][:1].upper()}{report['about'][1:]}. {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['isa']}, load average {machine['load_average']} before; {packages}; "
        f"commit {report['commit']}, {report['date'][:10]}; {kind}, {clock}, "
        f"{'/'.join(map(str, rounds)) or 'no'} interleaved rounds."
    )


def _limit(item: Mapping[str, Json], metric: str) -> str:
    rate = f"{item['value'] / 1e9:.1f} G{item['unit']}"
    return f"{rate} of {item['name']} ({item['how']}) make {_number(item['rate'])} {metric}"


def _threads(threads: int) -> str:
    return f"{threads} thread{'' if threads == 1 else 's'}"


def _number(value: float) -> str:
    """Three figures, without an exponent for what people read."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 0.001 or value == 0 else f"{value:.1e}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2g} %" if value < 0.1 else f"{100 * value:.0f} %"


def _mega(value: float | None) -> str:
    return "" if value is None else f"{value / _MEGA:,.0f}"


def _loud(row: list[str]) -> list[str]:
    """Our own row in bold, in a table that has others."""
    return [f"**{cell}**" if i == 1 and cell.split(" ")[0] == OURS else cell for i, cell in enumerate(row)]


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
