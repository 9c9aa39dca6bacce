"""A trace back from its JSON, read as a stranger's: every field typed and bounded, every name known.

The inverse of `Trace.to_json`. Knows the contract of `tensure inspect --json`; does not know files.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, TypeVar, cast, get_args

from tensure.errors import FormatError, LimitError
from tensure.kernels import Survey

from ._records import SCHEMA, Argument, Memory, Origin, Quantised, Step, TensorFacts, Trace
from ._versions import split_version

__all__ = ["trace_from_json"]

MAX_TEXT: Final = 1 << 16
MAX_RANK: Final = 64
MAX_SIZE: Final = 1 << 48
_MAX_INT: Final = (1 << 64) - 1
_MAX_DEPTH: Final = 16
_NUMBERS: Final = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}

T = TypeVar("T")


def trace_from_json(document: Any) -> Trace:
    """The trace that `to_json` wrote.

    Raises:
        FormatError: a field is missing, unknown or of another kind; the message names its place.
        LimitError: a number or text beyond what a trace may hold.
    """
    top = _Fields(document, "the trace")
    if (schema := top.text("schema")) != SCHEMA:
        raise FormatError(f"the schema {schema[:60]!r}", wanted=SCHEMA)
    trace = Trace(top.text("name"), top.text("how"))
    tensors, steps = top.items("tensors"), top.items("steps")
    for at, item in enumerate(tensors):
        facts = _tensor(_Fields(item, f"tensors[{at}]"), len(steps))
        if facts.name in trace.tensors:
            raise FormatError(f"the name {facts.name[:80]!r} stands there twice", place=f"tensors[{at}]")
        trace.tensors[facts.name] = facts
    for at, (name, facts) in enumerate(trace.tensors.items()):
        base, version = split_version(name)
        # A leaf may be called so by whoever gave it.
        if version >= 0 and facts.step >= 0 and base not in trace.tensors:
            raise FormatError(
                f"the name {name[:80]!r} is of memory that was written over", place=f"tensors[{at}]",
                wanted=f"a tensor {base[:80]!r} too",
            )  # fmt: skip
    for at, item in enumerate(steps):
        trace.steps.append(_step(_Fields(item, f"steps[{at}]"), at, trace))
    outputs = top.mapping("outputs")
    for key, name in outputs.items():
        if not isinstance(name, str) or name not in trace.tensors:
            raise FormatError(f"the output {key[:80]!r} is no tensor", place="outputs")
    trace.outputs = outputs
    trace.peak_bytes = top.integer("peak_bytes", 0)
    trace.notes = tuple(top.texts("notes"))
    top.end()
    return trace


def _step(fields: _Fields, index: int, trace: Trace) -> Step:
    if fields.integer("index", 0) != index:
        raise FormatError("its index is not its place", place=f"{fields.place}.index", wanted=str(index))
    found = Step(
        index,
        fields.text("op"),
        fields.names("reads", trace),
        fields.names("outs", trace),
        fields.text("module"),
        fields.text("source"),
        fields.word("phase", ("forward", "backward")),
        tuple(_pair(item, fields.place) for item in fields.items("arguments")),
        fields.names("wrote", trace),
        fields.integer("live_bytes", 0),
        fields.number("seconds"),
    )
    fields.end()
    for name in found.outs:
        if trace.tensors[name].step != index:
            raise FormatError(f"{name[:80]} says that another step made it", place=f"{fields.place}.outs")
    return found


def _tensor(fields: _Fields, num_steps: int) -> TensorFacts:
    shape = fields.integers("shape", -1)
    rank = fields.integer("rank", 0)
    if len(shape) != rank or rank > MAX_RANK or math.prod(abs(size) for size in shape) > MAX_SIZE:
        raise FormatError("a shape that no tensor has", place=f"{fields.place}.shape")
    found = TensorFacts(
        fields.text("name"),
        cast("Origin", fields.word("origin", get_args(Origin))),
        fields.integer("step", -1, num_steps - 1),
        shape,
        fields.text("dtype"),
        fields.text("device"),
        fields.text("layout"),
        fields.optional("strides", lambda key: fields.integers(key, -_MAX_INT)),
        cast("Memory", fields.word("memory", get_args(Memory))),
        fields.integer("storage", -1),
        fields.integer("offset", 0),
        fields.optional("alias_of", fields.text),
        fields.boolean("in_place"),
        fields.integer("nbytes", 0),
        fields.optional("statistics", lambda key: _survey(fields.inner(key))),
        fields.optional("digest", fields.text),
        fields.optional("quantised", lambda key: _quantised(fields.inner(key))),
    )
    fields.end()
    return found


def _survey(fields: _Fields) -> Survey:
    figure = fields.number

    def place(key: str) -> int:
        return fields.integer(key, 0)

    found = Survey(
        count=fields.integer("count", 0),
        minimum=fields.optional("minimum", figure),
        maximum=fields.optional("maximum", figure),
        mean=fields.optional("mean", figure),
        std=fields.optional("std", figure),
        l2=fields.optional("l2", figure),
        zeros=fields.integer("zeros", 0),
        denormals=fields.integer("denormals", 0),
        nans=fields.integer("nans", 0),
        infinities=fields.integer("infinities", 0),
        first_nonfinite=fields.optional("first_nonfinite", place),
        over_limit=fields.integer("over_limit", 0),
        first_over=fields.optional("first_over", place),
        digest=None,
    )
    fields.end()
    return found


def _quantised(fields: _Fields) -> Quantised:
    scale = [_number(item, fields.place) for item in fields.items("scale")]
    zero = fields.integers("zero_point", -_MAX_INT)
    if len(scale) != 2 or len(zero) != 2:
        raise FormatError("a scale or zero point that is no pair", place=fields.place)
    axis = fields.optional("axis", lambda key: fields.integer(key, -MAX_RANK, MAX_RANK))
    saturated = fields.optional("saturated", fields.number)
    fields.end()
    return Quantised((scale[0], scale[1]), (zero[0], zero[1]), axis, saturated)


def _pair(item: Any, place: str) -> tuple[str, Argument]:
    if not isinstance(item, list) or len(item) != 2 or not isinstance(item[0], str):
        raise FormatError("an argument that is no name with its value", place=f"{place}.arguments")
    return item[0], _argument(item[1], place)


def _argument(value: Any, place: str, depth: int = 0) -> Argument:
    if isinstance(value, list):
        if depth > _MAX_DEPTH:
            raise LimitError("an argument nested too deep", place=f"{place}.arguments")
        return tuple(_argument(item, place, depth + 1) for item in value)
    if isinstance(value, str):
        return _NUMBERS.get(value, value)
    if value is None or isinstance(value, bool | int | float):
        return cast("Argument", value)
    raise FormatError("an argument of another kind", place=f"{place}.arguments")


def _number(value: Any, place: str) -> float:
    if isinstance(value, str) and value in _NUMBERS:
        return _NUMBERS[value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise FormatError("no number", place=place)
    return float(value)


class _Fields:
    """One JSON object, each field asked for once; what is left at the end was not foreseen."""

    def __init__(self, value: Any, place: str) -> None:
        if not isinstance(value, dict):
            raise FormatError("is no object", place=place)
        self._left: dict[str, Any] = dict(value)
        self.place = place

    def _take(self, key: str) -> Any:
        if key not in self._left:
            raise FormatError(f"the field {key} is missing", place=self.place)
        return self._left.pop(key)

    def _at(self, key: str) -> str:
        return f"{self.place}.{key}"

    def end(self) -> None:
        if self._left:
            raise FormatError(f"the unknown field {next(iter(self._left))[:80]!r}", place=self.place)

    def text(self, key: str) -> str:
        value = self._take(key)
        if not isinstance(value, str):
            raise FormatError("is no text", place=self._at(key))
        if len(value) > MAX_TEXT:
            raise LimitError(f"a text of {len(value)} characters", place=self._at(key))
        return value

    def word(self, key: str, known: tuple[T, ...]) -> T:
        value = self._take(key)
        if value not in known:
            raise FormatError(f"{str(value)[:60]!r}", place=self._at(key), wanted=", ".join(map(str, known)))
        return cast("T", value)

    def integer(self, key: str, low: int, high: int = _MAX_INT) -> int:
        return _whole(self._take(key), low, high, self._at(key))

    def number(self, key: str) -> float:
        return _number(self._take(key), self._at(key))

    def boolean(self, key: str) -> bool:
        value = self._take(key)
        if not isinstance(value, bool):
            raise FormatError("is neither true nor false", place=self._at(key))
        return value

    def items(self, key: str) -> list[Any]:
        value = self._take(key)
        if not isinstance(value, list):
            raise FormatError("is no list", place=self._at(key))
        return value

    def mapping(self, key: str) -> dict[str, Any]:
        value = self._take(key)
        if not isinstance(value, dict):
            raise FormatError("is no object", place=self._at(key))
        return value

    def integers(self, key: str, low: int) -> tuple[int, ...]:
        return tuple(_whole(item, low, _MAX_INT, self._at(key)) for item in self.items(key))

    def texts(self, key: str) -> list[str]:
        found = self.items(key)
        if not all(isinstance(item, str) for item in found):
            raise FormatError("is no list of texts", place=self._at(key))
        return found

    def names(self, key: str, trace: Trace) -> tuple[str, ...]:
        found = self.texts(key)
        for name in found:
            if name not in trace.tensors:
                raise FormatError(f"no tensor {name[:80]!r}", place=self._at(key))
        return tuple(found)

    def inner(self, key: str) -> _Fields:
        return _Fields(self._take(key), self._at(key))

    def optional(self, key: str, read: Callable[[str], T]) -> T | None:
        if key in self._left and self._left[key] is None:
            del self._left[key]
            return None
        return read(key)


def _whole(value: Any, low: int, high: int, place: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise FormatError("is no whole number", place=place)
    if not low <= value <= high:
        raise FormatError(f"the number {value}", place=place, wanted=f"{low} to {high}")
    return value
