"""Whose code a frame runs: ours, which traces, or what is traced. The named models are traced."""

from __future__ import annotations

import os
from typing import Final

__all__ = ["is_ours"]

_CAPTURE: Final = os.path.dirname(__file__) + os.sep
_NAMED: Final = os.path.join(_CAPTURE, "_named") + os.sep


def is_ours(path: str) -> bool:
    """Whether a file is one of those that trace."""
    return path.startswith(_CAPTURE) and not path.startswith(_NAMED)
