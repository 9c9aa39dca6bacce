"""Write the measured tables and pictures of the documents from results/, or check that they are up to date.

    python tools/bench_tables.py [--check]

A table stands between `<!-- bench:NAME -->` and `<!-- /bench -->` in README.md or docs/benchmarks.md; a
result that is shown with a column for each engine has a picture in docs/plots too. Of each benchmark and
hardware the newest full run counts; a quick slice or processor time never enters a document. Nothing is left
out, also where we lose. Exit code 1 when a document is stale (--check), a mark is broken, or
a result has no mark anywhere; the message says what to add.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tensure.benchmarks import bar_chart, markdown

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ("README.md", "docs/benchmarks.md")
PLOTS = "docs/plots"
FORMAT = "tensure/bench/1"
OPEN = re.compile(r"<!-- bench:([a-z0-9-]+) -->")
CLOSE = "<!-- /bench -->"

Report = Mapping[str, Any]


class Problem(Exception):
    """Something a person must change; the text says what."""


def newest(folder: Path) -> dict[str, list[Report]]:
    """The newest full report of each benchmark and hardware, by benchmark."""
    found: dict[tuple[str, str], Report] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise Problem(f"{path.name} is not JSON: {error}") from None
        if not isinstance(report, dict) or report.get("format") != FORMAT:
            raise Problem(f"{path.name} is not a benchmark result ({FORMAT})")
        if report["quick"] or report["clock"] != "wall":
            continue
        key = (report["bench"], hardware_of(report))
        if key not in found or found[key]["date"] <= report["date"]:
            found[key] = report
    grouped: dict[str, list[Report]] = {}
    for (bench, _), report in sorted(found.items()):
        grouped.setdefault(bench, []).append(report)
    return grouped


def hardware_of(report: Report) -> str:
    """What tells machines apart: the slug, and family and model where an older slug lacks them."""
    machine = report["machine"]
    words = machine["hardware"].split("-")
    family, _, model = machine.get("cpu_family_model", "").partition("/")
    if any(char.isdigit() for word in words[:-1] for char in word) or not (family.isdigit() and model):
        return str(machine["hardware"])
    return "-".join([*words[:-1], f"f{family}m{model}", words[-1]])


def filled(text: str, reports: Mapping[str, Sequence[Report]], document: str) -> str:
    """The document with every marked place filled."""
    parts: list[str] = []
    at = 0
    while (mark := OPEN.search(text, at)) is not None:
        name = mark[1]
        end = text.find(CLOSE, mark.end())
        following = OPEN.search(text, mark.end())
        if end < 0 or (following is not None and following.start() < end):
            raise Problem(f"{document}: after <!-- bench:{name} --> add a line {CLOSE}")
        if name not in reports:
            raise Problem(
                f"{document}: no full result of {name!r}; run `tensure bench {name} --save results`"
            )
        tables = "\n".join(markdown(report) + picture_line(report, document) for report in reports[name])
        parts += [text[at : mark.end()], "\n", tables]
        at = end
    return "".join([*parts, text[at:]])


def plot_name(report: Report) -> str | None:
    """The file of a report's picture; None for a report that has none."""
    if report.get("settings", {}).get("table") != "matrix":
        return None
    return f"{PLOTS}/{report['bench']}_{report['machine']['hardware']}.svg"


def picture_line(report: Report, document: str) -> str:
    """The line that shows the picture in this document, or nothing."""
    name = plot_name(report)
    if name is None:
        return ""
    return f"\n![{report['about']}]({os.path.relpath(name, Path(document).parent)})\n"


def draw(root: Path, reports: Mapping[str, Sequence[Report]], check: bool) -> list[str]:
    """Write the pictures; with check, name those that are not what results/ says."""
    problems: list[str] = []
    drawn: set[str] = set()
    for report in (report for group in reports.values() for report in group):
        name = plot_name(report)
        if name is None:
            continue
        if name in drawn:
            problems.append(f"{name} is of two machines; put family and model into a result's hardware")
            continue
        drawn.add(name)
        path, picture = root / name, bar_chart(report)
        if path.is_file() and path.read_text(encoding="utf-8") == picture:
            continue
        if check:
            problems.append(f"{name} is not what results/ says; run python tools/bench_tables.py")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(picture, encoding="utf-8")
    return problems


def run(root: Path, check: bool) -> list[str]:
    """What is wrong, after writing what can be written."""
    reports = newest(root / "results")
    problems = draw(root, reports, check)
    marked: set[str] = set()
    for name in DOCUMENTS:
        path = root / name
        if not path.is_file():
            continue
        text = path.read_text(encoding="utf-8")
        marked |= set(OPEN.findall(text))
        try:
            new = filled(text, reports, name)
        except Problem as problem:
            problems.append(str(problem))
            continue
        if new != text and check:
            problems.append(f"{name}: the tables are not those of results/; run python tools/bench_tables.py")
        elif new != text:
            path.write_text(new, encoding="utf-8")
    for bench in sorted(set(reports) - marked):
        problems.append(f"no document shows {bench!r}; add these two lines:\n<!-- bench:{bench} -->\n{CLOSE}")
    return problems


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 when every table is what results/ says, 1 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a document is stale")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout")
    asked = parser.parse_args(argv)
    try:
        problems = run(asked.root, asked.check)
    except Problem as problem:
        problems = [str(problem)]
    for line in problems:
        print(line, file=sys.stderr)
    print("bench tables: up to date" if not problems else f"bench tables: {len(problems)} to change")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
