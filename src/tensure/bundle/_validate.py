"""Is this record a well-formed Plan for this Program (and this Fleet)? Form, not truth.

Whether a Plan computes its Program is for `proving` to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tensure.errors import RecordError, TensureError
from tensure.program import (
    DTYPES,
    Name,
    Program,
    TensorType,
    corner_params,
    digest,
    infer_program,
    state_pairs,
)
from tensure.program import bind_entry as bind
from tensure.program._validate import check_body

from ._fleet import Fleet
from ._infer import infer_plan, part_type
from ._plan import Local, Plan, Rank, device_of, placed

MAX_WALKED_RANKS: Final = 256


def validate_plan(plan: Plan, program: Program, fleet: Fleet | None = None) -> None:
    """Raise unless the Plan is well-formed for the Program.

    Checked: digest, mesh, tracks, pools and offsets, known ops and blocks, devices, and, at the least
    and greatest value of every entry parameter, by running types over all ranks: single assignment,
    transfers sent once and received once, boxes and claims in bounds, after-states and outputs
    covered, state claims equal before and after. Plans of over 256 ranks are checked in form only;
    folding them is the prover's work.

    Raises:
        RecordError, EvaluationError: naming the track, the local and the step.
    """
    if plan.program != digest(program):
        raise RecordError(f"the plan is for {plan.program}", wanted=f"the program's digest {digest(program)}")
    if not plan.tracks:
        raise RecordError("a plan without tracks", wanted="at least one")
    for kind, table in (("mesh", plan.mesh), ("pool", plan.pools)):
        for label, size in table.items():
            if not 0 < size < 1 << 48:
                raise RecordError(f"{kind} {label} = {size}", wanted="a positive size")
    for label, track in plan.tracks.items():
        for axis in track.axes:
            if axis not in plan.mesh:
                raise RecordError(
                    f"axis {axis!r} is not in the mesh", place=f"track {label}", wanted=", ".join(plan.mesh)
                )
        for entry, body in track.bodies.items():
            program.entry(entry)
            check_body(body, plan.blocks, f"track {label}, entry {entry}", communication=True)
        for base, local in {**plan.locals, **track.locals}.items():
            _check_local(plan, base, local, f"track {label}, local {base}")
    for label, block in plan.blocks.items():
        check_body(block.body, plan.blocks, f"block {label}", communication=True)
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
                at = ", ".join(f"{key}={value}" for key, value in params.items())
                error.place = (
                    f"entry {entry}{f' at {at}' if at else ''}{f', {error.place}' if error.place else ''}"
                )
                raise


def _check_local(plan: Plan, base: str, local: Local, place: str) -> None:
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
        for letter in local.place.sum:
            if letter not in plan.mesh and letter not in local.params:
                raise RecordError(
                    f"sum over {letter!r}", place=place, wanted="mesh axes or letters of the local"
                )


def _check_claims(
    plan: Plan,
    program: Program,
    entry: str,
    params: Mapping[str, int],
    types: Mapping[Rank, Mapping[Name, TensorType]],
) -> None:
    env = bind(program, entry, params)
    logical = infer_program(program, entry=entry, params=params)
    pairs = {str(before): str(after) for before, after in state_pairs(program.entries[entry], env)}
    covered: set[str] = set()
    held: dict[tuple[Rank, str], set[str]] = {}
    for rank, table in types.items():
        for name, have in table.items():
            local = plan.local(rank.track, name.base)
            claim = placed(local, name, plan.rank_env(rank, env)) if local is not None else None
            if claim is None:
                continue
            label = str(claim.of)
            covered.add(label)
            if label not in logical:
                raise RecordError(f"{name} claims {label}, which the program never makes", place=str(rank))
            want = part_type(logical[label], claim, name)
            if want.shape != have.shape:
                raise RecordError(f"{name} is {have}", place=str(rank), wanted=f"{want}, its part of {label}")
            if label in pairs or label in pairs.values():
                held.setdefault((rank, label), set()).add(str(sorted(claim.dims.items())))
    for name in program.entries[entry].outputs:
        if str(name.ground(env)) not in covered:
            raise RecordError(f"output {name.ground(env)} is claimed by no local")
    for before, after in pairs.items():
        if after not in covered:
            raise RecordError(f"after-state {after} is claimed by no local")
        for rank in types:
            one, other = held.get((rank, before), set()), held.get((rank, after), set())
            if one != other:
                parts = [", ".join(sorted(found)) or "nothing" for found in (one, other)]
                raise RecordError(
                    f"state {before} is held at {parts[0]}, {after} at {parts[1]}",
                    place=str(rank),
                    wanted="the same part before and after",
                )
