"""The reads that load a checkpoint as a Plan, and what they are to come to as a Program.

What was written under a label is a part of a tensor of the rank that wrote it; a read is a message of a box
of it. A rank's tensor is put together of the boxes as they were read, the later over the earlier, and holds
nothing where nobody read.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import torch
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType, WriteItemType
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from tensure.bundle import Local, Place, Plan, Track
from tensure.errors import InputError, UnsupportedError
from tensure.host import dtype_word
from tensure.program import Cat, Entry, Name, Op, Program, Ref, Value, digest

from ._given import axes_of, local_of
from ._placements import Part, part_of, whole_part
from ._places import place_of
from ._tracks import track_name

__all__ = ["RankState", "Reads", "Side", "StateFunction"]

LOADED: Final = "loaded."
"""Begins the names of tensors once they are loaded."""


@dataclass(frozen=True)
class RankState:
    """What one rank saves or loads.

    Args:
        tensors: the state dict, nested or not; what is no tensor is left out.
        parts: where a tensor's own part does not stand as its placements say: by name, and by dim, the
            indices (start, stop) of the whole tensor that it holds, in order.
        shapes: of whole tensors of which no rank has one that says so.
    """

    tensors: Mapping[str, Any]
    parts: Mapping[str, Mapping[int, Sequence[tuple[int, int]]]] = field(
        default_factory=dict[str, Mapping[int, Sequence[tuple[int, int]]]]
    )
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict[str, Sequence[int]])


def _cuts(
    parts: Mapping[int, Sequence[tuple[int, int]]], shape: Sequence[int], label: str
) -> dict[int, list[tuple[int, int]]]:
    """Runs by dim, inside of the shape."""
    found: dict[int, list[tuple[int, int]]] = {}
    for dim, runs in parts.items():
        pairs = (
            [tuple(run) for run in runs] if isinstance(dim, int) and -len(shape) <= dim < len(shape) else None
        )
        if pairs is None or any(
            len(pair) != 2 or not 0 <= pair[0] <= pair[1] <= shape[dim] for pair in pairs
        ):
            raise InputError(
                f"parts of {label}: dim {dim}: {runs}",
                wanted=f"for a dim of {list(shape)} pairs (start, stop) inside of it",
            )
        found[dim % len(shape)] = [(int(lo), int(hi)) for lo, hi in pairs]
    return found


StateFunction: TypeAlias = "Callable[[DeviceMesh], RankState | Mapping[str, Any]]"
"""The state dict of this rank, at full size; called where tensors have no bytes."""


@dataclass
class Side:
    """All ranks that save, or that load."""

    mesh: Mapping[str, int]
    label: str
    plans: list[Any] = field(default_factory=list[Any])
    states: list[RankState] = field(default_factory=list[RankState])
    tensors: list[dict[str, torch.Tensor]] = field(default_factory=list[dict[str, torch.Tensor]])
    """By rank and flat name."""
    placed: list[dict[str, Part]] = field(default_factory=list[dict[str, Part]])

    def places(self) -> Iterator[dict[str, int]]:
        """The coordinates of every rank, in order."""
        for number in range(math.prod(self.mesh.values())):
            yield place_of(number, self.mesh)

    def tracks(self) -> list[str]:
        """What every rank's text is called, in order."""
        return [f"{self.label}_{track_name(place)}" for place in self.places()]


