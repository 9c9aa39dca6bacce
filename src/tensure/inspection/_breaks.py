"""Where a run is to stop: conditions a person writes, and whether a step meets one.

    nan              a NaN or Inf appears that no operand of the step had
    |x|>1e4          an element's magnitude is over a number
    shape=1,*,7,7    a tensor of this shape is made; * is any size
    name=h_*         a tensor of this name is made; * and ? as in file names
    op=conv2d        an op of this name runs
    module=*.attn    a step of this module runs

Knows facts, not values: a condition can be asked of a step long after its tensors are gone.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final, Literal, TypeAlias

from tensure.errors import InputError

from ._records import Step, TensorFacts, Trace

__all__ = ["Break", "largest", "limit_of", "parse_break"]

Kind: TypeAlias = Literal["nan", "over", "shape", "name", "op", "module"]

WANTED: Final = "nan, |x|>NUMBER, shape=1,*,7,7, name=GLOB, op=GLOB or module=GLOB"
MAX_TEXT: Final = 200
MAX_RANK: Final = 64

_OVER: Final = re.compile(r"(?:\|\s*\w+\s*\||abs(?:\(\w*\))?)\s*>\s*(\S+)")
_SIZE: Final = re.compile(r"\*|-1|\d{1,18}")
_GLOBS: Final[tuple[Literal["name", "op", "module"], ...]] = ("name", "op", "module")


@dataclass(frozen=True, slots=True)
class Break:
    """One condition; `parse_break` makes it of its text.

    Args:
        text: as it was written.
        kind: which of the conditions.
        limit: of `over`.
        shape: of `shape`, None for any size.
        pattern: of `name`, `op` and `module`.
    """

    text: str
    kind: Kind
    limit: float = 0.0
    shape: tuple[int | None, ...] = ()
    pattern: str = ""

    def met(self, trace: Trace, step: Step) -> str | None:
        """Why this step meets the condition, in words; None if it does not."""
        if self.kind == "op":
            return f"op {step.op}" if _fits(step.op, self.pattern) else None
        if self.kind == "module":
            return f"module {step.module}" if fnmatchcase(step.module, self.pattern) else None
        for facts in trace.made(step):
            reason = self._met_by(trace, step, facts)
            if reason is not None:
                return reason
        return None

    def _met_by(self, trace: Trace, step: Step, facts: TensorFacts) -> str | None:
        if self.kind == "name":
            return f"tensor {facts.name}" if fnmatchcase(facts.name, self.pattern) else None
        if self.kind == "shape":
            fits = len(facts.shape) == len(self.shape) and all(
                want is None or want == size for want, size in zip(self.shape, facts.shape, strict=True)
            )
            return f"{facts.name} is {facts.type}" if fits else None
        if self.kind == "over":
            top = largest(facts)
            return f"{facts.name} reaches |x| = {top:g}" if top is not None and top > self.limit else None
        found = facts.statistics
        if found is None or not _is_bad(facts) or any(_was_bad(trace, step, name) for name in step.reads):
            return None
        counts = ((found.nans, "NaN"), (found.infinities, "Inf"))
        words = " and ".join(f"{count} {word}" for count, word in counts if count)
        return f"{facts.name} has {words}, the first at element {found.first_nonfinite}"


def parse_break(text: str) -> Break:
    """The condition that a person wrote.

    Raises:
        InputError: it is none; the message offers the nearest one.
    """
    words = text.strip()
    if not words or len(words) > MAX_TEXT:
        raise InputError(f"the condition {words[:60]!r}", wanted=WANTED)
    if words.lower() in ("nan", "inf", "nonfinite"):
        return Break(words, "nan")
    if over := _OVER.fullmatch(words):
        return Break(words, "over", limit=_number(over[1], words))
    key, sep, value = words.partition("=")
    key, value = key.strip().lower(), value.strip()
    if sep and key == "shape":
        return Break(words, "shape", shape=_shape(value, words))
    for kind in _GLOBS:
        if sep and key == kind:
            if not value:
                raise InputError(f"the condition {words!r} names nothing", wanted=f"{kind}=GLOB")
            return Break(words, kind, pattern=value)
    near = difflib.get_close_matches(key, ("nan", "shape", *_GLOBS), n=1)
    raise InputError(
        f"the condition {words!r}",
        wanted=WANTED,
        next_step=f"Did you mean {near[0]!r}?" if near else None,
    )


def limit_of(breaks: Iterable[Break]) -> float | None:
    """The least magnitude that is asked about, so that a run can count the elements over it."""
    return min((item.limit for item in breaks if item.kind == "over"), default=None)


def largest(facts: TensorFacts) -> float | None:
    """The greatest magnitude in a tensor, NaN apart; None where nothing is known."""
    found = facts.statistics
    if found is None:
        return None
    if found.infinities:
        return math.inf
    if found.minimum is None or found.maximum is None:
        return None
    return max(abs(found.minimum), abs(found.maximum))


def _fits(op: str, pattern: str) -> bool:
    """`conv2d` means `tensure::conv2d` too: nobody should have to know where an op comes from."""
    return fnmatchcase(op, pattern) or fnmatchcase(op.rpartition("::")[2], pattern)


def _is_bad(facts: TensorFacts) -> bool:
    found = facts.statistics
    return found is not None and bool(found.nans or found.infinities)


def _was_bad(trace: Trace, step: Step, name: str) -> bool:
    """Whether an operand brought NaN or Inf along from an earlier step.

    A leaf that holds them counts as new where it is first read: no step made them, so this is where they
    come in.
    """
    facts = trace.tensors[name]
    if not _is_bad(facts):
        return False
    if facts.step >= 0:
        return True
    return any(name in earlier.reads for earlier in trace.steps[: step.index])


def _number(text: str, words: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value >= 0 or math.isinf(value):
        raise InputError(f"the condition {words!r}", place=text[:40], wanted="a number of at least 0")
    return value


def _shape(text: str, words: str) -> tuple[int | None, ...]:
    inner = text[1:-1] if text[:1] + text[-1:] in ("[]", "()") else text
    sizes = [part.strip() for part in re.split(r"[,x]", inner)] if inner.strip() else []
    if sizes and not sizes[-1]:
        sizes.pop()  # `(3,)`
    if len(sizes) > MAX_RANK or not all(_SIZE.fullmatch(size) for size in sizes) or not text:
        raise InputError(f"the condition {words!r}", wanted="shape=1,*,7,7, or shape=[] for a scalar")
    return tuple(None if size == "*" else int(size) for size in sizes)
