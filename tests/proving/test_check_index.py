"""The checker's runs against the plain members they stand for, and parts of tensors against numpy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensure.errors import LimitError
from tensure.proving import _check_index, _check_moves
from tensure.proving._check_index import (
    Index,
    all_of,
    concatenated,
    covers,
    flattened,
    index_of,
    joined,
    unflattened,
)
from tensure.proving._check_piece import Piece, whole
from tensure.proving._check_training import TRAINING

SIZE = 12
RUNS = st.lists(st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)), max_size=5)
SHAPES = st.sampled_from(
    [(24,), (4, 6), (2, 3, 4), (1, 24), (4, 1, 6), (2, 2, 3, 2), (24, 1), (3, 8), (6, 4)]
)
SLICES = st.tuples(*(st.none() | st.integers(-14, 14),) * 2, st.sampled_from([1, 1, 2, 3, -1, -2]))


def listed(runs: list[tuple[int, int]]) -> list[int]:
    return [member for start, stop in runs for member in range(start, stop)]


@st.composite
def regions(draw: Any, shape: tuple[int, ...], distinct: bool = True) -> tuple[list[int], ...]:
    """Members of each dim: all, some rising, or some in any order."""
    made = []
    for size in shape:
        kind = draw(st.sampled_from(["all", "run", "any"]))
        start = draw(st.integers(0, size - 1))
        some = st.lists(st.integers(0, size - 1), min_size=1, max_size=size, unique=distinct)
        run = list(range(start, draw(st.integers(start + 1, size))))
        made.append(list(range(size)) if kind == "all" else run if kind == "run" else draw(some))
    return tuple(made)


def numbers(members: Any, shape: tuple[int, ...]) -> list[int]:
    """The numbers of a part's elements, in row-major order."""
    every = np.arange(math.prod(shape)).reshape(shape)
    return [int(n) for n in every[np.ix_(*members)].ravel()]


@given(RUNS)
def test_an_index_is_its_members_in_one_spelling(runs: list[tuple[int, int]]) -> None:
    members, index = listed(runs), joined(runs)
    assert index.members() == members and len(index) == len(members) and bool(index) == bool(members)
    assert index == index_of(members) and hash(index) == hash(index_of(members))
    assert index == joined((member, member + 1) for member in members)
    assert all(a[1] != b[0] for a, b in zip(index.runs, index.runs[1:], strict=False))
    assert index.stop == max(members, default=-1) + 1 and index.start == min(members, default=0)
    assert index.distinct == (len(set(members)) == len(members))
    assert listed(list(index.rising())) == sorted(set(members))
    assert [at for at in range(-1, SIZE + 1) if index.holds(at)] == sorted(set(members))
    assert index.is_whole(SIZE) == (members == list(range(SIZE)))
    assert index.shifted(3).members() == [member + 3 for member in members]
    assert concatenated([index, index]).members() == members * 2


@given(RUNS, RUNS, SLICES)
def test_parts_of_parts_are_those_of_lists(one: Any, other: Any, part: Any) -> None:
    outer, inner = joined(one), joined(other)
    mine, theirs = outer.members(), inner.members()
    assert outer[slice(*part)].members() == mine[slice(*part)]
    if all(at < len(mine) for at in theirs):
        assert outer.select(inner).members() == [mine[at] for at in theirs]
    else:
        with pytest.raises(IndexError):
            outer.select(inner)
    spots = inner.within(outer)
    if inner == outer:
        assert spots == all_of(len(outer))
    elif len(set(mine)) < len(mine) or not set(theirs) <= set(mine):
        assert spots is None
    else:
        assert spots is not None and spots.members() == [mine.index(at) for at in theirs]
    once = len(set(mine)) == len(mine)
    assert outer.reorders(inner) == (once and sorted(mine) == sorted(theirs))


def test_what_spans_much_costs_little_and_is_not_listed() -> None:
    huge = Index(((1 << 40, 1 << 41), (0, 1 << 40)))
    assert len(huge) == 1 << 41 and huge.distinct and huge.reorders(all_of(1 << 41))
    assert huge.within(all_of(1 << 41)) == huge and all_of(1 << 41).within(huge) == huge
    assert huge[1 << 39 : (1 << 40) + 1].runs == ((3 << 39, 1 << 41), (0, 1))
    for ask in (huge.members, lambda: huge[::2]):
        with pytest.raises(LimitError):
            ask()
    with pytest.raises(TypeError):
        list(huge)  # type: ignore[call-overload]


@settings(max_examples=400)
@given(st.data())
def test_a_part_in_another_shape_is_the_same_elements(data: Any) -> None:
    shape, out = data.draw(SHAPES), data.draw(SHAPES)
    members = data.draw(regions(shape))
    flat = flattened([index_of(at) for at in members], shape, 1 << 10)
    assert flat is not None and flat.members() == numbers(members, shape)
    found = unflattened(flat, out)
    spots = [list(dict.fromkeys(at.tolist())) for at in np.unravel_index(flat.members(), out)]
    is_part = numbers(spots, out) == flat.members()
    assert (found is not None) == is_part
    if found is not None:
        assert [index.members() for index in found] == spots
    assert _check_moves.regrouped(tuple(map(index_of, members)), shape, out) in (found, None)


