"""The text form: parse and print are inverses, one Program has one text, hostile text gets a place."""

from __future__ import annotations

import math
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensure.errors import LimitError, RecordError, TensureError
from tensure.program import (
    Block,
    Call,
    Cat,
    Each,
    Entry,
    For,
    Name,
    Op,
    Program,
    Ref,
    State,
    Value,
    axis,
    digest,
    expr,
    format_program,
    name,
    op,
    parse_program,
)
from tensure.program._lex import RESERVED

idents = st.text(string.ascii_letters + "_", min_size=1, max_size=6).filter(
    lambda text: text not in RESERVED and text != "order"
)
ints = (
    st.integers(-5, 9)
    | idents.map(axis)
    | st.sampled_from([expr("pos+1"), expr("max(r-1,0)"), expr("a//(b+1)%3")])
)
names = st.builds(Name, idents, st.lists(ints, max_size=2).map(tuple))
boxes = (
    st.lists(st.integers(0, 7), max_size=2, unique=True)
    .map(sorted)
    .flatmap(lambda dims: st.tuples(*(st.tuples(st.just(dim), ints, ints) for dim in dims)))
)
refs = st.builds(Ref, names, boxes)
numbers = st.floats(width=64) | st.integers(-9, 1 << 40) | st.booleans() | st.none()
args = st.recursive(
    refs | numbers | st.just(expr("pos*2")),
    lambda inner: (
        st.builds(Cat, st.integers(0, 5), st.lists(inner, min_size=1, max_size=3).map(tuple))
        | st.builds(Each, idents, ints, ints, inner)
    ),
    max_leaves=4,
)
attr_values = st.recursive(
    numbers | st.text(max_size=8) | ints, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=5
)
attrs = st.dictionaries(idents, attr_values, max_size=3).map(lambda table: tuple(sorted(table.items())))
ops = st.builds(
    Op, idents, st.lists(args, max_size=3).map(tuple), st.lists(names, max_size=2).map(tuple), attrs, attrs
)
bodies = st.recursive(
    st.lists(
        ops | st.builds(Call, idents, st.lists(ints, max_size=2).map(tuple)), min_size=1, max_size=3
    ).map(tuple),
    lambda inner: st.lists(st.builds(For, idents, ints, ints, inner), min_size=1, max_size=2).map(tuple),
    max_leaves=4,
)
letters = st.lists(st.tuples(idents, ints), max_size=2).map(tuple)
values = st.builds(
    Value,
    st.lists(ints, max_size=3).map(tuple),
    st.sampled_from(["f32", "i8", "bf16"]),
    st.sampled_from(["weight", "state", "value"]),
    letters,
    st.none() | st.just((1, 0)),
)
entries = st.builds(
    Entry,
    st.lists(names, max_size=2).map(tuple),
    bodies,
    st.lists(names, max_size=2).map(tuple),
    st.lists(st.builds(State, names, names, letters), max_size=2).map(tuple),
    st.lists(st.tuples(idents, ints, ints), max_size=2).map(tuple),
    st.lists(st.tuples(idents, ints), max_size=1).map(tuple),
)
programs = st.builds(
    Program,
    st.dictionaries(idents, st.integers(0, 99), max_size=2),
    st.dictionaries(idents, values, max_size=3),
    st.dictionaries(idents, st.builds(Block, st.lists(idents, max_size=2).map(tuple), bodies), max_size=2),
    st.dictionaries(idents, entries, min_size=1, max_size=2),
)


def same(one: object, other: object) -> bool:
    """Record equality with NaN equal to itself: repr spells every bit that matters."""
    return repr(one) == repr(other)


@given(programs)
def test_parse_inverts_format(program: Program) -> None:
    text = format_program(program)
    again = parse_program(text)
    assert same(again, program)
    assert format_program(again) == text


@given(programs)
def test_notes_are_outside_the_digest(program: Program) -> None:
    bare = parse_program(format_program(program, notes=False))
    assert digest(bare) == digest(program)


def tiny(**change: object) -> Program:
    value = Value((2, 3), "f32")
    body = (op("view", "x", out="y", size=[3, 2]),)
    parts = {"value": value, "body": body, **change}
    return Program({}, {"x": parts["value"]}, {}, {"run": Entry((name("x"),), parts["body"], (name("y"),))})  # type: ignore


