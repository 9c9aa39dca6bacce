"""The type of every local of a Plan, without touching data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tensure.errors import RecordError
from tensure.program import (
    Arg,
    Name,
    Op,
    Program,
    TensorType,
    bind_entry,
    evaluate,
    infer_collective,
    infer_step,
    item_bytes,
    type_operand,
)

from ._machine import PlanMachine
from ._plan import Placed, Plan, Rank, bind_local


def infer_plan(
    plan: Plan, program: Program, *, entry: str | None = None, params: Mapping[str, int] | None = None
) -> dict[Rank, dict[Name, TensorType]]:
    """Types by rank and local name, supplied locals included.

    Raises:
        EvaluationError: a deadlock, a lost or doubled message, a local read before it is made.
        RecordError: an op, a claim or a declared dtype does not fit.
    """
    entry = entry if entry is not None else next(iter(program.entries))
    machine = _Types(plan, program, entry, bind_entry(program, entry, params))
    machine.go()
    return {rank: {**machine.given[rank], **made} for rank, made in machine.made.items()}


class _Types(PlanMachine[TensorType]):
    """Types as values."""

    def leaf(self, rank: Rank, name: Name, claim: Placed) -> TensorType:
        return part_type(self.leaves[str(claim.of)], claim, name)

    def operand(self, rank: Rank, arg: Arg) -> Any:
        return type_operand(arg, lambda ref: self.find(rank, ref))

    def run(self, step: Op, operands: list[Any]) -> list[TensorType]:
        return infer_step(step, operands)

    def meet(self, step: Op, members: list[TensorType]) -> list[TensorType]:
        return infer_collective(step.op, members, dict(step.attrs))

    def keep(self, rank: Rank, name: Name, value: TensorType) -> None:
        local = self.plan.local(rank.track, name.base)
        if local is not None and local.dtype is not None and local.dtype != value.dtype:
            raise RecordError(
                f"{name} comes out as {value}", place=str(rank), wanted=f"{local.dtype} as declared"
            )
        if local is not None and local.order is not None and len(local.order) != len(value.shape):
            raise RecordError(
                f"{name} is {value}", place=str(rank), wanted=f"{len(local.order)} dims as its order"
            )
        if local is None or local.pool is None or local.offset is None:
            return
        size, width = self.plan.pools[local.pool], item_bytes(value.dtype)
        offset = evaluate(local.offset, bind_local(local, name, self.env_of(rank)))
        end = offset + math.prod(value.shape) * width
        if offset < 0 or end > size or offset % width:
            raise RecordError(
                f"{name} lies at bytes {offset}..{end} of pool {local.pool}",
                place=str(rank),
                wanted=f"inside its {size} bytes and a multiple of {width}",
            )


def part_type(whole: TensorType, claim: Placed, name: Name) -> TensorType:
    """The type of the part of a logical value that a claim names."""
    shape = list(whole.shape)
    for dim, indices in claim.dims.items():
        if dim >= len(shape) or (indices and max(indices) >= shape[dim]):
            raise RecordError(
                f"{name} claims a part of {claim.of} that does not exist", wanted=f"inside {whole}"
            )
        shape[dim] = len(indices)
    return TensorType(tuple(shape), whole.dtype)
