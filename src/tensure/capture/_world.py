"""A world of ranks that does not exist: one process stands for one rank, and tensors have no bytes.

Knows torch's fake process group, fake tensors and device meshes. A collective among fake ranks returns
at once and gives garbage, so nothing here may depend on a value; shapes are right.
"""

from __future__ import annotations

import functools
import itertools
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import torch
import torch.distributed as dist
import torch.distributed.tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor._ops import _math_ops
from torch.nn.attention import SDPBackend, sdpa_kernel

from tensure.errors import InputError

from ._addresses import addresses
from ._ddp import bucketed_reductions
from ._pending import seen_waits
from ._pipelining import static_stages

__all__ = ["MAX_WORLD", "count_ranks", "fake_rank", "live_rank", "no_bytes"]

MAX_WORLD: Final = 1 << 16
_WORLDS: Final = itertools.count(-1, -1)  # no thread has such a number

_MESH_METHODS: Final = (
    "_concatenate",
    "_compute_coordinates_from_mesh",
    "_unflatten",
    "_flatten",
    "__getitem__",
    "get_group",
    "get_local_rank",
    "get_coordinate",
    "size",
)
"""What a mesh computes with real integer tensors, whose values it needs: never under fake tensors."""


def count_ranks(mesh: Mapping[str, int]) -> int:
    """How many ranks a mesh has.

    Raises:
        InputError: it is no mapping of axes to sizes of at least 1.
    """
    if not isinstance(mesh, Mapping) or not mesh:
        raise InputError(f"a mesh {mesh!r}", wanted="axes with their sizes, such as dp=2, tp=4")
    for axis, size in mesh.items():
        if not isinstance(axis, str) or isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise InputError(f"a mesh {dict(mesh)}", wanted="axes with their sizes, such as dp=2, tp=4")
    return math.prod(mesh.values())


@contextmanager
def fake_rank(mesh: Mapping[str, int], rank: int) -> Iterator[DeviceMesh]:
    """This process as one rank of a mesh, with tensors that have no bytes.

    Args:
        mesh: sizes of the axes, outermost first; ranks are numbered along the last axis first.
        rank: who we are.

    Raises:
        InputError: a process group is already there, or a mesh that is none.
    """
    world = 1
    for axis, size in mesh.items():
        if not axis.isidentifier() or size < 1:
            raise InputError(f"mesh axis {axis}={size}", wanted="a name and a size of at least 1")
        world *= size
    if not mesh or not 0 <= rank < world <= MAX_WORLD:
        raise InputError(f"rank {rank} of {world}", wanted=f"at least one axis and at most {MAX_WORLD} ranks")
    if dist.is_initialized():
        raise InputError(
            "a process group is already there",
            wanted="none: the parallel step is traced on a fake one",
            next_step="Call torch.distributed.destroy_process_group() first, or prove in another process.",
        )
    from torch.testing._internal.distributed.fake_pg import FakeStore

    hook = sys.excepthook  # torch wraps it to print the rank, once for each process group
    dist.init_process_group("fake", rank=rank, world_size=world, store=FakeStore())
    try:
        with _environment(rank, world), _torch_as_traced():
            built = init_device_mesh("cpu", tuple(mesh.values()), mesh_dim_names=tuple(mesh))
            with no_bytes():
                yield built
    finally:
        dist.destroy_process_group()
        sys.excepthook = hook


@contextmanager
def live_rank() -> Iterator[None]:
    """This process as the rank that it is, with tensors made here that have no bytes."""
    with _torch_as_traced(), no_bytes():
        yield


@contextmanager
def _torch_as_traced() -> Iterator[None]:
    """What of torch.distributed is otherwise here than where ranks are real."""
    with _real_meshes(), bucketed_reductions(), static_stages(), addresses(), seen_waits():
        yield


@contextmanager
def _environment(rank: int, world: int) -> Iterator[None]:
    """What torchrun tells a process on one host: code may ask this for its rank, and not the group."""
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    kept = {key: os.environ.get(key) for key in told}
    os.environ.update({key: str(value) for key, value in told.items()})
    try:
        yield
    finally:
        for key, value in kept.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


@contextmanager
def no_bytes() -> Iterator[None]:
    """Tensors made here have a shape and no bytes; attention is spelled out in products and softmax."""
    with ExitStack() as stack:
        mode = stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(_modules_convert(mode))
        stack.enter_context(_normal_init())
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(_no_logged_tracebacks())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield


