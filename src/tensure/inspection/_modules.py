"""Which module is running, by its path: hooks on every call of every torch module, while a run is watched."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

__all__ = ["ModulePaths"]


class ModulePaths:
    """The path of the innermost module that runs in this thread.

    A module called from outside any other is a root: its parts are named as in its state_dict, after a prefix
    of its own class where several roots run. A part that was named once keeps its name.
    """

    def __init__(self, on_root: Callable[[torch.nn.Module, str], None]) -> None:
        self._stack: list[str] = []
        self._names: dict[int, tuple[torch.nn.Module, str]] = {}
        self._roots = 0
        self._on_root = on_root
        self._thread = 0

    @property
    def current(self) -> str:
        """The innermost path; "" outside any module and in a root itself."""
        return self._stack[-1] if self._stack else ""

    def add_root(self, module: torch.nn.Module) -> None:
        """Name the parts of a module, before or when it runs."""
        if id(module) in self._names:
            return
        prefix = "" if self._roots == 0 else f"{type(module).__name__.lower()}_{self._roots}"
        self._roots += 1
        for name, part in module.named_modules(prefix=prefix):
            # The module is kept beside its name: an id is given out again once its object is gone.
            self._names.setdefault(id(part), (part, name))
        self._on_root(module, prefix)

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """While this is open, every module call in this thread is followed."""
        self._thread = threading.get_ident()
        before = register_module_forward_pre_hook(self._enter)
        after = register_module_forward_hook(self._leave, always_call=True)
        try:
            yield
        finally:
            before.remove()
            after.remove()
            self._stack.clear()

    def forget(self) -> None:
        """Let the modules go that were named."""
        self._names.clear()

    def _enter(self, module: torch.nn.Module, args: Any) -> None:
        if threading.get_ident() != self._thread:  # torch's hooks are everybody's
            return
        if id(module) not in self._names:
            if self._stack:  # made or swapped in after its root was named
                for name, part in module.named_modules(prefix=f"{self.current}.{type(module).__name__}"):
                    self._names.setdefault(id(part), (part, name))
            else:
                self.add_root(module)
        self._stack.append(self._names[id(module)][1])

    def _leave(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        if self._stack and threading.get_ident() == self._thread:
            self._stack.pop()


def parameter_names(module: torch.nn.Module, prefix: str) -> Mapping[int, tuple[str, torch.Tensor]]:
    """Every parameter and buffer by the id of its object."""
    found: dict[int, tuple[str, torch.Tensor]] = {}
    for name, tensor in (*module.named_parameters(prefix=prefix), *module.named_buffers(prefix=prefix)):
        found.setdefault(id(tensor), (name, tensor))
    return found
