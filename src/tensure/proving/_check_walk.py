"""The checker's walk: all ranks' steps in an order that can be executed, held against a certificate.

It takes no walk from below; who meets whom, what is supplied and what is covered is worked out here anew.
Whether claims follow may be decided by several walks, each for a share of the steps (`_check_shares.py`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from tensure.bundle import BoundClaims, PlacedRuns, Plan, Rank
from tensure.program import (
    Arg,
    Cat,
    Name,
    Op,
    Program,
    Ref,
    apart,
    axes_in,
    bind_entry,
    expand,
    leaves,
    state_pairs,
)

from ._certificate import Invocation
from ._check_cells import CheckCells, differs, rel_at
from ._check_index import Index, covers, joined, selected
from ._check_kinds import AsWritten, Kinds
from ._check_looks import looks_for_ignored
from ._check_piece import ONE, Reg, Shape, whole
from ._check_said import CheckSaid
from ._check_shares import ALL, Share
from ._check_steps import CheckSteps
from ._check_sums import Limit, Rel, Term, need, refuse, size


class Walk:
    """One invocation: all ranks' steps in an order that can be executed, held against the certificate.

    Args:
        share: the steps for which it is decided here whether claims follow. Of the others all is done but
            that: what they make, send, read and hold is the same in every walk.
        written: what floats were called before they were all read as one, if they were.
    """

    def __init__(
        self,
        plan: Plan,
        program: Program,
        given: Invocation,
        share: Share = ALL,
        written: AsWritten | None = None,
    ) -> None:
        self.share, self.mine = share, True
        self.at = 0
        """The number of the step at hand, in the order in which steps are taken; 0 before the first."""
        self.asked = self.decided = 0
        """How many questions there were so far, and how many of them were decided here."""
        self.plan, self.program, self.entry = plan, program, given.entry
        entry = given.entry
        self.env = bind_entry(program, entry, given.params)
        need(
            not (given.targets and looks_for_ignored(program, entry, self.env)),
            "no target is taken to be the class that a loss ignores, and the program looks for such",
        )
        self.values = CheckSteps(program, self.entry, self.env, given.targets)
        self.values.read_program(self._named_operands)
        self.parts: dict[Any, Reg] = {}
        self.said = CheckSaid(self.values)
        self.said.define(given)
        self.leaves = {label: role for label, _, role in leaves(program, entry, self.env)}
        self.pairs = {str(after): before for before, after in state_pairs(program.entry(entry), self.env)}
        outputs = [str(name.ground(self.env)) for name in program.entry(entry).outputs]
        self.due = dict.fromkeys((*outputs, *self.pairs))  # of no other value is it asked who holds it
        self.cells = CheckCells(plan, given.folded)
        self.made: dict[Rank, dict[Name, Rel]] = {rank: {} for rank in self.cells.boxes}
        self.kinds = None if written is None else Kinds(written, self.made)
        self.envs = {rank: plan.rank_env(rank, self.env) for rank in self.made}
        self.bounds = {rank: BoundClaims(plan, rank.track, env) for rank, env in self.envs.items()}
        self.places = {rank: self.cells.places(rank) for rank in self.made}
        self.labels = {rank: str(rank) for rank in self.made}
        self.used = set[tuple[str, str]]()
        by_name = {self.labels[rank]: env for rank, env in self.envs.items()}
        need(len(by_name) == len(self.envs), "two ranks of one name")
        unknown = {rank for rank, _ in given.locals} - by_name.keys()
        need(not unknown, f"there is no rank {next(iter(unknown), None)}")
        self.claims: dict[tuple[str, str], tuple[Term, ...]] = {
            key: tuple(self.said.term(*term, by_name[key[0]]) for term in terms)
            for key, terms in given.locals.items()
        }
        for key, rel in self.claims.items():
            need(len({size(reg) for _, _, reg, _ in rel}) == 1, "{} has terms of no or several shapes", key)
        self.groups = dict[Any, tuple[Rank, ...]]()
        self.sums, self.held = dict[Any, list[tuple[Rank, Any, Rel, Rel]]](), dict[str, set[Reg]]()
        self.reads, self.keeps = set[Any](), set[Any]()
        self.keys, self.moving = dict[Any, dict[Any, None]](), set[Any]()

    def run(self) -> None:
        """Check everything."""
        bodies = {rank: self.plan.tracks[rank.track].bodies.get(self.entry, ()) for rank in self.made}
        self._take({rank: expand(self.plan.blocks, body, self.envs[rank]) for rank, body in bodies.items()})
        for members in self.sums.values():
            self._begin()
            need(self._holds(partial(self._adds_up, members)), "a sum of addends is not its claim")
        self._begin()
        self._holds(partial(self.values.draws.settle, self.cells))
        for label in self.due:
            self._begin()
            need(self._holds(partial(self._is_covered, label)), "{} is not covered", label)
        unused = self.claims.keys() - self.used
        need(not unused, f"no rank has {next(iter(unused), None)}")

    def _adds_up(self, members: list[tuple[Rank, Any, Rel, Rel]]) -> bool:
        total = members[0][3]
        same = all(want == total for *_, want in members)
        flat = tuple(itertools.chain.from_iterable(self._addends(*item[:3]) for item in members))
        return same and self.values.equal(flat, total)

    def _is_covered(self, label: str) -> bool:
        return covers(self.held.get(label, set()), size(self.said.one(label)[2]))

    def _begin(self) -> bool:
        """The next step, sum or question; whether it is decided here."""
        self.at += 1
        self.mine = self.share.has(self.at)
        return self.mine

    def _holds(self, question: Callable[[], Any]) -> Any:
        """The answer to a question of the step at hand; True where another walk has it."""
        self.asked += 1
        if not self.mine:
            return True
        self.decided += self.share.has(self.at)  # what every walk asks is one walk's to answer for
        return question()

    def _take(self, streams: Mapping[Rank, Iterator[Op]]) -> None:
        heads = {rank: next(stream, None) for rank, stream in streams.items()}
        mail, moved = dict[Any, Rel](), True
        while moved:
            moved = False
            for rank in heads:
                while (step := heads[rank]) is not None and (together := self._step(rank, step, heads, mail)):
                    for other in together:
                        heads[other], moved = next(streams[other], None), True
        need(not mail and not any(heads.values()), "the plan does not come to its end")

    def _step(
        self, rank: Rank, step: Op, heads: Mapping[Rank, Op | None], mail: dict[Any, Rel]
    ) -> tuple[Rank, ...]:
        """Take one step if it can be taken now; the ranks that took it."""
        if step.op == "recv":
            if (rank, step.attr("key")) not in mail:
                return ()
            self._begin()
            payload = mail.pop((rank, step.attr("key")))
            self._make(rank, step.outs[0], lambda claim: self.values.equal(claim, payload))
            if self.kinds is not None:
                self.kinds.received((rank, step.attr("key")), rank, step)
        elif step.op == "send":
            self._begin()
            to, at = str(step.attr("to")), step.attr("at")
            own = self.places[rank]
            ends: Any = (
                at if isinstance(at, tuple) else tuple(own.get(axis, 0) for axis in self.plan.tracks[to].axes)
            )
            address: Any = (Rank(to, ends), step.attr("key"))
            need(address[0] in self.made, "{}: a send that cannot be", rank)
            need(axes_in(rank.at) <= axes_in(ends), "{}: a send of several ranks to one", rank)
            need(self._unique(("message", address[0]), address[1]), "{}: a send that was there before", rank)
            (mail[address],) = self._operands(rank, step)
            if self.kinds is not None:
                self.kinds.sent(address, rank, step)
        elif step.op == "draw":
            self._begin()
            self.mine = True  # each walk has all draws, to hold them against each other
            self._make(rank, step.outs[0], partial(self.values.draws.stands, rank, step))
            if self.kinds is not None:
                self.kinds.step(rank, step)
        elif step.op in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all"):
            group = self._group(rank, step)
            steps = [other for member in group if (other := heads[member]) is not None]
            if len(steps) < len(group) or any((s.op, s.outs) != (step.op, step.outs) for s in steps):
                return ()
            differing = axes_in((step.attrs, tuple(out.index for out in step.outs))) & self._over(step)
            alike = not differing and all(s.attrs == step.attrs for s in steps)
            need(alike, "{}: {} of several minds", rank, step.op)
            if self._begin():
                operands = [self._operands(member, s)[0] for member, s in zip(group, steps, strict=True)]
                self._meet(group, step, operands)
            else:
                for member, s in zip(group, steps, strict=True):
                    self._read(member, s)
                for member in group:
                    self._make(member, step.outs[0], _elsewhere)
            if self.kinds is not None:
                self.kinds.met(group, steps)
            return group
        else:
            if self._begin():
                operands = self._operands(rank, step)
                for at, out in enumerate(step.outs):
                    self._make(rank, out, partial(self.values.follows, step, operands, at))
            else:
                self._read(rank, step)
                for out in step.outs:
                    self._make(rank, out, _elsewhere)
            if self.kinds is not None:
                self.kinds.step(rank, step)
        return (rank,)

    def _meet(self, group: tuple[Rank, ...], step: Op, operands: list[Rel]) -> None:
        """A collective of cells is one of all their ranks: what each gets is what its cell claims there."""
        axes: Any = step.attr("axes")
        members = sorted(
            (
                (
                    spot,
                    place,
                    rank,
                    None if rel is None else self._at(rel, place),
                )
                for rank, rel in zip(group, operands, strict=True)
                for spot, place in self.cells.spots(rank, axes)
            ),
            key=lambda member: member[0],
        )
        parts = [rel for *_, rel in members]
        results = self.values.met(step.op, dict(step.attrs), parts)
        joins: Any = self.values.joins(step.op, dict(step.attrs), parts) or [None] * len(parts)
        due: dict[Rank, list[tuple[dict[str, int], Rel, Any]]] = {}
        for (_, place, rank, _), result, join in zip(members, results, joins, strict=True):
            due.setdefault(rank, []).append((place, result, join))
        for rank, rows in due.items():
            self._make(rank, step.outs[0], partial(self._everywhere, rows))

    def _everywhere(self, rows: list[tuple[dict[str, int], Rel, Any]], claim: tuple[Term, ...]) -> bool:
        seen: dict[Any, bool] = {}  # most places get the same
        moves = differs(claim, self.values.families) & self.cells.folded
        for place, result, join in rows:
            want = self._at(claim, place) if moves else claim
            key = (want if moves else None, id(result), id(join))
            if key not in seen:
                seen[key] = self.values.same(want, result) or (
                    join is not None and self.values.is_join(join[0], join[1], want)
                )
            if not seen[key]:
                return False
        return True

    def _addends(self, rank: Rank, over: frozenset[str], rel: Rel) -> Iterator[Term]:
        """What every rank of a cell adds to a sum over some axes."""
        if rel is None:
            refuse("an addend of which nothing is known")
        for _, place in self.cells.spots(rank, sorted(over)):
            yield from self._at(rel, place)

    def _at(self, rel: tuple[Term, ...], place: Mapping[str, int]) -> tuple[Term, ...]:
        return rel_at(rel, place, self.values.families, self.values.instance)

    def _group(self, rank: Rank, step: Op) -> tuple[Rank, ...]:
        """All ranks that stand where this one does along the other axes, one at each place, in mesh order."""
        over, own = step.attr("axes"), self.places[rank]
        need(isinstance(over, tuple) and set(over) <= own.keys(), "{}: {} over {}", rank, step.op, over)
        axes: Any = over
        if (rank, axes) not in self.groups:
            group = self.cells.group(rank, axes, step.op)
            self.groups.update({(member, axes): group for member in group})
        return self.groups[rank, axes]

    def _make(self, rank: Rank, name: Name, right: Callable[[tuple[Term, ...]], bool]) -> None:
        """A local comes to be: what the certificate says follows, and is what the Plan claims."""
        need(self._unique(("local", rank, name.base), name.index), "{}: {} is made twice", rank, name)
        written = (self.labels[rank], str(name))
        claim = self.claims.get(written)
        self.used.add(written)
        if claim is not None:
            need(self._holds(partial(right, claim)), "{}: {} does not follow", rank, name)
        self.made[rank][name] = claim
        bound = self.bounds[rank].of(name)
        if bound is None:
            return
        label = str(bound.of)
        need(label in self.values.names, "the program never makes {}", label)
        by, node, outer, _ = self.said.one(label)
        part = self._part(bound, size(outer))
        reg = selected(outer, part)
        pinned: Limit = (
            None if bound.over is None else (((bound.over[0], joined(sorted(bound.over[1]))),), ())
        )
        if pinned is not None:
            is_sound = self._holds(partial(self.values.sound, node, pinned))
            need(is_sound, "{}: {} claims an addend there is not", rank, name)
        coef = by if bound.scale == 1 else bound.scale * by
        want = ((coef, node, self.values.spelled(node, reg), pinned),)
        need(claim is not None, "{}: {} is claimed by the plan and not here", rank, name)
        if bound.sum:
            at = frozenset(pair for pair in self.places[rank].items() if pair[0] not in bound.sum)
            track = self.plan.tracks[rank.track]
            own = set(track.axes) - {axis for axis, _, _ in track.spans}
            among = any(axis in self.places[rank] and axis not in own for axis in bound.sum)
            local = self.plan.local(rank.track, name.base)
            params = () if local is None else local.params
            index = tuple(i for key, i in zip(params, name.members(), strict=True) if key not in bound.sum)
            key = (among or rank.track, at, name.base, label, index)
            self._unique(("sum", *key[:-1]), index)  # one sum everywhere, or two
            over = frozenset(axis for axis in bound.sum if axis in self.cells.folded)
            self.sums.setdefault(key, []).append((rank, over, claim, want))
        else:
            is_same = self._holds(partial(self.values.same, claim, want))
            need(is_same, "{}: {} is not what the plan claims", rank, name)
        plain = not bound.sum and bound.scale == 1
        if label in self.due and bound.over is None and bound.scale and (plain or label not in self.pairs):
            self.held.setdefault(label, set()).update(self.cells.everywhere(rank, part))
        if label in self.pairs and bound.over is None and plain:
            self.keeps.add((rank, str(self.pairs[label]), part))

    def _unique(self, group: Any, key: Any) -> bool:
        """Whether a key of a group is new, at every place.

        Raises:
            Undecided: at some places it is another's.
        """
        known = self.keys.setdefault(group, {})
        if key in known:
            return False
        if axes_in(key):
            self.moving.add(group)
        new = group not in self.moving or all(apart(key, other) for other in known)
        known[key] = None
        return new

    @staticmethod
    def _over(step: Op) -> frozenset[str]:
        axes: Any = step.attr("axes")
        return frozenset(axes)

    def _operands(self, rank: Rank, step: Op) -> list[Any]:
        return [self._operand(arg, lambda ref: self._find(rank, ref.name)) for arg in step.args]

    def _read(self, rank: Rank, step: Op) -> None:
        """See to it that all it reads is there."""
        for ref in step.reads():
            self._find(rank, ref.name)

    def _find(self, rank: Rank, name: Name) -> Rel:
        if name not in self.made[rank]:
            bound = self.bounds[rank].of(name)
            if bound is None or not self._supplied(bound):
                refuse(f"{rank}: {name} is read before anything made it")
            label = str(bound.of)
            _, leaf, outer, _ = self.said.one(label)
            part = self._part(bound, size(outer))
            self._make(rank, name, lambda claim: claim == ((ONE, leaf, part, None),))
            if self.kinds is not None:
                self.kinds.supplied(rank, name, bound.of.base)
            if self.leaves[label] == "state":
                self.reads.add((rank, label, part))
        return self.made[rank][name]

    def _supplied(self, bound: PlacedRuns) -> bool:
        return not bound.sum and bound.over is None and bound.scale == 1 and str(bound.of) in self.leaves

    def _part(self, bound: PlacedRuns, shape: Shape) -> Reg:
        """The part of a value of this shape that a claim names; the same one over again is one object."""
        key = (tuple(bound.dims.items()), shape)
        if key not in self.parts:
            held = {dim: Index(runs) for dim, runs in bound.dims.items()}
            inside = all(dim < len(shape) and at.stop <= shape[dim] for dim, at in held.items())
            need(inside, "a part of {} that does not exist", bound.of)
            self.parts[key] = tuple(held.get(dim, index) for dim, index in enumerate(whole(shape)))
        return self.parts[key]

    # what steps read ---------------------------------------------------------------------------------

    def _named_operands(self, step: Op, named: Callable[[str], Rel]) -> list[Any]:
        found = [self._operand(arg, lambda ref: named(str(ref.name))) for arg in step.args]
        for arg, item in zip(step.args, found, strict=True):
            need(
                item is not None or not isinstance(arg, (Ref, Cat)), f"{step.op} reads several values joined"
            )
        return found

    def _operand(self, arg: Arg, get: Callable[[Ref], Rel]) -> Any:
        """What a step reads: a relation (None when nothing is known of it), a number, or nothing."""
        if isinstance(arg, Ref):
            rel = get(arg)
            for dim, lo, hi in arg.box:
                part = slice(lo, hi)
                if rel is not None:
                    cut = tuple((c, n, (*r[:dim], r[dim][part], *r[dim + 1 :]), s) for c, n, r, s in rel)
                    rel = self.values.tidy(cut)
            return rel
        if isinstance(arg, Cat):
            return self.values.together([self._operand(part, get) for part in arg.parts], arg.dim)
        return arg


def _elsewhere(claim: tuple[Term, ...]) -> bool:
    """Whether it follows is decided in another walk."""
    raise AssertionError(f"{claim} is not decided here")
