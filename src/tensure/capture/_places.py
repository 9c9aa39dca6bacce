"""Ranks by number and by place: numbers count places of a mesh row by row, its last axis fastest."""

from __future__ import annotations

from collections.abc import Mapping


def place_of(number: int, mesh: Mapping[str, int]) -> dict[str, int]:
    """Where a rank stands along each axis; beyond the last rank it begins again."""
    found: dict[str, int] = {}
    for axis in reversed(list(mesh)):
        number, found[axis] = divmod(number, mesh[axis])
    return {axis: found[axis] for axis in mesh}


def number_of(place: Mapping[str, int], mesh: Mapping[str, int]) -> int:
    """The number of the rank at a place, which may say other axes besides."""
    number = 0
    for axis, size in mesh.items():
        number = number * size + place[axis]
    return number
