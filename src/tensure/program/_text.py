"""The text form of a Program: what a person reads, what is stored, and what is hashed.

    tensure program 1
    axis L = 2
    weight W[l<L] : f32[4,4]
    value x[l<L+1] : f32[1,4]
    block layer(l):
      h[l] = linear(x[l], W[l])
      x[l+1] = relu(h[l])
    entry run():
      input x[0]
      for l in 0..L:
        call layer(l)
      output x[L]

`parse_program(format_program(p)) == p`, and of all texts of one Program only one is accepted.
The digest is taken over this text without notes, since notes never change meaning.
"""

from __future__ import annotations

import hashlib
from typing import TypeVar

from tensure.errors import RecordError

from ._body_text import (
    INDENT,
    Lines,
    read_body,
    read_family,
    read_letters,
    read_name,
    read_range,
    read_type,
    write_body,
    write_family,
    write_type,
)
from ._expr import Int, parse_int
from ._lex import Line
from ._records import ROLES, Block, Entry, Name, Program, State, Value

HEADER = "tensure program 1"
MAX_TEXT = 256 * 1024 * 1024
_T = TypeVar("_T")


def format_program(program: Program, *, notes: bool = True) -> str:
    """The Program as text."""
    lines = [HEADER]
    out = lines.append
    for axis, size in program.axes.items():
        out(f"axis {axis} = {size}")
    for base, value in program.values.items():
        out(f"{value.role} {write_family(base, value.params)} : {write_type(value)}")
    for label, block in program.blocks.items():
        out(f"block {label}({', '.join(block.params)}):")
        write_body(block.body, INDENT, out, notes=notes)
    for label, entry in program.entries.items():
        params = ", ".join(f"{param} in {lo}..{hi}" for param, lo, hi in entry.params)
        fixed = ", ".join(f"{key}={value}" for key, value in entry.fixed)
        out(f"entry {label}({params}){' with ' if fixed else ''}{fixed}:")
        pad = " " * INDENT
        lines.extend(f"{pad}input {item}" for item in entry.inputs)
        write_body(entry.body, INDENT, out, notes=notes)
        lines.extend(f"{pad}output {item}" for item in entry.outputs)
        lines.extend(f"{pad}carry {_letters(state)}{state.before} -> {state.after}" for state in entry.states)
    return "\n".join(lines) + "\n"


def parse_program(text: str) -> Program:
    """The Program a text stands for, not yet validated.

    Raises:
        RecordError: naming line and column.
        LimitError: a bound of the text form was passed.
    """
    if len(text) > MAX_TEXT:
        raise RecordError(f"a program of {len(text)} characters", wanted=f"at most {MAX_TEXT}")
    lines = Lines(text)
    read_header(lines, HEADER)
    axes: dict[str, int] = {}
    values: dict[str, Value] = {}
    blocks: dict[str, Block] = {}
    entries: dict[str, Entry] = {}
    stage = 0
    for line in lines.section(0):
        kind = line.head.text
        order = {"axis": 0, "block": 2, "entry": 3}.get(kind, 1)
        if order < stage:
            line.fail(f"{kind!r} after later sections", wanted="axes, values, blocks, entries in this order")
        stage = order
        if kind == "axis":
            line.next()
            label = line.name()
            line.expect("=")
            size = parse_int(line)
            if not isinstance(size, int):
                line.fail(f"axis {label} = {size}", wanted="an integer")
            line.end()
            _put(axes, label, size, line)
        elif kind in ROLES:
            line.next()
            base, params = read_family(line)
            line.expect(":")
            dtype, shape, stored = read_type(line)
            line.end()
            _put(values, base, Value(shape, dtype, kind, params, stored), line)
        elif kind == "block":
            label, block = read_block(lines, line)
            _put(blocks, label, block, line)
        elif kind == "entry":
            line.next()
            label = line.name()
            _put(entries, label, _read_entry(lines, line), line)
        else:
            line.fail(f"found {kind!r}", wanted=f"axis, {', '.join(ROLES)}, block or entry")
    if (rest := lines.head()) is not None:
        rest.fail("a stray line")
    program = Program(axes, values, blocks, entries)
    must_be_canonical(text, format_program(program))
    return program


def must_be_canonical(text: str, canonical: str) -> None:
    """One record, one text: name the first line that is spelled otherwise than we spell it."""
    if text == canonical:
        return
    pairs = zip(text.split("\n"), canonical.split("\n"), strict=False)
    number, (have, want) = next((i, pair) for i, pair in enumerate(pairs, 1) if pair[0] != pair[1])
    raise RecordError(
        f"found {have.strip()!r}", place=f"line {number}", wanted=f"the canonical {want.strip()!r}"
    )


def read_header(lines: Lines, header: str) -> None:
    """The first line, exactly."""
    line = lines.next()
    words = header.split()
    for word in words:
        if line.head.text != word:
            line.fail(f"found {line.head.text!r}", wanted=f"the header {header!r}")
        line.next()
    line.end()


def read_block(lines: Lines, line: Line) -> tuple[str, Block]:
    """`block name(params):` and its body."""
    line.expect("block")
    label = line.name()
    line.expect("(")
    params: list[str] = []
    while not line.take(")"):
        if params:
            line.expect(",")
        params.append(line.name())
    line.expect(":")
    line.end()
    return label, Block(tuple(params), read_body(lines, INDENT))


def digest(program: Program) -> str:
    """`sha256:<hex>` of the Program's meaning: its text without notes.

    Shapes, dtypes, names and op order are part of it, so a reshape or a cast changes it.
    """
    return f"sha256:{hashlib.sha256(format_program(program, notes=False).encode()).hexdigest()}"


def _letters(state: State) -> str:
    return f"[{', '.join(f'{letter}<{extent}' for letter, extent in state.params)}] " if state.params else ""


def _read_entry(lines: Lines, line: Line) -> Entry:
    line.expect("(")
    params: list[tuple[str, Int, Int]] = []
    while not line.take(")"):
        if params:
            line.expect(",")
        label = line.name()
        line.expect("in")
        params.append((label, *read_range(line)))
    fixed: list[tuple[str, Int]] = []
    if line.take("with"):
        while True:
            label = line.name()
            line.expect("=")
            fixed.append((label, parse_int(line)))
            if not line.take(","):
                break
    line.expect(":")
    line.end()
    inputs = tuple(_lead(lines, "input"))
    body = read_body(lines, INDENT)
    outputs = tuple(_lead(lines, "output"))
    states: list[State] = []
    while _at(lines, "carry"):
        row = lines.next()
        row.next()
        letters = read_letters(row)
        before = read_name(row)
        row.expect("->")
        states.append(State(before, read_name(row), letters))
        row.end()
    return Entry(inputs, body, outputs, tuple(states), tuple(params), tuple(fixed))


def _lead(lines: Lines, word: str) -> list[Name]:
    names: list[Name] = []
    while _at(lines, word):
        row = lines.next()
        row.next()
        names.append(read_name(row))
        row.end()
    return names


def _at(lines: Lines, word: str) -> bool:
    """Is the next line of this section a `word ...` line? The words are reserved, so no op starts so."""
    row = lines.head()
    return row is not None and row.indent == INDENT and row.head.text == word


def _put(table: dict[str, _T], key: str, value: _T, line: Line) -> None:
    if key in table:
        line.fail(f"{key!r} stands twice")
    table[key] = value
