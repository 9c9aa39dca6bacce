"""Prove the gate's plan at one size, in this process.

    python -m tensure.benchmarks._prove_gate_case LAYERS DP TP PP MICRO_BATCHES [FAULT]

Prints one JSON object: verdict, where it went wrong, CPU seconds of prover and checker together, peak memory
of the process. A correct plan has the dims of a real model: parts are runs of indices, whatever they span.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Sequence

from tensure.proving import prove_plan

from ._prove_gate_plan import REAL, Shape, gate_plan, gate_program
from ._records import Json


def gate_case(shape: Shape, fault: str | None = None) -> dict[str, Json]:
    """Prove one plan in this process."""
    program = gate_program(shape)
    plan = gate_plan(shape, program, fault)
    begin = time.process_time()
    # Few ranks are taken together as many are, so that the two costs can be compared.
    proof = prove_plan(plan, program, fold=tuple(plan.mesh)).proof.values
    spent = time.process_time() - begin
    wrong = proof.counterexample
    where = proof.reason if wrong is None else f"{wrong.rank}: {wrong.local}: {wrong.step}"
    return {
        "ranks": plan.num_ranks(),
        "status": proof.status,
        "where": where,
        "cpu_s": spent,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
    }


def main(argv: Sequence[str]) -> None:
    """Prove one plan and print what came of it."""
    layers, dp, tp, pp, micro_batches = (int(word) for word in argv[:5])
    fault = argv[5] if len(argv) > 5 else None
    sizes = REAL if fault is None else None  # a replay of a fault runs the model
    print(json.dumps(gate_case(Shape(layers, dp, tp, pp, micro_batches, sizes=sizes), fault)))


if __name__ == "__main__":
    main(sys.argv[1:])
