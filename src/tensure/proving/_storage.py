"""Does every read find the bytes its own definition wrote? Exact, by a tag on every byte; no arithmetic.

A rank's steps run in the order of its track; a step reads all its operands before it writes. What is
supplied lies in its pool from the start. At the end outputs, after-states and weights must stand.
Offsets lie inside the pool and are multiples of the element size. Knows types, never values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NoReturn

import numpy as np

from tensure.bundle import Local, Plan, Rank, bind_local, cells, placed
from tensure.program import (
    Name,
    Op,
    Program,
    Ref,
    TensorType,
    evaluate,
    expand,
    item_bytes,
    spread,
    state_pairs,
)

MAX_POOL: Final = 1 << 26
"""Bytes of all pools of a rank: every byte carries an eight-byte tag."""
MAX_TOGETHER: Final = 1 << 28
"""Bytes of all pools whose tags are kept at one time, in all processes: two GiB of tags."""


@dataclass(frozen=True, slots=True)
class Clash:
    """The first thing wrong with a rank's bytes: which local, in which step, and why in words."""

    rank: str
    local: str
    step: str
    why: str
    index: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class _Spot:
    """Where a local's bytes lie: their numbers in the pool, [*shape, item]."""

    pool: str
    bytes: np.ndarray[Any, np.dtype[np.int64]]
    tag: int


def too_large(plan: Plan) -> int | None:
    """The bytes of the pools when they are more than tags can be kept for, else None."""
    total = sum(plan.pools.values())
    return total if total > MAX_POOL else None


def clash(
    plan: Plan,
    program: Program,
    entry: str,
    env: Mapping[str, int],
    types: Mapping[Rank, Mapping[Name, TensorType]],
    supplied: Mapping[Rank, frozenset[Name]],
    jobs: int = 1,
) -> Clash | None:
    """The first read of bytes that are not one's own, on any rank; None when there is none.

    Args:
        jobs: processes; each rank is looked at by itself.
    """
    if not plan.pools:
        return None

    def look(rank: Rank) -> None:
        _Bytes(plan, program, entry, env, rank, types[rank], supplied[rank]).run()

    together = max(1, MAX_TOGETHER // max(1, sum(plan.pools.values())))
    try:
        spread([partial(look, rank) for rank in plan.ranks()], min(jobs, together))
    except _Clash as found:
        return found.clash
    return None


class _Clash(Exception):
    """Carries a Clash out of nested calls, and processes; never leaves this file."""

    def __init__(self, clash: Clash) -> None:
        super().__init__(clash)
        self.clash = clash


class _Bytes:
    """One rank's pools with the tag of whoever wrote each byte last."""

    def __init__(
        self,
        plan: Plan,
        program: Program,
        entry: str,
        env: Mapping[str, int],
        rank: Rank,
        types: Mapping[Name, TensorType],
        supplied: frozenset[Name],
    ) -> None:
        self.plan, self.program, self.entry, self.rank = plan, program, entry, rank
        self.env = plan.rank_env(rank, env)
        self.invocation = env
        self.types, self.supplied = types, supplied
        self.memory = {pool: np.full(size, -1, np.int64) for pool, size in plan.pools.items()}
        self.spots: dict[Name, _Spot | None] = {}
        self.owners: list[Name] = []

    def run(self) -> None:
        """Walk the rank's steps.

        Raises:
            _Clash: one finds other bytes than its own.
        """
        body = self.plan.tracks[self.rank.track].bodies.get(self.entry, ())
        for name in self.types:
            if name in self.supplied:
                self.write(name, None)
        for step in expand(self.plan.blocks, body, self.env):
            for read in step.reads():
                self.read(read, step)
            for out in step.outs:
                self.write(out, step)
        self.stands()

    def write(self, name: Name, step: Op | None) -> None:
        """Tag the bytes of a local."""
        spot = self.spot(name, step)
        if spot is not None:
            self.memory[spot.pool][spot.bytes] = spot.tag + np.arange(spot.bytes.size).reshape(
                spot.bytes.shape
            )

    def read(self, ref: Ref, step: Op | None, why: str = "") -> None:
        """Find one's own tags under every byte that is read."""
        spot = self.spot(ref.name, step)
        if spot is None:
            return
        places = spot.bytes
        wanted = spot.tag + np.arange(places.size).reshape(places.shape)
        for dim, lo, hi in ref.box:
            part = (slice(None),) * dim + (slice(int(str(lo)), int(str(hi))),)
            places, wanted = places[part], wanted[part]
        wrong = self.memory[spot.pool][places] != wanted
        if wrong.any():
            first = np.argwhere(wrong)[0]
            byte = int(places[tuple(first)])
            tag = int(self.memory[spot.pool][byte])
            owner = "nothing" if tag < 0 else str(self.owners[tag >> 40])
            at = [int(i) for i in first[:-1]]
            for dim, lo, _ in ref.box:
                at[dim] += int(str(lo))
            self.fail(
                ref.name, step, f"byte {byte} of pool {spot.pool} now belongs to {owner}{why}", tuple(at)
            )

    def stands(self) -> None:
        """What the next step outside must find: outputs, after-states, and the weights of the next run."""
        entry = self.program.entry(self.entry)
        lasting = {str(name.ground(self.invocation)) for name in entry.outputs}
        lasting |= {str(after) for _, after in state_pairs(entry, self.invocation)}
        weights = set(self.program.weights())
        for name in self.types:
            local = self.plan.local(self.rank.track, name.base)
            claim = placed(local, name, self.env) if local is not None else None
            if claim is None:
                continue
            if str(claim.of) in lasting:
                self.read(Ref(name), None, f", and {claim.of} must stand at the end")
            elif name in self.supplied and claim.of.base in weights:
                self.read(Ref(name), None, f", and the weight {claim.of} must stand for the next run")

    def spot(self, name: Name, step: Op | None) -> _Spot | None:
        """Where a local lies; None outside the pools."""
        if name in self.spots:
            return self.spots[name]
        local = self.plan.local(self.rank.track, name.base)
        self.spots[name] = None
        if local is None or local.pool is None or local.offset is None or name not in self.types:
            return None
        self.spots[name] = self._spot(
            name, local, local.pool, evaluate(local.offset, bind_local(local, name, self.env)), step
        )
        return self.spots[name]

    def _spot(self, name: Name, local: Local, pool: str, offset: int, step: Op | None) -> _Spot:
        found = self.types[name]
        width = item_bytes(local.dtype or found.dtype)
        if local.order is not None and len(local.order) != len(found.shape):
            self.fail(
                name, step, f"its stored order has {len(local.order)} dims and it has {len(found.shape)}"
            )
        places = cells(found.shape, local.order, width) + offset
        last = offset + places.size
        if offset < 0 or last > self.plan.pools[pool]:
            self.fail(name, step, f"bytes {offset}..{last} leave pool {pool} of {self.plan.pools[pool]}")
        if offset % width:
            self.fail(name, step, f"offset {offset} of pool {pool} is no multiple of {width}")
        self.owners.append(name)
        return _Spot(pool, places, len(self.owners) - 1 << 40)

    def fail(self, name: Name, step: Op | None, why: str, index: tuple[int, ...] = ()) -> NoReturn:
        """Stop at the first fault."""
        made = ", ".join(map(str, step.outs)) if step is not None else ""
        words = (
            f"{made} = {step.op}(...)"
            if step is not None and made
            else step.op
            if step is not None
            else "at rest"
        )
        raise _Clash(Clash(str(self.rank), str(name), words, why, index))
