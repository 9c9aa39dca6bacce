"""Files and folders that appear whole or not at all.

Knows: how to write a folder (or one file) so that a crash, a kill or a power cut at any point leaves either
what was there before or the complete new thing. Everything is written into a temporary folder beside the
target, every file and folder is fsynced, one rename puts it in place, and the parent is fsynced. Replacing a
folder is one exchange (renameat2 with RENAME_EXCHANGE); where the file system cannot do that we refuse
rather than leave a moment without a folder.

A temporary entry is held under flock by its writer. The next writer beside it removes those that nobody
holds, so a killed process leaves nothing for long and a living one is never disturbed, whatever its process
id, container or thread. On file systems without flock nothing is cleaned.

Every path is opened relative to an open folder with O_NOFOLLOW: a symbolic link below the parent is refused.

Does not know: what the files mean.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, TypeAlias

from tensure.errors import InputError, LimitError

__all__ = [
    "TEMPORARY_PREFIX",
    "DirectoryWriter",
    "write_directory",
    "write_file_atomic",
    "write_files_atomic",
]

TEMPORARY_PREFIX = ".tensure-tmp-"
_TEMPORARY = re.compile(re.escape(TEMPORARY_PREFIX) + r"[0-9a-f]{16}\Z")
_COMPONENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}\Z")
_MAX_DEPTH = 8

_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_RENAME_NOREPLACE = 1
_RENAME_EXCHANGE = 2

Content: TypeAlias = bytes | Callable[[IO[bytes]], None]
"""What a file is to hold: bytes, or what writes them into a stream."""


class DirectoryWriter:
    """Writes the files of a folder that is not in place yet.

    `path` is where the folder lies for now; its last part is already the name it will bear.
    """

    def __init__(self, path: Path, root_fd: int, opened: ExitStack) -> None:
        self.path = path
        self._opened = opened
        self._folders: dict[tuple[str, ...], int] = {(): root_fd}

    def write(self, relative: str, chunks: Iterable[bytes | memoryview]) -> None:
        """Write one new file, durably, making its folders; `relative` is plain parts joined by `/`."""
        *folders, name = _parts(relative)
        fd = os.open(name, _NEW_FILE, 0o644, dir_fd=self._folder(tuple(folders)))
        try:
            for chunk in chunks:
                _write_all(fd, chunk)
            os.fsync(fd)
        finally:
            os.close(fd)

    def sync(self) -> None:
        """Make the entries of every folder durable, deepest first."""
        for parts in sorted(self._folders, key=len, reverse=True):
            os.fsync(self._folders[parts])

    def _folder(self, parts: tuple[str, ...]) -> int:
        if parts not in self._folders:
            parent = self._folder(parts[:-1])
            os.mkdir(parts[-1], 0o755, dir_fd=parent)
            self._folders[parts] = self._hold(parts[-1], parent)
        return self._folders[parts]

    def _hold(self, name: str, parent: int) -> int:
        fd = os.open(name, _OPEN_FOLDER | os.O_NOFOLLOW, dir_fd=parent)
        self._opened.callback(os.close, fd)
        return fd


@contextmanager
def write_directory(
    target: str | os.PathLike[str],
    *,
    replace: bool = False,
    may_replace: Callable[[int], bool] | None = None,
) -> Iterator[DirectoryWriter]:
    """A writer whose folder is put in place as `target` when the block ends without an exception.

    An existing target is refused, or with `replace` exchanged for the new one, if `may_replace` (which is
    given the existing folder, open) says that it is the kind that may be.

    Raises:
        InputError: the target exists (or may not be replaced), or the system refused to write.
    """
    parent, name = _parent_and_name(target)
    with _system_errors(target), ExitStack() as opened:
        parent_fd = _open_folder(parent, opened)
        _check_target(parent_fd, name, target, replace, may_replace)
        _clean_stale(parent_fd)
        temporary, temporary_fd = _make_temporary_folder(parent_fd, opened)
        try:
            os.mkdir(name, 0o755, dir_fd=temporary_fd)
            root_fd = os.open(name, _OPEN_FOLDER | os.O_NOFOLLOW, dir_fd=temporary_fd)
            opened.callback(os.close, root_fd)
            writer = DirectoryWriter(parent / temporary / name, root_fd, opened)
            yield writer
            writer.sync()
            # The new folder's entry must last before it is moved: a rename of a lost entry moves nothing.
            os.fsync(temporary_fd)
            _put_folder(temporary_fd, parent_fd, name, target, replace, may_replace)
            os.fsync(parent_fd)
        finally:
            # After an exchange this is the old folder; after a failure, the unfinished one. What cannot be
            # removed now is removed by the next writer, so a failure here must not hide the outcome.
            with suppress(OSError, LimitError):
                _remove(parent_fd, temporary)


def write_file_atomic(
    path: str | os.PathLike[str], data: Content, *, mode: int = 0o644, replace: bool = False
) -> None:
    """Write one file so that it appears whole or not at all; never through a symbolic link.

    `data` may be a function that writes into the (seekable) stream it is given, for what is too large to
    hold.

    Raises:
        InputError: the file exists and `replace` is false, what exists is no regular file, or the system
            refused to write.
    """
    write_files_atomic([(path, data)], mode=mode, replace=replace)


def write_files_atomic(
    files: Sequence[tuple[str | os.PathLike[str], Content]], *, mode: int = 0o644, replace: bool = False
) -> None:
    """Write files that belong together: each appears whole, and none unless all of them could be written.

    All are staged and synced before the first is put in place, so a full disk changes nothing. Only a crash
    between two renames can leave new beside old.

    Raises:
        InputError: as `write_file_atomic`.
    """
    with ExitStack() as opened:
        staged = [(path, *_stage(path, data, mode, replace, opened)) for path, data in files]
        placed: list[tuple[int, str]] = []
        try:
            for path, parent_fd, temporary, name in staged:
                with _system_errors(path):
                    _put_file(parent_fd, temporary, name, path, replace)
                    placed.append((parent_fd, name))
            for path, parent_fd, _, _ in staged:
                with _system_errors(path):
                    os.fsync(parent_fd)
        except BaseException:
            for parent_fd, name in placed if not replace and len(files) > 1 else ():
                with suppress(OSError):
                    os.unlink(name, dir_fd=parent_fd)
            raise


def _stage(
    path: str | os.PathLike[str], data: Content, mode: int, replace: bool, opened: ExitStack
) -> tuple[int, str, str]:
    """The folder, the temporary file that holds `data` durably, and the name it is to have."""
    parent, name = _parent_and_name(path)
    with _system_errors(path):
        parent_fd = _open_folder(parent, opened)
        existing = _lstat(parent_fd, name)
        if existing is not None and not replace:
            raise _exists(path)
        if existing is not None and not stat.S_ISREG(existing.st_mode):
            raise InputError("exists and is not a regular file", file=path, next_step="Choose another name.")
        _clean_stale(parent_fd)
        temporary, fd = _make_temporary_file(parent_fd, mode, opened)
        opened.callback(_forget, parent_fd, temporary)
        if isinstance(data, bytes):
            _write_all(fd, data)
        else:
            with os.fdopen(os.dup(fd), "w+b") as stream:
                data(stream)
        os.fsync(fd)
    return parent_fd, temporary, name


def _put_file(parent_fd: int, temporary: str, name: str, path: str | os.PathLike[str], replace: bool) -> None:
    if replace:
        os.rename(temporary, name, src_dir_fd=parent_fd, dst_dir_fd=parent_fd)
        return
    try:
        os.link(temporary, name, src_dir_fd=parent_fd, dst_dir_fd=parent_fd, follow_symlinks=False)
    except FileExistsError:
        raise _exists(path) from None
    os.unlink(temporary, dir_fd=parent_fd)


def _forget(parent_fd: int, temporary: str) -> None:
    with suppress(OSError):
        os.unlink(temporary, dir_fd=parent_fd)


# --- putting a folder in place ------------------------------------------------------------------------------


def _check_target(
    parent_fd: int,
    name: str,
    target: str | os.PathLike[str],
    replace: bool,
    may_replace: Callable[[int], bool] | None,
) -> bool:
    """Whether there is a folder to exchange; refuses what must not be touched."""
    existing = _lstat(parent_fd, name)
    if existing is None:
        return False
    if not replace:
        raise _exists(target)
    if not stat.S_ISDIR(existing.st_mode):
        raise InputError("exists and is not a folder", file=target, next_step="Choose another name.")
    fd = os.open(name, _OPEN_FOLDER | os.O_NOFOLLOW, dir_fd=parent_fd)
    try:
        if may_replace is not None and not may_replace(fd):
            raise InputError(
                "exists and is not what it would be replaced by",
                file=target,
                wanted="a folder that this command wrote",
                next_step="Choose another name, or move it away yourself.",
            )
    finally:
        os.close(fd)
    return True


def _put_folder(
    temporary_fd: int,
    parent_fd: int,
    name: str,
    target: str | os.PathLike[str],
    replace: bool,
    may_replace: Callable[[int], bool] | None,
) -> None:
    if _check_target(parent_fd, name, target, replace, may_replace):
        try:
            _renameat2(temporary_fd, name, parent_fd, name, _RENAME_EXCHANGE)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            raise InputError(
                "this file system cannot exchange two folders in one step",
                file=target,
                next_step="Write to a new name, then remove the old folder yourself.",
            ) from None
        return
    try:
        _renameat2(temporary_fd, name, parent_fd, name, _RENAME_NOREPLACE)
    except FileExistsError:
        raise _exists(target) from None
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        # Plain rename refuses a folder that holds anything, so only an empty one made since the check goes.
        os.rename(name, name, src_dir_fd=temporary_fd, dst_dir_fd=parent_fd)


def _renameat2(src_fd: int, src: str, dst_fd: int, dst: str, flags: int) -> None:
    """renameat2(2), which the standard library does not offer; ENOSYS where libc does not either."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    result = function(src_fd, os.fsencode(src), dst_fd, os.fsencode(dst), ctypes.c_uint(flags))
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), dst)


