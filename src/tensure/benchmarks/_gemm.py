"""`gemm` and `gemm-bf16`: products of bytes and of bfloat16, beside oneDNN as PyTorch calls it.

Convolutions of bytes are those of the im2win papers that an int8 network has the like of, uint8 in and uint8
out, each output requantized; matrix products of bytes give f32, as a quantized linear layer does. An
operation on bytes counts like a FLOP. Does not know how an engine works.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Final

import numpy as np

from ._child import ChildEngine, child_environment, engine_command
from ._conv_cases import layer
from ._declare import benchmark
from ._pace import Pace
from ._records import Case, Engine, EngineError, Json, Limit, Peer, Scope
from ._text_engine import unpack

__all__ = ["LAYERS", "MATRICES", "gemm", "gemm_bf16", "same_outputs"]

LAYERS: Final = ("conv8", "conv9", "conv10", "conv11")
SHARE: Final = 0.70
"""Of the measured peak, asked of the convolutions of bytes with one thread."""
#: M, N, K: activations [M, K] times weights [N, K]
MATRICES: Final = ((1024, 1024, 1024), (64, 4096, 1024), (16, 1024, 4096))
_RUN_OPERATIONS: Final = 2e10
"""One run is about this many operations: some 50 ms, far above what a clock and a call cost."""
#: Largest difference: steps of uint8, since others round once, over f32; else a share of the largest output,
#: where bfloat16 outputs have 8 bits and f32 sums of bfloat16 their own order.
_STEPS: Final = 1.0
_SHARES: Final = {"int8": 1e-6, "bf16": 0.005}


def same_outputs(case: Case, engine: str, reference: Json, output: Json) -> str | None:
    """How a sample of two outputs differs, or None."""
    wanted, found = (unpack(values).astype(np.float64) for values in (reference, output))
    if wanted.shape != found.shape:
        return f"{found.size} outputs, not {wanted.size}"
    error = float(np.abs(wanted - found).max(initial=0.0))
    form = case.params["form"]
    largest = float(np.abs(wanted).max(initial=0.0))
    bound = _STEPS if "problem" in case.params else _SHARES[form] * largest
    return None if error <= bound else f"off by {error:.2g}, over {bound:.2g}"


def _cases(scope: Scope, form: str) -> list[Case]:
    made: list[tuple[str, float, dict[str, Json], float | None]] = []
    if form == "int8":
        for name in LAYERS:
            problem = layer(name, 1)
            made.append((f"{name} int8", float(problem.flops), {"problem": asdict(problem)}, SHARE))
    for m, n, k in MATRICES:
        made.append((f"{m} x {n} x {k} {form}", 2.0 * m * n * k, {"matrix": [m, n, k]}, None))
    cases: list[Case] = []
    for threads in scope.threads:
        for name, operations, params, share in made:
            repeats = math.ceil(_RUN_OPERATIONS / operations / (4 if scope.quick else 1))
            cases.append(
                Case(
                    name if threads == 1 else f"{name}, {threads} threads",
                    threads,
                    operations * repeats,
                    {"form": form, "repeats": repeats, **params},
                    share=share if threads == 1 else None,
                )
            )
    return cases


def _limits(scope: Scope, form: str) -> list[Limit]:
    """Dot products on registers; none where the processor has no such instruction."""
    try:
        with ChildEngine(engine_command("limits"), child_environment(scope)) as child:
            found = [
                (threads, child.ask("peak", {"kind": form, "threads": threads, "seconds": 0.5}))
                for threads in scope.threads
            ]
    except EngineError:
        return []
    return [
        Limit(f"{form} dot products", threads, row["value"], row["unit"], row["value"] / 1e9, row["how"])
        for threads, row in found
    ]


def _setup(scope: Scope, name: str) -> Engine:
    return ChildEngine(engine_command(name), child_environment(scope))


_PEERS: Final = (Peer("PyTorch (oneDNN)", lambda: None, lambda scope: _setup(scope, "gemm torch")),)


def _int8_cases(scope: Scope) -> list[Case]:
    return _cases(scope, "int8")


def _int8_limits(scope: Scope, cases: Sequence[Case]) -> list[Limit]:
    return _limits(scope, "int8")


def _bf16_cases(scope: Scope) -> list[Case]:
    return _cases(scope, "bf16")


def _bf16_limits(scope: Scope, cases: Sequence[Case]) -> list[Limit]:
    return _limits(scope, "bf16")


@benchmark(
    "gemm",
    about="int8 convolutions (uint8 to uint8) and matrix products (uint8 to f32); an operation on bytes "
    "counts like a FLOP",
    metric="GFLOP/s",
    better="higher",
    cases=_int8_cases,
    peers=_PEERS,
    agree=same_outputs,
    limits=_int8_limits,
    pace=lambda scope: Pace(scope, "int8"),
    threads=(1,),
)
def gemm(scope: Scope) -> Engine:
    """Our products of bytes."""
    return _setup(scope, "gemm")


@benchmark(
    "gemm-bf16",
    about="matrix products of bfloat16 with f32 sums, bfloat16 out",
    metric="GFLOP/s",
    better="higher",
    cases=_bf16_cases,
    peers=_PEERS,
    agree=same_outputs,
    limits=_bf16_limits,
    pace=lambda scope: Pace(scope, "bf16"),
    threads=(1,),
)
def gemm_bf16(scope: Scope) -> Engine:
    """Our products of bfloat16."""
    return _setup(scope, "gemm")
