"""By what torch.distributed multiplies before it sums: the factor of a reduction `PREMUL_SUM`.

FSDP2 reduces with it once a gradient divide factor is set. The reduction that is dispatched says that it has
a factor and not which one, so torch's function that is making the call is asked.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

from torch.distributed import distributed_c10d
from torch.distributed.distributed_c10d import ReduceOp

from tensure.errors import UnsupportedError

__all__ = ["factor_of_call"]


def factor_of_call() -> float:
    """The factor of the innermost collective call under way.

    Raises:
        UnsupportedError: no function of torch.distributed makes it, or the factor is a tensor.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename != distributed_c10d.__file__:
        frame = frame.f_back
    found: Any = None if frame is None else frame.f_locals.get("op")
    if getattr(found, "op", None) == ReduceOp.PREMUL_SUM:
        factor = found.factor
        if isinstance(factor, float | int):
            return float(factor)
    raise UnsupportedError(
        "a reduction by premul_sum with a factor that is not seen",
        wanted="torch.distributed.all_reduce or reduce_scatter, op=ReduceOp.PREMUL_SUM(number)",
    )
