"""The logical values of one invocation, and the engine that derives what a step on parts of them gives.

`Logical` first takes the Program's own steps (each makes values), then answers, for a step on parts, which
parts of which values come out. Copies, slices and boxes make no new values, only regions; factors and sums
are the business of `Values`. An addend passes through ops that are linear in it. A step that fits no
value of the Program makes one of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Final, TypeAlias

from tensure.errors import TensureError
from tensure.program import (
    Arg,
    Cat,
    Op,
    Program,
    Ref,
    TensorType,
    bind_op,
    box_type,
    expand,
    infer_step,
    joined_type,
    leaves,
    lookup,
)

from ._index import Index, Region, cut, free_index, joined, relative, select, shape_of, whole_region
from ._limit import Limit, limited
from ._linear import alone, exact, together
from ._movement import regrouped, slice_of, viewed_whole
from ._relation import ONE, Relation, Term, narrowed, plain, scaled, total
from ._repeats import repeating
from ._rules import Derived, derive
from ._values import FLOATS, Value, Values, is_part, number

Number: TypeAlias = "int | float | bool | None"
COMMUTATIVE: Final = frozenset({"add", "mul", "maximum", "minimum"})
MAX_TERMS: Final = 16
"""Terms of a sum that a linear op is led through one by one."""


@dataclass(frozen=True, slots=True)
class Held:
    """A tensor as the engine carries it: its type and its relation to logical values."""

    type: TensorType
    relation: Relation


Operand: TypeAlias = "Held | Number"


@dataclass(frozen=True, slots=True)
class _Call:
    """A step as the engine takes it: attributes with defaults, and what it is to make."""

    step: Op
    given: dict[str, Any]
    operands: list[Operand]
    types: list[TensorType]
    want: Relation | None
    own: bool
    """Whether it is a step of the Program, whose results are values."""


class Logical(Values):
    """Every value of one invocation of a Program, and every one met since."""

    def __init__(self, program: Program, entry: str, env: Mapping[str, int], *, targets: bool = False) -> None:
        """Take the Program's steps; `targets`: assume that no class of a loss is the one to be ignored."""
        super().__init__()
        self.targets = targets
        self.names: dict[str, Held] = {}
        self.labels: dict[int, tuple[str, Fraction]] = {}
        for label, want, _ in leaves(program, entry, env):
            node = self.put(Value("leaf", {"name": label}, (), 0, want), ("leaf", label))
            self._name(label, Held(want, plain(node, whole_region(want.shape))))
        for step in expand(program.blocks, program.entry(entry).body, env):
            operands = [self.operand(arg, self.named) for arg in step.args]
            types = infer_step(step, [_type(operand) for operand in operands])
            made = self._made(_Call(step, _given(step, operands), operands, types, None, True))
            for out, held in zip(step.outs, made, strict=True):
                self._name(str(out), held)

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
                assert isinstance(lo, int) and isinstance(hi, int)
                held = self.piece(held, dim, lo, hi)
            return Held(found, held.relation)
        if isinstance(arg, Cat):
            parts = [self.operand(part, get) for part in arg.parts]
            found = joined_type(arg, [_type(part) for part in parts])
            return Held(found, self.join([part for part in parts if isinstance(part, Held)], arg.dim))
        assert arg is None or isinstance(arg, (bool, int, float))
        return arg

    def piece(self, held: Held, dim: int, lo: int, hi: int) -> Held:
        """Members lo..hi of a dim."""
        indexes = {term.region[dim]: cut(term.region[dim], lo, hi) for term in held.relation.terms}
        shape = (*held.type.shape[:dim], hi - lo, *held.type.shape[dim + 1 :])
        relation = narrowed(held.relation, dim, indexes)
        return Held(TensorType(shape, held.type.dtype), self._tidy(relation))

    def join(self, parts: list[Held], dim: int) -> Relation:
        """Tensors one after another along a dim: a region again where they are parts of one value."""
        merged = self._merge(parts, dim)
        if merged is not None:
            return merged
        step = Op("cat", (), (), (("dim", dim),))
        types = [part.type for part in parts]
        shape = list(types[0].shape)
        shape[dim] = sum(found.shape[dim] for found in types)
        want = TensorType(tuple(shape), types[0].dtype)
        return self.apply(step, list(parts), [want])[0].relation

    # steps -------------------------------------------------------------------------------------------

    def apply(
        self, step: Op, operands: list[Operand], types: list[TensorType], want: Relation | None = None
    ) -> list[Held]:
        """What a step's results are in logical values; `want` chooses where several answers are right."""
        return self._made(_Call(step, _given(step, operands), operands, types, want, False))

    def _made(self, call: _Call) -> list[Held]:
        if call.step.op in _VIEWS:  # one op in one spelling
            shape = call.types[0].shape
            step = Op("view", call.step.args, call.step.outs, (("size", shape),), call.step.note)
            call = replace(call, step=step, given={"size": shape})
        for way in (self._passes, self._constant, self._linear):
            found = way(call)
            if found is not None:
                return [Held(call.types[0], found)]
        if self.targets and call.step.op in ("nll_loss_forward", "nll_loss_backward"):
            return self._mean_loss(call)
        return self._general(call)

    def _mean_loss(self, call: _Call) -> list[Held]:
        """A mean loss of which every sample counts: the sum over their number, which is the total weight."""
        op, given, target = call.step.op, call.given, call.operands[1 if call.step.op == "nll_loss_forward" else 2]
        weight = call.operands[2 if op == "nll_loss_forward" else 3]
        assert isinstance(target, Held)
        if given["reduction"] != 1 or weight is not None or len(target.type.shape) != 1 or not target.type.shape[0]:
            return self._general(call)
        summed = replace(call, given={**given, "reduction": 2})
        if op == "nll_loss_forward":
            (loss, _), count = self._general(summed), target.type.shape[0]
            found = Held(loss.type, scaled(loss.relation, Fraction(1, count)))
            return [found, Held(call.types[1], self._filled(float(count), call.types[1]))]
        total = self._factor(call.operands[4])
        if not total:
            return self._general(call)
        one = Held(_type(call.operands[4]), self._filled(1.0, _type(call.operands[4])))
        made = self._general(replace(summed, operands=[*call.operands[:4], one]))
        return [Held(item.type, scaled(item.relation, 1 / total)) for item in made]

    def _passes(self, call: _Call) -> Relation | None:
        """Steps that make no new value: copies, slices of a dim, parts joined again."""
        op, given, first = call.step.op, call.given, call.operands[0] if call.operands else None
        if not isinstance(first, Held):
            return None
        if op == "copy" or (op == "_to_copy" and call.types[0].dtype == first.type.dtype):
            return first.relation
        if op in ("view", "expand") and call.types[0] == first.type:
            return first.relation
        if op == "view" and (back := self._viewed_back(first, call.types[0])) is not None:
            return back
        if op == "slice" and first.type.shape:
            terms = [(term, slice_of(given, term.region)) for term in first.relation.terms]
            kept = tuple(replace(term, region=region) for term, region in terms if region is not None)
            fits = len(kept) == len(terms) and shape_of(kept[0].region) == call.types[0].shape
            return self._tidy(Relation(kept)) if fits else None
        parts = [item for item in call.operands if isinstance(item, Held)]
        if op == "cat" and len({item.type.dtype for item in parts}) == 1:
            return self._merge(parts, given["dim"] % len(call.types[0].shape))
        return None

    def _viewed_back(self, held: Held, found: TensorType) -> Relation | None:
        """A view of a view, as what was viewed first or as a view of that."""
        term = held.relation.single
        if term is None or self.values[term.node].op != "view":
            return None
        value = self.values[term.node]
        (operand,) = value.operands
        assert isinstance(operand, tuple)
        node, outer, coef = operand
        places = regrouped(term.region, value.type.shape, shape_of(outer))
        if places is None:
            return None
        region = tuple(select(index, place) for index, place in zip(outer, places, strict=True))
        limit = None if term.limit is None else dict(term.limit.through)[0]
        relation = Relation((Term(node, self.spelled(node, region), term.coef * coef, limit),))
        inner = Held(TensorType(shape_of(region), held.type.dtype), relation)
        if inner.type.shape == found.shape:
            return relation
        step = Op("view", (), (), (("size", found.shape),))
        return self._made(_Call(step, _given(step, [inner]), [inner], [found], None, True))[0].relation if (
            self.is_whole(node, region)
        ) else self.apply(step, [inner], [found])[0].relation

    def _constant(self, call: _Call) -> Relation | None:
        """One number everywhere, and moves of it."""
        found, op = call.types[0], call.step.op
        if op == "full":
            return self._filled(call.given["fill_value"], found)
        held = [item for item in call.operands if isinstance(item, Held)]
        terms = [item.relation.single for item in held]
        if op not in _MOVES or len(held) != len(call.operands) or not terms or terms[0] is None:
            return None
        node, coef = terms[0].node, terms[0].coef
        if self.values[node].op != "full" or held[0].type.dtype != found.dtype:
            return None
        if any(term is None or (term.node, term.coef) != (node, coef) for term in terms[1:]):
            return None
        return scaled(self._filled(self.values[node].given["fill_value"], found), coef)

    def _filled(self, value: Number, found: TensorType) -> Relation:
        """A number in every element of a type: a multiple of ones, or of a number that is no factor."""
        factor = exact(value) if found.dtype in FLOATS else None
        value = 1.0 if factor else 0.0 if factor is not None else value
        rank = len(found.shape)
        one = TensorType((1,) * rank, found.dtype)
        key = ("full", rank, found.dtype, number(value))
        node = self.put(Value("full", {"fill_value": value}, (), 0, one, None, frozenset(range(rank))), key)
        return Relation((Term(node, self.spelled(node, whole_region(found.shape)), factor or ONE),))

    def _linear(self, call: _Call) -> Relation | None:
        """Linear combinations of whole operands: sums, differences, multiples; products with a bias."""
        if call.types[0].dtype not in FLOATS:
            return None
        parts = self._parts(call)
        summed = None if parts is None else total(parts)
        if summed is None:
            return None
        kept = tuple(term for term in summed.terms if not self._is_zero(term))
        summed = Relation(kept) if kept else summed
        return self.sum_of(summed, call.types[0]) if call.own else self.resolve(summed)

    def _is_zero(self, term: Term) -> bool:
        value = self.values[term.node]
        return value.op == "full" and value.type.dtype in FLOATS and value.given["fill_value"] == 0

    def _general(self, call: _Call) -> list[Held]:
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
                self._general(
                    replace(call, operands=_with(call.operands, at, Held(held.type, Relation((term,)))))
                )
                for term in held.relation.terms
            ]
            sums = [total([(ONE, row[out].relation) for row in rows]) for out in range(len(call.types))]
            if all(item is not None for item in sums):
                return [
                    Held(t, self.resolve(s)) for t, s in zip(call.types, sums, strict=True) if s is not None
                ]
        terms = [self._single(item) for item in call.operands]
        factor, core, limits = self._parted(call, terms)
        found = self._match(call, core) or self._new(call, core)
        node, derived, order = found
        through = [(order.index(at), limit) for at, limit in limits.items()]
        made: list[Held] = []
        for out, (part, want) in enumerate(zip(derived, call.types, strict=True)):
            region = self.spelled(node + out, part.region)
            term = Term(node + out, region, factor * part.coef, limited(part.shares, through))
            made.append(Held(want, Relation((term,))))
        return made

    def _leads_through(self, call: _Call, at: int) -> bool:
        held = call.operands[at]
        assert isinstance(held, Held)
        return (
            held.relation.limited
            and len(held.relation.terms) <= MAX_TERMS
            and at in alone(call.step.op, call.given, call.operands)
            and _all_float(call, [at])
        )

    def _single(self, operand: Operand) -> Term | Number:
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

    def _all_of(self, node: int, region: Region) -> Region:
        value = self.values[node]
        full = whole_region(value.type.shape)
        return tuple(region[dim] if dim in value.free else full[dim] for dim in range(len(region)))

    def _parted(
        self, call: _Call, terms: list[Term | Number]
    ) -> tuple[Fraction, list[Term | Number], dict[int, Limit]]:
        """The factor that comes out, what the op is done on, and the limits that go through it."""
        op, given = call.step.op, call.given
        one = alone(op, given, call.operands)
        all_ = together(op, given, call.operands)
        factor, core, limits = ONE, list(terms), dict[int, Limit]()
        held = {at: item for at, item in enumerate(terms) if isinstance(item, Term)}
        for at in sorted(one & held.keys()):
            term = held[at]
            if term.coef != 1 and _all_float(call, [at]):
                factor *= term.coef
                core[at] = replace(term, coef=ONE)
        if all_ and all_ <= held.keys() and _all_float(call, sorted(all_)):
            coefs = {held[at].coef for at in all_}
            if len(coefs) == 1:
                factor *= coefs.pop()
                for at in all_:
                    core[at] = replace(held[at], coef=ONE)
        bound = {at for at, item in held.items() if item.limit is not None}
        alike = all(isinstance(core[at], Term) and core[at].coef == 1 for at in bound)  # type: ignore[union-attr]
        passes = len(bound) == 1 and bound <= one
        passes = (passes or (bool(all_) and bound == all_)) and alike and _all_float(call, sorted(bound))
        for at in bound:
            term = core[at]
            assert isinstance(term, Term) and term.limit is not None
            if passes:
                limits[at] = term.limit
                core[at] = replace(term, limit=None)
            else:
                held_type = call.operands[at]
                assert isinstance(held_type, Held)
                core[at] = self.ghost(("addend", held[at]), held_type.type).terms[0]
        return factor, core, limits

    # values ------------------------------------------------------------------------------------------

    def _name(self, label: str, held: Held) -> None:
        self.names[label] = held
        term = held.relation.single
        if term is not None and self.is_whole(term.node, term.region):
            self.labels.setdefault(term.node, (label, term.coef))

    def _new(self, call: _Call, terms: list[Term | Number]) -> tuple[int, list[Derived], tuple[int, ...]]:
        """Make the step's results values of their own: of whole operands if its rule then tells the part."""
        order = tuple(range(len(terms)))
        parts = [item for item in terms if isinstance(item, Term)]
        if not call.own and any(not self.is_whole(item.node, item.region) for item in parts):
            whole = [
                replace(t, region=self._all_of(t.node, t.region)) if isinstance(t, Term) else t for t in terms
            ]
            types = [
                TensorType(shape_of(t.region), self.values[t.node].type.dtype) if isinstance(t, Term) else t
                for t in whole
            ]
            lifted = self._lifted(call, parts)
            try:
                found = infer_step(replace(call.step, attrs=tuple(lifted.items())), types)
            except TensureError:
                found = []
            if found:
                node = self._put(replace(call, given=lifted), whole, found)
                derived = self._fits(call, terms, node)
                if derived is not None:
                    return node, derived, order
        node = self._put(call, terms, call.types)
        return node, [Derived(whole_region(found.shape)) for found in call.types], order

    def _lifted(self, call: _Call, parts: list[Term]) -> dict[str, Any]:
        """The attributes that the step would have on whole operands, as far as they tell a shape."""
        if call.step.op != "view":
            return call.given
        shape = viewed_whole(parts[0].region, self.values[parts[0].node].type.shape, call.types[0].shape)
        return call.given if shape is None else {"size": shape}

    def _put(self, call: _Call, terms: list[Term | Number], types: list[TensorType]) -> int:
        op, given = call.step.op, call.given
        pairs = tuple(
            (item.node, self.spelled(item.node, item.region), item.coef)
            if isinstance(item, Term)
            else number(item)
            for item in terms
        )
        held = [(self.values[t.node], shape_of(t.region)) if isinstance(t, Term) else None for t in terms]
        told = {"rank": len(given["size"])} if op == "expand" else given
        nodes: list[int] = []
        for out, found in enumerate(types):
            free = (
                repeating(op, given, held, found.shape) if out == 0 and len(types) == 1 else frozenset[int]()
            )
            key = (op, repr(sorted(told.items())), pairs, out, len(types))
            nodes.append(self.put(Value(op, given, pairs, out, found, None, free), key))
        return nodes[0]

    def _match(
        self, call: _Call, terms: list[Term | Number]
    ) -> tuple[int, list[Derived], tuple[int, ...]] | None:
        """A value this op's results are parts of, by its rule; the wanted one if that is among them."""
        if call.own:
            return None
        op, want = call.step.op, call.want
        best: tuple[int, list[Derived], tuple[int, ...]] | None = None
        orders = [tuple(range(len(terms)))]
        if op in COMMUTATIVE and len(terms) == 2 and call.given.get("alpha", 1) == 1:
            orders.append((1, 0))
        for order in orders:
            placed = [terms[at] for at in order]
            bases = tuple((t.node, t.coef) if isinstance(t, Term) else number(t) for t in placed)
            for node in self.candidates.get((op, *bases), ()):
                derived = self._fits(call, placed, node)
                if derived is None:
                    continue
                if want is not None and any(term.node == node for term in want.terms):
                    return node, derived, order
                best = best or (node, derived, order)
        return best

    def _fits(self, call: _Call, terms: list[Term | Number], node: int) -> list[Derived] | None:
        value = self.values[node]
        parts: list[Region | None] = []
        shapes: list[tuple[int, ...] | None] = []
        for term, operand in zip(terms, value.operands, strict=True):
            if not isinstance(term, Term) or not isinstance(operand, tuple) or not is_part(operand):
                parts.append(None)
                shapes.append(None)
                continue
            places = self._within(term, operand[1])
            if places is None:
                return None
            parts.append(places)
            shapes.append(shape_of(operand[1]))
        if any(node + out >= len(self.values) for out in range(len(call.types))):
            return None
        outs = [self.values[node + out] for out in range(len(call.types))]
        if any(item.op != call.step.op or item.out != out for out, item in enumerate(outs)):
            return None
        derived = derive(
            call.step.op, call.given, dict(value.given), shapes, parts, [item.type.shape for item in outs]
        )
        if derived is None or any(
            shape_of(part.region) != found.shape or item.type.dtype != found.dtype
            for part, found, item in zip(derived, call.types, outs, strict=True)
        ):
            return None
        return derived

    def _within(self, term: Term, outer: Region) -> Region | None:
        """Where the region a step reads stands in the one the value was made from."""
        free = self.values[term.node].free
        places: list[Index] = []
        for dim, (mine, theirs) in enumerate(zip(term.region, outer, strict=True)):
            place = free_index(mine) if dim in free else relative(mine, theirs)
            if place is None:
                return None
            places.append(place)
        return tuple(places)

    # moves -------------------------------------------------------------------------------------------

    def _tidy(self, relation: Relation) -> Relation:
        """Parts of joined values as parts of what they were joined from."""
        if all(self.values[term.node].op != "cat" for term in relation.terms):
            return relation
        return Relation(tuple(self._tidied(term) for term in relation.terms))

    def _tidied(self, term: Term) -> Term:
        while (value := self.values[term.node]).op == "cat":
            dim, start = value.given["dim"] % len(term.region), 0
            for at, operand in enumerate(value.operands):
                assert isinstance(operand, tuple)
                node, outer, coef = operand
                size = shape_of(outer)[dim]
                mine = term.region[dim]
                if mine and all(start <= lo and hi <= start + size for lo, hi in mine):
                    places = (
                        *term.region[:dim],
                        tuple((lo - start, hi - start) for lo, hi in mine),
                        *term.region[dim + 1 :],
                    )
                    region = tuple(select(index, place) for index, place in zip(outer, places, strict=True))
                    limit = None if term.limit is None else dict(term.limit.through).get(at)
                    term = Term(node, self.spelled(node, region), term.coef * coef, limit)
                    break
                start += size
            else:
                return term
        return term

    def _merge(self, parts: list[Held], dim: int) -> Relation | None:
        """Tensors one after another as regions of the same values, or None."""
        parts = [part for part in parts if part.type.shape[dim]] or parts[:1]
        first = parts[0].relation
        if any(len(part.relation.terms) != len(first.terms) for part in parts):
            return None
        columns = list(zip(*(part.relation.terms for part in parts), strict=True))
        if any(len({_but(term, dim) for term in column}) != 1 for column in columns):
            return None
        return Relation(
            tuple(
                replace(
                    column[0],
                    region=self.spelled(
                        column[0].node,
                        (
                            *column[0].region[:dim],
                            joined(term.region[dim] for term in column),
                            *column[0].region[dim + 1 :],
                        ),
                    ),
                )
                for column in columns
            )
        )

    # linear steps ------------------------------------------------------------------------------------

    def _parts(self, call: _Call) -> list[tuple[Fraction, Relation]] | None:
        """Factors and relations of a linear step; None where it is not one."""
        op, given, operands, found = call.step.op, call.given, call.operands, call.types[0]
        if op in ("addmm", "baddbmm") or (op == "linear" and len(operands) == 3 and operands[2] is not None):
            return self._biased(call)
        if op in ("mul", "div"):
            return self._multiple(call)
        signs = _signs(op, given, len(operands))
        if signs is None:
            return None
        parts: list[tuple[Fraction, Relation]] = []
        for by, item in zip(signs, operands, strict=True):
            relation = self._spread(item, found, call.own)
            if relation is None:
                return None
            parts.append((by, relation))
        return parts

    def _spread(self, item: Operand, found: TensorType, own: bool) -> Relation | None:
        """An operand of a sum in the sum's own shape."""
        if not isinstance(item, Held):
            return self._filled(item, found) if exact(item) is not None else None
        if item.type.dtype != found.dtype:
            return None
        if item.type.shape == found.shape:
            return item.relation
        step = Op("expand", (), (), (("size", found.shape),))
        return self._made(_Call(step, _given(step, [item]), [item], [found], None, own))[0].relation

    def _multiple(self, call: _Call) -> list[tuple[Fraction, Relation]] | None:
        """One operand is a number, or one number everywhere."""
        op, found = call.step.op, call.types[0]
        orders = [(0, 1)] if op == "div" else [(0, 1), (1, 0)]
        if op == "div" and call.given.get("rounding_mode") is not None:
            return None
        for one, other in orders:
            held, factor = call.operands[one], self._factor(call.operands[other])
            if not isinstance(held, Held) or not factor or held.type != found:
                continue
            return [(1 / factor if op == "div" else factor, held.relation)]
        return None

    def _factor(self, item: Operand) -> Fraction | None:
        if not isinstance(item, Held):
            return exact(item)
        term = item.relation.single
        value = None if term is None or term.limit is not None else self.values[term.node]
        if term is None or value is None or value.op != "full" or value.type.dtype not in FLOATS:
            return None
        number_ = exact(value.given["fill_value"])
        return None if number_ is None else term.coef * number_

    def _biased(self, call: _Call) -> list[tuple[Fraction, Relation]] | None:
        """A product and a bias, which are two things."""
        op, given, found = call.step.op, call.given, call.types[0]
        if op == "linear":
            product, bias, by, beta = call.operands[:2], call.operands[2], ONE, ONE
        else:
            product, bias = call.operands[1:], call.operands[0]
            by, beta = exact(given["alpha"]) or Fraction(0), exact(given["beta"]) or Fraction(0)
        spread = self._spread(bias, found, call.own)
        if not by or not beta or spread is None:
            return None
        step = Op({"addmm": "mm", "baddbmm": "bmm"}.get(op, op), (), (), ())
        args: list[Operand] = [*product, None] if op == "linear" else list(product)
        made = self._made(_Call(step, _given(step, args), args, [found], None, call.own))
        return [(beta, spread), (by, made[0].relation)]


