"""The independent checker: does each completed claim of a certificate follow, and do they cover the Program?

It shares no op code with prover, evaluator or op table, and no walk. Given what a local is claimed to be, it
asks which parts of the operands that must have been computed from (`_check_ops.py`). From below it takes
the records and what their text means: `expand`, the leaves, bound claims, digests. What it has no rule
for is refused. It checks values only; storage is decided by byte tags.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np

from tensure.bundle import Plan, Rank, placed, plan_digest
from tensure.errors import FormatError, LimitError, TensureError
from tensure.program import (
    Arg,
    Cat,
    Name,
    Op,
    Program,
    Ref,
    bind_entry,
    digest,
    evaluate,
    expand,
    leaves,
    state_pairs,
)

from ._certificate import Invocation, read_certificate
from ._check_linear import every, single
from ._check_ops import FLOATS, follows
from ._check_piece import Piece, Reg
from ._check_values import (
    ONE,
    CheckValues,
    Def,
    Limit,
    Refused,
    Rel,
    Term,
    clean,
    is_part,
    is_rel,
    need,
    refuse,
    size,
)

MAX_COVERED, MAX_VALUES, MAX_LED = 1 << 26, 64, 64


@dataclass(frozen=True, slots=True)
class CheckReport:
    """Whether a certificate was accepted and, if not, why; `coverage` says which invocations it is about."""

    accepted: bool
    reason: str
    locals: int = 0
    coverage: str = ""


def check_certificate(certificate: bytes, plan: Plan, program: Program) -> CheckReport:
    """Re-check a certificate of values against a Plan and its Program.

    Raises:
        FormatError: not a certificate. LimitError: over the checker's bounds.
    """
    named, planned, given = read_certificate(certificate)
    count, covered, walks = 0, dict[str, int](), list[_Walk]()
    try:
        need((named, planned) == (digest(program), plan_digest(plan)), "it is for another plan")
        need(plan.program == named, "the plan is for another program")
        due = _invocations(program)
        need(len(given) == len(due), f"{len(given)} invocations where {len(due)} are due")
        for (entry, params), item in zip(due, given, strict=True):
            need((item.entry, item.params) == (entry, params), f"{entry} at {params} is due")
            walks.append(_Walk(plan, program, item))
            walks[-1].run()
            count, covered[entry] = count + len(item.locals), covered.get(entry, 0) + 1
        reads = set().union(*(walk.reads for walk in walks))
        for walk in walks:
            states = {str(before) for before in walk.pairs.values()}
            need(
                all(read in walk.keeps for read in reads if read[1] in states),
                "a state is not left where it is read",
            )
    except Refused as refused:
        return CheckReport(False, str(refused), count)
    except (LimitError, FormatError):
        raise
    except (TensureError, ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        return CheckReport(False, f"a step that cannot be taken: {error}", count)
    return CheckReport(
        True, "", count, "; ".join(f"{key}: {_span(program, key, n)}" for key, n in covered.items())
    )


def _invocations(program: Program) -> list[tuple[str, dict[str, int]]]:
    found: list[tuple[str, dict[str, int]]] = []
    for label, entry in program.entries.items():
        rows: list[dict[str, int]] = [{}]
        for key, lo, hi in entry.params:
            grown: list[dict[str, int]] = []
            for row in rows:
                low, high = (evaluate(edge, {**program.axes, **row}) for edge in (lo, hi))
                need(len(grown) + high - low <= MAX_VALUES, f"{label} has over {MAX_VALUES} parameter values")
                grown.extend({**row, key: value} for value in range(low, high))
            rows = grown
        found.extend((label, row) for row in rows)
    return found


def _span(program: Program, entry: str, count: int) -> str:
    keys = ", ".join(key for key, _, _ in program.entry(entry).params)
    return f"all {count} values of {keys}" if keys else "its one form"


class _Walk:
    """One invocation: all ranks' steps in an order that can be executed, held against the certificate."""

    def __init__(self, plan: Plan, program: Program, given: Invocation) -> None:
        self.plan, self.program, self.entry = plan, program, given.entry
        entry = given.entry
        self.env = bind_entry(program, entry, given.params)
        self.values = CheckValues(program, self.entry, self.env)
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
            if math.prod(shape) > MAX_COVERED:
                raise LimitError(f"{label} of shape {list(shape)}")
            seen = np.zeros(shape, np.bool_)
            for reg in self.held.get(label, []):
                seen[np.ix_(*reg)] = True
            need(bool(seen.all()), f"{label} is not covered")
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
            for member, result in zip(group, self._met(step.op, dict(step.attrs), members), strict=True):
                self._make(member, step.outs[0], partial(self.values.equal, result))
            return group
        else:
            operands = self._operands(rank, step)
            for at, out in enumerate(step.outs):
                self._make(rank, out, partial(self._follows, step, operands, at))
        return (rank,)

    def _group(self, rank: Rank, step: Op) -> tuple[Rank, ...]:
        """All ranks that stand where this one does along the other axes, one at each place, in mesh order."""
        over, own = step.attr("axes"), self.places[rank]
        need(isinstance(over, tuple) and set(over) <= own.keys(), f"{rank}: {step.op} over {over}")
        axes: Any = over
        if (rank, axes) not in self.groups:
            alone = set(axes) <= set(self.plan.tracks[rank.track].axes)
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
        reg = tuple(tuple(index[at] for at in places) for index, places in zip(outer, part, strict=True))
        pinned: Limit = None if bound.over is None else (((bound.over[0], tuple(sorted(bound.over[1]))),), ())
        need(self.values.sound(node, pinned), f"{rank}: {name} claims an addend there is not")
        want = ((bound.scale * by, node, self.values.spelled(node, reg), pinned),)
        need(claim is not None, f"{rank}: {name} is claimed by the plan and not here")
        if bound.sum:
            at = frozenset(pair for pair in self.places[rank].items() if pair[0] not in bound.sum)
            own = self.plan.tracks[rank.track].axes
            among = any(axis in self.places[rank] and axis not in own for axis in bound.sum)
            index = tuple(
                i for key, i in zip(local.params, name.members(), strict=True) if key not in bound.sum
            )
            self.sums.setdefault((among or rank.track, at, name.base, index, label), []).append((claim, want))
        else:
            need(self.values.equal(claim, want), f"{rank}: {name} is not what the plan claims")
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
        return tuple(tuple(bound.dims.get(dim, range(size))) for dim, size in enumerate(shape))

    def _one(self, label: str) -> Term:
        rel = self.values.named(label)
        return rel[0] if rel is not None and len(rel) == 1 else refuse(f"{label} is no one value")

    # collectives -------------------------------------------------------------------------------------

    def _met(self, op: str, attrs: dict[str, Any], members: list[Rel]) -> list[Rel]:
        known = [member for member in members if member is not None]
        nothing: list[Rel] = [None] * len(members)
        if len(known) < len(members) or attrs.get("reduce", "sum") != "sum":
            return nothing
        rank = len(known[0][0][2])
        if op == "all_gather":
            return [self._together(known, attrs["dim"] % rank)] * len(members)
        need(len({size(member[0][2]) for member in known}) == 1, f"{op} of several shapes")
        if op == "all_to_all":
            pieces = [self._split(member, attrs["split"] % rank, len(members)) for member in known]
            return [
                self._together([piece[to] for piece in pieces], attrs["cat"] % rank)
                for to in range(len(members))
            ]
        flat = tuple(itertools.chain.from_iterable(known))
        if any(self.values.defs[n].dtype not in FLOATS and limit is None for _, n, _, limit in flat):
            return nothing
        if op == "all_reduce":
            return [flat] * len(members)
        return self._split(flat, attrs["dim"] % rank, len(members))

    def _together(self, parts: list[Any], dim: int) -> Rel:
        """Tensors one after another: parts of one value, or a value joined of parts."""
        joined = self.values.joined(parts, dim)
        if joined is not None or any(part is None or len(part) != 1 for part in parts):
            return joined
        terms = [part[0] for part in parts]
        if len({term[0] for term in terms}) != 1 or any(term[3] is not None for term in terms):
            return None
        plain = [((ONE, node, reg, None),) for _, node, reg, _ in terms]
        (made,) = self.values.make(Op("cat", (), (), (("dim", dim),)), plain)
        return None if made is None else tuple((coef * terms[0][0], *rest) for coef, *rest in made)

    def _split(self, rel: tuple[Term, ...], dim: int, count: int) -> list[Rel]:
        width, rest = divmod(len(rel[0][2][dim]), count)
        need(rest == 0, "parts that are not equal")
        cut = [slice(i * width, (i + 1) * width) for i in range(count)]
        return [
            self.values.tidy(tuple((c, n, (*r[:dim], r[dim][part], *r[dim + 1 :]), s) for c, n, r, s in rel))
            for part in cut
        ]

    # steps -------------------------------------------------------------------------------------------

    def _follows(self, step: Op, operands: list[Any], at: int, claim: tuple[Term, ...]) -> bool:
        """Is the claim what result `at` of the step is, computed from these operands?"""
        attrs = clean(dict(step.attrs))
        if any(
            item is None and isinstance(arg, (Ref, Cat))
            for arg, item in zip(step.args, operands, strict=True)
        ):
            return False
        moved = self.values.passed(step.op, attrs, operands)
        if moved is not None and self.values.equal(claim, moved):
            return True
        if at == 0:
            flat = self.values.linear(step.op, attrs, operands)
            if flat is None and step.op in ("addmm", "baddbmm", "linear"):
                flat = self._biased(step, attrs, operands, claim)
            if flat is not None and self.values.equal(claim, flat):
                return True
        return self._led(step, attrs, operands, at, claim)

    def _biased(self, step: Op, attrs: dict[str, Any], operands: list[Any], claim: tuple[Term, ...]) -> Rel:
        return None

    def _led(
        self, step: Op, attrs: dict[str, Any], operands: list[Any], at: int, claim: tuple[Term, ...]
    ) -> bool:
        """By the rule for its op on single terms; a sum is led through term by term."""
        many = [place for place, item in enumerate(operands) if is_rel(item) and len(item) > 1]
        if not many:
            return len(claim) == 1 and self._piece(step, attrs, operands, at, claim[0])
        if len(many) > 1 or not single(step.op, attrs, operands, many[0]):
            return False
        (place,) = many
        parts, left = self.values.opened(operands[place]), list(self.values.opened(claim))
        if len(parts) != len(left) or len(parts) > MAX_LED:
            return False
        for term in parts:
            args = [*operands[:place], (term,), *operands[place + 1 :]]
            found = next((other for other in left if self._piece(step, attrs, args, at, other)), None)
            if found is None:
                return False
            left.remove(found)
        return True

    def _piece(self, step: Op, attrs: dict[str, Any], operands: list[Any], at: int, claim: Term) -> bool:
        """Is a term what the step makes of single terms?"""
        swaps = (
            step.op in ("add", "mul", "maximum", "minimum") and len(operands) == 2 and "alpha" not in attrs
        )
        return any(
            self._fits(step.op, attrs, mine, at, claim)
            for mine in ((operands, operands[::-1]) if swaps else (operands,))
        )

    def _fits(self, op: str, attrs: dict[str, Any], operands: Sequence[Any], at: int, claim: Term) -> bool:
        coef, node, reg, limit = claim
        item = self.values.defs[node]
        if (item.op, item.out, len(item.operands)) != (op, at, len(operands)) or item.form is not None:
            return False
        parts: list[Any] = []
        factors: list[Fraction] = []
        for mine, theirs in zip(operands, item.operands, strict=True):
            part = self._within(mine, theirs)
            if part == "no":
                return False
            parts.append(part)
            factors.append(mine[0][0] / theirs[2] if is_rel(mine) else ONE)
        factor = self._passes(item, operands, factors, limit)
        if factor is None:
            return False
        shapes = [size(part[1]) if is_part(part) else None for part in item.operands]
        shares = dict(limit[0]) if limit is not None else {}
        found = follows(Piece(op, attrs, item.attrs, shapes, parts, item.shape, reg, shares, at))
        return found is not None and found * factor == coef

    def _passes(
        self, item: Def, operands: Sequence[Any], factors: list[Fraction], limit: Limit
    ) -> Fraction | None:
        """The factor that comes out, if factors and limits of the operands may go through the op at all."""
        through = dict(limit[1]) if limit is not None else {}
        held = {
            place: rel[0][3] for place, rel in enumerate(operands) if is_rel(rel) and rel[0][3] is not None
        }
        if held != through:
            return None
        floats = item.dtype in FLOATS
        together = every(item.op, item.operands)
        made, left = ONE, dict(enumerate(factors))
        if floats and together and len({factors[place] for place in together}) == 1:
            made *= factors[together[0]]
            left.update(dict.fromkeys(together, ONE))
        for place, by in left.items():
            if by == 1:
                continue
            operand = item.operands[place]
            if not floats or self.values.defs[operand[0]].dtype not in FLOATS:
                return None
            if not single(item.op, item.attrs, item.operands, place):
                return None
            made *= by
        return made

    def _within(self, mine: Any, theirs: Any) -> Any:
        """Where the part a step reads stands in the part the value was made from; "no" when it does not."""
        if not is_rel(mine) or not is_part(theirs):
            number = None if mine is None else ("number", type(mine).__name__, repr(mine))
            return None if not is_rel(mine) and number == theirs else "no"
        (_, node, reg, _), places = mine[0], list[Any]()
        if node != theirs[0]:
            return "no"
        free = self.values.defs[node].free
        for dim, (index, outer) in enumerate(zip(reg, theirs[1], strict=True)):
            if dim in free:
                places.append(range(len(index)))
                continue
            if index == outer:
                places.append(tuple(range(len(outer))))
                continue
            where = {i: position for position, i in enumerate(outer)}
            if len(where) != len(outer) or not where.keys() >= set(index):
                return "no"
            places.append(tuple(where[i] for i in index))
        return tuple(places)

    # what the certificate says -----------------------------------------------------------------------

    def _define(self, given: Invocation) -> None:
        """Values that the certificate names besides the Program's."""
        for item in given.values:
            need(item.label.startswith("$") and item.label not in self.values.names, f"{item.label} again")
            operands = [
                None if part is None else (self._term(*part),) if len(part) == 4 else _number(*part)
                for part in item.operands
            ]
            if item.op == "sum":
                rel = self.values.gathered(tuple(part[0] for part in operands if is_rel(part)))
            elif item.op == "full":
                rel = self.values.filled(item.attrs["fill_value"], item.shape, item.dtype)
            else:
                made = self.values.make(Op(item.op, (), (), tuple(item.attrs.items())), operands)
                rel = made[item.out]
            need(rel is not None and len(rel) == 1, f"{item.label} is no value")
            self.values.names[item.label] = rel

    def _term(self, coef: Fraction, label: str, reg: Reg, limit: Any) -> Term:
        by, node, outer, _ = self._one(label)
        item = self.values.defs[node]
        inside = len(reg) == len(item.shape) and all(
            dim in item.free or max(at, default=0) < max(n, 1)
            for dim, (at, n) in enumerate(zip(reg, item.shape, strict=True))
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
        return tuple(sorted(limit[0])), tuple(sorted(through, key=lambda pair: pair[0]))

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
            return self._together([self._operand(part, get) for part in arg.parts], arg.dim)
        return arg


def _number(kind: str, text: str) -> Any:
    known: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "bool": lambda at: at == "True"}
    return known[kind](text)
