"""Names from other people's files as names a record can hold. Knows the text form's rules for names only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ._lex import RESERVED

__all__ = ["FreshNames"]

_LONGEST: Final = 200


class FreshNames:
    """Gives every wanted name a form the text can hold, and each only once.

    Letters outside ASCII and punctuation become `_`, dots stay; a name already given gets `_1`, `_2`, ...
    """

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = set(taken)
        self._next: dict[str, int] = {}

    def take(self, wanted: str) -> str:
        """A name like `wanted` that nobody else has."""
        base = plain_name(wanted)
        fresh = base
        while fresh in self._taken:
            self._next[base] = self._next.get(base, 0) + 1
            fresh = f"{base}_{self._next[base]}"
        self._taken.add(fresh)
        return fresh


def plain_name(wanted: str) -> str:
    """The nearest name the text form can hold, at most 200 characters."""
    parts = wanted[:_LONGEST].split(".")
    base = ".".join(_plain(part) for part in parts)
    if not (base[0].isalpha() or base[0] == "_"):
        base = f"_{base}"[:_LONGEST]
    return f"{base}_" if base in RESERVED else base


def _plain(part: str) -> str:
    return (
        "".join(char if char.isascii() and (char.isalnum() or char == "_") else "_" for char in part) or "_"
    )
