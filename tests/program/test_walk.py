"""Expansion and the walk over ranks: bounds, order, deadlocks."""

from __future__ import annotations

import pytest

from tensure.errors import LimitError, RecordError
from tensure.program import Block, Call, Cat, Each, For, Op, Ref, axis, expand, expr, name, op, ref


def printed(items: list[Op]) -> list[str]:
    return [f"{','.join(map(str, item.outs))}={item.op}" for item in items]


def test_loops_calls_and_splices_become_a_flat_list() -> None:
    blocks = {
        "two": Block(("l",), (op("relu", "x[l]", out="h[l]"), op("relu", "h[l]", out="x[l+1]"))),
    }
    body = (
        For("i", 0, axis("L"), (Call("two", (axis("i"),)),)),
        op("cat", Each("j", 0, axis("L"), ref("x[j+1]")), out="y"),
    )
    steps = list(expand(blocks, body, {"L": 3}))
    assert printed(steps) == [f"{n}=relu" for i in range(3) for n in (f"h[{i}]", f"x[{i + 1}]")] + ["y=cat"]
    assert steps[-1].args == (Ref(name("x[1]")), Ref(name("x[2]")), Ref(name("x[3]")))


def test_boxes_attributes_and_numbers_are_ground() -> None:
    item = op(
        "f",
        Cat(1, (ref("x", (0, "pos", "pos+2")),)),
        expr("pos*3"),
        out="y",
        size=[expr("pos"), [expr("pos+1")]],
    )
    (step,) = expand({}, (item,), {"pos": 4})
    assert step.args == (Cat(1, (Ref(name("x"), ((0, 4, 6),)),)), 12)
    assert step.attr("size") == (4, (5,))


@pytest.mark.parametrize(
    ("blocks", "body", "error"),
    [
        ({"b": Block((), (Call("b"),))}, (Call("b"),), LimitError),
        ({}, (Call("nowhere"),), RecordError),
        ({"b": Block(("x",), (op("f", out="y"),))}, (Call("b"),), RecordError),
        ({}, (For("i", 0, 1 << 40, (op("f", out="y[i]"),)),), LimitError),
        ({}, (For("i", 0, 3, (For("i", 0, 2, (op("f", out="y[i]"),)),)),), RecordError),
        ({}, (op("f", Each("i", 0, 1 << 30, ref("x[i]")), out="y"),), LimitError),
        ({}, (op("f", out="y[q]"),), RecordError),
    ],
)
def test_hostile_bodies_end(
    blocks: dict[str, Block], body: tuple[object, ...], error: type[Exception]
) -> None:
    with pytest.raises(error):
        list(expand(blocks, body, {}))  # type: ignore[arg-type]


def test_expansion_is_limited() -> None:
    with pytest.raises(LimitError, match="over 10 steps"):
        list(expand({}, (For("i", 0, 100, (op("f", out="y[i]"),)),), {}, limit=10))
