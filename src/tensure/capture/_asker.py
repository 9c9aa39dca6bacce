"""Who asks where a rank stands: somebody's code, torch's, or what only keeps books.

Told by the innermost frame that is not plumbing. Knows torch's files by name; knows nothing of answers.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from types import FrameType
from typing import Final

import torch
from torch.distributed import distributed_c10d as c10d

from ._ours import is_ours

__all__ = ["asker", "tells_user"]

_TORCH: Final = os.path.dirname(torch.__file__) + os.sep
_CAPTURE: Final = os.path.dirname(__file__) + os.sep
_PLUMBING: Final = ("_asker", "_changes", "_coordinate", "_softening", "_watch", "_world")
_BETWEEN: Final = (
    *(os.path.join(_CAPTURE, f"{name}.py") for name in _PLUMBING),
    os.__file__,
    Mapping.__contains__.__code__.co_filename,
    os.path.join(_TORCH, "distributed", "c10d_logger.py"),
)
_MESH: Final = os.path.join(_TORCH, "distributed", "device_mesh.py")
_C10D: Final = c10d.__file__
_BOOKKEEPING: Final = frozenset(
    "new_group _new_group_with_tag split_group _new_process_group_helper init_process_group "
    "destroy_process_group _store_based_barrier _warn_not_in_group".split()
)
"""What makes and names groups: it reads a rank to know the groups it is in, and those are seen as axes."""
_TELLING: Final = frozenset(
    "compute_local_shape_and_global_offset _compute_local_shape_and_global_offset "
    "visualize_sharding __create_chunk_list__".split()
)
"""Torch's functions that answer with numbers that follow from a place."""


def asker() -> tuple[str, FrameType | None]:
    """Who asks: `user`; `torch`; `ours`, or torch's own book-keeping, which learns nothing of a place."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename in _BETWEEN:
        if frame.f_code.co_name == "_get_msg_dict":
            return "ours", frame  # a line in a log
        frame = frame.f_back
    if frame is None:
        return "user", None
    path = frame.f_code.co_filename
    if is_ours(path) or path == _MESH:
        return "ours", frame
    if path == _C10D:
        # It asks on behalf of sends and scatters, compares, and can do so with what is watched.
        return ("ours" if frame.f_code.co_name in _BOOKKEEPING else "user"), frame
    return ("torch" if path.startswith(_TORCH) else "user"), frame


def tells_user(frame: FrameType | None) -> bool:
    """Whether torch asks in order to tell somebody's code."""
    called = ""
    while frame is not None and frame.f_code.co_filename.startswith(_TORCH):
        called, frame = frame.f_code.co_name, frame.f_back
    return called in _TELLING
