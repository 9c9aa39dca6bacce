"""Functions and attributes of others, changed for a while.

A function is changed inside, by its code object: who imported it by name sees the change too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FunctionType
from typing import Any, Final

__all__ = ["changed", "replaced"]

_HOOKS: Final[dict[str, Callable[..., Any]]] = {}
"""What stands behind a changed function now."""
_NOTHING: Final = object()


@contextmanager
def changed(function: Any, hook: Callable[..., Any]) -> Iterator[None]:
    """Let a function ask another one, whoever holds it under whatever name.

    Args:
        function: in Python; where it is wrapped, what is inside is changed.
        hook: given the function as it was, and its arguments.
    """
    inner: Any = function
    while inner.__code__.co_freevars and hasattr(inner, "__wrapped__"):
        inner = inner.__wrapped__
    before, name = inner.__code__, function.__name__
    original = FunctionType(before, inner.__globals__, name, inner.__defaults__, inner.__closure__)
    original.__kwdefaults__ = inner.__kwdefaults__
    _HOOKS[name] = lambda *args, **kwargs: hook(original, *args, **kwargs)
    inner.__code__ = _through_hook(name)
    try:
        yield
    finally:
        inner.__code__ = before
        del _HOOKS[name]


def _through_hook(name: str) -> CodeType:
    text = (
        f"def {name}(*args, **kwargs):\n"
        f"    from {__name__} import _HOOKS\n"
        f"    return _HOOKS[{name!r}](*args, **kwargs)\n"
    )
    made: dict[str, Any] = {}
    exec(compile(text, __file__, "exec"), made)  # noqa: S102
    return made[name].__code__  # type: ignore[no-any-return]


@contextmanager
def replaced(owner: Any, name: str, changed: Any) -> Iterator[None]:
    """Let an attribute of a class or module be another one."""
    before = vars(owner).get(name, _NOTHING)
    setattr(owner, name, changed)
    try:
        yield
    finally:
        if before is _NOTHING:
            delattr(owner, name)
        else:
            setattr(owner, name, before)
