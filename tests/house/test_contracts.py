"""Who may import whom: the contracts in pyproject.toml are complete, bite, and hold out of its sight."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "tensure"
PYPROJECT = (ROOT / "pyproject.toml").read_text()
CONTRACTS = {c["id"]: c for c in tomllib.loads(PYPROJECT)["tool"]["importlinter"]["contracts"]}

TRUSTED = ("program", "bundle", "proving", "receipts", "views")
LANDED = tuple(room for room in TRUSTED if (SOURCE / room / "__init__.py").exists())
FORBIDDEN = ("torch", "tensure.kernels")
ORDER = [
    {"cli"},
    {"benchmarks"},
    {"api"},
    {"service", "inspection"},
    {"runtime"},
    {"capture", "quantization", "planning", "proving", "protection", "receipts", "firmware", "text", "views"},
    {"host", "bundle"},
    {"program", "kernels"},
    {"errors"},
]


def is_adapter(path: Path) -> bool:
    """Whether a file belongs to an adapter, which may meet a framework; the converter is a process."""
    return any(part.startswith(("from_", "_converter_")) for part in path.relative_to(SOURCE).parts)


def trusted_files() -> list[Path]:
    """The source files of every trusted room that exists, adapters apart."""
    return [
        path
        for room in LANDED
        for path in sorted((SOURCE / room).rglob("*.py*"))
        if path.suffix in (".py", ".pyi") and not is_adapter(path)
    ]


# --- the contracts say what DESIGN says ------------------------------------------------------------


def test_layers_are_the_design() -> None:
    layers = CONTRACTS["layers"]["layers"]
    assert [{name.strip(" ()") for name in layer.split("|")} for layer in layers] == ORDER
    assert CONTRACTS["layers"]["exhaustive"] is True


def test_every_trusted_room_is_under_contract() -> None:
    listed = {name.removeprefix("tensure.") for name in CONTRACTS["no-torch"]["source_modules"]}
    assert set(LANDED) <= listed, "a trusted room landed: in contract 'no-torch' write `room` for `room.**`"
    assert {name.removesuffix(".**") for name in listed} == set(TRUSTED)
    assert set(CONTRACTS["no-torch"]["forbidden_modules"]) == set(FORBIDDEN)


# --- the contracts bite: a planted import turns them red ---------------------------------------------


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """An empty house of the same rooms, called `sample`, under the project's own contracts."""
    rules = PYPROJECT[PYPROJECT.index("[tool.importlinter]") :]
    (tmp_path / "pyproject.toml").write_text(rules.replace("tensure", "sample"))
    package = tmp_path / "sample"
    for room in set().union(*ORDER) - {"errors"}:
        (package / room).mkdir(parents=True)
        (package / room / "__init__.py").write_text("")
    (package / "__init__.py").write_text("")
    (package / "errors.py").write_text("")
    (package / "program" / "_core.py").write_text("from sample import errors\n")
    (package / "program" / "from_torch.py").write_text("import torch\nfrom sample.program import _core\n")
    (package / "program" / "_converter_child.py").write_text("def convert():\n    import torch\n")
    (package / "api" / "__init__.py").write_text("from sample.program import from_torch\n")
    return tmp_path


