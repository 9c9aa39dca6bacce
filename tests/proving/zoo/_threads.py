"""The oracle: runs a twin for real, in float64, and names what differs from the single device.

All ranks run in this process, a thread each. The oracle knows the convention of `tensure.capture`, and
nothing of the prover.
"""

from __future__ import annotations

import copy
import itertools
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from tensure.capture import ModelFunction, ParallelFunction, ParallelStep, Placements
from tensure.capture._threaded import in_threads

__all__ = ["AGREE", "DIFFER", "OracleError", "run_twin"]

AGREE = 1e-9
"""Greatest difference, relative to the largest value of the tensor, that is called the same."""

DIFFER = 1e-6
"""Least such difference that is called a bug; nothing may lie between the two."""

SEED = 7
PATIENCE_S = 60.0


class OracleError(Exception):
    """A run that has no answer: a rank raised or hung, or a twin broke the convention."""


def run_twin(model: ModelFunction, parallel: ParallelFunction, mesh: Mapping[str, int]) -> dict[str, float]:
    """How far every result of the twin is from the single device's: the loss, other outputs, gradients.

    Names are "loss", "output 1" and so on, and those of parameters, for their gradients. A distance is the
    greatest difference over the largest absolute value of the reference, over all ranks that have the result;
    infinite for a wrong shape, a missing gradient, or a replica that differs from the others.

    Raises:
        OracleError: a rank raised, or did not finish.
    """
    with _double_precision():
        net, inputs = _seeded(model)
        ranks = _run_ranks(net, inputs, parallel, mesh)
        expected = _run_single(net, inputs)
    distances = dict[str, float]()
    for name, reference in expected.items():
        parts = {rank: found[name] for rank, found in enumerate(ranks) if name in found}
        distances[name] = _distance(reference, parts, tuple(mesh), tuple(mesh.values()))
    return distances


# --- the single device -------------------------------------------------------------------------------


@contextmanager
def _double_precision() -> Iterator[None]:
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)  # a thread is a rank already
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)


def _seeded(model: ModelFunction) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The model with weights that are nowhere special: norms that start at one would hide a lost factor."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        net, inputs = model()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.copy_(0.5 * torch.randn(parameter.shape) + 0.25)
    return net, inputs


