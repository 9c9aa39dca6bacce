"""Pages are whole, need nothing from outside, and cannot be broken by the names they show."""

from __future__ import annotations

import dataclasses
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensure.bundle import Local, Place, Plan, Track
from tensure.bundle._claims import ChainLink, OutputDigest, Sha256
from tensure.bundle._keys import SigningKey
from tensure.bundle._receipt import Receipt, issued_now
from tensure.program import Entry, For, Name, Op, Program, Ref, Value, digest
from tensure.views import BundleSummary, ReceiptView, TensorRow, render
from tensure.views._html import Markup, el, table, text

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'><svg/onload=alert(1)>",
    "</style></title><script>x</script>",
    "javascript:alert(1)",
    "&lt;b&gt;",
    "a\u202eb\x00\x1b[31m",
    "<!--",
    "]]>",
)
VOID = {"meta", "rect", "br"}
KEY = SigningKey.generate()


class Reader(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(document)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID or tag == "rect":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")


def check(document: str) -> Reader:
    """The rules every page keeps."""
    page = Reader(document)
    names = {tag for tag, _ in page.tags}
    assert not names & {
        "script",
        "iframe",
        "object",
        "embed",
        "link",
        "base",
        "form",
        "img",
        "image",
        "use",
        "a",
    }
    for tag, attributes in page.tags:
        for key, value in attributes.items():
            assert not key.startswith("on"), (tag, key)
            assert key not in ("src", "href", "style", "xlink:href", "srcset", "action"), (tag, key)
            assert "://" not in (value or ""), (tag, key, value)
    policies = [
        a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"]
    style = document.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    assert "prefers-color-scheme:dark" in style
    return page


def program(word: str) -> Program:
    name = Name(word)
    step = Op(word, (Ref(name),), (Name(word + "2"),))
    return Program(
        {word: 3},
        {word: Value((1, 3)), word + "w": Value((3,), role="weight")},
        {},
        {word: Entry((name,), (step, For(word, 0, 2, (step,))), (Name(word + "2"),))},
    )


def plan(word: str) -> Plan:
    found = program(word)
    track = Track(device=Name(word), bodies={word: found.entries[word].body})
    return Plan(digest(found), locals={word: Local((), Place(Name(word)))}, tracks={word: track})


def receipt(word: str) -> Receipt:
    output = OutputDigest(word, Sha256("0" * 64), "f32", (2, 3))
    return Receipt(outputs=(output,), link=ChainLink(word), issued=issued_now(KEY))


def records(word: str) -> list[object]:
    return [
        program(word),
        plan(word),
        ReceiptView(receipt(word), None, ((word, word, "asserted"),)),
        ReceiptView(receipt(word), word, ((word, word, "absent"),)),
        BundleSummary(
            word,
            word,
            word,
            word,
            program(word),
            {word: plan(word)},
            {word: 3},
            (TensorRow(word, (2,), word, 8),),
        ),
    ]


@pytest.mark.parametrize("word", HOSTILE)
def test_hostile_names_stay_text(word: str) -> None:
    for record in records(word):
        page = check(render(record))
        shown = "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in word)
        # Long labels in pictures are cut; in tables the whole name stands.
        assert any(shown in found for found in page.words), type(record)


@given(st.text(min_size=1, max_size=20))
def test_any_name_stays_text(word: str) -> None:
    for record in records(word):
        check(render(record))


@given(st.text(), st.text())
def test_elements_escape_children_and_attributes(child: str, value: str) -> None:
    page = Reader(str(el("div", child, title=value)))
    assert len(page.tags) == 1
    assert "".join(page.words) == "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in child[:4000])


def test_the_check_sees_an_unescaped_name() -> None:
    """Negative control: markup that slips through is found."""
    with pytest.raises(AssertionError):
        check(render(program("x")).replace("<h1>", "<h1><script>alert(1)</script>"))
    with pytest.raises(AssertionError):
        check(render(program("x")).replace("<h1>", '<h1 onclick="x">'))
    with pytest.raises(AssertionError):
        check(render(program("x")).replace("</h1>", ""))
    assert isinstance(text("<"), Markup)
    assert text("<") == "&lt;"


def test_a_receipt_that_does_not_verify_says_so_first() -> None:
    good = render(ReceiptView(receipt("x"), None, ()))
    bad = render(ReceiptView(receipt("x"), "the signature does not fit", ()))
    assert "Signature verified" in good
    assert "was not compared" in good
    assert "was not compared" not in bad
    assert "Does not verify" not in good
    assert bad.index("Does not verify") < bad.index("Outputs")
    assert "the signature does not fit" in bad
    assert "ignature verified" not in bad


def test_a_receipt_that_does_not_verify_wears_no_badges() -> None:
    claims = (("program", "x", "checked-at-load"), ("output", "x", "checked-now"))
    good = check(render(ReceiptView(receipt("x"), None, claims)))
    bad = check(render(ReceiptView(receipt("x"), "no", claims)))
    assert {"basis checked-now", "basis checked-at-load"} <= {a.get("class") for _, a in good.tags}
    assert not [a for _, a in bad.tags if "checked" in (a.get("class") or "")]


def test_large_records_stay_bounded() -> None:
    rows = [(str(number), "x") for number in range(5000)]
    found = str(table(("a", "b"), rows))
    assert "3000 more rows are left out" in found
    steps = tuple(Op("relu", (Ref(Name("x")),), (Name("y", (index,)),)) for index in range(5000))
    large = dataclasses.replace(program("x"), entries={"run": Entry((Name("x"),), steps, (Name("y", (1,)),))})
    document = render(large)
    assert "4500 more steps are left out" in document
    assert len(document) < 200_000


def test_other_records_are_refused() -> None:
    with pytest.raises(TypeError, match="no page for a int"):
        render(3)
