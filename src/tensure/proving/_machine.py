"""The walk of a Plan with relations for values, and how locals came to be; `_flow` tells what it found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from tensure.bundle import Placed, PlacedRuns, Plan, PlanMachine, Rank, sum_group
from tensure.errors import LimitError, RecordError, TensureError
from tensure.program import (
    COLLECTIVES,
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
)

from ._as_given import AsGiven, Given
from ._cells import Cells, Once, Place
from ._cells import summed as sum_over
from ._claims import Claims
from ._collectives import Collectives
from ._cone import Asked
from ._coverage import StatePart, parts_held, states
from ._doubt import STRANGE, Doubt, step_words
from ._draws import Draws
from ._index import covers, shape_of
from ._instances import Instances
from ._logical import Logical
from ._relation import ONE, Relation, Term, total
from ._replay import constant_step
from ._steps import Held, bound
from ._suspects import Made, Suspect, is_constant, suspect
from ._unmatched import unmatched
from ._values import NO_AXES
from ._waiting import waiting

MAX_LOCALS: Final = 1 << 20
MAX_SUSPECTS: Final = 64
"""Doubts whose beginnings are looked for."""


class Relations(PlanMachine[Held]):
    """Relations as values."""

    def __init__(
        self,
        plan: Plan,
        program: Program,
        entry: str,
        env: Mapping[str, int],
        logical: Logical,
        cells: Cells,
        *,
        given: Given | None = None,
        listed: bool = False,
    ) -> None:
        """`given`: what the records were before all floats were read as one, if they were."""
        super().__init__(plan, program, entry, env, cells.ranks)
        self.logical, self.cells = logical, cells
        self._listed = listed
        self.instances = Instances(logical, listed=listed)
        self._envs = {rank: super(Relations, self).env_of(rank) for rank in cells.ranks}
        self.claims = Claims(plan, logical, self._envs)
        self._collectives = Collectives(logical, cells, self.instances)
        self.draws = Draws(logical, cells, self.claims.words)
        self.doubts: list[Doubt] = []
        self.current: dict[Rank, Op | None] = {}
        self._order: dict[tuple[Rank, Name], int] = {}
        self._steps: list[Op | None] = []
        """Locals as they came to be, and the steps their ranks were at."""
        self._sums: dict[tuple[object, ...], list[tuple[Rank, Name, PlacedRuns, Held]]] = {}
        self._streams: dict[Rank, Iterator[Op]] = {}
        self._mail: dict[tuple[Rank, object], tuple[Rank, Op]] = {}
        self._doubted: dict[tuple[Rank, Name], Relation] = {}
        self._asked_of: dict[tuple[str, str], tuple[Rank, Name]] = {}
        """Of which locals the first doubts are, as they are printed."""
        self._addends_of: dict[tuple[Rank, Name], tuple[tuple[Rank, Name], ...]] = {}
        self._sent: dict[tuple[Rank, Name], tuple[Rank, Op]] = {}
        self.asked: list[Asked] = []
        self._reads: dict[tuple[Rank, Name], tuple[tuple[Rank, Name], ...]] = {}
        self._wanted: Relation | None = None
        self._at: tuple[Rank, Op] | None = None
        self._once = Once()
        self._as_given = None if given is None else AsGiven(given)
        self._inferred: dict[object, tuple[list[TensorType], dict[str, Any]]] = {}

    def env_of(self, rank: Rank) -> dict[str, int]:
        return self._envs[rank]

    def claim(self, rank: Rank, name: Name) -> PlacedRuns | None:  # type: ignore[override]
        return self.claims.of(rank, name)

    # what a value is ---------------------------------------------------------------------------------

    def leaf(self, rank: Rank, name: Name, claim: Placed | PlacedRuns) -> Held:
        assert isinstance(claim, PlacedRuns)
        self._once.add((rank, name.base), name.index)
        relation = self.claims.relation(claim)
        whole = self.leaves[str(claim.of)]
        found = TensorType(relation.shape, whole.dtype)
        if self._as_given is not None:
            self._as_given.supplied(rank, name, claim.of.base, found)
        return Held(found, relation)

    def find(self, rank: Rank, ref: Ref) -> Held:
        self._once.ask((rank, ref.name.base), ref.name.index)
        return super().find(rank, ref)

    def operand(self, rank: Rank, arg: Arg) -> Any:
        return self.logical.operand(arg, lambda ref: self.find(rank, ref))

    def run(self, step: Op, operands: list[Any]) -> list[Held]:
        told = [item.type if isinstance(item, Held) else repr(item) for item in operands]
        key = (step.op, repr(step.attrs), len(step.outs), *told)
        if key not in self._inferred:
            types = infer_step(step, [item.type if isinstance(item, Held) else item for item in operands])
            self._inferred[key] = types, bound(step, operands)
        types, given = self._inferred[key]
        try:
            if step.op == "draw":
                return [Held(types[0], self._drawn(step, operands[0], types[0]))]
            return self.logical.apply(step, operands, types, self._wanted, given)
        except Undecided:
            if not self._listed:
                raise
            return [self._unknown(found) for found in types]

    def _unknown(self, found: TensorType) -> Held:
        """A result of which nothing is known, at no place of these ranks."""
        relation = self.logical.ghost(("step", len(self._order), len(self.logical.values)), found)
        self.logical.families[relation.terms[0].node] = self.cells.folded
        return Held(found, relation)

    def _drawn(self, step: Op, like: Any, found: TensorType) -> Relation:
        """Random numbers as the model's that they stand for, or as numbers of the rank's own."""
        assert self._at is not None
        rank, _ = self._at
        term = self.logical.single(like) if isinstance(like, Held) else None
        made = self.draws.place(
            rank, step, term if isinstance(term, Term) else None, found.shape, len(self._order)
        )
        if made is not None:
            return made
        text, source = step_words(step)
        what = "a shape alone" if like is None else self.claims.words(like.relation)
        why = f"the model draws no such numbers for {what}"
        name = str(step.outs[0])
        doubt = Doubt(len(self._order), str(rank), name, STRANGE, text, source, why)
        self._note(doubt, rank, step.outs[0])
        return self.logical.ghost(("draw", str(rank), name), found)

    def meet(self, step: Op, members: list[Held]) -> list[Held]:
        attrs = dict(step.attrs)
        types = infer_collective(step.op, [member.type for member in members], attrs)
        made = self._collectives.meet(step.op, attrs, members, types)
        return [Held(want, relation) for want, relation in zip(types, made, strict=True)]

    def keep(self, rank: Rank, name: Name, value: Held) -> None:
        if len(self._order) >= MAX_LOCALS:
            raise LimitError(f"over {MAX_LOCALS} locals in one invocation")
        self._order[rank, name] = len(self._order)
        self._steps.append(self.current.get(rank))
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
            order = self._order[rank, name]
            self.asked.append(Asked(order, rank, name, ((rank, name),), NO_AXES, want))
            self._doubt(rank, name, want, f"it comes out as {self.claims.words(value.relation)}")
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
        if step.op == "draw":  # what it is like tells where its numbers stand, and is not in them
            self._reads[rank, step.outs[0]] = ()
        self._wanted = self._hint(rank, step)
        super().compute(rank, step)
        if self._as_given is not None:
            self._as_given.computed(rank, step)

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
        if self._as_given is not None:
            self._as_given.received(rank, step, sender, sent, payload.type)

    def collective(self, step: Op, payloads: Mapping[Rank, Any]) -> None:
        steps = [(rank, self.current.get(rank) or step) for rank in payloads]
        if self._as_given is None:
            self._collective(step, steps, payloads)
            return
        dtype = self._as_given.met(steps)
        self._collective(step, steps, payloads)
        for rank, own in steps:
            for out in own.outs:
                self._as_given.made(rank, out, self.made[rank][out].type, dtype)

    def _collective(self, step: Op, steps: list[tuple[Rank, Op]], payloads: Mapping[Rank, Any]) -> None:
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
            at_once = self._collectives.summed(rank, step, held)
            if at_once is not None:
                self._make(rank, step, [at_once])
                return
        members = self._collectives.members(payloads, axes)
        made = self.meet(step, [held for _, _, held in members])
        results: dict[Rank, list[tuple[Place, Held]]] = {}
        for (place, rank, _), held in zip(members, made, strict=True):
            results.setdefault(rank, []).append((place, held))
        for rank, rows in results.items():
            self._make(rank, step, [self._collectives.together(rank, rows, axes)])

    def _make(self, rank: Rank, step: Op, results: list[Held]) -> None:
        for out in step.outs:
            self._once.add((rank, out.base), out.index)
        super()._make(rank, step, results)

    def group(self, rank: Rank, step: Op) -> tuple[Rank, ...]:
        self._at = (rank, step)
        return self.cells.group(rank, step.attr("axes"))

    def contribute(self, rank: Rank, step: Op) -> Any:
        self._at = (rank, step)
        return super().contribute(rank, step)

    # what a replay asks ------------------------------------------------------------------------------

    def made_by(self, rank: Rank, name: Name) -> Op | None:
        step = self._steps[self._order[rank, name]] if name in self.made[rank] else None
        return None if step is None else constant_step(step)

    def sent_by(self, rank: Rank, name: Name) -> tuple[Rank, Op]:
        return self._sent[rank, name]

    def reads_of(self, rank: Rank, name: Name) -> Sequence[tuple[Rank, Name]]:
        if (rank, name) in self._reads:
            return self._reads[rank, name]
        step = self.made_by(rank, name)
        return () if step is None else tuple([(rank, ref.name) for ref in step.reads()])

    def in_order(self) -> Iterator[tuple[Rank, Name]]:
        return iter(self._order)

    def addends(self) -> Iterator[list[tuple[Rank, Name]]]:
        for members in self._sums.values():
            yield [(rank, name) for rank, name, _, _ in members]

    def types(self) -> dict[Rank, dict[Name, TensorType]]:
        """By rank, supplied locals included."""
        return {
            rank: {name: held.type for name, held in {**self.given[rank], **made}.items()}
            for rank, made in self.made.items()
        }

    def relation(self, rank: Rank, name: Name) -> Relation:
        return (self.made[rank].get(name) or self.given[rank][name]).relation

    # claims ------------------------------------------------------------------------------------------

    def suspects(self) -> dict[tuple[str, str], Suspect]:
        """For the first doubts, the step that first went astray."""
        found: dict[tuple[str, str], Suspect] = {}
        for label, asked in self._asked_of.items():
            # Of a sum that is wrong, no zeros that one rank adds are meant.
            addends = (asked, *self._addends_of.get(asked, ()))
            key = next((item for item in addends if not is_constant(item, self._made_of)), asked)
            seen = suspect(*key, self._made_of, self._derived, self.claims.is_known, self.claims.words)
            if seen is not None:
                found[label] = seen
        return found

    def _made_of(self, local: tuple[Rank, Name]) -> Made | None:
        known = local in self._order and local[1] in self.made[local[0]]
        step = self._steps[self._order[local]] if known else None
        return None if step is None else Made(self._order[local], step, tuple(self.reads_of(*local)))

    def _derived(self, local: tuple[Rank, Name]) -> Relation:
        """What a local came out as, before its claim was taken for granted."""
        return self._doubted.get(local) or self.relation(*local)

    def stuck(self, error: TensureError) -> None:
        """The walk could not end: say where, naming the message nobody sends rather than who waits for it.

        Raises:
            Undecided: what is waited for was sent to some places of a cell.
        """
        for receiver, awaited in self.current.items():
            if awaited is not None and awaited.op == "recv":
                self._once.ask(("message", receiver), awaited.attr("key"))
        current = dict(self.current)  # streams that are used up move on
        stalled = waiting(self.plan, self.current, self._streams) if "deadlock" in error.found else None
        lost = next(iter(self._mail.values()), None) if "never received" in error.found else None
        rank, step = stalled or lost or self._at or (Rank("no rank"), None)
        name = step.outs[0] if step is not None and step.outs else None
        claim = ""
        if name is not None:
            try:
                bound = self.claim(rank, name)
                claim = "" if bound is None else self.claims.words(self.claims.relation(bound))
            except TensureError as other:
                claim = other.found
        label = (
            str(name)
            if name is not None
            else ", ".join(str(ref.name) for ref in step.reads())
            if step
            else ""
        )
        text, source = step_words(step)
        why = error.found
        if step is not None and step.op in COLLECTIVES and not lost:
            why = self._unmatched(rank, step, current, why)
        self._note(Doubt(len(self._order), str(rank), label, claim, text, source, why), rank, name)

    def _unmatched(self, rank: Rank, step: Op, current: Mapping[Rank, Op | None], found: str) -> str:
        """Why a collective does not come about, where its members are at fault and not what is brought."""
        try:
            members = tuple(dict.fromkeys(self.group(rank, step)))
        except TensureError:
            return found
        streams = {one: expand(self.plan.blocks, self.body(one), self.env_of(one)) for one in members}
        own = {one: at for one, at in current.items() if at is not None and at.outs == step.outs}
        types = {one: self._brought(one, at) for one, at in own.items()}
        stuck = "deadlock" in found
        if not stuck and len({(at.op, at.attrs, types[one]) for one, at in own.items()}) < 2:
            return found
        words = unmatched(step, members, current, streams, types, stuck=stuck)
        return f"{found}; {words}" if stuck else words

    def _brought(self, rank: Rank, step: Op) -> str:
        try:
            held = [self.find(rank, ref).type for ref in step.reads()]
            if self._as_given is not None:
                held = [self._as_given.of(rank, ref) for ref in step.reads()]
            return ", ".join(map(str, held))
        except TensureError:
            return ""

    def close(self) -> None:
        """Sums of addends, outputs and after-states, once everything is made."""
        for members in self._sums.values():
            rank, name, claim, _ = members[-1]  # a sum comes to be with its last addend
            want = self._want(rank, name, claim)
            if want is None:
                continue
            summed = self._summed(members)
            if any(self._want(r, n, c) != want for r, n, c, _ in members):
                self._doubt(rank, name, want, "the addends claim different parts")
            elif summed is None or not self._is_sum(summed, want):
                found = "nothing" if summed is None else self.claims.words(summed)
                self._doubt(rank, name, want, f"the addends sum to {found}")
                over = self.cells.folded.intersection(claim.sum)
                places = tuple((r, n) for r, n, _, _ in members)
                self._addends_of[rank, name] = places
                self.asked.append(Asked(self._order[rank, name], rank, name, places, over, want))
        entry = self.program.entry(self.entry)
        outputs = [str(name.ground(self.env)) for name in entry.outputs]
        afters = [str(after) for _, after in state_pairs(entry, self.env)]
        # a state that is a pending sum cannot be handed in again
        for labels, what, sums in ((outputs, "output", True), (afters, "after-state", False)):
            held = parts_held(set(labels), self._names(), self.claims, self.cells, sums=sums)
            for label in labels:
                missing = covers(held.get(label, []), self.logical.names[label].type.shape)
                if missing:
                    why = f"{what} {label}: {missing} elements are on no rank"
                    self.doubts.append(Doubt(len(self._order), "", label, label, "", "", why))

    def _summed(self, members: Sequence[tuple[Rank, Name, PlacedRuns, Held]]) -> Relation | None:
        """What every rank that a sum runs over adds up to."""
        if len(members) == 1:
            ((rank, _, claim, held),) = members
            boxes = self.cells.boxes(rank, self.cells.folded.intersection(claim.sum))
            found = sum_over(held.relation, boxes, self.logical.families)
            if found is not None:
                return found
        return total((ONE, relation) for relation in self._addends(members))

    def _addends(self, members: Sequence[tuple[Rank, Name, PlacedRuns, Held]]) -> Iterator[Relation]:
        """Of every rank that a sum runs over."""
        for rank, _, claim, held in members:
            axes = self.cells.folded.intersection(claim.sum)
            for place in self.cells.places(rank, axes) if axes else ((),):
                yield self.instances.at(held.relation, dict(place))

    def states(self) -> tuple[frozenset[StatePart], frozenset[StatePart]]:
        """Parts of before-states supplied, and parts of after-states held whole at the end."""
        entry = self.program.entry(self.entry)
        pairs = {str(after): str(before) for before, after in state_pairs(entry, self.env)}
        supplied = self.given
        return states(pairs, self._names(), lambda r, n: n in supplied[r], self.claims, self.cells)

    def _names(self) -> dict[Rank, tuple[Name, ...]]:
        return {rank: (*self.given[rank], *made) for rank, made in self.made.items()}

    def _is_sum(self, summed: Relation, want: Relation) -> bool:
        """Whether addends of several ranks come to what is claimed; a rank may add zeros."""
        return self.logical.same(self.logical.resolve(self.logical.without_zeros(summed)), want)

    def _hint(self, rank: Rank, step: Op) -> Relation | None:
        for out in step.outs:
            claim = self.claim(rank, out)
            if claim is not None and str(claim.of) in self.logical.names:
                return self.logical.names[str(claim.of)].relation
        return None

    def _want(self, rank: Rank, name: Name, claim: PlacedRuns) -> Relation | None:
        try:
            return self.claims.relation(claim)
        except RecordError as error:
            order = self._order[rank, name]
            step = self._steps[order]
            text, source = step_words(step)
            why = f"it claims {error.found}"
            self._note(Doubt(order, str(rank), str(name), str(claim.of), text, source, why), rank, name)
            return None

    def _doubt(self, rank: Rank, name: Name, want: Relation, why: str) -> None:
        order = self._order[rank, name]
        step = self._steps[order]
        text, source = step_words(step)
        words = self.claims.words(want)
        self._note(Doubt(order, str(rank), str(name), words, text, source, why), rank, name)

    def _note(self, doubt: Doubt, rank: Rank, name: Name | None) -> None:
        if len(self.doubts) < MAX_SUSPECTS and name is not None:
            self._asked_of[doubt.rank, doubt.local] = (rank, name)
        self.doubts.append(doubt)

    def _watched(self, rank: Rank, steps: Iterator[Op]) -> Iterator[Op]:
        for step in steps:
            self.current[rank] = step
            yield step
        self.current[rank] = None