@pytest.mark.parametrize(
    "other",
    [
        tiny(value=Value((3, 2), "f32")),
        tiny(value=Value((2, 3), "f64")),
        tiny(value=Value((2, 3), "f32", order=(1, 0))),
        tiny(body=(op("view", "x", out="y", size=[6, 1]),)),
        tiny(body=(op("reshape", "x", out="y", shape=[3, 2]),)),
        tiny(body=(op("mul", "x", 1.0, out="y"),)),
        tiny(body=(op("mul", "x", math.nextafter(1.0, 2), out="y"),)),
        tiny(body=(op("mul", "x", 1, out="y"),)),
    ],
)
def test_whatever_changes_meaning_changes_the_digest(other: Program) -> None:
    assert digest(other) != digest(tiny())
    assert digest(tiny()) == digest(parse_program(format_program(tiny())))


GOOD = format_program(tiny())


@pytest.mark.parametrize(
    ("broken", "where"),
    [
        (GOOD.replace("tensure program 1", "tensure program 2"), "line 1"),
        (GOOD.replace("size=[3, 2]", "size=[3, 2"), "line 5"),
        (GOOD.replace("size=[3, 2]", "size=[3, 2] size=[3, 2]"), "rising order"),
        (GOOD.replace("  output y", "  output y\n\n"), "blank line"),
        (GOOD.replace("  output y", "   output y"), "indented by 3"),
        (GOOD + "    output z\n", "line 7"),
        (GOOD[:-1], "newline"),
        (GOOD.replace("y = ", "y = y = "), "line 5"),
        (GOOD.replace("f32[2,3]", "f32[2,3"), "line 2"),
        (GOOD.replace("value x", "value x : f32[1]\nvalue x"), "stands twice"),
        (GOOD.replace("view", "vi ew"), "line 5"),
        (GOOD.replace("x", "for"), "a name"),
        (GOOD.replace("x", "\x00"), "character"),
        (GOOD.replace("size", "\u2028"), "character"),
        ("", "newline"),
        ("\n", "blank line"),
    ],
)
def test_broken_text_names_its_place(broken: str, where: str) -> None:
    with pytest.raises(RecordError, match=where):
        parse_program(broken)


def test_hostile_sizes_are_bounded() -> None:
    with pytest.raises(LimitError, match="characters"):
        parse_program(GOOD.replace("x", "x" * 100_000))
    deep = "tensure program 1\nblock b():\n" + "".join(
        f"{'  ' * (d + 1)}for i{d} in 0..1:\n" for d in range(200)
    )
    with pytest.raises(LimitError, match="nested"):
        parse_program(deep)
    nest = GOOD.replace("size=[3, 2]", "size=" + "[" * 500 + "]" * 500)
    with pytest.raises(LimitError, match="nested"):
        parse_program(nest)


@given(st.data())
def test_mutated_text_is_refused_or_parses(data: st.DataObject) -> None:
    """Structure-aware noise: only a TensureError may come out."""
    program = data.draw(programs)
    text = list(format_program(program))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text) - 1))
        text[at] = data.draw(st.sampled_from(list('()[]{}=:,.#"\\ \nx0-+*%/<>|') + ["..", "for ", "each "]))
    try:
        parse_program("".join(text))
    except TensureError as error:
        assert str(error)


@pytest.mark.parametrize(
    ("one", "other"),
    [(1, 1.0), (1, True), (1.0, True), (0.0, -0.0), (0, False)],
    ids=lambda value: repr(value),
)
def test_equal_numbers_of_other_kinds_have_other_digests(one: float, other: float) -> None:
    """Python calls them equal; the ops do not."""
    first, second = (tiny(body=(op("full", out="y", size=[2], fill_value=value),)) for value in (one, other))
    assert digest(first) != digest(second)
    assert digest(second) == digest(parse_program(format_program(second)))


def test_order_of_declaration_is_part_of_the_text() -> None:
    one = Program({"A": 1, "B": 2}, {}, {}, tiny().entries)
    other = Program({"B": 2, "A": 1}, {}, {}, tiny().entries)
    assert digest(one) != digest(other)


@pytest.mark.parametrize(
    "spelling",
    [
        GOOD.replace("f32[2,3]", "f32[1+1,3]"),
        GOOD.replace("view(x)", "view( x )"),
        GOOD.replace("view(x)", "view(x[])"),
        GOOD.replace("[3, 2]", "[3,2]"),
        GOOD.replace("value x :", "value x:"),
    ],
)
def test_one_record_has_one_text(spelling: str) -> None:
    with pytest.raises(RecordError, match=r"line [25].*canonical"):
        parse_program(spelling)


def test_reserved_words_are_fine_as_attributes() -> None:
    program = tiny(body=(op("all_to_all", "x", out="y", axes=["ep"], split=0, cat=1),))
    assert parse_program(format_program(program)) == program


def test_integers_of_64_bits_read_back() -> None:
    program = tiny(body=(op("slice", "x", out="y", end=(1 << 63) - 1),))
    assert parse_program(format_program(program)) == program
