"""What a Program means, computed: numpy values or just types, by the op table's own semantics.

Slow and plain on purpose; everything faster is held against it. Knows no plan and no hardware.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from tensure.errors import EvaluationError, RecordError, TensureError

from ._affine import Affine
from ._dtypes import dtype_name
from ._expr import Env, evaluate
from ._ops import evaluate_op, infer_op
from ._records import Arg, Cat, Entry, Name, Op, Program, Ref, TensorType, Value, family
from ._walk import COMMUNICATION, MAX_STEPS, expand

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Everything one invocation made: `values` holds every logical value by printed name."""

    values: Mapping[str, Array]
    outputs: Mapping[str, Array]
    states: Mapping[str, Array]
    """After-states, under the names of their before-states: ready to be handed in again."""


def bind_entry(
    program: Program, entry: str | None = None, params: Mapping[str, int] | None = None
) -> dict[str, int]:
    """The environment of one invocation: axes, parameters within their bounds, fixed names."""
    found = program.entry(entry)
    given = dict(params or {})
    env = dict(program.axes)
    for key, lo, hi in found.params:
        if key not in given:
            raise RecordError(f"parameter {key!r} is missing", wanted=f"{key} in {lo}..{hi}")
        low, high, value = evaluate(lo, env), evaluate(hi, env), given.pop(key)
        if not low <= value < high:
            raise RecordError(f"{key}={value}", wanted=f"{key} in {low}..{high}")
        env[key] = value
    if given:
        raise RecordError(
            f"unknown parameter {next(iter(given))!r}",
            wanted=", ".join(p for p, _, _ in found.params) or "none",
        )
    for key, bound in found.fixed:
        env[key] = evaluate(bound, env)
    return env


def leaves(program: Program, entry: str | None, env: Env) -> Iterator[tuple[str, TensorType, str]]:
    """What an invocation must be given: (printed name, type, "input" | "weight" | "state")."""
    found = program.entry(entry)
    for item in found.inputs:
        ground = item.ground(env)
        yield str(ground), type_of(program, ground, env), "input"
    for base, value in program.values.items():
        if value.role == "weight":
            for member, letters in family(base, value.params, env):
                yield str(member), concrete(value, {**env, **letters}), "weight"
    for before, _ in state_pairs(found, env):
        yield str(before), type_of(program, before, env), "state"


def state_pairs(entry: Entry, env: Env) -> Iterator[tuple[Name, Name]]:
    """Every (before, after) of an entry, ground."""
    for state in entry.states:
        for _, letters in family("", state.params, env):
            bound = {**env, **letters}
            yield state.before.ground(bound), state.after.ground(bound)


def type_of(program: Program, name: Name, env: Env) -> TensorType:
    """The declared type of one ground name."""
    value = program.values.get(name.base)
    if value is None:
        raise RecordError(f"{name} has no declared type", wanted=f"a line `value {name.base} : ...`")
    members = name.members()
    if len(members) != len(value.params):
        raise RecordError(f"{name} has {len(members)} indices", wanted=f"{len(value.params)}")
    letters: dict[str, int] = {}
    for (letter, extent), index in zip(value.params, members, strict=True):
        if not 0 <= index < evaluate(extent, {**env, **letters}):
            raise RecordError(f"{name}: index {letter}={index}", wanted=f"0 <= {letter} < {extent}")
        letters[letter] = index
    return concrete(value, {**env, **letters})


def concrete(value: Value, env: Env) -> TensorType:
    """A declared type under an environment."""
    shape = tuple(evaluate(size, env) for size in value.shape)
    if any(size < 0 or size >= 1 << 48 for size in shape):
        raise RecordError(f"shape {shape}", wanted="sizes in 0..2^48")
    return TensorType(shape, value.dtype)


def evaluate_program(
    program: Program,
    given: Mapping[str, Array],
    *,
    entry: str | None = None,
    params: Mapping[str, int] | None = None,
) -> Evaluation:
    """Run one entry in numpy.

    Args:
        given: inputs, weights and before-states by printed name (`"K[0]"`); may be lazy.
        entry: which entry; the first when left out.
        params: the integers of the invocation.

    Raises:
        RecordError: a leaf is missing or has another type than declared, an op refuses its operands.
    """
    found = program.entry(entry)
    env = bind_entry(program, entry, params)
    values: dict[str, Array] = {}
    for key, want, role in leaves(program, entry, env):
        if key not in given:
            raise RecordError(f"{role} {key!r} is missing", wanted=f"{key} : {want}")
        array = given[key]
        have = TensorType(array.shape, dtype_name(array.dtype))
        if have != want:
            raise RecordError(f"{role} {key} is {have}", wanted=str(want))
        values[key] = array
    for step in expand(program.blocks, found.body, env):
        operands = [read_operand(arg, lambda ref: values[_made(ref, values)]) for arg in step.args]
        for out, result in zip(step.outs, run_step(step, operands), strict=True):
            _once(str(out), values)
            values[str(out)] = result
    outputs = {str(out.ground(env)): out.ground(env) for out in found.outputs}
    for key in outputs:
        _present(key, values)
    return Evaluation(
        values,
        {key: values[key] for key in outputs},
        {str(before): values[_present(str(after), values)] for before, after in state_pairs(found, env)},
    )


