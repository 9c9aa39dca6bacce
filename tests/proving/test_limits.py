"""Addends of addends against numpy: what folds is their sum, and the checker agrees by another way.

z = (x @ c) @ d + (x @ e) @ d, where any slices of the two inner letters and of the outer one may be taken.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from tensure.program import Entry, Program, Value, name, op
from tensure.proving import _check_index
from tensure.proving._check_index import index_of
from tensure.proving._check_steps import CheckSteps
from tensure.proving._check_sums import Refused
from tensure.proving._index import Index, members
from tensure.proving._limit import Limit, Share, fold, limited
from tensure.proving._logical import Logical

Array = np.ndarray[Any, np.dtype[Any]]
K, J = 4, 6
PROGRAM = Program(
    {},
    {
        base: Value(shape, "f64")
        for base, shape in {"x": (2, K), "c": (K, J), "e": (K, J), "d": (J, 3)}.items()
    },
    {},
    {
        "run": Entry(
            tuple(map(name, "xced")),
            (
                op("mm", "x", "c", out="y"),
                op("mm", "x", "e", out="w"),
                op("mm", "y", "d", out="z"),
                op("add", "y", "w", out="s"),
                op("mm", "s", "d", out="t"),
            ),
            (name("z"), name("t")),
        )
    },
)
RNG = np.random.default_rng(0)
DRAWN = {"x": (2, K), "c": (K, J), "e": (K, J), "d": (J, 3)}
VALUES = {base: RNG.standard_normal(shape) for base, shape in DRAWN.items()}
HALVES = {4: (((0, 2),), ((2, 4),)), 6: (((0, 3),), ((3, 6),))}


def share(size: int, index: Index) -> list[Share]:
    return [] if index == ((0, size),) else [Share("k", size, index)]


def inner(of: str, index: Index) -> Array:
    at = members(index)
    return np.asarray(VALUES["x"][:, at] @ VALUES[of][at])


def of_z(limit: Limit | None) -> Array:
    """The addend of z that a limit stands for."""
    shares = () if limit is None else limit.shares
    through = {} if limit is None else dict(limit.through)
    outer = members(shares[0].index) if shares else list(range(J))
    first: Index = through[0].shares[0].index if 0 in through else ((0, K),)
    return np.asarray(inner("c", first)[:, outer] @ VALUES["d"][outer])


def of_t(limit: Limit | None, parts: tuple[int, int]) -> Array:
    """The addend of t, which goes through both parts of a sum."""
    shares = () if limit is None else limit.shares
    through = {} if limit is None else dict(limit.through)
    outer = members(shares[0].index) if shares else list(range(J))
    held = dict(through[0].through) if 0 in through else {}
    made = np.zeros((2, J))
    for node, base in zip(parts, "ce", strict=True):
        made += inner(base, held[node].shares[0].index if node in held else ((0, K),))
    return np.asarray(made[:, outer] @ VALUES["d"][outer])


def nested(first: Index, outer: Index) -> Limit | None:
    own = share(K, first)
    through = [(0, Limit(own, ()))] if own else []
    return limited(share(J, outer), through)


def test_a_grid_of_slices_is_the_whole() -> None:
    grid = [nested(*cell) for cell in itertools.product(HALVES[K], HALVES[J])]
    assert fold([cell for cell in grid if cell is not None]) == (1, None)
    assert np.allclose(sum(map(of_z, grid)), of_z(None))
    for missing in range(4):
        left = [cell for at, cell in enumerate(grid) if at != missing and cell is not None]
        assert fold(left) is None
        assert fold([*left, left[0]]) is None
    twice = [cell for cell in grid if cell is not None] * 2
    assert fold(twice) == (2, None)


def drawn_limits(rng: np.random.Generator) -> list[Limit]:
    """Products of slices, often of one partition of each letter, sometimes with one lost or doubled."""
    rows: list[Index] = [((0, 2),), ((2, 4),)] if rng.random() < 0.6 else [((0, 1),), ((1, 4),), ((0, 3),)]
    columns: list[Index] = (
        [((0, 3),), ((3, 6),)] if rng.random() < 0.6 else [((0, 2), (5, 6)), ((2, 5),), ((0, 6),)]
    )
    if rng.random() < 0.5:
        columns = [columns[0]]
    cells = [nested(*cell) for cell in itertools.product(rows, columns)]
    found = [cell for cell in cells if cell is not None]
    if rng.random() < 0.4:
        del found[int(rng.integers(len(found)))]
    if found and rng.random() < 0.3:
        found.append(found[0])
    return found


def test_what_folds_is_the_sum() -> None:
    rng = np.random.default_rng(1)
    folded = 0
    for _ in range(400):
        limits = drawn_limits(rng)
        answer = fold(limits) if limits else None
        if answer is not None:
            folded += 1
            assert np.allclose(sum(map(of_z, limits)), answer[0] * of_z(answer[1]))
    assert folded > 60


def checker() -> CheckSteps:
    steps = CheckSteps(PROGRAM, "run", {}, False)
    steps.read_program(
        lambda step, named: [named(str(arg.name)) for arg in step.args]  # type: ignore[union-attr]
    )
    return steps


def spelled(limit: Limit | None) -> Any:
    if limit is None:
        return None
    shares = tuple((item.letter, _check_index.Index(item.index)) for item in limit.shares)
    return shares, tuple((key, spelled(part)) for key, part in limit.through)


def relation(steps: CheckSteps, label: str, limits: Sequence[Limit | None], coef: int = 1) -> Any:
    ((_, node, region, _),) = steps.named(label) or ()
    return tuple((Fraction(coef), node, region, spelled(limit)) for limit in limits)


def test_the_checker_s_equality_is_that_of_numpy() -> None:
    rng, steps = np.random.default_rng(2), checker()
    agreed = 0
    for _ in range(400):
        one, other = drawn_limits(rng), drawn_limits(rng)
        answer = fold(one) if one else None
        if answer is not None:  # what the prover folds, the checker must see as well
            folded = relation(steps, "z", [answer[1]], answer[0])
            assert steps.equal(relation(steps, "z", one), folded)
        same = np.allclose(sum(map(of_z, one), np.zeros((2, 3))), sum(map(of_z, other), np.zeros((2, 3))))
        assert not steps.equal(relation(steps, "z", one), relation(steps, "z", other)) or same
        whole = np.allclose(sum(map(of_z, one), np.zeros((2, 3))), of_z(None))
        assert steps.equal(relation(steps, "z", one), relation(steps, "z", [None])) == whole
        agreed += whole
    assert agreed > 20


@pytest.mark.parametrize("lost", [False, True])
def test_addends_through_a_sum_go_through_all_of_its_parts(lost: bool) -> None:
    logical, steps = Logical(PROGRAM, "run", {}), checker()
    parts = tuple(logical.names[base].relation.terms[0].node for base in "yw")
    mine = [steps.named(base)[0][1] for base in "yw"]  # type: ignore[index]
    slices = [((0, 2),), ((2, 4),)]
    through = [[(node, Limit(share(K, index), ())) for node in parts] for index in slices]
    if lost:  # the second part is the same on both ranks: no addend of the sum
        through[1][1] = through[0][1]
    limits = [Limit((), [(0, Limit((), item))]) for item in through]
    summed = of_t(limits[0], (parts[0], parts[1])) + of_t(limits[1], (parts[0], parts[1]))
    assert (fold(limits) == (1, None)) == np.allclose(summed, of_t(None, (parts[0], parts[1]))) == (not lost)
    rows = [
        ((), ((0, ((), tuple((mine[at], spelled(limit)) for at, (_, limit) in enumerate(item)))),))
        for item in through
    ]
    ((_, node, region, _),) = steps.named("t") or ()
    have = tuple((Fraction(1), node, region, row) for row in rows)
    assert all(steps.sound(node, row) for row in rows)
    assert steps.equal(have, ((Fraction(1), node, region, None),)) == (not lost)


def test_limits_that_are_none_are_refused() -> None:
    steps = checker()
    ((_, z, _, _),) = steps.named("z") or ()
    ((_, t, _, _),) = steps.named("t") or ()
    ((_, s, _, _),) = steps.named("s") or ()
    half = ((("k", index_of((0, 1))),), ())
    assert steps.sound(z, half) and steps.sound(z, ((), ((0, half),)))
    for node, limit in (
        (z, ((("m", index_of((0,))),), ())),  # no contracted letter
        (z, ((("k", index_of((0, 9))),), ())),  # beyond it
        (z, ((("k", index_of((0, 0))),), ())),  # twice
        (z, ((), ((0, half), (1, half)))),  # linear in each, not in both
        (z, ((), ((1, half),))),  # a leaf sums nothing
        (s, ((), ((z, half),))),  # no part of this sum
        (s, half),
        (t, ((), ((0, half),))),  # half of a sum's letter, which it has not
    ):
        with_refusal = False
        try:
            with_refusal = not steps.sound(node, limit)
        except (Refused, LookupError):
            with_refusal = True
        assert with_refusal, limit
