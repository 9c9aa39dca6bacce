"""Is this record a well-formed Plan for this Program (and this Fleet)? Form, not truth.

Whether a Plan computes its Program is for `proving` to say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import numpy as np

from tensure.errors import RecordError, TensureError
from tensure.program import (
    DTYPES,
    Expr,
    Name,
    Program,
    TensorType,
    bind_entry,
    check_body,
    corner_params,
    digest,
    infer_program,
    located,
    state_pairs,
)

from ._evaluate import claim_box
from ._fleet import Fleet
from ._infer import infer_plan, part_type
from ._plan import Local, Place, Placed, Plan, Rank, Runs, coordinates, device_of, placed, sum_group
from ._plan_text import format_plan, parse_plan

MAX_WALKED_RANKS: Final = 256
MAX_COVERED: Final = 1 << 24
"""Elements of an output above which coverage is left to the prover."""


def validate_plan(plan: Plan, program: Program, fleet: Fleet | None = None) -> None:
    """Raise unless the Plan is well-formed for the Program.

    Checked: digest; the text reads back as the same record; mesh, tracks and names; pools; known ops and
    blocks; devices; and, at the ends of every entry parameter, by running types over all ranks: single
    assignment, transfers sent once and received once, boxes, claims and pool offsets in bounds, all
    addends of a sum there, outputs and after-states covered element by element (up to 2^24 elements),
    state claims equal before and after. Plans of over 256 ranks are checked in form only; folding them is
    the prover's work.

    Raises:
        RecordError, EvaluationError: naming the track, the local and the step.
    """
    if plan.program != digest(program):
        raise RecordError(f"the plan is for {plan.program}", wanted=f"the program's digest {digest(program)}")
    if not plan.tracks:
        raise RecordError("a plan without tracks", wanted="at least one")
    _check_sizes(plan, program)
    for label, track in plan.tracks.items():
        for entry, body in track.bodies.items():
            program.entry(entry)
            check_body(body, plan.blocks, f"track {label}, entry {entry}", communication=True)
        for base, local in {**plan.locals, **track.locals}.items():
            _check_local(plan, local, f"track {label}, local {base}")
    for label, block in plan.blocks.items():
        check_body(block.body, plan.blocks, f"block {label}", communication=True)
    if repr(parse_plan(format_plan(plan))) != repr(plan):
        raise RecordError(
            "a record that its text does not read back as", wanted="names and attributes in form"
        )
    if plan.num_ranks() > MAX_WALKED_RANKS:
        return
    if fleet is not None:
        for rank in plan.ranks():
            fleet.device(device_of(plan, rank))
    for entry in program.entries:
        for params in corner_params(program, entry):
            try:
                types = infer_plan(plan, program, entry=entry, params=params)
                _check_claims(plan, program, entry, params, types)
            except TensureError as error:
                raise located(error, entry, params) from None


def _check_sizes(plan: Plan, program: Program) -> None:
    for kind, table in (("mesh", plan.mesh), ("pool", plan.pools)):
        for label, size in table.items():
            if not 0 < size < 1 << 48:
                raise RecordError(f"{kind} {label} = {size}", wanted="a positive size")
    taken = set(program.axes) | {key for entry in program.entries.values() for key, _, _ in entry.params}
    taken |= {key for entry in program.entries.values() for key, _ in entry.fixed}
    for label, track in plan.tracks.items():
        place = f"track {label}"
        if len(set(track.axes)) != len(track.axes):
            raise RecordError(f"axes {', '.join(track.axes)}", place=place, wanted="each once")
        for axis in track.axes:
            if axis not in plan.mesh:
                raise RecordError(
                    f"axis {axis!r} is not in the mesh", place=place, wanted=", ".join(plan.mesh)
                )
        for axis, lo, hi in track.spans:
            if axis not in track.axes or not 0 <= lo < hi <= plan.mesh[axis]:
                raise RecordError(
                    f"{axis} at {lo}:{hi}", place=place, wanted="places of the mesh along an axis of its own"
                )
        if len({axis for axis, _, _ in track.spans}) != len(track.spans):
            raise RecordError("two spans of one axis", place=place, wanted="one")
        for key, at in track.fixed:
            if key in track.axes or (key in plan.mesh and not 0 <= at < plan.mesh[key]):
                raise RecordError(
                    f"{key} fixed at {at}",
                    place=place,
                    wanted="a place of the mesh that is no axis of its own",
                )
        for key in (*track.axes, *(f"n_{axis}" for axis in plan.mesh), *(key for key, _ in track.fixed)):
            if key in taken:
                raise RecordError(
                    f"{key!r} hides a name of the program", place=place, wanted="a name of its own"
                )


def _check_local(plan: Plan, local: Local, place: str) -> None:
    if (local.pool is None) != (local.offset is None):
        raise RecordError("a pool without an offset, or an offset without a pool", place=place)
    if local.pool is not None and local.pool not in plan.pools:
        raise RecordError(
            f"no pool {local.pool!r}", place=place, wanted=", ".join(plan.pools) or "a pool line"
        )
    if local.dtype is not None and local.dtype not in DTYPES:
        raise RecordError(f"dtype {local.dtype!r}", place=place, wanted=" ".join(DTYPES))
    if local.order is not None and sorted(local.order) != list(range(len(local.order))):
        raise RecordError(f"stored order {list(local.order)}", place=place, wanted="every dim once")
    if local.place is not None:
        _check_sum(plan, local, local.place, place)


def _check_sum(plan: Plan, local: Local, claim: Place, place: str) -> None:
    for letter in claim.sum:
        if letter not in plan.mesh and letter not in local.params:
            raise RecordError(f"sum over {letter!r}", place=place, wanted="mesh axes or letters of the local")
    moving = _names(tuple(run for _, runs in claim.dims for run in runs)) & set(claim.sum)
    if moving:
        raise RecordError(
            f"addends over {min(moving)!r} that claim different parts",
            place=place,
            wanted="one part for all addends",
        )


def _names(runs: Runs) -> set[str]:
    return {name for run in runs for bound in run if isinstance(bound, Expr) for name in bound.names}


def _check_claims(
    plan: Plan,
    program: Program,
    entry: str,
    params: Mapping[str, int],
    types: Mapping[Rank, Mapping[Name, TensorType]],
) -> None:
    env = bind_entry(program, entry, params)
    logical = infer_program(program, entry=entry, params=params)
    pairs = {str(before): str(after) for before, after in state_pairs(program.entries[entry], env)}
    wanted = [str(name.ground(env)) for name in program.entries[entry].outputs]
    cover = _Cover({label: logical[label] for label in (*wanted, *pairs.values())})
    held: dict[tuple[Rank, str], set[str]] = {}
    for rank, table in types.items():
        for name, have in table.items():
            local = plan.local(rank.track, name.base)
            claim = placed(local, name, plan.rank_env(rank, env)) if local is not None else None
            if local is None or claim is None:
                continue
            label = str(claim.of)
            if label not in logical:
                raise RecordError(f"{name} claims {label}, which the program never makes", place=str(rank))
            want = part_type(logical[label], claim, name)
            if want.shape != have.shape:
                raise RecordError(f"{name} is {have}", place=str(rank), wanted=f"{want}, its part of {label}")
            cover.add(plan, rank, local, name, claim)
            if label in pairs or label in pairs.values():
                held.setdefault((rank, label), set()).add(str(sorted(claim.dims.items())))
    cover.check()
    for before, after in pairs.items():
        for rank in types:
            one, other = held.get((rank, before), set[str]()), held.get((rank, after), set[str]())
            if one != other:
                parts = [", ".join(sorted(found)) or "nothing" for found in (one, other)]
                raise RecordError(
                    f"state {before} is held at {parts[0]}, {after} at {parts[1]}",
                    place=str(rank),
                    wanted="the same part before and after",
                )


class _Cover:
    """Which elements of the outputs and after-states some rank holds, whole or as a complete sum."""

    def __init__(self, wanted: Mapping[str, TensorType]) -> None:
        self._types = wanted
        self._masks = {
            label: np.zeros(want.shape, np.bool_)
            for label, want in wanted.items()
            if math.prod(want.shape) <= MAX_COVERED
        }
        self._claimed: set[str] = set()
        self._sums: dict[object, tuple[int, int]] = {}

    def add(self, plan: Plan, rank: Rank, local: Local, name: Name, claim: Placed) -> None:
        """Take note of one local."""
        label = str(claim.of)
        if label not in self._types or claim.over is not None:
            return
        if claim.sum:
            group = sum_group(plan, rank, local, name, claim)
            need = math.prod(plan.mesh[axis] for axis in coordinates(plan, rank) if axis in claim.sum)
            there = self._sums.get(group, (0, need))[0] + 1
            self._sums[group] = (there, need)
            if there % need:
                return
        self._claimed.add(label)
        if label in self._masks:
            self._masks[label][claim_box(claim, self._types[label].shape)] = True

    def check(self) -> None:
        """Raise for the first value that is not whole."""
        for label in self._types:
            if label not in self._claimed:
                raise RecordError(f"output {label} is claimed by no local", wanted="claims that cover it")
            missing = int((~self._masks[label]).sum()) if label in self._masks else 0
            if missing:
                raise RecordError(
                    f"{missing} elements of output {label} are on no rank", wanted="claims that cover it"
                )
