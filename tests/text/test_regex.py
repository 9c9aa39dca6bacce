"""What a pattern may cost: the dangerous are refused, the quadratic are given short texts, and it is true."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from tensure.errors import LimitError, TensureError, UnsupportedError
from tensure.text._regex import MAX_TEXT, longest_text

CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
LINEAR = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "llama3": (
        rf"{CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{SPACES}"
    ),
    "qwen2": rf"{CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{SPACES}",
    "o200k": (
        rf"[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]*[{LOWER}]+{CONTRACTION}?"
        rf"|[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]+[{LOWER}]*{CONTRACTION}?"
        rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}"
    ),
    "digits": r"[0-9][0-9][0-9]",
    "nested class": r" ?[^(\s|[.,!?…。，、।۔،])]+",
    "a class may hold brackets": r"[a[b](c*)*]",
}
QUADRATIC = {
    "deepseek": r"\s+$",
    "digits from the right": r"\d{1,3}(?=(?:\d{3})*\b)",
    "no alternative takes the stretch": r"a+[bc]",
    "a short alternative comes first": r"\s+$|\s|\s+",
    "case differs": r"(?i:a+b)|a+",
    "only one stretch of two": r"(?:a+|d+)c|a+",
}
REFUSED = {
    "overlapping alternatives": r"(?:a|aa)+c",
    "alternatives of one class": r"(?:\w|\d)*c",
    "alternatives with one case": r"(?i:a|Ab)*c",
    "spelled in two ways": "(?:\\n|\nb)*c",
    "an empty alternative": r"(?:a|)+c",
    "deeper": r"(?:x(?:a|aa))+c",
    "optional inside": r"(?:a?a?)+c",
    "a count inside": r"(?:a{1,2})*c",
    "counted alternatives": r"(?:a|aa){99}c",
    "many alternatives in a row": r"(?:a|aa)" * 20 + "c",
    "many options in a row": r"a?" * 25 + "c",
    "cubic": r"a*a*.b",
    "cubic through a group": r"(?:a*)(?=a*b)",
    "a repeat of a repeat": r"a{1,9}{1,9}",
    "no possessive count": r"a{1,9}+b",
    "many quantifiers": r"a+|" * 65 + "b",
    "a hidden bracket": r"\c[(a*)*]",
    "a bracket first": r"[](a*)*]",
    "free spacing": r"(?x:a #)(a*)*",
}


@pytest.mark.parametrize("name", LINEAR)
def test_published_patterns_run_over_anything(name: str) -> None:
    assert longest_text(LINEAR[name], "here") == MAX_TEXT


@pytest.mark.parametrize("name", QUADRATIC)
def test_quadratic_patterns_are_given_short_texts(name: str) -> None:
    assert 1000 < longest_text(QUADRATIC[name], "here") < 1 << 16


@pytest.mark.parametrize("name", REFUSED)
def test_dangerous_patterns_are_refused(name: str) -> None:
    with pytest.raises((UnsupportedError, LimitError), match="here: a pattern"):
        longest_text(REFUSED[name], "here")


def test_alternatives_that_begin_apart_may_repeat() -> None:
    assert longest_text(r"(?:a|bb|\n)+", "here") == MAX_TEXT


ATOMS = st.sampled_from(["a", "b", "[ab]", r"\w", "(?:^|$)", "(?=a)"])
PATTERNS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: f"(?:{'|'.join(parts)})"),
        inner.map(lambda part: f"(?={part})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "+?"])).map("".join),
    ),
    max_leaves=6,
)
TEXTS = ("a" * 4500, ("a" * 59 + "b") * 75, ("ab" * 29 + "c") * 75, "a" * 5000 + " x bc")


def gives_up(pattern: str, text: str) -> bool:
    """Whether the engine reaches its own limit of ten million steps for a match at the text's start."""
    try:
        pre_tokenizers.Split(Regex(rf"\A(?:{pattern})"), "isolated").pre_tokenize_str(text)
    except BaseException as error:
        if "retry-limit" in str(error):
            return True
        if "target of repeat operator is invalid" not in str(error):  # it refuses what repeats no text
            raise
    return False


@given(PATTERNS)
def test_what_passes_never_runs_long(pattern: str) -> None:
    try:
        longest_text(pattern, "here")
    except TensureError:
        return
    assert not any(gives_up(pattern, text) for text in TEXTS)


@pytest.mark.parametrize("case", ["overlapping alternatives", "optional inside", "cubic"])
def test_the_dangerous_ones_do_run_long(case: str) -> None:
    """Negative control: the texts and the limit above tell a dear pattern from a cheap one."""
    assert any(gives_up(REFUSED[case], text) for text in TEXTS)
