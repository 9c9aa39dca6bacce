"""`gemv`: one row of activations times matrices stored in 4 or 8 bits, read from memory, as in decoding.

Each run multiplies with many copies of a matrix, together well beyond any cache. The figure is the bytes of
our stored weights over the time, for peers too, so that ratios are ratios of times. Does not know how an
engine works.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from ._child import ChildEngine, child_environment, engine_command
from ._declare import benchmark
from ._records import Case, Engine, Json, Limit, Peer, Scope
from ._text_engine import unpack

__all__ = ["CASES", "SIZE", "TOLERANCE", "gemv", "same_products", "stored_bytes"]

SIZE: Final = 4096
"""Rows and columns: the square matrices of a model with seven thousand million weights."""
MEMORY_BYTES: Final = 256 << 20
CACHE_ROWS: Final = 2048
"""Rows of the one matrix that stays in the third-level cache: 4.7 MB in int4."""

#: Format, arithmetic, from where, and the bar on the share of the bandwidth with one thread.
CASES: Final[tuple[tuple[str, str, str, float | None], ...]] = (
    ("int4", "fast", "memory", 0.85),
    ("q4_1", "fast", "memory", None),
    ("q8_0", "fast", "memory", None),
    ("int8", "fast", "memory", None),
    ("int4", "exact", "memory", None),
    ("int4", "fast", "cache", None),
)
_NAMES: Final = {
    "int4": "int4 group 32", "q4_1": "Q4_1 in place", "q8_0": "Q8_0 in place", "int8": "int8 per channel"
}  # fmt: skip
_BITS: Final = {"int4": 18 / 32, "q4_1": 20 / 32, "q8_0": 34 / 32, "int8": 1 + 4 / SIZE}

#: Largest relative error (root mean square) that is still the same product: activations in 8 bits cost 0.5 %
#: here, scales and activations in bf16 0.3 %.
TOLERANCE: Final = 0.015


def stored_bytes(form: str, num_rows: int) -> int:
    """Bytes of a matrix [num_rows, SIZE] as stored, scales included."""
    return round(_BITS[form] * num_rows * SIZE)


def same_products(case: Case, engine: str, reference: Json, output: Json) -> str | None:
    """How two outputs differ, or None: the root mean square of the difference over that of the reference."""
    wanted, found = (unpack(values).astype(np.float64) for values in (reference, output))
    if wanted.shape != found.shape:
        return f"{found.size} products, not {wanted.size}"
    error = float(np.sqrt(np.mean((wanted - found) ** 2) / max(float(np.mean(wanted**2)), 1e-300)))
    return None if error <= TOLERANCE else f"products differ by {error:.2g} relative, over {TOLERANCE:g}"


def _cases(scope: Scope) -> list[Case]:
    cases: list[Case] = []
    for threads in scope.threads:
        for form, arithmetic, source, share in CASES:
            if source == "cache" and threads != scope.threads[0]:
                continue
            rows = CACHE_ROWS if source == "cache" else SIZE
            copies = 1 if source == "cache" else MEMORY_BYTES // stored_bytes(form, rows)
            passes = (400 if source == "cache" else 12) // (4 if scope.quick else 1)
            name = f"{_NAMES[form]}{', exact' if arithmetic == 'exact' else ''}, from {source}"
            params = {
                "form": form, "arithmetic": arithmetic, "rows": rows, "cols": SIZE, "copies": copies,
                "passes": passes,
            }  # fmt: skip
            cases.append(
                Case(
                    f"{name}, {threads} thread{'' if threads == 1 else 's'}",
                    threads,
                    float(stored_bytes(form, rows) * copies * passes),
                    params,
                    share=share if threads == 1 else None,
                )
            )
    return cases


def _limits(scope: Scope, cases: Sequence[Case]) -> list[Limit]:
    """Every stored byte is read once."""
    with ChildEngine(engine_command("limits"), child_environment(scope)) as child:
        found = [
            (threads, child.ask("limits", {"kind": "bandwidth", "threads": threads}))
            for threads in scope.threads
        ]
    return [
        Limit("memory bandwidth", threads, row["value"], row["unit"], row["value"] / 1e9, row["how"])
        for threads, row in found
    ]


def _setup(scope: Scope, *words: str) -> Engine:
    return ChildEngine(engine_command(*words), child_environment(scope))


@benchmark(
    "gemv",
    about=f"one row of activations times matrices of {SIZE} x {SIZE}, GB/s of the weights as we store them",
    metric="GB/s",
    better="higher",
    cases=_cases,
    peers=(Peer("torch", lambda: None, lambda scope: _setup(scope, "gemv torch")),),
    agree=same_products,
    limits=_limits,
)
def gemv(scope: Scope) -> Engine:
    """Our kernels; the cases tell them what to do."""
    return _setup(scope, "gemv")
