"""The independent checker: does each completed claim of a certificate follow, and do they cover the Program?

It shares no op code with prover, evaluator or op table, and no walk. Given what a local is claimed to be, it
asks which parts of the operands that must have been computed from (`_check_ops.py`). From below it takes
the records and what their text means: `expand`, the leaves, bound claims, digests. What it has no rule
for is refused. It checks values only; storage is decided by byte tags.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any, Final, NoReturn, TypeAlias

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
from ._check_ops import FLOATS, KEEPS_DTYPE, Piece, Reg, Shape, extent, follows, is_tensor, shape_of, signs

Share: TypeAlias = tuple[str, tuple[int, ...]]  # contracted letter, slice of it
Term: TypeAlias = tuple[Fraction, int, Reg, "Share | None"]  # coefficient, class, region, addend
Rel: TypeAlias = "tuple[Term, ...] | None"  # None: the certificate says nothing of it
ONE: Final = Fraction(1)
MAX_COVERED, MAX_VALUES = 1 << 26, 64


@dataclass(frozen=True, slots=True)
class CheckReport:
    """Whether a certificate was accepted and, if not, why; `coverage` says which invocations it is about."""

    accepted: bool
    reason: str
    locals: int = 0
    coverage: str = ""


class _Refused(Exception):
    """A claim that does not follow; never leaves this file."""


def check_certificate(certificate: bytes, plan: Plan, program: Program) -> CheckReport:
    """Re-check a certificate of values against a Plan and its Program.

    Raises:
        FormatError: not a certificate. LimitError: over the checker's bounds.
    """
    named, planned, given = read_certificate(certificate)
    count, covered, walks = 0, dict[str, int](), list[_Walk]()
    try:
        _need((named, planned) == (digest(program), plan_digest(plan)), "it is for another plan")
        _need(plan.program == named, "the plan is for another program")
        due = _invocations(program)
        _need(len(given) == len(due), f"{len(given)} invocations where {len(due)} are due")
        for (entry, params), item in zip(due, given, strict=True):
            _need((item.entry, item.params) == (entry, params), f"{entry} at {params} is due")
            walks.append(_Walk(plan, program, item))
            walks[-1].run()
            count, covered[entry] = count + len(item.locals), covered.get(entry, 0) + 1
        reads = set().union(*(walk.reads for walk in walks))
        for walk in walks:
            states = {str(before) for before in walk.pairs.values()}
            _need(
                all(read in walk.keeps for read in reads if read[1] in states),
                "a state is not left where it is read",
            )
    except _Refused as refused:
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
                _need(
                    len(grown) + high - low <= MAX_VALUES, f"{label} has over {MAX_VALUES} parameter values"
                )
                grown.extend({**row, key: value} for value in range(low, high))
            rows = grown
        found.extend((label, row) for row in rows)
    return found


def _span(program: Program, entry: str, count: int) -> str:
    keys = ", ".join(key for key, _, _ in program.entry(entry).params)
    return f"all {count} values of {keys}" if keys else "its one form"


@dataclass(frozen=True, slots=True)
class _Def:
    """How a class of equal logical values is made; operands are (class, region), numbers or None."""

    op: str
    attrs: dict[str, Any]
    operands: tuple[Any, ...]
    out: int
    shape: Shape
    dtype: str


class _Values:
    """The Program's values in classes: same op, attributes and operands."""

    def __init__(self, program: Program, entry: str, env: Mapping[str, int]) -> None:
        self.defs, self.names = list[_Def](), dict[str, tuple[int, Reg]]()
        self._keys, self._forms = dict[Any, int](), dict[int, dict[int, Fraction]]()
        for label, want, _ in leaves(program, entry, env):
            self.names[label] = self._put(_Def("leaf", {"name": label}, (), 0, want.shape, want.dtype))
        for step in expand(program.blocks, program.entry(entry).body, env):
            attrs = dict(step.attrs)
            operands = [operand(arg, lambda ref: self.named(str(ref.name))) for arg in step.args]
            _need(_known(step, operands), f"{step.op} reads several values joined into one")
            if step.op in ("copy", "slice"):
                ((_, node, reg, _),) = operands[0]
                self.names[str(step.outs[0])] = (node, reg if step.op == "copy" else _sliced(attrs, reg))
                continue
            pairs = tuple(o[0][1:3] if is_tensor(o) else _number(o) for o in operands)
            dtypes = {self.defs[o[0][1]].dtype for o in operands if is_tensor(o)}
            dtype = (
                dtypes.pop() if len(dtypes) == 1 and step.op in KEEPS_DTYPE and "dtype" not in attrs else "?"
            )
            shape = shape_of(step.op, attrs, [_size(p[1]) if is_tensor(p) else None for p in pairs])
            _need(shape is not None and len(step.outs) == 1, f"the checker has no rule for {step.op}")
            self.names[str(step.outs[0])] = self._put(_Def(step.op, attrs, pairs, 0, shape or (), dtype))

    def _put(self, item: _Def) -> tuple[int, Reg]:
        key = (item.op, repr(sorted(item.attrs.items())), item.operands, item.out)
        if key not in self._keys:
            self._keys[key] = len(self.defs)
            self.defs.append(item)
        return self._keys[key], _whole(item.shape)

    def named(self, label: str) -> Rel:
        """A value by name."""
        _need(label in self.names, f"the program never makes {label[:80]}")
        return ((ONE, *self.names[label], None),)

    def equal(self, one: Rel, other: Rel) -> bool:
        """Are two sums the same, once every value that is itself a sum is opened?"""
        return (
            one is not None
            and other is not None
            and (one == other or self._opened(one) == self._opened(other))
        )

    def _opened(self, rel: tuple[Term, ...]) -> dict[Any, Fraction]:
        sums: dict[Any, Fraction] = {}
        for coef, node, reg, share in rel:
            for part, by in (self._form(node) if share is None else {node: ONE}).items():
                sums[part, reg, share] = sums.get((part, reg, share), Fraction(0)) + coef * by
        return {key: coef for key, coef in sums.items() if coef}

    def _form(self, node: int) -> dict[int, Fraction]:
        """A value as a sum of values that are none. Operands are older than the value, so this ends."""
        todo = [node]
        while todo:
            item = self.defs[todo[-1]]
            coefs = signs(item.op, item.attrs, item.operands) if item.dtype in FLOATS else None
            pairs = [pair for pair in item.operands if is_tensor(pair)]
            if coefs is None or any(
                self.defs[n].shape != item.shape or r != _whole(item.shape) for n, r in pairs
            ):
                self._forms[todo.pop()] = {}
            elif missing := [n for n, _ in pairs if n not in self._forms]:
                todo.extend(missing)
            else:
                sums: dict[int, Fraction] = {}
                for (n, _), coef in zip(pairs, coefs, strict=True):
                    for part, by in (self._forms[n] or {n: ONE}).items():
                        sums[part] = sums.get(part, Fraction(0)) + coef * by
                self._forms[todo.pop()] = {part: coef for part, coef in sums.items() if coef}
        return self._forms[node] or {node: ONE}

    def extent(self, node: int, letter: str) -> int:
        """The size of a contracted letter of a value's op."""
        item = self.defs[node]
        found = extent(item.op, item.attrs, [_size(p[1]) for p in item.operands if is_tensor(p)], letter)
        return found if found is not None else _refuse(f"no addend over {letter[:40]!r} there")