@given(st.data())
def test_numbers_that_are_no_part_are_none(data: Any) -> None:
    """One element moved: never the part it was; with members that stand twice only what is the same."""
    shape = data.draw(SHAPES)
    flat = numbers(data.draw(regions(shape, False)), shape)
    at = data.draw(st.integers(0, len(flat) - 1))
    changed = [*flat[:at], (flat[at] + data.draw(st.integers(1, 23))) % 24, *flat[at + 1 :]]
    for wanted in (flat, changed):
        found = unflattened(index_of(wanted), shape)
        assert found is None or numbers([index.members() for index in found], shape) == wanted
    assert unflattened(index_of(flat), shape) != unflattened(index_of(changed), shape) or (
        unflattened(index_of(flat), shape) is None
    )


def test_all_elements_twice_are_no_part() -> None:
    twice = concatenated([all_of(24), all_of(24)])
    assert unflattened(twice, (4, 6)) is None and unflattened(all_of(24), (4, 6)) == whole((4, 6))
    assert unflattened(all_of(25), (4, 6)) is None and unflattened(all_of(12), (2, 6)) is not None


@settings(max_examples=200)
@given(st.data())
def test_parts_cover_what_they_cover(data: Any) -> None:
    shape = data.draw(st.sampled_from([(), (0,), (5,), (3, 4), (2, 3, 2), (3, 0)]))
    known = data.draw(st.lists(regions(shape), max_size=6)) if all(shape) else []
    seen = np.zeros(shape, np.bool_)
    for part in known:
        seen[np.ix_(*part)] = True
    assert covers([tuple(map(index_of, part)) for part in known], shape) == bool(seen.all())


def test_large_parts_cover_to_the_last_element() -> None:
    rows, columns = 8192, 128256
    parts = [(Index(((at * 1024, at * 1024 + 1024),)), all_of(columns)) for at in range(8)]
    assert covers(parts, (rows, columns))
    assert not covers(parts[1:], (rows, columns))
    parts[3] = (parts[3][0], all_of(columns - 1))
    assert not covers(parts, (rows, columns))
    assert covers([*parts, (Index(((3072, 4096),)), Index(((columns - 1, columns),)))], (rows, columns))


def test_parts_of_large_views() -> None:
    """Heads of a hidden dim, and positions of a batch: exact whatever the size; next to it nothing."""
    hidden = (all_of(8192), Index(((4096, 6144),)))
    heads = (all_of(8192), Index(((32, 48),)), all_of(128))
    shapes = (8192, 16384), (8192, 128, 128)
    assert _check_moves.regrouped(hidden, *shapes) == heads
    assert _check_moves.regrouped(heads, *shapes[::-1]) == hidden
    beside = (all_of(8192), Index(((4097, 6145),)))
    assert _check_moves.regrouped(beside, *shapes) is None
    batch = (Index(((2, 4),)), all_of(8192), all_of(16384))
    merged = (Index(((16384, 32768),)), all_of(16384))
    assert _check_moves.regrouped(batch, (8, 8192, 16384), (65536, 16384)) == merged
    cut = (all_of(8), Index(((0, 4096),)), all_of(16384))
    spots = Index(tuple((at * 8192, at * 8192 + 4096) for at in range(8)))
    assert _check_moves.regrouped(cut, (8, 8192, 16384), (65536, 16384)) == (spots, all_of(16384))
    apart = (index_of(range(0, 1 << 13, 2)), index_of(range(0, 1 << 13, 2)))
    assert _check_moves.regrouped(apart, (1 << 13, 1 << 13), (1 << 26,)) is None  # over 2^22 runs


# --- rules that were on elements ---


@settings(max_examples=300)
@given(st.data())
def test_triangles_are_those_of_their_elements(data: Any) -> None:
    op = data.draw(st.sampled_from(["tril", "triu"]))
    shape, (there, here) = (6, 7), data.draw(st.tuples(*(st.integers(-8, 8),) * 2))
    part = data.draw(regions(shape))
    reg = tuple(map(index_of, part))
    piece = Piece(op, {"diagonal": here}, {"diagonal": there}, [shape], [reg], shape, reg, {})
    keep = getattr(np, op)
    same = np.array_equal(
        keep(np.ones(shape), there)[np.ix_(*part)], keep(np.ones([len(at) for at in part]), here)
    )
    assert (TRAINING[op].follows(piece) is not None) == same


def test_large_triangles_are_decided_on_their_ends() -> None:
    rows, columns = Index(((1024, 2048),)), all_of(8192)
    piece = Piece(
        "tril", {"diagonal": 1024}, {}, [(8192, 8192)], [(rows, columns)], (8192,) * 2, (rows, columns), {}
    )
    assert TRAINING["tril"].follows(piece) == 1
    wrong = Piece("tril", {"diagonal": 1023}, *[getattr(piece, key) for key in Piece.__slots__[2:]])
    assert TRAINING["tril"].follows(wrong) is None


