"""The face of what computes a step's rows.

Rows of a slot stand side by side in order of position and without gaps, from the first position that is not
stored yet; at most one of them is wanted, the last; only pages that no other slot reads are written. What
else a page holds is left from others and may be anything, NaN too. Does
not know who chose the rows, how logits become tokens, or how a core works inside.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tensure.kernels import StepRows

__all__ = ["CoreLimits", "DecoderCore", "StepRows"]


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
