"""The JSON door: bounds hold before parsing, and what is no strict JSON does not pass."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensure.errors import FormatError, LimitError
from tensure.program import parse_json
from tensure.program._json_door import _check_depth, _find_depth

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def parse(data: bytes, **bounds: int) -> Any:
    return parse_json(data, **{"max_bytes": 1 << 24, "max_depth": 20, "max_items": 1000} | bounds)


@given(VALUES, st.booleans())
def test_what_json_writes_is_read_back(value: object, ascii_only: bool) -> None:
    assert parse(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


@pytest.mark.parametrize(
    "data",
    [
        rb'"\ud800"',
        rb'["\udfff"]',
        rb'[[["\uDBFF x"]]]',
        rb'{"a": ["\ud800\ud800"]}',
        rb'{"a": "\udc00\ud800"}',
        rb'{"\ud800": 1}',
    ],
)
def test_a_lone_surrogate_is_no_text_anywhere(data: bytes) -> None:
    with pytest.raises(FormatError, match="no Unicode text"):
        parse(data)


def test_a_surrogate_pair_is_one_character() -> None:
    assert parse(rb'["\ud83d\ude42", "\\ud800"]') == ["\U0001f642", "\\ud800"]


@pytest.mark.parametrize(
    "data",
    [b"[" + b"[]," * 1000 + b"[]]", b"[" + b"1," * 1000 + b"1]", b"[" + b"[[[[]]]]," * 300 + b"[]]"],
    ids=["lists", "numbers", "lists without commas"],
)
def test_items_are_counted_before_parsing(data: bytes) -> None:
    with pytest.raises(LimitError, match="over 1000 items"):
        parse(data)
    much = data * 100
    tracemalloc.start()
    try:
        with pytest.raises(LimitError):
            parse(much)
        assert tracemalloc.get_traced_memory()[1] < 1 << 16
    finally:
        tracemalloc.stop()
    assert parse(data, max_items=2000)


@settings(max_examples=2000)
@given(st.binary(max_size=24), st.lists(st.sampled_from(b'[]{}"\\a,'), max_size=24), st.integers(0, 3))
def test_depth_is_told_as_byte_by_byte(noise: bytes, marks: list[int], most: int) -> None:
    for data in (noise, bytes(marks)):
        assert _said(_check_depth, data, most) == _said(_find_depth, data, most)


def _said(check: Callable[[bytes, int, int], None], data: bytes, most: int) -> str:
    try:
        check(data, most, 7)
    except LimitError as error:
        return f"{error.found} {error.place}"
    return ""
