"""Integers of few bits in the field: which ops may leave their dtype, and which do not mind.

Cutting to bits is a map of rings, from integers to integers modulo a power of two (of counts to bools, where
nothing is subtracted, to whether they are 0). So sums and products may be compared before they are cut. What
leaves the dtype, or is no op of rings, sees some function of dtype and number (`Field.settled`).
"""

from __future__ import annotations

from typing import Final

from ._contraction import TERMS
from ._rules import ELEMENTWISE

MOVES: Final = frozenset(
    "view reshape flatten permute transpose t unsqueeze squeeze select expand cat stack slice slice_scatter "
    "select_scatter flip roll repeat".split()
)
NARROW: Final = frozenset({"u8", "i8", "i16", "i32", "bool"})
"""What sums and products may leave; integers of 64 bits are taken to hold all that there is."""
_GROWS: Final = frozenset(
    "add sub rsub mul neg square add_n sum integer_linear convolution integer_convolution cumsum prod "
    "scatter_add index_add index_put scatter_reduce embedding_dense_backward".split()
) | frozenset(TERMS)
_WITHIN: Final = frozenset("_to_copy copy where masked_fill maximum minimum clamp relu".split())
"""Ops on elements that lead to no number beyond a dtype, or say which dtype it is."""
RING: Final = frozenset("add sub rsub mul neg square add_n sum copy".split()) | frozenset(TERMS) | MOVES
"""What may be made of integers before they are cut to their bits, and cut then."""


def may_wrap(op: str, dtype: str) -> bool:
    """Whether an op's result in a dtype may be other than the number that is meant."""
    if dtype == "bool":
        return op in _GROWS and op != "mul"
    return dtype in NARROW and (op in _GROWS or op in ELEMENTWISE - _WITHIN)
