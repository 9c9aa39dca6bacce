"""Addresses of memory that has no bytes: FSDP1 asks whether tensors share memory, and whether it was freed.

A fake tensor has none, and torch says 0 of all of them, so that all would share one memory. Here each storage
has a number of its own, and one that was freed has 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ._changes import replaced

__all__ = ["addresses"]


@contextmanager
def addresses() -> Iterator[None]:
    """Let memory without bytes have addresses."""
    of_storage, of_tensor = torch.UntypedStorage.data_ptr, torch.Tensor.data_ptr

    def storage_address(self: Any) -> int:
        if self.device.type != "meta":
            return of_storage(self)
        return int(self._cdata) if self.nbytes() else 0

    def address(self: Any) -> int:
        held = self.untyped_storage()
        if held.device.type != "meta":
            return of_tensor(self)
        start = storage_address(held)
        return start + self.storage_offset() * self.element_size() if start else 0

    with (
        replaced(torch.UntypedStorage, "data_ptr", storage_address),
        replaced(torch.Tensor, "data_ptr", address),
    ):
        yield
