"""Which step keeps a walk from its end, when all ranks wait for one another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tensure.bundle import Plan, Rank, coordinates
from tensure.errors import RecordError
from tensure.program import Affine, Op


def waiting(
    plan: Plan, current: Mapping[Rank, Op | None], streams: Mapping[Rank, Iterator[Op]]
) -> tuple[Rank, Op] | None:
    """A receive that no step to come answers, or else the first rank that waits.

    Args:
        current: the step each rank stands at; None where it came to its end.
        streams: the steps to come, which are used up.
    """
    heads = [(rank, step) for rank, step in current.items() if step is not None]
    coming: set[tuple[Rank, object]] = set()
    for rank, steps in streams.items():
        for step in steps:
            if step.op == "send":
                try:
                    coming.add((_receiver(plan, rank, step), step.attr("key")))
                except RecordError:
                    continue
    for rank, step in heads:
        if step.op == "recv" and (rank, step.attr("key")) not in coming:
            return rank, step
    return heads[0] if heads else None


def _receiver(plan: Plan, rank: Rank, step: Op) -> Rank:
    """Whom a send is for, without its payload."""
    track, at = step.attr("to"), step.attr("at")
    if not isinstance(track, str) or track not in plan.tracks:
        raise RecordError(f"send to {track!r}")
    own = coordinates(plan, rank)
    ends = at if isinstance(at, tuple) else tuple(own.get(axis, 0) for axis in plan.tracks[track].axes)
    return Rank(track, tuple(part for part in ends if isinstance(part, (int, Affine))))
