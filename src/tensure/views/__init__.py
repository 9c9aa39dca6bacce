"""Records as self-contained HTML pages: no scripts, no outside resources, every name escaped.

No torch, no kernels. `render` takes a Program, a Plan, a ReceiptView or a BundleSummary; `el` and `text` make
Markup that no name can break, for a room that has a page of its own.
"""

from __future__ import annotations

from ._html import Markup, el, text
from ._records import BundleSummary, ReceiptView, TensorRow
from ._render import render

__all__ = ["BundleSummary", "Markup", "ReceiptView", "TensorRow", "el", "render", "text"]
