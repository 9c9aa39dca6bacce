"""A path that a caller handed in, checked once. Knows what the system takes as one, not what lies there."""

from __future__ import annotations

import os
from pathlib import Path

from tensure.errors import InputError

__all__ = ["as_path"]


def as_path(path: object, wanted: str) -> Path:
    """`path` as a Path that can be asked whether it exists.

    Raises:
        InputError: no path at all, or one the system cannot look up: too long, or behind a closed folder.
    """
    if not isinstance(path, str | os.PathLike) or not isinstance(text := os.fspath(path), str):
        raise InputError(f"a {type(path).__name__} is no path", wanted=f"{wanted}, as a str or a Path")
    shown = text if len(text) <= 200 else f"{text[:200]}..."
    try:
        Path(text).exists()
    except OSError as error:
        raise InputError(
            f"cannot be looked up: {error.strerror}",
            file=shown,
            wanted=wanted,
            next_step="Check the path",
        ) from None
    return Path(text)