class Reads:
    """Texts of all ranks, as they come to be.

    Args:
        source: who saved; None where a checkpoint is there and its labels are taken to be right.
        target: who loads.
        metadata: of the checkpoint.
    """

    def __init__(self, source: Side | None, target: Side, metadata: Metadata) -> None:
        self.source, self.target, self.metadata = source, target, metadata
        self.labels = list(dict.fromkeys(label for table in target.tensors for label in table))
        if not self.labels:
            raise InputError("a state without tensors", wanted="something to load")
        self.shapes = {label: self._shape(label) for label in self.labels}
        self.names = {label: _name(label, at) for at, label in enumerate(self.labels)}
        self.dtypes: dict[str, str] = {}
        self.bodies: dict[str, list[Op]] = {}
        self.locals: dict[str, dict[str, Local]] = {}
        self.count = 0

    def made(self) -> tuple[Program, Plan]:
        """The Program and the Plan."""
        for side in (self.source, self.target):
            if side is not None:
                self._placed(side)
                for track in side.tracks():
                    self.bodies[track], self.locals[track] = [], {}
        held = self._stored() if self.source is None else self._written()
        for track, plan, tensors, placed in zip(
            self.target.tracks(), self.target.plans, self.target.tensors, self.target.placed, strict=True
        ):
            self._read(track, plan, tensors, placed, held)
        values = {
            self.names[label]: Value(self.shapes[label], self.dtypes[label], "weight")
            for label in self.labels
        }
        outs = tuple(Name(LOADED + self.names[label]) for label in self.labels)
        body = tuple(
            Op("copy", (Ref(Name(self.names[label])),), (out,))
            for label, out in zip(self.labels, outs, strict=True)
        )
        program = Program(values=values, entries={"load": Entry((), body, outs)})
        tracks = {
            track: Track(locals=self.locals[track], bodies={"load": tuple(steps)})
            for track, steps in self.bodies.items()
            if steps
        }
        return program, Plan(digest(program), tracks=tracks)

    def _shape(self, label: str) -> tuple[int, ...]:
        """Of the whole tensor: who has it whole, or says so, says the same."""
        said: dict[tuple[int, ...], str] = {}
        known = self.metadata.state_dict_metadata.get(label)
        if isinstance(known, TensorStorageMetadata) and self.source is None:
            said[tuple(known.size)] = "the checkpoint"
        for side in (self.source, self.target):
            for state, tensors in zip(side.states, side.tensors, strict=True) if side else ():
                if label in state.shapes:
                    said[tuple(state.shapes[label])] = side.label if side else ""
                elif label in tensors and (isinstance(tensors[label], DTensor) or label not in state.parts):
                    said[tuple(tensors[label].shape)] = side.label if side else ""
        if len(said) != 1:
            words = "; ".join(f"{list(shape)} {who}" for shape, who in said.items()) or "no shape"
            raise InputError(f"{label}: {words}", wanted="one shape, or RankState(parts=..., shapes=...)")
        return next(iter(said))

    def _placed(self, side: Side) -> None:
        for place, state, tensors in zip(side.places(), side.states, side.tensors, strict=True):
            found: dict[str, Part] = {}
            for label, tensor in tensors.items():
                if label not in self.shapes:
                    continue
                shape = self.shapes[label]
                if label in state.parts:
                    cuts = _cuts(state.parts[label], shape, label)
                    whole = whole_part(shape).dims
                    part = Part(
                        tuple(
                            tuple((lo, hi, 1) for lo, hi in cuts[dim]) if dim in cuts else whole[dim]
                            for dim in range(len(shape))
                        )
                    )
                elif isinstance(tensor, DTensor):
                    placements = dict(zip(axes_of(tensor), tensor.placements, strict=True))
                    part = part_of(shape, placements, side.mesh, place, label)
                else:
                    part = whole_part(shape)
                if part.sum or part.shape != tuple(local_of(tensor).shape):
                    raise InputError(
                        f"{label} of shape {list(local_of(tensor).shape)} on a rank",
                        wanted=f"{list(part.shape)}, as it is placed, and no sum",
                    )
                found[label] = part
                dtype = dtype_word(tensor.dtype)
                if self.dtypes.setdefault(label, dtype) != dtype:
                    raise UnsupportedError(
                        f"{label} is {self.dtypes[label]} on some ranks and {dtype} on others",
                        wanted="one dtype, saved and loaded",
                    )
            side.placed.append(found)

    def _local(self, part: Part, label: str, of: str) -> Local:
        dims = tuple((dim, runs) for dim, runs in enumerate(part.dims))
        return Local((), Place(Name(of), dims), dtype=self.dtypes[label])

    # where things are in the files --------------------------------------------------------------------

    def _written(self) -> dict[Any, tuple[str, Name, tuple[int, ...]]]:
        """By the label of each part of a file: the track that wrote it, its local, its shape."""
        held: dict[Any, tuple[str, Name, tuple[int, ...]]] = {}
        assert self.source is not None
        side = self.source
        for track, plan, tensors, placed in zip(
            side.tracks(), side.plans, side.tensors, side.placed, strict=True
        ):
            for item in plan.items:
                label = item.index.fqn
                if item.type == WriteItemType.BYTE_IO or label not in placed:
                    continue
                shape, chunk = tuple(local_of(tensors[label]).shape), item.tensor_data.chunk
                if tuple(chunk.sizes) != shape:
                    raise UnsupportedError(
                        f"{label}: {list(chunk.sizes)} of a rank's {list(shape)} written by itself",
                        wanted="a planner that writes what a rank has of a tensor as one part",
                    )
                name = self.names[label]
                self.locals[track][name] = self._local(placed[label], label, name)
                held[_key(item.index)] = (track, Name(name), tuple(local_of(tensors[label]).shape))
        return held

    def _stored(self) -> dict[Any, tuple[str, Name, tuple[int, ...]]]:
        """The same of a checkpoint that is there: its parts are what they are labelled with."""
        held: dict[Any, tuple[str, Name, tuple[int, ...]]] = {}
        track = "stored"
        self.bodies[track], self.locals[track] = [], {}
        for label in self.labels:
            known = self.metadata.state_dict_metadata.get(label)
            if not isinstance(known, TensorStorageMetadata):
                raise InputError(f"{label} is no tensor of the checkpoint")
            for at, chunk in enumerate(known.chunks):
                ends = zip(chunk.offsets, chunk.sizes, strict=True)
                runs = tuple(((lo, lo + size, 1),) for lo, size in ends)
                name = f"{self.names[label]}.part{at}"
                self.locals[track][name] = self._local(Part(runs), label, self.names[label])
                held[label, tuple(chunk.offsets)] = (track, Name(name), tuple(chunk.sizes))
        return held

    # reads --------------------------------------------------------------------------------------------

    def _read(
        self, track: str, plan: Any, tensors: Mapping[str, torch.Tensor], placed: Mapping[str, Part],
        held: Mapping[Any, tuple[str, Name, tuple[int, ...]]],
    ) -> None:  # fmt: skip
        blocks: dict[str, list[_Block]] = {
            label: [] for label in placed if math.prod(local_of(tensors[label]).shape)
        }
        for label in blocks:
            name = self.names[label]
            self.locals[track][LOADED + name] = self._local(placed[label], label, LOADED + name)
        for item in plan.items:
            label = item.dest_index.fqn
            if item.type == LoadItemType.BYTE_IO or label not in blocks:
                continue
            where = held.get(_key(item.storage_index))
            if where is None:
                raise InputError(f"a read of {_words(item.storage_index)}", wanted="a part that was saved")
            sender, source, size = where
            note = (("source", _told(item)),)
            lows, counts = tuple(item.storage_offsets), tuple(item.lengths)
            if len(lows) != len(size) or any(
                lo < 0 or lo + count > most for lo, count, most in zip(lows, counts, size, strict=True)
            ):
                raise InputError(f"{_told(item)}: a read outside of a part of shape {list(size)}")
            box = tuple(
                (dim, lo, lo + count)
                for dim, (lo, count, most) in enumerate(zip(lows, counts, size, strict=True))
                if (lo, count) != (0, most)
            )
            self.bodies[sender].append(
                Op(
                    "send",
                    (Ref(source, box),),
                    (),
                    (("at", ()), ("key", self.count), ("to", track)),
                    note,
                )
            )
            made = Name(f"recv_{self.count}")
            self.bodies[track].append(Op("recv", (), (made,), (("key", self.count),), note))
            self.count += 1
            low, shape = tuple(item.dest_offsets), tuple(local_of(tensors[label]).shape)
            block = _Block(made, tuple((lo, lo + count) for lo, count in zip(low, counts, strict=True)))
            if any(lo < 0 or hi > size for (lo, hi), size in zip(block.ends, shape, strict=True)):
                raise InputError(f"{_told(item)}: a read into a part of shape {list(shape)}")
            blocks[label].append(block)
        for label, found in blocks.items():
            ends = tuple((0, size) for size in local_of(tensors[label]).shape)
            whole = self._put_together(track, label, found, ends, 0)
            self.bodies[track].append(Op("copy", (whole,), (Name(LOADED + self.names[label]),)))

    def _put_together(
        self, track: str, label: str, blocks: Sequence[_Block], ends: tuple[tuple[int, int], ...], dim: int
    ) -> Ref | Cat:
        """A part of a tensor after the reads in order: each element as the last that wrote it has left it."""
        if dim == len(ends):
            if blocks:
                return blocks[-1].part(ends)
            made, dtype = Name(f"unread_{self.count}"), self.dtypes[label]
            attrs: Any = (
                ("dtype", dtype),
                ("fill_value", _unset(dtype)),
                ("size", tuple(hi - lo for lo, hi in ends)),
            )
            self.bodies[track].append(Op("full", (), (made,), attrs))
            self.count += 1
            return Ref(made)
        low, high = ends[dim]
        cuts = {low, high, *(end for block in blocks for end in block.ends[dim])}
        inside = sorted(cut for cut in cuts if low <= cut <= high)
        parts: list[Ref | Cat] = []
        for lo, hi in itertools.pairwise(inside):
            here = [block for block in blocks if block.ends[dim][0] <= lo and hi <= block.ends[dim][1]]
            spot = (*ends[:dim], (lo, hi), *ends[dim + 1 :])
            parts.append(self._put_together(track, label, here, spot, dim + 1))
        return parts[0] if len(parts) == 1 else Cat(dim, tuple(parts))


