"""Ranks, messages and claims for `walk`, whatever a value is: arrays, types, tags.

A subclass says what a value is; this file says who talks to whom, what a rank is supplied with and
that nothing is made twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Generic, TypeVar

from tensure.errors import EvaluationError, LimitError, RecordError, TensureError
from tensure.program import (
    COMMUNICATION,
    Affine,
    Arg,
    Name,
    Op,
    Program,
    Ref,
    bind_op,
    expand,
    leaves,
    lookup,
    walk,
    where,
)

from ._groups import Groups
from ._plan import Placed, Plan, Rank, coordinates, placed

V = TypeVar("V")
MAX_RANKS: Final = 1 << 14


class PlanMachine(Generic[V]):
    """Every rank's values while a Plan runs. Subclasses fill in the five methods that raise."""

    def __init__(
        self,
        plan: Plan,
        program: Program,
        entry: str,
        env: Mapping[str, int],
        ranks: Sequence[Rank] | None = None,
    ) -> None:
        """`ranks`: which take part, several as one if they like; all, one by one, if not given."""
        if ranks is None and plan.num_ranks() > MAX_RANKS:
            raise LimitError(f"{plan.num_ranks()} ranks", wanted=f"at most {MAX_RANKS} run one by one")
        self.plan, self.program, self.entry, self.env = plan, program, entry, env
        self.leaves = {label: want for label, want, _ in leaves(program, entry, env)}
        self.ranks = tuple(plan.ranks() if ranks is None else ranks)
        self.made: dict[Rank, dict[Name, V]] = {rank: {} for rank in self.ranks}
        self.given: dict[Rank, dict[Name, V]] = {rank: {} for rank in self.ranks}
        self._groups = Groups(plan)

    # what a value is ---------------------------------------------------------------------------------

    def leaf(self, rank: Rank, name: Name, claim: Placed) -> V:
        """A rank's part of an input, weight or before-state."""
        raise NotImplementedError

    def operand(self, rank: Rank, arg: Arg) -> Any:
        """What an op finds for one operand."""
        raise NotImplementedError

    def run(self, step: Op, operands: list[Any]) -> list[V]:
        """One local op."""
        raise NotImplementedError

    def meet(self, step: Op, members: list[V]) -> list[V]:
        """One collective, for all of its members."""
        raise NotImplementedError

    def keep(self, rank: Rank, name: Name, value: V) -> None:
        """A local has come to be."""

    # running -----------------------------------------------------------------------------------------

    def go(self) -> None:
        """Run every rank to its end."""
        walk(
            {rank: expand(self.plan.blocks, self.body(rank), self.env_of(rank)) for rank in self.ranks},
            self,
        )

    def body(self, rank: Rank) -> Any:
        """What a rank does for this entry."""
        return self.plan.tracks[rank.track].bodies.get(self.entry, ())

    def env_of(self, rank: Rank) -> dict[str, int]:
        """The environment of one rank."""
        return self.plan.rank_env(rank, self.env)

    def claim(self, rank: Rank, name: Name) -> Placed | None:
        """The claim of one local, bound."""
        local = self.plan.local(rank.track, name.base)
        return placed(local, name, self.env_of(rank)) if local is not None else None

    def find(self, rank: Rank, ref: Ref) -> V:
        """The value a rank has under a name, supplied by its claim if nothing made it."""
        table = self.made[rank]
        if ref.name in table:
            return table[ref.name]
        table = self.given[rank]
        if ref.name not in table:
            claim = self.claim(rank, ref.name)
            if not self.supplied(claim):
                raise EvaluationError(f"{ref.name} is read before anything made it")
            assert claim is not None
            value = self.leaf(rank, ref.name, claim)
            table[ref.name] = value
            self.keep(rank, ref.name, value)
        return table[ref.name]

    def supplied(self, claim: Placed | None) -> bool:
        """Does a claim say what to supply: a whole, unscaled part of a leaf?"""
        return (
            claim is not None
            and not claim.sum
            and claim.over is None
            and claim.scale == 1
            and str(claim.of) in self.leaves
        )

    # the Machine protocol ----------------------------------------------------------------------------

    def compute(self, rank: Rank, step: Op) -> None:
        """Run one local step on one rank."""
        self._make(rank, step, self.run(step, self._operands(rank, step)))

    def send(self, rank: Rank, step: Op) -> tuple[Rank, Any]:
        """The receiver: track `to` at coordinates `at`, or at the sender's own."""
        (payload,) = self._operands(rank, step)
        track, at = step.attr("to"), step.attr("at")
        if not isinstance(track, str) or track not in self.plan.tracks:
            raise RecordError(f"send to {track!r}", place=str(rank), wanted=", ".join(self.plan.tracks))
        axes = self.plan.tracks[track].axes
        own = coordinates(self.plan, rank)
        places = at if isinstance(at, tuple) else tuple(own.get(axis, 0) for axis in axes)
        ends = tuple(part for part in places if isinstance(part, (int, Affine)))
        if len(ends) != len(axes) or not all(
            at.start <= c < at.stop for c, at in zip(ends, self.plan.places(track), strict=True)
        ):
            raise RecordError(f"send to {track}{list(places)}", place=str(rank), wanted=f"a rank of {track}")
        return Rank(track, ends), payload

    def recv(self, rank: Rank, step: Op, payload: Any) -> None:
        """Take delivery."""
        self._operands(rank, step)
        self._make(rank, step, [payload])

    def group(self, rank: Rank, step: Op) -> tuple[Rank, ...]:
        """The ranks, of any track, that stand where this one does but along the collective's axes."""
        return self._groups.of(rank, step.attr("axes"))

    def contribute(self, rank: Rank, step: Op) -> Any:
        """This rank's operand of a collective."""
        (payload,) = self._operands(rank, step)
        return payload

    def collective(self, step: Op, payloads: Mapping[Rank, Any]) -> None:
        """Everyone has contributed."""
        for rank, result in zip(payloads, self.meet(step, list(payloads.values())), strict=True):
            self._make(rank, step, [result])

    def _operands(self, rank: Rank, step: Op) -> list[Any]:
        try:
            operands = [self.operand(rank, arg) for arg in step.args]
        except TensureError as error:
            raise error.at(place=f"{rank}, {where(step)}") from None
        if step.op in COMMUNICATION:
            self._check_call(rank, step, operands)
        return operands

    def _check_call(self, rank: Rank, step: Op, operands: list[Any]) -> None:
        """Hold a communication op to its signature; the op table's rules see local ops only."""
        definition, place = lookup(step.op), f"{rank}, {where(step)}"
        try:
            bind_op(definition, operands, dict(step.attrs))
        except TensureError as error:
            raise error.at(place=place) from None
        if len(step.outs) != definition.num_outs:
            raise RecordError(f"{len(step.outs)} results named", place=place, wanted=definition.signature)

    def _make(self, rank: Rank, step: Op, results: list[V]) -> None:
        if len(results) != len(step.outs):
            raise RecordError(f"{len(step.outs)} results named", place=where(step), wanted=str(len(results)))
        for out, result in zip(step.outs, results, strict=True):
            if out in self.made[rank] or out in self.given[rank]:
                raise EvaluationError(f"{out} is made twice", place=str(rank))
            self.made[rank][out] = result
            self.keep(rank, out, result)