@given(st.data())
def test_numbers_in_order_are_those_of_their_elements(data: Any) -> None:
    theirs = {"start": 2, "end": 26, "step": 2}
    (members,) = data.draw(regions((12,)))
    start, step = data.draw(st.integers(0, 26)), data.draw(st.sampled_from([2, 2, 4, 1]))
    mine = {"start": start, "end": start + step * len(members), "step": step}
    piece = Piece("arange", mine, theirs, [], [], (12,), (index_of(members),), {})
    same = [range(2, 26, 2)[at] for at in members] == list(range(*mine.values()))
    assert (TRAINING["arange"].follows(piece) is not None) == same


def test_numbers_apart_are_numbers_in_order() -> None:
    theirs, members = {"start": 2, "end": 26, "step": 2}, index_of((0, 2, 4))
    for end, step, same in ((14, 4, True), (8, 2, False), (10, 3, False)):
        mine = {"start": 2, "end": end, "step": step}
        piece = Piece("arange", mine, theirs, [], [], (12,), (members,), {})
        assert (TRAINING["arange"].follows(piece) is not None) == same


MOVED = [
    ("view", {"size": (6, 4)}, ((4, 6),)),
    ("view", {"size": (-1, 3)}, ((4, 6),)),
    ("reshape", {"shape": (2, -1, 3)}, ((4, 6),)),
    ("flatten", {"start_dim": 1, "end_dim": -1}, ((2, 3, 4),)),
    ("flatten", {}, ((),)),
    ("permute", {"dims": (2, 0, 1)}, ((2, 3, 4),)),
    ("transpose", {"dim0": 0, "dim1": -1}, ((2, 3, 4),)),
    ("t", {}, ((2, 3),)),
    ("select", {"dim": -1, "index": -2}, ((2, 3),)),
    ("cat", {"dim": 1}, ((2, 3), (2, 5))),
    ("stack", {"dim": -1}, ((2, 3), (2, 3))),
    ("slice_scatter", {"dim": 1, "start": 1, "end": 3}, ((2, 5), (2, 2))),
    ("flip", {"dims": (0,)}, ((2, 3),)),
    ("repeat", {"repeats": (2, 3, 1)}, ((4, 5),)),
]


@pytest.mark.parametrize(
    ("op", "attrs", "shapes"), MOVED, ids=[f"{row[0]}-{at}" for at, row in enumerate(MOVED)]
)
def test_shapes_of_moves_are_those_of_their_elements(op: str, attrs: Any, shapes: Any) -> None:
    made = _check_moves.moved(op, attrs, shapes, [whole(shape) for shape in shapes])
    assert _check_moves.moved_shape(op, attrs, shapes) == made.shape


def test_shapes_that_cannot_be_are_none() -> None:
    for op, attrs, shapes in (
        ("view", {"size": (5, 5)}, ((4, 6),)),
        ("view", {"size": (-1, 5)}, ((4, 6),)),
        ("view", {"size": (-1, -1)}, ((4, 6),)),
        ("select", {"dim": 0, "index": 4}, ((4, 6),)),
        ("stack", {"dim": 0}, ((4, 6), (6, 4))),
        ("slice_scatter", {"dim": 0, "start": 0, "end": 2}, ((4, 6), (3, 6))),
    ):
        assert _check_moves.moved_shape(op, attrs, shapes) is None


@settings(max_examples=300)
@given(st.data())
def test_a_view_repeats_where_its_elements_do(data: Any) -> None:
    shape, out = data.draw(SHAPES), data.draw(SHAPES)
    free = frozenset(data.draw(st.sets(st.integers(0, len(shape) - 1))))
    kept = tuple(1 if dim in free else n for dim, n in enumerate(shape))
    shown = np.broadcast_to(np.arange(math.prod(kept)).reshape(kept), shape).reshape(out)
    dims = {d for d, n in enumerate(out) if n > 1 and bool((shown == shown.take([0], axis=d)).all())}
    assert _check_moves.repeats_moved("view", {"size": out}, shape, free, out) == dims
    order = data.draw(st.permutations(range(len(shape))))
    turned = tuple(shape[d] for d in order)
    dims = {d for d, of in enumerate(order) if of in free and shape[of] > 1}
    assert _check_moves.repeats_moved("permute", {"dims": order}, shape, free, turned) == dims


def test_elements_one_by_one_are_bounded() -> None:
    shape = (1 << 13, 1 << 13)
    half = (Index(((0, 1 << 12),)), all_of(1 << 13))
    for attrs, reg in (({"dims": (1,)}, half), ({"dims": (0,)}, whole(shape))):
        piece = Piece("flip", attrs, attrs, [shape], [reg], shape, reg, {})
        assert _check_moves.move_fits(piece)
    piece = Piece("flip", {"dims": (0,)}, {"dims": (0,)}, [shape], [half], shape, half, {})
    with pytest.raises(LimitError):
        _check_moves.move_fits(piece)


def test_unions_are_decided_in_cells_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_check_index, "MAX_CELLS", 15)
    parts = [(Index(((at, at + 1),)), Index(((at, at + 1),))) for at in range(4)]
    with pytest.raises(LimitError):
        covers(parts, (4, 4))
    assert not covers(parts[:2], (4, 4))
