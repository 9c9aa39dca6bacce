"""Where a verb writes: whatever would stop it there is said before any work starts.

Knows the command line's words for it (`--force`). Does not know how anything is written; whoever writes
checks again.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

__all__ = ["check_target"]


def check_target(path: Path, *, force: bool, is_folder: bool = False) -> None:
    """Refuse a target that is in the way, of another kind, or in a folder that is not there or not ours.

    Raises:
        InputError: with what to do about it.
    """
    from tensure.errors import InputError

    parent = path.absolute().parent
    if path.name in ("", ".."):
        raise InputError("is no name to write to", file=path, next_step="Name a file or folder to make")
    if os.path.isdir(path) and not is_folder:
        raise InputError("is a folder", file=path, next_step=f"Name a file in it: {path}/NAME")
    if os.path.lexists(path) and not force:
        raise InputError(
            "exists already",
            file=path,
            wanted="a name that is free",
            next_step="Choose another name, or pass --force",
        )
    if not os.path.exists(parent):
        raise InputError(
            "its folder does not exist", file=path, next_step=f"mkdir -p {shlex.quote(str(path.parent))}"
        )
    if not os.path.isdir(parent):
        raise InputError("its folder is a file", file=path, next_step="Choose another name")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError("its folder is not writable", file=path, next_step="Choose a folder of your own")
