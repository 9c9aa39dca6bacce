"""Tensors that have bytes, seen on the tape as tensors that have none.

In a live process parameters, flat buffers and buckets have memory. A step is traced without bytes: whatever
has some is replaced, where it is dispatched, by a fake tensor that looks at fake memory in the same way, so
that tensors which share memory still do. Knows memory; knows no op.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import torch
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map_only

from tensure.errors import UnsupportedError
from tensure.host import dtype_word
from tensure.program import Attrs, Ref

from ._literal import MAX_LITERAL, written_down
from ._tape import BEFORE, Tape

__all__ = ["Shadows"]

_WRAPPERS: Final = (DTensor, AsyncCollectiveTensor, FakeTensor)
_NOTHING: Final[Attrs] = ()
_OUTPUTS: Final = frozenset({"output_tensor", "output_tensors", "outputs", "output"})
_RECEIVED: Final = frozenset({"tensors"})
_OVERWRITES: Final = frozenset({"copy_", "fill_", "zero_"})
"""Of ops in place, those that do not look at what they write over."""

Place: TypeAlias = tuple[int, int, tuple[int, ...], tuple[int, ...], torch.dtype]
"""Where a tensor looks: memory, offset, shape, strides, dtype."""


@dataclass(slots=True)
class _Memory:
    """What is known of one storage.

    Args:
        kept: it, so that no other takes its address.
        root: the fake tensor all windows look at; None where each tensor on it stands for itself.
    """

    kept: Any
    root: torch.Tensor | None


@dataclass(slots=True)
class Shadows:
    """The fake tensors that stand for those of this process.

    Args:
        tape: where their values are known. Everything here is called where tensors have no bytes.
    """

    tape: Tape
    _memory: dict[int, _Memory] = field(default_factory=dict[int, _Memory])
    _found: dict[Place, torch.Tensor] = field(default_factory=dict["Place", torch.Tensor])

    def knows(self, tensor: torch.Tensor) -> bool:
        """Whether its memory was seen before."""
        return not isinstance(tensor, FakeTensor) and tensor.untyped_storage()._cdata in self._memory

    def leaf(self, tensor: torch.Tensor, value: Ref) -> torch.Tensor:
        """A tensor that holds `value` when the step begins; what stands for it.

        The zeros after a shard that is smaller than others are known to be such.
        """
        self._pad(tensor)
        fake = self.of(tensor, is_written=True)
        self.tape.write(fake, value, ())
        return fake

    def stand_in(self, tensor: torch.Tensor, fake: torch.Tensor) -> None:
        """Let one that the tape knows stand for a tensor."""
        held = tensor.untyped_storage()
        self._memory[held._cdata] = _Memory(held, None)
        self._found[_place(tensor)] = fake

    def of_call(
        self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], note: Attrs
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call with fake tensors for real ones.

        Raises:
            UnsupportedError: memory seen in ways that cannot be told apart.
        """
        arguments = func._schema.arguments
        changed = {
            item.name for item in arguments if item.alias_info is not None and item.alias_info.is_write
        }
        is_over = func._schema.name.rpartition("::")[2] in _OVERWRITES
        written = {item.name for item in arguments if item.name in changed and (is_over or item.is_out)}
        if func.namespace == "c10d":  # whose ops do not say so
            written |= _RECEIVED if func._schema.name == "c10d::recv_" else _OUTPUTS
        names = [item.name for item in arguments]

        def shadow(name: str, value: Any) -> Any:
            def met(tensor: torch.Tensor) -> torch.Tensor:
                if name not in changed | written and self._is_number(tensor):
                    return tensor
                return self.of(tensor, name in written, note)

            return tree_map_only(torch.Tensor, met, value)

        made = tuple(shadow(name, value) for name, value in zip(names, args, strict=False))
        return made, {name: shadow(name, value) for name, value in kwargs.items()}

    def _is_number(self, tensor: torch.Tensor) -> bool:
        """Whether it may be a number of Python's, which come as tensors, and promote dtypes as numbers do."""
        return not tensor.ndim and not isinstance(tensor, _WRAPPERS) and not self.knows(tensor)

    def of(self, tensor: torch.Tensor, is_written: bool = False, note: Attrs = _NOTHING) -> torch.Tensor:
        """What stands for a tensor.

        Memory that nobody has seen holds what it held when the step began: numbers of the caller's own, if
        they are few; unless it is written first, when that does not matter.
        """
        if isinstance(tensor, _WRAPPERS):
            return tensor
        place = _place(tensor)
        found = self._found.get(place)
        if found is None:
            with torch.no_grad():
                found = self._found[place] = self._new(tensor, is_written, note)
        return found

    def _new(self, tensor: torch.Tensor, is_written: bool, note: Attrs) -> torch.Tensor:
        held = tensor.untyped_storage()
        memory = self._memory.get(held._cdata)
        if memory is None:
            count = held.nbytes() // tensor.element_size()
            alone = tensor.numel() == count and tensor.is_contiguous()
            if alone or not tensor.is_contiguous():
                fake = self._root(tensor, is_written, note)
                self._memory[held._cdata] = _Memory(held, fake if alone else None)
                return fake
            with unset_fake_temporarily(), _disable_current_modes():
                whole = torch.empty((0,), dtype=tensor.dtype).set_(held, 0, (count,), (1,))
            memory = self._memory[held._cdata] = _Memory(held, self._root(whole, is_written, note))
        if memory.root is None or memory.root.dtype != tensor.dtype or not tensor.is_contiguous():
            raise UnsupportedError(
                f"a tensor of shape {list(tensor.shape)} and strides {list(tensor.stride())} in memory that "
                "others look at",
                wanted="contiguous tensors of one dtype, or tensors with memory of their own",
            )
        fake = memory.root.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
        self.tape.add_window(fake, memory.root, note)
        return fake

    def _pad(self, tensor: torch.Tensor) -> None:
        """Know memory that holds a tensor and zeros."""
        held = tensor.untyped_storage()
        count, lo = held.nbytes() // tensor.element_size(), int(tensor.storage_offset())
        if isinstance(tensor, _WRAPPERS) or held._cdata in self._memory or tensor.numel() == count:
            return
        if not tensor.is_contiguous() or not tensor.is_floating_point():
            return
        with unset_fake_temporarily(), _disable_current_modes():
            whole = torch.empty((0,), dtype=tensor.dtype).set_(held, 0, (count,), (1,))
            if whole[:lo].any() or whole[lo + tensor.numel() :].any():
                return
        with torch.no_grad():
            fake = torch.empty((count,), dtype=tensor.dtype)
        zeros = self.tape.step("full", (), (), size=(count,), fill_value=0.0, dtype=dtype_word(tensor.dtype))
        self.tape.add(fake, zeros)
        self._memory[held._cdata] = _Memory(held, fake)

    def _root(self, tensor: torch.Tensor, is_written: bool, note: Attrs) -> torch.Tensor:
        """A fake tensor with memory of its own, and what that holds."""
        fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
        if is_written:
            self.tape.unset(fake, note)
        elif 0 < tensor.numel() <= MAX_LITERAL:
            self.tape.add(fake, written_down(self.tape, tensor, note))
        else:
            self.tape.add(fake, self.tape.unknown(BEFORE, fake, note))
        return fake


def _place(tensor: torch.Tensor) -> Place:
    held = tensor.untyped_storage()
    return (
        held._cdata,
        int(tensor.storage_offset()),
        tuple(tensor.shape),
        tuple(tensor.stride()),
        tensor.dtype,
    )
