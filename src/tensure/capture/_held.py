"""What one Python object holds that code can reach by it, by name; of iterators where they are.

Torch's, numpy's and the standard library's own objects are looked at where Python code can keep a state of
its own in them: attributes, iterators, hooks, partial calls.
"""

from __future__ import annotations

import collections
import contextvars
import functools
import gc
import sys
import weakref
from collections.abc import Iterator, Mapping
from types import (
    AsyncGeneratorType,
    BuiltinMethodType,
    CodeType,
    CoroutineType,
    FunctionType,
    GeneratorType,
    MappingProxyType,
    MethodType,
    MethodWrapperType,
    ModuleType,
)
from typing import Any, Final

import torch

from ._coordinate import is_coordinate

__all__ = ["PLAIN", "cannot_be_read", "held_by", "is_library"]

PLAIN: Final = (int, float, str, bool, bytes, type(None))
_OF_MODULES: Final = frozenset(torch.nn.Module().__dict__) - {"_modules", "_parameters", "training"}
_LIBRARIES: Final = sys.stdlib_module_names | {"torch", "numpy", "tensure", "pytest", "_pytest", "pluggy"}
_UNLOOKED: Final = frozenset(
    {"logging", "tensure", "torch", "numpy", "typing", "pytest", "_pytest", "pluggy"}
)
"""Whose objects' attributes are theirs alone."""
_GOING: Final = (GeneratorType, CoroutineType, AsyncGeneratorType)


def held_by(value: Any) -> Iterator[tuple[str, Any]]:
    """What an object holds, with what is to be added to the way to it."""
    if isinstance(value, ModuleType) or is_coordinate(value):
        return
    if isinstance(value, (list, tuple, collections.deque)):
        yield from ((f"[{at}]", item) for at, item in enumerate(value))
    elif isinstance(value, (set, frozenset)):
        yield from ((f"{{{at}}}", item) for at, item in enumerate(value) if type(item) not in PLAIN)
    elif isinstance(value, (dict, MappingProxyType)):
        for at, (key, item) in enumerate(value.items()):
            if type(key) in PLAIN:
                yield f"[{key!r}]", item
            else:
                yield f"[key {at}]", item
                yield f".keys()[{at}]", key
    yield from ((f".{name}", item) for name, item in _within(value).items())


def cannot_be_read(value: Any) -> bool:
    """Whether it is an iterator, or numbers at random, that do not tell where they are."""
    return _is_bare_iterator(value) and _reduced(value) is None


def is_library(name: object) -> bool:
    """Whether a module is torch's, numpy's, the standard library's or ours; by the first part of its name."""
    return isinstance(name, str) and name.partition(".")[0] in _LIBRARIES


def _within(value: Any) -> dict[str, Any]:
    kind = type(value)
    if isinstance(value, MethodType):
        return {"__self__": value.__self__, "__func__": value.__func__}
    if isinstance(value, (BuiltinMethodType, MethodWrapperType)):
        return {"__self__": value.__self__}
    if isinstance(value, FunctionType):
        return _of_function(value)
    if isinstance(value, type):
        return {} if is_library(value.__module__) else _of_class(value)
    if isinstance(value, _GOING):
        return _of_generator(value)
    if isinstance(value, property):
        return {"fget": value.fget, "fset": value.fset}
    if isinstance(value, (staticmethod, classmethod)):
        return {"__func__": value.__func__}
    if isinstance(value, functools.partial):
        return {"func": value.func, "args": value.args, "keywords": value.keywords, **vars(value)}
    if isinstance(value, contextvars.ContextVar):
        return {"get()": value.get(None)}
    if isinstance(value, weakref.ReferenceType):
        return {"()": value()}
    if _is_bare_iterator(value):
        return {"__reduce__()": _reduced(value)}
    known = {f"__class__ {item.__name__}": item for item in kind.__mro__ if not is_library(item.__module__)}
    if isinstance(value, torch.Tensor):
        return known | _of_tensor(value)
    if isinstance(value, torch.nn.Module):
        return known | {
            name: item
            for name, item in vars(value).items()
            if name not in _OF_MODULES or (item and "hooks" in name)
        }
    root = str(kind.__module__).partition(".")[0]
    if root in _UNLOOKED and not _keeps_count(value):
        return known
    slots = {
        name: getattr(value, name)
        for item in kind.__mro__
        for name in _slots(item)
        if not name.startswith("__") and hasattr(value, name)
    }
    own = {name: item for name, item in _attributes(value).items() if not name.startswith("__")}
    return known | slots | own


def _attributes(value: Any) -> dict[str, Any]:
    found = getattr(value, "__dict__", None)
    return dict(found) if isinstance(found, Mapping) else {}


