"""No room imports another room's private files: what a room offers is its public list."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "tensure"
ROOMS = sorted(path.name for path in SOURCE.iterdir() if (path / "__init__.py").exists())


def private_imports(tree: ast.Module, module: str) -> Iterator[tuple[int, str, str]]:
    """Line, room and private file of each import out of another room; `module` is `room.file`, dotted."""
    package = ["tensure", *module.split(".")[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            paths = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            paths = [f"{stem}.{alias.name}" for alias in node.names]
        else:
            continue
        for path in paths:
            parts = path.split(".")
            # `tensure.room._file` and deeper; a private name out of a public module counts as well.
            if len(parts) > 2 and parts[0] == "tensure" and parts[1] in ROOMS and parts[1] != package[1:][0]:
                private = next((part for part in parts[2:] if part.startswith("_")), None)
                if private is not None and not private.startswith("__"):
                    yield node.lineno, parts[1], private


def found_in(room: str) -> dict[tuple[str, str], dict[str, str]]:
    """(room, other room) -> private file -> one place that imports it."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for path in sorted((SOURCE / room).rglob("*.py*")):
        if path.suffix not in (".py", ".pyi"):
            continue
        module = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        for line, other, private in private_imports(ast.parse(path.read_text()), module):
            found.setdefault((room, other), {})[private] = f"{path.relative_to(SOURCE)}:{line}"
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_no_room_imports_anothers_private_files(room: str) -> None:
    for pair, files in found_in(room).items():
        assert not files, f"{room} imports private files of {pair[1]}: {files}"


@pytest.mark.parametrize(
    "line",
    [
        "from tensure.bundle._keys import trust",
        "import tensure.bundle._keys",
        "from tensure.bundle import _keys",
        "from ..bundle._keys import trust",
        "from ..bundle import _keys",
        "def f():\n    from tensure.program._ops._table import room",
        "if TYPE_CHECKING:\n    from tensure.bundle._keys import trust",
    ],
)
def test_every_form_of_import_is_seen(line: str) -> None:
    """Negative control."""
    assert len(list(private_imports(ast.parse(line), "receipts._verify"))) == 1


def test_ones_own_files_and_public_names_are_fine() -> None:
    text = (
        "from ._chain import x\nfrom tensure.receipts._chain import x\nfrom tensure.bundle import trust\n"
        "from tensure.program.from_gguf import read_gguf\nfrom tensure import __version__\nimport os.path"
    )
    assert not list(private_imports(ast.parse(text), "receipts._verify"))
