"""What people hand in, checked and in one form: modules with inputs, steps, what steps return."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import torch
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from tensure.errors import InputError, UnsupportedError

from ._calls import check_call
from ._sources import their_errors
from ._step import ModelFunction, ParallelStep, TrainingStep

__all__ = [
    "GRADIENT",
    "as_step",
    "axes_of",
    "built",
    "gradients",
    "leaves",
    "local_of",
    "output_names",
    "returned_by",
    "run_backward",
    "tied_names",
]


GRADIENT: Final = "grad."
"""Begins the names of gradients."""


def built(model: ModelFunction) -> TrainingStep:
    """A fresh module with its inputs, its step and its optimizer, as far as these were given.

    Raises:
        InputError: the function returns something else.
    """
    check_call("the model function", model, {})
    with their_errors("the model function"):
        found: Any = model()
    if isinstance(found, tuple) and len(found) == 2:
        found = TrainingStep(*found)
    if not isinstance(found, TrainingStep) or not isinstance(found.module, torch.nn.Module):
        raise InputError(
            f"the model function returns {type(found).__name__}",
            wanted="(module, (example input, ...)) or a TrainingStep",
        )
    inputs: Any = (found.inputs,) if isinstance(found.inputs, torch.Tensor) else found.inputs
    if not isinstance(inputs, (tuple, list)) or not all(isinstance(item, torch.Tensor) for item in inputs):
        raise InputError("example inputs that are no tensors", wanted="a tuple of tensors")
    return replace(found, inputs=tuple(inputs))


def as_step(found: Any, net: torch.nn.Module) -> ParallelStep:
    """What a parallel function returned as one record.

    Raises:
        InputError: it is neither a ParallelStep, nor a module, nor a function, nor None.
    """
    if found is None:
        return ParallelStep(lambda *inputs: run_backward(net, inputs))
    if isinstance(found, ParallelStep):
        for what, given in (("inputs", found.inputs), ("outputs", found.outputs)):
            if not isinstance(given, (tuple, list)):
                raise InputError(
                    f"ParallelStep({what}={given!r})",
                    wanted='a tuple of {axis: placement}, such as ({"dp": Shard(0)},)',
                )
        return found
    if isinstance(found, torch.nn.Module):  # what parallelize_module, fully_shard and DDP(net) return
        return ParallelStep(lambda *inputs: run_backward(found, inputs), module=found)
    if callable(found):
        return ParallelStep(found)
    raise InputError(
        f"the parallel function returns {type(found).__name__}",
        wanted="nothing, the module, a step function or a ParallelStep",
    )


def run_backward(net: torch.nn.Module, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Forward and backward; what the module returned."""
    returned = returned_by(net(*inputs))
    loss = returned[0]
    if loss.numel() != 1:
        raise InputError(
            f"a loss of shape {list(loss.shape)}", wanted="one number as the first thing returned"
        )
    if not loss.requires_grad:
        raise InputError(
            "a loss that depends on nothing that requires a gradient", wanted="a loss of the parameters"
        )
    loss.backward()  # type: ignore[no-untyped-call]
    return returned


def returned_by(found: Any) -> tuple[torch.Tensor, ...]:
    """The tensors a module or step returned, the loss first."""
    items = tuple(found) if isinstance(found, (tuple, list)) else (found,)
    if not items or not all(isinstance(item, torch.Tensor) for item in items):
        raise InputError("a step that returns no tensors", wanted="the loss, or a tuple that begins with it")
    return items


def output_names(count: int) -> tuple[str, ...]:
    """Of what a module returns."""
    return ("loss", *(f"out_{at}" for at in range(1, count)))


def leaves(net: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Parameters and buffers by name."""
    net = net.module if isinstance(net, DistributedDataParallel) else net
    return [(_clean(label), tensor) for label, tensor in [*net.named_parameters(), *net.named_buffers()]]


def tied_names(net: torch.nn.Module) -> dict[str, str]:
    """The other names that parameters have, each with the one that `leaves` calls them by."""
    net = net.module if isinstance(net, DistributedDataParallel) else net
    names = {id(parameter): _clean(label) for label, parameter in net.named_parameters()}
    every = [(_clean(label), found) for label, found in net.named_parameters(remove_duplicate=False)]
    return {label: names[id(found)] for label, found in every if names[id(found)] != label}


def gradients(
    net: torch.nn.Module | None, inputs: Mapping[str, torch.Tensor]
) -> list[tuple[str, torch.Tensor]]:
    """The gradients that are there, by the name of what they belong to; without a module, those of inputs."""
    net = net.module if isinstance(net, DistributedDataParallel) else net
    named = [] if net is None else net.named_parameters()
    tensors = [(_clean(label), tensor) for label, tensor in named] + list(inputs.items())
    return [(label, tensor.grad) for label, tensor in tensors if tensor.grad is not None]


def axes_of(tensor: DTensor) -> tuple[str, ...]:
    """The mesh axes a distributed tensor is placed on."""
    names = tensor.device_mesh.mesh_dim_names
    if names is None:
        raise UnsupportedError("a distributed tensor on a mesh without names", wanted="mesh axes with names")
    return tuple(names)


def local_of(tensor: torch.Tensor) -> torch.Tensor:
    """A rank's own part of it."""
    local = tensor._local_tensor if isinstance(tensor, DTensor) else tensor
    return local.elem if isinstance(local, AsyncCollectiveTensor) else local


_WRAPPINGS: Final = frozenset({"_checkpoint_wrapped_module", "_orig_mod", "_fsdp_wrapped_module"})
"""Modules that stand around one of the model's, as checkpointing and compiling make them."""


def _clean(path: str) -> str:
    """A module path as a name, without what only wraps; one may not begin with a digit."""
    path = ".".join(part for part in path.split(".") if part not in _WRAPPINGS)
    return path if path[0].isalpha() or path[0] == "_" else f"_{path}"
