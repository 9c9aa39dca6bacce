"""Whether a pair that differs is a fault there and then, or may be made up for by what comes after it.

Leaves may have something folded into them, and `4 * x` for `2 * x` is no fault if the program goes on with
another factor in another place. Knows pairs and their steps. Of values it knows what the judge of pairs says.
"""

from __future__ import annotations

from typing import Final

from ._align import Pair
from ._common import Common
from ._pair_judge import PairJudge, same_digest
from ._records import Step

__all__ = ["Doubt"]

MAX_DOUBT: Final = 64
"""Steps over which other arguments may still be made up for by a later difference."""


class Doubt:
    """Tells what must mean the same from what may not."""

    def __init__(self, common: Common, judge: PairJudge) -> None:
        self.common, self.a, self.b, self.judge = common, common.a, common.b, judge
        self.differ_later = self._differ_later()
        """Tensors of A that come into a later step which B lacks, or has with other arguments."""

    def is_sure(self, pair: Pair) -> bool:
        """Whether a pair that differs must mean the same: no leaf, nor made of a leaf that is in doubt."""
        step = self.a.trace.maker(pair.a)
        if not pair.sure or step is None or self.changed_arguments(pair):
            return False
        return not any(
            read in self.common.aside and self.a.trace.tensors[read].step < 0 for read in step.reads
        )

    def is_final(self, pair: Pair) -> bool:
        """Whether nothing after a pair that differs can make up for other arguments before it.

        `4 * x` for `2 * x` is a fault, unless the program goes on with another factor in another place.
        """
        if pair.a not in self.differ_later:
            return True
        steps, inner = self.common.region(pair.a)
        return len(steps) > MAX_DOUBT or not any(
            name in self.common.aside and self.does_otherwise(self.common.aside[name]) for name in inner
        )

    def changed_arguments(self, pair: Pair) -> bool:
        """Whether the two steps do the same op with other arguments."""
        one, other = self.a.trace.maker(pair.a), self.b.trace.maker(pair.b)
        return one is not None and other is not None and _have_other_arguments(one, other)

    def does_otherwise(self, pair: Pair) -> bool:
        """Whether the two steps' arguments differ in more than their spelling."""
        return self.changed_arguments(pair) and (
            self.changed_on_the_same(pair) or not self.judge.does_its_part(pair)
        )

    def changed_on_the_same(self, pair: Pair) -> bool:
        """Whether other arguments gave another result of the very same operands: that is no rounding."""
        one, other = self.a.trace.maker(pair.a), self.b.trace.maker(pair.b)
        if one is None or other is None or not self.changed_arguments(pair):
            return False
        return len(one.reads) == len(other.reads) and all(
            same_digest(self.a.trace.tensors[x], self.b.trace.tensors[y])
            for x, y in zip(one.reads, other.reads, strict=True)
        )

    def _differ_later(self) -> set[str]:
        """What comes into a step that the runs do not share as it is."""
        found: set[str] = set()
        for step in reversed(self.a.trace.steps):
            if any(out in found for out in step.outs) or self._is_only_in_a(step):
                found.update(step.reads)
        return found

    def _is_only_in_a(self, step: Step) -> bool:
        """Whether B has no such step, one with other arguments, or a step of its own before it."""
        if self.common.is_alone(step, self.common.to_b):
            return True
        makers = [self.b.trace.maker(self.common.to_b[out]) for out in step.outs if out in self.common.to_b]
        for other in makers:
            if other is None:
                continue
            before = [self.b.trace.maker(read) for read in other.reads]
            if _have_other_arguments(step, other) or any(
                maker is not None and self.common.is_alone(maker, self.common.to_a) for maker in before
            ):
                return True
        return False


def _have_other_arguments(a: Step, b: Step) -> bool:
    """Whether two steps do the same op with other arguments."""
    return a.op == b.op and a.arguments != b.arguments
