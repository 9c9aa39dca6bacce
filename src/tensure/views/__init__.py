"""Records as self-contained HTML pages: no scripts, no outside resources, every name escaped.

No torch, no kernels. `render` takes a Program, a Plan, a ReceiptView, a ProofView or a BundleSummary; `el`
and `text` make Markup that no name can break, for a room that has a page of its own.
"""

from __future__ import annotations

from . import _proof
from ._html import Markup, el, text
from ._records import BundleSummary, OutputRow, ProofView, ReceiptView, TensorRow
from ._render import render

__all__ = [
    "BundleSummary",
    "Markup",
    "OutputRow",
    "ProofView",
    "ReceiptView",
    "TensorRow",
    "el",
    "render",
    "text",
]

PAGES = (_proof,)
"""Modules that teach `render` a record when they are imported."""
