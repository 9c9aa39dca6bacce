"""The checker's walk: all ranks' steps in an order that can be executed, held against a certificate.

It takes no walk from below; who meets whom, what is supplied and what is covered is worked out here anew.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from functools import partial
from typing import Any, Final

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
    coordinate,
    evaluate,
    expand,
    leaves,
    state_pairs,
)

from ._certificate import Invocation, Runs
from ._check_cells import CheckCells, differs, rel_at
from ._check_index import Index, covers, joined, selected
from ._check_piece import ONE, Reg, Shape, whole
from ._check_steps import CheckSteps
from ._check_sums import Def, Limit, Rel, Term, is_rel, need, refuse, size, spelled

NOWHERE: Final[Mapping[str, Any]] = {}


class Walk:
    """One invocation: all ranks' steps in an order that can be executed, held against the certificate."""

    def __init__(self, plan: Plan, program: Program, given: Invocation) -> None:
        self.plan, self.program, self.entry = plan, program, given.entry
        entry = given.entry
        self.env = bind_entry(program, entry, given.params)
        self.values = CheckSteps(program, self.entry, self.env, given.targets)
        self.values.read_program(self._named_operands)
        self.spots, self.parts = dict[Any, Index](), dict[Any, Reg]()
        self.names, self.spelled = dict[tuple[Runs, ...], tuple[str, ...]](), dict[Any, Reg]()
        self._define(given)
        self.leaves = {label: role for label, _, role in leaves(program, entry, self.env)}
        self.pairs = {str(after): before for before, after in state_pairs(program.entry(entry), self.env)}
        outputs = [str(name.ground(self.env)) for name in program.entry(entry).outputs]
        self.due = dict.fromkeys((*outputs, *self.pairs))  # of no other value is it asked who holds it
        self.cells = CheckCells(plan, given.folded)
        self.made: dict[Rank, dict[Name, Rel]] = {rank: {} for rank in self.cells.boxes}
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
            key: tuple(self._term(*term, by_name[key[0]]) for term in terms)
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
            total = members[0][3]
            same = all(want == total for *_, want in members)
            flat = tuple(itertools.chain.from_iterable(self._addends(*item[:3]) for item in members))
            need(same and self.values.equal(flat, total), "a sum of addends is not its claim")
        self.values.draws.settle(self.cells)
        for label in self.due:
            shape = size(self._one(label)[2])
            need(covers(self.held.get(label, set()), shape), "{} is not covered", label)
        unused = self.claims.keys() - self.used
        need(not unused, f"no rank has {next(iter(unused), None)}")

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
            payload = mail.pop((rank, step.attr("key")))
            self._make(rank, step.outs[0], lambda claim: self.values.equal(claim, payload))
        elif step.op == "send":
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
        elif step.op == "draw":
            self._make(rank, step.outs[0], partial(self.values.draws.stands, rank, step))
        elif step.op in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all"):
            group = self._group(rank, step)
            steps = [other for member in group if (other := heads[member]) is not None]
            if len(steps) < len(group) or any((s.op, s.outs) != (step.op, step.outs) for s in steps):
                return ()
            differing = axes_in((step.attrs, tuple(out.index for out in step.outs))) & self._over(step)
            alike = not differing and all(s.attrs == step.attrs for s in steps)
            need(alike, "{}: {} of several minds", rank, step.op)
            operands = [self._operands(member, s)[0] for member, s in zip(group, steps, strict=True)]
            self._meet(group, step, operands)
            return group
        else:
            operands = self._operands(rank, step)
            for at, out in enumerate(step.outs):
                self._make(rank, out, partial(self.values.follows, step, operands, at))
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
        need(claim is None or right(claim), "{}: {} does not follow", rank, name)
        self.made[rank][name] = claim
        bound = self.bounds[rank].of(name)
        if bound is None:
            return
        label = str(bound.of)
        need(label in self.values.names, "the program never makes {}", label)
        by, node, outer, _ = self._one(label)
        part = self._part(bound, size(outer))
        reg = selected(outer, part)
        pinned: Limit = (
            None if bound.over is None else (((bound.over[0], joined(sorted(bound.over[1]))),), ())
        )
        if pinned is not None:
            need(self.values.sound(node, pinned), "{}: {} claims an addend there is not", rank, name)
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
            need(self.values.same(claim, want), "{}: {} is not what the plan claims", rank, name)
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

    def _find(self, rank: Rank, name: Name) -> Rel:
        if name not in self.made[rank]:
            bound = self.bounds[rank].of(name)
            if bound is None or not self._supplied(bound):
                refuse(f"{rank}: {name} is read before anything made it")
            label = str(bound.of)
            _, leaf, outer, _ = self._one(label)
            part = self._part(bound, size(outer))
            self._make(rank, name, lambda claim: claim == ((ONE, leaf, part, None),))
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

    def _one(self, label: str) -> Term:
        rel = self.values.named(label)
        return rel[0] if rel is not None and len(rel) == 1 else refuse(f"{label} is no one value")

    # what the certificate says -----------------------------------------------------------------------

    def _define(self, given: Invocation) -> None:
        """Values that the certificate names besides the Program's."""
        for item in given.values:
            need(item.label.startswith("$") and item.label not in self.values.names, "{} again", item.label)
            attrs: Any = tuple(item.attrs.items())
            for axis, lo, hi in item.where:
                need(
                    axis in given.folded and 0 <= lo < hi,
                    "{} along {} at {}:{}",
                    item.label,
                    axis[:40],
                    lo,
                    hi,
                )
            env = {axis: coordinate(axis, lo, hi) for axis, lo, hi in item.where}
            operands = [self._part_of(part, env) for part in item.operands]
            rel: Rel
            if item.op == "+":
                rel = self.values.gathered(tuple(part[0] for part in operands if is_rel(part)))
            elif item.op == "full":
                rel = self.values.filled(item.attrs["fill_value"], item.shape, item.dtype)
            else:
                made = self.values.make(Op(item.op, (), (), attrs), operands)
                rel = made[item.out]
                if item.op == "cat" and rel is not None and not self._is_whole(rel):
                    # One part several times reads as places of it that repeat. Joined as they stand they are
                    # a value as well: the same elements, and each place may then be an addend of its own.
                    rel = self.values.as_joined(dict(item.attrs), operands)
            need(rel is not None and len(rel) == 1, "{} is no value", item.label)
            self.values.names[item.label] = rel

    def _is_whole(self, rel: Rel) -> bool:
        return rel is not None and all(self.values.is_whole(node, reg) for _, node, reg, _ in rel)

    def _part_of(self, part: Any, env: Mapping[str, Any]) -> Any:
        if part is None:
            return None
        if len(part) == 4:
            coef, label, dims, limit = part
            return (self._term(coef, label, dims, limit, env),)
        return _number(*part)

    def _term(
        self, coef: Fraction, label: str, dims: tuple[Runs, ...], limit: Any, env: Mapping[str, Any] = NOWHERE
    ) -> Term:
        """A term; `env` says which coordinates the ends of its runs may name."""
        by, node, outer, _ = self._one(label)
        need(self.values.is_whole(node, outer), "{} is no whole value", label)
        reg = self._reg(dims, env, self.values.defs[node], label)
        found = None
        if limit is not None:
            found = self._limit(limit, env)
            need(self.values.sound(node, found), "{} has no such addend", label)
        coef = coef if by is ONE else coef * by
        return ONE if coef == 1 else coef, node, reg, found

    def _reg(self, dims: tuple[Runs, ...], env: Mapping[str, Any], item: Def, label: str) -> Reg:
        """A part of a class, as it is spelled; the same one over again is one object."""
        names = self.names.get(dims)
        if names is None:
            ends = [end for runs in dims for run in runs for end in run if not isinstance(end, int)]
            names = self.names[dims] = tuple(sorted({name for end in ends for name in end.names}))
        key = (dims, item.shape, item.free, tuple([env.get(name) for name in names]))
        if key not in self.spelled:
            reg = tuple(self._index(runs, env) for runs in dims)
            inside = len(reg) == len(item.shape) and all(
                dim in item.free or at.stop <= n
                for dim, (at, n) in enumerate(zip(reg, item.shape, strict=True))
            )
            need(inside, "{} has no such part", label)
            self.spelled[key] = spelled(item, reg)
        return self.spelled[key]

    def _index(self, runs: Runs, env: Mapping[str, Any]) -> Index:
        """Runs where the coordinates are; the same runs over again are worked out once."""
        names = {label for run in runs for end in run if not isinstance(end, int) for label in end.names}
        key = (runs, tuple((label, env.get(label)) for label in sorted(names)))
        if key not in self.spots:
            self.spots[key] = _index(runs, env)
        return self.spots[key]

    def _limit(self, limit: Any, env: Mapping[str, Any]) -> Limit:
        """A limit with the parts of sums by class."""
        if limit is None:
            return None
        through = [
            (self._one(key)[1] if isinstance(key, str) else key, self._limit(inner, env))
            for key, inner in limit[1]
        ]
        need(len(dict(through)) == len(through), "a limit through one operand twice")
        shares = {self._letter(letter): self._index(runs, env) for letter, runs in limit[0]}
        need(len(shares) == len(limit[0]), "a letter twice")
        return tuple(sorted(shares.items(), key=lambda pair: pair[0])), tuple(
            sorted(through, key=lambda pair: pair[0])
        )

    def _letter(self, letter: str) -> str:
        """A letter that names a tensor of indices, by its class."""
        if not letter.startswith("?"):
            return letter
        by, node, reg, _ = self._one(letter[1:])
        need(by == 1 and self.values.is_whole(node, reg), "{} is no index", letter[:80])
        return f"?{node}"

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


def _index(runs: Runs, env: Mapping[str, Any]) -> Index:
    """Runs with their ends where the coordinates are; spelled as they must be at every place."""
    ends = [(evaluate(lo, env), evaluate(hi, env)) for lo, hi in runs]
    for at, (lo, hi) in enumerate(ends):
        need(0 <= lo < hi and (not at or lo != ends[at - 1][1]), "runs that are empty, or one run as two")
    return Index(tuple(ends))


def _number(kind: str, text: str) -> Any:
    known: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "bool": lambda at: at == "True"}
    return known[kind](text)
