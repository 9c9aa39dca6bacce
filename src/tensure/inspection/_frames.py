"""The line of the user's code that is running: the innermost frame outside torch and outside this house."""

from __future__ import annotations

import os
import sys
from typing import Final

import torch

__all__ = ["source_line"]

_HERE: Final = os.path.dirname(__file__) + os.sep
_HOUSE: Final = os.path.dirname(os.path.dirname(__file__)) + os.sep
_TORCH: Final = os.path.dirname(torch.__file__) + os.sep
MAX_DEPTH: Final = 200

_foreign: dict[str, str] = {}
"""By path: the file's name, "" where the code in it is not the user's. Not by code object: two of them are
equal when their files are not."""
_DOOR: Final = "<door>"
"""In place of a name: whoever called our own functions is not running the step."""


def source_line() -> str:
    """`file.py:12`, or "" where only the framework is running."""
    frame = sys._getframe(1)
    for _ in range(MAX_DEPTH):
        path = frame.f_code.co_filename
        name = _foreign.get(path)
        if name is None:
            name = _foreign[path] = _file_name(path)
        if name == _DOOR:
            return ""
        if name:
            return f"{name}:{frame.f_lineno}"
        if frame.f_back is None:
            break
        frame = frame.f_back
    return ""


def _file_name(path: str) -> str:
    if path.startswith((_HERE, _TORCH, "<frozen")) or path.endswith(("contextlib.py", "threading.py")):
        return ""
    if path.startswith(_HOUSE):
        return _DOOR
    return os.path.basename(path)