# --- temporary entries --------------------------------------------------------------------------------------


def _make_temporary_folder(parent_fd: int, opened: ExitStack) -> tuple[str, int]:
    for _ in range(16):
        name = TEMPORARY_PREFIX + secrets.token_hex(8)
        os.mkdir(name, 0o700, dir_fd=parent_fd)
        try:
            fd = os.open(name, _OPEN_FOLDER | os.O_NOFOLLOW, dir_fd=parent_fd)
        except FileNotFoundError:
            continue  # a cleaner saw the folder before we could hold it, and took it
        if _claim(parent_fd, name, fd):
            opened.callback(os.close, fd)
            return name, fd
        os.close(fd)
    raise InputError("other writers keep taking our temporary folder", next_step="Try again.")


def _make_temporary_file(parent_fd: int, mode: int, opened: ExitStack) -> tuple[str, int]:
    for _ in range(16):
        name = TEMPORARY_PREFIX + secrets.token_hex(8)
        fd = os.open(name, _NEW_FILE, mode, dir_fd=parent_fd)
        if _claim(parent_fd, name, fd):
            opened.callback(os.close, fd)
            return name, fd
        os.close(fd)
    raise InputError("other writers keep taking our temporary file", next_step="Try again.")


def _claim(parent_fd: int, name: str, fd: int) -> bool:
    """Hold the entry; false if a cleaner saw it between making and holding, and took it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # no flock here: cleaners cannot hold it either, so they leave it alone
    return _is_same(parent_fd, name, fd)


def _clean_stale(parent_fd: int) -> None:
    """Remove our own temporary entries that no living writer holds."""
    for name in os.listdir(parent_fd):
        if not _TEMPORARY.match(name):
            continue
        found = _lstat(parent_fd, name)
        if found is None or found.st_uid != os.geteuid():
            continue
        if not (stat.S_ISDIR(found.st_mode) or stat.S_ISREG(found.st_mode)):
            continue
        with suppress(OSError, LimitError):
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent_fd)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_same(parent_fd, name, fd):
                    _remove(parent_fd, name)
            finally:
                os.close(fd)


def _is_same(parent_fd: int, name: str, fd: int) -> bool:
    named, held = _lstat(parent_fd, name), os.fstat(fd)
    return named is not None and (named.st_dev, named.st_ino) == (held.st_dev, held.st_ino)


def _remove(parent_fd: int, name: str, depth: int = 0) -> None:
    """Remove a file or a folder with all it holds, never following a link out of it."""
    found = _lstat(parent_fd, name)
    if found is None:
        return
    if not stat.S_ISDIR(found.st_mode):
        os.unlink(name, dir_fd=parent_fd)
        return
    if depth > _MAX_DEPTH:
        raise LimitError("a folder nested too deeply to remove", wanted=f"at most {_MAX_DEPTH}")
    fd = os.open(name, _OPEN_FOLDER | os.O_NOFOLLOW, dir_fd=parent_fd)
    try:
        for entry in os.listdir(fd):
            _remove(fd, entry, depth + 1)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=parent_fd)


# --- small things -------------------------------------------------------------------------------------------


def _parts(relative: str) -> list[str]:
    parts = relative.split("/")
    if len(parts) > _MAX_DEPTH or not all(_COMPONENT.match(part) for part in parts):
        raise InputError(
            f"{relative[:120]!r} is no plain relative path", wanted="letters, digits, . _ - and /"
        )
    return parts


def _parent_and_name(target: str | os.PathLike[str]) -> tuple[Path, str]:
    path = Path(target)
    if path.name in ("", "..", "."):
        raise InputError("this path has no last part to write to", file=target, wanted="a new name")
    return path.parent, path.name


def _open_folder(path: Path, opened: ExitStack) -> int:
    fd = os.open(path, _OPEN_FOLDER)
    opened.callback(os.close, fd)
    return fd


def _write_all(fd: int, data: bytes | memoryview) -> None:
    view = memoryview(data).cast("B")
    while len(view):
        view = view[os.write(fd, view) :]


def _lstat(dir_fd: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _exists(target: str | os.PathLike[str]) -> InputError:
    return InputError(
        "exists already",
        file=target,
        wanted="a name that is free",
        next_step="Choose another name, or pass replace=True (--force).",
    )


@contextmanager
def _system_errors(target: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror or error}", file=target) from error
