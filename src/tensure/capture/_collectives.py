"""What one rank does with others: which mesh axes a group spans, and one call among its ranks as steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import (  # type: ignore[attr-defined]
    ProcessGroup,
    ReduceOp,
    _resolve_process_group,
)

from tensure.errors import UnsupportedError
from tensure.program import Attrs, Ref

from ._tape import Tape

__all__ = ["Collectives", "GroupCall"]

_KINDS: Final = {"sum": ReduceOp.SUM, "avg": ReduceOp.AVG, "max": ReduceOp.MAX, "min": ReduceOp.MIN}


@dataclass(slots=True)
class Collectives:
    """What one rank of a mesh does with others.

    Args:
        mesh: sizes of the axes, outermost first.
        rank: this rank.
    """

    mesh: Mapping[str, int]
    rank: int
    _axes: dict[tuple[int, ...], tuple[str, ...]] = field(
        default_factory=dict[tuple[int, ...], "tuple[str, ...]"]
    )
    _sent: dict[tuple[int, int, int], int] = field(default_factory=dict[tuple[int, int, int], int])

    def axes_of(self, group: Any) -> tuple[str, ...]:
        """The mesh axes that a group of this rank spans.

        Raises:
            UnsupportedError: it is no product of them.
        """
        if isinstance(group, str):
            group = _resolve_process_group(group)  # type: ignore[arg-type]
        elif isinstance(group, torch.ScriptObject):
            group = ProcessGroup.unbox(group)
        ranks = tuple(dist.get_process_group_ranks(group))
        if ranks not in self._axes:
            self._axes[ranks] = self._spanned(ranks)
        return self._axes[ranks]

    def _spanned(self, ranks: tuple[int, ...]) -> tuple[str, ...]:
        places = [self.place(rank) for rank in ranks]
        names = tuple(self.mesh)
        spanned = tuple(axis for at, axis in enumerate(names) if len({place[at] for place in places}) > 1)
        count = 1
        for axis in spanned:
            count *= self.mesh[axis]
        if count != len(ranks) or list(ranks) != sorted(set(ranks)):
            raise UnsupportedError(
                f"a process group of ranks {list(ranks)[:16]}",
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

    @property
    def axes(self) -> tuple[str, ...]:
        return self.ranks.axes_of(
            self.bound["process_group"] if "process_group" in self.bound else self.bound["group_name"]
        )

    @property
    def group(self) -> list[int]:
        found = self.bound["process_group"] if "process_group" in self.bound else self.bound["group_name"]
        if isinstance(found, str):
            found = _resolve_process_group(found)  # type: ignore[arg-type]
        elif isinstance(found, torch.ScriptObject):
            found = ProcessGroup.unbox(found)
        return list(dist.get_process_group_ranks(found))

    def read(self, tensor: torch.Tensor) -> Ref:
        return self.tape.read(tensor, self.note)

    def step(self, op: str, *args: Any, **attrs: Any) -> Ref:
        return self.tape.step(op, args, self.note, **attrs)

    def view(self, value: Ref, have: tuple[int, ...], want: tuple[int, ...]) -> Ref:
        return value if have == want else self.step("view", value, size=want)

    # what members do together ------------------------------------------------------------------------

    def reduced(self, op: str, value: Ref, reduce: Any, **attrs: Any) -> Ref:
        """all_reduce or reduce_scatter; an average is a sum divided."""
        kind = _reduce_word(reduce)
        if not self.axes:
            return value
        made = self.step(op, value, axes=self.axes, reduce="sum" if kind == "avg" else kind, **attrs)
        return self.step("div", made, len(self.group)) if kind == "avg" else made

    def gathered(self, value: Ref, dim: int = 0) -> Ref:
        return self.step("all_gather", value, axes=self.axes, dim=dim) if self.axes else value

    def picked(self, value: Ref, shape: tuple[int, ...], member: int) -> Ref:
        """The value of one member, on all."""
        if not self.axes:
            return value
        together = self.gathered(self.step("unsqueeze", value, dim=0))
        return self.step("select", together, dim=0, index=member)

    def put(self, tensor: torch.Tensor, value: Ref) -> None:
        if self.tape.knows(tensor):
            self.tape.write(tensor, value, self.note)
        else:
            self.tape.add(tensor, value)


def _reduce_word(reduce: Any) -> str:
    if isinstance(reduce, torch.ScriptObject):
        kind = reduce.op()  # type: ignore[attr-defined]
        word = next((word for word, op in _KINDS.items() if kind == op), "something else")
    else:
        word = str(reduce).rpartition(".")[2].lower()
    if word not in _KINDS:
        raise UnsupportedError(f"a reduction by {word}", wanted=", ".join(_KINDS))
    return word
