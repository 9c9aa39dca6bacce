"""One exception tree for everything Tensure says no to.

    TensureError                    exit 2   the caller can do something about it
    ├── InputError                           what was handed in cannot be used
    │   ├── FormatError                      a file's bytes break its format
    │   ├── RecordError                      a Program, Plan, Fleet or other record is malformed
    │   ├── UnsupportedError                 well-formed, but outside what we implement
    │   └── LimitError                       a bound on size, depth, time or memory was passed
    ├── NotYetError                          a public name that is not built yet
    ├── DamageError                 exit 1   a bundle or receipt is not what was signed
    │   └── UntrustedError                   it may be whole, but its signer is not one we trust
    ├── RefutedError                exit 1   a step that runs was shown to compute something else
    └── EvaluationError                      a Program or Plan stopped part-way (deadlock, unmade value)

Every message has up to three parts: what was asked, what was found, what to do next.
`TensureError.at(...)` adds the file and place once, at the door, in the user's own names.
"""

from __future__ import annotations

import os
from typing import Self

__all__ = [
    "DamageError",
    "EvaluationError",
    "FormatError",
    "InputError",
    "LimitError",
    "NotYetError",
    "RecordError",
    "RefutedError",
    "TensureError",
    "UnsupportedError",
    "UntrustedError",
]


class TensureError(Exception):
    """An answer the caller can act on: what was found, where, what was wanted, what to do.

    Args:
        found: the fact that stops us, as a clause without a full stop.
        file: the file (or other thing) it was found in.
        place: where in it: a byte offset, a line, a tensor or op name.
        wanted: what would have been accepted.
        next_step: the thing to try, as an imperative sentence.
    """

    exit_code = 2

    def __init__(
        self,
        found: str,
        *,
        file: str | os.PathLike[str] | None = None,
        place: str | None = None,
        wanted: str | None = None,
        next_step: str | None = None,
    ) -> None:
        self.found = found
        self.file = None if file is None else os.fspath(file)
        self.place = place
        self.wanted = wanted
        self.next_step = next_step
        super().__init__(found)

    def __str__(self) -> str:
        where = ", ".join(part for part in (self.file, self.place) if part)
        text = f"{where}: {self.found}" if where else self.found
        if self.wanted:
            text += f"; wanted {self.wanted}"
        if self.next_step:
            text += f". {self.next_step}"
        return "".join(char if char.isprintable() else _escaped(char) for char in text)

    def at(self, file: str | os.PathLike[str] | None = None, place: str | None = None) -> Self:
        """Fill in file and place where the raiser did not know them; returns itself for `raise`."""
        if self.file is None and file is not None:
            self.file = os.fspath(file)
        if self.place is None:
            self.place = place
        return self


def _escaped(char: str) -> str:
    """A character that must not reach a terminal: names from files may hold ESC, newlines, broken UTF-8."""
    return char.encode("unicode_escape").decode("ascii")


class InputError(TensureError):
    """What was handed in cannot be used."""


class FormatError(InputError):
    """A file's bytes break its format."""


class RecordError(InputError):
    """A Program, Plan, Fleet or other record is malformed."""


class UnsupportedError(InputError):
    """Well-formed, but outside what we implement."""


class LimitError(InputError):
    """A bound on size, depth, time or memory was passed."""


class NotYetError(TensureError):
    """A public name that is not built yet."""


class DamageError(TensureError):
    """A bundle or receipt is not what was signed."""

    exit_code = 1


class UntrustedError(DamageError):
    """Signed by a key that is not trusted here: nothing can be said of its bytes."""


class RefutedError(TensureError):
    """A parallel step was shown to compute something else than its model, where that was to stop a script."""

    exit_code = 1


class EvaluationError(TensureError):
    """A Program or Plan stopped part-way: a deadlock, or a value read before it was made."""