class _Walk:
    """One invocation: all ranks' steps in an order that can be executed, held against the certificate."""

    def __init__(self, plan: Plan, program: Program, given: Invocation) -> None:
        self.plan, self.program, self.entry = plan, program, given.entry
        entry = given.entry
        self.env = bind_entry(program, entry, given.params)
        self.values = _Values(program, entry, self.env)
        self.leaves = {label: role for label, _, role in leaves(program, entry, self.env)}
        self.pairs = {str(after): before for before, after in state_pairs(program.entry(entry), self.env)}
        self.claims = {key: tuple(self._term(*term) for term in terms) for key, terms in given.locals.items()}
        for key, rel in self.claims.items():
            _need(len({_size(reg) for _, _, reg, _ in rel}) == 1, f"{key} has terms of no or several shapes")
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
            _need(
                same and self.values.equal(self._total([rel for rel, _ in members]), members[0][1]),
                "a sum of addends is not its claim",
            )
        for label in (
            *(str(name.ground(self.env)) for name in self.program.entry(self.entry).outputs),
            *self.pairs,
        ):
            shape = _size(self.values.names[label][1])
            if math.prod(shape) > MAX_COVERED:
                raise LimitError(f"{label} of shape {list(shape)}")
            seen = np.zeros(shape, np.bool_)
            for reg in self.held.get(label, []):
                seen[np.ix_(*reg)] = True
            _need(bool(seen.all()), f"{label} is not covered")
        unused = set(self.claims) - {
            (str(rank), str(name)) for rank, table in self.made.items() for name in table
        }
        _need(not unused, f"no rank has {next(iter(unused), None)}")

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
        _need(not mail and not any(heads.values()), "the plan does not come to its end")

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
            _need(address[0] in self.made and address not in sent, f"{rank}: a send that cannot be")
            sent.add(address)
            (mail[address],) = self._operands(rank, step)
        elif step.op in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all"):
            group = self._group(rank, step)
            steps = [other for member in group if (other := heads[member]) is not None]
            if len(steps) < len(group) or any((s.op, s.outs) != (step.op, step.outs) for s in steps):
                return ()
            _need(all(s.attrs == step.attrs for s in steps), f"{rank}: {step.op} of several minds")
            members = [self._operands(member, s)[0] for member, s in zip(group, steps, strict=True)]
            for member, result in zip(group, self._met(step.op, dict(step.attrs), members), strict=True):
                self._make(member, step.outs[0], partial(self.values.equal, result))
            return group
        else:
            operands = self._operands(rank, step)
            for out in step.outs:
                self._make(rank, out, lambda claim: self._follows(step, operands, claim))
        return (rank,)

    def _group(self, rank: Rank, step: Op) -> tuple[Rank, ...]:
        """All ranks that stand where this one does along the other axes, one at each place, in mesh order."""
        over, own = step.attr("axes"), self.places[rank]
        _need(isinstance(over, tuple) and set(over) <= own.keys(), f"{rank}: {step.op} over {over}")
        axes: Any = over
        if (rank, axes) not in self.groups:
            alone = set(axes) <= set(self.plan.tracks[rank.track].axes)
            spots = dict[tuple[int, ...], Rank]()
            for other in self.plan.ranks(rank.track if alone else None):
                place = self.places[other]
                if any(place.get(axis, own[axis]) != own[axis] for axis in own if axis not in axes):
                    continue
                _need(place.keys() == own.keys(), f"{rank}: is {other} a member of {step.op} over {axes}?")
                at = tuple(place[axis] for axis in self.plan.mesh if axis in axes)
                _need(at not in spots, f"{rank}: two members of {step.op} at one place")
                spots[at] = other
            every = itertools.product(*(range(n) for axis, n in self.plan.mesh.items() if axis in axes))
            _need(sorted(spots) == list(every), f"{rank}: {step.op} over {axes} where a rank is missing")
            group = tuple(spots[at] for at in sorted(spots))
            self.groups.update({(member, axes): group for member in group})
        return self.groups[rank, axes]

    def _make(self, rank: Rank, name: Name, right: Callable[[tuple[Term, ...]], bool]) -> None:
        """A local comes to be: what the certificate says follows, and is what the Plan claims."""
        _need(name not in self.made[rank], f"{rank}: {name} is made twice")
        claim = self.claims.get((str(rank), str(name)))
        _need(claim is None or right(claim), f"{rank}: {name} does not follow")
        self.made[rank][name] = claim
        local, bound = self.plan.local(rank.track, name.base), self._bound(rank, name)
        if local is None or bound is None:
            return
        label, part = str(bound.of), self._part(bound)
        node, outer = self.values.names[label]
        reg = tuple(tuple(index[at] for at in places) for index, places in zip(outer, part, strict=True))
        share = None if bound.over is None else (bound.over[0], tuple(bound.over[1]))
        want = ((bound.scale, node, reg, share),)
        _need(claim is not None, f"{rank}: {name} is claimed by the plan and not here")
        if bound.sum:
            at = frozenset(pair for pair in self.places[rank].items() if pair[0] not in bound.sum)
            own = self.plan.tracks[rank.track].axes
            among = any(axis in self.places[rank] and axis not in own for axis in bound.sum)
            index = tuple(
                i for key, i in zip(local.params, name.members(), strict=True) if key not in bound.sum
            )
            self.sums.setdefault((among or rank.track, at, name.base, index, label), []).append((claim, want))
        else:
            _need(self.values.equal(claim, want), f"{rank}: {name} is not what the plan claims")
        plain = not bound.sum and bound.scale == 1
        if bound.over is None and bound.scale and (plain or label not in self.pairs):
            self.held.setdefault(label, []).append(part)
        if label in self.pairs and bound.over is None and plain:
            self.keeps.add((rank, str(self.pairs[label]), part))

    def _operands(self, rank: Rank, step: Op) -> list[Any]:
        return [operand(arg, lambda ref: self._find(rank, ref.name)) for arg in step.args]

    def _find(self, rank: Rank, name: Name) -> Rel:
        if name not in self.made[rank]:
            bound = self._bound(rank, name)
            _need(
                bound is not None and self._supplied(bound), f"{rank}: {name} is read before anything made it"
            )
            label, part = str(bound.of), self._part(bound)
            self._make(rank, name, lambda claim: claim == ((ONE, self.values.names[label][0], part, None),))
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
        _need(str(bound.of) in self.values.names, f"the program never makes {bound.of}")
        shape = _size(self.values.names[str(bound.of)][1])
        inside = all(dim < len(shape) and (not at or max(at) < shape[dim]) for dim, at in bound.dims.items())
        _need(inside, f"a part of {bound.of} that does not exist")
        return tuple(tuple(bound.dims.get(dim, range(size))) for dim, size in enumerate(shape))

    def _met(self, op: str, attrs: dict[str, Any], members: list[Rel]) -> list[Rel]:
        known = [member for member in members if member is not None]
        nothing: list[Rel] = [None] * len(members)
        if len(known) < len(members) or attrs.get("reduce", "sum") != "sum":
            return nothing
        rank = len(known[0][0][2])
        if op == "all_gather":
            return [_joined(members, attrs["dim"] % rank)] * len(members)
        _need(len({_size(member[0][2]) for member in known}) == 1, f"{op} of several shapes")
        if op == "all_to_all":
            pieces = [_split(member, attrs["split"] % rank, len(members)) for member in known]
            return [
                _joined([piece[to] for piece in pieces], attrs["cat"] % rank) for to in range(len(members))
            ]
        whole = self._total(members)
        if whole is None or any(
            self.values.defs[n].dtype not in FLOATS and s is None for m in known for _, n, _, s in m
        ):
            return nothing
        return (
            [whole] * len(members) if op == "all_reduce" else _split(whole, attrs["dim"] % rank, len(members))
        )

    def _total(self, members: list[Rel]) -> Rel:
        """The sum of all members; addends that hold every index of their letter once are the whole."""
        groups, sums = dict[Any, list[Share]](), dict[Any, Fraction]()
        for coef, node, reg, share in itertools.chain.from_iterable(member or () for member in members):
            if share is None:
                sums[node, reg, None] = sums.get((node, reg, None), Fraction(0)) + coef
            else:
                groups.setdefault((coef, node, reg, share[0]), []).append(share)
        for (coef, node, reg, letter), shares in groups.items():
            every = sorted(itertools.chain.from_iterable(share[1] for share in shares))
            whole = every == list(range(self.values.extent(node, letter)))
            for share in [None] if whole else shares:
                sums[node, reg, share] = sums.get((node, reg, share), Fraction(0)) + coef
        return None if None in members else tuple((coef, *key) for key, coef in sums.items() if coef)

    def _follows(self, step: Op, operands: list[Any], claim: tuple[Term, ...]) -> bool:
        """Is the claim what the step computes from these operands?"""
        tensors = [item for item in operands if is_tensor(item)]
        attrs: dict[str, Any] = dict(step.attrs)
        if not tensors or not _known(step, operands):
            return False
        if step.op in ("copy", "slice"):
            moved = tuple(
                (c, n, r if step.op == "copy" else _sliced(attrs, r), s) for c, n, r, s in tensors[0]
            )
            return self.values.equal(claim, moved)
        if step.op == "cat" and self.values.equal(
            claim, _joined(tensors, attrs.get("dim", 0) % len(tensors[0][0][2]))
        ):
            return True
        coefs = signs(step.op, attrs, operands)
        types = {(_size(r), self.values.defs[n].dtype) for item in tensors for _, n, r, _ in item}
        if (
            coefs is not None
            and len(types) == 1
            and types <= {(size, dtype) for size, _ in types for dtype in FLOATS}
        ):
            flat = tuple(
                (by * c, n, r, s) for by, item in zip(coefs, tensors, strict=True) for c, n, r, s in item
            )
            if self.values.equal(claim, flat):
                return True
        if len(claim) != 1 or any(len(t) != 1 or t[0][0] != 1 or t[0][3] is not None for t in tensors):
            return False
        coef, node, reg, share = claim[0]
        item = self.values.defs[node]
        swaps = (
            step.op in ("add", "mul", "maximum", "minimum")
            and attrs.get("alpha", 1) == 1
            and len(operands) == 2
        )
        for mine in (operands, operands[::-1]) if swaps else (operands,):
            parts = [_within(one, other) for one, other in zip(mine, item.operands, strict=False)]
            if item.op != step.op or len(mine) != len(item.operands) or "no" in parts:
                continue
            shapes = [_size(pair[1]) if is_tensor(pair) else None for pair in item.operands]
            if follows(Piece(step.op, attrs, item.attrs, shapes, parts, item.shape, reg, share)) == coef:
                return True
        return False

    def _term(self, coef: Fraction, label: str, reg: Reg, share: Share | None) -> Term:
        ((_, node, whole, _),) = self.values.named(label) or ()
        shape = self.values.defs[node].shape
        inside = len(reg) == len(shape) and all(
            max(at, default=0) < max(n, 1) for at, n in zip(reg, shape, strict=True)
        )
        _need(whole == _whole(shape) and inside, f"{label} has no such part")
        if share is not None:
            _need(
                max(share[1], default=-1) < self.values.extent(node, share[0]), f"{label} has no such addend"
            )
        return coef, node, reg, share


