"""Ops of which every operand has one right result to the bit: those that IEEE 754 rounds once.

A sum of two numbers, a product, a quotient, a square root: whatever machine, thread or vector width computes
them, the nearest number is the answer. So a bound is too kind to them: a fault of one unit in the last place
(another epsilon, added to something large) is no rounding. Knows single steps. Does not know the other run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch

from ._explain import same_bits
from ._families import family
from ._recording import Recording
from ._records import Step

__all__ = ["is_off_by_itself"]

_ONCE: Final = frozenset({"add", "sub", "mul", "div", "sqrt"})
_DTYPES: Final = frozenset({"f32", "f64"})
"""What is computed in its own precision; narrower numbers may be rounded twice on the way."""


def is_off_by_itself(run: Recording, name: str, read: Callable[[str], torch.Tensor]) -> bool:
    """Whether a tensor is not, to the bit, what its step must make of its operands as they were.

    False wherever more than one result is right, and where the step cannot be computed again. Numbers too
    small to be normal are let pass: a processor may be told to take them for zero.

    Args:
        run: whose tensor it is.
        name: the tensor.
        read: the run's tensors by name, in their own dtypes.
    """
    step = run.trace.maker(name)
    if step is None or step.outs[0] != name or not _rounds_once(run, step):
        return False
    try:
        made = run.replays[step.index](read)
    except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):
        return False
    found = read(name)
    if not made or made[0].shape != found.shape or made[0].dtype != found.dtype:
        return False
    right = made[0]
    tiny = torch.finfo(found.dtype).tiny
    return not bool((same_bits(right, found) | ((right.abs() < tiny) & (found.abs() < tiny))).all())


def _rounds_once(run: Recording, step: Step) -> bool:
    arguments = dict(step.arguments)
    if family(step.op) not in _ONCE or step.index not in run.replays:
        return False
    if arguments.get("alpha", 1) != 1 or arguments.get("rounding_mode") is not None:
        return False
    facts = [run.trace.tensors[key] for key in (*step.reads, *step.outs)]
    dtypes = {item.dtype for item in facts}
    return len(dtypes) == 1 and dtypes <= _DTYPES and all(item.device == "cpu" for item in facts)