def _slots(kind: type) -> tuple[str, ...]:
    found = vars(kind).get("__slots__", ())
    return (found,) if isinstance(found, str) else tuple(name for name in found if isinstance(name, str))


def _keeps_count(value: Any) -> bool:
    """Torch's objects that say where a training is: optimizers, their schedules, loaders' iterators."""
    return isinstance(value, (torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler)) or hasattr(
        type(value), "__next__"
    )


def _of_tensor(value: torch.Tensor) -> dict[str, Any]:
    """Hooks, and attributes that were put on a plain one."""
    with torch._C.DisableTorchFunctionSubclass():
        hooks = {
            name: getattr(value, name, None) for name in ("_backward_hooks", "_post_accumulate_grad_hooks")
        }
    own = _attributes(value) if type(value) in (torch.Tensor, torch.nn.Parameter) else {}
    return {name: item for name, item in hooks.items() if item} | own


def _of_class(kind: type) -> dict[str, Any]:
    """Attributes, and every function: those of Python's own names too, which nobody else calls by name."""
    return {
        name: item
        for name, item in vars(kind).items()
        if not name.startswith("__") or isinstance(item, (FunctionType, staticmethod, classmethod))
    } | {"__bases__": kind.__bases__}


def _of_function(value: FunctionType) -> dict[str, Any]:
    cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
    held = {name: cell.cell_contents for name, cell in cells if _is_full(cell)}
    known = _globals(value.__code__, value.__globals__)
    given = dict(enumerate(value.__defaults__ or ())) | (value.__kwdefaults__ or {})
    given |= {name: item for name, item in vars(value).items() if name != "__wrapped__"}
    # Names of a closure stand before those of attributes in it: a counter in two places is found by one.
    wrapped = {"__wrapped__": value.__wrapped__} if hasattr(value, "__wrapped__") else {}
    return {**known, **held, **{str(name): item for name, item in given.items()}, **wrapped}


def _globals(code: CodeType, around: Mapping[str, Any]) -> dict[str, Any]:
    """What code names of the module it was written in, and of modules it names."""
    if is_library(around.get("__name__")) and not str(around.get("__name__")).startswith("tensure."):
        return {}
    names, found = _names(code), dict[str, Any]()
    for name in names:
        item = around.get(name, sys.modules.get(name) if name not in around else None)
        if isinstance(item, ModuleType):
            _of_module(name, item, names, found, set())
        elif name in around:
            found[name] = item
    return found


def _of_module(
    path: str, module: ModuleType, names: frozenset[str], found: dict[str, Any], seen: set[int]
) -> None:
    """Attributes of a module that code names: of libraries plain ones alone, the rest is their own."""
    if id(module) in seen:
        return
    seen.add(id(module))
    library = is_library(module.__name__)
    for name in names & vars(module).keys():
        item = vars(module)[name]
        if type(item) in PLAIN or (not library and not isinstance(item, ModuleType)):
            found[f"{path}.{name}"] = item
        elif isinstance(item, ModuleType) and not library:
            _of_module(f"{path}.{name}", item, names, found, seen)


def _of_generator(value: Any) -> dict[str, Any]:
    """Where it stands and all its frame holds: variables, and iterators of its loops, which have no names."""
    prefix = {GeneratorType: "gi", CoroutineType: "cr"}.get(type(value), "ag")
    frame = getattr(value, f"{prefix}_frame")
    if frame is None:
        return {f"{prefix}_frame": None}
    held = {f"frame[{at}]": item for at, item in enumerate(gc.get_referents(value))}
    code = getattr(value, f"{prefix}_code")
    return {f"{prefix}_frame.f_lasti": frame.f_lasti, **held, **_globals(code, frame.f_globals)}


def _is_bare_iterator(value: Any) -> bool:
    """An iterator written in C."""
    kind = type(value)
    if not hasattr(kind, "__next__") or isinstance(value, _GOING):
        return False
    return not hasattr(value, "__dict__") and not any("__slots__" in vars(item) for item in kind.__mro__)


def _reduced(value: Any) -> Any:
    """What makes an iterator again that stands where this one does; None if that is not told."""
    told: Any = type(value).__reduce__
    if told is object.__reduce__:
        return None  # that tells a class and no place
    try:
        return value.__reduce__()
    except (TypeError, ValueError, NotImplementedError, RuntimeError):
        return None


def _is_full(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


@functools.lru_cache(maxsize=4096)
def _names(code: CodeType) -> frozenset[str]:
    """Names of globals and attributes in a function and in those written in it."""
    found = set(code.co_names)
    for item in code.co_consts:
        if isinstance(item, CodeType):
            found |= _names(item)
    return frozenset(found)
