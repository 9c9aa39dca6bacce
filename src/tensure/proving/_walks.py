"""Walk every invocation of a Plan, and keep of it what verdicts need."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from tensure.bundle import Json, Plan, Rank
from tensure.program import (
    Name,
    Program,
    Undecided,
    at_place,
    bind_entry,
    corner_params,
    evaluate,
    spread,
)

from ._as_given import Given
from ._completed import completed
from ._cone import Shown, Unreplayable, shown
from ._doubt import STRANGE, Doubt
from ._draws import Mixed
from ._flow import Flow, flow
from ._index import Region
from ._kept import kept_values
from ._looks import looks_of
from ._numerics import numerics
from ._readings import readings
from ._replay import LEVELS, constant_program
from ._storage import Clash, clash, too_large
from ._suspects import Suspect
from ._tensors import Doubted

MAX_INVOCATIONS: Final = 64
"""Values of an entry's parameters that are walked one by one; beyond that only corners, and no proof."""
MAX_RANKS: Final = 256
"""Ranks that are walked, replayed and tagged one by one."""
SEEDS: Final = (1, 2)


@dataclass(frozen=True, slots=True)
class Unit:
    """What one walk established, in plain values: the same whichever process made it."""

    entry: str
    params: Mapping[str, int]
    doubts: tuple[Doubt, ...]
    claims: tuple[list[Json], list[Json]] | None
    reads: Sequence[Json]
    keeps: Sequence[Json]
    clash: Clash | None
    ended: bool
    halted: bool
    suspects: Mapping[tuple[str, str], Suspect]
    folded: tuple[str, ...]
    shown: tuple[Shown, ...] | str
    """Of a Plan of too many ranks: claims that a replay in part shows not to hold, or why there are none."""
    size: int
    """How many locals were made."""
    targets: bool
    """Whether it holds where no class of a mean loss is the one to be ignored."""
    mixed: Mixed | None
    """Random numbers that are not what they stand for."""
    standing: Mapping[tuple[str, str], tuple[str, Region]] | None
    """What random numbers stand for, for a replay; None where that is not known of some."""
    otherwise: frozenset[tuple[str, str]]
    """By rank and local as printed, what rests on random numbers read in another way than the model's."""
    otherwise_asked: frozenset[int]
    """The doubts of such, by their place in the order of production."""
    has_ensemble: bool
    """Whether it is known which of the ranks' random numbers are one."""
    numerics: tuple[str, ...]
    """Where ranks round and the Program does not, if nothing is in doubt."""

    def suspected(self, doubt: Doubted) -> Suspect | None:
        """The step where what is doubted first went astray."""
        return self.suspects.get((doubt.rank, doubt.local))


def invocations_of(program: Program) -> tuple[list[tuple[str, dict[str, int]]], list[str]]:
    """Every value of every entry's parameters, or corners where there are too many (and which those are)."""
    found: list[tuple[str, dict[str, int]]] = []
    open_entries: list[str] = []
    for label, entry in program.entries.items():
        rows: list[dict[str, int]] = [{}]
        count = 0
        for key, lo, hi in entry.params:
            grown: list[dict[str, int]] = []
            for row in rows:
                env = {**program.axes, **row}
                low, high = evaluate(lo, env), evaluate(hi, env)
                grown.extend(
                    {**row, key: value} for value in range(low, min(high, low + MAX_INVOCATIONS + 1))
                )
                if len(grown) > MAX_INVOCATIONS:
                    break
            rows = grown
        count = len(rows)
        if count > MAX_INVOCATIONS:
            open_entries.append(label)
            rows = [dict(params) for params in corner_params(program, label)]
        found.extend((label, row) for row in rows)
    return found, open_entries


def walked(
    plan: Plan,
    program: Program,
    invocations: Sequence[tuple[str, dict[str, int]]],
    jobs: int,
    folded: frozenset[str],
    *,
    given: Given | None = None,
    listed: bool = False,
) -> list[Unit]:
    """Every invocation's walk, in the order given.

    Args:
        jobs: processes.
        folded: mesh axes along which ranks are taken together.
        given: what both records were, where they are read over the reals.
        listed: look for what is wrong, not for a proof: keep place by place what is no expression of the
            coordinates, and take it that no class of a mean loss is the one to be ignored.

    Raises:
        Undecided: ranks taken together would have to be taken apart.
    """
    within = jobs if len(invocations) == 1 else 1
    return spread(
        [
            partial(_unit, plan, program, entry, params, folded, given, listed, within)
            for entry, params in invocations
        ],
        jobs,
    )


