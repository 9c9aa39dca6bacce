"""Who shares memory with whom, what is alive, and what was overwritten: the storages of a run.

Knows torch's storages and holds none of them: a weak reference keeps its number from being given out again,
never its bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.multiprocessing.reductions import StorageWeakRef

__all__ = ["Storages"]


@dataclass(slots=True)
class _Storage:
    number: int
    ref: StorageWeakRef
    nbytes: int
    first: str
    """The first tensor seen in it."""
    writes: list[tuple[int, int, int]]
    """What was written over, as (step, first byte, byte after the last)."""


class Storages:
    """Numbers storages as they are met and counts the bytes of those alive."""

    def __init__(self) -> None:
        self._known: dict[int, _Storage] = {}
        self._lasting: dict[int, _Storage] = {}
        self._passing: dict[int, _Storage] = {}
        self._count = 0
        self._lasting_bytes = 0

    def meet(self, tensor: torch.Tensor, name: str, *, lasting: bool = False) -> tuple[int, str | None]:
        """The number of a tensor's storage, and the first tensor seen in it if that is another one.

        A `lasting` storage (a weight's) is taken to live until the run ends.
        """
        storage = tensor.untyped_storage()
        key = storage._cdata
        found = self._known.get(key)
        if found is None:
            ref = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
            found = _Storage(self._count, ref, storage.nbytes(), name, [])
            self._count += 1
            self._known[key] = found
            (self._lasting if lasting else self._passing)[key] = found
            self._lasting_bytes += found.nbytes if lasting else 0
            return found.number, None
        return found.number, found.first if found.first != name else None

    def write(self, tensor: torch.Tensor, step: int) -> None:
        """A step wrote over this tensor's bytes."""
        found = self._known.get(tensor.untyped_storage()._cdata)
        if found is not None:
            found.writes.append((step, *_extent(tensor)))
            storage = tensor.untyped_storage()
            if storage.nbytes() != found.nbytes:  # resized in place
                self._lasting_bytes += storage.nbytes() - found.nbytes if self._is_lasting(storage) else 0
                found.nbytes = storage.nbytes()

    def written(self, tensor: torch.Tensor, since: int) -> int:
        """The last step after `since` that wrote between this tensor's first byte and its last, or -1."""
        found = self._known.get(tensor.untyped_storage()._cdata)
        if found is None or not found.writes or found.writes[-1][0] <= since:
            return -1
        low, high = _extent(tensor)
        for step, first, end in reversed(found.writes):
            if step <= since:
                break
            if first < high and low < end:
                return step
        return -1

    def number(self, tensor: torch.Tensor) -> int:
        """The number of a tensor's storage, -1 if it was not met."""
        found = self._known.get(tensor.untyped_storage()._cdata)
        return -1 if found is None else found.number

    def live_bytes(self) -> int:
        """Of every storage met that is still alive."""
        dead = [
            key
            for key, found in self._passing.items()
            if found.ref.expired()  # type: ignore[no-untyped-call]
        ]
        for key in dead:
            del self._passing[key], self._known[key]
        return self._lasting_bytes + sum(found.nbytes for found in self._passing.values())

    def _is_lasting(self, storage: torch.UntypedStorage) -> bool:
        return storage._cdata in self._lasting


def _extent(tensor: torch.Tensor) -> tuple[int, int]:
    """The bytes of its storage between which a tensor lies; gaps included."""
    item = tensor.element_size()
    first = int(tensor.storage_offset()) * item
    if not tensor.numel():
        return first, first
    span = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return first, first + (span + 1) * item