_VIEWS: Final = frozenset(["view", "reshape", "flatten"])
_MOVES: Final = frozenset(
    "view reshape flatten permute transpose t unsqueeze squeeze select expand slice cat stack flip roll repeat copy".split()
)


def _signs(op: str, given: dict[str, Any], count: int) -> list[Fraction] | None:
    alpha = exact(given.get("alpha", 1))
    if alpha is None or not alpha:
        return None
    known = {"add": [ONE, alpha], "sub": [ONE, -alpha], "rsub": [-alpha, ONE], "neg": [-ONE]}
    return [ONE] * count if op == "add_n" else known.get(op)


def _all_float(call: _Call, places: list[int]) -> bool:
    """Factors and addends are of real numbers."""
    held = [call.operands[at] for at in places]
    return all(found.dtype in FLOATS for found in call.types) and all(
        isinstance(item, Held) and item.type.dtype in FLOATS for item in held
    )


def _with(operands: list[Operand], at: int, item: Operand) -> list[Operand]:
    return [*operands[:at], item, *operands[at + 1 :]]


def _given(step: Op, operands: list[Operand]) -> dict[str, Any]:
    return bind_op(lookup(step.op), [_type(operand) for operand in operands], dict(step.attrs))


def _type(operand: Operand) -> Any:
    return operand.type if isinstance(operand, Held) else operand


def _but(term: Term, dim: int) -> tuple[object, ...]:
    return (term.node, term.coef, term.limit, term.region[:dim], term.region[dim + 1 :])
