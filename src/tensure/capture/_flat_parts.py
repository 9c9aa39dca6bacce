"""Tensors of flat memory as stretches of the model's parameters: which, and their claims, box by box.

A tensor in one dim may hold a part of several parameters one after another, cut anywhere: of FSDP1, of a
sharded optimizer. It is one if it was laid so before our eyes. Knows where things are; nothing of optimizers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch.distributed.fsdp._flat_param import FlatParameter

from tensure.program import Name, Ref

from ._given import local_of
from ._layout import boxes, layout_of
from ._placements import Part, whole_part
from ._tape import WHOLE

if TYPE_CHECKING:
    from ._rank import TracedRank

__all__ = ["Stretch", "claim_flat", "flat_parts", "stretch_of"]

Stretch: TypeAlias = "tuple[str | None, Part]"
"""A parameter of the model, none for what only fills up, and a box of it."""


def flat_parts(
    rank: TracedRank, tensor: torch.Tensor, shapes: Mapping[str, Sequence[int]]
) -> list[Stretch] | None:
    """What lies in a flat tensor, in order; None where that is anything else.

    Args:
        rank: being traced.
        tensor: as it is now.
        shapes: of the model's parameters that may lie in it.
    """
    local = local_of(tensor)
    if local.ndim != 1 or not rank.tape.knows(local) or rank.tape.is_drawn(local):
        return None

    def leaf(name: Name) -> tuple[str, Sequence[int]] | None:
        label = str(name).removesuffix(WHOLE)
        known = label in shapes and (label != str(name) or _is_all(rank, label))
        return (label, shapes[label]) if known else None

    made = layout_of(rank.tape.read(local, ()).name, rank.tape.makers(), leaf)
    if made is None:
        return None
    # Zeros of one's own are no padding; those of a shard of torch's that holds nothing else are.
    is_some = any(name is not None for name, _, _ in made) or isinstance(tensor, FlatParameter)
    if local.numel() and not is_some:
        return None
    return [
        (name, part)
        for name, start, stop in made
        for part in boxes(shapes[name] if name is not None else (stop - start,), *_ends(name, start, stop))
    ]


def claim_flat(rank: TracedRank, tensor: torch.Tensor, parts: Sequence[Stretch], prefix: str) -> None:
    """Say that what lies in a flat tensor now is `prefix` of these parameters."""
    ref = rank.tape.read(local_of(tensor), ())
    for local, label, part, start in taken_apart(parts, prefix, rank.claims):
        rank.claim_value(local, stretch_of(rank, ref, part, start), f"{prefix}{label}", part)


def stretch_of(rank: TracedRank, ref: Ref, part: Part, start: int) -> Ref:
    """A box that lies in a flat value from some element on."""
    end = start + math.prod(part.shape)
    ref = rank.tape.step("slice", (ref,), (), dim=0, start=start, end=end)
    return rank.tape.step("view", (ref,), (), size=part.shape)


def taken_apart(
    parts: Sequence[Stretch], prefix: str, taken: Mapping[str, object]
) -> Iterator[tuple[str, str, Part, int]]:
    """Locals for the boxes of a flat tensor: name, parameter, box, and from which element on."""
    at, new = 0, set[str]()
    for label, part in parts:
        if label is not None:
            local, count = f"{prefix}{label}", 0
            while local in taken or local in new:
                count += 1
                local = f"{prefix}{label}.{count}"
            new.add(local)
            yield local, label, part, at
        at += math.prod(part.shape)


def _is_all(rank: TracedRank, label: str) -> bool:
    part = rank.standing.get(label)
    return part is not None and part == whole_part(rank.captured.shapes[label])


def _ends(name: str | None, start: int, stop: int) -> tuple[int, int]:
    return (0, stop - start) if name is None else (start, stop)
