"""One small bundle of each kind, sealed once, under a key of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import tensure

from .small_models import classifier, write_small_gguf


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home of the tests' own: keys, cache."""
    folder = tmp_path_factory.mktemp("home")
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder))
        patch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.delenv("TENSURE_KEY", raising=False)
        torch.set_num_threads(1)  # two workers on two cores: more would only wait for each other
        yield folder
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def gguf_file(home: Path) -> Path:
    return write_small_gguf(home / "small.gguf")


@pytest.fixture(scope="session")
def text_bundle(home: Path, gguf_file: Path) -> Path:
    return tensure.seal(tensure.load(gguf_file), home / "text.bundle")


@pytest.fixture(scope="session")
def image_bundle(home: Path) -> Path:
    return tensure.seal(classifier(), home / "image.bundle")
