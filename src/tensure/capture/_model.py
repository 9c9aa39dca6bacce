"""The training step of one device as a Program."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Final

import torch

from tensure.errors import InputError
from tensure.host import dtype_word
from tensure.program import Entry, Name, Op, Program, Ref, Value, infer_program, unswept, validate_program

from ._calls import check_call
from ._generators import Generators, counted_draws, own_generators
from ._given import built, gradients, leaves, output_names, returned_by, run_backward, tied_names
from ._optimizer import States, Watched, as_optimizers, built_optimizer, counted, counters, increment, started
from ._placements import whole_part
from ._sources import Sources, their_errors
from ._squares import unrooted
from ._step import ModelFunction, OptimizerFunction, TrainingStep
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
        states: what the optimizer keeps of each parameter that it steps: the leaf that it is before, by label
            and torch's name. Afterwards they are the outputs `new.LABEL.NAME`, and the parameter `new.LABEL`.
            None where there is no optimizer.
        optimizer: what makes one of a module's parameters, if that was said.
        tied: other names of parameters that have several, and of what is called by them (`grad.NAME`,
            `new.NAME`, `new.NAME.STATE`), each with the name that it has here.
    """

    program: Program
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]
    states: Mapping[str, Mapping[str, str]] | None = None
    optimizer: OptimizerFunction | None = None
    tied: Mapping[str, str] = field(default_factory=dict[str, str])

    def of(self, label: str) -> str:
        """The name here of what a rank may know by another of its names."""
        return label if label in self.shapes else self.tied.get(label, label)


def capture_model(model: ModelFunction, *, optimizer: OptimizerFunction | None = None) -> Captured:
    """Forward, loss and backward of the module on one device, at full size and without bytes.

    The outputs are what the module returns (`loss`, `out_1`, ...) and `grad.NAME` for every parameter that
    has a gradient, and for inputs that require one.

    With an optimizer, its step is the last part of the step: its states are inputs besides, and instead of
    gradients of parameters there are `new.NAME`, the parameter afterwards, and `new.NAME.exp_avg` or
    whatever it keeps. Its counters are inputs too, so that the step is any step of the training, but for the
    very first of an optimizer that begins otherwise (SGD, whose first momentum is the gradient).

    Args:
        model: returns the module and its inputs, or a TrainingStep.
        optimizer: makes an optimizer of the module's parameters, which is stepped after the loss's backward;
            used where the TrainingStep has none.

    Raises:
        InputError: not a module and inputs, a loss that is no scalar, or whatever the code itself raises.
        UnsupportedError: an op, dtype or form without a rule; names op, line and module.
    """
    with unswept():
        return _captured(model, optimizer)


def _captured(model: ModelFunction, make: OptimizerFunction | None, is_shared: bool = True) -> Captured:
    """The step; once more, with a counter for each parameter, if one for all does not count."""
    tape, values, generators = Tape(), dict[str, Value](), Generators()
    with own_generators(generators), no_bytes():
        with counted_draws(generators):
            given = built(model)
        net, inputs = given.module, given.inputs
        names = tuple(f"input_{at}" for at in range(len(inputs)))
        known = dict(zip(names, inputs, strict=True))
        for role, table in (("weight", dict(leaves(net))), ("value", known)):
            for label, tensor in table.items():
                values[label] = Value(tuple(tensor.shape), dtype_word(tensor.dtype), role)  # type: ignore[arg-type]
                tape.add(tensor, Ref(Name(label)))
        updates = _Updates(given, make, is_shared)
        for label, tensor in updates.leaves():
            leaf = Value(tuple(tensor.shape), dtype_word(tensor.dtype), "value")
            if values.setdefault(label, leaf) != leaf:
                raise InputError(
                    f"a parameter or buffer that is called {label}",
                    wanted="another name: a state of the optimizer has it",
                )
            tape.add(tensor, Ref(Name(label)))
        sources = Sources(net)
        with their_errors("the step"), sources.watching(), Tracer(tape, sources, None, generators):
            returned = updates.run()
        are_counters = updates.are_counters(tape)
        labels = output_names(len(returned))
        found = dict(zip(labels, returned, strict=True))
        graded = gradients(net, known) if updates.states is None else gradients(None, known)
        found |= {f"grad.{label}": tensor for label, tensor in graded}
        found |= updates.results()
        for label, tensor in found.items():
            tape.steps.append(Op("copy", (tape.read(tensor, ()),), (Name(label),)))
    if not are_counters:
        return _captured(model, make, is_shared=False)
    claims = {label: (label, whole_part(())) for label in found}
    (steps,) = unrooted([tape.steps])
    (trace,) = live_steps([RankTrace((), tuple(steps), claims, frozenset(found))])
    read = {str(ref.name) for step in trace.steps for ref in step.reads()}
    begun = tuple(label for label in values if values[label].role == "value")
    entry = Entry(tuple(map(Name, begun)), trace.steps, tuple(map(Name, found)))
    kept = {label: value for label, value in values.items() if value.role == "value" or label in read}
    program = Program(values=kept, entries={ENTRY: entry})
    validate_program(program)
    types = infer_program(program)
    shapes = {label: types[label].shape for label in (*kept, *found)}
    tied = _tied(tied_names(net), updates.states)
    return Captured(program, names, labels, shapes, updates.states, make, tied)


