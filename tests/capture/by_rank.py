"""Plans rank by rank, whatever tracks they have: two that differ in tracks alone are the same."""

from __future__ import annotations

from typing import Any

from tensure.bundle import Plan, Rank, coordinates, placed
from tensure.program import Name, expand

__all__ = ["by_rank"]


def by_rank(plan: Plan) -> dict[tuple[int, ...], tuple[list[Any], dict[str, str]]]:
    """By coordinates along all axes: steps with integers in place of expressions, and claims."""
    found: dict[tuple[int, ...], tuple[list[Any], dict[str, str]]] = {}
    for rank in plan.ranks():
        place, track, env = _place(plan, rank), plan.tracks[rank.track], plan.rank_env(rank, {})
        steps: list[Any] = []
        for step in expand(plan.blocks, track.bodies["step"], env):
            attrs = dict(step.attrs)
            if step.op == "send":
                to, at = attrs.pop("to"), attrs.pop("at")
                attrs["goes"] = _place(plan, Rank(to, at))  # type: ignore[arg-type]
            steps.append((step.op, step.args, step.outs, sorted(attrs.items())))
        claims = {base: repr(placed(local, Name(base), env)) for base, local in track.locals.items()}
        assert place not in found, "two ranks at one place"
        found[place] = (steps, claims)
    return found


def _place(plan: Plan, rank: Rank) -> tuple[int, ...]:
    at = coordinates(plan, rank)
    return tuple(at[axis] for axis in plan.mesh)
