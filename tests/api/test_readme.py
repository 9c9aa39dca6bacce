"""The README's code runs, as it stands and in its order; what it links to is there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tensure.cli import main

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_ten_lines_run(tmp_path: Path) -> None:
    ten, engine = blocks("python")
    assert len([line for line in ten.splitlines() if line.strip() and not line.startswith("import")]) <= 10
    code = ten + engine
    folders = {name: str(tmp_path / name.lower()) for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")}
    environment = {**os.environ, **folders, "OMP_NUM_THREADS": "1"}
    environment.pop("TENSURE_KEY", None)
    done = subprocess.run(
        [sys.executable, "-c", f"code = {code!r}\nexec(code)\nexec(code)"],  # twice: nothing is in the way
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) > 40
    assert (tmp_path / "sky.receipt.json").is_file()


@pytest.mark.parametrize(
    "line",
    [
        line.split("#")[0]
        for block in blocks("sh")
        for line in block.splitlines()
        if line.startswith("tensure")
    ],
)
def test_the_shell_lines_are_commands(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each verb and option is known: with --help at its end the line exits 0."""
    assert main([*shlex.split(line)[1:], "--help"]) == 0
    shown = capsys.readouterr().out
    for option in re.findall(r"\s(--?[a-z][a-z-]*)", line):
        assert option in shown, option


def test_make_jobs_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for job in re.findall(r"^make ([a-z]+)", "\n".join(blocks("sh")), re.MULTILINE):
        assert re.search(rf"^{job}:", makefile, re.MULTILINE), job


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists() or target == "ARCHITECTURE.md", target


def test_bench_tables_have_their_places() -> None:
    for name in ("decode", "prefill"):
        assert len(re.findall(rf"<!-- bench:{name} -->.*?<!-- /bench -->", README, re.DOTALL)) == 1
