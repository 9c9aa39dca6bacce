"""What `tensure prove` tells of a verdict and its outputs in a terminal: the fact first, and few lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tensure.bundle import Verdict
    from tensure.proving import TensorVerdict

__all__ = ["HELD", "tensor_lines", "verdict_words"]

HELD: Final = ("proved", "derived")
MAX_LINES: Final = 6
"""Outputs that are told of one by one."""
WIDTH: Final = 200
"""Characters of such a line."""


def verdict_words(verdict: Verdict, factor: str = "") -> str:
    """What stands behind a verdict's method.

    Args:
        factor: by what outputs are off, if one number says it of all that are.
    """
    example = verdict.counterexample
    if example is not None:
        at = f" at [{', '.join(map(str, example.index))}]" if example.index else ""
        step = _with_line(example.step, example.source)
        if not example.claim:  # a hang is no wrong value
            return f"\n  {example.rank}: {step}"
        claim = "the model's" if example.claim == example.local else example.claim
        found = f"{example.rank}: {example.local} is not {claim}{at}"
        return "".join(f"\n  {line}" for line in (factor, found, step) if line)
    if verdict.error is not None:
        return f", wrong with a chance below {verdict.error:.1e}"
    return f": {verdict.reason}" if verdict.reason else ""


def tensor_lines(tensors: Sequence[TensorVerdict], *, is_full: bool = False) -> Iterator[str]:
    """A line for each output that is not derived, those shown wrong first; one for all that are cut short.

    Args:
        is_full: every output, derived ones too, and every line in full.
    """
    if is_full:
        for tensor in tensors:
            yield f"{tensor.name}: {tensor.status}" if tensor.status in HELD else _line(tensor, None)
        return
    groups: dict[str, list[TensorVerdict]] = {}
    left = [tensor for tensor in tensors if tensor.status not in HELD]
    cut_short = [tensor for tensor in left if not tensor.step and not tensor.rank]
    if cut_short:  # where ranks do not come to the end, what is odd of others is no news
        left = [*cut_short, *(tensor for tensor in left if tensor not in cut_short)]
    for tensor in sorted(left, key=lambda tensor: tensor.status != "refuted"):
        is_one = not cut_short or tensor.status == "refuted"
        key = tensor.name if is_one else tensor.status
        groups.setdefault(key, []).append(tensor)
    for group in list(groups.values())[:MAX_LINES]:
        yield _line(group[0], WIDTH) if len(group) == 1 else _line(group[0], WIDTH, len(group) - 1)
    more = sum(map(len, list(groups.values())[MAX_LINES:]))
    if more:
        yield f"and {more} more (--verbose, --json or --html has all)"


def _line(tensor: TensorVerdict, width: int | None, others: int = 0) -> str:
    name = f"{tensor.name} and {others} more" if others else tensor.name
    head = f"{name}: {tensor.status}, {f'{tensor.rank}: ' if tensor.rank else ''}"
    why, end = tensor.why, ""
    if tensor.factor:
        times = f"it is {tensor.factor} times the model's"
        why = times if width is not None else f"{times}; {why}"
    if tensor.step:
        end = f"; since {tensor.step} ({tensor.source or 'line unknown'})"
    room = None if width is None else max(width - len(head) - len(end), 40)
    if room is not None and len(why) > room:
        why = f"{why[: room - 3].rstrip()}..."
    return f"{head}{why}{end}"


def _with_line(step: str, source: str) -> str:
    """A step with its line, unless its words end with that already."""
    return step if not source or step.endswith(f"({source})") else f"{step} ({source})"
