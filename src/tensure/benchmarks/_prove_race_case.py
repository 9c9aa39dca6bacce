"""Prove our own Llama of the sizes of one of TrainVerify's saved plans, in this process.

    python -m tensure.benchmarks._prove_race_case DP TP PP MICRO_BATCHES

Prints one JSON object: the verdict. The program is ours, a PyTorch step that is captured here; it is not
their saved graph, which nothing of ours reads. Theirs ends in the sum of all logits, ours in a cross entropy.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from tensure.api import prove
from tensure.capture import MODELS, NamedPlan, named_plan

from ._records import Json

__all__ = ["BATCH", "SIZES", "race_case"]

#: Sizes of their Llama, as its configuration gives them: no grouped queries, a vocabulary of its own. The
#: feed-forward is 8/3 of the hidden size, rounded up to a multiple of 256.
SIZES: Final = MODELS["llama3-8b"].replace(
    layers=2,
    hidden=4096,
    heads=32,
    kv_heads=32,
    inner=11008,
    vocabulary=51200,
    sequence=128,
    source="Verdict/gen_model/model/llama3/model.py of microsoft/nnscaler, branch verdictAE",
)
BATCH: Final = 512
"""Sequences of a step."""


class RacePlan(NamedPlan):
    """May have fewer layers than stages, as theirs may: a stage without one passes on what it gets."""

    def __post_init__(self) -> None:
        """Nothing is refused: sizes are those above."""


def race_case(dp: int, tp: int, pp: int, micro_batches: int) -> dict[str, Json]:
    """Capture and prove one plan in this process."""
    named = named_plan(f"llama3-8b@dp{dp}-tp{tp}-pp{pp}-mb{micro_batches}")
    plan = RacePlan(named.name, SIZES, replace(named.sizes, sequences=BATCH // dp // micro_batches))
    proof = prove(plan.parallel, plan.model, mesh=plan.mesh).proof.values
    return {"status": proof.status, "reason": proof.reason}


def main(argv: Sequence[str]) -> None:
    """Prove one plan and print what came of it."""
    dp, tp, pp, micro_batches = map(int, argv)
    print(json.dumps(race_case(dp, tp, pp, micro_batches)))


if __name__ == "__main__":
    main(sys.argv[1:])
