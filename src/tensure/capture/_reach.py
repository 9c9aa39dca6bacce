"""Every plain value that a function can reach: closures, globals it names, defaults, attributes, containers.

Two looks at it tell a counter. Knows nothing of torch but modules, whose own attributes are looked at, and
states of generators.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterator
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, Final

import torch

__all__ = ["numbers_in_reach", "random_states_in_reach"]

_MAX_VISITED: Final = 20_000
_PLAIN: Final = (int, float, str, bool, bytes, type(None))
_LISTED: Final = (list, tuple, set, frozenset, collections.deque)
_OF_MODULES: Final = frozenset(torch.nn.Module().__dict__) - {"_modules", "training"}


def numbers_in_reach(function: Any) -> dict[str, Any]:
    """Every plain value that a function can reach, by the way to it; counters tell themselves by these."""
    found: dict[str, Any] = {}
    for path, value in _reached(function):
        kind = type(value)
        if kind in _PLAIN:
            found[path] = value
        elif kind is itertools.count:
            found[path] = repr(value)
        elif kind in _LISTED or isinstance(value, dict):
            found[f"the length of {path}"] = len(value)
    return found


def random_states_in_reach(function: Any) -> dict[str, torch.Generator | torch.Tensor]:
    """Every generator, and every saved state of one, that a function can reach, by the way to it."""
    size = torch.default_generator.get_state().numel()
    return {
        path: value
        for path, value in _reached(function)
        if isinstance(value, torch.Generator)
        or (type(value) is torch.Tensor and value.dtype == torch.uint8 and value.numel() == size)
    }


def _reached(function: Any) -> Iterator[tuple[str, Any]]:
    """Everything that a function can reach, once, by the way to it."""
    seen: set[int] = set()
    open_values: list[tuple[str, Any]] = [("microbatch", function)]
    while open_values and len(seen) < _MAX_VISITED:
        path, value = open_values.pop()
        kind = type(value)
        if kind in _PLAIN:
            yield path, value
            continue
        if id(value) in seen:
            continue
        seen.add(id(value))
        yield path, value
        if kind in _LISTED:
            if kind not in (set, frozenset):
                open_values.extend((f"{path}[{at}]", item) for at, item in enumerate(value))
        elif isinstance(value, dict):
            open_values.extend(
                (f"{path}[{key!r}]", item) for key, item in value.items() if type(key) in _PLAIN
            )
        elif kind is not itertools.count:
            open_values.extend((f"{path}.{name}", item) for name, item in _within(value).items())


def _within(value: Any) -> dict[str, Any]:
    """What an object holds, by name; nothing of torch's own objects but modules."""
    if isinstance(value, MethodType):
        return {"__self__": value.__self__, "__func__": value.__func__}
    if isinstance(value, FunctionType):
        cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
        held = {name: cell.cell_contents for name, cell in cells if _is_full(cell)}
        known = {
            name: value.__globals__[name]
            for name in _names(value.__code__)
            if name in value.__globals__ and not isinstance(value.__globals__[name], ModuleType)
        }
        given = dict(enumerate(value.__defaults__ or ())) | (value.__kwdefaults__ or {})
        return {**known, **held, **{str(name): item for name, item in given.items()}}
    if isinstance(value, torch.nn.Module):
        return {name: item for name, item in vars(value).items() if name not in _OF_MODULES}
    kind = value if isinstance(value, type) else type(value)
    if isinstance(value, (ModuleType, torch.Tensor)) or (kind.__module__ or "").startswith(
        ("torch", "builtins", "tensure.", "numpy", "collections", "typing", "types", "functools")
    ):
        return dict(vars(value)) if kind.__name__ == "partial" else {}
    held = dict(getattr(value, "__dict__", {}))
    held |= {
        name: getattr(value, name)
        for name in getattr(kind, "__slots__", ())
        if isinstance(name, str) and hasattr(value, name)
    }
    return {name: item for name, item in held.items() if not name.startswith("__")} | (
        {} if isinstance(value, type) else {"__class__": kind}
    )


def _is_full(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def _names(code: CodeType) -> set[str]:
    """Global names in a function and in those written in it."""
    found = set(code.co_names)
    for item in code.co_consts:
        if isinstance(item, CodeType):
            found |= _names(item)
    return found
