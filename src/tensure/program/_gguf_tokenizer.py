"""The tokenizer, chat template and token ids that a GGUF file's metadata describe.

Knows: byte-level BPE ("gpt2", with the text split its vocabulary was trained with) and SentencePiece BPE
("llama"), both rebuilt as a tokenizer.json document. Never guesses: a split it does not know is refused,
because the wrong one gives plausible but wrong ids. Does not run a tokenizer nor any chat template.

The splits are those named in llama.cpp's `llama-vocab.cpp`, written as the tokenizers' own published
tokenizer.json files have them. Nothing in the document adds tokens: `text_config` says whether BOS is wanted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np

from tensure.errors import FormatError, LimitError, UnsupportedError

from ._gguf import MetadataValue

__all__ = ["chat_template", "text_config", "tokenizer_json"]

Metadata = Mapping[str, MetadataValue]
Json = dict[str, Any]
_T = TypeVar("_T")

MAX_TOKENS = 1 << 20
MAX_PIECE_BYTES = 1024  # longest known: 128 spaces
MAX_TEMPLATE_CHARS = 1 << 18
MAX_CONTEXT = 1 << 31
MAX_SPLIT_WORK = 1 << 26  # sum of squared piece lengths while merges are recovered; Llama 2 has 2e6

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _WORDS + r"|\p{N}{1,3}" + _REST
_QWEN2 = _WORDS + r"|\p{N}" + _REST


@dataclass(frozen=True, slots=True)
class _Split:
    """How text is cut before merging: regular expressions in turn, each match a piece of its own."""

    patterns: tuple[str, ...]
    whole_words: bool = False  # a piece that is a token is taken whole, unmerged
    add_bos: bool = False  # llama.cpp's default where the file does not say
    normalizer: str | None = None


_DIGITS_APART = _Split((r"\p{N}", _GPT2))
_SPLITS: Mapping[str, _Split] = MappingProxyType(
    {
        "smollm": _DIGITS_APART,
        "starcoder": _DIGITS_APART,
        "refact": _DIGITS_APART,  # Granite 3 and the Granite code models
        "gpt-2": _Split((_GPT2,)),
        "olmo": _Split((_GPT2,)),
        "llama-bpe": _Split((_LLAMA3,), whole_words=True, add_bos=True),
        "llama3": _Split((_LLAMA3,), whole_words=True, add_bos=True),
        "llama-v3": _Split((_LLAMA3,), whole_words=True, add_bos=True),
        "dbrx": _Split((_LLAMA3,)),
        "qwen2": _Split((_QWEN2,), normalizer="NFC"),  # Qwen 2, 2.5 and 3
        "default": _Split((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    }
)


def tokenizer_json(metadata: Metadata) -> bytes:
    """The tokenizer as a tokenizer.json document (UTF-8), which adds no special tokens by itself.

    Control tokens become special added tokens, user-defined ones plain added tokens; both match whole.

    Raises:
        UnsupportedError: a tokenizer model or a text split we do not know, by name.
        FormatError: a missing or mistyped key, a duplicate or over-long piece, a merge of unknown pieces.
        LimitError: a vocabulary larger than any model's.
    """
    vocabulary = _vocabulary(metadata)
    model = _text(metadata, "tokenizer.ggml.model")
    if model == "gpt2":
        document = _byte_level(metadata, vocabulary)
    elif model == "llama":
        document = _sentencepiece(metadata, vocabulary)
    else:
        raise UnsupportedError(f"tokenizer model {model[:80]!r}", place=_MODEL, wanted="gpt2 or llama")
    document |= {"version": "1.0", "truncation": None, "padding": None, "post_processor": None}
    document["added_tokens"] = [
        {
            "id": token_id,
            "content": vocabulary.tokens[token_id],
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": special,
        }
        for token_id, special in vocabulary.added()
    ]
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()


def text_config(metadata: Metadata) -> Json:
    """What a caller of the tokenizer needs to know, ready for text.json.

    `bos_id`, `unk_id`, `pad_id` (or None), `eos_ids` (of text, turn and message, in this order, none twice),
    `add_bos`, `add_eos`, `context_length` (or None), `vocab_size`, and `dropped_bytes`: the byte values no
    token stands for, so that text holding them is silently shortened by the tokenizer.
    """
    vocabulary = _vocabulary(metadata)
    ids = {name: _token_id(metadata, name, len(vocabulary.tokens)) for name in _TOKEN_IDS}
    ends = [ids[name] for name in ("eos", "eot", "eom") if ids[name] is not None]
    split = _SPLITS.get(_text(metadata, _PRE, ""))
    sentencepiece = _text(metadata, _MODEL) == "llama"
    add_bos = _flag(
        metadata, "tokenizer.ggml.add_bos_token", sentencepiece or (split is not None and split.add_bos)
    )
    return {
        "bos_id": ids["bos"],
        "eos_ids": list(dict.fromkeys(ends)),
        "unk_id": ids["unknown"],
        "pad_id": ids["padding"],
        "add_bos": add_bos and ids["bos"] is not None,
        "add_eos": _flag(metadata, "tokenizer.ggml.add_eos_token", False) and ids["eos"] is not None,
        "context_length": _context_length(metadata),
        "vocab_size": len(vocabulary.tokens),
        "dropped_bytes": _dropped_bytes(vocabulary, sentencepiece),
    }


def chat_template(metadata: Metadata) -> str | None:
    """The file's chat template, or None. It is a program written by a stranger: room text/ confines it."""
    template = _text(metadata, "tokenizer.chat_template", "")
    if len(template) > MAX_TEMPLATE_CHARS:
        raise LimitError(
            f"a chat template of {len(template)} characters",
            place="tokenizer.chat_template",
            wanted=f"at most {MAX_TEMPLATE_CHARS}",
        )
    return template or None


