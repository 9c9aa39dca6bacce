"""A part of a tensor as a person writes it: `logits[0, -1, :8]`. Knows text and bounds, no values."""

from __future__ import annotations

import re
from collections.abc import Container
from types import EllipsisType
from typing import Final, TypeAlias

from tensure.errors import InputError

__all__ = ["Selection", "parse_selection", "split_reference"]

Selection: TypeAlias = "tuple[int | slice | EllipsisType, ...]"

MAX_PARTS: Final = 64
_INTEGER: Final = re.compile(r"[+-]?\d{1,18}")
_WANTED: Final = "such as [0, -1, :8]; steps must be positive"


def split_reference(text: str, names: Container[str]) -> tuple[str, Selection]:
    """The name and the part of `name[part]`; a name may hold brackets itself.

    Raises:
        InputError: the part is none. An unknown name is handed back: who knows the names says what is near.
    """
    words = text.strip()
    if words in names or not words.endswith("]"):
        return words, ()
    at = words.rfind("[")
    if at < 0:
        return words, ()
    return words[:at].strip(), parse_selection(words[at + 1 : -1])


def parse_selection(text: str) -> Selection:
    """What stands between the brackets, as torch indexes with it.

    Raises:
        InputError: anything but integers, slices and `...`, by commas.
    """
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    if len(parts) > MAX_PARTS or parts.count("...") > 1:
        raise InputError(f"the part [{text[:60]}]", wanted=_WANTED)
    return tuple(_part(part, text) for part in parts)


def _part(part: str, text: str) -> int | slice | EllipsisType:
    if part == "...":
        return ...
    pieces = [piece.strip() for piece in part.split(":")]
    numbers = [None if not piece else _integer(piece, text) for piece in pieces]
    if len(pieces) == 1 and numbers[0] is not None:
        return numbers[0]
    if len(pieces) not in (2, 3) or (len(pieces) == 3 and numbers[2] is not None and numbers[2] < 1):
        raise InputError(f"the part [{text[:60]}]", wanted=_WANTED)
    return slice(*numbers)


def _integer(piece: str, text: str) -> int:
    if not _INTEGER.fullmatch(piece):
        raise InputError(f"the part [{text[:60]}]", place=piece[:40], wanted=_WANTED)
    return int(piece)
