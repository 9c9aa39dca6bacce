"""Run any Plan in numpy: every rank as a process, every claim there to be compared.

Slow and plain on purpose. Knows the records and the op table's semantics; knows no device, no time
and no fast kernel. With `storage=True` pooled locals live in the real bytes of their pool, so that a
plan whose buffers collide computes what the hardware would.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from tensure.errors import EvaluationError, RecordError
from tensure.program import (
    Arg,
    Evaluation,
    Name,
    Op,
    Program,
    Ref,
    bind_entry,
    dtype_name,
    evaluate,
    expand,
    infer_program,
    numpy_dtype,
    state_pairs,
)
from tensure.program._evaluate import read_operand, run_step
from tensure.program._ops import collective

from ._machine import PlanMachine
from ._plan import Placed, Plan, Rank, bind_local, placed
from ._storage import cells

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class PlanRun:
    """What one invocation of a Plan left behind: every local of every rank, in order of production."""

    plan: Plan
    entry: str
    params: Mapping[str, int]
    env: Mapping[str, int]
    made: Mapping[Rank, Mapping[Name, Array]]
    states: Mapping[tuple[Rank, Name], Array]
    """Per-rank after-states under the local names of their before-states, to be handed in again."""


@dataclass(frozen=True, slots=True)
class Claimed:
    """A local, or the total of the locals a claim adds up, beside the claim."""

    rank: Rank
    name: Name
    claim: Placed
    total: Array
    addends: int


def evaluate_plan(
    plan: Plan,
    program: Program,
    logical: Mapping[str, Array],
    *,
    entry: str | None = None,
    params: Mapping[str, int] | None = None,
    states: Mapping[tuple[Rank, Name], Array] | None = None,
    storage: bool = False,
) -> PlanRun:
    """Run every rank of a Plan.

    Args:
        logical: inputs, weights and before-states by logical name; each rank takes its part as its
            claims say. Lazy mappings are fine.
        states: per-rank before-states kept from an earlier run; they win over `logical`.
        storage: keep pooled locals in the real bytes of their pools.

    Raises:
        EvaluationError: a deadlock, a lost or doubled message, a local read before it is made.
        RecordError: an op or a claim is malformed.
    """
    entry = entry if entry is not None else next(iter(program.entries))
    env = bind_entry(program, entry, params)
    machine = _Numpy(plan, program, entry, env, logical, dict(states or {}), storage)
    machine.go()
    return PlanRun(plan, entry, dict(params or {}), env, machine.made, dict(machine.carried()))


def claims(run: PlanRun) -> Iterator[Claimed]:
    """Every claim a run can be held to: single locals, and sums once all their addends are in.

    Claims with `over` pin their addend to an einsum; they are the prover's business, not listed here.
    """
    sums: dict[object, Claimed] = {}
    for rank, table in run.made.items():
        track = run.plan.tracks[rank.track]
        env = run.plan.rank_env(rank, run.env)
        for name, array in table.items():
            local = run.plan.local(rank.track, name.base)
            claim = placed(local, name, env) if local is not None else None
            if local is None or claim is None or claim.over is not None:
                continue
            if not claim.sum:
                yield Claimed(rank, name, claim, array, 1)
                continue
            at = tuple(c for axis, c in zip(track.axes, rank.at, strict=True) if axis not in claim.sum)
            index = tuple(
                i for key, i in zip(local.params, name.members(), strict=True) if key not in claim.sum
            )
            key = (rank.track, at, name.base, index, str(claim.of))
            old = sums.get(key)
            total, count = (array, 1) if old is None else (old.total + array, old.addends + 1)
            sums[key] = Claimed(rank, name, claim, total, count)
    yield from sums.values()


def collect(run: PlanRun, program: Program, names: tuple[Name, ...]) -> dict[str, Array]:
    """Assemble logical values from the locals that claim them.

    Raises:
        EvaluationError: some element of a value is on no rank; says how many.
    """
    wanted = {str(name) for name in names}
    types = infer_program(program, entry=run.entry, params=run.params)
    whole: dict[str, Array] = {}
    filled: dict[str, Array] = {}
    for item in claims(run):
        label, array = str(item.claim.of), item.total
        if label not in wanted:
            continue
        if item.claim.scale != 1:
            array = (array / np.asarray(float(item.claim.scale))).astype(array.dtype)
        shape = types[label].shape
        target = whole.setdefault(label, np.zeros(shape, array.dtype))
        box = _box(item.claim, shape)
        if target[box].shape != array.shape:
            raise EvaluationError(
                f"{item.name} has shape {list(array.shape)}", wanted=f"{list(target[box].shape)} as claimed"
            )
        target[box] = array
        filled.setdefault(label, np.zeros(shape, np.bool_))[box] = True
    for label in sorted(wanted):
        missing = int((~filled[label]).sum()) if label in filled else "all"
        if missing:
            raise EvaluationError(f"output {label}: {missing} elements are on no rank")
    return whole


def compare_claims(
    run: PlanRun, logical: Evaluation, *, rtol: float = 1e-9, atol: float = 1e-9
) -> str | None:
    """The first claim that does not hold against the Program's own values, in words; None when all do.

    Holds one set of values against another; not a proof.
    """
    for item in claims(run):
        want = logical.values.get(str(item.claim.of))
        if want is None:
            return f"{item.rank}: {item.name} claims {item.claim.of}, which the program never makes"
        part = want[_box(item.claim, want.shape)]
        part = part if item.claim.scale == 1 else part * float(item.claim.scale)
        what = f"{item.rank}: {'the sum of ' if item.claim.sum else ''}{item.name}"
        if part.shape != item.total.shape:
            return (
                f"{what} has shape {list(item.total.shape)}, {item.claim.of} at its place {list(part.shape)}"
            )
        near = np.isclose(
            part.astype(np.float64), item.total.astype(np.float64), rtol=rtol, atol=atol, equal_nan=True
        )
        if not near.all():
            index = [int(i) for i in np.argwhere(~near)[0]]
            return f"{what} is not {item.claim.of} at its place, first at {index}"
    return None


class _Numpy(PlanMachine[Array]):
    """Arrays as values; pools as bytes when asked."""

    def __init__(
        self,
        plan: Plan,
        program: Program,
        entry: str,
        env: Mapping[str, int],
        logical: Mapping[str, Array],
        states: dict[tuple[Rank, Name], Array],
        storage: bool,
    ) -> None:
        super().__init__(plan, program, entry, env)
        self.logical, self.states, self.storage = logical, states, storage
        self.memory = {
            rank: {pool: np.zeros(size, np.uint8) for pool, size in plan.pools.items()} for rank in self.made
        }
        if storage:
            self._fill_pools()

    def leaf(self, rank: Rank, name: Name, claim: Placed) -> Array:
        if (rank, name) in self.states:
            return self.states[rank, name]
        label = str(claim.of)
        if label not in self.logical:
            raise RecordError(f"{label!r} is missing", wanted=f"{label} : {self.leaves[label]}")
        array = self.logical[label]
        for dim, indices in claim.dims.items():
            if dim >= array.ndim or (indices and max(indices) >= array.shape[dim]):
                raise RecordError(
                    f"{name} claims a part of {label} that does not exist",
                    wanted=f"inside {list(array.shape)}",
                )
            array = array.take(indices, axis=dim)
        return array

    def operand(self, rank: Rank, arg: Arg) -> Any:
        return read_operand(arg, lambda ref: self.load(rank, ref))

    def run(self, step: Op, operands: list[Any]) -> list[Array]:
        return run_step(step, operands)

    def meet(self, step: Op, members: list[Array]) -> list[Array]:
        return collective(step.op, members, dict(step.attrs))

    def keep(self, rank: Rank, name: Name, value: Array) -> None:
        target = self._bytes(rank, name, value)
        if target is not None:
            memory, where_, dtype = target
            stored = np.ascontiguousarray(value.astype(dtype))
            memory[where_] = stored.reshape(*value.shape, 1).view(np.uint8)

    def load(self, rank: Rank, ref: Ref) -> Array:
        """What a read finds: the value, or for a pooled local its bytes as they stand now."""
        value = self.find(rank, ref)
        target = self._bytes(rank, ref.name, value)
        if target is None:
            return value
        memory, where_, dtype = target
        return np.ascontiguousarray(memory[where_]).view(dtype).reshape(value.shape).astype(value.dtype)

    def carried(self) -> Iterator[tuple[tuple[Rank, Name], Array]]:
        """After-states by rank, under the local names of their before-states."""
        before = {str(after): name for name, after in state_pairs(self.program.entry(self.entry), self.env)}
        for rank, table in self.made.items():
            for name in table:
                claim = self.claim(rank, name)
                if claim is None or claim.sum or str(claim.of) not in before:
                    continue
                wanted = before[str(claim.of)]
                local = Name(wanted.base, name.members())
                held = (
                    self.claim(rank, local) if self.plan.local(rank.track, wanted.base) is not None else None
                )
                if held is not None and held.of == wanted and held.dims == claim.dims:
                    yield (rank, local), self.load(rank, Ref(name))

    def _fill_pools(self) -> None:
        """Inputs that live in a pool are there from the start."""
        for rank in self.made:
            for step in expand(self.plan.blocks, self.body(rank), self.env_of(rank)):
                for read in step.reads():
                    local = self.plan.local(rank.track, read.name.base)
                    if (
                        local is not None
                        and local.pool is not None
                        and self.supplied(self.claim(rank, read.name))
                    ):
                        self.find(rank, read)

    def _bytes(self, rank: Rank, name: Name, value: Array) -> tuple[Array, Array, np.dtype[Any]] | None:
        local = self.plan.local(rank.track, name.base) if self.storage else None
        if local is None or local.pool is None or local.offset is None:
            return None
        memory = self.memory[rank][local.pool]
        dtype = numpy_dtype(local.dtype or dtype_name(value.dtype))
        offset = evaluate(local.offset, bind_local(local, name, self.env_of(rank)))
        where_ = offset + cells(value.shape, local.order, dtype.itemsize)
        if where_.size and (int(where_.min()) < 0 or int(where_.max()) >= memory.size):
            raise EvaluationError(f"{name} leaves pool {local.pool} of {memory.size} bytes", place=str(rank))
        return memory, where_, dtype


def _box(claim: Placed, shape: tuple[int, ...]) -> tuple[Any, ...]:
    return np.ix_(*(claim.dims.get(dim, range(size)) for dim, size in enumerate(shape)))
