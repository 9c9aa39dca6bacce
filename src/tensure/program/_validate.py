"""Is this record a well-formed Program? Structure first, then types at the ends of every parameter."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

from tensure.errors import RecordError, TensureError

from ._dtypes import DTYPES
from ._evaluate import bind_entry, infer_program
from ._expr import evaluate
from ._ops import lookup
from ._records import Body, Call, For, Op, Program
from ._walk import COMMUNICATION


def validate_program(program: Program) -> None:
    """Raise RecordError unless the Program is well-formed.

    Checked: dtypes and stored orders, known blocks and ops, no communication, single assignment,
    every value made before it is read, boxes in bounds, types by shape rules, outputs and
    after-states made. Types are inferred at the least and greatest value of every entry parameter
    (all combinations, at most 16); nothing is computed.
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
    for label, body in (
        *((key, block.body) for key, block in program.blocks.items()),
        *((key, entry.body) for key, entry in program.entries.items()),
    ):
        check_body(body, program.blocks, label)
    for label in program.entries:
        for params in corner_params(program, label):
            try:
                infer_program(program, entry=label, params=params)
            except TensureError as error:
                at = ", ".join(f"{key}={value}" for key, value in params.items())
                error.place = (
                    f"entry {label}{f' at {at}' if at else ''}{f', {error.place}' if error.place else ''}"
                )
                raise


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
    """Every combination of least and greatest parameter values, at most 16 of them.

    A bound may depend on earlier parameters, so the choices are made one after the other.
    """
    params = program.entries[entry].params
    for ends in itertools.islice(itertools.product((0, 1), repeat=len(params)), 16):
        env, chosen = dict(program.axes), dict[str, int]()
        for (key, lo, hi), end in zip(params, ends, strict=True):
            low, high = evaluate(lo, env), evaluate(hi, env)
            if low >= high:
                break
            chosen[key] = env[key] = high - 1 if end else low
        else:
            bind_entry(program, entry, chosen)
            yield chosen


def _flat(body: Body) -> Iterator[Op | Call]:
    stack = list(body)
    while stack:
        item = stack.pop()
        if isinstance(item, For):
            stack.extend(item.body)
        else:
            yield item
