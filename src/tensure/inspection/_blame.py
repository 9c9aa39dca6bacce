"""From a divergent pair to who may have done it: the steps in between, and those that one run has alone.

Knows the regions of both runs. How a fault is put into words is in `_narrow.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from ._align import Pair
from ._common import Common
from ._difference import Finding
from ._narrow import Suspects, explain
from ._pair_judge import PairJudge
from ._records import Step
from ._versions import is_version

__all__ = ["finding_of", "suspects_of"]


def finding_of(common: Common, judge: PairJudge, pair: Pair) -> Finding:
    """The fault behind a divergent pair."""
    steps_a, steps_b, extra_a, extra_b = suspects_of(common, pair)
    innocent = bool(extra_a or extra_b) and judge.does_its_part(pair)
    writer = _overwriter(common, steps_a, steps_b)
    return explain(common.a, common.b, pair, Suspects(steps_a, steps_b, extra_a, extra_b, innocent, writer))


def suspects_of(common: Common, pair: Pair) -> tuple[list[Step], list[Step], list[Step], list[Step]]:
    """A's and B's steps that make a pair of trusted tensors, and those of each that the other lacks."""
    steps_a, _ = common.region(pair.a)
    steps_b = common.region_b(pair)
    extra_a = [step for step in steps_a if common.is_alone(step, common.to_b)]
    return steps_a, steps_b, extra_a, [step for step in steps_b if common.is_alone(step, common.to_a)]


def _overwriter(common: Common, steps_a: Sequence[Step], steps_b: Sequence[Step]) -> Step | None:
    """The step of B that wrote over what A reads here, if B reads what it left."""
    reads_a = {read for step in steps_a for read in step.reads}
    for step in steps_b:
        for read in step.reads:
            maker = common.b.trace.maker(read)
            if maker is None or common.to_a.get(read) in reads_a:
                continue
            if is_version(read) and not any(is_version(name) for name in reads_a):
                return maker
            if any(common.to_a.get(name) in reads_a for name in maker.wrote):
                return maker
    return None
