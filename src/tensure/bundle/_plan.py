"""How a Program runs on a Fleet: tracks, local tensors with claims, pools. Frozen; has a digest.

One format carries every way of running a model. Row slices are row-interval claims with transfers;
a pipeline is one track a stage; tensor, data and expert parallel programs are shards and partial
sums with collectives; a microcontroller plan is one track with offsets in one pool.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Final, TypeAlias

from tensure.errors import RecordError
from tensure.program import Affine, Block, Body, Int, Name, Program, Whole, axis, evaluate

MAX_INDICES: Final = 1 << 20

Runs: TypeAlias = tuple[tuple[Int, Int, Int], ...]
"""Indices of one dim as (start, stop, step) runs, in local order; several runs make a permutation."""


@dataclass(frozen=True, slots=True)
class Place:
    """The claim that a local tensor is a part of a logical one.

    The local, or the sum of the locals over `sum`, equals `scale` times `of` at `dims`. A dim that
    is not mentioned is whole.

    Args:
        of: the logical value.
        dims: runs by dim, in rising dim order.
        sum: mesh axes or family letters over which the locals add up to the claimed value.
        over: (letter, runs): this addend is the defining einsum of `of` with that contracted letter
            restricted to the runs; then the addend itself is determined.
        scale: coefficient of the claimed value.
    """

    of: Name
    dims: tuple[tuple[int, Runs], ...] = ()
    sum: tuple[str, ...] = ()
    over: tuple[str, Runs] | None = None
    scale: Fraction = Fraction(1)


@dataclass(frozen=True, slots=True)
class Local:
    """One family of local tensors: its claim, and where its bytes lie.

    Args:
        params: letters of the family; bound from the indices of a name.
        place: the claim; None means that nothing is claimed (the value is internal to its track).
        dtype: None follows from the op that makes it or from the logical value.
        pool, offset: byte position; both or neither.
        order: stored dim order, outermost first; None as the shape says.
    """

    params: tuple[str, ...] = ()
    place: Place | None = None
    dtype: str | None = None
    pool: str | None = None
    offset: Int | None = None
    order: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Track:
    """One text executed by every rank of a product of mesh axes.

    Args:
        axes: the mesh axes whose coordinates tell its ranks apart; () for one rank.
        fixed: further names bound for all of them, such as the stage number; one that is a mesh axis is
            their coordinate along it.
        device: the device of a rank; its index may use the coordinates.
        locals: locals of this track alone; they come before the plan's.
        bodies: what it does, by entry of the Program.
        spans: (axis, lo, hi) where its ranks stand at lo..hi along one of its axes and not at every place.
    """

    axes: tuple[str, ...] = ()
    fixed: tuple[tuple[str, int], ...] = ()
    device: Name | None = None
    locals: Mapping[str, Local] = field(default_factory=dict[str, Local])
    bodies: Mapping[str, Body] = field(default_factory=dict[str, Body])
    spans: tuple[tuple[str, int, int], ...] = ()

    @property
    def stand(self) -> str:
        """Where its ranks stand, in words: `dp 0:8, tp`."""
        spans = {axis: f" {lo}:{hi}" for axis, lo, hi in self.spans}
        return ", ".join(axis + spans.get(axis, "") for axis in self.axes)

    def fills(self, axes: Iterable[str]) -> bool:
        """Whether its ranks stand at every place along these mesh axes."""
        spanned = {axis for axis, _, _ in self.spans}
        return all(axis in self.axes and axis not in spanned for axis in axes)


def _stands(at: Whole) -> str:
    """A coordinate; of several ranks taken together, from the least to one more than the greatest."""
    return f"{at.least}:{at.most + 1}" if isinstance(at, Affine) else str(at)


@dataclass(frozen=True, slots=True)
class Rank:
    """One process: a track and its coordinates along the track's axes."""

    track: str
    at: tuple[int, ...] = ()
    _hash: int = field(init=False, repr=False, compare=False)
    """Kept: whoever walks a Plan asks for it again and again, and that of many places is slow to find."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash((self.track, self.at)))

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple[type[Rank], tuple[str, tuple[int, ...]]]:
        return Rank, (self.track, self.at)  # another process has other hashes

    def __str__(self) -> str:
        return f"{self.track}[{','.join(map(_stands, self.at))}]" if self.at else self.track


@dataclass(frozen=True, slots=True)
class Plan:
    """How one Program runs on one Fleet.

    Args:
        program: digest of the Program it is for.
        fleet: digest of the Fleet it was made for, or None.
        mesh: sizes of the mesh axes.
        pools: bytes of each memory pool; every rank has its own.
        locals: local families shared by all tracks.
        blocks: bodies shared by all tracks.
        tracks: every rank stands in exactly one.
    """

    program: str
    fleet: str | None = None
    mesh: Mapping[str, int] = field(default_factory=dict[str, int])
    pools: Mapping[str, int] = field(default_factory=dict[str, int])
    locals: Mapping[str, Local] = field(default_factory=dict[str, Local])
    blocks: Mapping[str, Block] = field(default_factory=dict[str, Block])
    tracks: Mapping[str, Track] = field(default_factory=dict[str, Track])

    def __hash__(self) -> int:
        return hash((self.program, self.fleet, tuple(self.tracks)))

    def local(self, track: str, base: str) -> Local | None:
        """The local family a name of a track belongs to, or None when none is declared."""
        return self.tracks[track].locals.get(base) or self.locals.get(base)

    def ranks(self, track: str | None = None) -> Iterator[Rank]:
        """Every rank, or every rank of one track."""
        for label in (track,) if track is not None else self.tracks:
            for at in itertools.product(*self.places(label)):
                yield Rank(label, at)

    def places(self, track: str) -> list[range]:
        """Where the ranks of a track stand along each of its axes."""
        spans = {axis: range(lo, hi) for axis, lo, hi in self.tracks[track].spans}
        return [spans.get(axis, range(self.mesh[axis])) for axis in self.tracks[track].axes]

    def num_ranks(self) -> int:
        """How many ranks there are, without listing them."""
        return sum(math.prod(map(len, self.places(track))) for track in self.tracks)

    def rank_env(self, rank: Rank, env: Mapping[str, int]) -> dict[str, int]:
        """An invocation's environment with mesh sizes (`n_tp`), coordinates (`tp`) and fixed names added."""
        track = self.tracks[rank.track]
        sizes = {f"n_{axis}": size for axis, size in self.mesh.items()}
        return {**env, **sizes, **dict(zip(track.axes, rank.at, strict=True)), **dict(track.fixed)}


