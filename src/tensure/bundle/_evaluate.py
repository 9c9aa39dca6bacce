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
    FLOATS,
    Arg,
    Evaluation,
    Name,
    Op,
    Program,
    Ref,
    bind_entry,
    collective,
    dtype_name,
    evaluate,
    expand,
    infer_program,
    numpy_dtype,
    read_operand,
    run_step,
    state_pairs,
)

from ._machine import PlanMachine
from ._plan import Placed, Plan, Rank, bind_local, placed, sum_group
from ._storage import cells

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class PlanRun:
    """What one invocation of a Plan left behind: every local of every rank.

    `order` lists them as they came to be; a value never stands before one it was made from.
    """

    plan: Plan
    entry: str
    params: Mapping[str, int]
    env: Mapping[str, int]
    made: Mapping[Rank, Mapping[Name, Array]]
    states: Mapping[tuple[Rank, Name], Array]
    """Per-rank after-states under the local names of their before-states, to be handed in again."""
    order: tuple[tuple[Rank, Name], ...]


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
    machine.settle()
    carried = dict(machine.carried())
    return PlanRun(plan, entry, dict(params or {}), env, machine.made, carried, tuple(machine.order))


def claims(run: PlanRun) -> Iterator[Claimed]:
    """Every claim a run can be held to, in order of production; a sum stands where its last addend came.

    Claims with `over` pin their addend to an einsum; they are the prover's business, not listed here.
    """
    found: list[Claimed] = []
    sums: dict[object, int] = {}
    envs = {rank: run.plan.rank_env(rank, run.env) for rank in run.made}
    for rank, name in run.order:
        local = run.plan.local(rank.track, name.base)
        claim = placed(local, name, envs[rank]) if local is not None else None
        if local is None or claim is None or claim.over is not None:
            continue
        item = Claimed(rank, name, claim, run.made[rank][name], 1)
        if claim.sum:
            key = sum_group(run.plan, rank, local, name, claim)
            if key in sums:
                old = found[sums[key]]
                item = Claimed(rank, name, claim, old.total + item.total, old.addends + 1)
            sums[key] = len(found)
        found.append(item)
    last = set(sums.values())
    yield from (item for at, item in enumerate(found) if not item.claim.sum or at in last)


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
        box = claim_box(item.claim, shape)
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
        part = want[claim_box(item.claim, want.shape)]
        part = part if item.claim.scale == 1 else part * float(item.claim.scale)
        what = f"{item.rank}: {'the sum of ' if item.claim.sum else ''}{item.name}"
        if part.shape != item.total.shape:
            return (
                f"{what} has shape {list(item.total.shape)}, {item.claim.of} at its place {list(part.shape)}"
            )
        near = _near(part, item.total, rtol, atol)
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
        self.order: list[tuple[Rank, Name]] = []
        self.memory = {
            rank: {pool: np.zeros(size, np.uint8) for pool, size in plan.pools.items()} for rank in self.made
        }
        if storage:
            self._fill_pools()

    def leaf(self, rank: Rank, name: Name, claim: Placed) -> Array:
        if (rank, name) in self.states:
            return self.states[rank, name]
        label = str(claim.of)
        want = self.leaves[label]
        if label not in self.logical:
            raise RecordError(f"{label!r} is missing", wanted=f"{label} : {want}")
        array = self.logical[label]
        if array.shape != want.shape or dtype_name(array.dtype) != want.dtype:
            raise RecordError(f"{label} is {dtype_name(array.dtype)}{list(array.shape)}", wanted=str(want))
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

    def _make(self, rank: Rank, step: Op, results: list[Array]) -> None:
        super()._make(rank, step, results)
        self.order.extend((rank, out) for out in step.outs)

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

    def settle(self) -> None:
        """What counts at the end is what the pools still hold: outputs and after-states must stand there."""
        if not self.storage:
            return
        entry = self.program.entry(self.entry)
        last = {str(name.ground(self.env)) for name in entry.outputs}
        last |= {str(after) for _, after in state_pairs(entry, self.env)}
        for rank, table in self.made.items():
            for name in table:
                claim = self.claim(rank, name)
                if claim is not None and str(claim.of) in last:
                    table[name] = self.load(rank, Ref(name))

    def carried(self) -> Iterator[tuple[tuple[Rank, Name], Array]]:
        """After-states by rank, under the local names that held their before-states."""
        pairs = state_pairs(self.program.entry(self.entry), self.env)
        before = {str(after): str(name) for name, after in pairs}
        for rank, table in self.made.items():
            held = {self._part(rank, name): name for name in self.given[rank]}
            for name, array in table.items():
                claim = self.claim(rank, name)
                if claim is None or claim.sum or str(claim.of) not in before:
                    continue
                local = held.get((before[str(claim.of)], str(claim.dims)))
                if local is not None:
                    yield (rank, local), array

    def _part(self, rank: Rank, name: Name) -> tuple[str, str] | None:
        claim = self.claim(rank, name)
        return None if claim is None else (str(claim.of), str(claim.dims))

    def _fill_pools(self) -> None:
        """Inputs that live in a pool are there from the start; what a rank makes or receives is not."""
        for rank in self.made:
            steps = list(expand(self.plan.blocks, self.body(rank), self.env_of(rank)))
            made = {out for step in steps for out in step.outs}
            for read in (read for step in steps for read in step.reads() if read.name not in made):
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


def _near(one: Array, other: Array, rtol: float, atol: float) -> Array:
    """Integers are equal or not; floats within the tolerance."""
    if dtype_name(one.dtype) not in FLOATS:
        return np.asarray(one == other)
    wide = (one.astype(np.float64), other.astype(np.float64))
    return np.isclose(*wide, rtol=rtol, atol=atol, equal_nan=True)


def claim_box(claim: Placed, shape: tuple[int, ...]) -> tuple[Any, ...]:
    """The numpy index of the part of a logical value that a claim names."""
    return np.ix_(*(claim.dims.get(dim, range(size)) for dim, size in enumerate(shape)))
