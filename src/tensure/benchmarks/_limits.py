"""What this machine allows at most, measured: bytes read from memory and f32 operations, a second.

A limit is the best of several ways and of several tries: whatever computes slower than this is not limited
by the machine. Knows numpy's and torch's simplest loops and our own reader of memory. Does not know what a
model needs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tensure.errors import TensureError

from ._records import Json
from ._text_engine import memory_facts

__all__ = ["Measurement", "bandwidth", "f32_rate", "register_peak", "setup"]

BUFFER_BYTES: Final = 512 << 20
"""Well beyond any cache of the machines we know, and small beside their memory."""
_TRIES: Final = 7
_MATRIX: Final = 1536
_PEAK_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Measurement:
    """The best rate in `unit`, and how it was reached."""

    value: float
    unit: str
    how: str


def bandwidth(
    threads: int = 1, *, buffer_bytes: int = BUFFER_BYTES, clock: Callable[[], float] = time.perf_counter
) -> Measurement:
    """Bytes per second read from memory with this many threads: the best of several streaming reads."""
    import torch

    array = np.ones(buffer_bytes // 4, np.float32)
    tensor = torch.from_numpy(array)
    parts = np.array_split(array.view(np.uint64), threads)
    torch.set_num_threads(threads)
    with ThreadPoolExecutor(threads) as pool:
        ways: dict[str, Callable[[], object]] = {
            "torch sum": tensor.sum,
            "torch max": tensor.max,
            "numpy or-reduction of 64-bit words": lambda: list(pool.map(np.bitwise_or.reduce, parts)),
            "numpy max": lambda: list(pool.map(_numpy_max, parts)),
            **_own_readers(array.view(np.uint8), threads),
        }
        return _best(ways, array.nbytes, "B/s", clock)


def f32_rate(
    threads: int = 1, *, size: int = _MATRIX, clock: Callable[[], float] = time.perf_counter
) -> Measurement:
    """f32 operations per second of torch's own square matrix product; multiply and add count as two."""
    import torch

    torch.set_num_threads(threads)
    square = torch.ones(size, size)
    out = torch.empty_like(square)
    ways: dict[str, Callable[[], object]] = {
        f"torch matmul of {size} x {size}": lambda: torch.mm(square, square, out=out)
    }
    return _best(ways, 2.0 * size**3, "FLOP/s", clock)


def register_peak(kind: str, threads: int = 1, seconds: float = _PEAK_S) -> Measurement:
    """The most operations per second on registers: multiply-adds ("f32") or dot products ("int8", "bf16").

    Raises:
        UnsupportedError: this processor has no such instruction, or no instruction set is in use.
    """
    from tensure import kernels

    with ThreadPoolExecutor(threads) as pool:
        rates = list(pool.map(lambda _: kernels.measure_peak(kind, seconds), range(threads)))
    words = {"f32": ("FLOP/s", "f32 multiply-adds"), "int8": ("OP/s", "int8 dot products")}
    unit, what = words.get(kind, ("OP/s", f"{kind} dot products"))
    features = ", ".join((kernels.isa(), *kernels.features()))
    return Measurement(sum(rates), unit, f"{what} on registers, {features}")


def _own_readers(data: NDArray[np.uint8], threads: int) -> dict[str, Callable[[], object]]:
    """`kernels.read_memory` in several ways; nothing where the C++ part does not run."""
    from tensure import kernels

    try:
        kernels.isa()
    except TensureError:
        return {}
    return {
        f"own reader, {streams} stream{'' if streams == 1 else 's'}, {prefetch} bytes ahead": partial(
            kernels.read_memory, data, streams=streams, prefetch=prefetch, threads=threads
        )
        for streams in (1, 2, 8)
        for prefetch in (0, 2048, 4096)
    }


def _numpy_max(part: np.ndarray[tuple[int, ...], np.dtype[np.uint64]]) -> object:
    return part.view(np.float32).max()


def _best(
    ways: Mapping[str, Callable[[], object]], work: float, unit: str, clock: Callable[[], float]
) -> Measurement:
    best = Measurement(0.0, unit, "")
    for _ in range(_TRIES):
        for how, way in ways.items():
            begin = clock()
            way()
            rate = work / max(clock() - begin, 1e-9)
            if rate > best.value:
                best = Measurement(rate, unit, how)
    return best


class _LimitsEngine:
    """One limit for a number of threads, in a process of their own so that the caller needs no torch."""

    def limits(self, asked: Json) -> Json:
        threads = asked["threads"]
        return asdict(bandwidth(threads) if asked["kind"] == "bandwidth" else f32_rate(threads))

    def peak(self, asked: Json) -> Json:
        return asdict(register_peak(asked["kind"], asked["threads"], asked["seconds"]))

    def facts(self) -> Json:
        return memory_facts()


def setup() -> _LimitsEngine:
    """The engine; it takes no arguments."""
    return _LimitsEngine()
