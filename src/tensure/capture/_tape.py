"""What one traced rank did, as single-assignment steps: tensors that share memory keep one value each.

Every storage has a root tensor and a value; a view is known by the view ops that lead to it from the root.
Writing into a view writes the root's value anew, through the inverses of these ops; a view that is read
after such a write is made again. So what is recorded needs no memory: FSDP's flat buffers, accumulated
gradients and caches come out as plain values. Knows aliasing; does not know what ops mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch

from tensure.errors import UnsupportedError
from tensure.host import dtype_word
from tensure.program import COLLECTIVES, AtenCall, Attrs, Name, Op, Ref, translate

__all__ = ["ALIASES", "BEFORE", "DRAWN", "WHOLE", "Tape", "View"]

ALIASES: Final = frozenset({"alias", "detach", "lift_fresh", "view_as", "_conj_physical", "positive", "to"})
"""Views that are the tensor itself."""

_UNSET: Final = float("nan")
"""What memory holds that nobody has written: reading it makes a claim fail, writing it over does no harm."""


DRAWN: Final = "drawn"
"""What values of random numbers are called."""
WHOLE: Final = ".whole"
"""Marks a parameter as the model has it, where the parallel module holds a part under its name."""

BEFORE: Final = "before"
"""What contents are called that a live process had before the step, and that nobody placed."""


@dataclass(frozen=True, slots=True)
class View:
    """One view op between two tensors: how to make it again, and which result it is."""

    name: str
    given: Mapping[str, Any]
    source: str
    """The argument that is viewed."""
    at: int
    outer: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtype: str


@dataclass(slots=True)
class _Storage:
    value: Ref
    shape: tuple[int, ...]
    in_order: bool
    """Elements lie in memory as they are counted."""
    version: int = 0


@dataclass(frozen=True, slots=True)
class _Memory:
    """Where a tensor looks: `.data = ...` and swaps give a tensor that is there another one's memory."""

    address: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    kept: Any = field(compare=False)  # so that no other memory can take the address


def _memory(tensor: torch.Tensor) -> _Memory:
    held = tensor.untyped_storage()
    shape, stride = tuple(tensor.shape), tuple(tensor.stride())
    return _Memory(held._cdata, int(tensor.storage_offset()), shape, stride, tensor.dtype, held)


@dataclass(slots=True)
class _Seen:
    """A tensor: its memory, the way to it, and the value it had at a version of that memory."""

    tensor: torch.Tensor  # kept, so that no other tensor can take its id
    memory: _Memory
    storage: _Storage
    chain: tuple[View, ...]
    value: Ref
    version: int
    written: int = -1
    """The version that a write to this very tensor made."""


