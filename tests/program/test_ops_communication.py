"""Collectives as functions of all members' operands, against their defining equations."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensure.errors import RecordError
from tensure.program._ops import collective, infer_collective, listed, lookup
from tensure.program._ops._rules import type_of
from tensure.program._ops._table import bind_op
from tensure.program._records import TensorType
from tensure.program._walk import COLLECTIVES, COMMUNICATION

from .op_draws import FLOATS, INTEGERS, one, shape, small, tensor

EXAMPLES = 200 if os.environ.get("TENSURE_TEST_PROFILE") == "nightly" else 25
AXES = ("tp",)


def test_the_table_and_the_walk_list_the_same_ops() -> None:
    assert {name for name, definition in listed().items() if definition.communication} == COMMUNICATION


@st.composite
def groups(draw: Any) -> tuple[list[Any], int]:
    """Members' operands of one type, and a dim that the group's size divides."""
    count = small(draw, 1, 4)
    size = list(shape(draw, 1, 3))
    dim = small(draw, 0, len(size) - 1)
    size[dim] *= count
    dtype = one(draw, FLOATS + INTEGERS)
    return [tensor(draw, tuple(size), dtype) for _ in range(count)], dim


@settings(max_examples=EXAMPLES, deadline=None)
@given(groups(), st.sampled_from(["sum", "max", "min"]))
def test_reductions(group: Any, reduce: str) -> None:
    members, dim = group
    wide = [
        item.astype(np.float32) if item.dtype.kind not in "iuf" or item.itemsize == 2 else item
        for item in members
    ]
    fold = {"sum": np.add, "max": np.maximum, "min": np.minimum}[reduce]
    want = wide[0]
    for item in wide[1:]:
        want = fold(want, item)
    want = want.astype(members[0].dtype)
    whole = collective("all_reduce", members, {"axes": AXES, "reduce": reduce})
    assert all(np.array_equal(item, want) and item.dtype == want.dtype for item in whole)
    parts = collective("reduce_scatter", members, {"axes": AXES, "dim": dim, "reduce": reduce})
    assert np.array_equal(np.concatenate(parts, axis=dim), want)


@settings(max_examples=EXAMPLES, deadline=None)
@given(groups(), st.integers(0, 2))
def test_gather_and_exchange(group: Any, other: int) -> None:
    members, dim = group
    rank, count = members[0].ndim, len(members)
    joined = np.concatenate(members, axis=dim)
    assert all(
        np.array_equal(item, joined) for item in collective("all_gather", members, {"axes": AXES, "dim": dim})
    )
    join = other % rank
    there = collective("all_to_all", members, {"axes": AXES, "split": dim, "cat": join})
    blocks = [np.split(item, count, axis=dim) for item in members]
    for to, item in enumerate(there):
        for sender, block in enumerate(np.split(item, count, axis=join)):
            assert np.array_equal(block, blocks[sender][to])
    back = collective("all_to_all", there, {"axes": AXES, "split": join, "cat": dim})
    assert all(np.array_equal(a, b) for a, b in zip(back, members, strict=True))
    attrs = {"axes": AXES, "split": dim, "cat": join}
    assert infer_collective("all_to_all", [type_of(item) for item in members], attrs) == [
        type_of(x) for x in there
    ]


def test_a_group_order_matters_to_exchange() -> None:
    """The negative control: members handed over in another order give another answer."""
    members = [np.arange(4) + 10 * rank for rank in range(2)]
    attrs = {"axes": AXES, "split": 0, "cat": 0}
    assert not np.array_equal(
        collective("all_to_all", members, attrs)[0], collective("all_to_all", members[::-1], attrs)[0]
    )


def test_uneven_gather() -> None:
    members = [np.ones((2, size), np.float32) for size in (1, 0, 3)]
    assert collective("all_gather", members, {"axes": AXES, "dim": 1})[1].shape == (2, 4)


F32 = TensorType((3, 2), "f32")


@pytest.mark.parametrize("name,members,attrs,word", [
    ("all_reduce", [], {"axes": AXES}, "0 members"),
    ("all_reduce", [F32, TensorType((3, 2), "f16")], {"axes": AXES}, "one type"),
    ("all_reduce", [F32, F32], {"axes": AXES, "reduce": "xor"}, "xor"),
    ("all_reduce", [F32, F32], {}, "axes"),
    ("reduce_scatter", [F32, F32], {"axes": AXES, "dim": 0}, "equal parts"),
    ("all_to_all", [F32, F32], {"axes": AXES, "split": 0, "cat": 1}, "equal parts"),
    ("all_gather", [F32, TensorType((3,), "f32")], {"axes": AXES, "dim": 0}, "one type but"),
    ("all_gather", [F32, F32], {"axes": AXES, "dim": 2}, "dim=2"),
    ("send", [F32], {"to": "a", "key": 1}, "collective"),
])  # fmt: skip
def test_refused_by_name(name: str, members: list[Any], attrs: dict[str, Any], word: str) -> None:
    with pytest.raises(RecordError) as caught:
        infer_collective(name, members, attrs)
    assert name in str(caught.value) and word in str(caught.value)


def test_send_and_recv_have_attributes_only() -> None:
    given_ = bind_op(lookup("send"), [F32], {"to": "dev1", "key": ("x", 7, 0), "at": (0, 1)})
    assert given_["at"] == (0, 1)
    with pytest.raises(RecordError, match="key"):
        bind_op(lookup("recv"), [], {"key": 0.5})
    assert {"send", "recv"} == COMMUNICATION - COLLECTIVES
