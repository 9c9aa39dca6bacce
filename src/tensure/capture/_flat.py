"""Flat memory taken apart: a collective on joined tensors as the collectives of its parts.

FSDP copies a layer's shards into one flat buffer, gathers that, and cuts it again; gradients go back the same
way. A gather along dim 0 whose result is read in rows joins the rows of each part, and a reduce-scatter of
rows reduces the columns of each part; so the parts travel alone here, with the same values, and in the
shape that they had before they were flattened. Parts that cannot be told apart stay together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tensure.program import Op, TensorType

from ._flat_pass import Meeting, Pass
from ._flat_rules import RULES

__all__ = ["Meeting", "agree", "apart"]


def apart(
    texts: Sequence[tuple[Sequence[Op], Mapping[str, TensorType], Mapping[str, int]]],
    mesh: Mapping[str, int],
) -> list[tuple[list[Op], tuple[Meeting, ...]]]:
    """The same steps, and beside every joined value what its parts are; whoever can reads the parts.

    What nobody reads any more is left for others to drop. The collectives are told too: it is for all
    members of a group to have the same (`agree`). What ranks gather is cut where it is a joint on all of
    them: uneven shards are padded on some.

    Args:
        texts: of each rank the steps, in order, the types of the values it begins with, and its place.
        mesh: sizes of the axes.
    """
    runs = [Pass(dict(leaves), mesh, place) for _, leaves, place in texts]
    made = [run.run(steps, RULES) for run, (steps, *_) in zip(runs, texts, strict=True)]
    ends: dict[str, frozenset[int]] = {}
    for run in runs:
        for name, found in run.ends.items():
            ends[name] = ends.get(name, found) & found
    if any(found != ends[name] for run in runs for name, found in run.ends.items()):
        runs = [Pass(dict(leaves), mesh, place, ends) for _, leaves, place in texts]
        made = [run.run(steps, RULES) for run, (steps, *_) in zip(runs, texts, strict=True)]
    return [(steps, tuple(run.met)) for run, steps in zip(runs, made, strict=True)]


def agree(ranks: Sequence[tuple[Mapping[str, int], Sequence[Meeting]]], mesh: Mapping[str, int]) -> bool:
    """Whether all members of each group meet with the same; uneven shards leave some ranks other parts.

    Args:
        ranks: of every rank, its place and its collectives.
        mesh: sizes of the axes.
    """
    groups: dict[Any, list[Any]] = {}
    for place, met in ranks:
        for axes, name, op, shape in met:
            rest = tuple(at for axis, at in place.items() if axis not in axes)
            groups.setdefault((axes, rest, name), []).append((op, shape))
    return all(
        len(found) == math.prod(mesh[axis] for axis in axes) and len(set(found)) == 1
        for (axes, _, _), found in groups.items()
    )
