"""Parts of a tensor seen in another shape: the prover's answer and the checker's against plain numbers."""

from __future__ import annotations

import itertools
import math

import numpy as np

from tensure.proving import _check_index, _check_moves, _movement
from tensure.proving._index import index_of, members

SHAPES = [
    (24,),
    (4, 6),
    (2, 12),
    (2, 2, 6),
    (2, 3, 4),
    (1, 24),
    (4, 1, 6),
    (2, 2, 3, 2),
    (3, 8),
    (24, 1),
    (1, 4, 6, 1),
]


def regrouped(
    reg: tuple[tuple[int, ...], ...], shape: tuple[int, ...], out: tuple[int, ...]
) -> tuple[tuple[int, ...], ...] | None:
    """The checker's answer, member by member."""
    found = _check_moves.regrouped(tuple(map(_check_index.index_of, reg)), shape, out)
    return None if found is None else tuple(tuple(index.members()) for index in found)


def naive(reg: tuple[tuple[int, ...], ...], shape: tuple[int, ...], out: tuple[int, ...]) -> bool:
    """Whether the part is a part there as well, in the same order of elements."""
    flat = np.arange(24).reshape(shape)[np.ix_(*reg)].ravel()
    spots = [tuple(dict.fromkeys(at.tolist())) for at in np.unravel_index(flat, out)]
    return bool(np.array_equal(np.arange(24).reshape(out)[np.ix_(*spots)].ravel(), flat))


def test_both_say_what_the_numbers_say() -> None:
    rng = np.random.default_rng(0)
    answered = 0
    for shape, out in itertools.product(SHAPES, repeat=2):
        for _ in range(30):
            reg = tuple(
                tuple(sorted(rng.choice(n, int(rng.integers(1, n + 1)), replace=False).tolist()))
                if rng.random() < 0.6
                else tuple(range(n))
                for n in shape
            )
            mine = regrouped(reg, shape, out)
            theirs = _movement.regrouped(tuple(index_of(at) for at in reg), shape, out)
            assert (mine is None) == (theirs is None), (reg, shape, out)
            if mine is None or theirs is None:
                continue
            answered += 1
            assert mine == tuple(tuple(members(index)) for index in theirs)
            flat = np.arange(24).reshape(shape)[np.ix_(*reg)].ravel()
            assert np.array_equal(np.arange(24).reshape(out)[np.ix_(*mine)].ravel(), flat)
    assert answered > 1000


def test_what_is_a_part_by_the_numbers_is_mostly_found() -> None:
    """Refusing is always allowed; these are the forms that plans are made of."""
    cases = [
        (((0, 1), (0, 1, 2, 3, 4, 5)), (4, 6), (24,)),
        (((2, 3), (3, 4, 5)), (4, 6), (2, 2, 6)),
        ((tuple(range(6, 12)),), (24,), (4, 6)),
    ]
    for reg, shape, out in cases:
        assert math.prod(shape) == 24 and naive(reg, shape, out)
        assert regrouped(reg, shape, out) is not None


def test_large_tensors_are_taken_dim_by_dim() -> None:
    shape, out = (8, 4096, 11008), (8 * 4096, 11008)
    reg = ((2, 3), tuple(range(4096)), tuple(range(5504)))
    made = regrouped(reg, shape, out)
    assert made == (tuple(range(8192, 16384)), tuple(range(5504)))
