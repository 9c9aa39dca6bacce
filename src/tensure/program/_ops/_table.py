"""The op table: what an op takes, what comes out, and what it means in numpy.

An op is defined once, by a signature in a small schema language, a shape rule that never touches
data, and plain numpy semantics that favour clarity over speed. Families of ops register themselves
here; this file knows the frame only.

Signature: `name(operands; attributes) -> results`, for example

    convolution(input: Tensor, weight: Tensor, bias: Tensor?; stride: int[], groups: int = 1) -> 1

Operands are `Tensor` or `Tensor|number`, with `?` where none may stand and `*` for any number of them
(only the last). Attributes are `int`, `float`, `number`, `bool`, `str`, `dtype` or `key` (a string or
integer, or a nested list of them), with `[]` for lists and `?` for none allowed; one without
`= default` must be given. Where ATen has the op, operands and attributes bear ATen's names, so that
`torch.ops.aten.<name>(**operands, **attributes)` is the same call.

Bounds: rank at most 8, every tensor at most 2^40 elements in a shape rule and 2^33 bytes in an evaluation,
integers within 64 bits. They hold before anything is allocated.
"""

from __future__ import annotations

import difflib
import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np

from tensure.errors import LimitError, RecordError, TensureError, UnsupportedError

from .._affine import Affine
from .._dtypes import DTYPES, dtype_name
from .._records import Attr, TensorType

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Number: TypeAlias = bool | int | float
Operand: TypeAlias = Array | Number | None
OperandType: TypeAlias = TensorType | Number | None
Given: TypeAlias = dict[str, Any]
"""Attributes of one op with defaults filled in, every expression already an integer."""

Infer: TypeAlias = Callable[[list[Any], Given], list[TensorType]]
"""Operand types (TensorType, number or None; a list for a variadic operand comes spliced) -> result types."""
Evaluate: TypeAlias = Callable[[list[Any], Given], list[Array]]
"""Operands (ndarray, number or None) -> results. Must not write into its operands."""


@dataclass(frozen=True, slots=True)
class OperandSpec:
    """One operand of a signature."""

    name: str
    optional: bool = False
    variadic: bool = False
    number: bool = False


@dataclass(frozen=True, slots=True)
class AttrSpec:
    """One attribute of a signature."""

    name: str
    type: str
    many: bool
    optional: bool
    required: bool
    default: Attr


@dataclass(frozen=True, slots=True)
class OpDef:
    """One listed op."""

    name: str
    signature: str
    operands: tuple[OperandSpec, ...]
    attrs: Mapping[str, AttrSpec]
    num_outs: int
    infer: Infer
    evaluate: Evaluate
    doc: str
    aten: bool
    """True when name, operand names and attributes are ATen's, so that torch can run it as it stands."""
    communication: bool
    """True for what moves values between ranks: the walk gives it meaning, not this table."""
    family: str
    """The module that defines it."""


MAX_RANK: Final = 8
MAX_ELEMENTS: Final = 1 << 40
MAX_EVALUATED_BYTES: Final = 1 << 33
_INT64: Final = 1 << 63
_MAX_KEY: Final = 64

_TABLE: dict[str, OpDef] = {}
_SIGNATURE: Final = re.compile(r"(\w+)\(([^;)]*)(?:;([^)]*))?\) -> (\d+)")


def define(
    signature: str,
    infer: Infer,
    evaluate: Evaluate,
    doc: str,
    *,
    aten: bool = True,
    communication: bool = False,
) -> None:
    """Add one op to the table; its shape rule is held to the bounds above and its errors name the op."""
    match = _SIGNATURE.fullmatch(" ".join(signature.split()))
    assert match is not None, signature
    name, operands, attrs, outs = match.groups()
    assert name not in _TABLE, name
    _TABLE[name] = OpDef(
        name,
        " ".join(signature.split()),
        tuple(_operand(text) for text in operands.split(",") if text.strip()),
        {spec.name: spec for spec in (_attr_spec(text) for text in _split(attrs or ""))},
        int(outs),
        _bounded(name, infer),
        evaluate,
        doc,
        aten,
        communication,
        # As namedtuple does: families share rules, so a rule's own module does not say who called.
        sys._getframe(1).f_globals["__name__"],
    )


