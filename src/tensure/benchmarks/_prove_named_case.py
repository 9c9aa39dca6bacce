"""Prove one named plan in this process, from its name to a verdict.

    python -m tensure.benchmarks._prove_named_case NAME [LAYERS [LAYER RANK MICROBATCH]]

Prints one JSON object: verdict, where it went wrong, outputs that are only probable, seconds of the clock
from before torch is imported, CPU seconds, peak memory of the process. LAYERS that is not 0 takes so many of
the model's layers. With a fault, of one layer on one rank in one micro-batch, the model is as small as its
cuts allow, so that what the doubt rests on can be run.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

from ._records import Json

__all__ = ["named_case"]


def named_case(name: str, layers: int = 0, fault: tuple[int, int, int] | None = None) -> dict[str, Json]:
    """Prove one plan in this process.

    Raises:
        InputError: a name, or sizes, that no plan has.
        UnsupportedError: a step without a rule.
    """
    begin, cpu = time.perf_counter(), time.process_time()
    import tensure
    from tensure.capture import named_plan

    plan = named_plan(name)
    if layers:
        plan = replace(plan, config=plan.config.replace(layers=layers))
    parallel = plan.parallel
    if fault is not None:
        from ._prove_named_fault import Fault, shrunken, with_fault

        plan = shrunken(plan)
        parallel = with_fault(plan, Fault(*fault))  # type: ignore[assignment]
    found = tensure.prove(parallel, plan.model, mesh=plan.mesh)
    values = found.proof.values
    wrong = values.counterexample
    return {
        "places": found.plan.num_ranks(),
        "status": values.status,
        "where": values.reason if wrong is None else f"{wrong.rank}: {wrong.local}: {wrong.step}",
        "source": "" if wrong is None else wrong.source,
        "outputs": len(found.tensors),
        "probable": sum(item.status == "probable" for item in found.tensors),
        "wall_s": time.perf_counter() - begin,
        "cpu_s": time.process_time() - cpu,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
    }


def main(argv: Sequence[str]) -> None:
    """Prove one plan and print what came of it."""
    layers, *place = [int(word) for word in argv[1:]] or [0]
    fault = (place[0], place[1], place[2]) if place else None
    print(json.dumps(named_case(argv[0], layers, fault)))


if __name__ == "__main__":
    main(sys.argv[1:])
