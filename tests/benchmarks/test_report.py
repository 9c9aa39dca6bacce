"""The report's JSON, its exit code, its file, its table; and the tables in documents."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from tests.benchmarks.fakes import FULL, QUICK
from tools import bench_tables

from tensure.benchmarks import Bar, NotMeasured, Report, bar_chart, markdown, table
from tensure.benchmarks._machine import commit, describe_machine, hardware_slug, versions
from tensure.benchmarks._records import Limit, Row, is_ours
from tensure.benchmarks._statistics import spread

MACHINE = {"hardware": "fast-2c", "cpu": "Fast", "cores": 2, "isa": "v3", "load_average": 0.1}


def row(engine: str, *values: float, ratios: dict[str, float]) -> Row:
    facts = {"weight_bytes": 98_000_000, "peak_rss_bytes": 400_000_000}
    return Row("1 thread", engine, 1, "tok/s", spread(values), 0.5, ratios, 0.25, facts)


def report(bench: str = "decode", **changes: Any) -> Report:
    made = Report(
        bench=bench,
        metric="tok/s",
        better="higher",
        about="a model, greedy",
        date="2026-01-02T03:04:05Z",
        scope=FULL,
        settings={"reference": "peer"},
        machine=MACHINE,
        versions={"torch": "2.13.0"},
        commit="abc",
        rows=[
            row("tensure", 10.0, 12.0, 11.0, ratios={"peer": 0.5}),
            row("peer", 20.0, 22.0, 24.0, ratios={"tensure": 2.0}),
        ],
        limits=[Limit("memory bandwidth", 1, 39e9, "B/s", 44.0, "a sum")],
        bars=[],
        not_measured=[NotMeasured("llama.cpp", "not installed")],
    )
    return replace(made, **changes)


def test_json_has_what_readers_rely_on() -> None:
    found = json.loads(json.dumps(report(bars=[Bar("x", 1.0, "ms", 2.0, "lower")]).to_json()))
    assert found["format"] == "tensure/bench/1" and found["clock"] == "wall" and found["quick"] is False
    assert {"machine", "versions", "commit", "rows", "bars", "not_measured", "limits"} <= set(found)
    assert found["bars"] == [{"name": "x", "value": 1.0, "unit": "ms", "target": 2.0, "better": "lower"}]
    assert found["not_measured"] == [{"name": "llama.cpp", "reason": "not installed"}]
    first = found["rows"][0]
    assert first["value"] == 11.0 and (first["min"], first["max"], first["rounds"]) == (10.0, 12.0, 3)
    assert (first["q1"], first["q3"]) == (10.5, 11.5)
    assert first["ratios"] == {"peer": 0.5} and first["weight_bytes"] == 98_000_000


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({}, 0),  # what is not measured is neither a pass nor a failure
        ({"bars": [Bar("x", 2.0, "ms", 2.0, "lower")]}, 0),
        ({"bars": [Bar("x", 2.1, "ms", 2.0, "lower")]}, 1),
        ({"bars": [Bar("x", 1.4, "x", 1.5, "higher")]}, 1),
        ({"bars": [Bar("x", float("nan"), "x", 1.5, "higher")]}, 1),
        ({"not_measured": [NotMeasured("tensure", "differs", wrong=True)]}, 1),
    ],
)
def test_exit_code(changes: dict[str, Any], code: int) -> None:
    assert report(**changes).exit_code == code


def test_file_name_and_save(tmp_path: Path) -> None:
    path = report().save(tmp_path / "results")
    assert path.name == "decode_fast-2c_2026-01-02.json"
    assert json.loads(path.read_text()) == report().to_json()
    assert report(scope=QUICK).file_name == "decode-quick_fast-2c_2026-01-02.json"


def test_table_shows_losses_and_gaps() -> None:
    headings, rows = table(report().to_json())
    assert "vs peer" in headings and "bar" not in headings
    assert [cells[1] for cells in rows] == ["peer", "tensure"]  # best first
    text = markdown(report().to_json())
    assert "| 1 thread | **tensure** | 11 | 10 to 12 | 0.50 | 25 % | 98 | 400 |" in text
    assert "Not measured: llama.cpp (not installed)." in text
    assert "39.0 GB/s of memory bandwidth (a sum) make 44 tok/s" in text


def test_our_other_mode_has_its_column_and_is_no_peer() -> None:
    rows = [
        row("tensure", 10.0, ratios={"tensure fast": 0.8, "peer": 0.5}),
        row("tensure fast", 12.5, ratios={"tensure": 1.25, "peer": 0.625}),
        row("peer", 20.0, ratios={"tensure": 2.0, "tensure fast": 1.6}),
    ]
    headings, cells = table(report(rows=rows).to_json())
    assert headings[4:6] == ["vs peer", "vs tensure fast"]
    assert [line[4:6] for line in cells] == [["1", "1.60"], ["0.62", "1"], ["0.50", "0.80"]]
    assert is_ours("tensure fast") and is_ours("tensure") and not is_ours("tensured")


def test_table_shows_bars() -> None:
    for value, word in ((11.0, "missed"), (12.0, "met")):
        bars = [Bar("1 thread", value, "tok/s", 12.0, "higher")]
        assert f"| at least 12: {word} |" in markdown(report(bars=bars).to_json())


def conv_report(table: str = "matrix", **changes: Any) -> Report:
    """Two cases, three engines; ours loses the second case and lacks one figure there."""

    def made(case: str, engine: str, value: float, ratios: dict[str, float], **facts: Any) -> Row:
        return Row(case, engine, 1, "GFLOP/s", spread([value]), 0.5, ratios, value / 110, facts)

    sizes = {"tensor_bytes": 2_000_000, "im2win_bytes": 1_000_000, "im2col_bytes": 4_000_000}
    rows = [
        made("conv1, N=1", "tensure", 100.0, {"peer": 1.25, "full im2win NHWC": 2.0}, max_error=3e-7),
        made("conv1, N=1", "peer", 80.0, {"tensure": 0.8}, version="peer 1.0"),
        made("conv1, N=1", "full im2win NHWC", 50.0, {"full im2win NCHW": 3.5}, workspace_bytes=1_100_000,
             growth_bytes=1_200_000, **sizes),
        made("conv2, N=1", "tensure", 60.0, {"peer": 0.75}),
        made("conv2, N=1", "peer", 80.0, {"tensure": 1.33}, version="peer 1.0"),
    ]  # fmt: skip
    fields: dict[str, Any] = {
        "metric": "GFLOP/s",
        "rows": rows,
        "settings": {"table": table},
        "limits": [Limit("f32 arithmetic", 1, 110e9, "FLOP/s", 110.0, "a loop")],
        "bars": [
            Bar("conv1, N=1", 0.909, "of the limit", 0.92, "higher"),
            Bar("geometric mean", 0.97, "x", 1.05, "higher"),
        ],
    }
    return report("conv", **{**fields, **changes})


def test_matrix_has_a_column_for_each_engine() -> None:
    text = markdown(conv_report().to_json())
    lines = text.splitlines()
    assert lines[0] == (
        "| GFLOP/s, median | tensure | peer | full im2win NHWC | of the limit | vs best peer | error | bar |"
    )
    assert lines[2] == "| conv1, N=1 | **100** | 80 | 50 | 91 % | 1.25 | 3e-07 | at least 92 %: missed |"
    assert lines[3] == "| conv2, N=1 | 60 | **80** |  | 55 % | 0.75 |  |  |"
    assert "Geometric mean: 0.97 x, at least 1.05: missed." in text
    assert "Limit, 1 thread: 110.0 GFLOP/s of f32 arithmetic (a loop)." in text
    assert "; peer 1.0; commit abc" in text


def test_paper_tables_have_ratios_of_layouts_and_memory() -> None:
    text = markdown(conv_report("paper").to_json())
    assert "| NHWC over NCHW | direct | im2win | full im2win |" in text
    assert "| conv1, N=1 |  |  | 3.50 |" in text
    assert "| conv1, N=1 | 2.00 | 1.00 | 1.10 | 1.20 | 4.00 | 0.25 | 0.50 |  |  |" in text
    assert "vs best peer" not in text


def test_ablation_is_over_the_same_algorithm_with_everything_on() -> None:
    def made(engine: str, value: float, **ratios: float) -> Row:
        return Row("conv9, N=1", engine, 1, "GFLOP/s", spread([value]), 0.5, ratios, None, {})

    rows = [
        made("tensure", 100.0),
        made("direct without hoist", 50.0, tensure=0.5),
        made("im2win", 80.0, tensure=0.8),
        made("im2win without hoist", 60.0, tensure=0.6, im2win=0.75),
    ]
    text = markdown(conv_report("ablation", rows=rows).to_json())
    assert "| conv9, N=1 | **100** | 50 | 80 | 60 |" in text
    assert "| left of the whole | direct without hoist | im2win without hoist |" in text
    assert "| conv9, N=1 | 0.50 | 0.75 |" in text and "NHWC over NCHW" not in text


def test_picture_has_a_bar_for_each_figure_and_the_limit() -> None:
    made = conv_report().to_json()
    picture = ElementTree.fromstring(bar_chart(made))
    tips = [title.text for title in picture.iterfind(".//{*}rect/{*}title")]
    assert len(tips) == 5 and "conv2, N=1, tensure: 60.0" in tips
    heights = {
        tip: float(rect.attrib["height"])
        for rect in picture.iterfind(".//{*}rect")
        if (tip := rect.findtext("{*}title"))
    }
    high, low = heights["conv1, N=1, tensure: 100.0"], heights["conv1, N=1, full im2win NHWC: 50.0"]
    assert high == pytest.approx(2 * low, abs=0.2)
    assert len([path for path in picture.iterfind(".//{*}path") if "stroke-dasharray" in path.attrib]) == 1
    assert bar_chart(made) == bar_chart(made)
    odd = conv_report(about='<script>"&').to_json()
    assert ElementTree.fromstring(bar_chart(odd)).findtext("{*}title") == '<script>"&: GFLOP/s'


def test_machine() -> None:
    found = describe_machine()
    assert found["cores"] >= 1 and found["memory_bytes"] > 1e8 and found["hardware"].endswith("c")
    assert versions()["torch"] != "not installed"
    assert hardware_slug("AMD EPYC 9575F 64-Core Processor", 2) == "amd-epyc-9575f-2c"
    assert hardware_slug("Intel(R) Xeon(R) CPU E5-2680 v4 @ 2.40GHz", 4) == "intel-xeon-e5-2680-v4-4c"
    assert hardware_slug("AMD EPYC", 2, "26", "2") == "amd-epyc-f26m2-2c"
    assert hardware_slug("AMD EPYC Processor", 2, "25", "17") == "amd-epyc-f25m17-2c"
    assert hardware_slug("AMD EPYC 9575F 64-Core Processor", 2, "26", "2") == "amd-epyc-9575f-2c"
    assert hardware_slug("aarch64", 4, None, None) == "aarch64-4c"


def test_commit(tmp_path: Path) -> None:
    assert commit(tmp_path) is None
    (tmp_path / ".git").mkdir()  # not a repository: git says no
    assert commit(tmp_path) is None


# --- tools/bench_tables.py ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Done:
    """What a command line would leave."""

    returncode: int
    stderr: str


Tool = Callable[..., Done]


@pytest.fixture
def tool(capsys: pytest.CaptureFixture[str]) -> Tool:
    def run(root: Path, *words: str) -> Done:
        code = bench_tables.main(["--root", str(root), *words])
        return Done(code, capsys.readouterr().err)

    return run


def test_documents_are_filled_and_checked(tmp_path: Path, tool: Tool) -> None:
    report(date="2025-01-01T00:00:00Z", about="an older run").save(tmp_path / "results")
    report(date="2026-05-05T00:00:00Z", about="a slice", scope=QUICK).save(tmp_path / "results")
    report().save(tmp_path / "results")
    readme = tmp_path / "README.md"
    readme.write_text("# T\n<!-- bench:decode -->\nold\n<!-- /bench -->\nafter\n")
    stale = tool(tmp_path, "--check")
    assert stale.returncode == 1 and "README.md: the tables are not those of results/" in stale.stderr
    assert tool(tmp_path).returncode == 0
    text = readme.read_text()
    assert text.startswith("# T\n<!-- bench:decode -->\n| case |") and text.endswith(
        "<!-- /bench -->\nafter\n"
    )
    assert "old" not in text and "an older run" not in text and "A slice" not in text
    assert tool(tmp_path, "--check").returncode == 0
    readme.write_text(text.replace("| 11 |", "| 99 |"))  # a figure prettied up by hand
    assert tool(tmp_path, "--check").returncode == 1


def machine(hardware: str, family_model: str) -> dict[str, object]:
    return {**MACHINE, "hardware": hardware, "cpu_family_model": family_model}


def test_a_name_without_digits_is_told_apart_by_family_and_model(tmp_path: Path, tool: Tool) -> None:
    """Of an older result the family stands in the machine's description; a newer one of it replaces it."""
    results = tmp_path / "results"
    report(machine=machine("amd-epyc-2c", "25/1"), about="zen 3, older").save(results)
    report(machine=machine("amd-epyc-2c", "26/2"), about="zen 5", date="2026-01-03T00:00:00Z").save(results)
    newer = machine("amd-epyc-f25m1-2c", "25/1")
    report(machine=newer, about="zen 3, newer", date="2026-01-04T00:00:00Z").save(results)
    page = tmp_path / "README.md"
    page.write_text("<!-- bench:decode -->\n<!-- /bench -->\n")
    assert tool(tmp_path).returncode == 0
    text = page.read_text()
    assert "Zen 5" in text and "Zen 3, newer" in text and "older" not in text


