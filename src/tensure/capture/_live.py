"""The step of a process that is a rank, traced where it stands: its own module, its own process groups.

Nothing is sent and nothing computed, but gradients and whatever the step's own code keeps are touched: this
runs in a process that ends afterwards (`_beside`).
"""

from __future__ import annotations

import gc
import hashlib
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.device_mesh import DeviceMesh
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from tensure.errors import InputError, LimitError, UnsupportedError

from ._calls import check_call
from ._classes import MAX_TRACED
from ._collectives import Collectives
from ._generators import Generators
from ._given import GRADIENT, as_step, gradients, leaves, local_of, returned_by
from ._rank import TracedRank
from ._shadows import Shadows
from ._sources import Sources, their_errors
from ._step import ModelFunction, ParallelStep, TrainingStep
from ._tracer import Tracer
from ._world import live_rank

__all__ = ["LiveRank", "live_mesh", "one_state_a_seed", "same_contents", "without_bytes"]

WORLD = "world"
"""The axis of all ranks, where the caller names none."""
_LOW_BITS: Final = 0xFFFFFFFF
"""What a processor's generator takes of a seed."""


@dataclass
class LiveRank(TracedRank):
    """One real rank. `trace` needs a module that is parallel already, and ends what this process can do."""

    contents: dict[str, str] = field(default_factory=dict[str, str])
    """A digest of what each parameter holds here."""
    bases: dict[int, list[str]] = field(default_factory=dict[int, list[str]])
    """By seed, the states of generators that numbers were drawn from."""
    clips: str = ""
    """The line of the step that clips gradients, if one does; not told to other processes."""
    shadows: Shadows | None = None

    def observe(self, module: torch.nn.Module, step: Any, inputs: Sequence[torch.Tensor]) -> None:
        """Trace one step.

        Args:
            module: parallel already; its parameters have the names of the single device's.
            step: what a parallel function returns.
            inputs: this rank's; only their shapes matter.

        Raises:
            InputError: inputs or parameters that do not stand where they are said to, or whatever the code
                itself raises.
            UnsupportedError: an op, group or placement without a rule; a step that reads a value.
        """
        given = as_step(step, module)
        if given.microbatch is not None or given.microbatches != 1:
            raise UnsupportedError(
                "micro-batches as an axis in a live process", wanted="a step that loops over them"
            )
        module = given.module if given.module is not None else module
        self.mesh = dict(self.world)
        ranks = Collectives(self.world, self.rank, is_live=True)
        self.place = dict(zip(self.world, ranks.place(self.rank), strict=True))
        self.shadows = shadows = Shadows(self.tape)
        self._check_devices(module, inputs)
        self.contents = {
            label: _digest(local_of(tensor))
            for label, tensor in leaves(module)
            if isinstance(tensor, torch.nn.Parameter)
        }
        for tensor in (*module.parameters(), *inputs):
            tensor.grad = None
        with live_rank(), _resting_optimizers(), _no_values_read():
            for label, tensor in leaves(module):
                self._live_leaf(label, tensor, given)
            local = self._live_inputs(inputs, given)
            check_call("the step", given.step, dict(zip(self.captured.inputs, local, strict=True)))
            begun = len(self.tape.steps)
            sources = Sources(module)
            generators = Generators(is_live=True)
            tracer = Tracer(self.tape, sources, ranks, generators, shadows=shadows)
            with their_errors(f"the step of rank {self.rank}"), sources.watching(), tracer:
                returned = returned_by(given.step(*local))
            self.clips = sources.clips
            self.bases = {seed: sorted(found) for seed, found in generators.bases.items()}
            self._checked_gradients(module, local)
            self._results(returned, module, local, given)
            self._missing(module, begun)
        self.steps, self.shapes = self.tape.steps, self.tape.shapes

    def _own(self, tensor: torch.Tensor) -> torch.Tensor:
        assert self.shadows is not None
        return self.shadows.of(local_of(tensor))

    def _check_devices(self, module: torch.nn.Module, inputs: Sequence[torch.Tensor]) -> None:
        for what, tensor in [
            *module.named_parameters(),
            *((f"input {at}", x) for at, x in enumerate(inputs)),
        ]:
            if local_of(tensor).device.type != "cpu":
                raise UnsupportedError(
                    f"{what} on {tensor.device}",
                    wanted="tensors on the CPU: a device cannot be used by the process that traces",
                    next_step="Run the script on the CPU over gloo for the proof, or use "
                    "tensure.prove(parallel, model, mesh=...).",
                )

    def _live_leaf(self, label: str, tensor: torch.Tensor, given: ParallelStep) -> None:
        assert self.shadows is not None
        of, local = self.captured.of(label), local_of(tensor)
        shape = self.captured.shapes.get(of)
        if shape is None:
            if isinstance(tensor, torch.nn.Parameter) and tensor.requires_grad:
                raise self._stranger(label)
            return  # nothing on the single device depends on it
        found = self._fitting(label, local, shape, self._said(label, tensor, shape, given))
        self.claims[label] = (of, found)
        self.standing[label] = found
        self.held[label] = self.tape.read(self.shadows.leaf(local, self.begun(label, of, local)), ()).name

    def _live_inputs(self, inputs: Sequence[torch.Tensor], given: ParallelStep) -> list[torch.Tensor]:
        assert self.shadows is not None
        wholes = [
            torch.empty(self.captured.shapes[label], dtype=tensor.dtype, requires_grad=tensor.requires_grad)
            for label, tensor in zip(self.captured.inputs, inputs, strict=True)
        ]
        made = self._inputs(wholes, given)
        for at, (tensor, fake) in enumerate(zip(inputs, made, strict=True)):
            if tensor.shape != fake.shape:
                raise InputError(
                    f"input {at} of shape {list(tensor.shape)} on rank {self.rank}",
                    wanted=f"{list(fake.shape)}: the single device's is {list(wholes[at].shape)}",
                    next_step="Say where inputs are cut: ParallelStep(step, inputs=[{axis: Shard(0)}, ...]).",
                )
            self.shadows.stand_in(tensor, fake)
        return made

    def _checked_gradients(self, module: torch.nn.Module, inputs: Sequence[torch.Tensor]) -> None:
        graded = any(label.startswith(GRADIENT) for label in self.captured.shapes)
        trained = any(tensor.requires_grad for tensor in (*module.parameters(), *inputs))
        if graded and trained and not gradients(module, dict(zip(self.captured.inputs, inputs, strict=True))):
            raise InputError(
                f"the step of rank {self.rank} leaves no gradients",
                wanted="a step that runs backward, and does not clear gradients at its end",
            )


