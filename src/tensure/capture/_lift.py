"""Many ranks' texts as one: integers that differ between ranks become expressions of their coordinates.

A lifted integer is exact for every rank it was read from; nothing is extrapolated. Floats, words and the
course of the steps are never lifted: ranks that differ in them have tracks of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, TypeAlias

from tensure.errors import RecordError
from tensure.program import Attr, Int, Op, axis, combine

__all__ = ["Coordinates", "lift_attr", "lift_int", "lift_ops", "shape_of_text"]

Coordinates: TypeAlias = "tuple[tuple[str, int], ...]"
"""A rank's place along some mesh axes."""


def shape_of_text(steps: Sequence[Op]) -> tuple[Any, ...]:
    """What must be equal for two ranks to share a text: all but integers in attributes."""
    return tuple((step.op, step.args, step.outs, _outline(step.attrs)) for step in steps)


def _outline(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_outline(part) for part in value)
    if isinstance(value, int) and not isinstance(value, bool):
        return int
    return (type(value).__name__, repr(value))


def lift_ops(texts: Mapping[Coordinates, Sequence[Op]], *, is_sampled: bool = False) -> tuple[Op, ...]:
    """One text for ranks whose texts have one shape.

    Args:
        texts: by place.
        is_sampled: there are more ranks; only sums of multiples of coordinates are extended to them.

    Raises:
        RecordError: texts of several shapes, or integers of some ranks that are no such sum.
    """
    places = list(texts)
    first = texts[places[0]]
    lifted: list[Op] = []
    for at, step in enumerate(first):
        attrs = {place: texts[place][at].attrs for place in places}
        if any(found != step.attrs for found in attrs.values()):
            made = lift_attr(attrs, is_sampled=is_sampled)
            assert isinstance(made, tuple)
            step = Op(step.op, step.args, step.outs, made, step.note)  # type: ignore[arg-type]
        lifted.append(step)
    return tuple(lifted)


def lift_attr(values: Mapping[Coordinates, Any], *, is_sampled: bool = False) -> Attr:
    """One attribute for all."""
    found = list(values.values())
    first = found[0]
    if isinstance(first, tuple):
        if any(not isinstance(item, tuple) or len(item) != len(first) for item in found):
            raise RecordError("attributes of several lengths")
        return tuple(
            lift_attr({place: value[at] for place, value in values.items()}, is_sampled=is_sampled)
            for at in range(len(first))
        )
    if all(type(item) is type(first) and item == first for item in found):
        return first  # type: ignore[no-any-return]
    if not all(isinstance(item, int) and not isinstance(item, bool) for item in found):
        raise RecordError(f"attributes {found[:4]} that are no integers")
    return lift_int(values, is_sampled=is_sampled)


def lift_int(values: Mapping[Coordinates, int], *, is_sampled: bool = False) -> Int:
    """An expression of the coordinates with these values: a sum of multiples, or a choice."""
    numbers = set(values.values())
    if len(numbers) == 1:
        return numbers.pop()
    axes = [name for name, _ in next(iter(values))]
    table = {tuple(at for _, at in place): value for place, value in values.items()}
    used = list(range(len(axes)))
    for at in range(len(axes)):
        fewer = [other for other in used if other != at]
        if _settles(table, fewer):
            used = fewer
    narrow = {tuple(place[at] for at in used): value for place, value in table.items()}
    names = [axes[at] for at in used]
    sum_ = _affine(names, narrow)
    if sum_ is None and is_sampled:
        raise RecordError(f"integers {sorted(numbers)[:4]} of some ranks that are no sum of multiples")
    return _choice(names, narrow) if sum_ is None else sum_


def _settles(table: Mapping[tuple[int, ...], int], used: Sequence[int]) -> bool:
    """Whether these coordinates alone say the value."""
    seen: dict[tuple[int, ...], int] = {}
    return all(
        seen.setdefault(tuple(place[at] for at in used), value) == value for place, value in table.items()
    )


def _affine(names: Sequence[str], table: Mapping[tuple[int, ...], int]) -> Int | None:
    origin = tuple(min(place[at] for place in table) for at in range(len(names)))
    base = table.get(origin)
    if base is None:
        return None
    slopes: list[int] = []
    for at in range(len(names)):
        step = table.get((*origin[:at], origin[at] + 1, *origin[at + 1 :]))
        slopes.append(0 if step is None else step - base)
    start = base - sum(slope * low for slope, low in zip(slopes, origin, strict=True))
    if any(
        start + sum(slope * c for slope, c in zip(slopes, place, strict=True)) != value
        for place, value in table.items()
    ):
        return None
    made: Int = start
    for name, slope in zip(names, slopes, strict=True):
        made = combine("+", combine("*", axis(name), slope), made) if slope else made
    return made


def _choice(names: Sequence[str], table: Mapping[tuple[int, ...], int]) -> Int:
    if not names:
        return next(iter(table.values()))
    sizes = [max(place[at] for place in table) + 1 for at in range(len(names))]
    filler = next(iter(table.values()))  # for places that are in no rank of this text
    flat = [table.get(place, filler) for place in product(*map(range, sizes))]
    index: Int = axis(names[0])
    for name, size in zip(names[1:], sizes[1:], strict=True):
        index = combine("+", combine("*", index, size), axis(name))
    return combine("pick", index, *flat)
