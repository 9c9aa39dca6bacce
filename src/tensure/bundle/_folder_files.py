"""The files of a bundle folder as they lie on the disk, read without trusting them.

Knows: how to open the folder once and every file relative to it with O_NOFOLLOW, so that what is checked is
what is read; how to list it within bounds; and how to say which blocks of a file differ from a table.

Does not know: what the files mean, or which of them there ought to be. A hard link is accepted: the content
is under a digest whatever else points to it.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tensure.bundle._blocks import BLOCK_BYTES, leaf_digest
from tensure.errors import DamageError, FormatError

__all__ = ["Damage", "FolderFiles", "damaged_blocks"]

_MAX_LISTED = 20_000
_CHUNK_BYTES = 16 * BLOCK_BYTES


@dataclass(frozen=True, slots=True)
class Damage:
    """One place where a bundle is not what was signed; without a block, the file as a whole."""

    file: str
    block: int | None
    reason: str
    tensors: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """Block, byte range and tensors, as far as they are known."""
        if self.block is None:
            return "whole file"
        return self._block_place(self.block, None)

    def _block_place(self, block: int, size: int | None) -> str:
        start, stop = block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES
        if size is not None and start < size:
            stop = min(stop, size)
        text = f"block {block} (bytes {start} to {stop})"
        if self.tensors:
            more = f" and {len(self.tensors) - 3} more" if len(self.tensors) > 3 else ""
            text += f", tensor {', '.join(self.tensors[:3])}{more}"
        return text

    def error(self, folder: str | os.PathLike[str]) -> DamageError:
        """The exception that says this."""
        file, size = os.path.join(folder, self.file), None
        with suppress(OSError, ValueError):
            size = os.lstat(file).st_size
        return DamageError(
            self.reason,
            file=file,
            place=self.place if self.block is None else self._block_place(self.block, size),
            next_step="Take the bundle from its source again; do not use this one.",
        )


class FolderFiles:
    """An open folder; every access goes through the one descriptor opened here.

    Raises:
        FormatError: `path` is no folder that can be read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (OSError, ValueError) as error:  # a ValueError is Python's, for a NUL in the path
            reason = error.strerror if isinstance(error, OSError) else error
            raise FormatError(
                f"cannot be opened as a folder: {reason}", file=path, wanted="a bundle"
            ) from None
        self.close = weakref.finalize(self, os.close, self._fd)

    def exists(self, name: str) -> bool:
        """Whether the folder has an entry of this name, whatever it is."""
        try:
            os.stat(name, dir_fd=self._fd, follow_symlinks=False)
        except OSError:
            return False
        return True

    def listing(self, folders: frozenset[str]) -> dict[str, str]:
        """Path -> "file" or what else it is, for everything in the folder.

        Only the named subfolders are entered; any other is reported itself.
        """
        found: dict[str, str] = {}
        for path, kind in self._walk("", self._fd, folders):
            found[path] = kind
            if len(found) > _MAX_LISTED:
                raise Damage(path, None, f"more than {_MAX_LISTED} entries").error(self.path)
        return found

    @contextmanager
    def open(self, path: str) -> Iterator[int]:
        """A descriptor of a regular file below the folder, with no link on the way.

        Raises:
            DamageError: it is missing, or something else stands there.
        """
        fds: list[int] = []
        try:
            *folders, name = path.split("/")
            try:
                at = self._fd
                for part in folders:
                    at = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
                    fds.append(at)
                at = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=at)
                fds.append(at)
            except OSError as error:
                raise Damage(path, None, f"cannot be opened: {error.strerror}").error(self.path) from None
            if not stat.S_ISREG(os.fstat(at).st_mode):
                raise Damage(path, None, "is not a regular file").error(self.path)
            yield at
        finally:
            for fd in reversed(fds):
                os.close(fd)

    def size(self, path: str) -> int:
        """Bytes in a file now."""
        with self.open(path) as fd:
            return os.fstat(fd).st_size

    def read(self, path: str, *, max_bytes: int) -> bytes:
        """A whole file of at most `max_bytes`.

        Raises:
            DamageError: missing, no regular file, or larger.
        """
        with self.open(path) as fd:
            size = os.fstat(fd).st_size
            if size > max_bytes:
                reason = f"has {size} bytes where at most {max_bytes} belong"
                raise Damage(path, max_bytes // BLOCK_BYTES, reason).error(self.path)
            return b"".join(_pieces(fd, size))

    def map(self, path: str) -> npt.NDArray[np.uint8]:
        """A whole file as a read-only array of bytes, mapped rather than read."""
        with self.open(path) as fd:
            size = os.fstat(fd).st_size
            if not size:
                empty = np.empty(0, np.uint8)
                empty.flags.writeable = False
                return empty
            return np.frombuffer(mmap.mmap(fd, size, prot=mmap.PROT_READ), np.uint8)

    def digests(
        self, path: str, progress: Callable[[int], None] | None = None
    ) -> tuple[str, list[bytes], int]:
        """SHA-256 (hex), block digests and size of a file as it is on the disk now."""
        whole, leaves, size = hashlib.sha256(), list[bytes](), 0
        with self.open(path) as fd:
            # `_pieces` gives multiples of the block size but for the last piece.
            for piece in _pieces(fd, os.fstat(fd).st_size):
                whole.update(piece)
                view = memoryview(piece)
                leaves += [
                    leaf_digest(view[at : at + BLOCK_BYTES]) for at in range(0, len(view), BLOCK_BYTES)
                ]
                size += len(piece)
                if progress is not None:
                    progress(len(piece))
        return whole.hexdigest(), leaves, size

    def _walk(self, prefix: str, fd: int, folders: frozenset[str]) -> Iterator[tuple[str, str]]:
        with os.scandir(fd) as entries:
            for entry in entries:
                # A name that is no UTF-8 cannot be one that was signed; spelled out, it can be shown.
                path = prefix + os.fsencode(entry.name).decode("utf-8", "backslashreplace")
                if entry.is_symlink():
                    yield path, "a symbolic link"
                elif entry.is_file(follow_symlinks=False):
                    yield path, "file"
                elif not entry.is_dir(follow_symlinks=False):
                    yield path, "neither a file nor a folder"
                elif path not in folders:
                    yield path, "a folder"
                else:
                    inner = os.open(
                        entry.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd
                    )
                    try:
                        yield from self._walk(f"{path}/", inner, folders)
                    finally:
                        os.close(inner)


def damaged_blocks(found: Sequence[bytes], right: Sequence[bytes]) -> list[int]:
    """The blocks whose digests differ, a missing or surplus block included."""
    shared = min(len(found), len(right))
    differ = [i for i in range(shared) if found[i] != right[i]]
    return differ + list(range(shared, max(len(found), len(right))))


def _pieces(fd: int, size: int) -> Iterator[bytes]:
    at = 0
    while at < size:
        piece = os.pread(fd, min(_CHUNK_BYTES, size - at), at)
        # A short read off a block boundary would shift every later block; take only whole blocks.
        if len(piece) < min(_CHUNK_BYTES, size - at):
            piece = piece[: len(piece) // BLOCK_BYTES * BLOCK_BYTES] or piece
        if not piece:
            return
        at += len(piece)
        yield piece
