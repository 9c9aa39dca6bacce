"""The bug zoo: small PyTorch training steps with a real bug each, and their repaired twins.

`ENTRIES` lists them all. Importing it runs nothing.
"""

from __future__ import annotations

from . import context_parallel, trainverify_ops, trainverify_steps
from ._entry import Entry, Site

__all__ = ["ENTRIES", "Entry", "Site"]

ENTRIES: tuple[Entry, ...] = tuple(
    entry for theme in (trainverify_ops, trainverify_steps, context_parallel) for entry in theme.ENTRIES
)
