"""What one rank does with others: which mesh axes a group spans, and one call among its ranks as steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import (  # type: ignore[attr-defined]
    ProcessGroup,
    ReduceOp,
    _resolve_process_group,
    _world,
)

from tensure.errors import UnsupportedError
from tensure.host import dtype_word
from tensure.program import COLLECTIVES, Attrs, Ref

from ._coordinate import Reads
from ._meets import called
from ._premultiplied import factor_of_call
from ._tape import Tape

__all__ = ["Collectives", "GroupCall"]

_KINDS: Final = {
    "sum": ReduceOp.SUM, "avg": ReduceOp.AVG, "max": ReduceOp.MAX, "min": ReduceOp.MIN,
    "premul_sum": ReduceOp.PREMUL_SUM,
}  # fmt: skip


@dataclass(slots=True)
class Collectives:
    """What one rank of a mesh does with others.

    Args:
        mesh: sizes of the axes, outermost first.
        rank: this rank.
        reads: what is noted where the text below depends on this rank's place; None where nobody asks.
        is_live: groups are of real processes, so no call may run.
    """

    mesh: Mapping[str, int]
    rank: int
    reads: Reads | None = None
    is_live: bool = False
    meeting: str = "met"
    """As for a tape."""
    call: str = ""
    """What call is being made, where one stands for another."""
    _axes: dict[str, tuple[str, ...]] = field(default_factory=dict[str, "tuple[str, ...]"])
    _which: dict[str, int] = field(default_factory=dict[str, int])
    _sent: dict[tuple[int, int, int], int] = field(default_factory=dict[tuple[int, int, int], int])

    def axes_of(self, group: Any) -> tuple[str, ...]:
        """The mesh axes that a group of this rank spans.

        Raises:
            UnsupportedError: it is no product of them.
        """
        found = group_of(group)
        name = found.group_name
        if name not in self._axes:
            self._axes[name] = self._spanned(dist.get_process_group_ranks(found))
        return self._axes[name]

    def which(self, group: Any) -> int:
        """The how-many-th a group is of those of the same ranks: each is a communicator of its own.

        Ranks make their groups in one order, or torch hangs; so members agree on it.
        """
        found = group_of(group)
        if found.group_name not in self._which:
            ranks = dist.get_process_group_ranks(found)
            alike = [
                other.group_name for other, members in _world.pg_group_ranks.items() if list(members) == ranks
            ]
            name = found.group_name
            self._which[name] = alike.index(name) if name in alike else 0
        return self._which[found.group_name]

    def size_of(self, axes: Sequence[str]) -> int:
        """How many ranks differ along these axes only."""
        return math.prod(self.mesh[axis] for axis in axes)

    def _spanned(self, ranks: Sequence[int]) -> tuple[str, ...]:
        numbers = np.array(ranks)
        names = tuple(self.mesh)
        places = np.unravel_index(numbers, tuple(self.mesh.values()))
        spanned = tuple(
            axis for axis, at in zip(names, places, strict=True) if at.size and at.min() < at.max()
        )
        if self.size_of(spanned) != len(ranks) or (numbers[1:] <= numbers[:-1]).any():
            raise UnsupportedError(
                f"a process group of ranks {ranks[:16]}",
                wanted=f"all ranks along some of the mesh axes {', '.join(names)}, in order",
            )
        return spanned

    def place(self, rank: int) -> tuple[int, ...]:
        """A rank's coordinates."""
        found: list[int] = []
        for size in reversed(tuple(self.mesh.values())):
            found.append(rank % size)
            rank //= size
        return tuple(reversed(found))

    def letter(self, sender: int, receiver: int, tag: int) -> tuple[str, int, int, int, int]:
        """The key of the next message on a way: the messages on one way keep their order."""
        way = (sender, receiver, tag)
        self._sent[way] = self._sent.get(way, -1) + 1
        return ("p2p", sender, receiver, tag, self._sent[way])


