"""What a caller hands in, held against what an entry declares, before any work starts.

Knows names, shapes, dtypes and the parameters that follow from shapes. Does not know where arrays come
from or who computes with them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping

import numpy as np

from tensure.errors import InputError, LimitError, RecordError, TensureError
from tensure.program import Expr, Program, Ref, TensorType, bind_entry, dtype_name, expand, type_of

from ._tensors import Array

__all__ = ["Inputs", "Invocation", "check_inputs", "check_types", "suggestion"]

Inputs = Mapping[str, Array] | Array
MAX_ELEMENTS = 1 << 31


class Invocation:
    """One checked call: the entry's name, its parameters, its inputs by printed name."""

    __slots__ = ("entry", "inputs", "params")

    def __init__(self, entry: str, params: Mapping[str, int], inputs: Mapping[str, Array]) -> None:
        self.entry, self.params, self.inputs = entry, dict(params), dict(inputs)


def check_inputs(
    program: Program, inputs: Inputs, *, entry: str | None = None, params: Mapping[str, int] | None = None
) -> Invocation:
    """The call that `inputs` ask for.

    Parameters that are the size of some input's dim may be left out; one bare array may stand for the
    only input.

    Raises:
        InputError: an unknown entry, a missing, surplus or wrongly typed input, a parameter out of range, a
            token outside the vocabulary.
    """
    call = check_types(program, inputs, entry=entry, params=params)
    env = bind_entry(program, call.entry, call.params)
    for name, rows in _vocabularies(program, call.entry, env):
        _check_ids(name, call.inputs[name], rows)
    return call


def check_types(
    program: Program, inputs: Inputs, *, entry: str | None = None, params: Mapping[str, int] | None = None
) -> Invocation:
    """As `check_inputs`, looking at names, shapes and dtypes only."""
    label = _entry_label(program, entry)
    named = _by_name(program, label, inputs)
    given = {**_sizes(program, label, named), **dict(params or {})}
    try:
        env = bind_entry(program, label, given)
    except RecordError as error:
        raise InputError(error.found, place=f"entry {label}", wanted=error.wanted) from None
    for declared in program.entries[label].inputs:
        name = declared.ground(env)
        _check_type(str(name), named[str(name)], type_of(program, name, env))
    return Invocation(label, given, named)


def suggestion(word: str, known: list[str]) -> str | None:
    """`Did you mean ...?` for a word that is nearly one of the known ones."""
    near = difflib.get_close_matches(word, known, n=1)
    return f"Did you mean {near[0]!r}?" if near else None


def _entry_label(program: Program, entry: str | None) -> str:
    if entry is None:
        return next(iter(program.entries))
    if entry not in program.entries:
        known = list(program.entries)
        raise InputError(
            f"no entry {entry!r}", wanted=f"one of {', '.join(known)}", next_step=suggestion(entry, known)
        )
    return entry


def _by_name(program: Program, label: str, inputs: Inputs) -> dict[str, Array]:
    declared = [str(name) for name in program.entries[label].inputs]
    wanted = ", ".join(declared) or "no inputs"
    if isinstance(inputs, np.ndarray):
        if len(declared) != 1:
            raise InputError(f"one array for the {len(declared)} inputs of entry {label}", wanted=wanted)
        inputs = {declared[0]: inputs}
    if not isinstance(inputs, Mapping):
        raise InputError(f"inputs are a {type(inputs).__name__}", wanted="an array, or arrays by name")
    for name, array in inputs.items():
        if name not in declared:
            raise InputError(
                f"no input {str(name)[:80]!r} in entry {label}",
                wanted=wanted,
                next_step=suggestion(str(name), declared),
            )
        if not isinstance(array, np.ndarray):
            raise InputError(f"input {name!r} is a {type(array).__name__}", wanted="a numpy array")
        if array.size > MAX_ELEMENTS:
            raise LimitError(f"input {name!r} has {array.size} elements", wanted=f"at most {MAX_ELEMENTS}")
    for name in declared:
        if name not in inputs:
            raise InputError(f"input {name!r} of entry {label} is missing", wanted=wanted)
    return dict(inputs)


def _sizes(program: Program, label: str, named: Mapping[str, Array]) -> dict[str, int]:
    """Parameters that stand alone as a dim of an input, read off that input's shape."""
    names = {key for key, _, _ in program.entries[label].params}
    found: dict[str, int] = {}
    for declared in program.entries[label].inputs:
        shape = program.values[declared.base].shape
        array = named[str(declared)]
        if len(shape) != array.ndim:
            continue
        for size, have in zip(shape, array.shape, strict=True):
            if isinstance(size, Expr) and size.text in names:
                found.setdefault(size.text, have)
    return found


def _check_type(name: str, array: Array, want: TensorType) -> None:
    try:
        have: object = TensorType(array.shape, dtype_name(array.dtype))
    except TensureError:
        have = f"{array.dtype}{list(array.shape)}"
    if have != want:
        convert = "Give it the wanted shape, or name another entry or parameter"
        if array.shape == want.shape:
            convert = f"Convert it first, for example with .astype({_numpy_name(want.dtype)})"
        raise InputError(f"input {name!r} is {have}", wanted=str(want), next_step=convert)


def _vocabularies(program: Program, label: str, env: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """Inputs that pick rows of a declared table, and how many rows it has."""
    declared = [name.ground(env) for name in program.entries[label].inputs]
    inputs = {str(name) for name in declared if type_of(program, name, env).dtype in ("i32", "i64")}
    for step in expand(program.blocks, program.entries[label].body, env) if inputs else ():
        if step.op == "embedding" and len(step.args) > 1:
            table, ids = step.args[:2]
            if isinstance(table, Ref) and isinstance(ids, Ref) and not (table.box or ids.box):
                if str(ids.name) in inputs and table.name.base in program.values:
                    yield str(ids.name), type_of(program, table.name, env).shape[0]


def _check_ids(name: str, ids: Array, rows: int) -> None:
    outside = np.flatnonzero((ids < 0) | (ids >= rows))
    if outside.size:
        at = int(outside[0])
        raise InputError(
            f"input {name!r} holds {int(ids.flat[at])} at position {at}",
            wanted=f"ids from 0 to {rows - 1}",
            next_step="Use the tokenizer that came with this model",
        )


def _numpy_name(dtype: str) -> str:
    names = {"f64": "np.float64", "f32": "np.float32", "f16": "np.float16", "bf16": "ml_dtypes.bfloat16"}
    names |= {f"i{bits}": f"np.int{bits}" for bits in (8, 16, 32, 64)} | {
        "u8": "np.uint8",
        "bool": "np.bool_",
    }
    return names.get(dtype, dtype)
