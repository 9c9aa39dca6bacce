"""The line of the user's code that is running: the innermost frame outside torch and outside this house."""

from __future__ import annotations

import os
import sys
from types import CodeType
from typing import Final

import torch

__all__ = ["source_line"]

_HERE: Final = os.path.dirname(os.path.dirname(__file__)) + os.sep
_TORCH: Final = os.path.dirname(torch.__file__) + os.sep
MAX_DEPTH: Final = 200

_foreign: dict[CodeType, str] = {}
"""By code object: its file's name, "" where the code is not the user's."""


def source_line() -> str:
    """`file.py:12`, or "" where only the framework is running."""
    frame = sys._getframe(1)
    for _ in range(MAX_DEPTH):
        code = frame.f_code
        name = _foreign.get(code)
        if name is None:
            name = _foreign[code] = _file_name(code.co_filename)
        if name:
            return f"{name}:{frame.f_lineno}"
        if frame.f_back is None:
            break
        frame = frame.f_back
    return ""


def _file_name(path: str) -> str:
    if path.startswith((_HERE, _TORCH, "<frozen")) or path.endswith(("contextlib.py", "threading.py")):
        return ""
    return os.path.basename(path)
