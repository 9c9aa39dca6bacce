"""Each room's `__init__.py` is its public list."""

from __future__ import annotations

import importlib
import pkgutil
import types

import pytest

import tensure

ROOMS = sorted(found.name for found in pkgutil.iter_modules(tensure.__path__) if found.ispkg)


@pytest.mark.parametrize("room", ROOMS)
def test_room_keeps_to_its_list(room: str) -> None:
    module = importlib.import_module(f"tensure.{room}")
    listed = module.__all__
    assert len(set(listed)) == len(listed)
    missing = [name for name in listed if not hasattr(module, name)]
    assert not missing, f"tensure.{room}.__all__ names what does not exist: {missing}"
    stray = [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and name not in listed
        and isinstance(value, type | types.FunctionType)
        and value.__module__.startswith("tensure")
    ]
    assert not stray, f"tensure.{room} shows names that its __all__ does not list: {stray}"


def test_files_are_private() -> None:
    """Inside a room a file is `_name.py` unless it is an adapter."""
    allowed = ("from_", "_")
    public = [
        f"{room}.{found.name}"
        for room in ROOMS
        for found in pkgutil.iter_modules(importlib.import_module(f"tensure.{room}").__path__)
        if not found.name.startswith(allowed)
    ]
    assert not public, public
