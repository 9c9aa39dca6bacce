"""What is captured: one training step on one device, and its parallel twin on a mesh of ranks.

A model function returns a module and example inputs; calling the module gives the loss, or a tuple whose
first item it is. A parallel function is given a fresh copy of that module, whole, on every rank, and
the mesh; it shards, wraps or replaces what it likes, and says what one step of one rank is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import torch
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["ModelFunction", "ParallelFunction", "ParallelStep", "Placements"]

Placements: TypeAlias = "Mapping[str, Any]"
"""A torch placement (`Shard(0)`, `Replicate()`, `Partial()`) by mesh axis; an axis left out replicates."""


@dataclass(frozen=True)
class ParallelStep:
    """One step of one rank, and where its plain tensors stand in those of the single device.

    Distributed tensors (DTensor) say themselves where they stand. A plain tensor is taken to be whole and the
    same on every rank, unless it is placed here.

    Args:
        step: called with this rank's inputs; runs forward, backward and whatever reduces gradients; returns
            what the module of the single device returns.
        module: whose parameters and gradients are meant; None means the one that the function was given.
            A parameter bears the name it has on the single device.
        inputs: placements of the inputs, in order; None or a missing one: every rank gets it whole.
        outputs: placements of what `step` returns, likewise.
        parameters: placements of plain parameters that hold a part, by name.
        gradients: placements of gradients, by parameter name, where they differ from their parameter's.
        microbatch: forward and backward of one micro-batch; then micro-batches are a last mesh axis `mb`,
            along which inputs may be cut and outputs be parts of a sum. It is called with this rank's inputs
            for one of them, and with its number, if it takes a parameter `index`; returns what the module
            returns; leaves gradients, to be accumulated. `step` is called once, with nothing, after the
            last.
        microbatches: how many there are.
    """

    step: Callable[..., Any]
    module: torch.nn.Module | None = None
    inputs: Sequence[Placements | None] = ()
    outputs: Sequence[Placements | None] = ()
    parameters: Mapping[str, Placements] = field(default_factory=dict[str, "Placements"])
    gradients: Mapping[str, Placements] = field(default_factory=dict[str, "Placements"])
    microbatch: Callable[..., Any] | None = None
    microbatches: int = 1


ModelFunction: TypeAlias = "Callable[[], tuple[torch.nn.Module, tuple[torch.Tensor, ...]]]"
"""The module and its example inputs, at full size; called where tensors have no bytes."""

ParallelFunction: TypeAlias = (
    "Callable[[torch.nn.Module, DeviceMesh], ParallelStep | Callable[..., Any] | None]"
)
"""What makes the module parallel, in place or not; the answer, a step alone or nothing at all:
then the step calls the module and runs the loss backward."""
