"""All ranks of a step at once by torch's LocalTensorMode: one program, a tensor a rank behind each tensor.

Code that asks for its rank in a way that the mode does not see would be told that of rank 0; it is refused,
and so is a comparison of ranks, which the mode answers with one word for all.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import _local_tensor as local
from torch.distributed.device_mesh import init_device_mesh

from tensure.errors import UnsupportedError

from ._changes import changed, replaced
from ._collectives import Collectives
from ._given import local_of
from ._ours import is_ours
from ._ranks_run import Found, cut_input, run_step
from ._step import ParallelFunction, Placements

__all__ = ["run_local"]

_TORCH: Final = os.path.dirname(torch.__file__) + os.sep
_PLUMBING: Final = (
    _TORCH + "__init__.py",
    os.path.join(_TORCH, "fx", "experimental") + os.sep,
    os.path.join(_TORCH, "distributed", "_local_tensor") + os.sep,
)


def run_local(
    net: nn.Module, inputs: Sequence[Tensor], parallel: ParallelFunction, sizes: Mapping[str, int], _: float
) -> list[Found]:
    """What every rank holds at the end, in the order of ranks and their micro-batches.

    Raises:
        UnsupportedError: the code asks for its rank where the mode cannot tell.
    """
    from torch.testing._internal.distributed.fake_pg import FakeStore

    world = Collectives(sizes, 0)
    count = world.size_of(tuple(sizes))
    dist.init_process_group("fake", rank=0, world_size=count, store=FakeStore())
    try:
        with local.LocalTensorMode(count) as mode, _ranks_are_asked_of_meshes():
            mesh = init_device_mesh("cpu", tuple(sizes.values()), mesh_dim_names=tuple(sizes))
            _spread(net, mode)

            def cut(
                whole: Tensor, placements: Placements, more: Mapping[str, int], at: Mapping[str, int]
            ) -> Tensor:
                def part(rank: int) -> Tensor:
                    place = dict(zip(sizes, world.place(rank), strict=True))
                    return cut_input(whole, placements, {**sizes, **more}, {**place, **at}).detach()

                return mode.rank_map(part).requires_grad_(whole.requires_grad)

            rounds = run_step(net, parallel(net, mesh), inputs, cut)
            return [
                {label: _of_rank(value, rank) for label, value in found.items()}
                for rank in range(count)
                for found in rounds
            ]
    finally:
        dist.destroy_process_group()


def _spread(net: nn.Module, mode: Any) -> None:
    """Give every rank its own copy of each parameter and buffer; a shared one stays shared."""
    made: dict[int, Any] = {}

    def spread(tensor: Tensor) -> Any:
        if id(tensor) not in made:
            copies = mode.rank_map(lambda _: tensor.detach().clone())
            is_weight = isinstance(tensor, nn.Parameter)
            made[id(tensor)] = nn.Parameter(copies, tensor.requires_grad) if is_weight else copies
        return made[id(tensor)]

    for module in net.modules():
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is not None:
                    table[name] = spread(tensor)


def _of_rank(value: Tensor, rank: int) -> Tensor:
    held = local_of(value)
    return (held._local_tensors[rank] if isinstance(held, local.LocalTensor) else held).detach()


@contextmanager
def _ranks_are_asked_of_meshes() -> Iterator[None]:
    """Refuse what this mode would answer for rank 0 alone, or with one word for ranks that differ."""

    def rank_of(original: Any, *args: Any, **kwargs: Any) -> Any:
        if _asked_by_torch():
            return original(*args, **kwargs)
        raise UnsupportedError("the code asks for its rank, and not its mesh")

    group: Any = dist.ProcessGroup
    of_group = group.rank
    node: Any = local.LocalIntNode

    def compared(name: str) -> Any:
        compare = getattr(node, name)

        def differing(self: Any, other: Any) -> Any:
            answers = {
                getattr(self._local_ints[rank], f"__{name}__")(local._int_on_rank(other, rank))
                for rank in self._local_ints
            }
            if len(answers) > 1 and not _asked_by_torch():
                raise UnsupportedError("the code does one thing on some ranks and another on others")
            return compare(self, other)

        return differing

    with ExitStack() as stack:
        stack.enter_context(changed(dist.get_rank, rank_of))
        stack.enter_context(replaced(group, "rank", lambda self: rank_of(of_group, self)))
        for name in ("eq", "ne"):
            stack.enter_context(replaced(node, name, compared(name)))
        yield


def _asked_by_torch() -> bool:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and (
        frame.f_code.co_filename.startswith(("<", *_PLUMBING))
        or is_ours(frame.f_code.co_filename)
        or frame.f_code.co_name == "get_rank"
    ):
        frame = frame.f_back
    return frame is not None and frame.f_code.co_filename.startswith(_TORCH)
