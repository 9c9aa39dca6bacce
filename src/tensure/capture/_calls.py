"""Whether somebody's function takes what it is about to be called with, said before it is called."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Mapping
from typing import Any

from tensure.errors import InputError

__all__ = ["check_call"]


def check_call(what: str, function: Any, given: Mapping[str, Any], **named: Any) -> None:
    """Refuse a function that cannot be called so; one whose signature is not known is let through.

    Args:
        what: the function, for messages: `the parallel function`.
        function: as it will be called.
        given: positional arguments in order, by words for messages.
        named: arguments by keyword.

    Raises:
        InputError: no function, or one of other arguments; names it, its line and what it takes.
    """
    if not callable(function):
        raise InputError(f"{what} is {type(function).__name__}", wanted="a function")
    try:
        # What a decorator says of the function inside of it is not what is called.
        takes = inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):
        return
    try:
        takes.bind(*given.values(), **named)
    except TypeError:
        function = function.func if isinstance(function, functools.partial) else function
        words = ", ".join((*given, *(f"{key}=" for key in named)))
        name = getattr(function, "__name__", type(function).__name__)
        raise InputError(
            f"{what} {name} takes ({', '.join(takes.parameters)}) and is given ({words})",
            place=_line(function),
            wanted=f"{name}({words})",
        ) from None


def _line(function: Any) -> str | None:
    """`file.py:12` of where it begins."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return None if code is None else f"{os.path.basename(code.co_filename)}:{code.co_firstlineno}"