def test_two_machines_never_share_a_picture(tmp_path: Path, tool: Tool) -> None:
    results = tmp_path / "results"
    conv_report(machine=machine("amd-epyc-2c", "25/1")).save(results)
    conv_report(machine=machine("amd-epyc-2c", "26/2"), date="2026-01-03T00:00:00Z").save(results)
    (tmp_path / "README.md").write_text("<!-- bench:conv -->\n<!-- /bench -->\n")
    done = tool(tmp_path)
    assert done.returncode == 1 and "conv_amd-epyc-2c.svg is of two machines" in done.stderr


def test_pictures_are_drawn_shown_and_checked(tmp_path: Path, tool: Tool) -> None:
    conv_report().save(tmp_path / "results")
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "benchmarks.md"
    page.write_text("<!-- bench:conv -->\n<!-- /bench -->\n")
    missing = tool(tmp_path, "--check")
    assert (
        missing.returncode == 1 and "docs/plots/conv_fast-2c.svg is not what results/ says" in missing.stderr
    )
    assert tool(tmp_path).returncode == 0
    assert "![a model, greedy](plots/conv_fast-2c.svg)" in page.read_text()
    assert tool(tmp_path, "--check").returncode == 0
    picture = tmp_path / "docs" / "plots" / "conv_fast-2c.svg"
    picture.write_text(picture.read_text().replace('height="', 'height="1', 1))  # a bar prettied up by hand
    assert tool(tmp_path, "--check").returncode == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no marks\n", "add these two lines:\n<!-- bench:decode -->\n<!-- /bench -->"),
        ("<!-- bench:decode -->\n", "after <!-- bench:decode --> add a line <!-- /bench -->"),
        (
            "<!-- bench:decode -->\n<!-- bench:decode -->\n<!-- /bench -->\n",
            "after <!-- bench:decode --> add a line",
        ),
        (
            "<!-- bench:decode -->\n<!-- /bench -->\n<!-- bench:conv-avx2 -->\n<!-- /bench -->",
            "no full result of 'conv-avx2'",
        ),
    ],
)
def test_marks_that_are_missing_or_broken(tmp_path: Path, tool: Tool, text: str, message: str) -> None:
    report().save(tmp_path / "results")
    (tmp_path / "README.md").write_text(text)
    done = tool(tmp_path)
    assert done.returncode == 1 and message in done.stderr
    assert (tmp_path / "README.md").read_text() == text


def test_file_that_is_no_result_is_named(tmp_path: Path, tool: Tool) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "x.json").write_text("{}")
    done = tool(tmp_path)
    assert done.returncode == 1 and "x.json is not a benchmark result" in done.stderr