def operand(arg: Arg, get: Callable[[Ref], Rel]) -> Any:
    """What a step reads: a relation (None when nothing is known of it), a number, or nothing."""
    if isinstance(arg, Ref):
        rel = get(arg)
        for dim, lo, hi in arg.box:
            part = slice(int(str(lo)), int(str(hi)))
            rel = (
                None
                if rel is None
                else tuple((c, n, (*r[:dim], r[dim][part], *r[dim + 1 :]), s) for c, n, r, s in rel)
            )
        return rel
    return _joined([operand(part, get) for part in arg.parts], arg.dim) if isinstance(arg, Cat) else arg


def _joined(parts: list[Any], dim: int) -> Rel:
    """Parts of one value one after another; None when they are of several."""
    if not parts or any(part is None for part in parts):
        return None
    parts = [part for part in parts if part[0][2][dim]] or parts[:1]
    made: list[Term] = []
    for column in itertools.zip_longest(*parts):
        if any(
            term is None
            or (term[0], term[1], _but(term[2], dim), term[3])
            != (column[0][0], column[0][1], _but(column[0][2], dim), column[0][3])
            for term in column
        ):
            return None
        coef, node, reg, share = column[0]
        run = tuple(itertools.chain.from_iterable(term[2][dim] for term in column))
        made.append((coef, node, (*reg[:dim], run, *reg[dim + 1 :]), share))
    return tuple(made)


