"""Walk a Plan with relations for values: what every local of every rank is, and which claims hold.

Claims are compared as locals come to be. A claim that cannot be derived is a *doubt*, not yet a
fault: after it the claim is taken for granted, so that one doubt does not breed others and each step
is judged on its own. Deciding a doubt is for the field and for a concrete replay.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from tensure.bundle import Placed, PlacedRuns, Plan, PlanMachine, Rank, coordinates, placed_runs, sum_group
from tensure.errors import EvaluationError, LimitError, RecordError, TensureError
from tensure.program import (
    Affine,
    Arg,
    Name,
    Op,
    Program,
    Ref,
    TensorType,
    Undecided,
    axes_in,
    expand,
    infer_collective,
    infer_step,
    state_pairs,
    walk,
    where,
)

from ._cells import Cells, Once, Place, region_at, summed
from ._cone import Asked, Trail
from ._contraction import TERMS, terms_of
from ._extremes import EXTREMES, extreme
from ._index import Region, covers, length, select, shape_of, whole
from ._instances import Instances
from ._limit import Share, limited, share_of
from ._logical import Logical
from ._relation import ONE, Relation, Term, describe, total
from ._steps import Held
from ._suspects import Made, Suspect, suspect
from ._values import FLOATS, NO_AXES, is_part

MAX_LOCALS: Final = 1 << 20
MAX_SUSPECTS: Final = 64
"""Doubts whose beginnings are looked for."""
StatePart: TypeAlias = tuple[str, str, Region]
"""(rank, before-state, region of it)."""


@dataclass(frozen=True, slots=True)
class Doubt:
    """A claim that no rule derives, or a plan that cannot go on.

    `order` is the place in the order of production; locals are named as they are printed.
    """

    order: int
    rank: str
    local: str
    claim: str
    step: str
    source: str
    why: str


@dataclass(frozen=True, slots=True)
class Flow:
    """What one walk established.

    Args:
        logical: the values, ghosts included.
        relations: by rank, in order of production, the derived (or, after a doubt, claimed) relation.
        types: by rank, supplied locals included.
        doubts: in order of production; none means that every claim holds.
        reads: the parts of before-states that ranks are supplied with.
        keeps: the parts of after-states that ranks hold at the end, under the before-state's name.
        supplied: locals taken from inputs, weights and before-states, by rank.
        ended: whether every rank came to its end.
        halted: whether they were stopped by a step that cannot be taken, or by waiting for one another.
        suspects: for doubts, by rank and local as they are printed, the first step that went astray.
        asked: the claims in doubt, for a replay.
        trail: how locals came to be.
    """

    logical: Logical
    relations: Mapping[Rank, Mapping[Name, Relation]]
    types: Mapping[Rank, Mapping[Name, TensorType]]
    doubts: tuple[Doubt, ...]
    reads: frozenset[StatePart]
    keeps: frozenset[StatePart]
    supplied: Mapping[Rank, frozenset[Name]]
    ended: bool
    halted: bool
    suspects: Mapping[tuple[str, str], Suspect]
    asked: Sequence[Asked]
    trail: Trail


def flow(
    plan: Plan,
    program: Program,
    entry: str,
    env: Mapping[str, int],
    *,
    targets: bool = False,
    folded: frozenset[str] = NO_AXES,
) -> Flow:
    """Derive every relation of one invocation; errors of the Plan become doubts.

    Args:
        targets: assume that no class of a mean loss is the one to be ignored.
        folded: mesh axes along which ranks are taken together.

    Raises:
        TensureError: the Program itself cannot be expanded or typed.
        Undecided: ranks taken together would have to be taken apart; says along which axes.
    """
    logical = Logical(program, entry, env, targets=targets)
    machine = _Relations(plan, program, entry, env, logical, Cells(plan, folded))
    ended, halted = True, False
    try:
        machine.go()
    except LimitError:
        raise
    except TensureError as error:
        machine.stuck(error)
        ended, halted = False, isinstance(error, (EvaluationError, RecordError))
    if ended:
        machine.close()
    doubts = tuple(sorted(machine.doubts, key=lambda doubt: doubt.order))
    relations = {
        rank: {name: held.relation for name, held in {**machine.given[rank], **made}.items()}
        for rank, made in machine.made.items()
    }
    types = {
        rank: {name: held.type for name, held in {**machine.given[rank], **made}.items()}
        for rank, made in machine.made.items()
    }
    reads, keeps = machine.states()
    supplied = {rank: frozenset(table) for rank, table in machine.given.items()}
    suspects = machine.suspects(relations)
    return Flow(
        machine.logical,
        relations,
        types,
        doubts,
        reads,
        keeps,
        supplied,
        ended,
        halted,
        suspects,
        machine.asked,
        machine,
    )


class _Relations(PlanMachine[Held]):
    """Relations as values."""

    def __init__(
        self,
        plan: Plan,
        program: Program,
        entry: str,
        env: Mapping[str, int],
        logical: Logical,
        cells: Cells,
    ) -> None:
        super().__init__(plan, program, entry, env, cells.ranks)
        self.logical, self.cells = logical, cells
        self.instances = Instances(logical)
        self._envs = {rank: super(_Relations, self).env_of(rank) for rank in cells.ranks}
        self._claims: dict[tuple[Rank, Name], PlacedRuns | None] = {}
        self._known: dict[Any, Any] = {}
        self._regions: dict[Region, Region] = {}
        self.doubts: list[Doubt] = []
        self.current: dict[Rank, Op | None] = {}
        self._order: dict[tuple[Rank, Name], tuple[int, Op | None]] = {}
        self._sums: dict[tuple[object, ...], list[tuple[Rank, Name, PlacedRuns, Held]]] = {}
        self._streams: dict[Rank, Iterator[Op]] = {}
        self._mail: dict[tuple[Rank, object], tuple[Rank, Op]] = {}
        self._doubted: dict[tuple[Rank, Name], Relation] = {}
        self._sent: dict[tuple[Rank, Name], tuple[Rank, Op]] = {}
        self.asked: list[Asked] = []
        self._reads: dict[tuple[Rank, Name], tuple[tuple[Rank, Name], ...]] = {}
        self._wanted: Relation | None = None
        self._at: tuple[Rank, Op] | None = None
        self._once = Once()

    def env_of(self, rank: Rank) -> dict[str, int]:
        return self._envs[rank]

    def claim(self, rank: Rank, name: Name) -> PlacedRuns | None:  # type: ignore[override]
        key = (rank, name)
        if key not in self._claims:
            local = self.plan.local(rank.track, name.base)
            claim = None if local is None else placed_runs(local, name, self._envs[rank], self._known)
            if claim is not None and (differing := axes_in(claim.of.index)):
                raise Undecided(f"which {claim.of.base} {rank} has", differing)
            self._claims[key] = claim
        return self._claims[key]

    # what a value is ---------------------------------------------------------------------------------

    def leaf(self, rank: Rank, name: Name, claim: Placed | PlacedRuns) -> Held:
        assert isinstance(claim, PlacedRuns)
        self._once.add((rank, name.base), name.index)
        relation = self.claimed(claim)
        whole = self.leaves[str(claim.of)]
        return Held(TensorType(relation.shape, whole.dtype), relation)

    def find(self, rank: Rank, ref: Ref) -> Held:
        self._once.ask((rank, ref.name.base), ref.name.index)
        return super().find(rank, ref)

    def operand(self, rank: Rank, arg: Arg) -> Any:
        return self.logical.operand(arg, lambda ref: self.find(rank, ref))

    def run(self, step: Op, operands: list[Any]) -> list[Held]:
        types = infer_step(step, [item.type if isinstance(item, Held) else item for item in operands])
        return self.logical.apply(step, operands, types, self._wanted)

    def meet(self, step: Op, members: list[Held]) -> list[Held]:
        attrs = dict(step.attrs)
        types = infer_collective(step.op, [member.type for member in members], attrs)
        made = self._met(step.op, attrs, members, types)
        return [Held(want, relation) for want, relation in zip(types, made, strict=True)]

    def keep(self, rank: Rank, name: Name, value: Held) -> None:
        if len(self._order) >= MAX_LOCALS:
            raise LimitError(f"over {MAX_LOCALS} locals in one invocation")
        self._order[rank, name] = (len(self._order), self.current.get(rank))
        local = self.plan.local(rank.track, name.base)
        claim = self.claim(rank, name) if local is not None else None
        if local is not None and local.dtype is not None and local.dtype != value.type.dtype:
            raise RecordError(f"{name} comes out as {value.type}", wanted=f"{local.dtype} as declared")
        if local is None or claim is None:
            return
        if claim.sum:
            key = sum_group(self.plan, rank, local, name, claim)
            self._once.add(("sum", *key[:3], key[4]), key[3])
            self._sums.setdefault(key, []).append((rank, name, claim, value))
            return
        want = self._want(rank, name, claim)
        if want is None:
            return
        if not self.logical.same(value.relation, want):
            order, _ = self._order[rank, name]
            self.asked.append(Asked(order, rank, name, ((rank, name),), NO_AXES, want))
            self._doubt(rank, name, want, f"it comes out as {self._words(value.relation)}")
            self._doubted[rank, name] = value.relation
            if shape_of(want.terms[0].region) != value.type.shape:
                return
        if name in self.made[rank]:
            self.made[rank][name] = Held(value.type, want)

    # the walk ----------------------------------------------------------------------------------------

    def go(self) -> None:
        self._streams = {
            rank: self._watched(rank, expand(self.plan.blocks, self.body(rank), self.env_of(rank)))
            for rank in self.ranks
        }
        walk(self._streams, self)

    def compute(self, rank: Rank, step: Op) -> None:
        self._at = (rank, step)
        reads = tuple((rank, ref.name) for ref in step.reads())
        self._reads.update(((rank, out), reads) for out in step.outs)
        self._wanted = self._hint(rank, step)
        super().compute(rank, step)

    def send(self, rank: Rank, step: Op) -> tuple[Rank, Any]:
        self._at = (rank, step)
        receiver, payload = super().send(rank, step)
        lost = axes_in(rank.at) - axes_in(receiver.at)
        if lost or receiver not in self.made:  # of several one, or a part of a cell, or of another
            raise Undecided(f"who sends to {receiver}", lost or self.cells.folded)
        self._once.add(("message", receiver), step.attr("key"))
        self._mail.setdefault((receiver, step.attr("key")), (rank, step))
        return receiver, payload

    def _check_call(self, rank: Rank, step: Op, operands: list[Any]) -> None:
        super()._check_call(rank, step, [item.type if isinstance(item, Held) else item for item in operands])

    def recv(self, rank: Rank, step: Op, payload: Any) -> None:
        self._at = (rank, step)
        sender, sent = self._mail.pop((rank, step.attr("key")), (rank, step))
        for out in step.outs:
            self._reads[rank, out] = tuple((sender, ref.name) for ref in sent.reads())
            self._sent[rank, out] = (sender, sent)
        super().recv(rank, step, payload)

    def collective(self, step: Op, payloads: Mapping[Rank, Any]) -> None:
        steps = [(rank, self.current.get(rank) or step) for rank in payloads]
        reads = tuple((rank, ref.name) for rank, own in steps for ref in own.reads())
        for rank, own in steps:
            self._reads.update(((rank, out), reads) for out in own.outs)
        axes: Any = step.attr("axes")
        if self.cells.folded.isdisjoint(axes):
            super().collective(step, payloads)
            return
        if differing := axes_in((step.attrs, tuple(out.index for out in step.outs))).intersection(axes):
            raise Undecided(f"{step.op} of {', '.join(map(str, step.outs))}", differing)
        if len(payloads) == 1:
            ((rank, held),) = payloads.items()
            at_once = self._summed(rank, step, held)
            if at_once is not None:
                self._make(rank, step, [at_once])
                return
        members = self._members(payloads, axes)
        made = self.meet(step, [held for _, _, held in members])
        results: dict[Rank, list[tuple[Place, Held]]] = {}
        for (place, rank, _), held in zip(members, made, strict=True):
            results.setdefault(rank, []).append((place, held))
        for rank, rows in results.items():
            self._make(rank, step, [self._together(rank, rows, axes)])

    def _summed(self, rank: Rank, step: Op, held: Held) -> Held | None:
        """A sum over all places of one cell, if its addends fit together as they are."""
        axes: Any = step.attr("axes")
        if step.op not in ("all_reduce", "reduce_scatter") or (step.attr("reduce") or "sum") != "sum":
            return None
        boxes = self.cells.boxes(rank, axes)
        count = math.prod(hi - lo for lo, hi in boxes.values())
        (found, *_) = infer_collective(step.op, [held.type] * count, dict(step.attrs))
        if held.type.dtype not in FLOATS or not boxes.keys() <= self.cells.folded:
            return None
        whole = summed(held.relation, boxes, self.logical.families)
        if whole is None:
            return None
        whole = self.logical.resolve(whole)
        if step.op == "all_reduce":
            return Held(found, whole)
        attrs: dict[str, Any] = dict(step.attrs)
        at, dim = 0, attrs["dim"] % len(held.type.shape)
        for axis, (lo, hi) in boxes.items():
            at = at * (hi - lo) + (self.cells.along(rank, axis) - lo)
        size = found.shape[dim]
        return self.logical.piece(Held(held.type, whole), dim, at * size, at * size + size)

    def _members(self, payloads: Mapping[Rank, Held], axes: Any) -> list[tuple[Place, Rank, Held]]:
        """Every member's own, in mesh order."""
        members = [
            (place, rank, Held(held.type, self.instances.at(held.relation, dict(place))))
            for rank, held in payloads.items()
            for place in self.cells.places(rank, axes)
        ]
        return sorted(members, key=lambda member: member[0])

    def _together(self, rank: Rank, rows: list[tuple[Place, Held]], axes: Any) -> Held:
        first = rows[0][1]
        if any(held.type != first.type for _, held in rows):
            raise Undecided("the type of what comes out", self.cells.folded & set(axes))
        boxes = self.cells.boxes(rank, axes)
        return Held(
            first.type, self.instances.together([(place, held.relation) for place, held in rows], boxes)
        )

    def _make(self, rank: Rank, step: Op, results: list[Held]) -> None:
        for out in step.outs:
            self._once.add((rank, out.base), out.index)
        super()._make(rank, step, results)

    def group(self, rank: Rank, step: Op) -> tuple[Rank, ...]:
        return self.cells.group(rank, step.attr("axes"))

    def contribute(self, rank: Rank, step: Op) -> Any:
        self._at = (rank, step)
        return super().contribute(rank, step)

    # what a replay asks ------------------------------------------------------------------------------

    def made_by(self, rank: Rank, name: Name) -> Op | None:
        return self._order[rank, name][1] if name in self.made[rank] else None

    def sent_by(self, rank: Rank, name: Name) -> tuple[Rank, Op]:
        return self._sent[rank, name]

    def reads_of(self, rank: Rank, name: Name) -> Sequence[tuple[Rank, Name]]:
        return self._reads.get((rank, name), ())

    def in_order(self) -> Iterator[tuple[Rank, Name]]:
        return iter(self._order)

    def relation(self, rank: Rank, name: Name) -> Relation:
        return (self.made[rank].get(name) or self.given[rank][name]).relation

    # claims ------------------------------------------------------------------------------------------

    def suspects(self, relations: Mapping[Rank, Mapping[Name, Relation]]) -> dict[tuple[str, str], Suspect]:
        """For the first doubts, the step that first went astray."""
        if not self.doubts:
            return {}
        made = {
            key: Made(self._order[key][0], step, reads)
            for key, reads in self._reads.items()
            if key in self._order and (step := self._order[key][1]) is not None
        }
        wanted = {(doubt.rank, doubt.local) for doubt in self.doubts[:MAX_SUSPECTS]}
        derived, found = self._derived(relations), dict[tuple[str, str], Suspect]()
        for key in made:
            label = (str(key[0]), str(key[1]))
            if label in wanted:
                seen = suspect(*key, made, derived, self._is_known, self._words)
                if seen is not None:
                    found[label] = seen
        return found

    def _derived(self, relations: Mapping[Rank, Mapping[Name, Relation]]) -> dict[Rank, dict[Name, Relation]]:
        """What locals came out as, before their claims were taken for granted."""
        made = {rank: dict(table) for rank, table in relations.items()}
        for (rank, name), relation in self._doubted.items():
            made[rank][name] = relation
        return made

    def _is_known(self, relation: Relation) -> bool:
        return all(term.node in self.logical.labels for term in relation.terms)

    def claimed(self, claim: PlacedRuns) -> Relation:
        """A claim as a relation.

        Raises:
            RecordError: it names what the Program does not have.
        """
        whole = self.logical.names.get(str(claim.of))
        if whole is None:
            raise RecordError(f"the program never makes {claim.of}")
        (term,) = whole.relation.terms
        region = list(term.region)
        for dim, runs in claim.dims.items():
            if dim >= len(region) or any(stop > length(region[dim]) for _, stop in runs):
                raise RecordError(f"a part of {claim.of} that does not exist", wanted=f"inside {whole.type}")
            region[dim] = select(region[dim], runs)
        shares: list[Share] = []
        if claim.over is not None:
            share = share_of(claim.over[0], self._extent(term.node, claim), claim.over[1])
            shares = [share] if share is not None else []
        spelled = self.logical.spelled(term.node, tuple(region))
        spelled = self._regions.setdefault(spelled, spelled)  # of many locals: one tuple serves them all
        coef = term.coef if claim.scale == 1 else claim.scale * term.coef
        return Relation((Term(term.node, spelled, coef, limited(shares, ())),))

    def _extent(self, node: int, claim: PlacedRuns) -> int:
        """The size of the contracted letter an addend is cut along."""
        value = self.logical.values[node]
        shapes = [shape_of(item[1]) for item in value.operands if isinstance(item, tuple) and is_part(item)]
        found = (
            terms_of(value.op, dict(value.given), [len(shape) for shape in shapes])
            if value.op in TERMS
            else None
        )
        letter = claim.over[0] if claim.over is not None else ""
        if found is not None and letter not in found[1]:
            for term, shape in zip(found[0], shapes, strict=False):
                if letter in term:
                    return shape[term.index(letter)]
        raise RecordError(f"an addend over {letter!r} of {claim.of}", wanted="a contracted letter of its op")

    def stuck(self, error: TensureError) -> None:
        """The walk could not end: say where, naming the message nobody sends rather than who waits for it.

        Raises:
            Undecided: what is waited for was sent to some places of a cell.
        """
        for receiver, awaited in self.current.items():
            if awaited is not None and awaited.op == "recv":
                self._once.ask(("message", receiver), awaited.attr("key"))
        waiting = self._waiting() if "deadlock" in error.found else None
        lost = next(iter(self._mail.values()), None) if "never received" in error.found else None
        rank, step = waiting or lost or self._at or (Rank("no rank"), None)
        name = step.outs[0] if step is not None and step.outs else None
        claim = ""
        if name is not None:
            try:
                bound = self.claim(rank, name)
                claim = "" if bound is None else self._words(self.claimed(bound))
            except TensureError as other:
                claim = other.found
        label = (
            str(name)
            if name is not None
            else ", ".join(str(ref.name) for ref in step.reads())
            if step
            else ""
        )
        text, source = _step_words(step)
        self.doubts.append(Doubt(len(self._order), str(rank), label, claim, text, source, error.found))

    def close(self) -> None:
        """Sums of addends, outputs and after-states, once everything is made."""
        for members in self._sums.values():
            rank, name, claim, _ = members[-1]  # a sum comes to be with its last addend
            want = self._want(rank, name, claim)
            if want is None:
                continue
            summed = total((ONE, relation) for relation in self._addends(members))
            if any(self._want(r, n, c) != want for r, n, c, _ in members):
                self._doubt(rank, name, want, "the addends claim different parts")
            elif summed is None or not self._is_sum(summed, want):
                found = "nothing" if summed is None else self._words(summed)
                self._doubt(rank, name, want, f"the addends sum to {found}")
                over = self.cells.folded.intersection(claim.sum)
                places = tuple((r, n) for r, n, _, _ in members)
                self.asked.append(Asked(self._order[rank, name][0], rank, name, places, over, want))
        entry = self.program.entry(self.entry)
        outputs = [str(name.ground(self.env)) for name in entry.outputs]
        afters = [str(after) for _, after in state_pairs(entry, self.env)]
        # a state that is a pending sum cannot be handed in again
        for labels, what, sums in ((outputs, "output", True), (afters, "after-state", False)):
            held = self._held(set(labels), sums=sums)
            for label in labels:
                self._covered(label, held, what)

    def _addends(self, members: Sequence[tuple[Rank, Name, PlacedRuns, Held]]) -> Iterator[Relation]:
        """Of every rank that a sum runs over."""
        for rank, _, claim, held in members:
            axes = self.cells.folded.intersection(claim.sum)
            for place in self.cells.places(rank, axes) if axes else ((),):
                yield self.instances.at(held.relation, dict(place))

    def _is_sum(self, summed: Relation, want: Relation) -> bool:
        """Whether addends of several ranks come to what is claimed; a rank may add zeros."""
        return self.logical.same(self.logical.resolve(self.logical.without_zeros(summed)), want)

    def states(self) -> tuple[frozenset[StatePart], frozenset[StatePart]]:
        """Parts of before-states supplied, and parts of after-states held whole at the end."""
        pairs = {
            str(after): str(before) for before, after in state_pairs(self.program.entry(self.entry), self.env)
        }
        if pairs and self.cells.folded:
            raise Undecided("what a rank keeps from one run to the next", self.cells.folded)
        reads: set[StatePart] = set()
        keeps: set[StatePart] = set()
        for rank, made in self.made.items():
            for name in (*self.given[rank], *made):
                claim = self.claim(rank, name)
                part = None if claim is None else self._part(claim)
                if claim is None or part is None or claim.sum or claim.over is not None or claim.scale != 1:
                    continue
                if name in self.given[rank] and str(claim.of) in pairs.values():
                    reads.add((str(rank), str(claim.of), part))
                if str(claim.of) in pairs:
                    keeps.add((str(rank), pairs[str(claim.of)], part))
        return frozenset(reads), frozenset(keeps)

    def _hint(self, rank: Rank, step: Op) -> Relation | None:
        for out in step.outs:
            claim = self.claim(rank, out)
            if claim is not None and str(claim.of) in self.logical.names:
                return self.logical.names[str(claim.of)].relation
        return None

    def _want(self, rank: Rank, name: Name, claim: PlacedRuns) -> Relation | None:
        try:
            return self.claimed(claim)
        except RecordError as error:
            order, step = self._order[rank, name]
            text, source = _step_words(step)
            self.doubts.append(
                Doubt(order, str(rank), str(name), str(claim.of), text, source, f"it claims {error.found}")
            )
            return None

    def _doubt(self, rank: Rank, name: Name, want: Relation, why: str) -> None:
        order, step = self._order[rank, name]
        text, source = _step_words(step)
        self.doubts.append(Doubt(order, str(rank), str(name), self._words(want), text, source, why))

    def _words(self, relation: Relation) -> str:
        shapes = {term.node: self.logical.values[term.node].type.shape for term in relation.terms}
        return describe(relation, self.logical.labels, shapes)

    def _held(self, labels: set[str], *, sums: bool) -> dict[str, list[Region]]:
        """The parts of logical values that claims put on some rank."""
        held: dict[str, list[Region]] = {}
        for rank, made in self.made.items():
            for name in (*self.given[rank], *made):
                claim = self.claim(rank, name)
                if claim is None or claim.over is not None or not claim.scale:
                    continue
                if str(claim.of) not in labels:
                    continue
                if not sums and (claim.sum or claim.scale != 1):
                    continue
                want = self._part(claim)
                if want is not None:
                    held.setdefault(str(claim.of), []).extend(self._everywhere(rank, want))
        return {label: list(dict.fromkeys(parts)) for label, parts in held.items()}

    def _everywhere(self, rank: Rank, part: Region) -> Iterator[Region]:
        """A part of many places as the part at each."""
        axes = axes_in(part)
        for place in self.cells.places(rank, axes) if axes else ((),):
            yield region_at(part, dict(place))

    def _part(self, claim: PlacedRuns) -> Region | None:
        found = self.logical.names.get(str(claim.of))
        if found is None:
            return None
        shape = found.type.shape
        if any(
            dim >= len(shape) or any(stop > shape[dim] for _, stop in runs)
            for dim, runs in claim.dims.items()
        ):
            return None
        return tuple(claim.dims[dim] if dim in claim.dims else whole(size) for dim, size in enumerate(shape))

    def _covered(self, label: str, held: Mapping[str, list[Region]], what: str) -> None:
        shape = self.logical.names[label].type.shape
        missing = covers(held.get(label, []), shape)
        if missing:
            self.doubts.append(
                Doubt(
                    len(self._order),
                    "",
                    label,
                    label,
                    "",
                    "",
                    f"{what} {label}: {missing} elements are on no rank",
                )
            )

    # collectives -------------------------------------------------------------------------------------

    def _met(
        self, op: str, attrs: Mapping[str, Any], members: list[Held], types: list[TensorType]
    ) -> list[Relation]:
        rank = len(members[0].type.shape)
        if op == "all_gather":
            joined = self.logical.join(members, attrs["dim"] % rank)
            return [joined] * len(members)
        if op == "all_to_all":
            split, cat = attrs["split"] % rank, attrs["cat"] % rank
            size = members[0].type.shape[split] // len(members)
            return [
                self.logical.join(
                    [self.logical.piece(item, split, to * size, (to + 1) * size) for item in members], cat
                )
                for to in range(len(members))
            ]
        kind = attrs.get("reduce", "sum")
        relations = [member.relation for member in members]
        found = members[0].type
        whole = self._added(members) if kind == "sum" else self._extreme(kind, members)
        if whole is None:
            whole = self.logical.ghost((op, kind, tuple(item.terms for item in relations)), found)
        whole = self.logical.resolve(whole)
        if op == "all_reduce":
            return [whole] * len(members)
        dim = attrs["dim"] % rank
        size = found.shape[dim] // len(members)
        held = Held(found, whole)
        return [
            self.logical.piece(held, dim, to * size, (to + 1) * size).relation for to in range(len(members))
        ]

    def _extreme(self, kind: str, members: list[Held]) -> Relation | None:
        """The maximum (minimum) of maxima of parts, as one of the whole."""
        joined = extreme(self.logical, kind, members)
        if not isinstance(joined, Term):
            return joined
        term = members[0].relation.terms[0]
        given = dict(self.logical.values[term.node].given)
        part = Held(TensorType(shape_of(joined.region), members[0].type.dtype), Relation((joined,)))
        step = Op(EXTREMES[kind], (), (), tuple(given.items()))
        return self.logical.apply(step, [part], [members[0].type])[0].relation

    def _added(self, members: list[Held]) -> Relation | None:
        if members[0].type.dtype not in FLOATS and any(
            term.limit is None for member in members for term in member.relation.terms
        ):
            return None  # integers wrap: only the addends of one exact sum are put together
        return total((ONE, member.relation) for member in members)

    def _watched(self, rank: Rank, steps: Iterator[Op]) -> Iterator[Op]:
        for step in steps:
            self.current[rank] = step
            yield step
        self.current[rank] = None

    def _receiver(self, rank: Rank, step: Op) -> Rank:
        """Whom a send is for, without its payload."""
        track, at = step.attr("to"), step.attr("at")
        if not isinstance(track, str) or track not in self.plan.tracks:
            raise RecordError(f"send to {track!r}")
        own = coordinates(self.plan, rank)
        ends = (
            at if isinstance(at, tuple) else tuple(own.get(axis, 0) for axis in self.plan.tracks[track].axes)
        )
        return Rank(track, tuple(part for part in ends if isinstance(part, (int, Affine))))

    def _waiting(self) -> tuple[Rank, Op] | None:
        """In a deadlock: a receive that no step to come answers, or else the first rank that waits."""
        heads = [(rank, step) for rank, step in self.current.items() if step is not None]
        coming: set[tuple[Rank, object]] = set()
        for rank, steps in self._streams.items():
            for step in steps:
                if step.op == "send":
                    try:
                        coming.add((self._receiver(rank, step), step.attr("key")))
                    except RecordError:
                        continue
        for rank, step in heads:
            if step.op == "recv" and (rank, step.attr("key")) not in coming:
                return rank, step
        return heads[0] if heads else None


def _step_words(step: Op | None) -> tuple[str, str]:
    if step is None:
        return "supplied", ""
    source = next((str(value) for key, value in step.note if key == "source"), "")
    key = f" key={step.attr('key')}" if step.op == "recv" else ""
    return where(step).split(" at ")[0] + key, source