def live_mesh(mesh: DeviceMesh | Mapping[str, int] | None) -> dict[str, int]:
    """Sizes by axis of the mesh that this world of processes is; all ranks are one axis if none is given.

    Raises:
        InputError: no process group, or a mesh of other ranks than this world's.
        LimitError: more ranks than are traced one by one.
    """
    if not dist.is_available() or not dist.is_initialized():
        raise InputError(
            "no process group", wanted="torch.distributed.init_process_group() before the proof of a step"
        )
    world = dist.get_world_size()
    if world > MAX_TRACED:
        raise LimitError(
            f"a world of {world} ranks",
            wanted=f"at most {MAX_TRACED} in a live script",
            next_step="Use tensure.prove(parallel, model, mesh=...), which takes up to 65,536.",
        )
    if mesh is None:
        return {WORLD: world}
    if isinstance(mesh, DeviceMesh):
        names = mesh.mesh_dim_names
        if names is None:
            raise InputError("a device mesh without names", wanted="mesh_dim_names")
        if mesh.mesh.flatten().tolist() != list(range(world)):
            raise InputError(
                f"a device mesh of {mesh.mesh.numel()} ranks, not all {world} in order",
                wanted="the mesh of the whole world, as init_device_mesh makes it",
            )
        return dict(zip(names, map(int, mesh.mesh.shape), strict=True))
    if not isinstance(mesh, Mapping) or not all(isinstance(size, int) for size in mesh.values()):
        raise InputError(f"a mesh {mesh!r}", wanted="a DeviceMesh, or sizes by axis, as in {'dp': 2}")
    sizes = dict(mesh)
    if math.prod(sizes.values()) != world or any(size < 1 for size in sizes.values()):
        raise InputError(
            f"a mesh of {' x '.join(f'{axis} {size}' for axis, size in sizes.items())} in a world of {world}",
            wanted=f"sizes whose product is {world}",
        )
    return sizes


def same_contents(ranks: Sequence[LiveRank]) -> None:
    """Ranks that hold the same part of a parameter hold the same numbers, as every proof assumes.

    Raises:
        InputError: they do not.
    """
    first: dict[Any, tuple[LiveRank, str]] = {}
    for rank in ranks:
        for label, digest in rank.contents.items():
            if label not in rank.claims:
                continue
            of, part = rank.claims[label]
            other, known = first.setdefault((of, part.dims, part.sum), (rank, label))
            if other.contents[known] != digest and not part.sum:
                raise InputError(
                    f"parameter {label} holds other numbers on rank {rank.rank} than on rank {other.rank}, "
                    "where the same part of it stands",
                    wanted="the same numbers",
                    next_step="Broadcast parameters, or seed every rank alike, before the first step.",
                )


