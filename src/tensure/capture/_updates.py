"""The optimizer of one rank: where the states stand that it begins with, and what it leaves.

A state of its parameter's shape stands where the parameter does, any other is whole; DTensors say themselves.
A parameter that is none of the module's was cut from one, or from several one after another, before our eyes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.tensor import DTensor

from tensure.errors import InputError
from tensure.program import Name, Ref

from ._given import axes_of, leaves, local_of
from ._optimizer import as_optimizers, built_optimizer, counted, started, states_of
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
        InputError: an optimizer here and none on the single device, or the other way round; states whose place
            nobody knows.
    """

    def __init__(self, rank: TracedRank, given: ParallelStep, module: torch.nn.Module) -> None:
        self.rank, self.given, self.module = rank, given, module
        self.states = rank.captured.states
        make, self.is_ours = rank.captured.optimizer, False
        self.held: list[tuple[str, torch.Tensor, Part]] = []
        """States: output, tensor and place."""
        if given.optimizer is not None:
            self.optimizers = as_optimizers(given.optimizer)
            if self.states is None:
                raise InputError(
                    "an optimizer of the parallel step alone",
                    wanted="one on the single device too: a TrainingStep with optimizer=, or prove(optimizer=...)",
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
        for optimizer in self.optimizers:
            for states in states_of(optimizer):
                self._take(states.parameter, states.tensors)

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
            if label not in self.states or label not in self.rank.standing:
                continue
            if isinstance(tensor, DTensor):
                self.rank.output(f"new.{label}", tensor, None)
            else:
                self.rank.claim(f"new.{label}", tensor, self.rank.standing[label])
        for output, tensor, part in self.held:
            self.rank.claim(output, local_of(tensor), part)

    # states ------------------------------------------------------------------------------------------

    def _take(self, parameter: torch.Tensor, tensors: Any) -> None:
        assert self.states is not None
        label, place = self._stands(parameter)
        if label not in self.states:
            raise InputError(
                f"the optimizer steps {label}", wanted="parameters that the single device's optimizer steps"
            )
        known = self.states[label]
        for name, tensor in tensors.items():
            if name not in known:
                raise InputError(
                    f"state {name} of {label}",
                    wanted=f"{', '.join(known) or 'none'}, as the single device's optimizer has",
                )
            leaf = known[name]
            shapes = self.rank.captured.shapes
            if isinstance(tensor, DTensor):
                placed = dict(zip(axes_of(tensor), tensor.placements, strict=True))
                part = self.rank.part(shapes[leaf], placed, f"state {name} of {label}")
            else:
                part = place if shapes[leaf] == shapes[label] else whole_part(shapes[leaf])
            local, mine = local_of(tensor), f"{label}.{name}"
            if part.shape != tuple(local.shape):
                raise InputError(
                    f"state {name} of {label} of shape {list(local.shape)}", wanted=f"{list(part.shape)}"
                )
            self.rank.claims[mine] = (leaf, part)
            self.rank.tape.add(local, Ref(Name(mine)))
            self.held.append((f"new.{mine}", tensor, part))

    def _stands(self, parameter: torch.Tensor) -> tuple[str, Part]:
        """The module's parameter that this is a part of, and the part."""
        label = self.names.get(id(parameter))
        if label is not None and label in self.rank.standing:
            return label, self.rank.standing[label]
        for found, shape in self.rank.captured.shapes.items():
            if found in (self.states or {}) and self.rank.tape.knows(local_of(parameter)):
                part = self.rank.cut(local_of(parameter), found, shape)
                if part is not None:
                    return found, part
        raise InputError(
            f"the optimizer steps a tensor of shape {list(parameter.shape)}, and nobody knows which part of "
            "the model it is",
            wanted="parameters of the module, or slices of them made by the parallel function",
        )
