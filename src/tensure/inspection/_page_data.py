"""A trace as the columns that a page carries: each fact one list over all tensors, each text said once.

Knows what is recorded. Does not know HTML, nor how a column is drawn. Floats are kept to seven digits; texts
longer than a page can show are cut, and their owner is found by number, never by text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Final

from ._records import Argument, Quantised, TensorFacts, Trace

__all__ = ["PAGE_SCHEMA", "columns", "number"]

PAGE_SCHEMA: Final = "tensure.inspect-page/1"
MAX_TEXT: Final = 300
MAX_ARGUMENTS: Final = 40
MAX_READS: Final = 400
_COUNTS: Final = ("zeros", "denormals", "nans", "infinities", "over_limit")
_FIGURES: Final = ("minimum", "maximum", "mean", "std", "l2")
_PLACES: Final = ("first_nonfinite", "first_over")


class _Texts:
    """Every text once, by number."""

    def __init__(self) -> None:
        self.all: list[str] = []
        self._numbers: dict[str, int] = {}

    def __call__(self, value: str) -> int:
        kept = value if len(value) <= MAX_TEXT else value[: MAX_TEXT - 1] + "…"
        number = self._numbers.setdefault(kept, len(self.all))
        if number == len(self.all):
            self.all.append(kept)
        return number


def columns(trace: Trace) -> dict[str, Any]:
    """The trace as JSON values: `steps` and `tensors` by column, `texts` that columns name by number."""
    text = _Texts()
    place = {name: at for at, name in enumerate(trace.tensors)}
    facts = list(trace.tensors.values())
    steps = _steps(trace, place, text)
    tensors = _tensors(facts, place, text)
    return {
        "schema": PAGE_SCHEMA,
        "name": text(trace.name),
        "how": text(trace.how),
        "notes": [text(note) for note in trace.notes[:MAX_ARGUMENTS]],
        "peak_bytes": trace.peak_bytes,
        "outputs": [[text(key), place[name]] for key, name in trace.outputs.items() if name in place],
        "steps": steps,
        "tensors": tensors,
        "texts": text.all,
    }


def _steps(trace: Trace, place: dict[str, int], text: _Texts) -> dict[str, Any]:
    def places(names: Iterable[str]) -> list[int]:
        return [place[name] for name in list(names)[:MAX_READS] if name in place]

    steps = trace.steps
    return {
        "op": [text(step.op) for step in steps],
        "module": [text(step.module) for step in steps],
        "source": [text(step.source) for step in steps],
        "backward": [int(step.phase == "backward") for step in steps],
        "reads": [places(step.reads) for step in steps],
        "outs": [places(step.outs) for step in steps],
        "wrote": [places(step.wrote) for step in steps],
        "arguments": [
            [(text(key), text(_said(value))) for key, value in step.arguments[:MAX_ARGUMENTS]]
            for step in steps
        ],
        "live_bytes": [step.live_bytes for step in steps],
        "microseconds": [round(step.seconds * 1e6, 1) for step in steps],
    }


def _tensors(facts: list[TensorFacts], place: dict[str, int], text: _Texts) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": [text(item.name) for item in facts],
        "origin": [text(item.origin) for item in facts],
        "step": [item.step for item in facts],
        "shape": [text(_dims(item.shape)) for item in facts],
        "rank": [item.rank for item in facts],
        "size": [item.size for item in facts],
        "dtype": [text(item.dtype) for item in facts],
        "device": [text(item.device) for item in facts],
        "layout": [text(item.layout) for item in facts],
        "strides": [None if item.strides is None else text(_dims(item.strides)) for item in facts],
        "memory": [text(item.memory) for item in facts],
        "storage": [item.storage for item in facts],
        "offset": [item.offset for item in facts],
        "alias_of": [None if item.alias_of is None else place.get(item.alias_of) for item in facts],
        "in_place": [int(item.in_place) for item in facts],
        "nbytes": [item.nbytes for item in facts],
        "digest": [item.digest for item in facts],
    }
    seen = [item.statistics for item in facts]
    for key in _FIGURES:
        found[key] = [None if one is None else number(getattr(one, key)) for one in seen]
    for key in (*_COUNTS, *_PLACES):
        found[key] = [None if one is None else getattr(one, key) for one in seen]
    # The index is worked out here: JavaScript's numbers end at 2^53, and a shape may be a scalar's.
    found["first_at"] = [
        None if one is None else _index(one.first_nonfinite, item.shape, text)
        for one, item in zip(seen, facts, strict=True)
    ]
    # Few tensors are quantised: rows, each with the number of its tensor.
    found["quantised"] = [
        [at, *_quantised(item.quantised)] for at, item in enumerate(facts) if item.quantised is not None
    ]
    return found


def _quantised(found: Quantised) -> list[Any]:
    return [*map(number, found.scale), *found.zero_point, found.axis, number(found.saturated)]


def _dims(sizes: Sequence[int]) -> str:
    return "[" + ",".join(map(str, sizes)) + "]"


def _index(first: int | None, shape: tuple[int, ...], text: _Texts) -> int | None:
    """The place of an element in C order as an index of each axis; as it is where an axis is ragged."""
    if first is None:
        return None
    if any(size < 1 for size in shape) or first >= math.prod(shape):
        return text(f"element {first}")
    index: list[int] = []
    for size in reversed(shape):
        first, at = divmod(first, size)
        index.append(at)
    return text(_dims(index[::-1]))


def _said(value: Argument) -> str:
    """An argument as a person writes it; a long one is cut before it is put together."""
    if isinstance(value, tuple):
        shown = ", ".join(_said(item) for item in value[:64])
        return f"({shown}, … {len(value)} in all)" if len(value) > 64 else f"({shown})"
    if isinstance(value, float):
        return f"{value:.7g}"
    return value if isinstance(value, str) else str(value)


def number(value: float | None) -> float | int | str | None:
    """A float to seven digits; NaN and infinities, for which JSON has no form, as text."""
    if value is None:
        return None
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    short = float(f"{value:.7g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short
