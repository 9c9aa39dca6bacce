"""Watched numbers: they count as numbers do, and what was asked of them says for whom the answers hold."""

from __future__ import annotations

import copy
import math
import operator
import pickle
import random
from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

import numpy as np
import pytest

from tensure.capture._boxes import Cells, boxes_of, is_closed, members, size
from tensure.capture._coordinate import Reads, is_coordinate
from tensure.capture._form import Form

MESH = {"a": 3, "b": 5, "c": 2}
PLACES = [dict(zip(MESH, at, strict=True)) for at in product(*map(range, MESH.values()))]


def watch(place: Mapping[str, int]) -> tuple[Reads, Any]:
    """The notes of one rank, and its number."""
    reads = Reads(dict(MESH), dict(place))
    return reads, reads.number(Form(0, (("a", 10), ("b", 2), ("c", 1))))


def number(place: Mapping[str, int]) -> int:
    return place["a"] * 10 + place["b"] * 2 + place["c"]


ASKED: dict[str, Callable[[Any], Any]] = {
    "equal": lambda r: r == 7,
    "unequal": lambda r: r != 7,
    "less": lambda r: r > 13,
    "at most": lambda r: r >= 13,
    "a fraction": lambda r: r > 12.5,
    "between": lambda r: 4 < r < 9,
    "the least": lambda r: min(r, 11) * 2 + max(3, r),
    "truth": lambda r: bool(r - 4),
    "not": lambda r: not r,
    "quotient": lambda r: (r // 4) == 3,
    "remainder": lambda r: r % 7,
    "remainder of a sum": lambda r: (3 * r + 1) % 5 == 2,
    "remainder of a quotient": lambda r: r // 2 % 3 == 1,
    "negative": lambda r: -r // 4 < -2,
    "division": lambda r: divmod(r, 6)[0] == 2,
    "square": lambda r: r * r > 100,
    "power": lambda r: r**2,
    "float": lambda r: float(r) / 3,
    "true division": lambda r: r / 4 > 2,
    "text": lambda r: f"{r:03d}" + str(r) + repr(r),
    "percent": lambda r: "%d" % r,  # noqa: UP031
    "index": lambda r: list(range(50))[r],
    "range": lambda r: sum(range(r)),
    "repeated": lambda r: "x" * r,
    "dictionary": lambda r: {3: "three"}.get(r, "other"),
    "set": lambda r: r in {4, 5},
    "list": lambda r: r in [4, 5],
    "bits": lambda r: (r & 3, r & 4, r | 8, r ^ 5, r << 2, r >> 1, ~r if not is_coordinate(r) else -r - 1),
    "reflected": lambda r: (100 - r, 7 * r, 100 // (r + 1), 100 % (r + 1), 2.5 * r),
    "absolute": lambda r: abs(r - 9),
    "rounded": lambda r: (round(r), math.floor(r), math.ceil(r), math.trunc(r), math.sqrt(r)),
    "numpy": lambda r: int(np.zeros(40)[r]) + int(np.int64(3) + int(r)) + (r == np.int64(3)),
    "attributes": lambda r: (r.bit_length(), r.real, r.numerator),
    "kept": lambda r: pickle.loads(pickle.dumps(r)) if is_coordinate(r) else r,
    "copied": lambda r: copy.deepcopy([r])[0] + copy.copy(r),
    "kind": lambda r: isinstance(r, int),
    "operator": lambda r: operator.index(r),
    "nothing": lambda r: (r == None, r == "7", r != "7"),  # noqa: E711
}


def plain(value: Any) -> Any:
    """What is left when nobody watches."""
    if is_coordinate(value):
        return int(value)
    return tuple(map(plain, value)) if isinstance(value, tuple) else value


@pytest.mark.parametrize("name", ASKED)
def test_answers_are_those_of_numbers_and_hold_where_they_are_said_to(name: str) -> None:
    ask = ASKED[name]
    for place in PLACES:
        reads, rank = watch(place)
        found = plain(ask(rank))
        assert found == ask(number(place)), place
        for other in PLACES:
            if all(condition.holds(other) for condition in reads.conditions):
                assert ask(number(other)) == found, (place, other)


def test_a_condition_forgotten_is_seen() -> None:
    """The check above can fail."""
    wrong = 0
    for place in PLACES:
        reads, rank = watch(place)
        found = rank == 7
        reads.conditions.clear()
        wrong += any((number(other) == 7) != found for other in PLACES)
    assert wrong


def test_random_arithmetic() -> None:
    rng = random.Random(0)
    steps: list[Callable[[Any, int], Any]] = [
        lambda r, n: r + n,
        lambda r, n: n - r,
        lambda r, n: r * n,
        lambda r, n: r // (abs(n) + 1),
        lambda r, n: r % (abs(n) + 1),
        lambda r, n: r + r // 2,
    ]
    for _ in range(60):
        ways = [(rng.choice(steps), rng.randrange(-6, 7)) for _ in range(rng.randrange(1, 5))]

        def run(rank: Any, ways: list[tuple[Callable[[Any, int], Any], int]] = ways) -> Any:
            for step, n in ways:
                rank = step(rank, n)
            return rank

        for place in rng.sample(PLACES, 6):
            reads, rank = watch(place)
            found = run(rank)
            if not is_coordinate(found):
                assert all(run(number(other)) == found for other in PLACES)
                continue
            form = found.form
            assert all(form.value(other) == run(number(other)) for other in PLACES)
            low, high = form.range(MESH)
            assert low <= min(map(form.value, PLACES)) and max(map(form.value, PLACES)) <= high
            assert not reads.conditions, "arithmetic asks nothing"
            # as torch is given it: the quotients in it are settled, so it is a sum of multiples
            reads.soften(form)
            same = [other for other in PLACES if all(c.holds(other) for c in reads.conditions)]
            slopes = {atom: by for atom, by in form.terms if isinstance(atom, str)}
            rest = {
                form.value(other) - sum(by * other[axis] for axis, by in slopes.items()) for other in same
            }
            assert place in same and len(rest) == 1


def test_what_is_the_same_everywhere_is_no_read() -> None:
    reads, rank = watch(PLACES[4])
    assert rank < 30 and rank >= 0 and rank != 99 and rank - rank == 0 and rank == rank
    assert not is_coordinate(rank // 30) and rank % 30 + 1 > rank
    assert not reads.conditions


def test_ranks_by_row_and_column_come_apart() -> None:
    reads, rank = watch(PLACES[7])
    assert str(rank // 10) == str(number(PLACES[7]) // 10)
    assert [str(found) for found in reads.conditions] == ["a==0 holds"]
    reads, rank = watch(PLACES[7])
    assert (rank % 10).form == Form(0, (("b", 2), ("c", 1))) and (rank % 2).form == Form(0, (("c", 1),))


def test_boxes_hold_each_place_once() -> None:
    rng = np.random.default_rng(0)
    whole = ((2, 5), (0, 4), (1, 3))
    for _ in range(50):
        mask = rng.random((3, 4, 2)) < rng.random()
        seen = np.zeros_like(mask, int)
        found = boxes_of(mask, whole)
        for box in found:
            ends = zip(box, whole, strict=True)
            seen[tuple(slice(low - start, high - start) for (low, high), (start, _) in ends)] += 1
        assert (seen == mask).all() and sum(map(size, found)) == mask.sum()
        if found:
            first = np.argwhere(mask)[0]
            assert tuple(low for low, _ in found[0]) == tuple(first + [2, 0, 1])


def test_all_but_one_rank_of_a_large_mesh() -> None:
    reads = Reads({"dp": 512, "tp": 8, "mb": 16}, {"dp": 0, "tp": 0, "mb": 0})
    assert not (reads.number(Form(0, (("dp", 8), ("tp", 1)))) == 4095 and reads.axis("mb") == 11)
    whole = ((0, 512), (0, 8), (0, 16))
    assert boxes_of(members(reads.conditions, whole, ("dp", "tp", "mb")), whole) == [
        ((0, 511), (0, 8), (0, 16)),
        ((511, 512), (0, 7), (0, 16)),
    ]


def test_cells() -> None:
    boxes = [((0, 4), (0, 2)), ((0, 4), (2, 3)), ((4, 9), (0, 3))]
    cells = Cells(boxes, (9, 3))
    mask = cells.none()
    assert mask.shape == (2, 2)
    cells.add(mask, boxes[0])
    assert not is_closed(mask, [1]) and not is_closed(mask, [0])
    cells.add(mask, boxes[1])
    assert is_closed(mask, [1]) and not is_closed(mask, [0])
