"""The door for tokenizer.json files, which are hostile until checked.

Knows which parts of such a file we let through and how large each may be. Does not run a tokenizer: it hands
back the checked tree, and only that, written out again, reaches the `tokenizers` library. Does not know what
a regular expression costs (`_regex` does).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tensure.errors import FormatError, LimitError, TensureError, UnsupportedError
from tensure.program import parse_json

from ._regex import MAX_PATTERN_CHARS, MAX_TEXT, longest_text

__all__ = ["checked_tree", "parts_of"]

MAX_JSON_BYTES = 64 << 20
MAX_VOCABULARY = 1 << 20
MAX_MERGES = 1 << 20
MAX_ADDED_TOKENS = 1 << 14
MAX_ITEMS = 1 << 21  # a merge may be a list of two: three items
MAX_DEPTH = 64
MAX_PIECE_CHARS = 1024
MAX_PATTERNS = 16
MAX_EXPANSION = 16
MAX_COMPATIBILITY = 18  # characters that NFKC and NFKD make of one, at most

_MODELS = {"BPE", "Unigram"}
_PARTS: Mapping[str, frozenset[str]] = {
    "normalizer": frozenset(
        {"Sequence", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Strip", "Prepend", "Replace"}
    ),
    "pre_tokenizer": frozenset(
        {
            "Sequence",
            "ByteLevel",
            "Split",
            "Digits",
            "Metaspace",
            "Punctuation",
            "Whitespace",
            "WhitespaceSplit",
        }
    ),
    "post_processor": frozenset({"Sequence", "ByteLevel", "TemplateProcessing"}),
    "decoder": frozenset({"Sequence", "ByteLevel", "Metaspace", "ByteFallback", "Fuse", "Replace", "Strip"}),
}


def checked_tree(data: bytes) -> tuple[dict[str, Any], int]:
    """The file as JSON, and how many characters of text its patterns may be run over.

    Every part is known, every size is within its cap, and nothing is left that alters prompts.
    """
    try:
        tree = parse_json(
            data, max_bytes=MAX_JSON_BYTES, max_depth=MAX_DEPTH, max_items=MAX_ITEMS, floats=True
        )
    except TensureError as error:
        raise error.at(place="tokenizer.json") from None
    longest, growth = MAX_TEXT, 1
    if not isinstance(tree, dict) or not isinstance(tree.get("model"), dict):
        raise FormatError("no model in the tokenizer", wanted="a tokenizer.json")
    # Fixed padding is a memory bomb; truncation would cut a prompt without a word. We want neither.
    tree["padding"] = tree["truncation"] = None
    _check_model(tree["model"])
    _check_added(tree.get("added_tokens", []))
    for place, allowed in _PARTS.items():
        parts = list(parts_of(tree.get(place)))
        for part in parts:
            if part["type"] not in allowed:
                raise UnsupportedError(
                    f"a {place} of type {part['type']!r:.40}", place=place, wanted=f"one of {sorted(allowed)}"
                )
        longest = min(longest, _check_patterns(parts, place))
        if place == "normalizer":
            growth = _check_expansion(parts)
        if place == "post_processor":
            _check_templates(parts)
    return tree, longest // growth


def parts_of(root: object) -> Iterator[dict[str, Any]]:
    """Every leaf component below `root`, Sequences unfolded; bounded, without recursion."""
    pending: list[object] = [] if root is None else [root]
    for _ in range(256):
        if not pending:
            return
        part = pending.pop(0)
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise FormatError("a component without a type", wanted="an object with a type")
        if part["type"] != "Sequence":
            yield part
            continue
        lists = [value for key, value in part.items() if key != "type" and isinstance(value, list)]
        if len(part) != 2 or len(lists) != 1:
            raise FormatError("a Sequence that is no list of components")
        pending[:0] = lists[0]
    raise LimitError("more than 256 components")


def _check_model(model: dict[str, Any]) -> None:
    kind = model.setdefault("type", "BPE")
    if kind not in _MODELS:
        raise UnsupportedError(
            f"a tokenizer model of type {kind!r:.40}", place="model", wanted=f"one of {sorted(_MODELS)}"
        )
    if model.get("dropout"):
        raise UnsupportedError("BPE dropout, which makes tokens a matter of chance", place="model")
    vocabulary = model.get("vocab")
    pieces: Sequence[object]
    if kind == "BPE":
        if not isinstance(vocabulary, dict) or not all(
            type(v) is int and 0 <= v < MAX_VOCABULARY for v in vocabulary.values()
        ):
            raise FormatError(
                "vocab does not map pieces to ids", place="model", wanted=f"ids below {MAX_VOCABULARY}"
            )
        pieces = list(vocabulary)
        if len(set(vocabulary.values())) != len(pieces):
            raise FormatError("two pieces have one id", place="model")
        merges = model.get("merges")
        if not isinstance(merges, list):
            raise FormatError("no list of merges", place="model")
        if len(merges) > MAX_MERGES:
            raise LimitError(f"{len(merges)} merges", place="model", wanted=f"at most {MAX_MERGES}")
    else:
        if not isinstance(vocabulary, list) or not all(
            isinstance(row, list) and len(row) == 2 and isinstance(row[1], int | float) for row in vocabulary
        ):
            raise FormatError("vocab is no list of pieces with scores", place="model")
        pieces = [row[0] for row in vocabulary]
    if not 0 < len(pieces) <= MAX_VOCABULARY:
        raise LimitError(f"{len(pieces)} pieces", place="model", wanted=f"1 to {MAX_VOCABULARY}")
    _check_pieces(pieces, "model")


def _check_pieces(pieces: Iterable[object], place: str) -> None:
    for number, piece in enumerate(pieces):
        if not isinstance(piece, str):
            raise FormatError(f"piece {number} is no text", place=place)
        if len(piece) > MAX_PIECE_CHARS:
            raise LimitError(
                f"piece {number} has {len(piece)} characters",
                place=place,
                wanted=f"at most {MAX_PIECE_CHARS}",
            )


def _check_added(added: object) -> None:
    if not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
        raise FormatError("added_tokens is no list of objects", place="added_tokens")
    if len(added) > MAX_ADDED_TOKENS:
        raise LimitError(
            f"{len(added)} added tokens", place="added_tokens", wanted=f"at most {MAX_ADDED_TOKENS}"
        )
    _check_pieces([token.get("content") for token in added], "added_tokens")
    for number, token in enumerate(added):
        if not token["content"] or type(token.get("id")) is not int or not 0 <= token["id"] < MAX_VOCABULARY:
            raise FormatError(f"added token {number} is empty or has no id in range", place="added_tokens")


def _check_patterns(parts: Sequence[Mapping[str, Any]], place: str) -> int:
    """Refuse what takes too long on any text; returns how long a text may be for the rest."""
    patterns = [part["pattern"] for part in parts if "pattern" in part]
    if len(patterns) > MAX_PATTERNS:
        raise LimitError(f"{len(patterns)} patterns", place=place, wanted=f"at most {MAX_PATTERNS}")
    longest = MAX_TEXT
    for pattern in patterns:
        match pattern:
            case {"Regex": str(text)} if len(pattern) == 1 and text:
                longest = min(longest, longest_text(text, place))
            case {"String": str(text)} if len(pattern) == 1 and text:
                if len(text) > MAX_PATTERN_CHARS:
                    raise LimitError(
                        f"a pattern of {len(text)} characters",
                        place=place,
                        wanted=f"at most {MAX_PATTERN_CHARS}",
                    )
            case _:
                raise FormatError("a pattern is neither a Regex nor a String", place=place)
    return longest


def _check_expansion(parts: Sequence[Mapping[str, Any]]) -> int:
    """Bound how much normalising can lengthen a text, and return it: the product over all replacements."""
    factor = compatibility = 1
    for part in parts:
        if part["type"] == "Replace":
            content, pattern = part.get("content"), part.get("pattern", {})
            if not isinstance(content, str):
                raise FormatError("a replacement is no text", place="normalizer")
            least = len(pattern.get("String", "")) or 1
            # A regex may match between characters, so it adds instead of replacing.
            grown = len(content) + 1 if "Regex" in pattern else -(-len(content) // least)
            factor *= max(1, grown)
        elif part["type"] == "Prepend" and len(str(part.get("prepend", ""))) > MAX_EXPANSION:
            factor = MAX_EXPANSION + 1
        elif part["type"] in ("NFKC", "NFKD"):
            compatibility = MAX_COMPATIBILITY  # once, however often it is applied
    if factor > MAX_EXPANSION:
        raise LimitError(
            f"normalising may lengthen a text {factor}-fold",
            place="normalizer",
            wanted=f"at most {MAX_EXPANSION}",
        )
    return factor * compatibility


def _check_templates(parts: Sequence[Mapping[str, Any]]) -> None:
    for part in parts:
        if part["type"] == "TemplateProcessing" and len(json.dumps(part)) > 1 << 14:
            raise LimitError(
                "a post-processor template is too long", place="post_processor", wanted="at most 16 KiB"
            )
