"""Many ranks' texts as one: what is lifted has, at every place, the value that was there."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tensure.capture._lift import lift_attr, lift_int, lift_ops, shape_of_text
from tensure.capture._placements import whole_part
from tensure.capture._tracks import RankTrace, live_steps, tracks_of
from tensure.errors import RecordError
from tensure.program import Name, Op, Ref, evaluate

Place = tuple[tuple[str, int], ...]
MESHES = st.lists(st.integers(1, 4), min_size=1, max_size=3)


def places(sizes: list[int]) -> list[Place]:
    return [tuple(zip("abc", at, strict=False)) for at in product(*map(range, sizes))]


def value(expression: Any, place: Place) -> Any:
    """An attribute at one place."""
    if isinstance(expression, tuple):
        return tuple(value(part, place) for part in expression)
    if isinstance(expression, (float, str, bool)) or expression is None:
        return expression
    return evaluate(expression, dict(place))


@given(MESHES, st.data())
def test_any_table_of_integers_lifts(sizes: list[int], data: st.DataObject) -> None:
    table = {place: data.draw(st.integers(-(1 << 40), 1 << 40)) for place in places(sizes)}
    lifted = lift_int(table)
    assert all(value(lifted, place) == want for place, want in table.items())


@given(MESHES, st.data())
def test_small_tables_lift(sizes: list[int], data: st.DataObject) -> None:
    """Few values, so that some axes do not matter and some sums fit by chance."""
    table = {place: data.draw(st.integers(0, 2)) for place in places(sizes)}
    lifted = lift_int(table)
    assert all(value(lifted, place) == want for place, want in table.items())


@given(MESHES, st.data())
def test_tables_with_holes_lift(sizes: list[int], data: st.DataObject) -> None:
    """Ranks of another track leave holes."""
    table = {place: data.draw(st.integers(-3, 3)) for place in places(sizes) if data.draw(st.booleans())}
    assume(table)
    lifted = lift_int(table)
    assert all(value(lifted, place) == want for place, want in table.items())


@given(MESHES, st.lists(st.integers(-50, 50), min_size=4, max_size=4))
def test_sums_of_multiples_lift_to_such(sizes: list[int], numbers: list[int]) -> None:
    """A slice's bounds become no list of choices."""
    table = {
        place: numbers[3] + sum(n * at for n, (_, at) in zip(numbers, place, strict=False))
        for place in places(sizes)
    }
    lifted = lift_int(table)
    assert all(value(lifted, place) == want for place, want in table.items())
    assert "pick" not in str(lifted)


ATTRS = st.recursive(st.integers(-9, 9), lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=5)


@given(ATTRS, st.data())
def test_nested_attributes_lift(shape: Any, data: st.DataObject) -> None:
    def again(part: Any) -> Any:
        return tuple(map(again, part)) if isinstance(part, tuple) else data.draw(st.integers(-9, 9))

    table = {place: again(shape) for place in places([2, 3])}
    lifted = lift_attr(table)
    assert all(value(lifted, place) == want for place, want in table.items())


@pytest.mark.parametrize(
    "pair", [(0.5, 0.25), ("sum", "max"), (True, False), (1, 1.0), ((1,), (1, 2)), (None, 1), (1, True)]
)
def test_what_is_no_integer_is_never_lifted(pair: tuple[Any, Any]) -> None:
    """Nor do such ranks count as one text."""
    table = dict(zip(places([2]), pair, strict=True))
    with pytest.raises(RecordError):
        lift_attr(table)
    one, other = (shape_of_text([Op("full", (), (Name("x"),), (("fill_value", item),))]) for item in pair)
    assert one != other


def test_equal_floats_stay() -> None:
    assert lift_attr(dict.fromkeys(places([3]), 0.1)) == 0.1


# --- tracks -----------------------------------------------------------------------------------------


def traced(place: Place, steps: list[Op], *outputs: str) -> RankTrace:
    claims = {"x": ("x", whole_part((4,))), **{out: (out, whole_part((4,))) for out in outputs}}
    return RankTrace(place, tuple(steps), claims, frozenset(outputs))


def cut(at: int, out: str = "y", size: int = 2) -> Op:
    return Op("slice", (Ref(Name("x")),), (Name(out),), (("end", at + size), ("start", at)))


