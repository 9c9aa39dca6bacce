"""What one step computes, and the face of what computes it.

Knows the arrays that the scheduler hands to a decoder core, and what the core promises about them. Does not
know who chose the rows, how logits become tokens, or how a core works inside.

Shape legend: R rows of the step, S sequences in it, P pages of the longest of them, Q rows whose logits are
wanted, V the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["CoreLimits", "DecoderCore", "StepRows"]


@dataclass(frozen=True, slots=True, eq=False)
class StepRows:
    """The rows of one step: one token at one position of one sequence each. The arrays are read-only.

    Args:
        tokens: i32 [R], the token ids.
        positions: i32 [R], where each stands in its sequence, from 0.
        slots: i32 [R], the row of `tables` that is its sequence's. A slot means nothing beyond this step.
        tables: i32 [S, P], the pages of each sequence in order, padded with -1: position p of slot s lies in
            page `tables[s, p // page_tokens]` at offset `p % page_tokens`.
        wanted: i32 [Q], ascending: the rows whose logits are needed, at most one a slot.

    Rows of a slot stand side by side in order of position and without gaps, from the first position that is
    not stored yet. A row reads the positions 0 to its own of its slot: those before the step are stored,
    those of the step are rows that stand before it. Only pages that no other slot reads are written. What
    else a page holds is left from others and may be anything, NaN too: not to be read, not even masked.
    """

    tokens: NDArray[np.int32]
    positions: NDArray[np.int32]
    slots: NDArray[np.int32]
    tables: NDArray[np.int32]
    wanted: NDArray[np.int32]

    def __post_init__(self) -> None:
        for array in (self.tokens, self.positions, self.slots, self.tables, self.wanted):
            array.setflags(write=False)

    @property
    def num_rows(self) -> int:
        """R."""
        return len(self.tokens)


class CoreLimits(Protocol):
    """What a request must keep to."""

    @property
    def vocab(self) -> int:
        """V: token ids are 0 to V - 1."""

    @property
    def context(self) -> int:
        """Most tokens of one sequence, the prompt included."""


class DecoderCore(CoreLimits, Protocol):
    """Computes the rows of a step over a key-value cache of `num_pages` pages of `page_tokens` positions."""

    @property
    def page_tokens(self) -> int:
        """Positions in one page."""

    @property
    def num_pages(self) -> int:
        """Pages in the cache."""

    def step(self, rows: StepRows) -> NDArray[np.float32]:
        """Store keys and values of every row at its position; give the logits [Q, V] of the wanted rows.

        The result need only last until the next call. When it raises, the same positions are computed again
        by a later step: a core that finds its own arithmetic wrong may say so by raising.
        """
