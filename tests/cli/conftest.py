"""A folder with one thing of each kind, and the command line as a person calls it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tensure
from tensure.cli import main
from tensure.inspection import save_recording

from ..runtime.small_models import classifier, write_small_gguf


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one object on stdout."""
        return json.loads(self.out)


Call = Callable[..., Done]

OPEN_ONNX = (
    b'\x08\x08:M\n\x0e\n\x01x\n\x01x\x12\x01y"\x03Mul\x12\x01gZ\x1b\n\x01x\x12\x16\n\x14\x08\x01\x12\x10\n\x07\x12\x05batch'
    b"\n\x05\x12\x03seqb\x1b\n\x01y\x12\x16\n\x14\x08\x01\x12\x10\n\x07\x12\x05batch\n\x05\x12\x03seqB\x04\n\x00\x10\x11"
)
"""An ONNX file as bytes: y = x * x, both f32[batch, seq]."""


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Small bundles, files and a receipt, made once; tests must not change them."""
    base = tmp_path_factory.mktemp("cli")
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
            patch.setenv(name, str(base / name.lower()))
        patch.delenv("TENSURE_KEY", raising=False)
        patch.setenv("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)
        tensure.seal(classifier(), base / "image.bundle")
        tensure.seal(tensure.load(write_small_gguf(base / "model.gguf")), base / "text.bundle")
        np.save(base / "x.npy", np.ones((1, 3, 8, 8), np.float32))
        (base / "model.onnx").write_bytes(OPEN_ONNX)
        np.save(base / "ids.npy", np.ones((1, 128), np.float32))
        Image.fromarray(np.full((9, 12, 3), 90, np.uint8)).save(base / "photo.png")
        (base / "fleet.toml").write_text("[device.pi]\nflops = { f32 = 1e9 }\nmemory = 1000000000\n")
        with tensure.open(base / "image.bundle") as session:
            outputs, receipt = session.run(np.ones((1, 3, 8, 8), np.float32), nonce="2f9c")
        np.savez(base / "out.npz", out=outputs["out"])
        receipt.save(base / "out.receipt.json")
        prompt = "Why is the sky blue?"
        run = tensure.inspect(base / "model.gguf", prompt, keep=True, digest=True)
        save_recording(run, base / "old.trace")
        yield base
    torch.set_num_threads(threads)


@pytest.fixture
def here(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the test's own to write in, with links to everything in `folder`."""
    for entry in folder.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def call(here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """Run one command in this process, with a text on its stdin."""

    def run(*words: str, stdin: str = "") -> Done:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        code = main(words)
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return run


@pytest.fixture
def shell(here: Path) -> Call:
    """Run one command in a process of its own."""

    def run(*words: str, env: dict[str, str] | None = None) -> Done:
        done = subprocess.run(
            [sys.executable, "-m", "tensure.cli", *words],
            capture_output=True,
            text=True,
            cwd=here,
            env={**os.environ, **(env or {})},
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    return run
