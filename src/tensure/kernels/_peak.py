"""What one core computes at most, measured: the checked face of native/peak.

A kernel's speed is told as a share of this. Loops of one instruction on registers; CPU time of the calling
thread. Knows no kernel.
"""

from __future__ import annotations

from typing import Final

from tensure.errors import InputError, UnsupportedError
from tensure.kernels._conv_geometry import check_choice
from tensure.kernels._isa import native

__all__ = ["PEAK_KINDS", "measure_peak"]

PEAK_KINDS: Final = ("f32", "int8", "bf16")
"""In the order of PeakKind in native/peak/peak.h."""
MAX_SECONDS: Final = 60.0


def measure_peak(kind: str, seconds: float = 0.2) -> float:
    """Operations per second of one core, a multiplication and an addition counting as two.

    The best of 16 slices, so that a disturbance does not count. With the instruction set and the features in
    use: TENSURE_ISA and TENSURE_FEATURES change it.

    Args:
        kind: "f32" (fused multiply-adds), "int8" (dot products of bytes: the feature "vnni", or the best the
            set has without) or "bf16" (dot products of bfloat16).
        seconds: of CPU time, about.

    Raises:
        InputError: seconds is no number above 0 and at most 60.
        UnsupportedError: no such kind, or the processor has no such instruction.
    """
    index = check_choice("kind", kind, PEAK_KINDS)
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds <= MAX_SECONDS:
        raise InputError(f"got {seconds!r:.60}", place="seconds", wanted="a number above 0, at most 60")
    module = native()
    lacks = module.peak_lacks(index)
    if lacks:
        raise UnsupportedError(lacks, place="kind", wanted="a processor that has them, or another kind")
    return module.measure_peak(index, float(seconds))
