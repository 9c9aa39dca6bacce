"""A checkpoint saved on one mesh and loaded on another: a Program that hands tensors on, and a Plan of reads.

Torch's own planners say what each rank writes and reads, over state dicts of ranks that do not exist. A
rank's tensor holds what its placements say; what a file is labelled with, and which part of it is read to
where, is the planners' word, and is what the Plan does. Values of other kinds than tensors are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.tensor import DTensor

from tensure.bundle import Plan
from tensure.errors import InputError, LimitError, UnsupportedError
from tensure.program import Program

from ._calls import check_call
from ._reads import RankState, Reads, Side, StateFunction
from ._sources import their_errors
from ._world import count_ranks, fake_rank

__all__ = ["RankState", "StateFunction", "capture_resharding"]

MAX_RANKS: Final = 1 << 12


def capture_resharding(
    saved: StateFunction | Metadata,
    loaded: StateFunction,
    saved_mesh: Mapping[str, int] | None,
    mesh: Mapping[str, int],
    *,
    save_planner: Callable[[], Any] = DefaultSavePlanner,
    load_planner: Callable[[], Any] = DefaultLoadPlanner,
) -> tuple[Program, Plan]:
    """What loading a checkpoint must do, and what it does.

    Args:
        saved: the state dict that a rank saves, or the metadata of a checkpoint, whose labels are then taken
            to be right.
        loaded: the state dict that a rank loads into.
        saved_mesh: that of `saved`, if it is a function.
        mesh: that of `loaded`.
        save_planner, load_planner: make what `torch.distributed.checkpoint` is told to plan with.

    Raises:
        InputError: state dicts that do not go together, or whatever functions and planners raise.
        UnsupportedError: tensors of other kinds than plain ones and DTensor.
    """
    for given in (mesh, *([] if saved_mesh is None else [saved_mesh])):
        _count(given)
    target = Side(mesh, "loaded")
    if isinstance(saved, Metadata):
        source, metadata = None, saved
    else:
        if saved_mesh is None:
            raise InputError("a function of what is saved, without its mesh", wanted="saved_mesh={...}")
        source = Side(saved_mesh, "saved")
        metadata = _save(source, saved, save_planner)
        _same_plain(source)
    _load(target, loaded, load_planner, metadata)
    return Reads(source, target, metadata).made()


# --- what torch plans -------------------------------------------------------------------------------


def _save(side: Side, function: StateFunction, make: Callable[[], Any]) -> Metadata:
    planners, local = _planned(side, function, make, None, "saves")
    with their_errors("the planner of what is saved"):
        plans, metadata = planners[0].create_global_plan(local)
        side.plans = [planner.finish_plan(plan) for planner, plan in zip(planners, plans, strict=True)]
    found: Metadata = metadata
    return found


def _load(side: Side, function: StateFunction, make: Callable[[], Any], metadata: Metadata) -> None:
    planners, local = _planned(side, function, make, metadata, "loads")
    with their_errors("the planner of what is loaded"):
        plans = planners[0].create_global_plan(local)
        side.plans = [planner.finish_plan(plan) for planner, plan in zip(planners, plans, strict=True)]


def _planned(
    side: Side, function: StateFunction, make: Callable[[], Any], metadata: Metadata | None, does: str
) -> tuple[list[Any], list[Any]]:
    """Every rank's planner and what it plans by itself; its state is noted."""
    planners: list[Any] = []
    local: list[Any] = []
    for rank in range(_count(side.mesh)):
        with fake_rank(side.mesh, rank) as mesh, their_errors(f"what rank {rank} {does}"):
            check_call(f"the function of what is {side.label}", function, {"mesh": mesh})
            state = _state(function(mesh))
            planner = make()
            with unset_fake_temporarily():  # offsets are worked out in tensors, and read
                planner.set_up_planner(dict(state.tensors), metadata, rank == 0)
                local.append(planner.create_local_plan())
            _note(side, state, planner.state_dict)
        planners.append(planner)
    return planners, local


def _same_plain(side: Side) -> None:
    """Refuse plain tensors, which are taken to be whole, that are seen to be another on some rank.

    Values are seen where there are any; where there are none, that ranks have other parts of one memory is.

    Raises:
        InputError: says which tensor, and on which ranks.
    """
    first: dict[str, tuple[int, torch.Tensor]] = {}
    for rank, (state, tensors) in enumerate(zip(side.states, side.tensors, strict=True)):
        for label, tensor in tensors.items():
            if isinstance(tensor, DTensor) or label in state.parts:
                continue
            other, known = first.setdefault(label, (rank, tensor))
            at, there = _place_in_memory(tensor), _place_in_memory(known)
            if _differ(tensor, known):
                found = "holds other numbers"
            elif tensor.shape == known.shape and at != there and None not in (at, there):
                found = "is another part of a larger tensor"
            else:
                continue
            raise InputError(
                f"{label}, a plain tensor, {found} on rank {rank} than on rank {other}",
                wanted="plain tensors that are whole and the same on all ranks, of which one is kept",
                next_step="Save what ranks have parts of as DTensor (distribute_tensor), and say with "
                "RankState(parts=...) which part it is where placements do not.",
            )


def _differ(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors that have values differ in them; those without bytes are not known to."""
    found, known = _with_bytes(one), _with_bytes(other)
    if found is None or known is None or found is known:
        return False
    with unset_fake_temporarily():
        return found.dtype != known.dtype or not _bytes(found).equal(_bytes(known))


def _with_bytes(tensor: torch.Tensor) -> torch.Tensor | None:
    found: Any = tensor.constant if isinstance(tensor, FakeTensor) else tensor
    return found if found is not None and found.device.type == "cpu" else None


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """A NaN is what it is, and not another than itself."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _place_in_memory(tensor: torch.Tensor) -> tuple[int, int] | None:
    """Where a tensor begins in a memory that would hold it several times, as a slice of a whole one does."""
    size, offset = int(tensor.untyped_storage().nbytes()), int(tensor.storage_offset())
    own = tensor.numel() * tensor.element_size()
    return (size, offset) if own and size >= 2 * own and not size % own else None


def _count(mesh: Mapping[str, int]) -> int:
    count = count_ranks(mesh)
    if count > MAX_RANKS:
        raise LimitError(f"a checkpoint of {count} ranks", wanted=f"at most {MAX_RANKS}")
    return count


def _state(found: Any) -> RankState:
    if isinstance(found, RankState):
        return found
    if not isinstance(found, Mapping):
        raise InputError(f"a state of type {type(found).__name__}", wanted="a state dict or a RankState")
    return RankState(found)


def _note(side: Side, state: RankState, flat: Mapping[str, Any]) -> None:
    tensors = {label: item for label, item in flat.items() if isinstance(item, torch.Tensor)}
    for label, item in tensors.items():
        if type(item).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__ and not isinstance(
            item, (DTensor, torch._subclasses.FakeTensor, torch.nn.Parameter)
        ):
            raise UnsupportedError(f"{label} is a {type(item).__name__}", wanted="plain tensors and DTensor")
    if unknown := [label for label in state.parts if label not in tensors]:
        raise InputError(f"a part of {unknown[0]}", wanted=f"one of {', '.join(list(tensors)[:8])}")
    side.states.append(state)
    side.tensors.append(tensors)
