"""The door for tokenizer.json files, which are hostile until checked.

Knows which parts of such a file we let through and how large each may be. Does not run a tokenizer: it hands
back the checked tree, and only that, written out again, reaches the `tokenizers` library.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tensure.errors import FormatError, LimitError, UnsupportedError

__all__ = ["checked_tree", "parts_of"]

MAX_JSON_BYTES = 64 << 20
MAX_VOCABULARY = 1 << 20
MAX_MERGES = 1 << 21
MAX_ADDED_TOKENS = 1 << 14
MAX_PIECE_CHARS = 1024
MAX_PATTERN_CHARS = 1024
MAX_PATTERNS = 16
MAX_COUNT = 256
MAX_EXPANSION = 16

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


def checked_tree(data: bytes) -> dict[str, Any]:
    """The file as JSON: every part known, every size within its cap, nothing left that alters prompts."""
    if len(data) > MAX_JSON_BYTES:
        raise LimitError(f"a tokenizer of {len(data)} bytes", wanted=f"at most {MAX_JSON_BYTES}")
    try:
        tree = json.loads(data, object_pairs_hook=_unique, parse_constant=_no_constant)
    except UnicodeError:
        raise FormatError("the tokenizer is not valid Unicode") from None
    except ValueError as error:
        raise FormatError(f"the tokenizer is not JSON ({str(error)[:100]})") from None
    except RecursionError:
        raise LimitError("the tokenizer is nested too deep") from None
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
        _check_patterns(parts, place)
        if place == "normalizer":
            _check_expansion(parts)
        if place == "post_processor":
            _check_templates(parts)
    return tree


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


def _check_patterns(parts: Sequence[Mapping[str, Any]], place: str) -> None:
    patterns = [part["pattern"] for part in parts if "pattern" in part]
    if len(patterns) > MAX_PATTERNS:
        raise LimitError(f"{len(patterns)} patterns", place=place, wanted=f"at most {MAX_PATTERNS}")
    for pattern in patterns:
        match pattern:
            case {"Regex": str(text)} | {"String": str(text)} if len(pattern) == 1 and text:
                if len(text) > MAX_PATTERN_CHARS:
                    raise LimitError(
                        f"a pattern of {len(text)} characters",
                        place=place,
                        wanted=f"at most {MAX_PATTERN_CHARS}",
                    )
                if "Regex" in pattern:
                    _check_regex(text, place)
            case _:
                raise FormatError("a pattern is neither a Regex nor a String", place=place)


def _check_regex(text: str, place: str) -> None:
    """Refuse what makes backtracking exponential: a repeated group that itself repeats, a backreference."""
    bare = re.sub(r"\\[pP]\{[^}]*\}|\\[^1-9kg]", "x", text)
    if "\\" in bare:
        raise UnsupportedError("a pattern with a backreference", place=place)
    bare = re.sub(r"\[\^?\]?[^\]]*\]", "x", bare)
    opened = [0]  # for each open group, what is inside: 0 nothing repeats, 1 a fixed count does, 2 a free one
    at = 0
    while at < len(bare):
        char = bare[at]
        at += 1
        if char == "(":
            opened.append(0)
            if header := _GROUP_HEADER.match(bare, at):
                at = header.end()
            elif bare.startswith("?", at):
                raise UnsupportedError("a pattern with an unusual group", place=place)
            continue
        inner = 0
        if char == ")":
            if len(opened) == 1:
                raise FormatError("a pattern closes a group it never opened", place=place)
            inner = opened.pop()
            opened[-1] = max(opened[-1], inner)
        if quantifier := _QUANTIFIER.match(bare, at):
            fixed = quantifier[1] is not None
            if inner == 2 or (fixed and inner):
                raise UnsupportedError(
                    "a pattern repeats a group that repeats, which can take exponential time",
                    place=place,
                    wanted="no quantifier inside a quantified group",
                )
            if max((int(count) for count in re.findall(r"\d+", quantifier[0])), default=0) > MAX_COUNT:
                raise LimitError(
                    "a pattern repeats too often", place=place, wanted=f"counts up to {MAX_COUNT}"
                )
            opened[-1] = max(opened[-1], 1 if fixed else 2)
            at = quantifier.end()
    if len(opened) != 1:
        raise FormatError("a pattern leaves a group open", place=place)


_GROUP_HEADER = re.compile(r"\?(?:[a-z-]*:|<?[=!]|>)")  # the question mark here is no quantifier
_QUANTIFIER = re.compile(r"(?:[*+]|\{(\d+)\}|\{\d*,\d*\})[+?]?")


def _check_expansion(parts: Sequence[Mapping[str, Any]]) -> None:
    """Bound how much normalising can lengthen a text: the product over all replacements."""
    factor = 1
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
            factor *= 1  # Unicode bounds it: at most 18 characters for one, once
    if factor > MAX_EXPANSION:
        raise LimitError(
            f"normalising may lengthen a text {factor}-fold",
            place="normalizer",
            wanted=f"at most {MAX_EXPANSION}",
        )


def _check_templates(parts: Sequence[Mapping[str, Any]]) -> None:
    for part in parts:
        if part["type"] == "TemplateProcessing" and len(json.dumps(part)) > 1 << 14:
            raise LimitError(
                "a post-processor template is too long", place="post_processor", wanted="at most 16 KiB"
            )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        raise ValueError("a key is there twice")
    return mapping


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")