def _tied(names: Mapping[str, str], states: Mapping[str, Mapping[str, str]] | None) -> dict[str, str]:
    """Other names of leaves and of outputs."""
    found: dict[str, str] = {}
    for other, label in names.items():
        found |= {f"{prefix}{other}": f"{prefix}{label}" for prefix in ("", "grad.", "new.")}
        for name in (states or {}).get(label, ()):
            found[f"new.{other}.{name}"] = f"new.{label}.{name}"
    return found


class _Updates:
    """The optimizers of the single device, and the step with them."""

    def __init__(self, given: TrainingStep, make: OptimizerFunction | None, is_shared: bool) -> None:
        self.given, self.is_ours = given, given.optimizer is None and make is not None
        if given.optimizer is not None:
            self.optimizers = as_optimizers(given.optimizer)
        else:
            self.optimizers = built_optimizer(make, given.module) if make is not None else ()
        started(self.optimizers)
        self.watched = Watched(self.optimizers)
        self.held: dict[str, States] = {}
        names = {id(tensor): label for label, tensor in leaves(given.module)}
        for key, states in self.watched.before.items():
            if key not in names:
                raise InputError(
                    f"the optimizer steps a tensor of shape {list(states.parameter.shape)} that is no "
                    "parameter of the module",
                    wanted="an optimizer of module.parameters()",
                )
            self.held[names[key]] = states
        self.shared = counters(self.optimizers) if is_shared else {}
        self.states: dict[str, dict[str, str]] | None = None
        if self.optimizers:
            self.states = {
                label: {name: self._leaf(states.parameter, label, name) for name in states.tensors}
                for label, states in self.held.items()
            }

    def _leaf(self, parameter: torch.Tensor, label: str, name: str) -> str:
        shared = self.shared.get(id(parameter), "")
        return shared if shared.endswith(f".{name}") else f"{label}.{name}"

    def are_counters(self, tape: Tape) -> bool:
        """Whether all that is shared is counted up by one number for all that share it."""
        by: dict[str, set[float | None]] = {}
        after, made = self.watched.after(), tape.makers()
        for key, leaf in self.shared.items():
            state = after[key].tensors[leaf.rpartition(".")[2]]
            by.setdefault(leaf, set()).add(increment(made, tape.read(state, ()), leaf))
        return all(len(found) == 1 and None not in found for found in by.values())

    def leaves(self) -> list[tuple[str, torch.Tensor]]:
        """The states with the values that they begin with."""
        return [
            (leaf, self.held[label].tensors[name])
            for label, named in (self.states or {}).items()
            for name, leaf in named.items()
        ]

    def run(self) -> tuple[torch.Tensor, ...]:
        """Trace the step."""
        with counted() if self.optimizers else nullcontext():
            if self.given.step is not None:
                check_call(
                    "the step", self.given.step, {f"input_{at}": x for at, x in enumerate(self.given.inputs)}
                )
                return returned_by(self.given.step(*self.given.inputs))
            returned = run_backward(self.given.module, self.given.inputs)
            for optimizer in self.optimizers:
                optimizer.step()
            return returned

    def results(self) -> dict[str, torch.Tensor]:
        """Parameters and states afterwards, by the names of the outputs."""
        found: dict[str, torch.Tensor] = {}
        after = self.watched.after()
        for label, before in self.held.items():
            found[f"new.{label}"] = before.parameter
            tensors = after[id(before.parameter)].tensors
            found |= {f"new.{label}.{name}": tensors[name] for name in before.tensors}
        return found
