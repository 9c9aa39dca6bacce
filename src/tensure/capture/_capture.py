"""From two functions to two records: the step of one device as a Program, its parallel twin as a Plan.

Every rank is traced by itself at full size, on a fake process group and without bytes; nothing is assumed of
one rank because of another. A distributed parameter is taken to hold what its placements say, a plain one to
be whole unless it is placed or cut from the whole one under our eyes.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.tensor import DTensor

from tensure.bundle import Plan
from tensure.errors import InputError, LimitError, UnsupportedError
from tensure.host import dtype_word
from tensure.program import Attrs, Entry, Name, Op, Program, Ref, Value, digest, validate_program

from ._collectives import Collectives
from ._placements import Part, part_of, whole_part
from ._sources import Sources
from ._step import ModelFunction, ParallelFunction, ParallelStep
from ._tape import Tape
from ._tracer import Tracer
from ._tracks import RankTrace, live_steps, tracks_of
from ._world import fake_rank, no_bytes

__all__ = ["Captured", "capture_model", "capture_parallel"]

MAX_TRACED: Final = 256
"""Ranks that are traced one by one."""
ENTRY: Final = "step"
_HERE: Final[Attrs] = ()


@dataclass(frozen=True)
class Captured:
    """A model's training step.

    Args:
        program: entry `step`; parameters and buffers are weights under their module path.
        inputs: the names of the inputs, in order.
        outputs: the names of what the module returns, in order.
    """

    program: Program
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def capture_model(model: ModelFunction) -> Captured:
    """Forward, loss and backward of the module on one device.

    The outputs are what the module returns (`loss`, or `loss`, `out_1`, ...) and `grad.NAME` for every
    parameter that has a gradient, and for inputs that require one.

    Raises:
        InputError: not a module and inputs, or a loss that is no scalar.
        UnsupportedError: an op, dtype or form without a rule; names op, line and module.
    """
    with no_bytes():
        net, inputs = _built(model)
        tape, sources = Tape(), Sources(net)
        values: dict[str, Value] = {}
        for label, tensor in _leaves(net):
            values[label] = Value(tuple(tensor.shape), dtype_word(tensor.dtype), "weight")
            tape.add(tensor, Ref(Name(label)))
        names = tuple(f"input_{at}" for at in range(len(inputs)))
        for label, tensor in zip(names, inputs, strict=True):
            values[label] = Value(tuple(tensor.shape), dtype_word(tensor.dtype), "value")
            tape.add(tensor, Ref(Name(label)))
        with sources.watching(), Tracer(tape, sources, None):
            returned = _run(net, inputs)
        outputs: list[Name] = []
        labels = _output_names(len(returned))
        found = list(zip(labels, returned, strict=True)) + _gradients(
            net, dict(zip(names, inputs, strict=True))
        )
        for label, tensor in found:
            tape.steps.append(Op("copy", (tape.read(tensor, _HERE),), (Name(label),)))
            outputs.append(Name(label))
    trace = RankTrace(
        (), tuple(tape.steps), {str(n): ("", whole_part(())) for n in outputs}, frozenset(map(str, outputs))
    )
    (trace,) = live_steps([trace])
    entry = Entry(tuple(map(Name, names)), trace.steps, tuple(outputs))
    read = {str(ref.name) for step in trace.steps for ref in step.reads()}
    values = {label: value for label, value in values.items() if value.role == "value" or label in read}
    program = Program(values=values, entries={ENTRY: entry})
    validate_program(program)
    return Captured(program, names, labels)


def capture_parallel(
    model: ModelFunction,
    parallel: ParallelFunction,
    mesh: Mapping[str, int],
    captured: Captured,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Plan:
    """The parallel step of every rank of a mesh, with claims at its ends.

    Args:
        model: as for `capture_model`.
        parallel: makes a fresh module of the model parallel, once for each rank.
        mesh: sizes of the axes, outermost first.
        captured: what the model alone came to.
        progress: told (ranks done, ranks in all).

    Raises:
        InputError: parameters that the model does not have, or tensors whose place nobody said.
        LimitError: more ranks than are traced one by one.
        UnsupportedError: an op, group or placement without a rule.
    """
    world = 1
    for size in mesh.values():
        world *= size
    if world > MAX_TRACED:
        raise LimitError(
            f"a mesh of {world} ranks", wanted=f"at most {MAX_TRACED}; folding classes is not built yet"
        )
    traces: list[RankTrace] = []
    for rank in range(world):
        traces.append(_traced(model, parallel, mesh, rank, captured))
        gc.collect()  # modules and tapes are cyclic, and there is one for each rank
        if progress is not None:
            progress(rank + 1, world)
    tracks = tracks_of(live_steps(traces), mesh)
    return Plan(digest(captured.program), mesh=dict(mesh), tracks=tracks)


# --- one rank ---------------------------------------------------------------------------------------


def _traced(
    model: ModelFunction, parallel: ParallelFunction, mesh: Mapping[str, int], rank: int, captured: Captured
) -> RankTrace:
    ranks = Collectives(mesh, rank)
    place = dict(zip(mesh, ranks.place(rank), strict=True))
    program = captured.program
    with fake_rank(mesh, rank) as built:
        net, inputs = _built(model)
        tape = Tape()
        whole = dict(_leaves(net))
        for label, tensor in whole.items():
            tape.add(tensor, Ref(Name(label)))
        with Tracer(tape, Sources(net), ranks):
            given = _parallel_step(parallel(net, built), net)
        module = given.module if given.module is not None else net
        claims: dict[str, tuple[str, Part]] = {}
        placed: dict[str, Part | None] = {}

        def part(shape: Sequence[int], placements: Mapping[str, Any] | None, what: str) -> Part:
            return part_of(shape, placements or {}, mesh, place, what)

        for label, tensor in _leaves(module):
            placed[label] = _leaf(label, tensor, whole, given, tape, part, program, claims)
        for label in whole:
            if label in program.values:
                claims.setdefault(label, (label, whole_part(program.values[label].shape)))  # type: ignore[arg-type]
        local_inputs = _inputs(captured, inputs, given, tape, part, claims)
        sources = Sources(module)
        with sources.watching(), Tracer(tape, sources, ranks):
            returned = _returned(given.step(*local_inputs))
        outputs: set[str] = set()
        if len(returned) != len(captured.outputs):
            raise InputError(
                f"the parallel step returns {len(returned)} tensors",
                wanted=f"{len(captured.outputs)}, as the module does: {', '.join(captured.outputs)}",
            )
        for at, (label, tensor) in enumerate(zip(captured.outputs, returned, strict=True)):
            said = given.outputs[at] if at < len(given.outputs) else None
            shape = _logical_shape(program, label)
            _output(label, tensor, said, shape, tape, part, claims, outputs)
        for label, tensor in _gradients(module, dict(zip(captured.inputs, local_inputs, strict=True))):
            name = label.removeprefix("grad.")
            if Name(label) not in program.entry(ENTRY).outputs:
                continue  # the single device has no such gradient to compare with
            shape = program.values[name].shape
            known = given.gradients.get(name)
            if known is None and not isinstance(tensor, DTensor):
                found = placed.get(name) if name in placed else claims[name][1]
                if found is not None and found.shape == tuple(tensor.shape):
                    _claim(label, _local(tensor), found, tape, claims, outputs)
                    continue
            _output(label, tensor, known, shape, tape, part, claims, outputs)  # type: ignore[arg-type]
    steps = tuple(tape.steps)
    read = {str(ref.name) for step in steps for ref in step.reads()}
    kept = {label: found for label, found in claims.items() if label in outputs or label in read}
    return RankTrace(tuple(place.items()), steps, kept, frozenset(outputs))


def _leaf(
    label: str, tensor: torch.Tensor, whole: Mapping[str, torch.Tensor], given: ParallelStep, tape: Tape,
    part: Callable[..., Part], program: Program, claims: dict[str, tuple[str, Part]],
) -> Part | None:  # fmt: skip
    """A parameter or buffer of the parallel module as a leaf, and where it stands; None: cut before our eyes."""
    value = program.values.get(label)
    local = _local(tensor)
    if value is None:
        if label in whole or tape.knows(local):
            return None  # nothing on the single device depends on it
        raise InputError(
            f"parameter {label} of the parallel module",
            wanted=f"names of the single device's: {', '.join(list(program.values)[:8])}",
        )
    shape: Any = value.shape
    if isinstance(tensor, DTensor):
        found = part(shape, dict(zip(_axes(tensor), tensor.placements, strict=True)), f"parameter {label}")
    elif label in given.parameters:
        found = part(shape, given.parameters[label], f"parameter {label}")
    elif whole.get(label) is tensor:
        return whole_part(shape)
    elif tape.knows(local):
        return _cut(tape, local, label, shape)
    elif tuple(tensor.shape) == tuple(shape):
        found = whole_part(shape)
    else:
        raise InputError(
            f"parameter {label} of shape {list(tensor.shape)} where the single device has {list(shape)}",
            wanted="to know which part it is: a DTensor, a slice of the whole one, or ParallelStep(parameters=...)",
        )
    if found.shape != tuple(local.shape):
        raise InputError(
            f"parameter {label} of shape {list(local.shape)}", wanted=f"{list(found.shape)} as placed"
        )
    claims[label] = (label, found)
    if tape.knows(local):
        tape.write(local, Ref(Name(label)), _HERE)
    else:
        tape.add(local, Ref(Name(label)))
    return found


def _cut(tape: Tape, tensor: torch.Tensor, label: str, shape: Sequence[int]) -> Part | None:
    """Where a parameter that was sliced from the whole one stands; None if it was changed in other ways."""
    made = {step.outs[0]: step for step in tape.steps if step.outs}
    name = tape.read(tensor, _HERE).name
    cuts: list[Op] = []
    while name in made:
        step = made[name]
        if step.op not in ("slice", "copy") or not isinstance(step.args[0], Ref):
            return None
        cuts.append(step)
        name = step.args[0].name
    if name != Name(label):
        return None
    dims = [range(size) for size in shape]
    for step in reversed(cuts):
        if step.op == "slice":
            attrs = dict(step.attrs)
            dim: Any = attrs.get("dim", 0)
            cut: Any = slice(attrs.get("start"), attrs.get("end"), attrs.get("step"))
            dims[dim] = dims[dim][cut]
    return Part(tuple(((found.start, found.stop, found.step),) for found in dims))


def _inputs(
    captured: Captured, inputs: Sequence[torch.Tensor], given: ParallelStep, tape: Tape,
    part: Callable[..., Part], claims: dict[str, tuple[str, Part]],
) -> list[torch.Tensor]:  # fmt: skip
    made: list[torch.Tensor] = []
    for at, (label, tensor) in enumerate(zip(captured.inputs, inputs, strict=True)):
        said = given.inputs[at] if at < len(given.inputs) else None
        found = part(tuple(tensor.shape), said, f"input {at}")
        if found.sum:
            raise InputError(f"input {at} is a sum over {', '.join(found.sum)}", wanted="Shard or Replicate")
        local = tensor
        if found.shape != tuple(tensor.shape):
            local = tensor.new_empty(found.shape, requires_grad=tensor.requires_grad)
        claims[label] = (label, found)
        tape.add(local, Ref(Name(label)))
        made.append(local)
    return made


def _output(
    label: str, tensor: torch.Tensor, said: Mapping[str, Any] | None, shape: Sequence[int] | None, tape: Tape,
    part: Callable[..., Part], claims: dict[str, tuple[str, Part]], outputs: set[str],
) -> None:  # fmt: skip
    full = tuple(tensor.shape) if shape is None else tuple(shape)
    if isinstance(tensor, DTensor) and said is None:
        said = dict(zip(_axes(tensor), tensor.placements, strict=True))
        full = tuple(tensor.shape)
    found = part(full, said, label)
    local = _local(tensor)
    if found.shape != tuple(local.shape):
        raise InputError(
            f"{label} of shape {list(local.shape)}",
            wanted=f"{list(found.shape)}, as placed; ParallelStep(outputs=..., gradients=...) say otherwise",
        )
    _claim(label, local, found, tape, claims, outputs)


def _claim(
    label: str, local: torch.Tensor, found: Part, tape: Tape,
    claims: dict[str, tuple[str, Part]], outputs: set[str],
) -> None:  # fmt: skip
    tape.steps.append(Op("copy", (tape.read(local, _HERE),), (Name(label),)))
    claims[label] = (label, found)
    outputs.add(label)


# --- functions and tensors as people hand them in -----------------------------------------------------


def _built(model: ModelFunction) -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    found: Any = model()
    if not isinstance(found, tuple) or len(found) != 2 or not isinstance(found[0], torch.nn.Module):
        raise InputError(
            f"the model function returns {type(found).__name__}", wanted="(module, (example input, ...))"
        )
    net, inputs = found
    inputs = (inputs,) if isinstance(inputs, torch.Tensor) else tuple(inputs)
    if not all(isinstance(item, torch.Tensor) for item in inputs):
        raise InputError("example inputs that are no tensors", wanted="tensors")
    return net, inputs


def _parallel_step(found: Any, net: torch.nn.Module) -> ParallelStep:
    if found is None:
        return ParallelStep(lambda *inputs: _run(net, inputs))
    if isinstance(found, ParallelStep):
        return found
    if callable(found):
        return ParallelStep(found)
    raise InputError(
        f"the parallel function returns {type(found).__name__}", wanted="a ParallelStep, a step or None"
    )


def _run(net: torch.nn.Module, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Forward and backward."""
    returned = _returned(net(*inputs))
    loss = returned[0]
    if loss.numel() != 1:
        raise InputError(
            f"a loss of shape {list(loss.shape)}", wanted="one number as the first thing returned"
        )
    loss.backward()  # type: ignore[no-untyped-call]
    return returned


