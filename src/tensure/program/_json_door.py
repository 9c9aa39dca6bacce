"""JSON from a stranger: bounded in bytes, depth and number of items before it is parsed, strict in form.

Knows: what to count in raw JSON so that parsing cannot cost much more than the bytes did. Refuses what
Python's parser lets pass: duplicate keys, NaN and Infinity, numbers of any length, strings that are no
Unicode text.
Does not know what a document means.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, Final

from tensure.errors import FormatError, LimitError

__all__ = ["parse_json"]

MAX_QUOTES: Final = 1 << 21
"""Beyond this the depth is found bracket by bracket."""
_STRING = re.compile(rb'"[^"]*"?')
_NO_BRACKET = bytes(set(range(256)) - set(b"[]{}"))
_ONE_KIND = bytes.maketrans(b"{}", b"[]")
_MARKS = re.compile(rb'\\.|["\[\]{}]', re.DOTALL)
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_MAX_DIGITS = 20  # holds every 64-bit integer


def parse_json(
    data: bytes, *, max_bytes: int, max_depth: int, max_items: int, floats: bool = False, base: int = 0
) -> Any:
    """The parsed document.

    Args:
        data: the document, UTF-8.
        max_bytes: bound on its length.
        max_depth: bound on the nesting of lists and objects.
        max_items: bound on all list items and object keys together.
        floats: whether numbers with a fraction or an exponent are allowed.
        base: the file offset of `data`, for the places in errors.

    Raises:
        LimitError: a bound is passed. FormatError: not strict JSON. Both name the byte where known.
    """
    if len(data) > max_bytes:
        raise LimitError(f"{len(data)} bytes of JSON", wanted=f"at most {max_bytes}")
    # Each further item stands behind a comma, each string between two quotes, each list and object behind its
    # own bracket (`[[[]]]` holds three without a comma); at most two strings an item.
    brackets = data.count(b"[") + data.count(b"{")
    if data.count(b",") >= max_items or brackets > max_items + 1 or data.count(b'"') > 4 * max_items:
        raise LimitError(f"over {max_items} items in a JSON document", wanted="fewer")
    _check_depth(data, max_depth, base)
    try:
        text = data.decode("utf-8")
        document = json.loads(
            text,
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_float if floats else _no_float,
            parse_constant=_no_constant,
        )
    except UnicodeDecodeError as error:
        raise FormatError("the JSON is not valid UTF-8", place=f"byte {base + error.start}") from error
    except json.JSONDecodeError as error:
        at = base + len(error.doc[: error.pos].encode())
        raise FormatError(f"not JSON: {error.msg}", place=f"byte {at}") from error
    if _SURROGATE_ESCAPE.search(data):  # UTF-8 itself holds none, so only an escape can spell one
        _check_texts(document)
    return document


def _check_depth(data: bytes, max_depth: int, base: int) -> None:
    # Each round takes the innermost pairs away; what does not come out even is looked at one by one, and
    # so is text with escapes or very many strings: the pieces between them would take more room than it.
    if b"\\" in data or data.count(b'"') > MAX_QUOTES:
        _find_depth(data, max_depth, base)
        return
    left = _STRING.sub(b"", data).translate(_ONE_KIND, _NO_BRACKET)
    for _ in range(max_depth):
        if not left:
            return
        left = left.replace(b"[]", b"")
    if left:
        _find_depth(data, max_depth, base)


def _find_depth(data: bytes, max_depth: int, base: int) -> None:
    depth, in_string = 0, False
    for match in _MARKS.finditer(data):
        mark = match[0]
        if mark == b'"':
            in_string = not in_string
        elif in_string or len(mark) > 1:
            continue
        elif mark in b"[{":
            depth += 1
            if depth > max_depth:
                raise LimitError(f"JSON nested over {max_depth} deep", place=f"byte {base + match.start()}")
        else:
            depth -= 1


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise FormatError(f"the key {key[:80]!r} stands there twice", wanted="each key once")
        found[key] = value
    return found


def _check_texts(document: Any) -> None:
    """Refuse a string with half a surrogate pair, wherever it stands."""
    pending = [document]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            pending += value.keys()
            pending += value.values()
        elif isinstance(value, list):
            pending += value
        elif isinstance(value, str) and not value.isascii() and _SURROGATE.search(value):
            raise FormatError(f"the string {value[:80]!r} is no Unicode text", wanted="no lone surrogates")


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise FormatError(f"a number of {len(digits)} digits", wanted=f"at most {_MAX_DIGITS}")
    return int(digits)


def _float(digits: str) -> float:
    if len(digits) > 40:
        raise FormatError(f"a number of {len(digits)} digits", wanted="at most 40")
    value = float(digits)
    if not math.isfinite(value):
        raise FormatError(f"the number {digits}", wanted="a finite number")
    return value


def _no_float(digits: str) -> float:
    raise FormatError(f"the number {digits[:40]}", wanted="whole numbers only")


def _no_constant(name: str) -> float:
    raise FormatError(f"the constant {name}", wanted="a finite number")
