"""The logical values of one invocation, and the engine that derives what a step on parts of them gives.

`Logical` first takes the Program's own steps (each makes values), then answers, for a step on parts, which
parts of which values come out. Copies, slices and boxes make no new values, only regions; factors and sums
are the business of `Values`. An addend passes through ops that are linear in it. A step that fits no
value of the Program makes one of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any, Final

from tensure.program import (
    Affine,
    Arg,
    Cat,
    Op,
    Program,
    Ref,
    TensorType,
    box_type,
    expand,
    infer_step,
    joined_type,
    leaves,
)

from ._conditional import Conditional
from ._constants import Constants
from ._contraction import TERMS
from ._equations import equation, whole_form
from ._exponents import WATCHED, Exponents
from ._index import relative, select, shape_of, whole_region
from ._joined import joined_step
from ._limit import Limit, limited, share_of
from ._linear import alone, together
from ._masked import ROWS, Lookup, masked_lookup
from ._masked_gather import masked_gather
from ._masked_rows import masked_rows
from ._masked_scatter import masked_scatter
from ._matching import Matching
from ._placed import placed
from ._products import OPENED, Products
from ._relation import ONE, Relation, Term, plain, total
from ._restated import restated
from ._rules import REDUCTIONS, reduced_dims
from ._runs import filled_up, rejoined, runwise, summed, written
from ._steps import Call, Held, Number, Operand, all_float, bound, type_of
from ._values import Value, is_part

VIEWS: Final = frozenset(["view", "reshape", "flatten", "unsqueeze", "squeeze"])
PERMUTES: Final = frozenset(["permute", "transpose", "t"])
MAX_TERMS: Final = 16
"""Terms of a sum that a linear op is led through one by one."""


class Logical(Matching):
    """Every value of one invocation of a Program, and every one met since."""

    def __init__(
        self, program: Program, entry: str, env: Mapping[str, int], *, targets: bool = False
    ) -> None:
        """Take the Program's steps; `targets`: assume that no class of a loss is the one to be ignored."""
        super().__init__()
        self.targets = targets
        self.names: dict[str, Held] = {}
        self.products = Products(self)
        self.exponents = Exponents(self)
        self.constants = Constants(self)
        self.conditional = Conditional(self)
        self.labels: dict[int, tuple[str, Fraction]] = {}
        self.origins: dict[str, Op] = {}
        """The Program's steps, by the values that they make."""
        self.outputs = tuple(str(name.ground(env)) for name in program.entry(entry).outputs)
        for label, want, _ in leaves(program, entry, env):
            node = self.put(Value("leaf", {"name": label}, (), 0, want), ("leaf", label))
            self._name(label, Held(want, plain(node, whole_region(want.shape))))
        for step in expand(program.blocks, program.entry(entry).body, env):
            operands = [self.operand(arg, self.named) for arg in step.args]
            self.constants.take(step, operands)
            self.conditional.take_range(step, operands)
            types = infer_step(step, [type_of(operand) for operand in operands])
            made = self.made(Call(step, bound(step, operands), operands, types, None, True))
            for out, held in zip(step.outs, made, strict=True):
                self._name(str(out), held)
                self.origins[str(out)] = step
        self.first_own = len(self.values)

    def counted(self, part: object, ignored: object) -> bool:
        """Whether an operand is known to be targets none of which is this class."""
        return self.targets and self.constants.aimed(part, ignored)

    def in_range(self, part: object, count: int) -> bool:
        """Whether an operand is known to be of indices counted from 0 and below a number."""
        return self.constants.below(part, count)

    # operands ----------------------------------------------------------------------------------------

    def named(self, ref: Ref) -> Held:
        """A logical value by its printed name."""
        return self.names[str(ref.name)]

    def operand(self, arg: Arg, get: Callable[[Ref], Held]) -> Operand:
        """What an op reads: a value, a box of one, several joined, a number or nothing."""
        if isinstance(arg, Ref):
            held = get(arg)
            if not arg.box:
                return held
            found = box_type(arg, held.type)
            for dim, lo, hi in arg.box:
                assert isinstance(lo, (int, Affine)) and isinstance(hi, (int, Affine))
                held = self.piece(held, dim, lo, hi)
            return Held(found, held.relation)
        if isinstance(arg, Cat):
            parts = [self.operand(part, get) for part in arg.parts]
            found = joined_type(arg, [type_of(part) for part in parts])
            return Held(found, self.join([part for part in parts if isinstance(part, Held)], arg.dim))
        assert arg is None or isinstance(arg, (bool, int, float, Affine))
        return arg

    # steps -------------------------------------------------------------------------------------------

    def apply(
        self,
        step: Op,
        operands: list[Operand],
        types: list[TensorType],
        want: Relation | None = None,
        given: dict[str, Any] | None = None,
    ) -> list[Held]:
        """What a step's results are in logical values; `want` chooses where several answers are right.

        Args:
            given: its attributes with their defaults, if they are known; they are not changed.
        """
        given = bound(step, operands) if given is None else given
        return self.made(Call(step, given, operands, types, want, False))

    def made(self, call: Call) -> list[Held]:
        """What a step makes; another's names for it where it equals an earlier value in another spelling."""
        made = self._made_of(call)
        if call.own:
            return made
        return [Held(held.type, self._renamed(held.relation)) for held in made]

    def _renamed(self, relation: Relation) -> Relation:
        term = relation.single
        if term is None or term.node < self.first_own or term.limit is not None:
            return relation
        known = None
        if self.values[term.node].op in WATCHED:
            known = self.exponents.term(term.node, term.region)
        if known is not None:
            return Relation((replace(known, coef=known.coef * term.coef),))
        return self.renamed(relation)

    def _made_of(self, call: Call) -> list[Held]:
        if call.step.op in VIEWS:  # one op in one spelling
            shape = call.types[0].shape
            step = Op("view", call.step.args, call.step.outs, (("size", shape),), call.step.note)
            call = replace(call, step=step, given={"size": shape})
        elif call.step.op in PERMUTES:
            call = self.permuting(call)
        elif call.step.op == "stack":
            call = self.stacking(call)
        elif call.step.op == "select":
            call = self.selecting(call)
        elif call.step.op in REDUCTIONS and "dim" in call.given and isinstance(call.operands[0], Held):
            dims = reduced_dims(call.given["dim"], len(call.operands[0].type.shape))
            call = replace(call, given={**call.given, "dim": dims})
        elif call.step.op == "gather" and isinstance(call.operands[0], Held):
            rank = max(len(call.operands[0].type.shape), 1)
            call = replace(call, given={**call.given, "dim": call.given["dim"] % rank})
        for way in (
            self.passes,
            self.constant,
            self.constants.folded,
            self._runwise,
            self.linear,
            self._summed,
        ):
            found = way(call)
            if found is not None:
                return [Held(call.types[0], found if call.own else self._multiplied(found))]
        written = {
            "mean": self.mean,
            "nll_loss_forward": self.loss,
            "nll_loss_backward": self.loss_backward,
            "convolution_backward": self.convolution_gradients,
        }
        return written.get(call.step.op, self.general)(call)

    def general(self, call: Call) -> list[Held]:
        """A step by the rule for its op, on single terms; a sum is led through term by term."""
        many = [
            at
            for at, item in enumerate(call.operands)
            if isinstance(item, Held) and item.relation.single is None
        ]
        if len(many) == 1 and self._leads_through(call, many[0]):
            (at,) = many
            held = call.operands[at]
            assert isinstance(held, Held)
            rows = [
                self.general(
                    replace(call, operands=_with(call.operands, at, Held(held.type, Relation((term,)))))
                )
                for term in held.relation.terms
            ]
            sums = [total([(ONE, row[out].relation) for row in rows]) for out in range(len(call.types))]
            if all(item is not None for item in sums):
                return [
                    Held(t, self.resolve(s)) for t, s in zip(call.types, sums, strict=True) if s is not None
                ]
        columns = _columns(call) if len(many) == len(call.operands) and not call.own else []
        summed = total((ONE, self._made_of(column)[0].relation) for column in columns)
        if summed is not None:
            return [Held(call.types[0], self.resolve(summed))]
        terms = [self.single(item) for item in call.operands]
        lookup = masked_lookup(self, call.step.op, terms)
        put = None if call.own else placed(self, call.step.op, call.given, terms, call.types[0].shape)
        if put is not None and (known := self.known(call)) is not None:
            return [Held(call.types[0], Relation((known,)))]
        if put is not None:
            whole, shares = put
            region = self.spelled(whole.node, whole.region)
            term = replace(whole, region=region, limit=limited(shares, ()))
            return [Held(call.types[0], Relation((term,)))]
        addend = self._looked_up(lookup, call.types[0]) if lookup else masked_gather(self, call, terms)
        addend = addend or self.conditional.kept(call, terms) or self.conditional.put(call, terms)
        addend = addend or masked_scatter(self, call, terms) or masked_rows(self, call, terms)
        if addend is not None:
            return [addend]
        factor, core, limits = self._parted(call, terms)
        match = self._match(call, core)
        if match is None and not call.own and call.step.op in TERMS:
            tries = (self._match(call, other) for other in restated(self, core))
            match = next((found for found in tries if found is not None), None)
        if match is None and (joined := self._joined(call)) is not None:
            return [Held(call.types[0], joined)]
        node, derived, order = match or self._new(call, core)
        if match is None and node >= self.first_own:
            self.conditional.take(call, core, node)
        through = [(order.index(at), limit) for at, limit in limits.items()]
        made: list[Held] = []
        for out, (part, want) in enumerate(zip(derived, call.types, strict=True)):
            region = self.spelled(node + out, part.region)
            coef = part.coef if factor is ONE else factor * part.coef
            term = Term(node + out, region, coef, limited(part.shares, through))
            if node >= self.first_own and call.step.op in OPENED and term.limit is None:
                known = self.products.term(node, region)
                term = term if known is None else replace(known, coef=known.coef * term.coef)
            made.append(Held(want, Relation((term,))))
        return made

    def _runwise(self, call: Call) -> Relation | None:
        return runwise(self, call, self.single)

    def _summed(self, call: Call) -> Relation | None:
        return summed(self, call, self.single)

    def _joined(self, call: Call) -> Relation | None:
        """Tensors one after another, or a step on such."""
        laid = rejoined(self, call, self.single) or written(self, call) or filled_up(self, call)
        return laid or joined_step(self, call, self.first_own) or self.moving_ones(call)

    def known(self, call: Call, *, addends: bool = False) -> Term | None:
        """The part (or addend) of a value of the Program's that a step makes, by the rule for its op."""
        terms = [self.single(item) for item in call.operands]
        factor, core, limits = self._parted(call, terms)
        found = self._match(call, core)
        if limits or found is None or found[0] >= self.first_own or len(found[1]) != 1:
            return None
        node, (part,), _ = found
        if part.shares and not addends:
            return None
        region = self.spelled(node, part.region)
        return Term(node, region, part.coef * factor, limited(part.shares, ()))

    def _multiplied(self, found: Relation) -> Relation:
        """A sum with products in it that is an earlier value in another spelling, or the sum as it is."""
        region = None if found.single is not None else self.aligned(found)
        known = None if region is None else self.products.summed(found, region)
        return found if known is None else Relation((known,))

    def _looked_up(self, lookup: Lookup, found: TensorType) -> Held | None:
        """The addend over some rows of a table's lookup."""
        node, region, _ = lookup.table
        at, places, _ = lookup.indices
        rows = self.values[node].type.shape[0]
        for value in self.candidates.get(("embedding", (node, ONE), (at, ONE)), ()):
            table, indices = self.values[value].operands
            if not isinstance(table, tuple) or not isinstance(indices, tuple):
                continue
            columns = [relative(mine, theirs) for mine, theirs in zip(region[1:], table[1][1:], strict=True)]
            spots = [select(index, spot) for index, spot in zip(places, lookup.places, strict=True)]
            mine = [relative(spot, theirs) for spot, theirs in zip(spots, indices[1], strict=True)]
            made = (*mine, *columns)
            share = share_of(ROWS, rows, ((lookup.lo, lookup.hi),))
            if table[1][0] != ((0, rows),) or any(index is None for index in made):
                continue
            part = tuple(index for index in made if index is not None)
            if shape_of(part) == found.shape:
                shares = () if share is None else (share,)
                return Held(found, Relation((Term(value, part, ONE, limited(shares, ())),)))
        return None

    def _leads_through(self, call: Call, at: int) -> bool:
        held = call.operands[at]
        assert isinstance(held, Held)
        return (
            held.relation.limited
            and len(held.relation.terms) <= MAX_TERMS
            and at in alone(call.step.op, call.given, call.operands)
            and all_float(call, [at])
        )

    def single(self, operand: Operand) -> Term | Number:
        """One term for an operand: sums become values, and what is none becomes a ghost."""
        if not isinstance(operand, Held):
            return operand
        found = self.resolve(operand.relation)
        if found.single is not None:
            return found.single
        region = self.aligned(found)
        if region is not None and not found.limited:
            terms = [
                replace(t, region=self.spelled(t.node, self._all_of(t.node, region))) for t in found.terms
            ]
            shape = tuple(
                max(t.region[dim][-1][1] if t.region[dim] else 0 for t in terms) for dim in range(len(region))
            )
            made = self.sum_of(Relation(tuple(terms)), TensorType(shape, operand.type.dtype))
            if made.single is not None:
                return replace(made.single, region=self.spelled(made.single.node, region))
        return self.ghost(("sum", found.terms), operand.type).terms[0]

    def _parted(
        self, call: Call, terms: list[Term | Number]
    ) -> tuple[Fraction, list[Term | Number], dict[int, Limit]]:
        """The factor that comes out, what the op is done on, and the limits that go through it."""
        op, given = call.step.op, call.given
        one = alone(op, given, call.operands)
        all_ = together(op, given, call.operands)
        factor, core, limits = ONE, list(terms), dict[int, Limit]()
        held = {at: item for at, item in enumerate(terms) if isinstance(item, Term)}
        for at in sorted(one & held.keys()):
            term = held[at]
            if term.coef != 1 and all_float(call, [at]):
                factor *= term.coef
                core[at] = replace(term, coef=ONE)
        zeros = {at for at in all_ & held.keys() if self.is_zero(held[at])}  # any multiple, any addend of 0
        if all_ and all_ <= held.keys() and all_float(call, sorted(all_)):
            # of a sum of operands: what is left tells their proportion
            common = held[min(all_ - zeros, default=min(all_))].coef
            factor *= common
            for at in all_:
                ratio = ONE if held[at].coef is common or at in zeros else held[at].coef / common
                core[at] = replace(held[at], coef=ratio)
        addends = {at: item for at, item in held.items() if item.limit is not None}
        passes = len(addends) == 1 and addends.keys() <= one
        passes = passes or (bool(addends) and bool(all_) and addends.keys() | zeros == all_)
        passes = passes and all_float(call, sorted(addends))
        for at, item in addends.items():
            whole = call.operands[at]
            assert isinstance(whole, Held) and item.limit is not None
            if passes:
                limits[at] = item.limit
                kept = core[at]
                assert isinstance(kept, Term)
                core[at] = replace(kept, limit=None)
            else:
                core[at] = self.ghost(("addend", item), whole.type).terms[0]
        return factor, core, limits

    # values ------------------------------------------------------------------------------------------

    def _name(self, label: str, held: Held) -> None:
        self.names[label] = held
        term = held.relation.single
        if term is not None and self.is_whole(term.node, term.region):
            self.labels.setdefault(term.node, (label, term.coef))

    def _equate(self, node: int) -> None:
        """What a new value is in terms of others."""
        relation = equation(self, node)
        if relation is None and self.values[node].op == "log":
            (part,) = self.values[node].operands
            relation = self.exponents.log(part) if isinstance(part, tuple) and is_part(part) else None
        form = None if relation is None else whole_form(self, node, relation)
        if form is not None:
            self.equate(node, form)
        self.exponents.register(node)


def _columns(call: Call) -> list[Call]:
    """A join of sums with addends in them as joins of their terms, where all are of the same values."""
    held = [item for item in call.operands if isinstance(item, Held)]
    if call.step.op != "cat" or not all_float(call, list(range(len(held)))) or len(held) < 2:
        return []
    rows = [item.relation.terms for item in held]
    if not held[0].relation.limited or len({len(row) for row in rows}) > 1 or len(rows[0]) > MAX_TERMS:
        return []
    columns = list(zip(*rows, strict=True))
    if any(len({(term.node, term.coef, term.limit) for term in column}) > 1 for column in columns):
        return []
    return [
        replace(
            call,
            operands=[Held(item.type, Relation((term,))) for item, term in zip(held, column, strict=True)],
        )
        for column in columns
    ]


def _with(operands: list[Operand], at: int, item: Operand) -> list[Operand]:
    return [*operands[:at], item, *operands[at + 1 :]]
