"""A claim that no rule derives, and the words for the step it is of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tensure.program import Op, where

STRANGE: Final = "numbers that the model draws"
"""What is claimed of random numbers; in doubt where they stand for none of the model's."""


@dataclass(frozen=True, slots=True)
class Doubt:
    """A claim that no rule derives, or a plan that cannot go on.

    `order` is the place in the order of production; locals are named as they are printed.
    """

    order: int
    rank: str
    local: str
    claim: str
    step: str
    source: str
    why: str


def step_words(step: Op | None) -> tuple[str, str]:
    """A step and its source line, as a doubt tells them."""
    if step is None:
        return "supplied", ""
    source = next((str(value) for key, value in step.note if key == "source"), "")
    key = f" key={step.attr('key')}" if step.op == "recv" else ""
    return where(step).split(" at ")[0] + key, source
