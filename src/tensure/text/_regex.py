r"""What a tokenizer's regular expression can cost, known before it ever runs.

Knows: how the backtracking engine behind `tokenizers` (Oniguruma) spends its time, and from that a bound:
a pattern is refused when a match may take exponential or cubic time, and otherwise says how long a text it
may be run over. Everything is counted in one pass over the pattern, without recursion:

    ways      how often the finite choices of a pattern (alternatives, `?`, `{1,3}`) can be combined
    backing   free repeats (`*`, `+`) that something after them can make give characters back

One backing repeat makes a scan quadratic: each start runs to the end of the stretch and fails. That is
harmless where the next alternative takes the same stretch whole, as `\s+(?!\S)|\s+` does: then it is
linear.

Does not know: what patterns mean, or what they are for. What it cannot read it refuses.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NoReturn

from tensure.errors import FormatError, LimitError, UnsupportedError

__all__ = ["MAX_TEXT", "longest_text"]

MAX_PATTERN_CHARS: Final = 1024
MAX_COUNT: Final = 256
MAX_QUANTIFIERS: Final = 64
MAX_WAYS: Final = 256
MAX_TEXT: Final = 1 << 24
"""Characters that a linear pattern may run over; more than any prompt has."""
MAX_SQUARE: Final = 1 << 30
"""Bound on ways * text² for a quadratic one: some seconds."""

_HEADER = re.compile(r"\?(?:[im]*(?:-[im]+)?:|<?[=!]|>)")
_ESCAPE = re.compile(
    r"\\(?:[pP]\{\^?[\w =-]{1,40}\}|x\{[0-9A-Fa-f]{1,8}\}|x[0-9A-Fa-f]{1,2}|u[0-9A-Fa-f]{4}"
    r"|[dDwWsShHbBAzZrntfvaeRX]|[^0-9A-Za-z])",
    re.DOTALL,
)
_CLASS_NAME = re.compile(r"\[:\^?[a-z]{1,10}:\]")
_QUANTIFIER = re.compile(
    r"(?:(?P<sign>[*+?])(?P<mode>[+?]?)|\{(?P<least>\d*)(?:,(?P<most>\d*))?\}(?P<lazy>\??))"
)
_CONTROLS = {"\\r": "\r", "\\n": "\n", "\\t": "\t", "\\f": "\f"}


@dataclass(slots=True)
class _Branch:
    """One alternative, as far as it has been read."""

    ways: int = 1
    backing: list[str | None] = field(default_factory=list)  # the repeated atoms' texts, None for a group
    free: list[str | None] = field(default_factory=list)  # free repeats with nothing after that can fail
    repeats: int = 0  # what is inside: 0 nothing repeats, 1 a fixed count does, 2 anything else
    start: str | None = ""  # the literal it begins with, None if that is no single one, "" while empty
    takes: str | None = None  # the atom of which it takes a whole stretch, given one such character
    fixed: bool = False  # whether an item that must match has been read


@dataclass(slots=True)
class _Part:
    """An atom or a closed group, before its quantifier."""

    text: str | None
    start: str | None = None
    ways: int = 1
    backing: Sequence[str | None] = ()
    free: Sequence[str | None] = ()
    repeats: int = 0


def longest_text(pattern: str, place: str) -> int:
    """How many characters of text the pattern may be run over in bounded time; MAX_TEXT if it is linear.

    Raises:
        UnsupportedError: exponential, cubic, or written with what we do not read.
        FormatError: brackets that do not match. LimitError: too long or too many choices.
    """
    if len(pattern) > MAX_PATTERN_CHARS:
        raise LimitError(
            f"a pattern of {len(pattern)} characters", place=place, wanted=f"at most {MAX_PATTERN_CHARS}"
        )
    try:
        branches = _read(pattern)
    except (FormatError, LimitError, UnsupportedError) as error:
        raise error.at(place=place) from None
    ways = _ways(branches)
    if not any(branch.backing for branch in branches):
        return MAX_TEXT
    return MAX_TEXT if _covered(branches) else math.isqrt(MAX_SQUARE // ways)


def _read(pattern: str) -> list[_Branch]:
    """The alternatives of the whole pattern."""
    opened: list[list[_Branch]] = [[_Branch()]]
    headers = [""]
    at = quantifiers = 0
    while at < len(pattern):
        char = pattern[at]
        if char == "|":
            opened[-1].append(_Branch())
            at += 1
            continue
        if char == "(":
            at += 1
            header = _HEADER.match(pattern, at)
            if header is not None:
                at = header.end()
            elif pattern.startswith("?", at):
                raise UnsupportedError("a pattern with an unusual group")
            headers.append(header[0] if header else "")
            opened.append([_Branch()])
            continue
        if char == ")":
            if len(opened) == 1:
                raise FormatError("a pattern closes a group it never opened")
            at += 1
            part = _group(opened.pop(), plain=headers.pop() in ("", "?:"))
        else:
            end = _atom_end(pattern, at)
            part = _Part(pattern[at:end], _literal(pattern[at:end]))
            at = end
        if quantifier := _QUANTIFIER.match(pattern, at):
            at = quantifier.end()
            quantifiers += 1
            if at < len(pattern) and pattern[at] in "*+?{":
                _refuse_repeat()
        elif pattern.startswith("{", at):
            raise UnsupportedError("a pattern with an unescaped {")
        _add(opened[-1][-1], part, quantifier)
    if len(opened) != 1:
        raise FormatError("a pattern leaves a group open")
    if quantifiers > MAX_QUANTIFIERS:
        raise LimitError(f"a pattern with {quantifiers} quantifiers", wanted=f"at most {MAX_QUANTIFIERS}")
    return opened[0]


def _group(branches: Sequence[_Branch], *, plain: bool) -> _Part:
    """A closed group: the worst of its alternatives. Only in a plain one do atoms keep their meaning."""
    backing = max((branch.backing for branch in branches), key=len)
    free = max((branch.free for branch in branches), key=len)
    alone = plain and len(branches) == 1
    return _Part(
        None,
        (branches[0].start or None) if len(branches) == 1 else None,
        _ways(branches),
        backing if alone else [None] * len(backing),
        free if alone else [None] * len(free),
        max(branch.repeats for branch in branches),
    )


def _add(branch: _Branch, part: _Part, quantifier: re.Match[str] | None) -> None:
    """Put one more item behind what the branch holds, with the quantifier that follows it."""
    least, most = _counts(quantifier)
    if quantifier is not None and quantifier["sign"] != "?":
        fixed = least == most
        if part.repeats == 2 or (part.repeats and fixed) or (part.ways > 1 and most != 1):
            _refuse_repeat()
        branch.repeats = max(branch.repeats, 1 if fixed else 2)
    branch.repeats = max(branch.repeats, part.repeats)
    if least:  # it can fail, so that what stands before may have to give back
        branch.backing += branch.free
        branch.free = []
        if not branch.fixed:
            greedy = quantifier is not None and quantifier["mode"] != "?" and most is None
            branch.takes = part.text if greedy else None
        branch.fixed = True
    branch.backing += part.backing
    branch.free += part.free
    if most is None:
        branch.free.append(part.text)
    else:
        branch.ways *= part.ways + (most - least)
    if len(branch.backing) > 1:
        raise UnsupportedError(
            "a pattern repeats freely twice before something that can fail, which can take cubic time",
            wanted="at most one such repeat in an alternative",
        )
    if branch.ways > MAX_WAYS:
        raise LimitError("a pattern leaves too many choices", wanted=f"at most {MAX_WAYS} combined")
    if branch.start == "":
        branch.start = part.start if least else None


def _counts(quantifier: re.Match[str] | None) -> tuple[int, int | None]:
    """Least and most times; None is without end."""
    if quantifier is None:
        return 1, 1
    if sign := quantifier["sign"]:
        return int(sign == "+"), 1 if sign == "?" else None
    least, most = quantifier["least"], quantifier["most"]
    if not least and not most:
        raise UnsupportedError("a pattern with an unescaped {")
    numbers = [int(number) for number in (least, most) if number]
    if max(numbers, default=0) > MAX_COUNT:
        raise LimitError("a pattern repeats too often", wanted=f"counts up to {MAX_COUNT}")
    if most is None:  # {3} is exact, but {3}? is none or three
        return (0 if quantifier["lazy"] else int(least)), int(least)
    low, high = int(least or 0), int(most) if most else None
    if high is not None and high < low:
        raise FormatError(f"a pattern repeats {{{low},{high}}} times", wanted="the smaller count first")
    return low, high


def _ways(branches: Sequence[_Branch]) -> int:
    """Alternatives that begin with different letters exclude one another; others add up."""
    starts = [branch.start for branch in branches]
    apart = all(starts) and len(set(starts)) == len(starts)
    counts = [branch.ways for branch in branches]
    total = max(counts) if apart else sum(counts)
    if total > MAX_WAYS:
        raise LimitError("a pattern leaves too many choices", wanted=f"at most {MAX_WAYS} combined")
    return total


def _covered(branches: Sequence[_Branch]) -> bool:
    """Whether each stretch that an alternative may scan in vain is then taken whole by a later one.

    Between the two there may only be others that scan the same stretch.
    """
    open_for: str | None = None
    for branch in branches:
        if branch.backing:
            scanned = branch.backing[0]
            if scanned is None or (open_for is not None and scanned != open_for):
                return False
            open_for = scanned
        elif open_for is not None:
            if branch.takes != open_for:
                return False
            open_for = None
    return open_for is None


def _atom_end(pattern: str, at: int) -> int:
    char = pattern[at]
    if char == "\\":
        escape = _ESCAPE.match(pattern, at)
        if escape is None:
            if pattern[at + 1 : at + 2] in (*"123456789kg",):
                raise UnsupportedError("a pattern with a backreference")
            raise UnsupportedError(f"a pattern with the escape {pattern[at : at + 2]!r}")
        return escape.end()
    if char == "[":
        return _class_end(pattern, at)
    if char in "*+?":
        raise UnsupportedError("a pattern with a quantifier that follows nothing")
    if char == "{":
        raise UnsupportedError("a pattern with an unescaped {")
    return at + 1


def _class_end(pattern: str, at: int) -> int:
    """Behind the bracket that closes a character class; classes may hold classes."""
    depth = 0
    while at < len(pattern):
        if name := depth and _CLASS_NAME.match(pattern, at):
            at = name.end()
        elif pattern[at] == "\\":
            at = _atom_end(pattern, at)
        elif pattern[at] == "[":
            depth += 1
            at += 2 if pattern.startswith("^", at + 1) else 1
            if pattern.startswith("]", at):  # engines differ on whether this one closes
                raise UnsupportedError("a pattern with an unescaped ] first in a class")
        else:
            depth -= pattern[at] == "]"
            at += 1
            if not depth:
                return at
    raise FormatError("a pattern leaves a class open")


def _literal(text: str) -> str | None:
    """The letter an atom stands for, whatever its case; None where it may be several."""
    if len(text) == 2 and text[0] == "\\" and not text[1].isalnum():
        text = text[1]
    elif len(text) == 2:
        return _CONTROLS.get(text)
    return text.casefold()[0] if len(text) == 1 and text not in ".^$" else None


def _refuse_repeat() -> NoReturn:
    raise UnsupportedError(
        "a pattern repeats what repeats or can match in several ways, which can take exponential time",
        wanted="no quantifier or choice inside a quantified group",
    )