@dataclass(frozen=True, slots=True)
class Placed:
    """A claim with every expression bound: which indices of which logical value one local holds."""

    of: Name
    dims: Mapping[int, tuple[int, ...]]
    sum: tuple[str, ...]
    over: tuple[str, tuple[int, ...]] | None
    scale: Fraction


GroundRuns: TypeAlias = tuple[tuple[int, int], ...]
"""(start, stop) of runs of indices in local order; no two neighbours are one."""


@dataclass(frozen=True, slots=True)
class PlacedRuns:
    """A claim with every expression bound, in runs of indices."""

    of: Name
    dims: Mapping[int, GroundRuns]
    sum: tuple[str, ...]
    over: tuple[str, GroundRuns] | None
    scale: Fraction


def bind_local(local: Local, name: Name, env: Mapping[str, int]) -> dict[str, int]:
    """The environment inside one member of a local family."""
    members = name.members()
    if len(members) != len(local.params):
        raise RecordError(f"local {name} has {len(members)} indices", wanted=str(len(local.params)))
    return {**env, **dict(zip(local.params, members, strict=True))}


def placed(local: Local, name: Name, env: Mapping[str, int]) -> Placed | None:
    """The claim of one member of a local family under a rank's environment, or None."""
    found = placed_runs(local, name, env)
    if found is None:
        return None
    dims = {dim: _members(runs, f"{name} dim {dim}") for dim, runs in found.dims.items()}
    over = None if found.over is None else (found.over[0], _members(found.over[1], f"{name} over"))
    return Placed(found.of, dims, found.sum, over, found.scale)