def infer_program(
    program: Program,
    *,
    entry: str | None = None,
    params: Mapping[str, int] | None = None,
    limit: int = MAX_STEPS,
) -> dict[str, TensorType]:
    """The type of every value one invocation makes, without touching data.

    Raises:
        RecordError: the entry is malformed at these parameters; the message names the step.
    """
    found = program.entry(entry)
    env = bind_entry(program, entry, params)
    types = {key: want for key, want, _ in leaves(program, entry, env)}
    for step in expand(program.blocks, found.body, env, limit=limit):
        operands = [type_operand(arg, lambda ref: types[_made(ref, types)]) for arg in step.args]
        for out, result in zip(step.outs, infer_step(step, operands), strict=True):
            _once(str(out), types)
            if out.base in program.values and (want := type_of(program, out, env)) != result:
                raise RecordError(f"{out} comes out as {result}", wanted=f"{want} as declared")
            types[str(out)] = result
    for out in found.outputs:
        _present(str(out.ground(env)), types)
    for before, after in state_pairs(found, env):
        if types[_present(str(after), types)] != types[str(before)]:
            raise RecordError(
                f"state {after} is {types[str(after)]}", wanted=f"{types[str(before)]} as {before}"
            )
    return types


def run_step(step: Op, operands: list[Any]) -> list[Array]:
    """One op in numpy; errors name the step."""
    _local(step)
    try:
        return evaluate_op(step.op, operands, dict(step.attrs))
    except TensureError as error:
        raise error.at(place=where(step)) from None


def infer_step(step: Op, operands: list[Any]) -> list[TensorType]:
    """One op's result types; errors name the step."""
    _local(step)
    try:
        results = infer_op(step.op, operands, dict(step.attrs))
    except TensureError as error:
        raise error.at(place=where(step)) from None
    if len(results) != len(step.outs):
        raise RecordError(f"{len(step.outs)} results named", place=where(step), wanted=str(len(results)))
    return results


def read_operand(arg: Arg, get: Callable[[Ref], Array]) -> Any:
    """The array, number or None behind one operand; boxes are views, Cat joins."""
    if isinstance(arg, Ref):
        array = get(arg)
        box_type(arg, TensorType(array.shape, ""))
        for dim, lo, hi in arg.box:
            array = array[(slice(None),) * dim + (slice(lo, hi),)]
        return array
    if isinstance(arg, Cat):
        parts = [read_operand(part, get) for part in arg.parts]
        joined_type(arg, [TensorType(part.shape, dtype_name(part.dtype)) for part in parts])
        return parts[0] if len(parts) == 1 else np.concatenate(parts, arg.dim)
    return arg


def type_operand(arg: Arg, get: Callable[[Ref], TensorType]) -> Any:
    """The type, number or None behind one operand."""
    if isinstance(arg, Ref):
        return box_type(arg, get(arg))
    if isinstance(arg, Cat):
        return joined_type(arg, [type_operand(part, get) for part in arg.parts])
    return arg


def box_type(ref: Ref, whole: TensorType) -> TensorType:
    """The type of the box of a value; RecordError when it leaves the value."""
    shape = list(whole.shape)
    for dim, lo, hi in ref.box:
        if dim >= len(shape) or not (
            isinstance(lo, (int, Affine)) and isinstance(hi, (int, Affine)) and 0 <= lo <= hi <= shape[dim]
        ):
            raise RecordError(f"box {lo}:{hi} of dim {dim} leaves {ref.name} of shape {list(whole.shape)}")
        shape[dim] = hi - lo
    return TensorType(tuple(shape), whole.dtype)


def joined_type(cat: Cat, parts: list[Any]) -> TensorType:
    """The type of several parts joined along a dim."""
    if not parts or not all(isinstance(part, TensorType) for part in parts):
        raise RecordError("cat of no values or of numbers", wanted="at least one value")
    first: TensorType = parts[0]

    def rest(part: TensorType) -> tuple[object, ...]:
        return (part.dtype, part.shape[: cat.dim], part.shape[cat.dim + 1 :])

    if cat.dim >= len(first.shape) or any(rest(part) != rest(first) for part in parts):
        raise RecordError(
            f"cat along dim {cat.dim} of {', '.join(map(str, parts))}",
            wanted="parts that differ in that dim only",
        )
    size = sum(part.shape[cat.dim] for part in parts)
    return TensorType((*first.shape[: cat.dim], size, *first.shape[cat.dim + 1 :]), first.dtype)


def where(step: Op) -> str:
    """A step in the words of an error message: its results, its op, its source line if noted."""
    line = next((value for key, value in step.note if key == "source"), None)
    made = f"{', '.join(map(str, step.outs))} = " if step.outs else ""
    return f"{made}{step.op}(...)" + (f" at {line}" if line else "")


def _local(step: Op) -> None:
    if step.op in COMMUNICATION:
        raise EvaluationError(
            f"{step.op} in a Program", place=where(step), wanted="communication only in a Plan"
        )


def _made(ref: Ref, table: Mapping[str, Any]) -> str:
    key = str(ref.name)
    if key not in table:
        raise RecordError(f"{key} is read before anything made it")
    return key


def _once(key: str, table: Mapping[str, Any]) -> None:
    if key in table:
        raise RecordError(f"{key} is made twice", wanted="single assignment")


def _present(key: str, table: Mapping[str, Any]) -> str:
    if key not in table:
        raise RecordError(f"output {key} is never made")
    return key
