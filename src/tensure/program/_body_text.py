"""Text of names, operands, attributes and bodies: what the Program form and the Plan form share.

`write_*` and `read_*` are inverses. Reading is bounded by `Line` and by MAX_ITEMS and MAX_NESTING.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Final, Protocol

from tensure.errors import LimitError, RecordError

from ._expr import Expr, Int, parse_int
from ._lex import Line
from ._records import Arg, Attr, Attrs, Body, Call, Cat, Each, For, Item, Name, Op, Ref, Value

MAX_ITEMS: Final = 2_000_000
MAX_NESTING: Final = 16
INDENT: Final = 2


class Lines:
    """A cursor over the lines of a text, blank lines refused: one text, one record, one digest."""

    def __init__(self, text: str) -> None:
        if not text.endswith("\n"):
            raise RecordError("the text does not end with a newline", place="last line")
        self._lines = text[:-1].split("\n")
        if len(self._lines) > MAX_ITEMS:
            raise LimitError(f"a text of {len(self._lines)} lines", wanted=f"at most {MAX_ITEMS}")
        self._at = 0
        self._head: Line | None = None

    def head(self) -> Line | None:
        """The line at the cursor, or None at the end."""
        if self._head is None and self._at < len(self._lines):
            self._head = Line(self._lines[self._at], self._at + 1)
            if self._head.head.kind == "end" or self._lines[self._at].endswith(" "):
                self._head.fail("a blank line or trailing space")
        return self._head

    def next(self) -> Line:
        """Consume one line."""
        line = self.head()
        if line is None:
            raise RecordError("the text ends too early", place=f"line {len(self._lines)}")
        self._at += 1
        self._head = None
        return line

    def section(self, indent: int, stop: tuple[str, ...] = ()) -> Iterator[Line]:
        """Consume lines as long as they are indented by exactly `indent`; deeper is an error.

        A line that starts with one of the words in `stop` ends the section and is not consumed.
        """
        while (line := self.head()) is not None and line.indent >= indent and line.head.text not in stop:
            if line.indent != indent:
                line.fail(f"indented by {line.indent}", wanted=f"{indent} spaces")
            yield self.next()


# names and types ------------------------------------------------------------------------------------


def read_name(line: Line) -> Name:
    """`base` or `base[index, ...]`."""
    base = line.name()
    return Name(base, _read_index(line))


def write_family(base: str, params: tuple[tuple[str, Int], ...]) -> str:
    """`Wq[l<L]`: a family with its letters and extents."""
    return f"{base}[{', '.join(f'{letter}<{extent}' for letter, extent in params)}]" if params else base


def read_family(line: Line) -> tuple[str, tuple[tuple[str, Int], ...]]:
    """The inverse of write_family."""
    base = line.name()
    return base, read_letters(line)


def read_letters(line: Line) -> tuple[tuple[str, Int], ...]:
    """`[l<L, e<E]`, or nothing."""
    params: list[tuple[str, Int]] = []
    if line.take("["):
        while True:
            letter = line.name()
            line.expect("<")
            params.append((letter, parse_int(line)))
            if not line.take(","):
                break
        line.expect("]")
    return tuple(params)


def write_type(value: Value) -> str:
    """`f32[B,H//2]`, with ` order [0,2,3,1]` when stored otherwise than the shape says."""
    text = f"{value.dtype}[{','.join(map(str, value.shape))}]"
    return text if value.order is None else f"{text} order [{','.join(map(str, value.order))}]"


def read_type(line: Line) -> tuple[str, tuple[Int, ...], tuple[int, ...] | None]:
    """dtype, shape and stored order."""
    dtype = line.name()
    line.expect("[")
    shape = _read_list(line, "]")
    order = read_order(line)
    return dtype, shape, order


def read_order(line: Line) -> tuple[int, ...] | None:
    """`order [0,2,3,1]`, or nothing."""
    if not line.take("order"):
        return None
    line.expect("[")
    order = _read_list(line, "]")
    return tuple(part for part in order if isinstance(part, int))


# operands and attributes -----------------------------------------------------------------------------


def write_arg(arg: Arg) -> str:
    """An operand as text."""
    if isinstance(arg, Ref):
        box = ", ".join(f"{dim} {lo}:{hi}" for dim, lo, hi in arg.box)
        return f"{arg.name}{{{box}}}" if box else str(arg.name)
    if isinstance(arg, Cat):
        return f"cat({arg.dim}: {', '.join(map(write_arg, arg.parts))})"
    if isinstance(arg, Each):
        return f"each {arg.var} in {arg.lo}..{arg.hi}: {write_arg(arg.item)}"
    if isinstance(arg, Expr):
        return f"({arg})"
    return write_attr(arg)


def read_arg(line: Line, depth: int = 0) -> Arg:
    """The inverse of write_arg."""
    if depth > MAX_NESTING:
        raise LimitError(f"operands nested over {MAX_NESTING} deep", place=f"line {line.number}")
    token = line.head
    if token.text == "cat" and line.peek().text == "(":
        line.next(), line.next()
        dim = _read_int(line)
        line.expect(":")
        return Cat(dim, _read_args(line, depth + 1))
    if token.text == "each":
        line.next()
        var = line.name()
        line.expect("in")
        lo, hi = read_range(line)
        line.expect(":")
        return Each(var, lo, hi, read_arg(line, depth + 1))
    if token.text == "(":
        line.next()
        number = parse_int(line)
        line.expect(")")
        return number
    if token.kind == "name" and token.text not in ("true", "false", "none", "inf", "nan"):
        return _read_ref(line)
    value = read_attr(line)
    if isinstance(value, (str, tuple, Expr)):
        line.fail("an operand that is neither a value nor a number")
    return value


def write_attr(value: Attr) -> str:
    """An attribute as text; floats keep every bit (shortest text that reads back equal)."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(write_attr, value))}]"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    return repr(value) if isinstance(value, float) else str(value)


