"""Is this record a well-formed Program? Structure first, then types at the ends of every parameter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from tensure.errors import RecordError, TensureError

from ._dtypes import DTYPES
from ._evaluate import infer_program
from ._expr import Expr, evaluate
from ._ops import lookup
from ._records import Body, Call, Entry, For, Op, Program, Value
from ._text import format_program, parse_program
from ._walk import COMMUNICATION

MAX_STEPS: Final = 1 << 19
"""Steps expanded in one validation, over all entries and parameter values."""
MAX_CORNERS: Final = 16


def validate_program(program: Program) -> None:
    """Raise unless the Program is well-formed.

    Checked: the text reads back as the same record; dtypes and stored orders; known blocks and ops, no
    communication; names bound once (no parameter hides an axis); inputs, weights and states apart; weight
    types free of parameters; single assignment, every value made before it is read, boxes in bounds,
    types by shape rules, outputs and after-states made. Types are inferred at the ends of every entry
    parameter (see `corner_params`); nothing is computed.

    Raises:
        RecordError: naming the entry, the parameters and the step.
        LimitError: over MAX_STEPS steps in all.
    """
    if not program.entries:
        raise RecordError("a program without entries", wanted="at least one")
    for label, size in program.axes.items():
        if not 0 <= size < 1 << 48:
            raise RecordError(f"axis {label}={size}", wanted="a size in 0..2^48")
    for base, value in program.values.items():
        if value.dtype not in DTYPES:
            raise RecordError(f"dtype {value.dtype!r}", place=base, wanted=" ".join(DTYPES))
        if value.order is not None and sorted(value.order) != list(range(len(value.shape))):
            raise RecordError(f"stored order {list(value.order)}", place=base, wanted="every dim once")
        if value.role == "weight":
            _check_weight_type(program, base, value)
    for label, block in program.blocks.items():
        check_body(block.body, program.blocks, f"block {label}")
    for label, entry in program.entries.items():
        check_body(entry.body, program.blocks, f"entry {label}")
        _check_names(program, label, entry)
    if repr(parse_program(format_program(program))) != repr(program):
        raise RecordError(
            "a record that its text does not read back as",
            wanted="names that are names, attributes in rising order, integers of 64 bits",
        )
    corners = {label: list(corner_params(program, label)) for label in program.entries}
    share = MAX_STEPS // sum(map(len, corners.values()))
    for label, points in corners.items():
        for params in points:
            try:
                infer_program(program, entry=label, params=params, limit=share)
            except TensureError as error:
                raise located(error, label, params) from None


def located(error: TensureError, entry: str, params: Mapping[str, int]) -> TensureError:
    """The error with entry and parameters put before its place."""
    at = ", ".join(f"{key}={value}" for key, value in params.items())
    error.place = f"entry {entry}{f' at {at}' if at else ''}{f', {error.place}' if error.place else ''}"
    return error


def check_body(body: Body, blocks: Mapping[str, object], label: str, *, communication: bool = False) -> None:
    """Every op is listed and every called block exists."""
    for item in _flat(body):
        if isinstance(item, Call):
            if item.block not in blocks:
                raise RecordError(f"call of block {item.block!r}, which does not exist", place=label)
        elif item.op in COMMUNICATION:
            if not communication:
                raise RecordError(
                    f"{item.op} in a program", place=label, wanted="communication only in a plan"
                )
        else:
            lookup(item.op)


def corner_params(program: Program, entry: str) -> Iterator[dict[str, int]]:
    """Parameter values at which types are inferred, each once.

    All at their least, all at their greatest, and each one alone at its other end. A bound may depend on
    earlier parameters, so values are chosen one after the other.

    Raises:
        RecordError: a parameter whose range is empty there.
    """
    params = program.entries[entry].params
    count = len(params)
    ends = [[False] * count, [True] * count]
    ends += [[(i == j) != flip for j in range(count)] for flip in (False, True) for i in range(count)]
    seen: set[tuple[int, ...]] = set()
    for choice in ends[:MAX_CORNERS]:
        env, chosen = dict(program.axes), dict[str, int]()
        for (key, lo, hi), end in zip(params, choice, strict=True):
            low, high = evaluate(lo, env), evaluate(hi, env)
            if low >= high:
                raise RecordError(f"parameter {key} in {low}..{high} has no value", place=f"entry {entry}")
            chosen[key] = env[key] = high - 1 if end else low
        point = tuple(chosen.values())
        if point not in seen:
            seen.add(point)
            yield chosen


def _check_weight_type(program: Program, base: str, value: Value) -> None:
    letters = {letter for letter, _ in value.params}
    for size in (*value.shape, *(extent for _, extent in value.params)):
        unknown = size.names - set(program.axes) - letters if isinstance(size, Expr) else frozenset[str]()
        if unknown:
            raise RecordError(
                f"size {size} of a weight depends on {min(unknown)!r}",
                place=base,
                wanted="axes only: entries share weights",
            )


def _check_names(program: Program, label: str, entry: Entry) -> None:
    place = f"entry {label}"
    bound: set[str] = set(program.axes)
    for key in (*(param for param, _, _ in entry.params), *(key for key, _ in entry.fixed)):
        if key in bound:
            raise RecordError(f"{key!r} is bound twice", place=place, wanted="a name of its own")
        bound.add(key)
    if not entry.outputs and not entry.states:
        raise RecordError("neither an output nor a state", place=place, wanted="something that comes out")
    _once([str(name) for name in entry.inputs], "input", place)
    _once([str(state.before) for state in entry.states], "before-state", place)
    _once([str(state.after) for state in entry.states], "after-state", place)
    _once([str(name) for name in entry.outputs], "output", place)
    carried = {state.before.base for state in entry.states}
    for name in entry.inputs:
        role = program.values[name.base].role if name.base in program.values else "value"
        if role != "value" or name.base in carried:
            raise RecordError(
                f"input {name} is a {role}", place=place, wanted="a value that is only an input"
            )
    for state in entry.states:
        if state.after.base in carried or state.after.base in {name.base for name in entry.inputs}:
            raise RecordError(
                f"{state.after} is carried on as it came",
                place=place,
                wanted="an after-state that the entry makes",
            )


def _once(labels: list[str], what: str, place: str) -> None:
    doubled = next((label for label in labels if labels.count(label) > 1), None)
    if doubled is not None:
        raise RecordError(f"{what} {doubled} stands twice", place=place, wanted="each once")


def _flat(body: Body) -> Iterator[Op | Call]:
    stack = list(body)
    while stack:
        item = stack.pop()
        if isinstance(item, For):
            stack.extend(item.body)
        else:
            yield item