@dataclass(slots=True)
class GroupCall:
    """One call on its way onto the tape."""

    ranks: Collectives
    tape: Tape
    note: Attrs
    bound: Mapping[str, Any]
    result: Any
    brought: tuple[str, tuple[int, ...]] = ("", ())
    """The type of the tensor that was read last."""

    @property
    def _group(self) -> Any:
        return self.bound["process_group"] if "process_group" in self.bound else self.bound["group_name"]

    @property
    def axes(self) -> tuple[str, ...]:
        return self.ranks.axes_of(self._group)

    @property
    def group(self) -> list[int]:
        return list(dist.get_process_group_ranks(group_of(self._group)))

    @property
    def size(self) -> int:
        return self.ranks.size_of(self.axes)

    def read(self, tensor: torch.Tensor) -> Ref:
        self.brought = dtype_word(tensor.dtype), tuple(tensor.shape)
        return self.tape.read(tensor, self.note)

    def step(self, op: str, *args: Any, call: str = "", **attrs: Any) -> Ref:
        """A step; of what members do together, `call` says what the op does not."""
        if op not in COLLECTIVES:
            return self.tape.step(op, args, self.note, **attrs)
        which = self.ranks.which(self._group)
        self.tape.meeting = f"{self.ranks.meeting}_group{which}" if which else self.ranks.meeting
        note = called(self.note, call or self.ranks.call, *self.brought)
        return self.tape.step(op, args, note, **attrs)

    def letter(self, sender: int, receiver: int, tag: int) -> tuple[str, int, int, int, int]:
        """The key of the next message; groups of the same ranks have tags of their own."""
        return self.ranks.letter(sender, receiver, tag + (self.ranks.which(self._group) << 32))

    def message(self, op: str, tensor: torch.Tensor, other: int, key: tuple[Any, ...]) -> Ref:
        """A tensor's value sent to another rank, or what comes from it into a tensor."""
        note = called(self.note, "", dtype_word(tensor.dtype), tuple(tensor.shape))
        args = (self.read(tensor),) if op == "send" else ()
        return self.tape.message(op, args, other, self.axes, key, note)

    def view(self, value: Ref, have: tuple[int, ...], want: tuple[int, ...]) -> Ref:
        return value if have == want else self.step("view", value, size=want)

    # what members do together ------------------------------------------------------------------------

    def reduced(self, op: str, value: Ref, reduce: Any, **attrs: Any) -> Ref:
        """all_reduce or reduce_scatter; an average is a sum divided, and each addend may have a factor."""
        kind = _reduce_word(reduce)
        if kind == "premul_sum":
            value = self.step("mul", value, factor_of_call())
        if not self.axes:
            return value
        word = "sum" if kind in ("avg", "premul_sum") else kind
        made = self.step(op, value, axes=self.axes, reduce=word, **attrs)
        return self.step("div", made, self.size) if kind == "avg" else made

    def gathered(self, value: Ref, dim: int = 0, call: str = "") -> Ref:
        return self.step("all_gather", value, call=call, axes=self.axes, dim=dim) if self.axes else value

    def picked(self, value: Ref, shape: tuple[int, ...], member: int) -> Ref:
        """The value of one member, on all."""
        if not self.axes:
            return value
        call = f"broadcast from member {member} of the group"
        together = self.gathered(self.step("unsqueeze", value, dim=0), call=call)
        return self.step("select", together, dim=0, index=member)

    def put(self, tensor: torch.Tensor, value: Ref) -> None:
        if self.tape.knows(tensor):
            self.tape.write(tensor, value, self.note)
        else:
            self.tape.add(tensor, value)


def group_of(found: Any) -> ProcessGroup:
    """A process group, however it is spoken of."""
    if isinstance(found, str):
        return _resolve_process_group(found)  # type: ignore[arg-type]
    return ProcessGroup.unbox(found) if isinstance(found, torch.ScriptObject) else found


def _reduce_word(reduce: Any) -> str:
    if isinstance(reduce, torch.ScriptObject):
        kind = reduce.op()  # type: ignore[attr-defined]
        word = next((word for word, op in _KINDS.items() if kind == op), "something else")
    else:
        word = str(reduce).rpartition(".")[2].lower()
    if word not in _KINDS:
        raise UnsupportedError(f"a reduction by {word}", wanted=", ".join(_KINDS))
    return word