def placed_runs(local: Local, name: Name, env: Mapping[str, int]) -> PlacedRuns | None:
    """The same in runs, which cost nothing for their length; bounds may be those of many places at once."""
    claim = local.place
    if claim is None:
        return None
    bound = bind_local(local, name, env)
    dims = {dim: ground_runs(runs, bound, f"{name} dim {dim}") for dim, runs in claim.dims}
    over: tuple[str, GroundRuns] | None = None
    if claim.over is not None:
        over = (claim.over[0], ground_runs(claim.over[1], bound, f"{name} over"))
    return PlacedRuns(claim.of.ground(bound), dims, claim.sum, over, claim.scale)


def sum_group(
    plan: Plan, rank: Rank, local: Local, name: Name, claim: Placed | PlacedRuns
) -> tuple[object, ...]:
    """What all addends of one claimed sum share, and no other local does: the key to add them up by.

    Coordinates and letters that the sum does not run over, the local's base, and the claimed value; and the
    track, unless it does not stand at all places the sum runs over: then other tracks hold other addends.
    """
    track, at = plan.tracks[rank.track], coordinates(plan, rank)
    index = zip(local.params, name.members(), strict=True)
    fixed = tuple(sorted((axis, place) for axis, place in at.items() if axis not in claim.sum))
    letters = tuple(i for letter, i in index if letter not in claim.sum)
    among = any(axis in at and not track.fills((axis,)) for axis in claim.sum)
    return (None if among else rank.track, fixed, name.base, letters, str(claim.of))


def coordinates(plan: Plan, rank: Rank) -> dict[str, int]:
    """Where a rank stands along every mesh axis that its track has, or has fixed."""
    track = plan.tracks[rank.track]
    fixed = {key: place for key, place in track.fixed if key in plan.mesh}
    return {**dict(zip(track.axes, rank.at, strict=True)), **fixed}


def device_of(plan: Plan, rank: Rank) -> str:
    """The name of the device a rank runs on."""
    track = plan.tracks[rank.track]
    if track.device is None:
        return rank.track
    return str(track.device.ground(plan.rank_env(rank, {})))


def whole(program: Program, base: str) -> Local:
    """The claim that a local family is its logical family, replicated."""
    letters = tuple(letter for letter, _ in program.values[base].params) if base in program.values else ()
    return Local(letters, Place(Name(base, tuple(axis(letter) for letter in letters))))


def ground_runs(runs: Runs, env: Mapping[str, int], place: str) -> GroundRuns:
    """Runs with their bounds bound; `place` says in errors whose they are.

    Raises:
        RecordError: a start below 0, a step that is not above 0, or over 2^20 indices apart.
    """
    found: list[tuple[int, int]] = []
    for start, stop, step in runs:
        lo, hi, by = evaluate(start, env), evaluate(stop, env), evaluate(step, env)
        if by <= 0 or lo < 0:
            raise RecordError(
                f"run {lo}:{hi}:{by}", place=place, wanted="a start of 0 or more and a step above 0"
            )
        if by != 1 and len(found) + (hi - lo) // by > MAX_INDICES:
            raise RecordError(f"over {MAX_INDICES} indices in one dim", place=place)
        for one, other in ((lo, hi),) if by == 1 else ((at, at + 1) for at in range(lo, hi, by)):
            if found and found[-1][1] == one and one < other:
                found[-1] = (found[-1][0], other)
            elif one < other:
                found.append((one, other))
    return tuple(found)


def _members(runs: GroundRuns, place: str) -> tuple[int, ...]:
    if sum(hi - lo for lo, hi in runs) > MAX_INDICES:
        raise RecordError(f"over {MAX_INDICES} indices in one dim", place=place)
    return tuple(at for lo, hi in runs for at in range(lo, hi))
