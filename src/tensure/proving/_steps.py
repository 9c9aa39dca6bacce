"""A step as the engine takes it: tensors with their relations, attributes with their defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from tensure.program import Op, TensorType, bind_op, lookup

from ._relation import Relation
from ._values import FLOATS

Number: TypeAlias = "int | float | bool | None"


@dataclass(frozen=True, slots=True)
class Held:
    """A tensor as the engine carries it: its type and its relation to logical values."""

    type: TensorType
    relation: Relation


Operand: TypeAlias = "Held | Number"


@dataclass(frozen=True, slots=True)
class Call:
    """A step as the engine takes it: attributes with defaults, and what it is to make."""

    step: Op
    given: dict[str, Any]
    operands: list[Operand]
    types: list[TensorType]
    want: Relation | None
    own: bool
    """Whether it is a step of the Program, whose results are values."""


def bound(step: Op, operands: list[Operand]) -> dict[str, Any]:
    return bind_op(lookup(step.op), [type_of(operand) for operand in operands], dict(step.attrs))


def type_of(operand: Operand) -> Any:
    return operand.type if isinstance(operand, Held) else operand


def all_float(call: Call, places: list[int]) -> bool:
    """Factors and addends are of real numbers."""
    held = [call.operands[at] for at in places]
    return all(found.dtype in FLOATS for found in call.types) and all(
        isinstance(item, Held) and item.type.dtype in FLOATS for item in held
    )
