"""The claims of one rank's locals with every expression bound, each family's form worked out once.

Most locals of a family stand in the same few parts: what runs are depends on some of the letters only, and is
kept by the values of those. Bounds may be those of many places at once (`Affine`): kept values are asked for
by expressions as they are written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

from tensure.errors import RecordError
from tensure.program import Name, evaluate

from ._plan import GroundRuns, Local, PlacedRuns, Plan, ground_runs

__all__ = ["BoundClaims"]

Runs: TypeAlias = tuple[Mapping[int, GroundRuns], "tuple[str, GroundRuns] | None"]
_NONE: Final[Mapping[int, GroundRuns]] = {}


class BoundClaims:
    """Claims of the locals of one rank, or of ranks taken together.

    Args:
        track: of the rank.
        env: what the invocation's parameters, sizes of axes and the rank's coordinates are.
    """

    def __init__(self, plan: Plan, track: str, env: Mapping[str, int]) -> None:
        self._plan, self._track, self._env = plan, track, env
        self._families: dict[str, Callable[[Name], PlacedRuns] | None] = {}

    def of(self, name: Name) -> PlacedRuns | None:
        """The claim of one local, or None. Parts that are alike are one object.

        Raises:
            RecordError: another number of indices than the family has letters, or runs that are none.
        """
        if name.base not in self._families:
            local = self._plan.local(self._track, name.base)
            family = None if local is None or local.place is None else _Family(local, self._env).of
            self._families[name.base] = family
        bound = self._families[name.base]
        return None if bound is None else bound(name)


class _Family:
    """One family of locals that has a claim."""

    def __init__(self, local: Local, env: Mapping[str, int]) -> None:
        assert local.place is not None
        self._local, self._claim, self._env = local, local.place, env
        runs = [part for _, part in self._claim.dims]
        runs += [] if self._claim.over is None else [self._claim.over[1]]
        ends = [end for part in runs for run in part for end in run if not isinstance(end, int)]
        names = frozenset[str]().union(*(end.names for end in ends))
        self._used = [at for at, letter in enumerate(local.params) if letter in names]
        self._runs: dict[tuple[int, ...], Runs] = {}

    def of(self, name: Name) -> PlacedRuns:
        members = name.members()
        if len(members) != len(self._local.params):
            wanted = str(len(self._local.params))
            raise RecordError(f"local {name} has {len(members)} indices", wanted=wanted)
        used = tuple([members[at] for at in self._used])
        env = None
        if used not in self._runs:
            env = {**self._env, **dict(zip(self._local.params, members, strict=True))}
            self._runs[used] = self._bound(name, env)
        dims, over = self._runs[used]
        claim, index = self._claim, list[int]()
        for part in claim.of.index:
            if not isinstance(part, int) and env is None:
                env = {**self._env, **dict(zip(self._local.params, members, strict=True))}
            index.append(part if isinstance(part, int) else evaluate(part, env or self._env))
        return PlacedRuns(Name(claim.of.base, tuple(index)), dims, claim.sum, over, claim.scale)

    def _bound(self, name: Name, env: Mapping[str, int]) -> Runs:
        claim = self._claim
        dims = {dim: ground_runs(runs, env, f"{name} dim {dim}") for dim, runs in claim.dims}
        over = claim.over
        return dims or _NONE, over and (over[0], ground_runs(over[1], env, f"{name} over"))
