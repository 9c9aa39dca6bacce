"""An ONNX file as a Model: node by node into listed ops, initializers into weights.

The one entry is `run`. Shapes are specialised, arithmetic on them is done while reading, subgraphs are
unrolled or inlined. Knows graph inputs, outputs and names; does not know protobuf (`_onnx_reader.py`), what
an op type means (`_onnx_ops/`), nor how to simplify (`_normalise.py`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np

from tensure.errors import FormatError, InputError, TensureError, UnsupportedError

from ._dtypes import DTYPES, dtype_name
from ._fresh_names import FreshNames
from ._model import Model
from ._normalise import normalise as simplify
from ._onnx import OnnxGraph, OnnxModel, OnnxType
from ._onnx_ops import CARRIERS, NEWEST, Builder, Held, Tensor, Walk, known_input, onnx_rows, weight_of
from ._onnx_reader import read_onnx, read_onnx_bytes
from ._onnx_sizes import SettledSizes, is_size_name, settle_sizes, size_label
from ._records import Entry, Name, Op, Program, Ref, TensorType, Value
from ._validate import validate_program

__all__ = ["OPSETS", "OnnxModel", "from_onnx", "import_onnx", "onnx_rows", "read_onnx_bytes"]

OPSETS: Final = (1, NEWEST)
"""Versions of the default domain that are read; ops whose meaning changed say what they do in each."""

Given: TypeAlias = Mapping[str, Any]


def from_onnx(
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    inputs: Given | None = None,
    sizes: Mapping[str, int] | None = None,
    normalise: bool = True,
) -> Model:
    """The Model that computes what the file's graph computes.

    Inputs and outputs keep their names, with `_` in place of what a record's name cannot hold. Sizes are
    fixed: a size the file leaves open must be given, only dim 0 may stay open and counts as 1 (one sample);
    an open size with a name is one size wherever that name stands. Opsets 13 to 22 of the default domain
    are read as their texts say, older and newer ones as far as their ops mean the same. Inputs and outputs
    that the file calls uint16 or uint32 are i32 or i64 here, their arithmetic wrapped as the file means it.

    Args:
        path: the .onnx file; external data lies beside it.
        name: the Model's name; the file's own without suffix when left out.
        inputs: by graph input, its shape (a tuple of sizes), or its value (an array) if it is not to be an
            input of the Program: a sample rate, a shape, a number of steps.
        sizes: by the name that the file gives an open size (`seq`), or by input and dim (`ids.1`), its size.
        normalise: simplify the Program (fold batch norm, drop what does nothing, ...).

    Raises:
        FormatError: the file breaks its format, a node its definition.
        UnsupportedError: an op, dtype or form without a counterpart, a size that depends on data; names node
            and op.
        InputError: `inputs` names no graph input, or does not fit its declaration; `sizes` names no open
            size, or one twice.
        LimitError: the graph unrolls to too many steps.
    """
    file = os.fspath(path)
    label = name or os.path.splitext(os.path.basename(file))[0] or "model"
    try:
        return import_onnx(
            read_onnx(path, opsets=OPSETS), name=label, inputs=inputs, sizes=sizes, normalise=normalise,
            origin=file,
        )  # fmt: skip
    except TensureError as error:
        raise error.at(file=file) from None


def import_onnx(
    model: OnnxModel,
    *,
    name: str = "model",
    inputs: Given | None = None,
    sizes: Mapping[str, int] | None = None,
    normalise: bool = True,
    origin: str = "ONNX",
) -> Model:
    """The same from what was read already."""
    graph = model.graph
    names = FreshNames()
    builder = Builder(names)
    outputs = [Name(names.take(spec.name)) for spec in graph.outputs]
    if not outputs:
        raise FormatError(f"graph {graph.name!r} has no outputs", wanted="at least one")
    declared = {spec.name: spec for spec in graph.inputs}
    given = dict(inputs or {})
    for key in given:
        if key not in declared:
            raise InputError(f"inputs names {key!r}", wanted=f"one of {', '.join(declared) or 'none'}")
    entered: list[Name] = []
    held = _inputs(graph, given, settle_sizes(graph, sizes or {}), builder, entered)
    made = Walk(builder, model).graph(graph, held)
    for spec, out, found in zip(graph.outputs, outputs, made, strict=True):
        if not isinstance(found, Tensor):
            raise UnsupportedError(f"output {spec.name!r} is a sequence or nothing", wanted="a tensor")
        builder.body.append(Op("copy", (builder.ref(found),), (out,)))
    program = Program(
        values=builder.values, entries={"run": Entry(tuple(entered), tuple(builder.body), tuple(outputs))}
    )
    validate_program(program)
    found_model = Model(name, program, builder.weights, {}, origin)
    return simplify(found_model) if normalise else found_model


def _inputs(
    graph: OnnxGraph, given: dict[str, Any], settled: SettledSizes, builder: Builder, entered: list[Name]
) -> list[Held]:
    """What stands for each graph input: an initializer, a given value, or an input of the entry."""
    sizes = _named_sizes(graph, given, settled)
    held: list[Held] = []
    for spec in graph.inputs:
        value = given.get(spec.name)
        if isinstance(value, np.ndarray | np.generic | bool | int | float):
            held.append(_valued(spec, value))
        elif spec.name in graph.initializers and value is None:
            held.append(weight_of(spec.name, graph.initializers[spec.name]))
        else:
            bits, dtype = CARRIERS.get(spec.dtype or "", (0, spec.dtype))
            if spec.kind != "tensor" or dtype not in DTYPES or (spec.shape is None and value is None):
                raise UnsupportedError(
                    f"input {spec.name!r}: a {spec.kind} of dtype {spec.dtype} and shape {spec.shape}",
                    wanted=f"a tensor of one of {' '.join(DTYPES)} whose rank is known",
                )
            shape = _shape(spec, value, sizes, settled)
            base = builder.names.take(spec.name)
            builder.values[base] = Value(shape, dtype)
            entered.append(Name(base))
            held.append(Tensor(TensorType(shape, dtype), ref=Ref(Name(base)), bits=bits))
    return held


def _valued(spec: OnnxType, value: Any) -> Tensor:
    array = np.asarray(value)
    if isinstance(value, bool | int | float) and spec.dtype in DTYPES:
        array = array.astype(DTYPES[spec.dtype])
    have = str(array.dtype).replace("uint", "u") if array.dtype.kind == "u" else dtype_name(array.dtype)
    if spec.dtype is not None and have != spec.dtype:
        raise InputError(f"input {spec.name!r} is given as {have}", wanted=spec.dtype)
    _fits(spec, array.shape)
    return known_input(spec.name, array)


def _named_sizes(graph: OnnxGraph, given: Given, settled: SettledSizes) -> dict[str, int]:
    """Sizes by the names the file gives them, from the sizes, shapes and values given."""
    sizes = dict(settled.by_name)
    for spec in graph.inputs:
        value = given.get(spec.name)
        if value is None or spec.shape is None:
            continue
        shape = _given_shape(spec, value)
        for at, (size, dim) in enumerate(zip(shape, spec.shape, strict=True)):
            if settled.by_place.get((spec.name, at), size) != size:
                raise InputError(
                    f"dim {at} of input {spec.name!r} is {size} and {settled.by_place[spec.name, at]}",
                    wanted="one of inputs and sizes",
                )
            if is_size_name(dim) and sizes.setdefault(dim, size) != size:
                raise InputError(f"size {dim!r} is {sizes[dim]} and {size}", wanted="one size for one name")
    return sizes


def _given_shape(spec: OnnxType, value: Any) -> tuple[int, ...]:
    if isinstance(value, np.ndarray | np.generic | bool | int | float):
        found = np.shape(value)
    elif isinstance(value, Sequence) and all(isinstance(item, int) and 0 <= item < 1 << 48 for item in value):
        found = tuple(value)
    else:
        raise InputError(
            f"inputs[{spec.name!r}] is {value!r}"[:200],
            wanted="a tuple of sizes, or an array for a fixed value",
        )
    _fits(spec, found)
    return found


def _fits(spec: OnnxType, shape: tuple[int, ...]) -> None:
    if spec.shape is not None and (
        len(shape) != len(spec.shape)
        or any(isinstance(dim, int) and dim != size for size, dim in zip(shape, spec.shape, strict=True))
    ):
        raise InputError(f"input {spec.name!r} of shape {list(shape)}", wanted=f"{list(spec.shape)}")


def _shape(spec: OnnxType, value: Any, sizes: dict[str, int], settled: SettledSizes) -> tuple[int, ...]:
    """The shape of one input, every open size settled."""
    if value is not None:
        return _given_shape(spec, value)
    found: list[int] = []
    for at, dim in enumerate(spec.shape or ()):
        if isinstance(dim, int):
            found.append(dim)
            continue
        if is_size_name(dim) and dim in sizes:
            found.append(sizes[dim])
        elif (spec.name, at) in settled.by_place:
            found.append(settled.by_place[spec.name, at])
        elif at == 0:
            found.append(1)
            if is_size_name(dim):
                sizes[dim] = 1
        else:
            raise InputError(
                f"dim {at} of input {spec.name!r} is open" + (f" ({dim})" if dim else ""),
                wanted=f"its size; the file says {[item or '?' for item in spec.shape or ()]}",
                next_step=f"Give it: --size {size_label(spec, at)}=N, in Python sizes={{...}} or the "
                f"whole shape by inputs={{{spec.name!r}: (...)}}",
            )
    return tuple(found)
