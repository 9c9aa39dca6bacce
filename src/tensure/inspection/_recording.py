"""A finished run: its trace, its values if they were kept, and how each step can be computed again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import torch

from tensure.errors import InputError

from ._records import Step, Trace
from ._values import ValueStore

__all__ = ["Read", "Recording", "Replay"]

Read: TypeAlias = Callable[[str], torch.Tensor]
Replay: TypeAlias = Callable[[Read], list[torch.Tensor]]
"""Computes one step again from the tensors that it is given by name; in float64 where they are float64."""


@dataclass(slots=True)
class Recording:
    """What a run left behind.

    Args:
        trace: its steps and facts.
        values: every tensor, if they were kept.
        replays: by step index; a step without one is a black box.
        program: digest of the Program whose names the tensors bear, so that equal names of equal programs
            mean the same thing; "" for eager code.
        uneven: tensors of which the ranks of a plan hold different copies: what is made of them is not what
            it would be of the copy that is kept.
    """

    trace: Trace
    values: ValueStore | None = None
    replays: Mapping[int, Replay] = field(default_factory=dict[int, Replay])
    program: str = ""
    uneven: frozenset[str] = frozenset()

    def __getitem__(self, name: str) -> torch.Tensor:
        """The values of a tensor, or of an output by its own name.

        Raises:
            InputError: no such tensor, or values were not kept.
        """
        key = self.trace.outputs.get(name, name)
        if key not in self.trace.tensors:
            raise InputError(f"no tensor {name[:80]!r} in {self.trace.name}")
        if self.values is None:
            raise InputError("the values of this run were not kept", next_step="Record with keep=True")
        return self.values.get(key)

    def step_of(self, name: str) -> Step | None:
        """The step that made a tensor."""
        return self.trace.maker(name)
