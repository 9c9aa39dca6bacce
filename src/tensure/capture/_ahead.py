"""Traces of ranks in several processes, each as it would have been made here.

What is traced ahead of time is kept until it is asked for, and forgotten if it never is; so what is found
does not hang on how many processes there are. Knows nothing of what is asked for, or why.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeAlias

import torch

from tensure.program import spread

from ._model import Captured
from ._rank import TracedRank

__all__ = ["Traces", "traced_in"]

Place: TypeAlias = Mapping[str, int]


def traced_in(
    jobs: int,
    works: Sequence[Callable[[], TracedRank]],
    captured: Captured,
    done: Callable[[int], None] | None = None,
) -> list[TracedRank]:
    """The ranks that these trace, in order.

    Raises:
        ProcessFailed: a process ended without an answer. Or what the first that fails raises.
    """
    caller = os.getpid()
    found = spread([partial(_alone, caller, work) for work in works], jobs, done)
    for rank in found:
        rank.captured = captured
    return found


def _alone(caller: int, work: Callable[[], TracedRank]) -> TracedRank:
    if os.getpid() != caller:
        torch.set_num_threads(1)  # a copy has none of its pool
    return work()


class Traces:
    """Ranks by place, some of them traced before they are asked for.

    Args:
        trace: of the rank at a place.
        jobs: processes.
    """

    def __init__(self, trace: Callable[[Place], TracedRank], captured: Captured, jobs: int) -> None:
        self._trace, self._captured, self.jobs = trace, captured, jobs
        self._ready: dict[tuple[tuple[str, int], ...], TracedRank] = {}

    def at(self, place: Place) -> TracedRank:
        """The rank at a place."""
        found = self._ready.pop(tuple(place.items()), None)
        return self._trace(place) if found is None else found

    def ahead(self, places: Sequence[Place], sure: bool) -> None:
        """Trace these at once, or, of guesses, one in each process.

        One that fails is left to fail when it is asked for.
        """
        new = dict.fromkeys(tuple(place.items()) for place in places)
        keys = [key for key in new if key not in self._ready][: None if sure else self.jobs]
        if len(keys) < 2:
            return  # nothing to be done beside it
        caller = os.getpid()

        def tried(key: tuple[tuple[str, int], ...]) -> TracedRank | None:
            try:
                return _alone(caller, lambda: self._trace(dict(key)))
            except Exception:  # noqa: BLE001 - whether anybody wants it is not known yet
                return None

        for key, rank in zip(keys, spread([partial(tried, key) for key in keys], self.jobs), strict=True):
            if rank is not None:
                rank.captured = self._captured
                self._ready[key] = rank