def _unit(
    plan: Plan,
    program: Program,
    entry: str,
    params: Mapping[str, int],
    folded: frozenset[str],
    given: Given | None,
    listed: bool,
    jobs: int,
) -> Unit:
    env = bind_entry(program, entry, params)
    if listed:
        targets = _may_assume(program, entry, env)
        found = flow(plan, program, entry, env, targets=targets, folded=folded, given=given, listed=True)
    else:
        found, targets = _flowed(plan, program, entry, env, folded, given)
    read = readings(found)
    clashing = None
    if plan.pools and found.ended and plan.num_ranks() <= MAX_RANKS and too_large(plan) is None:
        alone = flow(plan, program, entry, env) if folded else found  # bytes are each rank's own
        if alone.ended:
            clashing = clash(plan, program, entry, env, alone.types(), alone.supplied, jobs)
    return Unit(
        entry,
        dict(params),
        found.doubts,
        None if found.doubts else completed(found),
        _plain(found.reads),
        _plain(found.keeps),
        clashing,
        found.ended,
        found.halted,
        dict(found.suspects),
        tuple(axis for axis in plan.mesh if axis in folded),
        _shown(plan, program, entry, params, found),
        sum(map(len, found.relations.values())),
        targets,
        found.draws.mixed(read.unsettled),
        _standing(found, plan),
        _printed(found, plan, read.otherwise),
        read.orders,
        found.draws.is_known(),
        () if found.doubts or given is None else numerics(found, plan, program, entry, env, given.floats),
    )


def _flowed(
    plan: Plan,
    program: Program,
    entry: str,
    env: Mapping[str, int],
    folded: frozenset[str],
    given: Given | None,
) -> tuple[Flow, bool]:
    """The walk; and whether it took that no class of a mean loss is the one to be ignored.

    A Program that looks for this class itself has such targets: there it is not taken.
    Doubts are told without the assumption, unless there are fewer with it.
    """
    found: Flow | None = None
    differing: Undecided | None = None
    try:
        found = flow(plan, program, entry, env, folded=folded, given=given)
    except Undecided as undecided:
        differing = undecided
    if (found is None or (found.doubts and found.ended)) and _may_assume(program, entry, env):
        try:
            counted = flow(plan, program, entry, env, targets=True, folded=folded, given=given)
        except Undecided:
            counted = None
        if counted is not None and (found is None or len(counted.doubts) < len(found.doubts)):
            return counted, True  # fewer doubts are nearer to what is wrong
    if found is None:
        assert differing is not None
        raise differing
    return found, False


def _shown(
    plan: Plan, program: Program, entry: str, params: Mapping[str, int], found: Flow
) -> tuple[Shown, ...] | str:
    """What a replay of the doubts alone shows, where all ranks would be too many."""
    if not found.doubts or plan.num_ranks() <= MAX_RANKS:
        return ()
    reason = ""
    if _is_unknown(found):
        program = constant_program(program, LEVELS[1])
    for seed in SEEDS:
        try:
            seen = shown(found.trail, found.asked, partial(kept_values, program, entry, params, seed))
        except Unreplayable as why:
            reason = str(why)
            continue
        if seen:
            return tuple(seen)
        reason = "a replay shows no difference"
    return reason


def _standing(found: Flow, plan: Plan) -> Mapping[tuple[str, str], tuple[str, Region]] | None:
    if not found.doubts or plan.num_ranks() > MAX_RANKS:
        return {}
    return None if _is_unknown(found) else found.draws.standing()


def _printed(found: Flow, plan: Plan, locals_: frozenset[tuple[Rank, Name]]) -> frozenset[tuple[str, str]]:
    """Locals of single ranks by name."""
    if plan.num_ranks() > MAX_RANKS:
        return frozenset()
    cells = found.trail.cells
    return frozenset(
        (str(Rank(rank.track, tuple(at_place(part, dict(spot)) for part in rank.at))), str(name))
        for rank, name in locals_
        for spot in (cells.places(rank, cells.folded) if cells.folded else ((),))
    )


def _is_unknown(found: Flow) -> bool:
    """Whether some random numbers stand for nothing, or for one of several: a guess shows no difference."""
    return found.draws.guessed or any(doubt.claim == STRANGE for doubt in found.doubts)


def _may_assume(program: Program, entry: str, env: Mapping[str, int]) -> bool:
    """Whether it may be taken that no class of a mean loss is the one to be ignored."""
    looks = looks_of(program, entry, env)
    return looks.has_loss and not looks.ignored


def _plain(parts: Any) -> list[Json]:
    rows: list[Json] = json.loads(json.dumps(sorted(parts)))
    return rows
