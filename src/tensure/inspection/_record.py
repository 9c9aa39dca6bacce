"""Four ways to run a Program and record it: torch op by op, our kernels, the plain reference, and a Plan.

All give tensors the Program's own names, so that any two of them can be laid side by side. Knows Programs,
Plans and arrays; does not know files.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import torch

from tensure.bundle import Plan, claim_box, claims, evaluate_plan
from tensure.errors import InputError, UnsupportedError
from tensure.host import load_weights
from tensure.kernels import isa
from tensure.planning import apart, plan_segment
from tensure.program import (
    Op,
    Program,
    StoredTensor,
    bind_entry,
    digest,
    evaluate_program,
    expand,
    infer_program,
    leaves,
    numpy_dtype,
)
from tensure.runtime import KERNEL_ACTIVATIONS, SegmentExecution, to_tensor

from ._facts import Looking
from ._program_run import ProgramRun, describe_op
from ._recorder import Made, OnStep, Recorder
from ._recording import Recording
from ._records import Trace
from ._values import ValueStore

__all__ = ["WAYS", "Call", "Way", "record_plan", "record_program"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Way: TypeAlias = Literal["torch", "kernels", "reference"]
WAYS: Final[tuple[Way, ...]] = ("torch", "kernels", "reference")


@dataclass(frozen=True, slots=True)
class Call:
    """One call of an entry: checked inputs by name."""

    entry: str
    params: Mapping[str, int]
    inputs: Mapping[str, Array]


def record_program(
    program: Program,
    weights: Mapping[str, StoredTensor],
    calls: Sequence[Call],
    *,
    name: str = "run",
    way: Way = "torch",
    looking: Looking | None = None,
    store: ValueStore | None = None,
    on_step: OnStep | None = None,
    threads: int | None = None,
) -> Recording:
    """Run an entry, or several calls with states carried over, and record every tensor.

    Args:
        program: validated.
        weights: as stored.
        calls: one or more; `kernels` and `reference` take one.
        way: `torch` runs op by op; `kernels` our kernels in fused steps, with every intermediate kept in
            memory; `reference` the numpy meaning of each op, slow, everything in memory.
        looking: what to find out of every tensor.
        store: where to keep values.
        on_step: called after every step.

    Raises:
        UnsupportedError: `kernels`, and a step has no kernel.
        RecordError, EvaluationError: as running raises.
    """
    trace = Trace(name, {"torch": "torch, op by op", "kernels": f"our kernels, {isa()}"}.get(way, "numpy"))
    recorder = Recorder(trace, looking or Looking(), store=store, on_step=on_step, lend_weights=True)
    if way == "torch":
        run = ProgramRun(program, load_weights(weights), recorder, threads=threads)
        for call in calls:
            given = {key: to_tensor(array) for key, array in call.inputs.items()}
            run.call(given, entry=call.entry, params=call.params)
        return run.recording()
    if len(calls) != 1:
        raise InputError(f"{len(calls)} calls through {way}", wanted="one call, or torch")
    _leaves(program, calls[0], weights, recorder)
    record = _kernels if way == "kernels" else _reference
    record(program, weights, calls[0], recorder, threads or torch.get_num_threads())
    env = bind_entry(program, calls[0].entry, calls[0].params)
    trace.outputs = dict(trace.outputs) or {
        str(key): str(key)
        for out in program.entry(calls[0].entry).outputs
        if str(key := out.ground(env)) in trace.tensors
    }
    return Recording(trace, store, {}, str(digest(program)))


def record_plan(
    plan: Plan,
    program: Program,
    weights: Mapping[str, StoredTensor],
    call: Call,
    *,
    name: str = "plan",
    looking: Looking | None = None,
    store: ValueStore | None = None,
    on_step: OnStep | None = None,
) -> Recording:
    """Run a Plan, rank by rank in numpy, and put its parts together as its claims say.

    A logical tensor is recorded when its last part is there: rows joined, partial sums added. A replica that
    differs from the tensor put together is noted.
    """
    recorder = Recorder(
        Trace(name, f"a plan over {plan.num_ranks()} ranks, numpy"),
        looking or Looking(),
        store=store,
        on_step=on_step,
        lend_weights=True,
    )
    _leaves(program, call, weights, recorder)
    logical = {key: tensor.decode() for key, tensor in weights.items()} | dict(call.inputs)
    env = bind_entry(program, call.entry, call.params)
    for key, want, role in leaves(program, call.entry, env):
        if role == "state":
            logical.setdefault(key, np.zeros(want.shape, _numpy(want.dtype)))
    run = evaluate_plan(plan, program, logical, entry=call.entry, params=call.params)
    ops = {str(out): item for item in _expanded(program, call) for out in item.outs}
    parts: dict[str, tuple[Array, Array]] = {}
    uneven = set[str]()
    for item in claims(run):
        key = str(item.claim.of)
        if key not in ops or (key in recorder.trace.tensors and key not in parts):
            continue
        array = item.total if item.claim.scale == 1 else item.total / float(item.claim.scale)
        shape = run_shape(program, call, key)
        whole, filled = parts.setdefault(key, (np.zeros(shape, array.dtype), np.zeros(shape, np.bool_)))
        box = claim_box(item.claim, shape)
        if key in recorder.trace.tensors:
            if not np.array_equal(whole[box], array, equal_nan=array.dtype.kind == "f"):
                recorder.trace.notes += (f"{item.rank}: its {key} is not that of the ranks before it",)
                uneven.add(key)
            continue
        whole[box] = array
        filled[box] = True
        if filled.all():
            step = ops[key]
            reads = [str(ref.name) for ref in step.reads() if str(ref.name) in recorder.trace.tensors]
            recorder.step(
                step.op,
                reads,
                [Made(key, to_tensor(whole))],
                module=str(item.rank),
                arguments=describe_op(step),
            )
    outputs = [str(out.ground(env)) for out in program.entry(call.entry).outputs]
    recorder.trace.outputs = {key: key for key in outputs if key in recorder.trace.tensors}
    return Recording(recorder.trace, store, {}, str(digest(program)), frozenset(uneven))


def run_shape(program: Program, call: Call, key: str) -> tuple[int, ...]:
    """The shape of a logical value in a call."""
    return infer_program(program, entry=call.entry, params=call.params)[key].shape


def _leaves(program: Program, call: Call, weights: Mapping[str, StoredTensor], recorder: Recorder) -> None:
    """The leaves of a call, decoded."""
    env = bind_entry(program, call.entry, call.params)
    decoded = load_weights(weights)
    for key, want, role in leaves(program, call.entry, env):
        if role == "weight":
            recorder.leaf(key, decoded[key], "weight")
        elif role == "state":
            recorder.leaf(key, to_tensor(np.zeros(want.shape, _numpy(want.dtype))), "state")
        else:
            recorder.leaf(key, to_tensor(call.inputs[key]), "input")


def _kernels(
    program: Program,
    weights: Mapping[str, StoredTensor],
    call: Call,
    recorder: Recorder,
    threads: int,
) -> None:
    if program.entry(call.entry).states:
        raise UnsupportedError(f"entry {call.entry} has states", wanted="torch, or an entry without states")
    segment = plan_segment(program, call.entry, call.params, activations=KERNEL_ACTIVATIONS)
    if left := segment.host_steps():
        raise UnsupportedError(
            f"{len(left)} steps have no kernel, first {left[0].out} = {left[0].op.op}: {left[0].reason}",
            wanted="a model that runs through our kernels alone",
            next_step="Use torch (--by torch)",
        )
    execution = SegmentExecution(apart(segment), {key: stored.decode() for key, stored in weights.items()})
    types = recorder.trace.tensors
    for step, array in execution.run_whole(call.inputs, threads):
        reads = [name for name in step.reads() if name in types]
        kind = type(step).__name__.removesuffix("Step").lower()
        if step.out not in types:
            recorder.step(f"tensure::{kind}", reads, [Made(step.out, torch.from_numpy(array))])
    holders = {segment.values[step.out].buffer: step.out for step in segment.steps}
    for key, held in segment.outputs:
        owner = held if held in types else holders.get(segment.values[held].buffer)
        if owner is not None:
            recorder.trace.outputs = {**recorder.trace.outputs, key: owner}


def _reference(
    program: Program,
    weights: Mapping[str, StoredTensor],
    call: Call,
    recorder: Recorder,
    threads: int,
) -> None:
    given = {key: stored.decode() for key, stored in weights.items()} | dict(call.inputs)
    env = bind_entry(program, call.entry, call.params)
    for key, want, role in leaves(program, call.entry, env):
        if role == "state":
            given[key] = np.zeros(want.shape, _numpy(want.dtype))
    begin = time.perf_counter()
    made = evaluate_program(program, given, entry=call.entry, params=call.params).values
    seconds = time.perf_counter() - begin
    for item in _expanded(program, call):
        note = dict(item.note)
        recorder.step(
            item.op,
            [str(ref.name) for ref in item.reads()],
            [Made(str(out), to_tensor(made[str(out)])) for out in item.outs],
            module=str(note.get("module", "")),
            source=str(note.get("source", "")),
            arguments=describe_op(item),
            seconds=seconds,
        )
        seconds = 0.0


def _expanded(program: Program, call: Call) -> list[Op]:
    env = bind_entry(program, call.entry, call.params)
    return list(expand(program.blocks, program.entry(call.entry).body, env))


def _numpy(dtype: str) -> Any:
    return numpy_dtype(dtype)
