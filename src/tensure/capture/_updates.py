"""The optimizer of one rank: where the states stand that it begins with, and what it leaves.

A state of its parameter's shape stands where the parameter does, any other is whole; DTensors say themselves.
A parameter that is none of the module's was cut from one, or from several one after another, before our eyes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.tensor import DTensor

from tensure.errors import InputError
from tensure.host import dtype_word
from tensure.program import Name, Ref

from ._flat_parts import Stretch, claim_flat, flat_parts, stretch_of
from ._given import axes_of, leaves, local_of
from ._layout import is_copy
from ._optimizer import States, Watched, as_optimizers, built_optimizer, counted, started
from ._placements import Part, whole_part
from ._step import ParallelStep

if TYPE_CHECKING:
    from ._rank import TracedRank

__all__ = ["Updates"]


class Updates:
    """What a rank's optimizers step; states become leaves of its steps.

    Args:
        rank: being traced, its parameters known.
        given: what the parallel function said.
        module: whose parameters are meant.

    Raises:
        InputError: an optimizer here and none on the single device, or the other way round; states whose
            place nobody knows.
    """

    def __init__(self, rank: TracedRank, given: ParallelStep, module: torch.nn.Module) -> None:
        self.rank, self.given, self.module = rank, given, module
        self.states = rank.captured.states
        make, self.is_ours = rank.captured.optimizer, False
        self.held: list[tuple[str, tuple[int, str], Part, int | None]] = []
        """States: output, parameter's id and name, and place; of flat ones, where in it."""
        self.apart: list[tuple[torch.Tensor, list[Stretch]]] = []
        """What is stepped and is none of the module's, and what lies in it: the next step begins with it."""
        if given.optimizer is not None:
            self.optimizers = as_optimizers(given.optimizer)
            if self.states is None:
                raise InputError(
                    "an optimizer of the parallel step alone",
                    wanted="one on the single device too: in a TrainingStep, or by prove(optimizer=...)",
                )
        elif self.states is None:
            self.optimizers = ()
        elif make is None:
            raise InputError(
                "a parallel step without an optimizer, where the single device has one",
                wanted="ParallelStep(optimizer=...), or prove(optimizer=...) for both",
            )
        else:
            self.optimizers, self.is_ours = built_optimizer(make, module), True
        started(self.optimizers)
        self.names = {id(tensor): label for label, tensor in leaves(module)}
        self.watched = Watched(self.optimizers)
        for states in self.watched.before.values():
            self._take(states)

    @contextmanager
    def stepping(self) -> Iterator[Callable[..., Any]]:
        """The step, with the optimizer's where that is ours to call."""
        if not self.optimizers:
            yield self.given.step
            return

        def run(*inputs: torch.Tensor) -> Any:
            returned = self.given.step(*inputs)
            for optimizer in self.optimizers if self.is_ours else ():
                optimizer.step()
            return returned

        with counted():
            yield run

    def results(self) -> None:
        """Claim parameters and states as they are now."""
        if self.states is None:
            return
        for label, tensor in leaves(self.module):
            laid = self.rank.flat.get(label)
            if laid is not None:
                claim_flat(self.rank, tensor, laid, "new.")
                continue
            if self.rank.captured.of(label) not in self.states or label not in self.rank.standing:
                continue
            if isinstance(tensor, DTensor):
                self.rank.output(f"new.{label}", tensor, None)
            else:
                self.rank.claim(f"new.{label}", tensor, self.rank.standing[label])
        tape, after = self.rank.tape, self.watched.after()
        for parameter, stands in self.apart:
            (of, part), held = stands[0], local_of(parameter)
            if len(stands) > 1 or of is None or part.shape != tuple(held.shape):
                claim_flat(self.rank, held, stands, "new.")
            else:
                made, output = f"new.{of}", self.rank.captured.of(f"new.{of}")
                self.rank.claim_value(self._unused(made), tape.read(held, ()), output, part)
        for made, (key, name), part, start in self.held:
            tensor = after[key].tensors[name]
            if isinstance(tensor, DTensor):  # it says where it stands now
                self.rank.output(made, tensor, None)
                continue
            ref = tape.read(tensor, ())
            if start is not None:
                ref = stretch_of(self.rank, ref, part, start)
            self.rank.claim_value(self._unused(made), ref, self.rank.captured.of(made), part)

    def _unused(self, wanted: str) -> str:
        """A local's name that nobody has: a parameter may lie in several of the optimizer's."""
        count, local = 0, wanted
        while local in self.rank.claims:
            count += 1
            local = f"{wanted}.{count}"
        return local

    # states ------------------------------------------------------------------------------------------

    def _take(self, states: States) -> None:
        """A parameter's states: leaves of this rank's steps, to be claimed again afterwards."""
        stands, tensors, parameter = self._stands(states.parameter), states.tensors, id(states.parameter)
        mine = self.names.get(parameter)
        if stands and mine not in self.rank.standing and mine not in self.rank.flat:
            self.apart.append((states.parameter, stands))
        for label in dict.fromkeys(label for label, _ in stands if label is not None):
            known = (self.states or {}).get(self.rank.captured.of(label))
            if known is None:
                raise InputError(
                    f"the optimizer steps {label}",
                    wanted="parameters that the single device's optimizer steps",
                )
            unlike = sorted(known.keys() ^ tensors.keys())
            if unlike:
                raise InputError(
                    f"the optimizer keeps {', '.join(tensors) or 'nothing'} of {label}",
                    wanted=f"{', '.join(known) or 'nothing'}, as the single device's optimizer does",
                )
        for name, tensor in tensors.items():
            is_flat = len(stands) != 1 or stands[0][0] is None
            is_flat = is_flat or (stands[0][1].shape != tuple(tensor.shape) and tensor.ndim == 1)
            if tuple(tensor.shape) == () and all(label is None for label, _ in stands):
                self._unused_number((parameter, name), tensor)
            elif isinstance(tensor, DTensor) or not is_flat or tuple(tensor.shape) == ():
                self._whole_state((parameter, name), tensor, stands)
            else:
                self._flat_state((parameter, name), tensor, stands)

    def _whole_state(
        self, key: tuple[int, str], tensor: torch.Tensor, stands: Sequence[tuple[str | None, Part]]
    ) -> None:
        """A state that is a part of one parameter's, or a number that parameters share."""
        assert self.states is not None
        _, name = key
        local, ref, captured = local_of(tensor), None, self.rank.captured
        shapes = captured.shapes
        for label, place in {label: place for label, place in stands if label is not None}.items():
            of = captured.of(label)
            leaf, mine = self.states[of][name], f"{label}.{name}"
            if isinstance(tensor, DTensor):
                placed = dict(zip(axes_of(tensor), tensor.placements, strict=True))
                part = self.rank.part(shapes[leaf], placed, f"state {name} of {label}")
            else:
                part = place if shapes[leaf] == shapes[of] else whole_part(shapes[leaf])
            if ref is not None and leaf != ref:
                raise InputError(
                    f"one number {name} for {label} and others, each with its own on the single device",
                    wanted="a parameter of the optimizer for each of the model's",
                )
            if part.shape != tuple(local.shape):
                raise InputError(
                    f"state {name} of {label} of shape {list(local.shape)}", wanted=f"{list(part.shape)}"
                )
            if ref is None:
                begun = self._unused(mine)
                self.rank.claims[begun] = (leaf, part)
                self.rank.tape.add(local, self.rank.begun(begun, leaf, local))
            ref = leaf
            self.held.append((f"new.{mine}", key, part, None))

    def _unused_number(self, key: tuple[int, str], tensor: torch.Tensor) -> None:
        """A counter of what holds nothing of the model here: torch may step it or not, and nobody asks."""
        parameter, name = key
        known = {label: held[name] for label, held in (self.states or {}).items() if name in held}
        mine = self.names.get(parameter)
        leaf = known.get(self.rank.captured.of(mine)) if mine is not None else None
        if leaf is None and len(set(known.values())) == 1:
            leaf = next(iter(known.values()))
        if leaf is not None:
            local = f"unused.{mine or len(self.rank.claims)}.{name}"
            self.rank.claims[local] = (leaf, whole_part(self.rank.captured.shapes[leaf]))
            self.rank.tape.add(tensor, Ref(Name(local)))

    def _flat_state(
        self, key: tuple[int, str], tensor: torch.Tensor, stands: Sequence[tuple[str | None, Part]]
    ) -> None:
        """A state of parts of parameters one after another."""
        assert self.states is not None
        _, name = key
        tape, pieces, at = self.rank.tape, list[Ref](), 0
        for label, place in stands or [(None, Part((((0, 0, 1),),)))]:
            size = math.prod(place.shape)
            if label is None:
                attrs = {"dtype": dtype_word(tensor.dtype), "fill_value": 0.0}
                pieces.append(tape.step("full", (), (), size=(size,), **attrs))
            else:
                mine = f"{label}.{name}"
                local, of = self._unused(mine), self.rank.captured.of(label)
                self.rank.claims[local] = (self.states[of][name], place)
                begun = self.rank.begun(local, self.states[of][name], tensor)
                pieces.append(tape.step("view", (begun,), (), size=(size,)))
                self.held.append((f"new.{mine}", key, place, at))
            at += size
        if tuple(tensor.shape) != (at,):
            raise InputError(
                f"state {name} of shape {list(tensor.shape)}", wanted=f"{[at]}, as its parameter"
            )
        tape.add(tensor, tape.step("cat", tuple(pieces), (), dim=0))

    def _stands(self, parameter: torch.Tensor) -> list[Stretch]:
        """The module's parameters that this is a part of, one after another, and which parts."""
        label, local, rank = self.names.get(id(parameter)), local_of(parameter), self.rank
        if label is not None and label in rank.standing:
            return [(label, rank.standing[label])]
        shapes = {name: rank.captured.shapes[name] for name in self.states or {}}
        if rank.tape.knows(local):
            for name, shape in shapes.items():
                part = rank.cut(local, name, shape)
                if part is not None:
                    return [(name, part)]
            copied = self._copied(local)
            if copied is not None:
                return [(copied, rank.standing[copied])]
            laid = flat_parts(rank, parameter, shapes)
            if laid is not None:
                return laid
        raise InputError(
            f"the optimizer steps a tensor of shape {list(parameter.shape)}, and nobody knows which part of "
            "the model it is",
            wanted="parameters of the module, or slices of them made by the parallel function",
        )

    def _copied(self, tensor: torch.Tensor) -> str | None:
        """The parameter that a tensor is a copy of, in whatever float dtype: one of master weights.

        What it was copied from may have been replaced by what the parameter is placed as: so is the copy.
        """
        tape, replaced = self.rank.tape, self.rank.replaced
        made, name = tape.makers(), tape.read(tensor, ()).name
        while name not in replaced and (step := made.get(name)) is not None:
            if not is_copy(step) or not isinstance(step.args[0], Ref):
                return None
            name = step.args[0].name
        label = replaced.get(name, str(name))
        of = self.rank.captured.of(label)
        if label not in self.rank.standing or of not in (self.states or {}):
            return None
        if name in replaced:
            dtype = dtype_word(tensor.dtype)
            tape.write(tensor, tape.step("_to_copy", (Ref(Name(label)),), (), dtype=dtype), ())
        return label
