"""The command line: one file per verb, no logic of its own."""

from __future__ import annotations

from ._main import main

__all__ = ["main"]
