"""One check by several walks: who decides which steps, and what their answers come to.

Every walk takes all steps in one order and does of each all but deciding whether claims follow, which it does
for its own alone. What is decided for a step rests on the certificate's claims, and on nothing that was
decided before; so where the first walk that stops has stopped, one walk alone would have stopped, and for the
same reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from tensure.errors import TensureError

from ._check_piece import Reg

BLOCK: Final = 512
"""Steps in a row that one walk decides: much of what they ask is the same, and worked out once."""


@dataclass(frozen=True, slots=True)
class Share:
    """Every `of`-th block of steps, from block `number` on."""

    number: int
    of: int

    def has(self, step: int) -> bool:
        """Whether a step is one of these."""
        return step // BLOCK % self.of == self.number


ALL: Final = Share(0, 1)


@dataclass(frozen=True, slots=True)
class Walked:
    """What one walk came to."""

    share: Share
    at: int
    """The last step begun."""
    asked: int
    """Questions met, and those of them that were decided here."""
    decided: int
    refused: str | None = None
    """Why a claim does not follow, if one does not."""
    broken: TensureError | None = None
    """What cannot be told, such as a bound that was passed."""
    reads: frozenset[tuple[Any, str, Reg]] = frozenset()
    """(rank, state, part) that is read, and what of states is left."""
    keeps: frozenset[tuple[Any, str, Reg]] = frozenset()
    states: frozenset[str] = frozenset()
    draws: bool = False

    @property
    def is_through(self) -> bool:
        """Whether it came to its end."""
        return self.refused is None and self.broken is None


def joined_shares(walks: Sequence[Walked]) -> Walked:
    """What walks for all shares come to together: what one walk for all steps does.

    Raises:
        RuntimeError: they are not walks of one plan, or there is a step that none has decided.
    """
    first = walks[0]
    if [walk.share for walk in walks] != [Share(at, first.share.of) for at in range(first.share.of)]:
        raise RuntimeError(f"{len(walks)} of {first.share.of} shares of a check have an answer")
    ends = [walk.at for walk in walks if not walk.is_through]
    if ends:
        # Whose step it is has done all of it; others may have stopped at what comes after.
        (owner,) = (walk for walk in walks if walk.share.has(min(ends)))
        if owner.is_through or owner.at != min(ends):
            raise RuntimeError(f"a check in parts stops at step {min(ends)} and does not")
        return owner
    told = {(walk.at, walk.asked, walk.reads, walk.keeps, walk.states, walk.draws) for walk in walks}
    decided = sum(walk.decided for walk in walks)
    if len(told) != 1 or decided != first.asked:
        raise RuntimeError(f"of {first.asked} questions of a check {decided} have an answer")
    return first
