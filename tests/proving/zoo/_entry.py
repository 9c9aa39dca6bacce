"""What an entry of the zoo is: one real bug of a parallel training step, as a buggy and a fixed twin.

An entry states the bug and where a correct report must point; it knows neither how twins are run nor how
they are proved.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tensure.capture import ModelFunction, ParallelFunction

__all__ = ["Entry", "Site"]


@dataclass(frozen=True)
class Site:
    """Where the bug shows, in the words that a correct report must use.

    Args:
        wrong: results that differ from the single device: "loss", "output 1" and so on, or the name of a
            parameter, for its gradient. These are nearest to the bug; others downstream may differ too.
        op: the kind of op that is missing, superfluous or wrong, as torch names it ("all_reduce", "mul").
        ranks: the ranks, counted over the mesh row by row, where it is; empty means all of them.
    """

    wrong: tuple[str, ...]
    op: str
    ranks: tuple[int, ...] = ()


@dataclass(frozen=True)
class Entry:
    """One bug and its repair, on one model and one mesh.

    Args:
        name: unique, in snake case.
        source: "TrainVerify bug 3", or the public issue whose failure this is in the form of; the failure it
            names is made anew in a few lines, not its code, and not every cause that it discusses.
        what: the bug, in one sentence.
        mesh: size of every mesh axis, by its name, outermost first.
        model: the step on a single device.
        fixed: the parallel twin that computes the same.
        buggy: the one that does not.
        at: where the bug shows.
    """

    name: str
    source: str
    what: str
    mesh: Mapping[str, int]
    model: ModelFunction
    fixed: ParallelFunction
    buggy: ParallelFunction
    at: Site