def _run_single(net: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    outputs = net(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    outputs[0].backward()
    found = {_output_name(index): output.detach() for index, output in enumerate(outputs)}
    for name, parameter in net.named_parameters():
        if parameter.grad is None:
            raise OracleError(f"the single device gives {name} no gradient; take it out of the model")
        found[name] = parameter.grad
    return found


def _output_name(index: int) -> str:
    return "loss" if index == 0 else f"output {index}"


# --- the ranks ---------------------------------------------------------------------------------------

Found = dict[str, tuple["Tensor | None", Placements]]
"""What a rank holds of every result, and where that stands on the mesh; None: it should, and does not."""


def _run_ranks(
    net: nn.Module, inputs: tuple[Tensor, ...], parallel: ParallelFunction, sizes: Mapping[str, int]
) -> list[Found]:
    """What every rank found, in the order of ranks."""
    found: list[Found] = [{} for _ in range(prod(sizes.values()))]
    copies = [copy.deepcopy(net) for _ in found]

    def run(rank: int) -> None:
        mesh = init_device_mesh("cpu", tuple(sizes.values()), mesh_dim_names=tuple(sizes))
        found[rank] = _run_rank(copies[rank], inputs, parallel, mesh)

    _in_threads(run, len(found))
    return found


def _run_rank(
    net: nn.Module, inputs: tuple[Tensor, ...], parallel: ParallelFunction, mesh: DeviceMesh
) -> Found:
    answer = parallel(net, mesh)
    if answer is None:
        answer = _plain_step(net)
    if not isinstance(answer, ParallelStep):
        answer = ParallelStep(answer)
    parts = [
        _part_of(whole, placements, mesh)
        for whole, placements in itertools.zip_longest(inputs, answer.inputs[: len(inputs)])
    ]
    outputs = answer.step(*parts)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    found: Found = {}
    for index, output in enumerate(outputs):
        placements = answer.outputs[index] if index < len(answer.outputs) else None
        found[_output_name(index)] = _held(output.detach(), placements or {})
    for name, parameter in (answer.module or net).named_parameters():
        placements = answer.gradients.get(name, answer.parameters.get(name, {}))
        found[name] = _held(parameter.grad, placements)
    return found


def _plain_step(net: nn.Module) -> Callable[..., Any]:
    def step(*inputs: Tensor) -> Any:
        outputs = net(*inputs)
        loss = outputs[0] if isinstance(outputs, tuple) else outputs
        loss.backward()
        return outputs

    return step


def _part_of(whole: Tensor, placements: Placements | None, mesh: DeviceMesh) -> Tensor:
    """This rank's part of an input; axes that shard one dimension cut it in the order of the mesh."""
    part = whole
    for axis in mesh.mesh_dim_names or ():
        placement = (placements or {}).get(axis, Replicate())
        if isinstance(placement, Shard):
            part = part.chunk(mesh[axis].size(), placement.dim)[mesh.get_local_rank(axis)]
        elif not isinstance(placement, Replicate):
            raise OracleError(f"an input may be sharded or replicated, not {placement} on {axis}")
    return part.clone()


def _held(value: Tensor | None, placements: Placements) -> tuple[Tensor | None, Placements]:
    """The plain tensor of a result. A distributed one is made whole by its own placements."""
    if isinstance(value, DTensor):
        return value.full_tensor(), {}
    return value, placements


# --- the comparison ----------------------------------------------------------------------------------


def _distance(
    reference: Tensor,
    parts: Mapping[int, tuple[Tensor | None, Placements]],
    axes: Sequence[str],
    sizes: Sequence[int],
) -> float:
    """How far the assembled parts are from the reference; the worst of all copies of it."""
    present = {rank: part for rank, (part, _) in parts.items() if part is not None}
    if not parts or len(present) < len(parts):
        return float("inf")
    placements = next(iter(parts.values()))[1]
    worst = 0.0
    for whole in _assembled(present, [placements.get(axis, Replicate()) for axis in axes], sizes):
        if whole.shape != reference.shape or not whole.isfinite().all():
            return float("inf")
        scale = float(reference.abs().max()) or 1.0
        worst = max(worst, float((whole - reference).abs().max()) / scale)
    return worst


def _assembled(parts: Mapping[int, Tensor], placements: Sequence[Any], sizes: Sequence[int]) -> list[Tensor]:
    """The whole tensor, once per replica: the innermost axis is put together first."""
    if not sizes:
        return [part for _, part in sorted(parts.items())]
    groups: dict[int, dict[int, Tensor]] = {}
    for rank, part in parts.items():
        groups.setdefault(rank // sizes[-1], {})[rank % sizes[-1]] = part
    placement = placements[-1]
    if isinstance(placement, Replicate):
        copies: list[Tensor] = []
        for index in range(sizes[-1]):
            replica = {group: held[index] for group, held in groups.items() if index in held}
            if replica:
                copies += _assembled(replica, placements[:-1], sizes[:-1])
        return copies
    joined: dict[int, Tensor] = {}
    for group, held in groups.items():
        if len(held) < sizes[-1]:
            raise OracleError(f"a tensor placed {placement} is missing on some of the ranks")
        ordered = [held[index] for index in range(sizes[-1])]
        if isinstance(placement, Shard):
            joined[group] = torch.cat(ordered, placement.dim)
        elif isinstance(placement, Partial) and placement.reduce_op == "sum":
            joined[group] = torch.stack(ordered).sum(0)
        else:
            raise OracleError(f"this oracle does not know the placement {placement}")
    return _assembled(joined, placements[:-1], sizes[:-1])


# --- threads as ranks --------------------------------------------------------------------------------


def _in_threads(run: Callable[[int], None], world_size: int) -> None:
    """Calls `run` with every rank at once, each in a thread with a process group of its own."""
    failures, hung = in_threads(run, world_size, PATIENCE_S)
    if failures:
        rank, error = failures[0]
        text = "".join(traceback.format_exception(error)[-3:])
        raise OracleError(f"rank {rank} raised {type(error).__name__}: {error}\n{text}") from error
    if hung:
        raise OracleError(f"ranks {hung} did not finish")
