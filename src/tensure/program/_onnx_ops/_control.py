"""If, Loop and Scan, undone while the file is read; optional values.

An `If` whose condition is known is its branch; otherwise both branches are computed and the condition
selects. A loop is repeated as often as its known trip count says. A trip count or an end that depends on data
has no counterpart: how many steps there are must not depend on values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from tensure.errors import FormatError, LimitError, UnsupportedError

from .._onnx import OnnxGraph
from ._builder import Builder, Held, Tensor, axis_of
from ._table import Attributes, onnx_op

MAX_TRIPS: Final = 1 << 14
"""Repetitions of one loop. Loops within loops are bounded by the steps of the whole file (`_graph.py`)."""


def _run(b: Builder, graph: OnnxGraph, inputs: Sequence[Held]) -> list[Held]:
    assert b.run_graph is not None
    return b.run_graph(graph, inputs)


def _flag(b: Builder, x: Tensor, what: str) -> bool:
    if x.dtype != "bool":
        raise FormatError(f"{what} of dtype {x.dtype}", wanted="bool")
    return bool(b.number(x, what))


@onnx_op("If(cond; then_branch: graph, else_branch: graph)")
def _if(b: Builder, x: list[Any], a: Attributes) -> list[Held]:
    cond: Tensor = x[0]
    if cond.is_known:
        return _run(b, a["then_branch" if _flag(b, cond, "cond") else "else_branch"], [])
    branches = [_run(b, a[key], []) for key in ("then_branch", "else_branch")]
    if cond.size != 1 or len(branches[0]) != len(branches[1]):
        raise FormatError(
            "a condition of several elements, or branches of unequal outputs", wanted="one; equal"
        )
    flag = b.reshape(cond, ())
    return [_selected(b, flag, yes, no) for yes, no in zip(*branches, strict=True)]


def _selected(b: Builder, flag: Tensor, yes: Held, no: Held) -> Tensor:
    if not isinstance(yes, Tensor) or not isinstance(no, Tensor) or yes.type != no.type:
        raise UnsupportedError(
            "branches of different types under a condition that depends on the model's inputs",
            wanted="equal types, or a condition known when the file is read",
            next_step="If the condition comes from a graph input, give its value by inputs={name: array}",
        )
    return b.op("where", flag, yes, no)


@onnx_op("Loop(M?, cond?, v_initial?*; body: graph)")
def _loop(b: Builder, x: list[Any], a: Attributes) -> list[Held]:
    trips, cond, *carried = x
    body: OnnxGraph = a["body"]
    most = None if trips is None else int(b.number(trips, "the trip count M"))
    going = True if cond is None else _flag(b, cond, "the first condition")
    scanned: list[list[Held]] = [[] for _ in range(len(body.outputs) - 1 - len(carried))]
    state: list[Held] = list(carried)
    if len(body.outputs) < 1 + len(carried):
        raise FormatError(f"a body of {len(body.outputs)} outputs", wanted=f"at least {1 + len(carried)}")
    trip = 0
    while going and (most is None or trip < most):
        if trip >= MAX_TRIPS:
            raise LimitError(f"a loop of over {MAX_TRIPS} trips", wanted=f"at most {MAX_TRIPS}")
        flag, *rest = _run(b, body, [b.known(trip, "i64"), b.known(True), *state])
        state, made = rest[: len(state)], rest[len(state) :]
        for items, item in zip(scanned, made, strict=True):
            items.append(item)
        trip += 1
        if not isinstance(flag, Tensor):
            raise FormatError("a loop whose condition is no tensor", wanted="a bool")
        if most is not None and trip >= most:
            break
        going = _flag(b, flag, "the condition to go on")
    outputs = body.outputs[1 + len(carried) :]
    return [
        *state,
        *(_stacked(b, items, spec.shape, spec.dtype) for items, spec in zip(scanned, outputs, strict=True)),
    ]


def _stacked(b: Builder, items: list[Held], shape: Any, dtype: str | None, axis: int = 0) -> Tensor:
    tensors = [item for item in items if isinstance(item, Tensor)]
    if len(tensors) != len(items):
        raise UnsupportedError("sequences gathered by a loop", wanted="tensors")
    if tensors:
        return b.op("stack", *tensors, dim=axis)
    if shape is None or dtype is None or not all(isinstance(size, int) for size in shape):
        raise UnsupportedError(
            "a loop of no trips whose results have no fixed shape", wanted="at least one trip"
        )
    return b.full([*shape[:axis], 0, *shape[axis:]], 0, dtype)


@onnx_op(
    "Scan(initial_state_and_scan_inputs*; body: graph, num_scan_inputs: int, scan_input_axes: ints?, "
    "scan_input_directions: ints?, scan_output_axes: ints?, scan_output_directions: ints?)",
    since=9,
)
def _scan(b: Builder, x: list[Any], a: Attributes) -> list[Held]:
    body: OnnxGraph = a["body"]
    count = a["num_scan_inputs"]
    if not 1 <= count <= len(x) or len(body.outputs) < len(x) - count:
        raise FormatError(f"num_scan_inputs={count} of {len(x)} inputs", wanted=f"1 to {len(x)}")
    state: list[Held] = list(x[: len(x) - count])
    scanned: list[Tensor] = list(x[len(x) - count :])
    num_outs = len(body.outputs) - len(state)
    axes = _entries(a, "scan_input_axes", count)
    back = _entries(a, "scan_input_directions", count)
    out_axes = _entries(a, "scan_output_axes", num_outs)
    out_back = _entries(a, "scan_output_directions", num_outs)
    dims = [axis_of(axis, item.rank, "scan_input_axes") for axis, item in zip(axes, scanned, strict=True)]
    lengths = {item.shape[dim] for item, dim in zip(scanned, dims, strict=True)}
    if len(lengths) != 1 or max(lengths) > MAX_TRIPS:
        raise FormatError(
            f"scan inputs of lengths {sorted(lengths)}", wanted=f"one length of at most {MAX_TRIPS}"
        )
    (length,) = lengths
    made: list[list[Held]] = [[] for _ in range(num_outs)]
    for trip in range(length):
        items = [
            b.op("select", item, dim=dim, index=length - 1 - trip if flip else trip)
            for item, dim, flip in zip(scanned, dims, back, strict=True)
        ]
        found = _run(b, body, [*state, *items])
        state = found[: len(state)]
        for parts, item in zip(made, found[len(state) :], strict=True):
            parts.append(item)
    outputs: list[Held] = []
    for parts, axis, flip, spec in zip(made, out_axes, out_back, body.outputs[len(state) :], strict=True):
        parts = parts[::-1] if flip else parts
        first = parts[0] if parts else None
        rank = first.rank if isinstance(first, Tensor) else len(spec.shape or ())
        outputs.append(
            _stacked(b, parts, spec.shape, spec.dtype, axis_of(axis, rank + 1, "scan_output_axes"))
        )
    return [*state, *outputs]


def _entries(a: Attributes, name: str, count: int) -> tuple[int, ...]:
    value = a[name] if a[name] is not None else (0,) * count
    if len(value) != count:
        raise FormatError(f"{name}={list(value)}", wanted=f"{count} entries")
    return tuple(value)


@onnx_op("OptionalHasElement(input_sequence?)")
def _has_element(b: Builder, x: list[Any], a: Attributes) -> Tensor:
    return b.known(x[0] is not None)


@onnx_op("OptionalGetElement(input_sequence)")
def _get_element(b: Builder, x: list[Any], a: Attributes) -> list[Held]:
    return [x[0]]