def lookup(name: str) -> OpDef:
    """The definition of an op; UnsupportedError with near names when it is not listed."""
    found = _TABLE.get(name)
    if found is None:
        near = difflib.get_close_matches(name, _TABLE, 3)
        raise UnsupportedError(
            f"op {name!r} is not in the op table", wanted=f"perhaps {' or '.join(near)}" if near else None
        )
    return found


def listed() -> Mapping[str, OpDef]:
    """Every op of the table by name."""
    return dict(sorted(_TABLE.items()))


def is_listed(name: str) -> bool:
    """Whether the table has an op of this name."""
    return name in _TABLE


def bind_op(definition: OpDef, args: list[Any], attrs: Mapping[str, Any]) -> Given:
    """Check operand count and kinds and attribute names and types; return attributes with defaults filled.

    `args` hold TensorType or ndarray, numbers and None.
    """
    _check_operands(definition, args)
    given: Given = {}
    for key, value in attrs.items():
        spec = definition.attrs.get(key)
        if spec is None:
            raise RecordError(
                f"{definition.name} has no attribute {key!r}",
                wanted=", ".join(definition.attrs) or "none at all",
            )
        _check_attr(definition, spec, value)
        given[key] = value
    for spec in definition.attrs.values():
        if spec.name not in given:
            if spec.required:
                raise RecordError(
                    f"{definition.name} lacks attribute {spec.name!r}", wanted=definition.signature
                )
            given[spec.name] = spec.default
    return given


def infer_op(name: str, args: list[Any], attrs: Mapping[str, Any]) -> list[TensorType]:
    """Result types of one op from its operand types; never touches data."""
    definition = lookup(name)
    return definition.infer(args, bind_op(definition, args, attrs))


def evaluate_op(name: str, args: list[Any], attrs: Mapping[str, Any]) -> list[Array]:
    """Results of one op by its numpy semantics, held against its own shape rule."""
    definition = lookup(name)
    given = bind_op(definition, args, attrs)
    operands = [_type_of(arg) for arg in args]
    types = definition.infer(operands, given)
    for operand in operands:
        if isinstance(operand, TensorType):
            room(operand.shape, f"{name}: an operand")
    for want in types:
        room(want.shape, f"{name}: a result")
    try:
        with np.errstate(all="ignore"):
            results = [np.asarray(result) for result in definition.evaluate(args, given)]
    except TensureError as error:
        raise _named(name, error) from error
    except (ValueError, IndexError, OverflowError) as error:
        raise RecordError(f"{name} cannot take these operands: {error}") from error
    except MemoryError as error:
        raise LimitError(f"{name}: this machine has too little memory for it") from error
    for result, want in zip(results, types, strict=True):
        have = TensorType(result.shape, dtype_name(result.dtype))
        assert have == want, f"{name}: semantics gives {have}, shape rule says {want}"
    return results


def refuse(found: str, wanted: str | None = None) -> RecordError:
    """The error a shape rule raises."""
    return RecordError(found, wanted=wanted)


def room(shape: tuple[int, ...], what: str) -> None:
    """Refuse to evaluate a tensor too large to hold, before it is allocated.

    Each element counts as 8 bytes, whatever its dtype, since semantics compute in float64. A dim of 0 counts
    as 1: the tensor is empty, but semantics may lay out its other dims on the way.
    """
    size = 8 * math.prod(max(dim, 1) for dim in shape)
    if size > MAX_EVALUATED_BYTES:
        raise LimitError(
            f"{what} of shape {list(shape)}", wanted=f"at most {MAX_EVALUATED_BYTES} bytes in float64"
        )


def _bounded(name: str, infer: Infer) -> Infer:
    def bounded(args: list[Any], given: Given) -> list[TensorType]:
        try:
            types = infer(args, given)
        except TensureError as error:
            raise _named(name, error) from error
        for found in types:
            _check_type(name, "a result", found)
        return types

    return bounded


def _named(name: str, error: TensureError) -> TensureError:
    """The same error with the op's name in front."""
    if error.found.startswith((f"{name}:", f"{name} ")):
        return error
    return type(error)(
        f"{name}: {error.found}",
        file=error.file,
        place=error.place,
        wanted=error.wanted,
        next_step=error.next_step,
    )


