from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensure.errors import InputError, LimitError
from tensure.text import StopMatcher


def split_offline(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The meaning, one character at a time: the first stop to be complete, the longest of those."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            longest = max(ending, key=len)
            return text[: end - len(longest)], longest
    return text, None


def split_online(pieces: list[str], stops: list[str]) -> tuple[str, str | None]:
    matcher = StopMatcher(stops)
    shown = "".join(matcher.feed(piece) for piece in pieces) + matcher.flush()
    return shown, matcher.stopped_by


STOPS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=4)
PIECES = st.lists(st.text("abc", max_size=4), max_size=8)


@given(PIECES, STOPS)
def test_any_cutting_equals_the_offline_split(pieces: list[str], stops: list[str]) -> None:
    assert split_online(pieces, stops) == split_offline("".join(pieces), stops)


def test_a_matcher_that_holds_nothing_back_is_caught() -> None:
    """Negative control: matching within one piece only would pass no such comparison."""
    pieces, stops = ["x<", "/s>y"], ["</s>"]
    per_piece = "".join(split_offline(piece, stops)[0] for piece in pieces)
    assert per_piece != split_offline("".join(pieces), stops)[0] == split_online(pieces, stops)[0] == "x"


@given(PIECES, STOPS)
def test_no_prefix_of_a_stop_leaks(pieces: list[str], stops: list[str]) -> None:
    matcher, shown = StopMatcher(stops), ""
    final = split_offline("".join(pieces), stops)[0]
    for piece in pieces:
        shown += matcher.feed(piece)
        assert final.startswith(shown)


def test_holds_back_no_more_than_it_must() -> None:
    matcher = StopMatcher(["###"])
    assert [matcher.feed(piece) for piece in ("a", "#", "b", "##")] == ["a", "", "#b", ""]
    assert matcher.flush() == "##"


@pytest.mark.parametrize(
    ("stops", "error"),
    [([""], InputError), ("abc", InputError), (["x" * 2000], LimitError), (["x"] * 17, LimitError)],
)
def test_bad_stops(stops: list[str], error: type[Exception]) -> None:
    with pytest.raises(error, match="stop"):
        StopMatcher(stops)
