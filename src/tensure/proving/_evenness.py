"""What a captured Plan cuts into parts of several sizes: claims at its ends, and slices within its steps.

A step that is right where sizes divide may be wrong where they do not (a mean of means, say), so a fault
seen at sizes that do not divide tells nothing of sizes that do.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from tensure.bundle import BoundClaims, Plan, Rank, coordinates
from tensure.program import Expr, Name, Op, Program, evaluate

MAX_LISTED: Final = 256
"""Ranks of one text that are looked at one by one; of more, those at the corners, since what differs between
them is then a sum of multiples of their coordinates."""


@dataclass(frozen=True, slots=True)
class Uneven:
    """What is cut into parts of several sizes: a dim of one of the Program's values, or a tensor at a line.

    Args:
        what: is cut, in words.
        sizes: of parts, greatest first.
        parts: how many parts sizes would have to be divided into.
    """

    what: str
    sizes: tuple[int, ...]
    parts: int


Runs: TypeAlias = "tuple[tuple[int, int], ...]"
Place: TypeAlias = "tuple[tuple[str, int], ...]"


def uneven_cuts(plan: Plan, program: Program) -> dict[str, Uneven]:
    """By what is cut: where ranks have parts of several sizes."""
    seen: dict[str, dict[Place, set[Runs]]] = {}
    for rank in _looked_at(plan):
        env, place = plan.rank_env(rank, dict(program.axes)), tuple(coordinates(plan, rank).items())
        for what, runs in itertools.chain(_claimed(plan, rank, env), _sliced(plan, rank, env)):
            seen.setdefault(what, {}).setdefault(place, set()).add(runs)
    found: dict[str, Uneven] = {}
    for what, by_place in seen.items():
        sizes = {frozenset(map(_size, parts)) for parts in by_place.values()}
        if len(sizes) > 1:
            shown = tuple(sorted(frozenset[int]().union(*sizes), reverse=True))
            axes = [axis for axis in plan.mesh if _varies(by_place, axis)]
            found[what] = Uneven(what, shown, math.prod(plan.mesh[axis] for axis in axes))
    return found


def _size(runs: Runs) -> int:
    return sum(hi - lo for lo, hi in runs)


def _varies(by_place: Mapping[Place, set[Runs]], axis: str) -> bool:
    """Whether ranks that differ along one axis alone have other parts."""
    first: dict[Place, set[Runs]] = {}
    for place, parts in by_place.items():
        rest = tuple(sorted(item for item in place if item[0] != axis))
        if first.setdefault(rest, parts) != parts:
            return True
    return False


def _looked_at(plan: Plan) -> Iterator[Rank]:
    is_small = plan.num_ranks() <= MAX_LISTED
    for label in plan.tracks:
        places: list[Iterable[int]] = [
            at if is_small else sorted({at.start, at.stop - 1}) for at in plan.places(label)
        ]
        for at in itertools.product(*places):
            yield Rank(label, at)


def _claimed(plan: Plan, rank: Rank, env: Mapping[str, int]) -> Iterator[tuple[str, Runs]]:
    claims = BoundClaims(plan, rank.track, env)
    for base, local in {**plan.locals, **plan.tracks[rank.track].locals}.items():
        claim = None if local.params else claims.of(Name(base))
        if claim is not None:
            yield from ((f"dim {dim} of {claim.of}", runs) for dim, runs in claim.dims.items())


def _sliced(plan: Plan, rank: Rank, env: Mapping[str, int]) -> Iterator[tuple[str, Runs]]:
    for body in plan.tracks[rank.track].bodies.values():
        for step in body:
            if not isinstance(step, Op) or step.op != "slice":
                continue
            lo, hi, by = step.attr("start") or 0, step.attr("end"), step.attr("step") or 1
            line = next((str(value) for key, value in step.note if key == "source"), "")
            if line and by == 1 and isinstance(lo, (int, Expr)) and isinstance(hi, (int, Expr)):
                yield f"what is sliced at {line}", ((evaluate(lo, env), evaluate(hi, env)),)
