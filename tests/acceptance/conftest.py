"""A machine of one's own for the acceptance tests: XDG folders, a key, sealed bundles, and the command line.

Black box: the public Python API and `tensure.cli.main` are all that is known of the project.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.acceptance.engine_models import Sealed, key_of, seal_model

import tensure

TENSURE = Path(sys.executable).with_name("tensure")
PROMPT = "Name three colours."
CONTEXT = 64


@dataclass(frozen=True)
class Said:
    """What one command answered."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON object on stdout; anything beside it fails."""
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found


@dataclass(frozen=True)
class Tiny:
    """A sealed two-layer module with an input and what torch says about it."""

    model: Any
    bundle: Path
    x: np.ndarray
    wanted: np.ndarray


@pytest.fixture(autouse=True, scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home whose keys and caches are this module's alone."""
    home = tmp_path_factory.mktemp("machine")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("CONFIG", "CACHE", "DATA", "STATE"):
            patch.setenv(f"XDG_{name}_HOME", str(home / name.lower()))
        for name in ("TENSURE_KEY", "NO_COLOR", "FORCE_COLOR"):
            patch.delenv(name, raising=False)
        patch.setenv("OMP_NUM_THREADS", "1")  # two busy cores: threads that wait for each other cost minutes
        yield home


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Run a command inside this process, where torch may be loaded already."""
    from tensure.cli import main

    def run(*words: object) -> Said:
        capfd.readouterr()
        code = main([str(word) for word in words])
        out, err = capfd.readouterr()
        return Said(code, out, err)

    return run


def shell(*words: object, **options: Any) -> Said:
    """Run a command as a user does, in a process of its own."""
    done = subprocess.run(
        [str(TENSURE), *map(str, words)], capture_output=True, text=True, timeout=120, **options
    )
    return Said(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def in_shell() -> Callable[..., Said]:
    return shell


def tiny_module(seed: int) -> Any:
    import torch

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = torch.nn.Linear(4, 8)
            self.b = torch.nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(torch.relu(self.a(x)))

    torch.manual_seed(seed)
    return Net()


def seal_tiny(folder: Path, seed: int) -> Tiny:
    import torch

    from tensure.program.from_torch import from_torch

    module = tiny_module(seed)
    x = np.arange(8, dtype=np.float32).reshape(2, 4) / 7
    model = from_torch(module, (torch.from_numpy(x),), name="tiny")
    bundle = tensure.seal(model, folder / "tiny.bundle")
    with torch.no_grad():
        return Tiny(model, bundle, x, module(torch.from_numpy(x)).numpy())


@pytest.fixture(scope="module")
def tiny(machine: Path, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Sealed once; tests copy the bundle before they damage it."""
    return seal_tiny(tmp_path_factory.mktemp("tiny"), 0)


@pytest.fixture(scope="module")
def other_tiny(machine: Path, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """The same program with other weights."""
    return seal_tiny(tmp_path_factory.mktemp("other"), 1)


@pytest.fixture(scope="module")
def tiny_run(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    """A receipt file with the nonce `n-1`, and the outputs it is for."""
    with tensure.open(tiny.bundle) as session:
        outputs, receipt = session.run({"x": tiny.x}, nonce="n-1")
    return receipt.save(tmp_path_factory.mktemp("run") / "a.receipt.json"), outputs


@pytest.fixture(scope="module")
def smol_bundle(machine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 under its known name, sealed once."""
    model = tensure.load("smollm2-135m", context=CONTEXT)
    return tensure.seal(model, tmp_path_factory.mktemp("smol") / "smol.bundle")


@pytest.fixture(scope="module")
def smol(smol_bundle: Path) -> Iterator[Any]:
    """An open session over SmolLM2."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with tensure.open(smol_bundle) as session:
        yield session
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def smol_answer(smol: Any) -> Any:
    """A greedy answer of eight tokens."""
    answer = smol.generate(PROMPT, max_tokens=8)
    assert answer.text
    return answer


@pytest.fixture
def other_machine(tmp_path: Path) -> Callable[[], None]:
    """Call it to stand on another machine, without keys, until the test ends."""
    patch = pytest.MonkeyPatch()

    def move() -> None:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path / "elsewhere"))

    yield move
    patch.undo()


def tree(folder: Path) -> dict[str, bytes]:
    """Every entry under a folder: contents of files, empty bytes for folders."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture(scope="module")
def entries() -> Callable[[Path], dict[str, bytes]]:
    return tree


@pytest.fixture(scope="module")
def public_key() -> Callable[[], Path]:
    """The public half of the key of the machine one stands on."""
    return lambda: Path(os.environ["XDG_CONFIG_HOME"]) / "tensure" / "keys" / "signing-key.pub.pem"


# --- the engine ----------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def engine_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the engine's models lie, sealed by a key of their own."""
    return tmp_path_factory.mktemp("engine")


@pytest.fixture(scope="session")
def decoder(engine_home: Path) -> Callable[[str], Sealed]:
    """Random decoders by name, `family-encoding`, each made once."""
    return cache(lambda name: seal_model(engine_home, name))


@pytest.fixture(scope="session")
def smol_engine_bundle(engine_home: Path) -> Sealed:
    """SmolLM2 with all of its default context; its reference is the loaded Model."""
    model = tensure.load("smollm2-135m")
    with key_of(engine_home) as key:
        return Sealed(tensure.seal(model, engine_home / "smol.bundle"), key, model)