@dataclass(frozen=True)
class _Block:
    """What was read, and where in the rank's tensor it was put."""

    name: Name
    ends: tuple[tuple[int, int], ...]

    def part(self, ends: tuple[tuple[int, int], ...]) -> Ref:
        """What of it stands between some ends."""
        box = tuple(
            (dim, lo - first, hi - first)
            for dim, ((lo, hi), (first, last)) in enumerate(zip(ends, self.ends, strict=True))
            if (lo, hi) != (first, last)
        )
        return Ref(self.name, box)


def _unset(dtype: str) -> Any:
    """What memory holds that nobody wrote."""
    if dtype == "bool":
        return False
    return float("nan") if dtype[0] in "fb" else 85


def _key(index: Any) -> tuple[str, tuple[int, ...]]:
    return index.fqn, tuple(index.offset) if index.offset is not None else ()


def _words(index: Any) -> str:
    return f"{index.fqn} at {list(index.offset) if index.offset is not None else 'its beginning'}"


def _told(item: Any) -> str:
    ends = [
        ", ".join(f"{lo}:{lo + count}" for lo, count in zip(lows, item.lengths, strict=True))
        for lows in (item.storage_offsets, item.dest_offsets)
    ]
    return f"[{ends[0]}] of {_words(item.storage_index)} into [{ends[1]}] of {_words(item.dest_index)}"


def _name(label: str, at: int) -> str:
    return label if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z0-9_]+)*", label) else f"tensor_{at}"
