"""Names of memory that was written over: `base@7` is `base` after step 7 wrote through another tensor.

Knows how such names are made (`_watch.py`) and how the new values follow from the old ones and from what was
written: both lie in one storage, at strides that the trace has. Reads no memory but tensors it is given.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

import torch

from ._records import Step, TensorFacts, Trace

__all__ = ["is_version", "previous_version", "rewritten", "split_version"]


_STEP: Final = re.compile(r"0|[1-9][0-9]{0,8}")
"""A step as we write it, and no other digits: a name may come out of a stranger's file."""


def split_version(name: str) -> tuple[str, int]:
    """The base of a name and the step that wrote it over, -1 if it is no such name."""
    base, sep, step = name.rpartition("@")
    return (base, int(step)) if sep and _STEP.fullmatch(step) else (name, -1)


def is_version(name: str) -> bool:
    """Whether a name stands for memory that was written over."""
    return split_version(name)[1] >= 0


def previous_version(trace: Trace, name: str) -> str:
    """The name of the same memory before the step that changed it."""
    base, step = split_version(name)
    earlier = [at for other, at in map(split_version, trace.tensors) if other == base and 0 <= at < step]
    return f"{base}@{max(earlier)}" if earlier else base


def rewritten(
    trace: Trace,
    step: Step,
    made: Mapping[str, torch.Tensor],
    before: Callable[[str], torch.Tensor],
) -> dict[str, torch.Tensor]:
    """What a step that wrote in place left in the tensors that share its memory, by their new names."""
    found: dict[str, torch.Tensor] = {}
    outs = [trace.tensors[out] for out in step.outs if out in made and trace.tensors[out].in_place]
    for name, facts in trace.tensors.items():
        if split_version(name)[1] != step.index or facts.strides is None or facts.step < 0:
            continue
        source = next((out for out in outs if out.storage == facts.storage), None)
        if source is None or source.strides is None:
            continue
        old = before(previous_version(trace, name))
        memory = torch.zeros(max(_end(facts), _end(source)), dtype=old.dtype)
        memory.as_strided(facts.shape, facts.strides, facts.offset).copy_(old)
        memory.as_strided(source.shape, source.strides, source.offset).copy_(made[source.name])
        found[name] = memory.as_strided(facts.shape, facts.strides, facts.offset).clone()
    return found


def _end(facts: TensorFacts) -> int:
    assert facts.strides is not None
    return facts.offset + 1 + sum((n - 1) * s for n, s in zip(facts.shape, facts.strides, strict=True))
