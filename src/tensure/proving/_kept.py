"""A Program's run in numpy for a few of its values: the steps they rest on, keeping what is read again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from tensure.errors import LimitError, TensureError
from tensure.program import (
    Op,
    Program,
    TensorType,
    bind_entry,
    expand,
    infer_program,
    leaves,
    read_operand,
    run_step,
)

from ._contraction import TERMS, terms_of
from ._domain import PLAIN, Manner, manner_of
from ._replay import Array, Real, ways, widened_program

MAX_LIVE: Final = 1 << 28
"""Elements kept at once: 2 GiB in float64."""
DAMPED: Final = 1 / 8
"""Times this floats are drawn where they overflow (a deep model without norms): there nothing differs."""
MAX_WORK: Final = 1 << 38
"""Elements made, those of products counted once for each addend."""


@dataclass(frozen=True, slots=True)
class Draw:
    """Which numbers are drawn: the stream, below what indices, times what floats, and otherwise how."""

    seed: int
    most: int
    damped: float
    manner: Manner = PLAIN


def kept_values(
    program: Program, entry: str, params: Mapping[str, int], seed: int, labels: set[str]
) -> Mapping[str, Array]:
    """Values of one run by name, narrower floats as float64; the same for one seed whatever is asked.

    But where any that is asked for overflows, all are of smaller numbers, if that helps.

    Args:
        labels: which values.

    Raises:
        LimitError: it would be too large, or the Program refuses drawn values.
    """
    wide = widened_program(program)
    env = bind_entry(wide, entry, params)
    types = infer_program(wide, entry=entry, params=params)
    steps = _needed(list(expand(wide.blocks, wide.entry(entry).body, env)), labels)
    given = {label: want for label, want, _ in leaves(wide, entry, env)}
    _small_enough(steps, types, labels)
    manner = manner_of(wide, entry, env, seed)
    for most, how in ways(manner):
        try:
            with np.errstate(all="ignore"):
                for damped in (1.0, DAMPED):
                    found = _run(steps, given, labels, Draw(seed, most, damped, how))
                    if not _overflows(found):
                        return found
                    del found  # as large as the next
                return _run(steps, given, labels, Draw(seed, most, 1.0, how))
        except LimitError:
            raise
        except TensureError:
            continue
    raise LimitError("the program refuses drawn values")


def _overflows(values: Mapping[str, Array]) -> bool:
    """Whether any is no number or too large; what is masked is often the least number there is."""
    return any(
        array.dtype.kind == "f" and bool((np.isnan(array) | np.isposinf(array)).any())
        for array in values.values()
    )


def _needed(steps: Sequence[Op], labels: set[str]) -> list[Op]:
    """The steps that make what is asked for, or what those read."""
    wanted, found = set(labels), list[Op]()
    for step in reversed(steps):
        if any(str(out) in wanted for out in step.outs):
            found.append(step)
            wanted.update(str(ref.name) for ref in step.reads())
    return found[::-1]


def _last_reads(steps: Sequence[Op]) -> dict[str, int]:
    return {str(ref.name): at for at, step in enumerate(steps) for ref in step.reads()}


def _dropped(at: int, step: Op, last: Mapping[str, int], labels: set[str]) -> Iterator[str]:
    """What no later step reads."""
    for label in {str(ref.name) for ref in step.reads()} | {str(out) for out in step.outs}:
        if last.get(label, -1) <= at and label not in labels:
            yield label


def _small_enough(steps: Sequence[Op], types: Mapping[str, TensorType], labels: set[str]) -> None:
    """Raises LimitError where it would take too much memory or time."""
    sizes = {label: math.prod(found.shape) for label, found in types.items()}
    last, live, held = _last_reads(steps), 0, set[str]()
    most = work = 0
    for at, step in enumerate(steps):
        reads = [str(ref.name) for ref in step.reads()]
        for label in (*reads, *map(str, step.outs)):
            if label not in held:
                held.add(label)
                live += sizes[label]
        most = max(most, live)
        work += max(
            _addends(step, [types[label] for label in reads]), sum(sizes[str(out)] for out in step.outs)
        )
        for label in _dropped(at, step, last, labels):
            live -= sizes[label]
            held.discard(label)
    if most > MAX_LIVE:
        raise LimitError(f"{most} elements of the program are kept at once", wanted=f"at most {MAX_LIVE}")
    if work > MAX_WORK:
        raise LimitError(f"{work} elements of the program are made", wanted=f"at most {MAX_WORK}")


def _addends(step: Op, reads: Sequence[TensorType]) -> int:
    """How many products a sum of products adds up; 0 for another op."""
    shapes = [found.shape for found in reads]
    found = (
        terms_of(step.op, dict(step.attrs), [len(shape) for shape in shapes]) if step.op in TERMS else None
    )
    if found is None:
        return 0
    pairs = zip(found[0], shapes, strict=False)
    return math.prod(
        {letter: size for term, shape in pairs for letter, size in zip(term, shape, strict=False)}.values()
    )


def _run(
    steps: Sequence[Op], given: Mapping[str, TensorType], labels: set[str], draw: Draw
) -> dict[str, Array]:
    names = {label: number for number, label in enumerate(given)}
    last = _last_reads(steps)
    values: dict[str, Array] = {}

    def get(label: str) -> Array:
        if label not in values:  # each leaf from its own stream, so that it does not matter who asks first
            drawn = Real((draw.seed, names[label]), draw.most, draw.manner).draw(label, given[label])
            values[label] = drawn * draw.damped if drawn.dtype.kind == "f" else drawn
        return values[label]

    for at, step in enumerate(steps):
        operands: list[Any] = [read_operand(arg, lambda ref: get(str(ref.name))) for arg in step.args]
        values.update(zip(map(str, step.outs), run_step(step, operands), strict=True))
        for label in _dropped(at, step, last, labels):
            values.pop(label, None)
    return {label: get(label) for label in labels}
