"""Programs as differentiable torch functions on this machine's processor: the plain way to run one.

Values equal the op table's numpy semantics up to rounding, and every run gives the same bits
(`exact: repeatable`). Faster kernels and many machines are `runtime/`'s business.
"""

from ._conv_op import PackedConv2d
from ._dtypes import dtype_word
from ._load import load_weights
from ._runner import Observer, Runner, zero_states
from ._single import run_op

__all__ = ["Observer", "PackedConv2d", "Runner", "dtype_word", "load_weights", "run_op", "zero_states"]