def _check_type(name: str, what: str, found: TensorType) -> None:
    if (
        len(found.shape) > MAX_RANK
        or math.prod(found.shape) > MAX_ELEMENTS
        or min(found.shape, default=0) < 0
    ):
        raise LimitError(
            f"{name}: {what} of type {found}",
            wanted=f"rank at most {MAX_RANK}, dims of at least 0, at most {MAX_ELEMENTS} elements",
        )


def _type_of(arg: Any) -> Any:
    return TensorType(arg.shape, dtype_name(arg.dtype)) if isinstance(arg, np.ndarray) else arg


def _check_operands(definition: OpDef, args: list[Any]) -> None:
    specs = definition.operands
    variadic = bool(specs) and specs[-1].variadic
    if len(args) < len(specs) - variadic or (len(args) > len(specs) and not variadic):
        raise RecordError(f"{definition.name} of {len(args)} operands", wanted=definition.signature)
    for position, arg in enumerate(args):
        spec = specs[min(position, len(specs) - 1)]
        if arg is None and spec.optional:
            continue
        if spec.number and _fits("number", arg):
            continue
        if isinstance(arg, (TensorType, np.ndarray)):
            _check_type(definition.name, f"operand {spec.name}", _type_of(arg))
            continue
        raise RecordError(f"{definition.name}: operand {spec.name} is {arg!r}", wanted=definition.signature)


def _check_attr(definition: OpDef, spec: AttrSpec, value: Any) -> None:
    if value is None:
        ok = spec.optional
    elif spec.many:
        ok = isinstance(value, tuple) and all(_fits(spec.type, item) for item in value)  # pyright: ignore
    else:
        ok = _fits(spec.type, value)
    if not ok:
        want = f"{spec.type}{'[]' if spec.many else ''}{' or none' if spec.optional else ''}"
        raise RecordError(f"{definition.name}: {spec.name}={value!r}", wanted=want)


def _fits(kind: str, value: Any) -> bool:
    if kind == "dtype":
        return isinstance(value, str) and value in DTYPES
    if kind == "bool":
        return isinstance(value, bool)
    if kind == "int":
        whole = isinstance(value, (int, Affine)) and not isinstance(value, bool)
        return whole and -_INT64 <= value < _INT64
    if kind == "str":
        return isinstance(value, str)
    if kind == "key":
        return _is_key(value)
    # float, number
    return isinstance(value, float) or (isinstance(value, (int, Affine)) and -_INT64 <= value < _INT64)


def _is_key(value: Any) -> bool:
    """A string or integer, or a list of them at most two levels deep, of bounded size."""
    flat = [value]
    for _ in range(2):
        flat = [item for part in flat for item in (part if isinstance(part, tuple) else (part,))]
        if len(flat) > _MAX_KEY:
            return False
    return all(_fits("str", item) or _fits("int", item) for item in flat)


def _operand(text: str) -> OperandSpec:
    name, _, kind = (part.strip() for part in text.partition(":"))
    bare = kind.rstrip("?*")
    assert bare in ("Tensor", "Tensor|number") and kind[len(bare) :] in ("", "?", "*", "?*"), text
    return OperandSpec(name, "?" in kind, kind.endswith("*"), bare.endswith("number"))


def _attr_spec(text: str) -> AttrSpec:
    head, equals, default = (part.strip() for part in text.partition("="))
    name, _, kind = (part.strip() for part in head.partition(":"))
    optional, kind = kind.endswith("?"), kind.removesuffix("?")
    many, kind = kind.endswith("[]"), kind.removesuffix("[]")
    assert kind in ("int", "float", "number", "bool", "str", "dtype", "key"), text
    return AttrSpec(name, kind, many, optional, not equals, _literal(default) if equals else None)


def _literal(text: str) -> Attr:
    if text in ("none", "true", "false"):
        return {"none": None, "true": True, "false": False}[text]
    if text.startswith("["):
        return tuple(_literal(part.strip()) for part in text[1:-1].split(",") if part.strip())
    if text.startswith('"'):
        return text[1:-1]
    if text in DTYPES:
        return text
    return int(text) if text.lstrip("-").isdigit() else float(text)


def _split(text: str) -> list[str]:
    """Split at commas outside brackets."""
    return [part for part in re.split(r",(?![^\[]*\])", text) if part.strip()]
