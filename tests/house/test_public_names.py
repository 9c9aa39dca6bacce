"""The public names: lazy, complete, and never a module; each in a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest

import tensure
from tensure import errors

VERBS = [
    "load",
    "plan",
    "prove",
    "prove_resharding",
    "seal",
    "open",
    "verify",
    "inspect",
    "diff",
    "guard",
    "quantize",
    "build",
    "bench",
]


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def landed(name: str) -> bool:
    """Whether the room a public name lives in exists yet."""
    home = tensure._HOMES.get(name)
    return home is None or find_spec(home) is not None


def test_import_is_light() -> None:
    done = python(
        "import sys, tensure, tensure.errors\n"
        "heavy = {'torch', 'numpy', 'typer', 'rich', 'cryptography', 'tokenizers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "rooms = {m for m in sys.modules if m.startswith('tensure.')} - {'tensure.errors'}\n"
        "assert not rooms, rooms"
    )
    assert done.returncode == 0, done.stderr


def test_every_verb_is_public() -> None:
    assert set(VERBS) <= set(tensure.__all__)
    assert len(set(tensure.__all__)) == len(tensure.__all__)
    assert set(tensure._HOMES) == set(tensure.__all__) - {"__version__"}
    assert set(tensure.__all__) <= set(dir(tensure))


@pytest.mark.parametrize("name", [name for name in tensure.__all__ if landed(name)])
def test_name_resolves(name: str) -> None:
    assert getattr(tensure, name) is not None


def test_names() -> None:
    assert tensure.TensureError is errors.TensureError
    assert tensure.__version__ == "0.1.0"
    with pytest.raises(AttributeError, match="'tensure' has no attribute 'prov'"):
        _ = tensure.prov
    assert not hasattr(tensure, "_tensure_hidden")


@pytest.mark.parametrize("order", ["rooms first", "verbs first"])
def test_no_verb_is_a_module_in_either_order(order: str) -> None:
    """Importing a room binds its name on the package; no verb may be shadowed by one."""
    steps = "[use_rooms, use_verbs]" if order == "rooms first" else "[use_verbs, use_rooms]"
    done = python(
        "import importlib, pkgutil, types, tensure\n"
        f"verbs = {[verb for verb in VERBS if landed(verb)]!r}\n"
        "rooms = [m.name for m in pkgutil.iter_modules(tensure.__path__)]\n"
        f"assert not set(rooms) & set({VERBS!r}), rooms\n"
        "def use_rooms():\n"
        "    for room in rooms: importlib.import_module(f'tensure.{room}')\n"
        "def use_verbs():\n"
        "    for verb in verbs: assert callable(getattr(tensure, verb)), verb\n"
        f"for step in {steps}: step()\n"
        "for verb in verbs: assert isinstance(getattr(tensure, verb), types.FunctionType), verb"
    )
    assert done.returncode == 0, done.stderr
