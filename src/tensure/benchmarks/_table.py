"""A report as tables: the same columns for the screen and for documents.

Works on the report's JSON form, so that a table in a document comes from a file in results/ and from
nothing else. A report of many cases says in its settings that it is shown with a column for each engine
(`_columns.py`). What was not measured stands below the table, and losses stay in it.
"""

from __future__ import annotations

from collections.abc import Mapping

from ._columns import columns
from ._format import bar_text, emphasised, mega, number, percent
from ._records import OURS, Json, is_ours, share_name

__all__ = ["markdown", "table"]

_TEXT_COLUMNS = ("case", "engine", "min to max", "bar")


def table(report: Mapping[str, Json]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of text, best first within each case; a column nobody fills is left out."""
    rows = report["rows"]
    peer = _peer(report)
    columns: dict[str, list[str]] = {
        "case": [row["case"] for row in rows],
        "engine": [_engine(row) for row in rows],
        f"{report['metric']}, median": [number(row["value"]) for row in rows],
        "min to max": [f"{number(row['min'])} to {number(row['max'])}" for row in rows],
        f"vs {peer}": [_ratio(row, peer) for row in rows],
        **{f"vs {mode}": [_ratio(row, mode) for row in rows] for mode in _modes(report)},
        f"of the {_limit_name(report)} limit": [percent(row["of_limit"]) for row in rows],
        "weights, MB": [mega(row.get("weight_bytes")) for row in rows],
        "peak memory, MB": [mega(row.get("peak_rss_bytes")) for row in rows],
        "KL divergence": [f"{row['kl']:.2e}" if "kl" in row else "" for row in rows],
        "same best token": [f"{row['top1']:.1%}" if "top1" in row else "" for row in rows],
        "bar": [_bar(report, row) for row in rows],
    }
    kept = {name: cells for name, cells in columns.items() if any(cells)}
    sign = -1 if report["better"] == "higher" else 1
    cases = list(dict.fromkeys(row["case"] for row in rows))
    order = sorted(range(len(rows)), key=lambda i: (cases.index(rows[i]["case"]), sign * rows[i]["value"]))
    return list(kept), [[cells[i] for cells in kept.values()] for i in order]


def markdown(report: Mapping[str, Json]) -> str:
    """The tables with what they rest on: machine, versions, limits, bars over cases, what is missing."""
    metric = report["metric"]
    if "table" in report.get("settings", {}):
        grids = [_grid(headings, rows) for headings, rows in columns(report)]
    else:
        headings, rows = table(report)
        grids = [_grid(headings, [_loud(row) for row in rows])]
    cases = {row["case"] for row in report["rows"]}
    below = [
        _setting(report),
        *(_bar_over_cases(bar) for bar in report["bars"] if bar["name"] not in cases),
        *(f"Limit, {_threads(item['threads'])}: {_limit(item, metric)}." for item in report["limits"]),
        *(f"Not measured: {item['name']} ({item['reason']})." for item in report["not_measured"]),
    ]
    return "\n".join(["\n\n".join(grids), "", "  \n".join(below), ""])


def _peer(report: Mapping[str, Json]) -> str:
    """The engine that ratios are shown against: the first peer that was measured."""
    engines = [row["engine"] for row in report["rows"] if not is_ours(row["engine"])]
    return engines[0] if engines else "peer"


def _modes(report: Mapping[str, Json]) -> list[str]:
    """Our own other modes, which show what the first costs."""
    engines = dict.fromkeys(row["engine"] for row in report["rows"])
    return [name for name in engines if is_ours(name) and name != OURS]


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
            return bar_text(bar)
        if bar["name"] == share_name(row["case"]) and row["engine"] == OURS:
            met = bar["value"] >= bar["target"]
            return f"at least {percent(bar['target'])} of the limit: {'met' if met else 'missed'}"
    return ""


def _bar_over_cases(bar: Mapping[str, Json]) -> str:
    return (
        f"{bar['name'][:1].upper()}{bar['name'][1:]}: {number(bar['value'])} {bar['unit']}, {bar_text(bar)}."
    )


def _setting(report: Mapping[str, Json]) -> str:
    machine, versions = report["machine"], report["versions"]
    rounds = sorted({row["rounds"] for row in report["rows"]})
    kind = "a quick slice" if report["quick"] else "full run"
    clock = "processor time" if report["clock"] == "cpu" else "elapsed time"
    packages = ", ".join(_peer_versions(report)) or ", ".join(
        f"{name} {versions[name]}" for name in ("torch", "transformers") if name in versions
    )
    return (
        f"{report['about'][:1].upper()}{report['about'][1:]}. {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['isa']}, load average {machine['load_average']} before; {packages}; "
        f"commit {report['commit']}, {report['date'][:10]}; {kind}, {clock}, "
        f"{'/'.join(map(str, rounds)) or 'no'} interleaved rounds."
    )


def _peer_versions(report: Mapping[str, Json]) -> list[str]:
    """Of the engines that say theirs, where there is a column for each."""
    if "table" not in report.get("settings", {}):
        return []
    found = (row["version"] for row in report["rows"] if row["engine"] != OURS and "version" in row)
    return [name for name in dict.fromkeys(found) if not name.startswith(OURS)]


def _limit(item: Mapping[str, Json], metric: str) -> str:
    rate = f"{item['value'] / 1e9:.1f} G{item['unit']}"
    made = "" if metric == f"G{item['unit']}" else f" make {number(item['rate'])} {metric}"
    return f"{rate} of {item['name']} ({item['how']}){made}"


def _threads(threads: int) -> str:
    return f"{threads} thread{'' if threads == 1 else 's'}"


def _grid(headings: list[str], rows: list[list[str]]) -> str:
    rule = [":--" if i == 0 or name in _TEXT_COLUMNS else "--:" for i, name in enumerate(headings)]
    return "\n".join([_line(headings), _line(rule), *map(_line, rows)])


def _loud(row: list[str]) -> list[str]:
    """Our own row in bold, in a table that has others."""
    return [emphasised(cell) if i == 1 and cell.split(" ")[0] == OURS else cell for i, cell in enumerate(row)]


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
