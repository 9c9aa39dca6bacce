"""The bug zoo: small PyTorch training steps with a real bug each, and their repaired twins.

`ENTRIES` lists them all. Importing it runs nothing.
"""

from __future__ import annotations

from . import (
    composed,
    context_parallel,
    data_parallel,
    expert_parallel,
    gradient_norm,
    pipeline,
    sequence_parallel,
    tensor_parallel,
    trainverify_ops,
    trainverify_steps,
)
from ._entry import Entry, Site

__all__ = ["ENTRIES", "Entry", "Site"]

THEMES = (
    trainverify_ops,
    trainverify_steps,
    tensor_parallel,
    sequence_parallel,
    data_parallel,
    composed,
    context_parallel,
    expert_parallel,
    gradient_norm,
    pipeline,
)

ENTRIES: tuple[Entry, ...] = tuple(entry for theme in THEMES for entry in theme.ENTRIES)
