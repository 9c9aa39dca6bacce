"""The table of ONNX ops we read: what a node may hold, and the function that says it in listed ops.

A row is declared by a signature in a small schema language,

    Conv(X, W, B?; auto_pad: str = "NOTSET", dilations: ints?, group: int = 1, pads: ints?, strides: ints?)

with ONNX's own names: `?` where an input or attribute may be left out, `*` for any number of inputs (only
the last), types `int`, `float`, `str`, `ints`, `floats`, `strs`, `tensor`, `graph`, `any`. A node with more
inputs than that, an attribute of another name or type, or one that is missing is refused before a row's
function sees it. Knows the frame only; families of ops register themselves.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from tensure.errors import FormatError, UnsupportedError

from .._onnx import OnnxGraph, OnnxNode
from .._weights import StoredTensor

if TYPE_CHECKING:
    from ._builder import Builder, Held

Attributes: TypeAlias = dict[str, Any]
"""Attributes of one node with defaults filled in; None for one left out that has none."""
Translate: TypeAlias = "Callable[[Builder, list[Any], Attributes], Held | Sequence[Held]]"
"""Inputs (padded with None to the signature) and attributes -> the value made, or one for each output."""

NEWEST: Final = 28
"""The newest version of the default domain whose ops were read for this table."""
MICROSOFT: Final = "com.microsoft"


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One input of a signature."""

    name: str
    optional: bool
    variadic: bool


@dataclass(frozen=True, slots=True)
class AttrSpec:
    """One attribute of a signature."""

    name: str
    type: str
    required: bool
    default: Any


@dataclass(frozen=True, slots=True)
class Row:
    """One op type."""

    op_type: str
    domain: str
    signature: str
    inputs: tuple[InputSpec, ...]
    attrs: Mapping[str, AttrSpec]
    translate: Translate
    since: int
    """The first version of the domain whose definition this row reads."""


_ROWS: Final[dict[tuple[str, str], Row]] = {}
_SIGNATURE: Final = re.compile(r"(\w+)\(([^;)]*)(?:;([^)]*))?\)")
_TYPES: Final[Mapping[str, Callable[[Any], bool]]] = {
    "int": lambda value: isinstance(value, int),
    "float": lambda value: isinstance(value, float | int),
    "str": lambda value: isinstance(value, str),
    "ints": lambda value: isinstance(value, tuple) and all(isinstance(item, int) for item in value),
    "floats": lambda value: isinstance(value, tuple) and all(isinstance(item, float | int) for item in value),
    "strs": lambda value: isinstance(value, tuple) and all(isinstance(item, str) for item in value),
    "tensor": lambda value: isinstance(value, StoredTensor),
    "graph": lambda value: isinstance(value, OnnxGraph),
    "any": lambda value: True,
}
_MOST_ENTRIES: Final = 4096
"""Entries of a list attribute that is no tensor."""


def onnx_op(*signatures: str, domain: str = "", since: int = 1) -> Callable[[Translate], Translate]:
    """Register a function as the translation of each of these op types."""

    def register(translate: Translate) -> Translate:
        for text in signatures:
            match = _SIGNATURE.fullmatch(" ".join(text.split()))
            assert match is not None, text
            op_type, inputs, attrs = match.groups()
            assert (domain, op_type) not in _ROWS, op_type
            _ROWS[domain, op_type] = Row(
                op_type,
                domain,
                " ".join(text.split()),
                tuple(_input(part) for part in inputs.split(",") if part.strip()),
                {spec.name: spec for spec in map(_attr, _split(attrs or ""))},
                translate,
                since,
            )
        return translate

    return register


def onnx_rows() -> Mapping[tuple[str, str], Row]:
    """Every row by (domain, op type)."""
    return dict(sorted(_ROWS.items()))


def row_of(node: OnnxNode, domain: str) -> Row | None:
    """The row of a node's op type; None where the table has none."""
    return _ROWS.get((domain, node.op_type))


def bind_node(
    row: Row, op_type: str, given: Sequence[Any], attrs: Mapping[str, Any]
) -> tuple[list[Any], Attributes]:
    """Inputs and attributes as the row's function takes them.

    Raises:
        FormatError: too many or too few inputs, an attribute of the wrong type or length, one missing.
        UnsupportedError: an attribute the row does not know.
    """
    specs = row.inputs
    inputs = list(given)
    variadic = bool(specs) and specs[-1].variadic
    if len(inputs) > len(specs) and not variadic:
        raise FormatError(f"{op_type} of {len(inputs)} inputs", wanted=f"at most {len(specs)}")
    inputs += [None] * (len(specs) - variadic - len(inputs))
    for at, item in enumerate(inputs):
        spec = specs[min(at, len(specs) - 1)]
        if item is None and not spec.optional:
            raise FormatError(f"{op_type} lacks input {spec.name}", wanted=_wanted(row))
        if isinstance(item, tuple) and not (
            "sequence" in spec.name or (spec.variadic and row.op_type == "Loop")
        ):
            raise FormatError(f"{op_type}: input {spec.name} is a sequence", wanted="a tensor")
    return inputs, _attributes(row, attrs)


def _attributes(row: Row, attrs: Mapping[str, Any]) -> Attributes:
    for key, value in attrs.items():
        spec = row.attrs.get(key)
        if spec is None:
            raise UnsupportedError(
                f"attribute {key!r} of {row.op_type}", wanted=", ".join(row.attrs) or "no attributes"
            )
        if not _TYPES[spec.type](value):
            raise FormatError(f"attribute {key!r} of {row.op_type} is no {spec.type}", wanted=_wanted(row))
        if isinstance(value, tuple) and len(value) > _MOST_ENTRIES:
            raise FormatError(
                f"attribute {key!r} of {row.op_type} has {len(value)} entries",
                wanted=f"at most {_MOST_ENTRIES}",
            )
    for spec in row.attrs.values():
        if spec.required and spec.name not in attrs:
            raise FormatError(f"{row.op_type} lacks attribute {spec.name!r}", wanted=_wanted(row))
    return {key: attrs.get(key, spec.default) for key, spec in row.attrs.items()}


def _wanted(row: Row) -> str:
    inputs = ", ".join(f"{item.name}{'?' * item.optional}{'*' * item.variadic}" for item in row.inputs)
    return f"inputs {inputs or 'none'}; attributes {', '.join(row.attrs) or 'none'}"


def _input(text: str) -> InputSpec:
    name = text.strip()
    bare = name.rstrip("?*")
    return InputSpec(bare, "?" in name, name.endswith("*"))


def _attr(text: str) -> AttrSpec:
    head, equals, default = (part.strip() for part in text.partition("="))
    name, _, kind = (part.strip() for part in head.partition(":"))
    optional, kind = kind.endswith("?"), kind.removesuffix("?")
    assert kind in _TYPES, text
    return AttrSpec(name, kind, not equals and not optional, _literal(default) if equals else None)


def _literal(text: str) -> Any:
    if text.startswith("["):
        return tuple(_literal(part.strip()) for part in text[1:-1].split(",") if part.strip())
    if text.startswith('"'):
        return text[1:-1]
    return int(text) if text.lstrip("-").isdigit() else float(text)


def _split(text: str) -> list[str]:
    """Split at commas outside brackets."""
    return [part for part in re.split(r",(?![^\[]*\])", text) if part.strip()]
