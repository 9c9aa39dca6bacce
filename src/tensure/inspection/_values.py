"""Values of a run kept on disk, so that two runs can be compared without holding either in memory.

Knows a temporary file without a name; it is gone when the store is. A weight is kept by reference until
somebody is about to write over it.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import tempfile
import weakref
from typing import Final

import torch

from tensure.errors import InputError, LimitError

__all__ = ["ValueStore"]

MAX_BYTES: Final = 16 << 30
_ALIGNMENT: Final = 64


class ValueStore:
    """Tensors by name, on disk.

    Args:
        max_bytes: of the file.
        folder: where it lies; the system's place for temporary files when left out.
    """

    def __init__(self, *, max_bytes: int = MAX_BYTES, folder: str | os.PathLike[str] | None = None) -> None:
        self._file = _nameless_file(folder)
        # The disk space goes with the store: nobody has to close it.
        self._closing = weakref.finalize(self, os.close, self._file)
        self._places: dict[str, tuple[int, torch.dtype, tuple[int, ...]]] = {}
        self._lent: dict[str, torch.Tensor] = {}
        self._end = 0
        self._max = max_bytes
        self._map: mmap.mmap | None = None

    def __contains__(self, name: str) -> bool:
        return name in self._places or name in self._lent

    def forget(self, name: str) -> None:
        """Let one tensor go; its place on disk stays taken."""
        self._places.pop(name, None)
        self._lent.pop(name, None)

    def clear(self) -> None:
        """Forget every tensor."""
        self._places.clear()
        self._lent.clear()
        self._end = 0

    def close(self) -> None:
        """Give the disk space back."""
        self._map = None
        self._closing()

    def lend(self, name: str, tensor: torch.Tensor) -> None:
        """Keep a tensor that nobody writes to by reference."""
        self._lent[name] = tensor.detach()

    def save_before_write(self, name: str) -> None:
        """Copy a lent tensor now: it is about to be written over."""
        tensor = self._lent.pop(name, None)
        if tensor is not None:
            self.put(name, tensor)

    def put(self, name: str, tensor: torch.Tensor) -> None:
        """Copy a tensor's values to disk.

        Raises:
            LimitError: over `max_bytes`.
            InputError: the disk is full.
        """
        if (
            tensor.layout is not torch.strided
            or tensor.is_nested
            or tensor.device.type != "cpu"
            or tensor.is_quantized
        ):
            tensor = _plain(tensor)
        tensor = tensor.detach().resolve_conj().resolve_neg()
        nbytes = tensor.numel() * tensor.element_size()
        if self._end + nbytes > self._max:
            raise LimitError(
                f"the values of the run take over {self._max >> 20} MiB",
                wanted="a smaller input, or a larger bound",
                next_step="In Python, pass keep=ValueStore(max_bytes=N)",
            )
        self._places[name] = (self._end, tensor.dtype, tuple(tensor.shape))
        try:
            self._write(tensor)
        except OSError as error:
            raise InputError(
                f"the values of the run cannot be kept: {error.strerror}",
                file=tempfile.gettempdir(),
                next_step="Free some space, or set TMPDIR to a larger disk",
            ) from None
        self._end += -(-nbytes // _ALIGNMENT) * _ALIGNMENT

    def _write(self, tensor: torch.Tensor) -> None:
        """In pieces: a tensor with strides must not be copied whole."""
        if not tensor.numel():
            return
        at = self._end
        for piece in _pieces(tensor):
            flat = piece.contiguous()
            nbytes = flat.numel() * flat.element_size()
            # Not through numpy: that pins the storage, and the run may want to resize it.
            os.pwrite(self._file, (ctypes.c_char * nbytes).from_address(flat.data_ptr()), at)
            at += nbytes

    def get(self, name: str) -> torch.Tensor:
        """A kept tensor; read-only by agreement.

        Raises:
            InputError: it was not kept.
        """
        if name in self._lent:
            return self._lent[name]
        if name not in self._places:
            raise InputError(f"the values of {name} were not kept", next_step="Record with keep=True")
        begin, dtype, shape = self._places[name]
        count = 1
        for size in shape:
            count *= size
        if not count:
            return torch.empty(shape, dtype=dtype)
        if self._map is None or len(self._map) < self._end:
            os.ftruncate(self._file, self._end)
            # Private and writable: torch asks for writable memory, the file must not change.
            self._map = mmap.mmap(self._file, self._end, flags=mmap.MAP_PRIVATE)
        return torch.frombuffer(self._map, dtype=dtype, count=count, offset=begin).reshape(shape)


def _nameless_file(folder: str | os.PathLike[str] | None) -> int:
    """A descriptor of a file that no folder lists."""
    descriptor, path = tempfile.mkstemp(prefix="tensure-values-", dir=folder)
    os.unlink(path)
    return descriptor


_PIECE_BYTES: Final = 4 << 20


def _pieces(tensor: torch.Tensor) -> list[torch.Tensor]:
    if tensor.is_contiguous() or tensor.numel() * tensor.element_size() <= _PIECE_BYTES:
        flat = tensor.contiguous().reshape(-1)
        return list(torch.split(flat, max(1, _PIECE_BYTES // tensor.element_size())))
    return [piece for row in tensor for piece in _pieces(row)]


def _is_here(tensor: torch.Tensor) -> bool:
    """Whether a tensor has values: not one on `meta`, nor a fake one."""
    return tensor.device.type != "meta" and type(tensor).__torch_dispatch__ is torch.Tensor.__torch_dispatch__


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_quantized:
        return tensor.dequantize()
    if tensor.is_nested and tensor.layout is torch.strided:
        return tensor.values()
    if tensor.layout is not torch.strided:
        return tensor.to_dense() if tensor.layout is not torch.jagged else tensor.values()
    return tensor.cpu()
