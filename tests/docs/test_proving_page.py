"""docs/proving.md prints what it says it prints."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_example_prints_what_the_page_says() -> None:
    found = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "run_page.py"), "--check", str(ROOT / "docs" / "proving.md")],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
