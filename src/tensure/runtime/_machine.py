"""This machine: as a Fleet of one measured device, and as the kernels a receipt names.

Knows what can be read from the system and measured in about half a second. Does not know plans.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tensure.bundle import Device, Fleet, Kernels

__all__ = [
    "Ran",
    "host_fleet",
    "num_cores",
    "num_threads",
    "ran_through_kernels",
    "ran_through_torch",
    "read_bandwidth",
]


def host_fleet(name: str = "host") -> Fleet:
    """A Fleet of this machine: instruction set, memory, and quick measurements of arithmetic and bandwidth.

    The measurements take about half a second and are good to some 20 %; `tensure bench` measures properly.
    """
    from tensure import kernels

    device = Device(
        flops={"f32": _matmul_flops()},
        memory=_memory_bytes(),
        bandwidth=read_bandwidth(),
        isa=kernels.isa(),
        source="measured",
    )
    return Fleet({name: device})


def read_bandwidth(num_bytes: int = 256 << 20, seconds: float = 0.3) -> float:
    """Bytes per second that one numpy reduction reads from memory: the best of several passes."""
    array = np.ones(num_bytes // 8, np.float64)
    best = 0.0
    deadline = time.perf_counter() + seconds
    while True:
        begin = time.perf_counter()
        array.max()
        end = time.perf_counter()
        best = max(best, array.nbytes / (end - begin))
        if end > deadline:
            return best


def num_cores() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0))


def num_threads() -> int:
    """Threads to compute with: torch's number once torch is loaded, else OMP_NUM_THREADS, else all cores."""
    torch = sys.modules.get("torch")
    if torch is not None:
        return int(torch.get_num_threads())
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(int(asked), num_cores()) if asked.isdecimal() and int(asked) > 0 else num_cores()


@dataclass(frozen=True, slots=True)
class Ran:
    """What computed an output, as a receipt says it."""

    kernels: Kernels
    exactness: Literal["repeatable", "partition"] = "repeatable"


def ran_through_torch() -> Ran:
    """The Program's steps, op by op."""
    import torch

    from tensure import kernels

    capability = torch.backends.cpu.get_cpu_capability()
    return Ran(
        Kernels(
            build=_build(),
            isa=kernels.isa(),
            torch=f"{torch.__version__} {capability} threads={torch.get_num_threads()}",
            basis="asserted",
        )
    )


def ran_through_kernels(which: str, exactness: Literal["repeatable", "partition"] = "repeatable") -> Ran:
    """Our own kernels alone; torch computed nothing."""
    from tensure import kernels

    return Ran(Kernels(build=f"{_build()}, {which}", isa=kernels.isa(), basis="asserted"), exactness)


def _build() -> str:
    from importlib.metadata import PackageNotFoundError, version  # it loads a mail parser

    try:
        return f"tensure {version('tensure')}"
    except PackageNotFoundError:
        return "tensure, not installed"


def _matmul_flops(size: int = 768, passes: int = 4) -> float:
    square = np.ones((size, size), np.float32)
    best = 0.0
    for _ in range(passes):
        begin = time.perf_counter()
        square @ square
        best = max(best, 2.0 * size**3 / (time.perf_counter() - begin))
    return best


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