def _returned(found: Any) -> tuple[torch.Tensor, ...]:
    items = tuple(found) if isinstance(found, (tuple, list)) else (found,)
    if not items or not all(isinstance(item, torch.Tensor) for item in items):
        raise InputError("a step that returns no tensors", wanted="the loss, or a tuple that begins with it")
    return items


def _leaves(net: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [(_clean(label), tensor) for label, tensor in [*net.named_parameters(), *net.named_buffers()]]


def _gradients(net: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> list[tuple[str, torch.Tensor]]:
    tensors = [(_clean(label), tensor) for label, tensor in net.named_parameters()] + list(inputs.items())
    return [(f"grad.{label}", tensor.grad) for label, tensor in tensors if tensor.grad is not None]


def _clean(path: str) -> str:
    """A module path as a name; one may not begin with a digit."""
    return path if path[0].isalpha() or path[0] == "_" else f"_{path}"


def _output_names(count: int) -> tuple[str, ...]:
    return ("loss", *(f"out_{at}" for at in range(1, count)))


def _logical_shape(program: Program, label: str) -> tuple[int, ...] | None:
    from tensure.program import infer_program

    found = infer_program(program).get(label)
    return None if found is None else tuple(found.shape)


def _axes(tensor: DTensor) -> tuple[str, ...]:
    names = tensor.device_mesh.mesh_dim_names
    if names is None:
        raise UnsupportedError("a distributed tensor on a mesh without names", wanted="mesh axes with names")
    return tuple(names)


def _local(tensor: torch.Tensor) -> torch.Tensor:
    local = tensor._local_tensor if isinstance(tensor, DTensor) else tensor
    if isinstance(local, AsyncCollectiveTensor):
        local = local.elem
    return local