def one_state_a_seed(ranks: Sequence[LiveRank]) -> None:
    """Generators of one seed are equally far along, wherever the step draws from them.

    Else some numbers of one rank may be those of another, further on, and nobody knows which. Seeds that
    agree in the bits that a processor's generator takes are one seed there, and two elsewhere.

    Raises:
        UnsupportedError: they are not, or seeds are one on some devices only.
    """
    first: dict[int, tuple[int, str]] = {}
    cut: dict[int, tuple[int, int]] = {}
    for rank in ranks:
        for seed, bases in rank.bases.items():
            before, other_seed = cut.setdefault(seed & _LOW_BITS, (rank.rank, seed))
            if other_seed != seed:
                raise UnsupportedError(
                    f"random numbers of rank {rank.rank} from a generator of seed {seed}, and of rank "
                    f"{before} from one of seed {other_seed}: they agree in their low 32 bits, and a "
                    "processor's generator takes no more of a seed",
                    wanted="seeds that differ in their low 32 bits, or not at all",
                )
            for base in bases:
                other, known = first.setdefault(seed, (rank.rank, base))
                if base != known:
                    raise UnsupportedError(
                        f"random numbers of rank {rank.rank} from a generator of seed {seed} that is not as "
                        f"far along as one of rank {other}: what they have in common is not known",
                        wanted="generators of one seed with the same draws since, or of other seeds",
                        next_step="Seed every rank before the step: alike where ranks hold the same tensors, "
                        "by the rank where they hold parts.",
                    )


def without_bytes(model: ModelFunction) -> ModelFunction:
    """The same, with example inputs that were made beforehand replaced by their shapes."""

    def stripped() -> Any:
        found: Any = model()
        if isinstance(found, TrainingStep):
            return replace(found, inputs=_all_stripped(found.inputs))
        if not isinstance(found, tuple) or len(found) != 2:
            return found
        net, inputs = found
        return net, _all_stripped(inputs)

    return stripped


def _all_stripped(inputs: Any) -> Any:
    inputs = (inputs,) if isinstance(inputs, torch.Tensor) else inputs
    return tuple(map(_stripped, inputs)) if isinstance(inputs, (tuple, list)) else inputs


def _stripped(item: Any) -> Any:
    if not isinstance(item, torch.Tensor) or isinstance(item, FakeTensor):
        return item
    return torch.empty(item.shape, dtype=item.dtype, requires_grad=item.requires_grad)


def _digest(tensor: torch.Tensor) -> str:
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(flat.numpy().data).hexdigest()


@contextmanager
def _resting_optimizers() -> Iterator[None]:
    """Optimizers and schedules do nothing: what is proved of a step are its gradients.

    One that has stepped does not clear gradients any more, since that ends its step; before, it does, and so
    do others that have not.
    A scheduler puts a wrapper of its own into the optimizer, so classes are not the place to stop this.
    """
    stepped = set[int]()

    def rest(number: int) -> Callable[..., None]:
        return lambda *_, **__: stepped.add(number)

    def zeroing(number: int, zero: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: None if number in stepped else zero(*args, **kwargs)

    kept: list[tuple[Any, dict[str, Any]]] = []
    for found in gc.get_objects():
        if issubclass(type(found), (Optimizer, LRScheduler)):
            kept.append((found, dict(vars(found))))
            vars(found)["step"] = rest(id(found))
            if isinstance(found, Optimizer):
                vars(found)["zero_grad"] = zeroing(id(found), found.zero_grad)
    try:
        yield
    finally:
        for found, before in kept:
            vars(found).clear()
            vars(found).update(before)


@contextmanager
def _no_values_read() -> Iterator[None]:
    """Refuse to show the values of a tensor that has bytes; one without has none to show."""
    kept = {name: getattr(torch.Tensor, name) for name in ("tolist", "numpy", "__array__")}

    def refusing(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if self.is_floating_point():
                code = sys._getframe(1)
                raise UnsupportedError(
                    f"the step reads a value ({name})",
                    place=f"{os.path.basename(code.f_code.co_filename)}:{code.f_lineno}",
                    wanted="a step whose course and shapes do not depend on values",
                )
            return method(self, *args, **kwargs)

        return call

    for name, method in kept.items():
        setattr(torch.Tensor, name, refusing(name, method))
    try:
        yield
    finally:
        for name, method in kept.items():
            setattr(torch.Tensor, name, method)
