"""The training step of one device as a Program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from tensure.host import dtype_word
from tensure.program import Entry, Name, Op, Program, Ref, Value, infer_program, unswept, validate_program

from ._generators import Generators, counted_draws, own_generators
from ._given import built, gradients, leaves, output_names, run_backward
from ._placements import whole_part
from ._sources import Sources, their_errors
from ._step import ModelFunction
from ._tape import Tape
from ._tracer import Tracer
from ._tracks import RankTrace, live_steps
from ._world import no_bytes

__all__ = ["ENTRY", "Captured", "capture_model"]

ENTRY: Final = "step"


@dataclass(frozen=True)
class Captured:
    """A model's training step.

    Args:
        program: entry `step`; parameters and buffers are weights under their module path.
        inputs: the names of the inputs, in order.
        outputs: the names of what the module returns, in order.
        shapes: of leaves and outputs, by name.
    """

    program: Program
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]


def capture_model(model: ModelFunction) -> Captured:
    """Forward, loss and backward of the module on one device, at full size and without bytes.

    The outputs are what the module returns (`loss`, `out_1`, ...) and `grad.NAME` for every parameter that
    has a gradient, and for inputs that require one.

    Raises:
        InputError: not a module and inputs, a loss that is no scalar, or whatever the code itself raises.
        UnsupportedError: an op, dtype or form without a rule; names op, line and module.
    """
    with unswept():
        return _captured(model)


def _captured(model: ModelFunction) -> Captured:
    tape, values, generators = Tape(), dict[str, Value](), Generators()
    with own_generators(generators), no_bytes():
        with counted_draws(generators):
            net, inputs = built(model)
        names = tuple(f"input_{at}" for at in range(len(inputs)))
        known = dict(zip(names, inputs, strict=True))
        for role, table in (("weight", dict(leaves(net))), ("value", known)):
            for label, tensor in table.items():
                values[label] = Value(tuple(tensor.shape), dtype_word(tensor.dtype), role)  # type: ignore[arg-type]
                tape.add(tensor, Ref(Name(label)))
        sources = Sources(net)
        with their_errors("the step"), sources.watching(), Tracer(tape, sources, None, generators):
            returned = run_backward(net, inputs)
        labels = output_names(len(returned))
        found = dict(zip(labels, returned, strict=True))
        found |= {f"grad.{label}": tensor for label, tensor in gradients(net, known)}
        for label, tensor in found.items():
            tape.steps.append(Op("copy", (tape.read(tensor, ()),), (Name(label),)))
    claims = {label: (label, whole_part(())) for label in found}
    (trace,) = live_steps([RankTrace((), tuple(tape.steps), claims, frozenset(found))])
    read = {str(ref.name) for step in trace.steps for ref in step.reads()}
    entry = Entry(tuple(map(Name, names)), trace.steps, tuple(map(Name, found)))
    kept = {label: value for label, value in values.items() if value.role == "value" or label in read}
    program = Program(values=kept, entries={ENTRY: entry})
    validate_program(program)
    types = infer_program(program)
    shapes = {label: types[label].shape for label in (*kept, *found)}
    return Captured(program, names, labels, shapes)