_MODEL, _PRE = "tokenizer.ggml.model", "tokenizer.ggml.pre"
_TOKENS, _TYPES, _SCORES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.scores"
_MERGES = "tokenizer.ggml.merges"
_TOKEN_IDS = ("bos", "eos", "eot", "eom", "unknown", "padding")


@dataclass(frozen=True, slots=True, eq=False)
class _Vocabulary:
    tokens: tuple[str, ...]
    ids: Mapping[str, int]
    types: Sequence[int]

    def added(self) -> list[tuple[int, bool]]:
        """Ids of the tokens that match whole in a text, and whether they are special."""
        return [
            (token_id, kind != _USER_DEFINED)
            for token_id, kind in enumerate(self.types)
            if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)
        ]


def _vocabulary(metadata: Metadata) -> _Vocabulary:
    tokens = _strings(metadata, _TOKENS)
    if not tokens or len(tokens) > MAX_TOKENS:
        raise LimitError(f"{len(tokens)} tokens", place=_TOKENS, wanted=f"1 to {MAX_TOKENS}")
    ids: dict[str, int] = {}
    for token_id, token in enumerate(tokens):
        if len(token) > MAX_PIECE_BYTES // 4 and len(token.encode()) > MAX_PIECE_BYTES:
            raise LimitError(
                f"a piece of {len(token.encode())} bytes",
                place=f"{_TOKENS}, item {token_id}",
                wanted=f"at most {MAX_PIECE_BYTES}",
            )
        if ids.setdefault(token, token_id) != token_id:
            raise FormatError(
                f"token {token[:40]!r} stands there twice",
                place=f"{_TOKENS}, items {ids[token]} and {token_id}",
            )
    types = _token_types(metadata, len(tokens))
    for token_id, kind in enumerate(types):
        if not tokens[token_id] and kind in (_UNKNOWN, _CONTROL, _USER_DEFINED):
            raise FormatError("an empty control token", place=f"{_TOKENS}, item {token_id}")
    return _Vocabulary(tokens, ids, types)


def _token_types(metadata: Metadata, count: int) -> Sequence[int]:
    types = metadata.get(_TYPES)
    if types is None:
        # Old files: only the tokens that the file names by id are known to be special.
        kinds = [_NORMAL] * count
        for name in _TOKEN_IDS:
            token_id = _token_id(metadata, name, count)
            if token_id is not None:
                kinds[token_id] = _CONTROL
        return kinds
    if not isinstance(types, np.ndarray) or types.dtype.kind not in "iu" or types.size != count:
        raise FormatError(
            "not one whole number for each token", place=_TYPES, wanted=f"{count} numbers from 0 to 6"
        )
    kinds = [int(kind) for kind in types.tolist()]
    for token_id, kind in enumerate(kinds):
        if not 0 <= kind <= _BYTE:
            raise FormatError(f"token type {kind}", place=f"{_TYPES}, item {token_id}", wanted="0 to 6")
    return kinds


def _byte_level(metadata: Metadata, vocabulary: _Vocabulary) -> Json:
    pre = _text(metadata, _PRE, "")
    split = _SPLITS.get(pre)
    if split is None:
        raise UnsupportedError(
            f"text split {pre[:80]!r}" if pre else "the file names no text split",
            place=_PRE,
            wanted=" ".join(_SPLITS),
            next_step="Convert the model again with a current tool" if not pre else None,
        )
    cuts = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in split.patterns
    ]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "normalizer": {"type": split.normalizer} if split.normalizer else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*cuts, level]},
        "decoder": level,
        "model": _bpe(vocabulary, _stated_merges(metadata, vocabulary), ignore_merges=split.whole_words),
    }


