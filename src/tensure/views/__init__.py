"""Records as self-contained HTML pages: no scripts, no outside resources, every name escaped.

No torch, no kernels. `render` takes a Program, a Plan, a ReceiptView or a BundleSummary.
"""

from __future__ import annotations

from ._records import BundleSummary, ReceiptView, TensorRow
from ._render import render

__all__ = ["BundleSummary", "ReceiptView", "TensorRow", "render"]
