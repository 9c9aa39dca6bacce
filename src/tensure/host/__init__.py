"""Programs as differentiable torch functions on this machine's processor: the plain way to run one.

Values equal the op table's numpy semantics up to rounding, and every run gives the same bits
(`exact: repeatable`). Faster kernels and many machines are `runtime/`'s business.
"""

from ._conv_op import PackedConv2d
from ._load import load_weights
from ._runner import Runner, zero_states

__all__ = ["PackedConv2d", "Runner", "load_weights", "zero_states"]