@contextmanager
def _normal_init() -> Iterator[None]:
    """Let parameters be truncated normals: torch draws until all numbers fit, and here it can see none."""
    init: Any = torch.nn.init
    truncated = init._no_grad_trunc_normal_

    def normal(tensor: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        with torch.no_grad():
            return tensor.normal_()

    init._no_grad_trunc_normal_ = normal
    try:
        yield
    finally:
        init._no_grad_trunc_normal_ = truncated


@contextmanager
def _no_logged_tracebacks() -> Iterator[None]:
    """What fails is raised, and said once; torch would print the traceback of it too."""

    def refuse(_record: logging.LogRecord) -> bool:
        return False

    log = logging.getLogger("torch._subclasses.fake_tensor")
    log.addFilter(refuse)
    try:
        yield
    finally:
        log.removeFilter(refuse)


@contextmanager
def _modules_convert(mode: FakeTensorMode) -> Iterator[None]:
    """Let `module.to(dtype)` work: it swaps parameters, which the mode's weak table of fake ones forbids."""
    swap: Any = torch.utils.swap_tensors

    @functools.wraps(swap)
    def forget_and_swap(one: torch.Tensor, other: torch.Tensor) -> None:
        mode.fake_tensor_converter.tensor_memo.clear()
        swap(one, other)

    torch.utils.swap_tensors = forget_and_swap
    try:
        yield
    finally:
        torch.utils.swap_tensors = swap


@contextmanager
def _real_meshes() -> Iterator[None]:
    """Let device meshes compute with real tensors even where tensors are fake, and be unlike all before.

    Distributed tensors keep what they once decided by mesh. A mesh traced as rank 0 must not be found again
    as rank 1, or the slice of rank 0 is cut on both.
    """
    kept: dict[str, Any] = {"__init__": DeviceMesh.__init__}
    world = next(_WORLDS)

    @functools.wraps(DeviceMesh.__init__)
    def create(self: DeviceMesh, *args: Any, **kwargs: Any) -> None:
        with unset_fake_temporarily(), torch.utils._python_dispatch._disable_current_modes():
            if isinstance(kwargs.get("_rank_map"), FakeTensor):  # init_device_mesh counts the ranks
                kwargs["_rank_map"] = torch.arange(kwargs["_rank_map"].numel(), dtype=torch.int)
            kept["__init__"](self, *args, **kwargs)
        self._thread_id, self._hash = world, None  # part of what makes meshes equal

    DeviceMesh.__init__ = create  # type: ignore[method-assign]
    # On a processor torch spells an all-to-all as gather and cut; what is proved is what accelerators do.
    placements: Any = torch.distributed.tensor.placement_types
    spelled, placements.shard_dim_alltoall = placements.shard_dim_alltoall, _all_to_all
    norms: Any = _math_ops._NormPartial
    part, norms._partition_value = norms._partition_value, _norm_part
    for name in _MESH_METHODS:
        found = DeviceMesh.__dict__.get(name)
        if found is None:
            continue
        kept[name] = found
        if isinstance(found, staticmethod):
            setattr(DeviceMesh, name, staticmethod(_really(found.__func__)))
        elif isinstance(found, classmethod):
            setattr(DeviceMesh, name, classmethod(_really(found.__func__)))
        elif callable(found):
            setattr(DeviceMesh, name, _really(found))
        else:
            kept.pop(name)
    try:
        yield
    finally:
        placements.shard_dim_alltoall, norms._partition_value = spelled, part
        for name, found in kept.items():
            setattr(DeviceMesh, name, found)


def _all_to_all(
    tensor: torch.Tensor, gather_dim: int, shard_dim: int, mesh: DeviceMesh, mesh_dim: int
) -> Any:
    group = mesh.get_group(mesh_dim).group_name
    return torch.ops._dtensor.shard_dim_alltoall(tensor, gather_dim, shard_dim, group)


def _norm_part(norm: Any, tensor: torch.Tensor, mesh: DeviceMesh, mesh_dim: int) -> torch.Tensor:
    """What one of n ranks brings to a norm that all have: it over the root of n, which is no decimal."""
    count = tensor.new_full((), mesh.size(mesh_dim))
    root = count.sqrt() if norm.norm_type == 2 else count ** (1 / norm.norm_type)
    return tensor / root


def _really(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with unset_fake_temporarily(), torch.utils._python_dispatch._disable_current_modes():
            return function(*args, **kwargs)

    return call
