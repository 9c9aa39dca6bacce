"""What one rendering of a chat template may use: steps, seconds, characters, items.

Knows how to count and when to say stop, and turns whatever template code raises into our errors. Does not
know what is counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import TypeVar

import jinja2

from tensure.errors import FormatError, InputError, LimitError

__all__ = ["bounded", "charge", "guarded", "too_long", "weigh"]

MAX_OUTPUT_CHARS = 1 << 20
MAX_STEPS = 200_000
MAX_SECONDS = 3.0
MAX_ITEMS = 50_000
MAX_INT_BITS = 128
MAX_DEPTH = 64

_T = TypeVar("_T")


class _Budget:
    """What one rendering may still use. Steps decide; the deadline is there for steps that are slow."""

    def __init__(self) -> None:
        self.deadline = time.monotonic() + MAX_SECONDS
        self.steps = MAX_STEPS
        self.chars = 2 * MAX_OUTPUT_CHARS  # a captured block is emitted twice: into its capture, then out

    def charge(self, steps: int, chars: int = 0) -> None:
        self.steps -= steps
        self.chars -= chars
        if self.steps < 0 or time.monotonic() > self.deadline:
            raise LimitError(
                f"the chat template runs more than {MAX_STEPS} steps or {MAX_SECONDS} s", next_step=ADVICE
            )
        if self.chars < 0:
            raise LimitError(
                f"the chat template writes more than {MAX_OUTPUT_CHARS} characters", next_step=ADVICE
            )


ADVICE = "Shorten the conversation, or pass a template you trust"
_budget: ContextVar[_Budget] = ContextVar("chat_budget")


def guarded(work: Callable[[], _T]) -> _T:
    """Run template code under a fresh budget; whatever it raises leaves as one of our errors."""
    token = _budget.set(_Budget())
    try:
        return work()
    except jinja2.TemplateSyntaxError as error:
        raise FormatError(
            f"the chat template is wrong: {_short(error)}", place=f"line {error.lineno}"
        ) from None
    except jinja2.TemplateError as error:
        raise InputError(f"the chat template fails: {_short(error)}") from None
    except SyntaxError as error:  # Python's, on the code Jinja generates: a stray break, deep nesting
        raise FormatError(f"the chat template is wrong: {_short(error)}") from None
    except (RecursionError, MemoryError):
        raise LimitError("the chat template nests too deep", next_step=ADVICE) from None
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        NameError,
        TypeError,
        ValueError,
    ) as error:
        raise InputError(f"the chat template fails on these messages: {_short(error)}") from None
    finally:
        _budget.reset(token)


def _short(error: Exception) -> str:
    text = str(error)[:300]
    return "".join(char if char.isprintable() else " " for char in text)


def bounded(value: _T) -> _T:
    """The value itself, if it is small; lists and mappings are counted as trees, not as graphs."""
    if isinstance(value, str):
        if len(value) > MAX_OUTPUT_CHARS:
            raise too_long()
    elif isinstance(value, int):
        if value.bit_length() > MAX_INT_BITS:
            raise LimitError(f"the chat template makes a number of more than {MAX_INT_BITS} bits")
    elif isinstance(value, list | tuple | dict):
        weigh(value)
    return value


def weigh(root: object) -> int:
    """Characters in a value and everything below it; a shared part counts each time, as when printed."""
    items = chars = 0
    pending: list[tuple[int, object]] = [(0, root)]
    while pending:
        depth, value = pending.pop()
        items += 1
        if isinstance(value, str):
            chars += len(value)
        elif isinstance(value, dict):
            pending += [(depth + 1, part) for pair in value.items() for part in pair]
        elif isinstance(value, list | tuple):
            pending += [(depth + 1, part) for part in value]
        if items + len(pending) > MAX_ITEMS or chars > MAX_OUTPUT_CHARS or depth > MAX_DEPTH:
            raise LimitError(
                "the chat template makes a value that is too large",
                wanted=f"at most {MAX_ITEMS} items, {MAX_OUTPUT_CHARS} characters, {MAX_DEPTH} levels",
            )
    if (budget := _budget.get(None)) is not None:
        budget.charge(items // 64)
    return chars


def charge(steps: int, chars: int = 0) -> None:
    """Take from the running rendering's budget."""
    _budget.get().charge(steps, chars)


def too_long() -> LimitError:
    """The error for a text that would pass the cap."""
    return LimitError(f"the chat template makes a text of more than {MAX_OUTPUT_CHARS} characters")