def read_attr(line: Line, depth: int = 0) -> Attr:
    """The inverse of write_attr."""
    if depth > MAX_NESTING:
        raise LimitError(f"a list nested over {MAX_NESTING} deep", place=f"line {line.number}")
    token = line.head
    if token.kind == "string":
        return line.string()
    if line.take("["):
        items: list[Attr] = []
        while not line.take("]"):
            if items:
                line.expect(",")
            items.append(read_attr(line, depth + 1))
        return tuple(items)
    constants: dict[str, Attr] = {
        "none": None,
        "true": True,
        "false": False,
        "inf": math.inf,
        "nan": math.nan,
    }
    if token.kind == "name" and token.text in constants:
        line.next()
        return constants[token.text]
    negative = token.text == "-" and (line.peek().kind == "float" or line.peek().text == "inf")
    if negative:
        line.next()
    if line.head.kind == "float" or (negative and line.head.text == "inf"):
        value = float(line.next().text)
        return -value if negative else value
    return parse_int(line)


def write_attrs(attrs: Attrs) -> str:
    """` key=value key=value`."""
    return "".join(f" {key}={write_attr(value)}" for key, value in attrs)


def read_attrs(line: Line) -> Attrs:
    """Attributes up to the end of the line or a note; keys in rising order, none twice."""
    attrs: list[tuple[str, Attr]] = []
    while line.head.kind != "end" and not line.at("#"):
        key = line.key()
        line.expect("=")
        if attrs and key <= attrs[-1][0]:
            line.fail(f"attribute {key!r} after {attrs[-1][0]!r}", wanted="rising order, each once")
        attrs.append((key, read_attr(line)))
    return tuple(attrs)


def read_range(line: Line) -> tuple[Int, Int]:
    """`lo..hi`."""
    lo = parse_int(line)
    line.expect("..")
    return lo, parse_int(line)


