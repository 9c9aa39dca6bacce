"""Where torch is handed a watched number: it gets a plain one, and which axes it was told is noted."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from ._asker import asker
from ._coordinate import Coordinate, Reads, is_coordinate, softened

__all__ = ["Soften", "softened_method"]


class Soften(TorchFunctionMode):
    """Torch's functions get plain numbers, noted; a Coordinate may pick one of the tensors they give."""

    def __init__(self, reads: Reads) -> None:
        super().__init__()
        self.reads = reads

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if str(getattr(func, "__module__", "")).startswith("torch.distributed"):
            return func(*args, **(kwargs or {}))  # Python, that can count with what is watched
        found: list[Coordinate] = []
        args, given = softened(args, found), softened(dict(kwargs or {}), found)
        if found:
            self.reads.unpin(found, sys._getframe(1))
        made = func(*args, **given)
        if type(made) is tuple and asker()[0] == "user":
            return _Parts(made)
        return made


class _Parts(tuple[Any, ...]):
    """Tensors made by one call: taking the one that a Coordinate counts is torch's indexing."""

    def __getitem__(self, at: Any) -> Any:
        if is_coordinate(at):
            return super().__getitem__(at.reads.soften(at.form))
        return super().__getitem__(at)


def _flatten_parts(parts: _Parts) -> tuple[list[Any], None]:
    return list(parts), None


torch.utils._pytree.register_pytree_node(
    _Parts, _flatten_parts, lambda items, _: _Parts(items), serialized_type_name="tensure.capture.Parts"
)


def softened_method(method: Any) -> Callable[..., Any]:
    """A method in C that takes plain numbers."""

    def call(*args: Any, **kwargs: Any) -> Any:
        found: list[Coordinate] = []
        return method(*softened(args, found), **softened(kwargs, found))

    return call
