"""The checker's walk: all ranks' steps in an order that can be executed, held against a certificate.

It takes no walk from below; who meets whom, what is supplied and what is covered is worked out here anew.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from functools import partial
from typing import Any

from tensure.bundle import Plan, Rank, placed
from tensure.program import Arg, Cat, Name, Op, Program, Ref, bind_entry, expand, leaves, state_pairs

from ._certificate import Invocation, Runs
from ._check_index import Index, covers, index_of, selected
from ._check_piece import Reg, whole
from ._check_steps import CheckSteps
from ._check_sums import ONE, Limit, Rel, Term, is_rel, need, refuse, size


class Walk:
    """One invocation: all ranks' steps in an order that can be executed, held against the certificate."""

    def __init__(self, plan: Plan, program: Program, given: Invocation) -> None:
        self.plan, self.program, self.entry = plan, program, given.entry
        entry = given.entry
        self.env = bind_entry(program, entry, given.params)
        self.values = CheckSteps(program, self.entry, self.env, given.targets)
        self.values.read_program(self._named_operands)
        self._define(given)
        self.leaves = {label: role for label, _, role in leaves(program, entry, self.env)}
        self.pairs = {str(after): before for before, after in state_pairs(program.entry(entry), self.env)}
        self.claims: dict[tuple[str, str], tuple[Term, ...]] = {
            key: tuple(self._term(*term) for term in terms) for key, terms in given.locals.items()
        }
        for key, rel in self.claims.items():
            need(len({size(reg) for _, _, reg, _ in rel}) == 1, f"{key} has terms of no or several shapes")
        self.made: dict[Rank, dict[Name, Rel]] = {rank: {} for rank in plan.ranks()}
        self.envs = {rank: plan.rank_env(rank, self.env) for rank in self.made}
        self.places = {rank: self._place(rank) for rank in self.made}
        self.groups = dict[Any, tuple[Rank, ...]]()
        self.sums, self.held = dict[Any, list[tuple[Rel, Rel]]](), dict[str, list[Reg]]()
        self.reads, self.keeps = set[Any](), set[Any]()

    def run(self) -> None:
        """Check everything."""
        bodies = {rank: self.plan.tracks[rank.track].bodies.get(self.entry, ()) for rank in self.made}
        self._take({rank: expand(self.plan.blocks, body, self.envs[rank]) for rank, body in bodies.items()})
        for members in self.sums.values():
            same = all(want == members[0][1] for _, want in members)
            flat = tuple(term for rel, _ in members for term in rel or ())
            known = all(rel is not None for rel, _ in members)
            need(
                same and known and self.values.equal(flat, members[0][1]), "a sum of addends is not its claim"
            )
        for label in (
            *(str(name.ground(self.env)) for name in self.program.entry(self.entry).outputs),
            *self.pairs,
        ):
            shape = size(self._one(label)[2])
            need(covers(self.held.get(label, []), shape), f"{label} is not covered")
        unused = set(self.claims) - {
            (str(rank), str(name)) for rank, table in self.made.items() for name in table
        }
        need(not unused, f"no rank has {next(iter(unused), None)}")

    def _take(self, streams: Mapping[Rank, Iterator[Op]]) -> None:
        heads = {rank: next(stream, None) for rank, stream in streams.items()}
        mail, sent, moved = dict[Any, Rel](), set[Any](), True
        while moved:
            moved = False
            for rank in heads:
                while (step := heads[rank]) is not None and (
                    together := self._step(rank, step, heads, mail, sent)
                ):
                    for other in together:
                        heads[other], moved = next(streams[other], None), True
        need(not mail and not any(heads.values()), "the plan does not come to its end")

    def _step(
        self, rank: Rank, step: Op, heads: Mapping[Rank, Op | None], mail: dict[Any, Rel], sent: set[Any]
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
            address = (Rank(to, ends), step.attr("key"))
            need(address[0] in self.made and address not in sent, f"{rank}: a send that cannot be")
            sent.add(address)
            (mail[address],) = self._operands(rank, step)
        elif step.op in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all"):
            group = self._group(rank, step)
            steps = [other for member in group if (other := heads[member]) is not None]
            if len(steps) < len(group) or any((s.op, s.outs) != (step.op, step.outs) for s in steps):
                return ()
            need(all(s.attrs == step.attrs for s in steps), f"{rank}: {step.op} of several minds")
            members = [self._operands(member, s)[0] for member, s in zip(group, steps, strict=True)]
            for member, result in zip(
                group, self.values.met(step.op, dict(step.attrs), members), strict=True
            ):
                self._make(member, step.outs[0], partial(self.values.same, result))
            return group
        else:
            operands = self._operands(rank, step)
            for at, out in enumerate(step.outs):
                self._make(rank, out, partial(self.values.follows, step, operands, at))
        return (rank,)

    def _group(self, rank: Rank, step: Op) -> tuple[Rank, ...]:
        """All ranks that stand where this one does along the other axes, one at each place, in mesh order."""
        over, own = step.attr("axes"), self.places[rank]
        need(isinstance(over, tuple) and set(over) <= own.keys(), f"{rank}: {step.op} over {over}")
        axes: Any = over
        if (rank, axes) not in self.groups:
            track = self.plan.tracks[rank.track]
            alone = set(axes) <= set(track.axes) - {axis for axis, _, _ in track.spans}
            spots = dict[tuple[int, ...], Rank]()
            for other in self.plan.ranks(rank.track if alone else None):
                place = self.places[other]
                if any(place.get(axis, own[axis]) != own[axis] for axis in own if axis not in axes):
                    continue
                need(place.keys() == own.keys(), f"{rank}: is {other} a member of {step.op} over {axes}?")
                at = tuple(place[axis] for axis in self.plan.mesh if axis in axes)
                need(at not in spots, f"{rank}: two members of {step.op} at one place")
                spots[at] = other
            every = itertools.product(*(range(n) for axis, n in self.plan.mesh.items() if axis in axes))
            need(sorted(spots) == list(every), f"{rank}: {step.op} over {axes} where a rank is missing")
            group = tuple(spots[at] for at in sorted(spots))
            self.groups.update({(member, axes): group for member in group})
        return self.groups[rank, axes]

    def _make(self, rank: Rank, name: Name, right: Callable[[tuple[Term, ...]], bool]) -> None:
        """A local comes to be: what the certificate says follows, and is what the Plan claims."""
        need(name not in self.made[rank], f"{rank}: {name} is made twice")
        claim = self.claims.get((str(rank), str(name)))
        need(claim is None or right(claim), f"{rank}: {name} does not follow")
        self.made[rank][name] = claim
        local, bound = self.plan.local(rank.track, name.base), self._bound(rank, name)
        if local is None or bound is None:
            return
        label, part = str(bound.of), self._part(bound)
        by, node, outer, _ = self._one(label)
        reg = selected(outer, part)
        pinned: Limit = (
            None if bound.over is None else (((bound.over[0], index_of(sorted(bound.over[1]))),), ())
        )
        need(self.values.sound(node, pinned), f"{rank}: {name} claims an addend there is not")
        want = ((bound.scale * by, node, self.values.spelled(node, reg), pinned),)
        need(claim is not None, f"{rank}: {name} is claimed by the plan and not here")
        if bound.sum:
            at = frozenset(pair for pair in self.places[rank].items() if pair[0] not in bound.sum)
            track = self.plan.tracks[rank.track]
            own = set(track.axes) - {axis for axis, _, _ in track.spans}
            among = any(axis in self.places[rank] and axis not in own for axis in bound.sum)
            index = tuple(
                i for key, i in zip(local.params, name.members(), strict=True) if key not in bound.sum
            )
            self.sums.setdefault((among or rank.track, at, name.base, index, label), []).append((claim, want))
        else:
            need(self.values.same(claim, want), f"{rank}: {name} is not what the plan claims")
        plain = not bound.sum and bound.scale == 1
        if bound.over is None and bound.scale and (plain or label not in self.pairs):
            self.held.setdefault(label, []).append(part)
        if label in self.pairs and bound.over is None and plain:
            self.keeps.add((rank, str(self.pairs[label]), part))

    def _operands(self, rank: Rank, step: Op) -> list[Any]:
        return [self._operand(arg, lambda ref: self._find(rank, ref.name)) for arg in step.args]

    def _find(self, rank: Rank, name: Name) -> Rel:
        if name not in self.made[rank]:
            bound = self._bound(rank, name)
            need(
                bound is not None and self._supplied(bound), f"{rank}: {name} is read before anything made it"
            )
            label, part = str(bound.of), self._part(bound)
            leaf = self._one(label)[1]
            self._make(rank, name, lambda claim: claim == ((ONE, leaf, part, None),))
            if self.leaves[label] == "state":
                self.reads.add((rank, label, part))
        return self.made[rank][name]

    def _place(self, rank: Rank) -> dict[str, int]:
        track = self.plan.tracks[rank.track]
        own = dict(zip(track.axes, rank.at, strict=True))
        return {**own, **{key: at for key, at in track.fixed if key in self.plan.mesh}}

    def _bound(self, rank: Rank, name: Name) -> Any:
        local = self.plan.local(rank.track, name.base)
        return placed(local, name, self.envs[rank]) if local is not None else None

    def _supplied(self, bound: Any) -> bool:
        return not bound.sum and bound.over is None and bound.scale == 1 and str(bound.of) in self.leaves

    def _part(self, bound: Any) -> Reg:
        need(str(bound.of) in self.values.names, f"the program never makes {bound.of}")
        shape = size(self._one(str(bound.of))[2])
        inside = all(dim < len(shape) and (not at or max(at) < shape[dim]) for dim, at in bound.dims.items())
        need(inside, f"a part of {bound.of} that does not exist")
        held = {dim: index_of(at) for dim, at in bound.dims.items()}
        return tuple(held.get(dim, index) for dim, index in enumerate(whole(shape)))

    def _one(self, label: str) -> Term:
        rel = self.values.named(label)
        return rel[0] if rel is not None and len(rel) == 1 else refuse(f"{label} is no one value")

    # what the certificate says -----------------------------------------------------------------------

    def _define(self, given: Invocation) -> None:
        """Values that the certificate names besides the Program's."""
        for item in given.values:
            need(item.label.startswith("$") and item.label not in self.values.names, f"{item.label} again")
            attrs: Any = tuple(item.attrs.items())
            operands = [self._part_of(part) for part in item.operands]
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
            need(rel is not None and len(rel) == 1, f"{item.label} is no value")
            self.values.names[item.label] = rel

    def _is_whole(self, rel: Rel) -> bool:
        return rel is not None and all(self.values.is_whole(node, reg) for _, node, reg, _ in rel)

    def _part_of(self, part: Any) -> Any:
        if part is None:
            return None
        return (self._term(*part),) if len(part) == 4 else _number(*part)

    def _term(self, coef: Fraction, label: str, dims: tuple[Runs, ...], limit: Any) -> Term:
        reg = tuple(map(Index, dims))
        by, node, outer, _ = self._one(label)
        item = self.values.defs[node]
        inside = len(reg) == len(item.shape) and all(
            dim in item.free or at.stop <= n for dim, (at, n) in enumerate(zip(reg, item.shape, strict=True))
        )
        need(self.values.is_whole(node, outer) and inside, f"{label} has no such part")
        found = self._limit(limit)
        need(self.values.sound(node, found), f"{label} has no such addend")
        return coef * by, node, self.values.spelled(node, reg), found

    def _limit(self, limit: Any) -> Limit:
        """A limit with the parts of sums by class."""
        if limit is None:
            return None
        through = [
            (self._one(key)[1] if isinstance(key, str) else key, self._limit(inner))
            for key, inner in limit[1]
        ]
        need(len(dict(through)) == len(through), "a limit through one operand twice")
        shares = {self._letter(letter): Index(runs) for letter, runs in limit[0]}
        need(len(shares) == len(limit[0]), "a letter twice")
        return tuple(sorted(shares.items(), key=lambda pair: pair[0])), tuple(
            sorted(through, key=lambda pair: pair[0])
        )

    def _letter(self, letter: str) -> str:
        """A letter that names a tensor of indices, by its class."""
        if not letter.startswith("?"):
            return letter
        by, node, reg, _ = self._one(letter[1:])
        need(by == 1 and self.values.is_whole(node, reg), f"{letter[:80]} is no index")
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
                part = slice(int(str(lo)), int(str(hi)))
                if rel is not None:
                    cut = tuple((c, n, (*r[:dim], r[dim][part], *r[dim + 1 :]), s) for c, n, r, s in rel)
                    rel = self.values.tidy(cut)
            return rel
        if isinstance(arg, Cat):
            return self.values.together([self._operand(part, get) for part in arg.parts], arg.dim)
        return arg


def _number(kind: str, text: str) -> Any:
    known: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "bool": lambda at: at == "True"}
    return known[kind](text)
