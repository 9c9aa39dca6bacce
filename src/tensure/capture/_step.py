"""What is captured: one training step on one device, and its parallel twin on a mesh of ranks.

A model function returns a module and example inputs; calling the module gives the loss, or a tuple whose
first item it is. With an optimizer it returns a TrainingStep, unless an optimizer function is given beside.
A parallel function is given a fresh copy of that module, whole, on every rank, and the mesh; it shards, wraps
or replaces what it likes, and says what one step of one rank is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import torch
    from torch.distributed.device_mesh import DeviceMesh

__all__ = [
    "ModelFunction",
    "OptimizerFunction",
    "ParallelFunction",
    "ParallelStep",
    "Placements",
    "TrainingStep",
]

Placements: TypeAlias = "Mapping[str, Any]"
"""A torch placement (`Shard(0)`, `Replicate()`, `Partial()`) by mesh axis; an axis left out replicates."""


@dataclass(frozen=True)
class TrainingStep:
    """One step on one device that is more than forward and backward.

    Args:
        module: whose parameters, buffers and gradients are meant.
        inputs: example inputs, at full size.
        step: called with the inputs; returns what the module returns. None: call the module, run the loss
            backward, step the optimizer.
        optimizer: what the step steps, made of the module's parameters. With it the outputs are no gradients
            but `new.NAME`, each parameter afterwards, and `new.NAME.exp_avg` and whatever else it keeps.
    """

    module: torch.nn.Module
    inputs: tuple[torch.Tensor, ...]
    step: Callable[..., Any] | None = None
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None


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
        optimizer: what the step steps on this rank, if the single device has an optimizer; its parameters are
            the module's, or were cut from them before our eyes. None: the optimizer function makes one of the
            module's parameters, and it is stepped after `step`.
    """

    step: Callable[..., Any]
    module: torch.nn.Module | None = None
    inputs: Sequence[Placements | None] = ()
    outputs: Sequence[Placements | None] = ()
    parameters: Mapping[str, Placements] = field(default_factory=dict[str, "Placements"])
    gradients: Mapping[str, Placements] = field(default_factory=dict[str, "Placements"])
    microbatch: Callable[..., Any] | None = None
    microbatches: int = 1
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None


ModelFunction: TypeAlias = "Callable[[], tuple[torch.nn.Module, tuple[torch.Tensor, ...]] | TrainingStep]"
"""The module and its example inputs, at full size; called where tensors have no bytes."""

OptimizerFunction: TypeAlias = (
    "Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer | Sequence[torch.optim.Optimizer]]"
)
"""From a module's parameters to what steps them, on the single device and on every rank."""

ParallelFunction: TypeAlias = (
    "Callable[[torch.nn.Module, DeviceMesh], ParallelStep | torch.nn.Module | Callable[..., Any] | None]"
)
"""What makes the module parallel, in place or not; the answer, a step alone, the module or nothing at
all: then the step calls the module and runs the loss backward."""