@dataclass(slots=True)
class Tape:
    """Steps so far, and the value of every tensor."""

    steps: list[Op] = field(default_factory=list[Op])
    _seen: dict[int, _Seen] = field(default_factory=dict[int, _Seen])
    _there: dict[_Memory, _Seen] = field(default_factory=dict[_Memory, _Seen])
    _names: dict[str, int] = field(default_factory=dict[str, int])
    _makers: dict[Name, Op] = field(default_factory=dict[Name, Op])
    _likes: dict[Name, Ref] = field(default_factory=dict[Name, Ref])
    meeting: str = "met"
    """What results of collectives are called; those of another name take turns of their own."""
    aside: str = ""
    """Ends the names of what is done aside, to be dropped again: it takes no turn in collectives."""
    shapes: int = 0
    """A digest of the shapes of all tensors so far: ranks with one text agree in these too."""
    _counted: int = 0

    # names and steps ---------------------------------------------------------------------------------

    def fresh(self, wanted: str) -> Name:
        """A name nobody has."""
        wanted += self.aside
        count = self._names.get(wanted, 0)
        self._names[wanted] = count + 1
        return Name(f"{wanted}_{count}")

    def emit(
        self,
        name: str,
        given: Mapping[str, Any],
        shapes: tuple[tuple[int, ...], ...],
        dtypes: tuple[str, ...],
        in_shapes: Mapping[str, tuple[int, ...]],
        note: Attrs,
        defaults: Mapping[str, Any] | None = None,
        wanted: frozenset[int] | None = None,
    ) -> list[Ref]:
        """One call of ATen in listed ops; the values of its results.

        Args:
            name: ATen's, without overload.
            given, defaults: arguments by ATen's names, tensors as Refs.
            shapes, dtypes: of the results.
            in_shapes: of tensor arguments, by name.
            note: where it comes from.
            wanted: the results somebody may read; all of them by default.

        Raises:
            UnsupportedError: no listed op does this.
        """
        label = name.strip("_") or name
        outs = tuple(
            self.fresh(label) if wanted is None or at in wanted else None for at in range(len(shapes))
        )
        call = AtenCall(name, given, defaults or {}, outs, shapes, dtypes, in_shapes, note)
        self.steps.extend(translate(call))
        return [Ref(out if out is not None else Name("unread")) for out in outs]

    def step(self, op: str, args: tuple[Any, ...], note: Attrs, **attrs: Any) -> Ref:
        """One listed op as it stands; a collective is named by its turn on its axes, so members meet."""
        made = self.fresh("_".join((self.meeting, *attrs["axes"])) if op in COLLECTIVES else op)
        self.steps.append(Op(op, args, (made,), tuple(sorted(attrs.items())), note))
        return Ref(made)

    def message(
        self, op: str, args: tuple[Ref, ...], other: int, axes: tuple[str, ...], key: tuple[Any, ...],
        note: Attrs,
    ) -> Ref:  # fmt: skip
        """A send to another rank, or a receipt from it.

        Until tracks are known, `other` is its number, and `over` are the axes along which it may stand
        elsewhere.
        """
        made = () if op == "send" else (self.fresh("recv"),)
        self.steps.append(Op(op, args, made, (("key", key), ("other", other), ("over", axes)), note))
        return Ref(made[0]) if made else args[0]

    # tensors -----------------------------------------------------------------------------------------

    def knows(self, tensor: torch.Tensor) -> bool:
        """Whether the tensor has a value."""
        return self._found(tensor) is not None

    def add(self, tensor: torch.Tensor, value: Ref) -> None:
        """A tensor with memory of its own."""
        storage = _Storage(value, tuple(tensor.shape), tensor.is_contiguous())
        self._keep(tensor, storage, (), value)

    def add_view(self, tensor: torch.Tensor, base: torch.Tensor, view: View | None, value: Ref) -> None:
        """A tensor in the memory of another; without a View it is the other under a second name."""
        outer = self._known(base)
        chain = outer.chain if view is None else (*outer.chain, view)
        same = self._there.get(_memory(tensor))
        kept = same is not None and same.storage is outer.storage and same.written == outer.storage.version
        if same is not None and kept:
            value = same.value  # what was written last, through another view of the very same elements
        made = self._keep(tensor, outer.storage, chain, value)
        made.written = outer.storage.version if kept else -1  # for the next view of them

    def add_window(self, tensor: torch.Tensor, base: torch.Tensor, note: Attrs) -> None:
        """A contiguous window on the memory of another tensor, wherever in it that one looks.

        Raises:
            UnsupportedError: it is not contiguous, or the memory is not.
        """
        storage = self._known(base).storage
        shape, start, count = tuple(tensor.shape), tensor.storage_offset(), tensor.numel()
        whole = math.prod(storage.shape)
        held = tensor.untyped_storage().nbytes() // tensor.element_size()
        fits = start + count <= whole and held in (0, whole)
        if not tensor.is_contiguous() or not storage.in_order or not fits:
            raise UnsupportedError(
                f"as_strided to {list(shape)} with strides {list(tensor.stride())} at {start}",
                wanted="a contiguous window on contiguous memory",
            )
        dtype = dtype_word(tensor.dtype)
        flat, part = (whole,), (count,)
        chain = (
            View("view", {"size": flat}, "self", 0, storage.shape, (flat,), dtype),
            View("slice", {"dim": 0, "start": start, "end": start + count}, "self", 0, flat, (part,), dtype),
            View("view", {"size": shape}, "self", 0, part, (shape,), dtype),
        )
        value = storage.value
        for view in chain:
            value = self._again(view, value, note)
        self._keep(tensor, storage, chain, value)

    def read(self, tensor: torch.Tensor, note: Attrs) -> Ref:
        """The value a tensor has now; made again if its memory was written since.

        Raises:
            UnsupportedError: nobody has seen it being made.
        """
        seen = self._known(tensor)
        if seen.version != seen.storage.version:
            value = seen.storage.value
            for view in seen.chain:
                value = self._again(view, value, note)
            seen.value, seen.version = value, seen.storage.version
        return seen.value

    def write(self, tensor: torch.Tensor, value: Ref, note: Attrs) -> None:
        """The tensor's memory holds `value` from now on, whoever else looks at it."""
        seen = self._known(tensor)
        storage = seen.storage
        outer = [storage.value]
        for view in seen.chain[:-1]:
            outer.append(self._again(view, outer[-1], note))
        made = value
        for view, base in zip(reversed(seen.chain), reversed(outer), strict=True) if seen.chain else ():
            made = self._back(view, base, made, note)
        storage.value = made
        storage.version += 1
        seen.value, seen.version, seen.written = value, storage.version, storage.version

    def draw(self, tensor: torch.Tensor, note: Attrs) -> None:
        """A tensor that holds random numbers from now on, to be replaced by what is placed in its stead."""
        value = self.unknown(DRAWN, tensor, note)
        if self.knows(tensor):
            self.write(tensor, value, note)
        else:
            self.add(tensor, value)

    def unknown(self, word: str, tensor: torch.Tensor, note: Attrs) -> Ref:
        """A value for a tensor of which nothing is known; `word` says why, and who reads it is told."""
        name, shape, dtype = self.fresh(word), tuple(tensor.shape), dtype_word(tensor.dtype)
        fill: Any = _UNSET if dtype[0] in "fb" and dtype != "bool" else False if dtype == "bool" else 0
        attrs = (("dtype", dtype), ("fill_value", fill), ("size", shape))
        self.steps.append(Op("full", (), (name,), attrs, note))
        return Ref(name)

    def is_drawn(self, tensor: torch.Tensor) -> bool:
        """Whether its value follows from random numbers."""
        return any(name.base.startswith(f"{DRAWN}_") for name in self._behind(tensor))

    def rests_on(self, tensor: torch.Tensor, mark: str) -> bool:
        """Whether its value follows from one whose name ends so."""
        return any(name.base.endswith(mark) for name in self._behind(tensor))

    def makers(self) -> Mapping[Name, Op]:
        """The step behind every value so far; steps are only ever added."""
        for step in self.steps[self._counted :]:
            self._makers.update((out, step) for out in step.outs)
        self._counted = len(self.steps)
        return self._makers

    def forget(self) -> None:
        """Steps were dropped: what made a value is looked up anew, and no view has a value that they made."""
        self._makers, self._counted = {}, 0
        made = self.makers()
        self._there = {
            at: seen for at, seen in self._there.items() if not seen.chain or seen.value.name in made
        }

    def _behind(self, tensor: torch.Tensor) -> set[Name]:
        open_names, seen = [self.read(tensor, ()).name], set[Name]()
        made = self.makers()
        while open_names:
            name = open_names.pop()
            if name not in seen:
                seen.add(name)
                open_names.extend(ref.name for ref in (made[name].reads() if name in made else ()))
        return seen

    def unset(self, tensor: torch.Tensor, note: Attrs) -> None:
        """A tensor whose memory nobody has written yet."""
        shape, dtype = tuple(tensor.shape), dtype_word(tensor.dtype)
        fill: Any = _UNSET if dtype[0] in "fb" else 255 if dtype == "u8" else -1
        fill = False if dtype == "bool" else fill
        self.add(tensor, self.step("full", (), note, size=shape, fill_value=fill, dtype=dtype))

    def liken(self, tensor: torch.Tensor, other: torch.Tensor, note: Attrs) -> None:
        """A tensor that was made with a place for each element of another; it holds nothing of its own."""
        if self.knows(other):
            self._likes[self.read(tensor, note).name] = self.likeness(other, note)

    def likeness(self, tensor: torch.Tensor, note: Attrs) -> Ref:
        """The value whose elements a tensor has places for."""
        value = self.read(tensor, note)
        return self._likes.get(value.name, value)

    def _known(self, tensor: torch.Tensor) -> _Seen:
        seen = self._found(tensor)
        if seen is None:
            raise UnsupportedError(
                f"a tensor of shape {list(tensor.shape)} that was made before tracing",
                wanted="parameters, buffers, inputs, and what is made of them inside the step",
            )
        return seen

    def _found(self, tensor: torch.Tensor) -> _Seen | None:
        seen, memory = self._seen.get(id(tensor)), _memory(tensor)
        if seen is not None and seen.memory == memory:
            return seen
        other = self._there.get(memory)
        return (
            None
            if other is None
            else self._keep(tensor, other.storage, other.chain, other.value, other.version)
        )

    def _keep(
        self,
        tensor: torch.Tensor,
        storage: _Storage,
        chain: tuple[View, ...],
        value: Ref,
        version: int | None = None,
    ) -> _Seen:
        at = storage.version if version is None else version
        seen = _Seen(tensor, _memory(tensor), storage, chain, value, at)
        self.shapes = hash((self.shapes, seen.memory.shape))
        self._seen[id(tensor)] = self._there[seen.memory] = seen
        return seen

    # views -------------------------------------------------------------------------------------------

    def _over(self, base: Ref, inner: Ref, note: Attrs, **attrs: Any) -> Ref:
        """A slice of a value replaced; what was written there before is gone."""
        made = self.makers().get(base.name)
        if made is not None and made.op == "slice_scatter" and made.attrs == tuple(sorted(attrs.items())):
            below = made.args[0]
            base = below if isinstance(below, Ref) else base
        return self.step("slice_scatter", (base, inner), note, **attrs)

    def _again(self, view: View, value: Ref, note: Attrs) -> Ref:
        given = {**view.given, view.source: value}
        dtypes = (view.dtype,) * len(view.shapes)
        wanted = frozenset({view.at})
        return self.emit(
            view.name, given, view.shapes, dtypes, {view.source: view.outer}, note, wanted=wanted
        )[view.at]

    def _back(self, view: View, base: Ref, inner: Ref, note: Attrs) -> Ref:
        """The base's value with the part that the view shows replaced."""
        given = view.given
        rank = len(view.outer)
        match view.name:
            case "view" | "_unsafe_view" | "_reshape_alias" | "reshape" | "squeeze" | "unsqueeze":
                if view.outer == view.shapes[view.at]:
                    return inner
                return self.step("view", (inner,), note, size=view.outer)
            case "t":
                return self.step("t", (inner,), note) if rank == 2 else inner
            case "transpose":
                dims = {"dim0": given["dim0"], "dim1": given["dim1"]}
                return self.step("transpose", (inner,), note, **dims)
            case "permute":
                order = [dim % rank for dim in given["dims"]]
                return self.step("permute", (inner,), note, dims=tuple(map(order.index, range(rank))))
            case "slice":
                keys = ("dim", "start", "end", "step")
                attrs = {key: given[key] for key in keys if given.get(key) is not None}
                if attrs.get("end", 0) >= 1 << 61:
                    del attrs["end"]
                return self._over(base, inner, note, **attrs)
            case "select" | "unbind":
                dim = given.get("dim", 0) % rank
                at = given["index"] % view.outer[dim] if view.name == "select" else view.at
                thick = self.step("unsqueeze", (inner,), note, dim=dim)
                return self._over(base, thick, note, dim=dim, start=at, end=at + 1)
            case "split" | "split_with_sizes" | "chunk":
                dim = given.get("dim", 0) % rank
                start = sum(shape[dim] for shape in view.shapes[: view.at])
                end = start + view.shapes[view.at][dim]
                return self._over(base, inner, note, dim=dim, start=start, end=end)
        raise UnsupportedError(
            f"a write into a {view.name} of a tensor", wanted="a write into a slice, a view or a whole tensor"
        )