# bodies ----------------------------------------------------------------------------------------------


class Out(Protocol):
    """Where lines go."""

    def __call__(self, text: str, /) -> object:
        """Take one line without its newline."""
        ...


def write_body(body: Body, indent: int, out: Out, *, notes: bool = True) -> None:
    """One line per item, nested by indentation."""
    pad = " " * indent
    for item in body:
        if isinstance(item, For):
            out(f"{pad}for {item.var} in {item.lo}..{item.hi}:")
            write_body(item.body, indent + INDENT, out, notes=notes)
        elif isinstance(item, Call):
            out(f"{pad}call {item.block}({', '.join(map(str, item.args))})")
        else:
            out(pad + write_op(item, notes=notes))


def write_op(item: Op, *, notes: bool = True) -> str:
    """`y = op(args) attrs  # note`."""
    made = f"{', '.join(map(str, item.outs))} = " if item.outs else ""
    note = f"  #{write_attrs(item.note)}" if notes and item.note else ""
    return f"{made}{item.op}({', '.join(map(write_arg, item.args))}){write_attrs(item.attrs)}{note}"


def read_body(lines: Lines, indent: int, depth: int = 0) -> Body:
    """The inverse of write_body: every following line at this indent or deeper, up to a closing section."""
    if depth > MAX_NESTING:
        raise LimitError(f"loops nested over {MAX_NESTING} deep")
    items: list[Item] = []
    for line in lines.section(indent, ("output", "carry")):
        if line.at("for"):
            line.next()
            var = line.name()
            line.expect("in")
            lo, hi = read_range(line)
            line.expect(":")
            line.end()
            items.append(For(var, lo, hi, read_body(lines, indent + INDENT, depth + 1)))
        elif line.at("call"):
            line.next()
            block = line.name()
            line.expect("(")
            items.append(Call(block, _read_list(line, ")")))
            line.end()
        else:
            items.append(_read_op(line))
    if not items and depth:
        raise RecordError("an empty body", wanted="at least one step")
    return tuple(items)


def _read_op(line: Line) -> Op:
    outs: list[Name] = []
    if line.peek().text != "(":
        outs.append(read_name(line))
        while line.take(","):
            outs.append(read_name(line))
        line.expect("=")
    kind = line.next()
    if kind.kind != "name":
        line.fail(f"found {kind.text!r}", wanted="an op")
    line.expect("(")
    args = _read_args(line, 0)
    attrs = read_attrs(line)
    note: Attrs = ()
    if line.take("#"):
        note = read_attrs(line)
    line.end()
    return Op(kind.text, args, tuple(outs), attrs, note)


def _read_args(line: Line, depth: int) -> tuple[Arg, ...]:
    args: list[Arg] = []
    while not line.take(")"):
        if args:
            line.expect(",")
        args.append(read_arg(line, depth))
    return tuple(args)


def _read_ref(line: Line) -> Ref:
    name = read_name(line)
    box: list[tuple[int, Int, Int]] = []
    if line.take("{"):
        while True:
            dim = _read_int(line)
            lo = parse_int(line)
            line.expect(":")
            if box and dim <= box[-1][0]:
                line.fail(f"dim {dim} after dim {box[-1][0]}", wanted="rising order, each once")
            box.append((dim, lo, parse_int(line)))
            if not line.take(","):
                break
        line.expect("}")
    return Ref(name, tuple(box))


def _read_int(line: Line) -> int:
    token = line.head
    if token.kind != "int" or len(token.text) > 4:
        line.fail(f"found {token.text!r}", wanted="a small integer")
    line.next()
    return int(token.text)


def _read_index(line: Line) -> tuple[Int, ...]:
    return _read_list(line, "]") if line.take("[") else ()


def _read_list(line: Line, close: str) -> tuple[Int, ...]:
    items: list[Int] = []
    while not line.take(close):
        if items:
            line.expect(",")
        items.append(parse_int(line))
    return tuple(items)