def _sentencepiece(metadata: Metadata, vocabulary: _Vocabulary) -> Json:
    unknown = _token_id(metadata, "unknown", len(vocabulary.tokens))
    normalizers: list[Json] = [{"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    decoders: list[Json] = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if _flag(metadata, "tokenizer.ggml.add_space_prefix", True):
        normalizers.insert(0, {"type": "Prepend", "prepend": "▁"})
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    if _MERGES in metadata:
        merges = _stated_merges(metadata, vocabulary)
    else:
        merges = _recovered_merges(metadata, vocabulary)
    return {
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _bpe(
            vocabulary,
            merges,
            unk_token=None if unknown is None else vocabulary.tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        ),
    }


def _bpe(vocabulary: _Vocabulary, merges: list[tuple[str, str]], **options: object) -> Json:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": dict(vocabulary.ids),
        "merges": merges,
        **options,
    }


def _stated_merges(metadata: Metadata, vocabulary: _Vocabulary) -> list[tuple[str, str]]:
    merges: list[tuple[str, str]] = []
    ids = vocabulary.ids
    for index, line in enumerate(_strings(metadata, _MERGES)):
        # The first space parts the two pieces, except that a piece may itself begin with one.
        cut = line.find(" ", 1)
        left, right = line[:cut], line[cut + 1 :]
        if cut < 0 or left not in ids or right not in ids or left + right not in ids:
            raise FormatError(
                f"merge {line[:80]!r} names a piece that is no token",
                place=f"{_MERGES}, item {index}",
                wanted="two tokens that join to a third",
            )
        merges.append((left, right))
    return merges


def _recovered_merges(metadata: Metadata, vocabulary: _Vocabulary) -> list[tuple[str, str]]:
    """Every way to join two pieces to a third, best score first.

    SentencePiece joins the pair whose result scores best. Ranked merges give the same order, except where two
    splits of one piece overlap in a text, as in long runs of one character. That a longer left half goes
    first is the convention of the published Llama conversions.
    """
    scores = metadata.get(_SCORES)
    count = len(vocabulary.tokens)
    if not isinstance(scores, np.ndarray) or scores.dtype.kind != "f" or scores.size != count:
        raise FormatError("not one score for each token", place=_SCORES, wanted=f"{count} floats")
    if not bool(np.isfinite(scores).all()):
        raise FormatError("a score that is not finite", place=_SCORES)
    if sum(len(token) ** 2 for token in vocabulary.tokens) > MAX_SPLIT_WORK:
        raise LimitError(
            "pieces too long to recover their merges", place=_TOKENS, wanted="a SentencePiece vocabulary"
        )
    parts = {
        token for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True) if kind == _NORMAL
    }
    ranked: list[tuple[float, int, int, int]] = []
    for token_id, (token, score) in enumerate(zip(vocabulary.tokens, scores.tolist(), strict=True)):
        if vocabulary.types[token_id] == _NORMAL:
            ranked += [
                (-score, -cut, token_id, cut)
                for cut in range(1, len(token))
                if token[:cut] in parts and token[cut:] in parts
            ]
    ranked.sort()
    tokens = vocabulary.tokens
    return [(tokens[token_id][:cut], tokens[token_id][cut:]) for _, _, token_id, cut in ranked]


def _dropped_bytes(vocabulary: _Vocabulary, sentencepiece: bool) -> list[int]:
    if sentencepiece:
        return [byte for byte in range(256) if f"<0x{byte:02X}>" not in vocabulary.ids]
    return [byte for byte, character in enumerate(_byte_alphabet()) if character not in vocabulary.ids]


def _byte_alphabet() -> str:
    """The printable character that stands for each byte in GPT-2's byte-level vocabularies.

    Bytes that are printable Latin-1 stand for themselves; the others, in order, take U+0100 onwards.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return "".join(chr(byte if byte in printable else 0x100 + others.index(byte)) for byte in range(256))


def _context_length(metadata: Metadata) -> int | None:
    architecture = _text(metadata, "general.architecture", "")
    key = f"{architecture}.context_length"
    return _integer(metadata, key, 1, MAX_CONTEXT) if key in metadata else None


def _token_id(metadata: Metadata, name: str, count: int) -> int | None:
    key = f"tokenizer.ggml.{name}_token_id"
    return _integer(metadata, key, 0, count - 1) if key in metadata else None


def _integer(metadata: Metadata, key: str, low: int, high: int) -> int:
    value = _typed(metadata, key, int)
    if isinstance(value, bool) or not low <= value <= high:
        raise FormatError(f"{value!r}", place=key, wanted=f"a whole number from {low} to {high}")
    return value


def _text(metadata: Metadata, key: str, default: str | None = None) -> str:
    return _typed(metadata, key, str, default)


def _flag(metadata: Metadata, key: str, default: bool) -> bool:
    return _typed(metadata, key, bool, default)


def _strings(metadata: Metadata, key: str) -> tuple[str, ...]:
    return _typed(metadata, key, tuple)


def _typed(metadata: Metadata, key: str, kind: type[_T], default: _T | None = None) -> _T:
    value = metadata.get(key, default)
    if value is None:
        raise FormatError("the metadata key is missing", place=key)
    if not isinstance(value, kind):
        raise FormatError(f"a {type(value).__name__}", place=key, wanted=kind.__name__)
    return value
