"""Opening a model file as read-only bytes, without being led elsewhere.

Knows: regular files only, no blocking on pipes, one mapping that outlives the descriptor. Does not know any
format. A file shortened while it is mapped faults the process (SIGBUS): do not edit model files in use.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat

import numpy as np
import numpy.typing as npt

from tensure.errors import FormatError, InputError

__all__ = ["map_file"]


def map_file(
    path: str | os.PathLike[str],
    *,
    folder: int | None = None,
    follow_symlinks: bool = True,
    single_link: bool = False,
) -> npt.NDArray[np.uint8]:
    """The whole file as a read-only 1-D byte array that is paged in on use.

    Args:
        path: the file; relative to `folder` if that is given.
        folder: an open directory descriptor.
        follow_symlinks: False refuses a symbolic link in the last component.
        single_link: True refuses a file that has another name as well: a hard link leads elsewhere too.

    Raises:
        InputError: it cannot be opened. FormatError: it is empty, no regular file, or has another name.
    """
    # Non-blocking, so that a pipe with no writer is refused below instead of waited for.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow_symlinks else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags, dir_fd=folder)
    except (OSError, ValueError) as error:
        refused_link = not follow_symlinks and getattr(error, "errno", None) == errno.ELOOP
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(
            f"cannot open: {'it is a symbolic link' if refused_link else reason}",
            file=path,
            wanted="a readable regular file",
        ) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise FormatError("not a regular file", file=path, wanted="a regular file")
        if single_link and status.st_nlink != 1:
            raise FormatError(f"it has {status.st_nlink} names (hard links)", file=path, wanted="one")
        if status.st_size == 0:
            raise FormatError("the file is empty", file=path)
        mapping = mmap.mmap(descriptor, status.st_size, access=mmap.ACCESS_READ)
    except (OSError, ValueError, OverflowError) as error:
        raise InputError(f"cannot map: {error}", file=path) from error
    finally:
        os.close(descriptor)
    return np.frombuffer(mapping, dtype=np.uint8)
