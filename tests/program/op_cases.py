"""One strategy per listed op: operands and attributes that the op and ATen both accept.

Shapes (sizes 0 and 1 among them), dtypes and attributes are drawn; values come from a drawn seed, with
NaN and infinities among them where the op is elementwise or keeps them.
"""

from __future__ import annotations

from . import op_cases_layers, op_cases_pointwise, op_cases_shapes
from .op_draws import CASES, Case

__all__ = ["CASES", "Case", "op_cases_layers", "op_cases_pointwise", "op_cases_shapes"]
