"""Tokens of the text form, one line at a time, with bounds.

Knows characters and positions; knows nothing of what a line means.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import NoReturn

from tensure.errors import LimitError, RecordError

MAX_LINE = 65_536
_WORDS = "for in call cat each true false none inf nan min max pick input output carry local"
RESERVED = frozenset(_WORDS.split())

_TOKEN = re.compile(
    r"""(?P<space>[ ]+)
      | (?P<name>[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z0-9_]+)*)
      | (?P<float>[0-9]+\.[0-9]+(?:[eE][+-]?[0-9]+)?|[0-9]+[eE][+-]?[0-9]+)
      | (?P<int>[0-9]+)
      | (?P<string>"(?:[^"\\\x00-\x1f]|\\.)*")
      | (?P<mark>->|\.\.|//|[-+*%()\[\]{},:=<>#@/|])
    """,
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Token:
    """One token: its kind (name, int, float, string, mark, end), its text, its column from 1."""

    kind: str
    text: str
    column: int


class Line:
    """The tokens of one line with a cursor; every complaint names line and column.

    `number` 0 marks a piece of text that is no line of a file, such as a lone expression.
    """

    __slots__ = ("_at", "_tokens", "indent", "number")

    def __init__(self, text: str, number: int = 0) -> None:
        if len(text) > MAX_LINE:
            raise LimitError(
                f"a line of {len(text)} characters", place=f"line {number}", wanted=f"at most {MAX_LINE}"
            )
        body = text.lstrip(" ")
        self.indent = len(text) - len(body)
        self.number = number
        self._tokens = _tokens(text, number)
        self._at = 0

    @property
    def head(self) -> Token:
        """The next token, not consumed."""
        return self._tokens[self._at]

    def peek(self, offset: int = 1) -> Token:
        """The token `offset` places after the head."""
        return self._tokens[min(self._at + offset, len(self._tokens) - 1)]

    def next(self) -> Token:
        """Consume one token."""
        token = self.head
        if token.kind != "end":
            self._at += 1
        return token

    def at(self, text: str) -> bool:
        """Is the next token this mark or word?"""
        return self.head.kind in ("mark", "name") and self.head.text == text

    def take(self, text: str) -> bool:
        """Consume this mark or word if it is next."""
        if self.at(text):
            self._at += 1
            return True
        return False

    def expect(self, text: str) -> None:
        """Consume this mark or word or complain."""
        if not self.take(text):
            self.fail(f"found {self.head.text or 'the end of the line'!r}", wanted=repr(text))

    def name(self) -> str:
        """Consume a name that is not reserved."""
        token = self.head
        if token.kind != "name" or token.text in RESERVED:
            self.fail(f"found {token.text or 'the end of the line'!r}", wanted="a name")
        self._at += 1
        return token.text

    def key(self) -> str:
        """Consume an attribute's name; reserved words are fine here, since `=` must follow."""
        token = self.head
        if token.kind != "name" or "." in token.text:
            self.fail(f"found {token.text or 'the end of the line'!r}", wanted="an attribute")
        self._at += 1
        return token.text

    def string(self) -> str:
        """Consume a quoted string."""
        token = self.head
        if token.kind != "string":
            self.fail(f"found {token.text or 'the end of the line'!r}", wanted="a quoted string")
        self._at += 1
        try:
            value = json.loads(token.text)
        except ValueError:
            self.fail("a string with a broken escape", wanted="JSON escapes")
        if not isinstance(value, str) or any("\ud800" <= char <= "\udfff" for char in value):
            self.fail("a string with a lone surrogate", wanted="Unicode text")
        return value

    def end(self) -> None:
        """Complain about anything left over."""
        if self.head.kind != "end":
            self.fail(f"found {self.head.text!r}", wanted="the end of the line")

    def fail(self, found: str, *, wanted: str | None = None) -> NoReturn:
        """Raise a RecordError at the cursor."""
        where = f"line {self.number}, column" if self.number else "column"
        raise RecordError(found, place=f"{where} {self.head.column}", wanted=wanted)


def _tokens(text: str, number: int) -> list[Token]:
    tokens: list[Token] = []
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            where = f"line {number}, column {at + 1}" if number else f"column {at + 1}"
            raise RecordError(
                f"found the character {text[at]!r}", place=where, wanted="a name, number, string or mark"
            )
        kind = match.lastgroup or ""
        if kind != "space":
            tokens.append(Token(kind, match.group(), at + 1))
        at = match.end()
    tokens.append(Token("end", "", len(text) + 1))
    return tokens
