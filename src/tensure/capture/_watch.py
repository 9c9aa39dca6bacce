"""Every way in which code can learn where its rank stands, made to tell a watched number.

Whoever asks torch.distributed, a device mesh or a process group gets a `Coordinate`. Torch's own code gets
plain numbers, for its C++ wants them, and the axes concerned are noted: what torch places is then sampled.
The functions are changed inside (their code objects), so that names imported long ago see it too. A rank in
the environment is text, and reading it pins every coordinate. Where torch is handed a Coordinate, a plain
number reaches it, again noted.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Final, Self

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.distributed import distributed_c10d as c10d
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import _collective_utils, placement_types
from torch.utils._python_dispatch import _disable_current_modes

from tensure.errors import UnsupportedError

from ._asker import asker, tells_user
from ._changes import changed, replaced
from ._collectives import Collectives
from ._coordinate import Reads
from ._form import Form
from ._softening import Soften, softened_method

__all__ = ["watched"]

_PLACES: Final = ("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK")
ProcessGroup: Any = c10d.ProcessGroup
Backend: Any = torch._C._distributed_c10d.Backend


@contextmanager
def watched(reads: Reads, ranks: Collectives) -> Iterator[None]:
    """Watch what is asked of the place of the rank that this process stands for.

    Args:
        reads: takes the notes.
        ranks: says which axes a group spans.
    """
    watch = _Watch(reads, ranks)
    with ExitStack() as stack:
        for function in (
            dist.get_rank,
            dist.get_group_rank,
            dist.get_global_rank,
            dist.get_process_group_ranks,
            dist.get_node_local_rank,
            dist.new_group,
            dist.new_subgroups,
            dist.new_subgroups_by_enumeration,
            dist.split_group,
        ):
            stack.enter_context(changed(function, getattr(watch, function.__name__)))
        for owner, name, other in (
            (ProcessGroup, "rank", watch.group_rank),
            (Backend, "rank", watch.backend_rank),
            (ProcessGroup, "send", softened_method(ProcessGroup.send)),
            (ProcessGroup, "recv", softened_method(ProcessGroup.recv)),
            (DeviceMesh, "__init__", watch.mesh_made),
            (DeviceMesh, "get_rank", watch.mesh_rank),
            (DeviceMesh, "get_local_rank", watch.mesh_local_rank),
            (DeviceMesh, "get_coordinate", watch.mesh_coordinate),
            (DeviceMesh, "_sym_get_coordinate", watch.mesh_coordinate_at),
            (DeviceMesh, "mesh", property(watch.mesh_ranks)),
            (DeviceMesh, "_rank", _attribute("_rank", DeviceMesh.get_rank)),
            (DeviceMesh, "_coordinate_on_dim", _attribute("_coordinate_on_dim", DeviceMesh.get_coordinate)),
            (_collective_utils, "mesh_scatter", watch.mesh_scatter),
            (placement_types, "mesh_scatter", watch.mesh_scatter),
        ):
            stack.enter_context(replaced(owner, name, other))
        stack.enter_context(_environment(watch))
        stack.enter_context(Soften(reads))
        yield


class _Watch:
    """Answers what code asks of its place."""

    def __init__(self, reads: Reads, ranks: Collectives) -> None:
        self.reads, self.ranks = reads, ranks
        sizes = list(ranks.mesh.items())
        self.strides = {
            axis: math.prod(size for _, size in sizes[at + 1 :]) for at, (axis, _) in enumerate(sizes)
        }
        """How far apart neighbours along an axis are numbered, outermost axis first."""

    # forms -------------------------------------------------------------------------------------------

    def own(self, axes: tuple[str, ...]) -> Form:
        """This rank's number among those along some axes."""
        terms: dict[str, int] = {}
        stride = 1
        for axis in reversed(axes):
            if self.ranks.mesh[axis] > 1:
                terms[axis] = stride
            stride *= self.ranks.mesh[axis]
        return Form(0, tuple(sorted(terms.items())))

    def axes(self, group: Any) -> tuple[str, ...]:
        if group is None or group is c10d.GroupMember.WORLD:
            return tuple(axis for axis, size in self.ranks.mesh.items() if size > 1)
        return self.ranks.axes_of(group)

    def told(self, form: Form) -> Any:
        """The answer, as whoever asks can take it."""
        kind, frame = asker()
        if kind == "user":
            return self.reads.number(form)
        if kind == "torch" and tells_user(frame):
            return self.reads.pin(form)
        if kind == "torch":
            self.reads.note(*form.axes())
        return form.value(self.reads.place)

    def told_in(self, group: Any, found: int) -> Any:
        """Likewise, this rank's number in a group; `found` is what it is."""
        if found < 0:
            return found
        try:
            return self.told(self.own(self.axes(group)))
        except UnsupportedError:  # no product of axes: every rank is by itself
            self.pin_all()
            return found

    def pin_all(self) -> None:
        for axis in self.ranks.mesh:
            self.reads.pin(Form(0, ((axis, 1),)))

    # torch.distributed ---------------------------------------------------------------------------------

    def get_rank(self, original: Any, group: Any = None) -> Any:
        return self.told_in(group, original(group))

    def get_group_rank(self, original: Any, group: Any, global_rank: Any) -> Any:
        kind, _ = asker()
        if kind == "ours" or group is c10d.GroupMember.WORLD:
            return global_rank
        axes = self.axes(group)
        total: Any = 0
        for axis, stride in self.strides.items():
            there = (global_rank // stride) % self.ranks.mesh[axis]
            if axis in axes:
                total = total * self.ranks.mesh[axis] + there
            elif self.ranks.mesh[axis] > 1 and self.reads.axis(axis) != there:
                raise ValueError(f"Global rank {int(global_rank)} is not part of group {group}")
        return total

    def get_global_rank(self, original: Any, group: Any, group_rank: Any) -> Any:
        kind, _ = asker()
        if kind == "ours" or group is c10d.GroupMember.WORLD:
            return group_rank
        axes = self.axes(group)
        if not 0 <= group_rank < self.ranks.size_of(axes):
            raise ValueError(f"Group rank {int(group_rank)} is not part of group {group}")
        total: Any = 0
        for axis, stride in reversed(self.strides.items()):
            if axis in axes:
                size = self.ranks.mesh[axis]
                there = group_rank if axis == axes[0] else group_rank % size
                total, group_rank = there * stride + total, group_rank // size
            elif self.ranks.mesh[axis] > 1:
                total = self.reads.axis(axis) * stride + total
        return total

    def get_process_group_ranks(self, original: Any, group: Any = None) -> Any:
        kind, _ = asker()
        found = original(group)
        axes = () if kind == "ours" else self.axes(group)
        others = [axis for axis in self.strides if axis not in axes and self.ranks.mesh[axis] > 1]
        if kind == "user" and others:
            own = sum(self.reads.axis(axis) * self.strides[axis] for axis in others)
            here = sum(self.reads.place[axis] * self.strides[axis] for axis in others)
            return [own + (rank - here) for rank in found]
        if kind == "torch":
            self.reads.note(*others)
        return found

    def get_node_local_rank(self, original: Any, fallback_rank: Any = None) -> Any:
        self.pin_all()
        return original(fallback_rank)

    def new_group(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        """Who is told that it is no member knows something of its place."""
        kind, _ = asker()
        ranks = args[0] if args else kwargs.get("ranks")
        if kind == "user" and ranks is not None and len(ranks) < math.prod(self.ranks.mesh.values()):
            own = self.reads.number(self.own(tuple(self.ranks.mesh)))
            any(own == int(rank) for rank in ranks)
        elif kind == "torch":
            self.reads.note(*self.ranks.mesh)
        return original(*args, **kwargs)

    def new_subgroups(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        if asker()[0] != "ours":
            self.pin_all()
        return original(*args, **kwargs)

    new_subgroups_by_enumeration = split_group = new_subgroups

    def mesh_scatter(
        self, output: torch.Tensor, scatter_list: list[torch.Tensor], mesh: DeviceMesh, mesh_dim: int = 0,
        async_op: bool = False, *, group_src: int = 0,
    ) -> None:  # fmt: skip
        """What one rank scatters, in a form that is the same on every rank.

        Everybody hands a list to everybody, and each keeps what came from the source: torch makes the list
        on all ranks, and sends the source's.
        """
        sent = torch.stack([part.contiguous() for part in scatter_list])
        got = torch.empty_like(sent)
        self.ranks.meeting, self.ranks.call = "dealt", f"scatter from member {group_src} of the group"
        dist.all_to_all_single(got, sent, group=mesh.get_group(mesh_dim))
        self.ranks.meeting, self.ranks.call = "met", ""
        output.copy_(got[group_src])

    # groups and meshes -------------------------------------------------------------------------------

    @property
    def group_rank(self) -> Any:
        original = ProcessGroup.rank

        def rank(group: Any) -> Any:
            return self.told_in(group, original(group))

        return rank

    @property
    def backend_rank(self) -> Any:
        original = Backend.rank

        def rank(backend: Any) -> Any:
            if asker()[0] == "user":
                self.pin_all()  # nothing says which group it serves
            return original(backend)

        return rank

    @property
    def mesh_made(self) -> Any:
        original: Any = DeviceMesh.__init__
        world = math.prod(self.ranks.mesh.values())

        def init(mesh: DeviceMesh, *args: Any, **kwargs: Any) -> None:
            original(mesh, *args, **kwargs)
            with unset_fake_temporarily(), _disable_current_modes():
                held = mesh._rank_map.tolist()
            if held != list(range(world)):
                self.pin_all()  # some are not in it, or stand elsewhere than their number says

        return init

    @property
    def mesh_rank(self) -> Any:
        return lambda mesh: self.told(self.own(tuple(self.ranks.mesh)))

    def _of_dim(self, mesh: DeviceMesh, dim: int) -> Form:
        return self.own(self.axes(mesh.get_group(dim)))

    @property
    def mesh_local_rank(self) -> Any:
        original = DeviceMesh.get_local_rank

        def get_local_rank(mesh: DeviceMesh, mesh_dim: Any = None) -> Any:
            if mesh_dim is None and mesh.ndim > 1:
                return original(mesh, mesh_dim)  # raises
            if isinstance(mesh_dim, str):
                return self.told(self.own(self.axes(mesh.get_group(mesh_dim))))
            return self.told(self._of_dim(mesh, 0 if mesh_dim is None else int(mesh_dim)))

        return get_local_rank

    @property
    def mesh_coordinate(self) -> Any:
        original = DeviceMesh.get_coordinate

        def get_coordinate(mesh: DeviceMesh) -> Any:
            found = original(mesh)
            if found is None:
                self.pin_all()
                return None
            if asker()[0] == "torch":
                return _Spot(self, mesh, found)
            return type(found)(self.told(self._of_dim(mesh, dim)) for dim in range(mesh.ndim))

        return get_coordinate

    @property
    def mesh_coordinate_at(self) -> Any:
        def get(mesh: DeviceMesh, index: int) -> Any:
            return self.told(self._of_dim(mesh, index))

        return get

    @property
    def mesh_ranks(self) -> Any:
        original: Any = DeviceMesh.__dict__["mesh"].fget

        def ranks(mesh: DeviceMesh) -> Any:
            found = original(mesh)
            kind, _ = asker()
            world = math.prod(self.ranks.mesh.values())
            if kind in ("user", "torch") and found.numel() < world:
                within = {axis for dim in range(mesh.ndim) for axis in self.axes(mesh.get_group(dim))}
                others = [axis for axis in self.ranks.mesh if axis not in within]
                if kind == "torch":
                    self.reads.note(*others)
                else:
                    for axis in others:
                        self.reads.pin(Form(0, ((axis, 1),)))
            return found

        return ranks


class _Spot(tuple[int, ...]):
    """Coordinates for torch's own code: those that it takes are noted."""

    _watch: _Watch
    _mesh: DeviceMesh

    def __new__(cls, watch: _Watch, mesh: DeviceMesh, found: tuple[int, ...]) -> Self:
        made = super().__new__(cls, found)
        made._watch, made._mesh = watch, mesh
        return made

    def __getitem__(self, at: Any) -> Any:
        for dim in range(len(self))[at] if isinstance(at, slice) else (range(len(self))[at],):
            self._watch.told(self._watch._of_dim(self._mesh, dim))
        return super().__getitem__(at)

    def __iter__(self) -> Iterator[int]:
        return (self[dim] for dim in range(len(self)))


def _attribute(name: str, method: Any) -> property:
    """What a mesh keeps of its place, for others than itself as its method tells it."""

    def get(mesh: DeviceMesh) -> Any:
        held = vars(mesh)
        if name not in held:
            raise AttributeError(name)
        return held[name] if asker()[0] == "ours" else getattr(mesh, method.__name__)()

    def put(mesh: DeviceMesh, value: Any) -> None:
        vars(mesh)[name] = value

    return property(get, put)


# --- the environment ----------------------------------------------------------------------------------


class _Told(dict[bytes, bytes]):
    """The environment's table; a rank that is read in it is noted."""

    watch: _Watch

    def __getitem__(self, key: bytes) -> bytes:
        if key.decode(errors="replace") in _PLACES and not _only_asks_if_there():
            kind, _ = asker()
            if kind == "user":
                self.watch.pin_all()
            elif kind == "torch":
                self.watch.reads.note(*self.watch.ranks.mesh)
        return super().__getitem__(key)


def _only_asks_if_there() -> bool:
    """Whether this is `"RANK" in os.environ`, which says the same on every rank."""
    frame = sys._getframe(2).f_back
    return frame is not None and frame.f_code is Mapping.__contains__.__code__


@contextmanager
def _environment(watch: _Watch) -> Iterator[None]:
    environ: Any = os.environ
    environb: Any = os.environb
    before = environ._data
    told = _Told(before)
    told.watch = watch
    environ._data = environb._data = told
    try:
        yield
    finally:
        before.clear()
        before.update(told)
        environ._data = environb._data = before
