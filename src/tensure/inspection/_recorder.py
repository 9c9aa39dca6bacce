"""Builds a trace as a run goes on: looks at each tensor once, gives names, follows memory.

Knows tensors and names. Does not know what runs them: `_watch.py` feeds it from torch's dispatcher,
`_program_run.py` from the steps of a Program.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import torch

from ._facts import Looking, look, memory_of, stored_bytes, type_of
from ._records import Argument, Origin, Quantised, Step, TensorFacts, Trace
from ._storages import Storages
from ._values import ValueStore

__all__ = ["Follower", "Made", "OnStep", "Recorder"]

OnStep: TypeAlias = Callable[[Step, Mapping[str, torch.Tensor]], None]
"""Told of each step with the tensors it made, which it must not keep."""


@runtime_checkable
class Follower(Protocol):
    """An `OnStep` that is shown the trace before it grows, and every leaf as it is met."""

    def begin(self, trace: Trace, values: ValueStore | None) -> None:
        """A run begins; its facts will stand in `trace`, its values in `values` if they are kept."""

    def leaf(self, name: str, tensor: torch.Tensor) -> None:
        """A tensor that no step made; it must not be kept alive."""

    def __call__(self, step: Step, made: Mapping[str, torch.Tensor]) -> None:
        """As `OnStep`."""


@dataclass(frozen=True, slots=True)
class Made:
    """A tensor a step made, under its name; `in_place` where it lies over an older one."""

    name: str
    tensor: torch.Tensor
    in_place: bool = False
    quantised: Quantised | None = None


class Recorder:
    """One trace in the making.

    Args:
        trace: to fill.
        looking: what to find out of every tensor.
        store: where values are kept; nowhere when left out.
        on_step: called after every step.
        lend_weights: keep weights by reference: nobody else may write to them, ever.
    """

    def __init__(
        self,
        trace: Trace,
        looking: Looking,
        *,
        store: ValueStore | None = None,
        on_step: OnStep | None = None,
        lend_weights: bool = False,
    ) -> None:
        self._lend_weights = lend_weights
        self.trace = trace
        self.looking = looking
        self.store = store
        self.on_step = on_step
        self.storages = Storages()
        self._follower = on_step if isinstance(on_step, Follower) else None
        if self._follower is not None:
            self._follower.begin(trace, store)

    def leaf(self, name: str, tensor: torch.Tensor, origin: Origin) -> None:
        """A tensor that no step made."""
        lasting = origin == "weight"
        if self.store is not None and lasting and self._lend_weights:
            self.store.lend(name, tensor)
        self._add(Made(name, tensor), origin, -1, lasting=lasting)
        if self._follower is not None:
            self._follower.leaf(name, tensor)

    def changed(self, name: str, tensor: torch.Tensor, step: int, before: TensorFacts) -> bool:
        """A tensor whose bytes an earlier step may have written over through another one, under its new name.

        Whether it did, as far as digests tell.
        """
        self._add(Made(name, tensor, in_place=True), "value", step)
        if before.digest is None or self.trace.tensors[name].digest != before.digest:
            return True
        del self.trace.tensors[name]
        if self.store is not None:
            self.store.forget(name)
        return False

    def step(
        self,
        op: str,
        reads: Sequence[str],
        made: Sequence[Made],
        *,
        module: str = "",
        source: str = "",
        phase: Literal["forward", "backward"] = "forward",
        arguments: tuple[tuple[str, Argument], ...] = (),
        wrote: tuple[str, ...] = (),
        seconds: float = 0.0,
    ) -> Step:
        """A step that ran, with what it made."""
        trace = self.trace
        index = len(trace.steps)
        for item in made:
            if item.in_place:
                self.storages.write(item.tensor, index)
            self._add(item, "value", index)
        live = self.storages.live_bytes()
        found = Step(
            index,
            op,
            tuple(reads),
            tuple([item.name for item in made]),
            module,
            source,
            phase,
            arguments,
            wrote,
            live,
            seconds,
        )
        trace.steps.append(found)
        trace.peak_bytes = max(trace.peak_bytes, live)
        if self.on_step is not None:
            self.on_step(found, {item.name: item.tensor for item in made})
        return found

    def _add(self, item: Made, origin: Origin, step: int, *, lasting: bool = False) -> None:
        tensor = item.tensor
        shape, dtype, layout = type_of(tensor)
        strides, memory = memory_of(tensor)
        number, first = (
            self.storages.meet(tensor, item.name, lasting=lasting) if strides is not None else (-1, None)
        )
        seen = look(tensor, self.looking)
        self.trace.tensors[item.name] = TensorFacts(
            item.name,
            origin,
            step,
            shape,
            dtype,
            str(tensor.device),
            layout,
            strides,
            memory,
            number,
            int(tensor.storage_offset()) if strides is not None else 0,
            first,
            item.in_place,
            stored_bytes(tensor),
            seen.statistics,
            seen.digest,
            item.quantised or seen.quantised,
        )
        if self.store is not None and item.name not in self.store:
            self.store.put(item.name, tensor)
