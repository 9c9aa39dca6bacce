"""A concrete replay: float64 and integers through the op table's own semantics, to confirm a difference.

Narrow floats are widened to float64 in a copy of the records, so that a difference is one of meaning
and not of rounding. Knows nothing of rules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, Final, TypeAlias

import numpy as np

from tensure.bundle import Local, Plan, Track
from tensure.errors import EvaluationError, LimitError, RecordError, TensureError
from tensure.program import (
    Attr,
    Attrs,
    Block,
    Body,
    For,
    Op,
    Program,
    TensorType,
    bind_entry,
    collective,
    evaluate_program,
    infer_program,
    leaves,
    numpy_dtype,
    run_step,
)

from ._compare import Comparison, Standing, compare
from ._domain import PLAIN, Manner, manner_of
from ._multiples import Multiple, multiple_of

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
NARROW: Final = frozenset({"f32", "f16", "bf16"})
MAX_ELEMENTS: Final = 1 << 26
DRAWS: Final = (4, 2, 1)
"""Below what indices are drawn, the first that the Program takes."""
LEVELS: Final = (7 / 8, 1 / 8)
"""What all random numbers are where nobody knows which are which."""


def replay(
    plan: Plan,
    program: Program,
    entry: str,
    params: Mapping[str, int],
    seed: int,
    standing: Standing | None = None,
) -> Comparison | None:
    """One concrete run of both; None when it would be too large or the Program refuses drawn values.

    Args:
        standing: what random numbers of ranks stand for, as for `compare`. Where that is not known all random
            numbers are one: then they are the model's, whatever they stand for.
    """
    if standing is None:
        program, plan = constant_program(program, LEVELS[seed % 2]), constant_plan(plan, LEVELS[seed % 2])
    wide_program, wide_plan = widened_program(program), widened_plan(plan)
    env = bind_entry(wide_program, entry, params)
    types = infer_program(wide_program, entry=entry, params=params)
    if sum(int(np.prod(found.shape, dtype=np.float64)) for found in types.values()) > MAX_ELEMENTS:
        return None
    manner = manner_of(wide_program, entry, env, seed)
    for most, how in ways(manner):
        try:
            return compare(wide_plan, wide_program, entry, env, Real(seed, most, how), standing)
        except LimitError:
            return None
        except RecordError:
            continue
    return None


def ways(manner: Manner) -> Iterator[tuple[int, Manner]]:
    """Below what indices are drawn, and how all is: the first of these that the Program takes."""
    for how in (manner, manner.unmarked()) if manner.marks else (manner,):
        yield from ((most, how) for most in DRAWS)


def storage_replay(
    plan: Plan, program: Program, entry: str, params: Mapping[str, int], seed: int
) -> str | None:
    """What goes wrong when pooled locals live in real bytes, in words; None when nothing shows."""
    from tensure.bundle import collect, compare_claims, evaluate_plan

    real = Real(seed, 4)
    env = bind_entry(program, entry, params)
    drawn = {label: real.draw(label, want) for label, want, _ in leaves(program, entry, env)}
    try:
        logical = evaluate_program(program, drawn, entry=entry, params=params)
    except TensureError:
        return None
    try:
        run = evaluate_plan(plan, program, drawn, entry=entry, params=params, storage=True)
        wrong = compare_claims(run, logical, rtol=1e-4, atol=1e-4)
        if wrong is not None:
            return wrong
        found = collect(run, program, program.entry(entry).outputs)
    except (EvaluationError, RecordError) as error:
        return str(error)
    for label, want in logical.outputs.items():
        if not np.allclose(found[label].astype(np.float64), want.astype(np.float64), rtol=1e-4, atol=1e-4):
            return f"output {label} differs"
    return None


class Real:
    """numpy values.

    Args:
        seed: of what is drawn.
        most: indices are below it.
        manner: how they are drawn besides.
    """

    def __init__(self, seed: int | Sequence[int], most: int, manner: Manner = PLAIN) -> None:
        self.rng = np.random.default_rng(seed)
        self.most, self.manner = most, manner

    def draw(self, label: str, want: TensorType) -> Array:
        if want.dtype.startswith(("f", "bf")):
            fan = max(want.shape[-1] if want.shape else 1, 1)
            drawn: Array = self.rng.standard_normal(want.shape)
            drawn *= self.manner.scale * (0.5 if fan < 64 else fan**-0.5)
            drawn = np.abs(drawn) if label in self.manner.positive else drawn
        elif want.dtype in ("i64", "i32", "bool"):
            drawn = self.rng.integers(0, 2 if want.dtype == "bool" else self.most, want.shape)
            drawn = self._marked(drawn, self.manner.marks.get(label, ()))
        else:
            drawn = self.rng.integers(0 if want.dtype == "u8" else -90, 91, want.shape)
        return np.asarray(drawn).astype(numpy_dtype(want.dtype))

    def _marked(self, drawn: Array, marks: tuple[int, ...]) -> Array:
        """Every second element but the first may be a mark, the later the likelier, the last two are."""
        at = np.arange(drawn.size)
        if marks and drawn.size > 1:
            likely = (self.rng.random(drawn.size) < at / drawn.size) | (at >= drawn.size - 4)
            spots = np.flatnonzero((at % 2 == 1) & likely & ((at > 1) | (drawn.size < 4)))
            drawn.flat[spots] = self.rng.choice(marks, spots.size)
        return drawn

    def run(self, step: Op, operands: list[Any]) -> list[Array]:
        return run_step(step, operands)

    def meet(self, step: Op, members: list[Array]) -> list[Array]:
        return collective(step.op, members, dict(step.attrs))

    def take(self, value: Array, dim: int, indices: list[int]) -> Array:
        return value.take(indices, axis=dim)

    def join(self, dim: int, values: list[Array]) -> Array:
        if len({value.dtype for value in values}) != 1:
            raise RecordError("cat of several dtypes")
        return np.concatenate(values, axis=dim)

    def shape(self, value: Array) -> tuple[int, ...]:
        return tuple(value.shape)

    def add(self, one: Array, other: Array) -> Array:
        return np.asarray(one + other)

    def scale(self, value: Array, by: Fraction) -> Array:
        return np.asarray(value * float(by))

    def turn(self) -> None:
        pass

    def multiple(self, have: Array, want: Array) -> Multiple | None:
        return multiple_of(have, want)

    def difference(self, have: Array, want: Array) -> tuple[int, ...] | None:
        one, other = have.astype(np.float64), want.astype(np.float64)
        with np.errstate(all="ignore"):
            near = np.isclose(one, other, rtol=1e-9, atol=1e-10, equal_nan=True)
        if near.all():
            return None
        return tuple(int(part) for part in np.argwhere(~near)[0])


def constant_step(step: Op, level: float = LEVELS[1]) -> Op:
    """The same step, but that a draw gives one number everywhere."""
    if step.op != "draw":
        return step
    attrs: dict[str, Attr] = {
        "size": step.attr("size"),
        "dtype": step.attr("dtype") or "f32",
        "fill_value": level,
    }
    return Op("full", (), step.outs, tuple(sorted(attrs.items())), step.note)


def constant_program(program: Program, level: float) -> Program:
    """The same Program where all random numbers are one."""
    return changed_program(program, lambda step: constant_step(step, level))


def constant_plan(plan: Plan, level: float) -> Plan:
    """The same Plan where all random numbers are one."""
    return changed_plan(plan, lambda step: constant_step(step, level))


def changed_program(program: Program, change: Callable[[Op], Op]) -> Program:
    """The same Program with every step changed."""
    return replace(
        program,
        blocks=_blocks(program.blocks, change),
        entries={
            key: replace(entry, body=_body(entry.body, change)) for key, entry in program.entries.items()
        },
    )


def changed_plan(plan: Plan, change: Callable[[Op], Op]) -> Plan:
    """The same Plan with every step changed."""

    def track(old: Track) -> Track:
        return replace(old, bodies={key: _body(body, change) for key, body in old.bodies.items()})

    tracks = {key: track(old) for key, old in plan.tracks.items()}
    return replace(plan, blocks=_blocks(plan.blocks, change), tracks=tracks)


def widened_program(program: Program) -> Program:
    """The same Program in float64 wherever it says a narrower float."""
    return replace(
        program,
        values={base: _wide(value) for base, value in program.values.items()},
        blocks=_blocks(program.blocks),
        entries={key: replace(entry, body=_body(entry.body)) for key, entry in program.entries.items()},
    )


def widened_plan(plan: Plan) -> Plan:
    """The same Plan in float64."""

    def local(old: Local) -> Local:
        return replace(old, dtype="f64") if old.dtype in NARROW else old

    def track(old: Track) -> Track:
        return replace(
            old,
            locals={base: local(item) for base, item in old.locals.items()},
            bodies={key: _body(body) for key, body in old.bodies.items()},
        )

    return replace(
        plan,
        locals={base: local(item) for base, item in plan.locals.items()},
        blocks=_blocks(plan.blocks),
        tracks={key: track(old) for key, old in plan.tracks.items()},
    )


def _wide(value: Any) -> Any:
    return replace(value, dtype="f64") if value.dtype in NARROW else value


def _widened(step: Op) -> Op:
    return replace(step, attrs=widened_attrs(step.attrs))


def _blocks(blocks: Mapping[str, Block], change: Callable[[Op], Op] = _widened) -> dict[str, Block]:
    return {key: Block(block.params, _body(block.body, change)) for key, block in blocks.items()}


def _body(body: Body, change: Callable[[Op], Op] = _widened) -> Body:
    return tuple(
        change(item)
        if isinstance(item, Op)
        else replace(item, body=_body(item.body, change))
        if isinstance(item, For)
        else item
        for item in body
    )


def widened_attrs(attrs: Attrs) -> Attrs:
    """Attributes that name a float's width, with the widest."""
    return tuple(
        (key, "f64") if key in ("dtype", "input_dtype") and value in NARROW else (key, value)
        for key, value in attrs
    )