def lint(house: Path) -> subprocess.CompletedProcess[str]:
    """Run the linter over a house."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    return subprocess.run(command, cwd=house, capture_output=True, text=True, check=False)


def test_clean_house_keeps_the_contracts(house: Path) -> None:
    done = lint(house)
    assert done.returncode == 0, done.stdout + done.stderr


PLANTED = {
    "a room imports upwards": ("bundle/_bad.py", "import sample.runtime", "downwards only"),
    "siblings meet": ("proving/_bad.py", "from sample.planning import *", "downwards only"),
    "siblings meet inside a function": (
        "program/_bad.py",
        "def f():\n    import sample.kernels",
        "downwards only",
    ),
    "a room nobody drew": ("attic/__init__.py", "", "downwards only"),
    "torch in program": ("program/_bad.py", "import torch", "neither torch"),
    "torch behind a name": ("receipts/_bad.py", "from torch.nn import functional", "neither torch"),
    "torch in a function": ("bundle/_bad.py", "def f():\n    import torch", "neither torch"),
}


@pytest.mark.parametrize("what", PLANTED)
def test_planted_import_is_refused(house: Path, what: str) -> None:
    name, text, contract = PLANTED[what]
    path = house / "sample" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text + "\n")
    done = lint(house)
    assert done.returncode == 1, done.stdout + done.stderr
    broken = [line for line in done.stdout.splitlines() if "BROKEN" in line]
    assert any(contract in line for line in broken), done.stdout


# --- where the linter cannot look ----------------------------------------------------------------------


def dynamic_imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and fault of each import by string that names a forbidden module, or hides its name."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if called not in (
            "import_module",
            "__import__",
            "find_spec",
            "module_from_spec",
            "run_module",
            "exec_module",
        ):
            continue
        name = node.args[0] if node.args else next((k.value for k in node.keywords), None)
        if not (isinstance(name, ast.Constant) and isinstance(name.value, str)):
            yield node.lineno, f"{called} of a name only known at run time"
        elif name.value.startswith(".") or any(
            name.value == f or name.value.startswith(f + ".") for f in FORBIDDEN
        ):
            yield node.lineno, f"{called} of {name.value}"


def test_no_trusted_file_imports_by_string() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {fault}"
        for path in trusted_files()
        for line, fault in dynamic_imports(ast.parse(path.read_text()))
    ]
    assert not found, found


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("import importlib\nimportlib.import_module('torch')", 1),
        ("from importlib import import_module as m, import_module\nimport_module('tensure.kernels._isa')", 1),
        ("__import__('torch.nn')", 1),
        ("def f(name):\n    return __import__(name)", 1),
        ("importlib.import_module('json'); importlib.metadata.version('torch')", 0),
    ],
)
def test_dynamic_imports_are_seen(text: str, count: int) -> None:
    """Negative control of the check above."""
    assert len(list(dynamic_imports(ast.parse(text)))) == count


def adapter_imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of each import of an adapter or of the converter, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module or ''}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if any(part.startswith(("from_", "_converter_")) for part in name.split(".")):
                yield node.lineno, name


def test_adapters_are_leaves() -> None:
    """No trusted room and no other file of program imports an adapter, so none can bring a framework in."""
    found = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in trusted_files()
        for line, name in adapter_imports(ast.parse(path.read_text()))
    ]
    assert not found, found


@pytest.mark.parametrize(
    "text",
    [
        "from tensure.program import from_torch",
        "from . import from_torch as x",
        "from .from_gguf import read",
        "def f():\n    import tensure.program.from_hf",
        "from ._converter_child import convert",
    ],
)
def test_adapter_imports_are_seen(text: str) -> None:
    """Negative control of the check above."""
    assert len(list(adapter_imports(ast.parse(text)))) == 1
    assert not list(adapter_imports(ast.parse(text.replace("from_", "of_").replace("converter_", "c_"))))


def import_blocked(modules: list[str]) -> subprocess.CompletedProcess[str]:
    """Import modules in a fresh interpreter where torch and kernels cannot be imported."""
    code = (
        "import importlib, sys\n"
        f"for name in {FORBIDDEN!r}: sys.modules[name] = None\n"
        f"for name in {modules!r}: importlib.import_module(name)"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_trusted_rooms_import_with_torch_blocked() -> None:
    modules = ["tensure", "tensure.errors"]
    for path in trusted_files():
        parts = ["tensure", *path.relative_to(SOURCE).with_suffix("").parts]
        if parts[-1] != "__main__" and path.suffix == ".py":
            modules.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    done = import_blocked(modules)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["torch", "torch.nn", "tensure.kernels", "tensure.kernels._isa"])
def test_block_blocks(name: str) -> None:
    """Negative control of the check above."""
    assert import_blocked([name]).returncode == 1
