"""The right output of a convolution: torch in double precision, rounded to f32 once, written to a file.

Shares nothing with our kernels, and no f32 sum with anybody's. Runs in a process of its own; never timed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ._conv_cases import problem_of
from ._records import Json

__all__ = ["setup"]


class Reference:
    """Writes what every engine is compared with."""

    def check(self, case: Json) -> Json:
        """Into the file that the case names; the largest magnitude is what errors are relative to."""
        problem = problem_of(case)
        path = Path(case["params"]["expected"])
        x, w = (torch.from_numpy(a) for a in problem.inputs())
        most = 0.0
        out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=problem.out_shape)
        with torch.inference_mode():
            weights = w.double()
            for i in range(problem.n):
                y = torch.nn.functional.conv2d(x[i : i + 1].double(), weights, stride=problem.stride)
                out[i] = y[0].numpy()
                most = max(most, float(y.abs().max()))
        out.flush()
        return {"max": most, "shape": list(problem.out_shape)}

    def facts(self) -> Json:
        """Nothing is measured here."""
        return {}


def setup() -> Reference:
    """The oracle; it takes no arguments."""
    return Reference()
