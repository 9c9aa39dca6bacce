"""Integer expressions over named axes: the only arithmetic records may contain.

`+ - * // % min max pick(i, a, b, ...)` over integers and names, bounded in depth and in magnitude at
every step. Division floors, as Python's does; division by zero is an error. Constants fold, so an
expression without names is a plain `int`. Knows nothing of tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Final, TypeAlias, Union

from tensure.errors import LimitError, RecordError

from ._lex import RESERVED, Line

MAX_DEPTH: Final = 32
MAX_NODES: Final = 1_024
MAX_MAGNITUDE: Final = 1 << 63

Env: TypeAlias = Mapping[str, int]
Int: TypeAlias = Union["Expr", int]
"""What a record holds where meaning needs an integer: a constant or an expression."""

_BINARY: Final[dict[str, tuple[int, Callable[[int, int], int]]]] = {
    "+": (1, lambda a, b: a + b),
    "-": (1, lambda a, b: a - b),
    "*": (2, lambda a, b: a * b),
    "//": (2, lambda a, b: a // b),
    "%": (2, lambda a, b: a % b),
}


class Expr:
    """One expression, equal to another exactly when their canonical texts are equal.

    Build it with `expr("pos+1")` or with Python operators on other expressions: `axis("H") // 2`.
    """

    __slots__ = ("_depth", "_parts", "_run", "names", "nodes", "rank", "text")

    nodes: int
    rank: int
    _depth: int
    names: frozenset[str]
    """Every name the value depends on."""
    text: str
    """Canonical text: no spaces, fewest parentheses; parses back to an equal expression."""

    def __init__(self, head: str, parts: tuple[Int, ...]) -> None:
        self._parts = (head, parts)
        self.nodes = 1 + sum(part.nodes if isinstance(part, Expr) else 1 for part in parts)
        self._depth = 1 + max((part._depth for part in parts if isinstance(part, Expr)), default=0)
        if self._depth > MAX_DEPTH or self.nodes > MAX_NODES:
            raise LimitError(
                f"an integer expression of depth {self._depth} with {self.nodes} parts",
                wanted=f"at most {MAX_DEPTH} deep and {MAX_NODES} parts",
            )
        if head in _BINARY:
            self.rank = _BINARY[head][0]
            left, right = parts
            self.text = f"{_inside(left, self.rank)}{head}{_inside(right, self.rank + 1)}"
        elif head in ("min", "max", "pick"):
            self.rank = 3
            self.text = f"{head}({','.join(map(str, parts))})"
        else:
            self.rank = 3
            self.text = head
        self.names = frozenset().union(*(part.names for part in parts if isinstance(part, Expr)))
        if not parts:
            self.names = frozenset({head})
        self._run: Callable[[Env], int] | None = None

    def __call__(self, env: Env) -> int:
        """The value under an environment; RecordError for a missing name or a zero divisor."""
        run = self._run
        if run is None:
            run = self._run = _compile(self)
        try:
            return run(env)
        except KeyError as missing:
            raise RecordError(
                f"nothing binds {missing.args[0]!r} in {self.text}",
                wanted=f"one of {', '.join(sorted(env)) or 'no names'}",
            ) from None
        except ZeroDivisionError:
            raise RecordError(f"division by zero in {self.text}") from None

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"expr({self.text!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Expr) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __add__(self, other: Int) -> Int:
        return combine("+", self, other)

    def __radd__(self, other: int) -> Int:
        return combine("+", other, self)

    def __sub__(self, other: Int) -> Int:
        return combine("-", self, other)

    def __rsub__(self, other: int) -> Int:
        return combine("-", other, self)

    def __mul__(self, other: Int) -> Int:
        return combine("*", self, other)

    def __rmul__(self, other: int) -> Int:
        return combine("*", other, self)

    def __floordiv__(self, other: Int) -> Int:
        return combine("//", self, other)

    def __mod__(self, other: Int) -> Int:
        return combine("%", self, other)

    def __neg__(self) -> Int:
        return combine("-", 0, self)

    def parts(self) -> tuple[str, tuple[Int, ...]]:
        """(head, operands): head is an operator, `min`/`max`/`pick`, or a name without operands."""
        return self._parts


@lru_cache(maxsize=65_536)
def expr(text: str) -> Int:
    """Parse an integer expression.

    Raises:
        RecordError: the text is not an expression.
        LimitError: it is too deep or too large.
    """
    line = Line(text)
    value = parse_int(line)
    line.end()
    return value


def axis(name: str) -> Expr:
    """The expression that is one name."""
    if name in RESERVED or not name.isidentifier():
        raise RecordError(f"{name!r} cannot name an axis", wanted="an identifier that is not reserved")
    return Expr(name, ())


def evaluate(value: Int, env: Env) -> int:
    """The integer behind a constant or an expression."""
    return value if isinstance(value, int) else value(env)


def combine(head: str, *parts: Int) -> Int:
    """Apply an operator or function, folding constants and dropping `x+0`, `x*1`, `x//1`."""
    if all(isinstance(part, int) for part in parts):
        constants = [part for part in parts if isinstance(part, int)]
        try:
            return _checked(_apply(head, constants), head)
        except ZeroDivisionError:
            raise RecordError(f"division by zero in {constants[0]}{head}0") from None
    if len(parts) == 2:
        left, right = parts
        if (head in "+-" and right == 0) or (head in ("*", "//") and right == 1):
            return left
        if (head == "+" and left == 0) or (head == "*" and left == 1):
            return right
        if head in ("min", "max") and left == right:
            return left
    return Expr(head, parts)


def parse_int(line: Line, depth: int = 0) -> Int:
    """Parse one expression at the cursor of a line (used by the text forms)."""
    return _sum(line, depth)


def _sum(line: Line, depth: int) -> Int:
    value = _product(line, depth)
    count = 0
    while line.head.kind == "mark" and line.head.text in "+-":
        value = combine(line.next().text, value, _product(line, depth))
        count = _bounded(line, count)
    return value


def _product(line: Line, depth: int) -> Int:
    value = _unary(line, depth)
    count = 0
    while line.head.kind == "mark" and line.head.text in ("*", "//", "%"):
        value = combine(line.next().text, value, _unary(line, depth))
        count = _bounded(line, count)
    return value


def _bounded(line: Line, count: int) -> int:
    if count > MAX_NODES:
        raise LimitError(f"an integer expression of over {MAX_NODES} parts", place=f"line {line.number}")
    return count + 1


def _unary(line: Line, depth: int) -> Int:
    if depth > MAX_DEPTH:
        raise LimitError(
            f"an integer expression nested over {MAX_DEPTH} deep", place=f"column {line.head.column}"
        )
    if line.take("-"):
        return combine("-", 0, _unary(line, depth + 1))
    if line.take("("):
        value = parse_int(line, depth + 1)
        line.expect(")")
        return value
    token = line.head
    if token.kind == "int":
        if len(token.text) > 20:
            raise LimitError(f"an integer of {len(token.text)} digits", wanted="64 bits")
        line.next()
        return _checked(int(token.text), token.text)
    if token.kind == "name" and token.text in ("min", "max", "pick"):
        return _call(line, depth)
    if "." in token.text:
        line.fail(f"found {token.text!r}", wanted="an integer expression")
    return axis(line.name())


def _call(line: Line, depth: int) -> Int:
    head = line.next().text
    line.expect("(")
    parts = [parse_int(line, depth + 1)]
    while line.take(","):
        parts.append(parse_int(line, depth + 1))
        _bounded(line, len(parts))
    line.expect(")")
    if len(parts) < 2:
        line.fail(f"{head} of {len(parts)} value", wanted="at least two")
    return combine(head, *parts)


def _apply(head: str, values: list[int]) -> int:
    if head == "min":
        return min(values)
    if head == "max":
        return max(values)
    if head == "pick":
        index, options = values[0], values[1:]
        if not 0 <= index < len(options):
            raise RecordError(
                f"pick({index}, ...) of {len(options)} options", wanted=f"an index in 0..{len(options)}"
            )
        return options[index]
    left, right = values
    return _BINARY[head][1](left, right)


def _checked(value: int, what: str) -> int:
    if not -MAX_MAGNITUDE <= value < MAX_MAGNITUDE:
        raise LimitError(f"an integer beyond 64 bits in {what}")
    return value


def _inside(part: Int, rank: int) -> str:
    if isinstance(part, Expr):
        return part.text if part.rank >= rank else f"({part.text})"
    return str(part) if part >= 0 else f"({part})"


def _compile(value: Expr) -> Callable[[Env], int]:
    """A closure tree; depth is bounded by MAX_DEPTH, so is the Python stack."""
    head, parts = value.parts()
    if not parts:
        return lambda env: env[head]
    runs = [_runner(part) for part in parts]
    if head in _BINARY:
        apply, (left, right) = _BINARY[head][1], runs
        return lambda env: _checked(apply(left(env), right(env)), value.text)
    return lambda env: _apply(head, [run(env) for run in runs])


def _runner(part: Int) -> Callable[[Env], int]:
    if isinstance(part, int):
        return lambda env: part
    return _compile(part)