def test_ranks_that_differ_in_slices_share_a_text() -> None:
    mesh = {"a": 2, "b": 3}
    traces = [traced(place, [cut(3 * dict(place)["a"] + dict(place)["b"])], "y") for place in places([2, 3])]
    (track,) = tracks_of(traces, mesh).values()
    assert track.axes == ("a", "b") and not track.fixed
    (step,) = track.bodies["step"]
    assert isinstance(step, Op)
    for place in places([2, 3]):
        assert evaluate(step.attr("start"), dict(place)) == 3 * dict(place)["a"] + dict(place)["b"]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "odd",
    [
        [cut(0), Op("neg", (Ref(Name("y")),), (Name("z"),), ())],
        [Op("mul", (Ref(Name("x")), 2.0), (Name("y"),), ())],
        [Op("full", (), (Name("y"),), (("fill_value", 0.5), ("size", (2,))))],
    ],
)
def test_ranks_that_differ_in_steps_have_tracks_of_their_own(odd: list[Op]) -> None:
    """Only along the axis that tells them apart."""
    mesh = {"a": 2, "b": 3}
    traces = [traced(place, odd if dict(place)["a"] else [cut(0)], "y") for place in places([2, 3])]
    tracks = tracks_of(traces, mesh)
    assert set(tracks) == {"a0", "a1"}
    assert all(track.axes == ("b",) for track in tracks.values())
    assert [len(track.bodies["step"]) for track in tracks.values()] == [1, len(odd)]


def test_an_order_of_steps_is_no_integer() -> None:
    first, second = cut(0, "y"), cut(1, "z")
    traces = [
        traced(place, [first, second] if dict(place)["a"] else [second, first], "y", "z")
        for place in places([2])
    ]
    assert set(tracks_of(traces, {"a": 2})) == {"a0", "a1"}


def test_a_float_in_an_operand_is_no_integer() -> None:
    """Numbers that are operands, and not attributes, tell ranks apart."""
    traces = [
        traced(place, [Op("mul", (Ref(Name("x")), dict(place)["a"]), (Name("y"),), ())], "y")
        for place in places([3])
    ]
    assert len(tracks_of(traces, {"a": 3})) == 3


def test_dead_steps_go_and_collectives_stay_on_all_ranks() -> None:
    """One rank needs the sum, the other does not: both take part; what neither needs goes."""
    reduce = Op("all_reduce", (Ref(Name("x")),), (Name("met_a_0"),), (("axes", ("a",)), ("reduce", "sum")))
    unused = Op("all_reduce", (Ref(Name("x")),), (Name("met_a_1"),), (("axes", ("a",)), ("reduce", "sum")))
    dead = Op("neg", (Ref(Name("x")),), (Name("neg_0"),), ())
    uses = Op("neg", (Ref(Name("met_a_0")),), (Name("y"),), ())
    other = Op("neg", (Ref(Name("x")),), (Name("y"),), ())
    one, two = live_steps(
        [
            traced((("a", 0),), [dead, reduce, unused, uses], "y"),
            traced((("a", 1),), [dead, reduce, unused, other], "y"),
        ]
    )
    assert [step.op for step in one.steps] == ["all_reduce", "neg"]
    assert [step.op for step in two.steps] == ["all_reduce", "neg"]


def test_a_message_nobody_reads_goes_with_its_send() -> None:
    key = ("p2p", 0, 1, 0, 0)
    send = Op("send", (Ref(Name("x")),), (), (("key", key), ("other", 1)))
    receive = Op("recv", (), (Name("recv_0"),), (("key", key), ("other", 0)))
    keep = Op("neg", (Ref(Name("x")),), (Name("y"),), ())
    reads = Op("neg", (Ref(Name("recv_0")),), (Name("y"),), ())
    for last, left in ((keep, ["neg"]), (reads, ["recv", "neg"])):
        one, two = live_steps(
            [traced((("a", 0),), [send, keep], "y"), traced((("a", 1),), [receive, last], "y")]
        )
        assert [step.op for step in two.steps] == left
        assert [step.op for step in one.steps] == (["send", "neg"] if last is reads else ["neg"])


def test_lifted_ops_keep_their_notes() -> None:
    note = (("source", "train.py:3"),)
    texts = {
        place: (Op("slice", (Ref(Name("x")),), (Name("y"),), (("start", at),), note),)
        for at, place in enumerate(places([3]))
    }
    (step,) = lift_ops(texts)
    assert step.note == note
