"""The rules of tests/conftest.py, each seen to fail: skips in CI, left-over processes, network, seed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
SKIPS = """
import pytest
def test_works(): pass
def test_skips(): pytest.skip("no such machine")
@pytest.mark.xfail(reason="known")
def test_known(): assert False
"""


def run(
    folder: Path, text: str, *arguments: str, ci: bool = True, allowed: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run one test file in a folder that holds our conftest and a list of allowed skips."""
    shutil.copy(TESTS / "conftest.py", folder)
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "allowed-skips.txt").write_text(allowed)
    (folder / "test_it.py").write_text(text)
    environment = {**os.environ, "CI": "true" if ci else "", "PYTEST_ADDOPTS": ""}
    environment = {
        key: value for key, value in environment.items() if not key.startswith("PYTEST_XDIST") and value
    }
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_unlisted_skip_fails_in_ci(tmp_path: Path, workers: str) -> None:
    done = run(tmp_path, SKIPS, "-n", workers)
    assert done.returncode == 1, done.stdout
    assert (
        "test_it.py::test_skips: skipped (Skipped: no such machine) and not in allowed-skips.txt"
        in done.stdout
    )
    assert "test_known" not in done.stdout


@pytest.mark.parametrize("workers", ["0", "2"])
def test_skip_of_a_whole_file_fails_in_ci(tmp_path: Path, workers: str) -> None:
    (tmp_path / "test_other.py").write_text("def test_b(): pass")
    done = run(
        tmp_path, "import pytest\npytest.importorskip('no_such_module')\ndef test_a(): pass", "-n", workers
    )
    assert done.returncode == 1, done.stdout
    assert "test_it.py: skipped" in done.stdout


def test_listed_skip_passes(tmp_path: Path) -> None:
    done = run(tmp_path, SKIPS, allowed="# why\ntest_it.py::test_sk* | needs a machine CI lacks\n")
    assert done.returncode == 0, done.stdout


def test_listed_skip_needs_a_reason(tmp_path: Path) -> None:
    assert run(tmp_path, SKIPS, allowed="test_it.py::test_skips\n").returncode != 0


def test_skip_outside_ci_passes(tmp_path: Path) -> None:
    assert run(tmp_path, SKIPS, ci=False).returncode == 0


@pytest.mark.parametrize("workers", ["0", "2"])
def test_process_left_behind_fails(tmp_path: Path, workers: str) -> None:
    text = "import subprocess\ndef test_a(): subprocess.Popen(['sleep', '20'])"
    done = run(tmp_path, text, "-n", workers)
    assert done.returncode == 1, done.stdout
    assert "left a process behind" in done.stdout


def test_network_is_refused_and_loopback_is_not(tmp_path: Path) -> None:
    text = (
        "import socket\n"
        "def test_out(): socket.create_connection(('192.0.2.1', 80), timeout=5)\n"
        "def test_in():\n"
        "    with socket.create_server(('127.0.0.1', 0)) as s:\n"
        "        socket.create_connection(s.getsockname()).close()\n"
    )
    done = run(tmp_path, text)
    assert "1 failed, 1 passed" in done.stdout
    assert "tests never use the network" in done.stdout


def test_seed_is_printed_and_fixed(tmp_path: Path) -> None:
    text = (
        "from hypothesis import given, strategies as s\n@given(s.integers())\ndef test_a(n): print('drew', n)"
    )
    first, second = run(tmp_path, text, "-s"), run(tmp_path, text, "-s")
    other = run(tmp_path, text, "-s", "--hypothesis-seed=7")
    assert "--hypothesis-seed=0" in first.stdout
    assert "--hypothesis-seed=7" in other.stdout

    def drawn(done: subprocess.CompletedProcess[str]) -> list[str]:
        return [line for line in done.stdout.splitlines() if "drew" in line]

    assert drawn(first) == drawn(second) != drawn(other)
