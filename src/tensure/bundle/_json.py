"""Strict canonical JSON: one value, one spelling.

Knows: how to write a JSON value so that equal values give equal bytes (sorted keys, no spaces, ASCII, one
final newline), and how to read such bytes from a stranger: bounded size and depth, no duplicate keys, no
NaN, no lone surrogates, and nothing that would be written differently. A changed space is therefore a
changed file. Small helpers pull typed fields out of what was read.

Does not know: what any of the values mean.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import TypeAlias, cast

from tensure.errors import FormatError, LimitError
from tensure.program import parse_json

__all__ = [
    "Json",
    "MAX_DEPTH",
    "MAX_INT",
    "canonical_json",
    "expect_int",
    "expect_keys",
    "expect_list",
    "expect_object",
    "expect_str",
    "parse_canonical",
    "parse_strict",
]

Json: TypeAlias = "str | int | float | bool | list[Json] | dict[str, Json] | None"

MAX_DEPTH = 32
MAX_INT = (1 << 63) - 1

_SURROGATE = re.compile("[\ud800-\udfff]")


def canonical_json(value: object) -> bytes:
    """The one spelling of a JSON value, newline included.

    Raises:
        FormatError: NaN, an infinity, or a lone surrogate, which JSON cannot carry.
    """
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    except ValueError as error:
        raise FormatError(f"a value cannot be written as JSON ({error})", wanted="finite numbers") from None
    return text.encode("ascii") + b"\n"


def parse_strict(data: bytes, *, max_bytes: int) -> Json:
    """Read JSON from a stranger in any spelling, with bounded size, depth and numbers.

    Raises:
        LimitError: larger than `max_bytes`, or nested deeper than MAX_DEPTH.
        FormatError: not UTF-8, not JSON, a duplicate key, a number or string outside the bounds.
    """
    value = parse_json(data, max_bytes=max_bytes, max_depth=MAX_DEPTH, max_items=max_bytes, floats=True)
    return cast(Json, value)


def parse_canonical(data: bytes, *, max_bytes: int) -> Json:
    """Read JSON that must be spelled exactly as `canonical_json` spells it.

    Raises: as `parse_strict`; FormatError also when the spelling differs.
    """
    value = parse_strict(data, max_bytes=max_bytes)
    again = canonical_json(value)
    if again != data:
        at = next((i for i, (a, b) in enumerate(zip(data, again, strict=False)) if a != b), None)
        place = f"byte {min(len(data), len(again)) if at is None else at}"
        raise FormatError("JSON not in its canonical spelling", place=place, wanted="sorted keys, no spaces")
    return value


def expect_object(value: Json, place: str) -> dict[str, Json]:
    """`value` if it is a JSON object."""
    if not isinstance(value, dict):
        raise FormatError(f"found {_kind(value)}", place=place, wanted="an object")
    return value


def expect_list(value: Json, place: str, *, max_items: int) -> list[Json]:
    """`value` if it is a JSON array of at most `max_items`."""
    if not isinstance(value, list):
        raise FormatError(f"found {_kind(value)}", place=place, wanted="an array")
    if len(value) > max_items:
        raise LimitError(f"{len(value)} items", place=place, wanted=f"at most {max_items}")
    return value


def expect_str(value: Json, place: str, *, max_chars: int = 4096) -> str:
    """`value` if it is a string of at most `max_chars`, free of lone surrogates."""
    if not isinstance(value, str):
        raise FormatError(f"found {_kind(value)}", place=place, wanted="a string")
    if len(value) > max_chars:
        raise LimitError(f"a string of {len(value)} characters", place=place, wanted=f"at most {max_chars}")
    if _SURROGATE.search(value):
        raise FormatError("a string holds half a surrogate pair", place=place)
    return value


def expect_int(value: Json, place: str, *, least: int = 0, most: int = MAX_INT) -> int:
    """`value` if it is an integer within bounds; true and false are not integers."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise FormatError(f"found {_kind(value)}", place=place, wanted="an integer")
    if not least <= value <= most:
        raise FormatError(f"found {value}", place=place, wanted=f"{least} to {most}")
    return value


def expect_keys(value: Mapping[str, Json], place: str, keys: Iterable[str]) -> None:
    """Exactly these keys: a missing one and an unknown one are both refused."""
    wanted, found = set(keys), set(value)
    if missing := sorted(wanted - found):
        raise FormatError(f"field {missing[0]!r} is missing", place=place)
    if unknown := sorted(found - wanted):
        raise FormatError(f"unknown field {unknown[0][:60]!r}", place=place, wanted=", ".join(sorted(wanted)))


def _kind(value: Json) -> str:
    if value is None:
        return "null"
    return {bool: "true or false", dict: "an object", list: "an array", str: "a string"}.get(
        type(value), "a number"
    )
