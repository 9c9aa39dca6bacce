"""The types of a rank's locals in the dtypes that the records name, beside a walk that reads floats as one.

Over the reals a cast between floats is nothing. To ranks that meet it is: who brings bfloat16 where another
brings float32 has other bytes, and they hang or take one another's bytes for numbers. So types are inferred a
second time, of steps as they were given, and compared wherever ranks meet and wherever a dtype is declared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tensure.bundle import Plan, Rank
from tensure.errors import RecordError, TensureError
from tensure.program import Name, Op, Ref, TensorType, infer_step, type_operand, where

from ._reals import SAID, WORDS
from ._values import FLOATS


@dataclass(frozen=True, slots=True)
class Given:
    """What reading over the reals takes away: the Plan as it was given, and the Program's floats by base."""

    plan: Plan
    floats: Mapping[str, str]


class AsGiven:
    """Types of locals as given, in the order in which they come to be."""

    def __init__(self, given: Given) -> None:
        self._given = given
        self._types: dict[tuple[Rank, Name], TensorType] = {}
        self._inferred: dict[object, list[TensorType]] = {}

    def supplied(self, rank: Rank, name: Name, of: str, found: TensorType) -> None:
        """A part of a value that the Program declares under the base `of`; its type over the reals."""
        self._set(rank, name, replace(found, dtype=self._given.floats.get(of, found.dtype)))

    def computed(self, rank: Rank, step: Op) -> None:
        """One rank's own step has been taken.

        Raises:
            RecordError: an op has no meaning for these dtypes, or a local is not as declared.
        """
        own = _as_given(step)
        operands = [type_operand(arg, lambda ref: self.of(rank, ref)) for arg in step.args]
        told = [item if isinstance(item, TensorType) else repr(item) for item in operands]
        key = (own.op, repr(own.attrs), len(own.outs), *told)
        if key not in self._inferred:
            try:
                self._inferred[key] = infer_step(own, operands)
            except TensureError as error:
                raise RecordError(f"as given, {error.found}", place=f"{rank}, {where(step)}") from error
        for out, found in zip(own.outs, self._inferred[key], strict=True):
            self._set(rank, out, found)

    def received(self, rank: Rank, step: Op, sender: Rank, sent: Op, found: TensorType) -> None:
        """What was sent is there.

        Raises:
            RecordError: a local is not as declared.
        """
        dtype = self._brought(sender, sent).dtype
        for out in step.outs:
            self._set(rank, out, replace(found, dtype=dtype))

    def met(self, steps: Sequence[tuple[Rank, Op]]) -> str:
        """What all members of a collective bring: one dtype.

        Raises:
            RecordError: some bring another.
        """
        types = {str(found): found.dtype for found in (self._brought(rank, step) for rank, step in steps)}
        if len(set(types.values())) > 1:
            raise RecordError(f"members of types {', '.join(sorted(types))}", wanted="one dtype for all")
        return next(iter(types.values()))

    def made(self, rank: Rank, name: Name, found: TensorType, dtype: str) -> None:
        """What a collective made, of members of this dtype."""
        self._set(rank, name, replace(found, dtype=dtype))

    def of(self, rank: Rank, ref: Ref) -> TensorType:
        """The whole type of what a rank reads."""
        return self._types[rank, ref.name]

    def _brought(self, rank: Rank, step: Op) -> TensorType:
        (found,) = (type_operand(arg, lambda ref: self.of(rank, ref)) for arg in step.args)
        assert isinstance(found, TensorType)
        return found

    def _set(self, rank: Rank, name: Name, found: TensorType) -> None:
        self._types[rank, name] = found
        local = self._given.plan.local(rank.track, name.base)
        if local is not None and local.dtype is not None and local.dtype != found.dtype:
            raise RecordError(f"{name} comes out as {found}", wanted=f"{local.dtype} as declared")


def _as_given(step: Op) -> Op:
    """A step before it was read over the reals."""
    said: Any = next((value for key, value in step.note if key == SAID), None)
    if said is None:
        return step
    is_widened = not any(key in WORDS and value in FLOATS for key, value in step.attrs)
    attrs = tuple(
        (key, said)
        if key in WORDS and value in FLOATS
        else (key, True)
        if key == "half_to_float" and is_widened
        else (key, value)
        for key, value in step.attrs
    )
    return replace(step, attrs=attrs)