def _split(rel: tuple[Term, ...], dim: int, count: int) -> list[Rel]:
    size, rest = divmod(len(rel[0][2][dim]), count)
    _need(rest == 0, "parts that are not equal")
    cut = [slice(i * size, (i + 1) * size) for i in range(count)]
    return [tuple((c, n, (*r[:dim], r[dim][part], *r[dim + 1 :]), s) for c, n, r, s in rel) for part in cut]


def _within(mine: Any, theirs: Any) -> Any:
    """Where the region a step reads stands in the region the value's op reads; "no" when it does not."""
    if not is_tensor(mine) or not is_tensor(theirs):
        return None if not is_tensor(mine) and _number(mine) == theirs else "no"
    (_, node, reg, _), places = mine[0], list[tuple[int, ...]]()
    for index, outer in zip(reg, theirs[1], strict=True) if node == theirs[0] else [((0,), ())]:
        where = {at: position for position, at in enumerate(outer)}
        if len(where) != len(outer) or not where.keys() >= set(index):
            return "no"
        places.append(tuple(where[at] for at in index))
    return tuple(places)


def _known(step: Op, operands: list[Any]) -> bool:
    return all(
        o is not None or not isinstance(a, (Ref, Cat)) for a, o in zip(step.args, operands, strict=True)
    )


def _sliced(attrs: Mapping[str, Any], reg: Reg) -> Reg:
    dim, part = (
        attrs.get("dim", 0) % len(reg),
        slice(attrs.get("start"), attrs.get("end"), attrs.get("step", 1)),
    )
    return (*reg[:dim], reg[dim][part], *reg[dim + 1 :])


def _number(value: Any) -> Any:
    return None if value is None else ("number", type(value).__name__, repr(value))


def _whole(shape: Shape) -> Reg:
    return tuple(tuple(range(size)) for size in shape)


def _size(reg: Reg) -> Shape:
    return tuple(map(len, reg))


def _but(reg: Reg, dim: int) -> Reg:
    return (*reg[:dim], *reg[dim + 1 :])


def _need(so: bool, why: str) -> None:
    if not so:
        _refuse(why)


def _refuse(why: str) -> NoReturn:
    raise _Refused(why)
