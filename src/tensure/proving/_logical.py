"""The logical values of one invocation, each known by how it is made, and the engine that derives relations.

Values are found by congruence: the same op with the same attributes on the same operands is the same
value, whatever its name and wherever it stands. Copies, slices and boxes make no new values, only
regions. `Logical` first takes the Program's own steps (each makes a value), then answers, for a
step on parts, which parts of which values come out. A step that fits no value of the Program makes a
*ghost*: a value of its own, equal only to itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Final, TypeAlias

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

from ._index import Index, Region, cut, joined, relative, shape_of, whole_region
from ._movement import slice_of
from ._relation import ONE, Relation, Term, combined, narrowed, plain
from ._rules import Derived, derive

Number: TypeAlias = "int | float | bool | None"
Key: TypeAlias = tuple[object, ...]
FLOATS: Final = frozenset({"f64", "f32", "f16", "bf16"})
COMMUTATIVE: Final = frozenset({"add", "mul", "maximum", "minimum"})
LINEAR: Final = frozenset({"add", "sub", "rsub", "add_n", "neg", "mul", "div"})


@dataclass(frozen=True, slots=True)
class Held:
    """A tensor as the engine carries it: its type and its relation to logical values."""

    type: TensorType
    relation: Relation


Operand: TypeAlias = "Held | Number"


@dataclass(frozen=True, slots=True)
class Value:
    """One logical value: how it is made. `operands` are (value, region) pairs and numbers."""

    op: str
    given: Mapping[str, Any]
    operands: tuple[object, ...]
    out: int
    type: TensorType
    form: Mapping[int, Fraction] | None = None
    """As a linear combination of values that are none themselves."""


class Logical:
    """Every value of one invocation of a Program, and every ghost met since."""

    def __init__(self, program: Program, entry: str, env: Mapping[str, int]) -> None:
        self.values: list[Value] = []
        self.names: dict[str, Held] = {}
        self.labels: dict[int, str] = {}
        self._by_key: dict[Key, int] = {}
        self._candidates: dict[Key, list[int]] = {}
        self._forms: dict[Key, int] = {}
        for label, want, _ in leaves(program, entry, env):
            node = self._value("leaf", {"name": label}, (), 0, want, ("leaf", label))
            self._name(label, Held(want, plain(node, whole_region(want.shape))))
        for step in expand(program.blocks, program.entry(entry).body, env):
            operands = [self.operand(arg, self.named) for arg in step.args]
            types = infer_step(step, [_type(operand) for operand in operands])
            made = self._define(step, operands, types)
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
            found, relation = box_type(arg, held.type), held.relation
            for dim, lo, hi in arg.box:
                assert isinstance(lo, int) and isinstance(hi, int)
                indexes = {term.region[dim]: cut(term.region[dim], lo, hi) for term in relation.terms}
                relation = narrowed(relation, dim, indexes)
            return Held(found, relation)
        if isinstance(arg, Cat):
            parts = [self.operand(part, get) for part in arg.parts]
            found = joined_type(arg, [_type(part) for part in parts])
            return Held(found, self.join([part for part in parts if isinstance(part, Held)], arg.dim))
        assert arg is None or isinstance(arg, (bool, int, float))
        return arg

    def join(self, parts: list[Held], dim: int) -> Relation:
        """Tensors one after another along a dim: a region again where they are parts of one value."""
        merged = merge(parts, dim)
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
        given = _given(step, operands)
        passed = self._passes(step, given, operands, types)
        if passed is not None:
            return passed
        if all(not isinstance(item, Held) or item.relation.simple for item in operands):
            found = self._derived(step.op, given, [self._simple(item) for item in operands], types, want)
            if found is not None:
                return found
        if step.op in LINEAR and types[0].dtype in FLOATS:
            parts = _linear_parts(step.op, given, operands, types[0])
            summed = None if parts is None else combined(parts)
            if summed is not None:
                return [Held(types[0], self.resolve(summed))]
        found = self._derived(step.op, given, [self._simple(operand) for operand in operands], types, want)
        return found if found is not None else self._define(step, operands, types)

    def resolve(self, relation: Relation) -> Relation:
        """A sum of values written as the one value it is, where there is one."""
        region = relation.terms[0].region
        if relation.simple or any(term.share is not None or term.region != region for term in relation.terms):
            return relation
        node = self._forms.get(_form_key(self._expand(relation)))
        return relation if node is None else plain(node, region)

    def ghost(self, key: Key, found: TensorType) -> Relation:
        """A value equal only to itself: what is none of the Program's."""
        node = self._value("ghost", {}, (), 0, found, ("ghost", *key))
        return plain(node, whole_region(found.shape))

    def same(self, one: Relation, other: Relation) -> bool:
        """Are two relations the same sum? Sums of sums are opened first."""
        return one == other or self._open(one) == self._open(other)

    # helpers -----------------------------------------------------------------------------------------

    def _name(self, label: str, held: Held) -> None:
        self.names[label] = held
        term = held.relation.terms[0]
        if held.relation.simple is not None and term.region == whole_region(
            self.values[term.node].type.shape
        ):
            self.labels.setdefault(term.node, label)

    def _value(
        self,
        op: str,
        given: Mapping[str, Any],
        operands: tuple[object, ...],
        out: int,
        found: TensorType,
        key: Key,
        form: Mapping[int, Fraction] | None = None,
    ) -> int:
        if key in self._by_key:
            return self._by_key[key]
        node = len(self.values)
        self.values.append(Value(op, given, operands, out, found, form))
        self._by_key[key] = node
        if out == 0:
            self._candidates.setdefault((op, *map(_base, operands)), []).append(node)
        if form is not None:
            self._forms.setdefault(_form_key(form), node)
        return node

    def _define(self, step: Op, operands: list[Operand], types: list[TensorType]) -> list[Held]:
        """Make the step's results values of their own (again, if it is the same step)."""
        given = _given(step, operands)
        passed = self._passes(step, given, operands, types)
        if passed is not None:
            return passed
        terms = [self._simple(operand) for operand in operands]
        pairs = tuple((item.node, item.region) if isinstance(item, Term) else _number(item) for item in terms)
        form = self._form(step, given, operands, types[0])
        made: list[Held] = []
        for out, found in enumerate(types):
            key = (step.op, repr(sorted(given.items())), pairs, out, len(types))
            node = self._value(step.op, given, pairs, out, found, key, form if out == 0 else None)
            made.append(Held(found, plain(node, whole_region(found.shape))))
        return made

    def _passes(
        self, step: Op, given: dict[str, Any], operands: list[Operand], types: list[TensorType]
    ) -> list[Held] | None:
        """Steps that make no new value: copies, and slices of a dim."""
        first = operands[0] if operands else None
        if not isinstance(first, Held):
            return None
        if step.op == "copy" or (step.op == "_to_copy" and types[0].dtype == first.type.dtype):
            return [Held(types[0], first.relation)]
        if step.op == "slice" and first.type.shape:
            terms = [(term, slice_of(given, term.region)) for term in first.relation.terms]
            kept = tuple(replace(term, region=region) for term, region in terms if region is not None)
            fits = len(kept) == len(terms) and shape_of(kept[0].region) == types[0].shape
            return [Held(types[0], Relation(kept))] if fits else None
        parts = [item for item in operands if isinstance(item, Held)]
        if step.op == "cat" and len({item.type.dtype for item in parts}) == 1:
            merged = merge(parts, given["dim"] % len(types[0].shape))
            return None if merged is None else [Held(types[0], merged)]
        return None

    def _simple(self, operand: Operand) -> Term | Number:
        """One plain term for an operand: sums are looked up, and what is none becomes a ghost."""
        if not isinstance(operand, Held):
            return operand
        found = self.resolve(operand.relation)
        if found.simple is not None:
            return found.simple
        return self.ghost(("sum", found.terms), operand.type).terms[0]

    def _form(
        self, step: Op, given: dict[str, Any], operands: list[Operand], found: TensorType
    ) -> dict[int, Fraction] | None:
        """The linear form of a value made by a linear step on whole values of its own shape."""
        if step.op not in LINEAR or found.dtype not in FLOATS:
            return None
        parts = _linear_parts(step.op, given, operands, found)
        if parts is None:
            return None
        for _, relation in parts:
            for term in relation.terms:
                if term.share is not None or term.region != whole_region(self.values[term.node].type.shape):
                    return None
        summed = combined(parts)
        return None if summed is None else self._expand(summed)

    def _expand(self, relation: Relation) -> dict[int, Fraction]:
        sums: dict[int, Fraction] = {}
        for term in relation.terms:
            for node, coef in (self.values[term.node].form or {term.node: ONE}).items():
                sums[node] = sums.get(node, Fraction(0)) + coef * term.coef
        return {node: coef for node, coef in sums.items() if coef}

    def _open(self, relation: Relation) -> Relation | None:
        return combined(
            (
                term.coef,
                Relation(
                    tuple(
                        Term(node, term.region, coef)
                        for node, coef in (self.values[term.node].form or {term.node: ONE}).items()
                    )
                )
                if term.share is None
                else Relation((replace(term, coef=ONE),)),
            )
            for term in relation.terms
        )

    def _derived(
        self,
        op: str,
        given: dict[str, Any],
        terms: list[Term | Number],
        types: list[TensorType],
        want: Relation | None,
    ) -> list[Held] | None:
        found = self._match(op, given, terms, types, want)
        if found is None:
            return None
        node, derived = found
        return [
            Held(want_type, Relation((Term(node + out, part.region, part.coef, part.share),)))
            for out, (part, want_type) in enumerate(zip(derived, types, strict=True))
        ]

    def _match(
        self,
        op: str,
        given: dict[str, Any],
        terms: list[Term | Number],
        types: list[TensorType],
        want: Relation | None,
    ) -> tuple[int, list[Derived]] | None:
        """A value this op's results are parts of, by its rule; the wanted one if that is among them."""
        best: tuple[int, list[Derived]] | None = None
        orders = [tuple(range(len(terms)))]
        if op in COMMUTATIVE and len(terms) == 2 and given.get("alpha", 1) == 1:
            orders.append((1, 0))
        for order in orders:
            placed = [terms[at] for at in order]
            bases = tuple(item.node if isinstance(item, Term) else _number(item) for item in placed)
            for node in self._candidates.get((op, *bases), ()):
                derived = self._fits(op, given, placed, node, types)
                if derived is None:
                    continue
                if want is not None and any(term.node == node for term in want.terms):
                    return node, derived
                best = best or (node, derived)
        return best

    def _fits(
        self, op: str, given: dict[str, Any], terms: list[Term | Number], node: int, types: list[TensorType]
    ) -> list[Derived] | None:
        value = self.values[node]
        parts: list[Region | None] = []
        shapes: list[tuple[int, ...] | None] = []
        for term, operand in zip(terms, value.operands, strict=True):
            if not isinstance(term, Term):
                parts.append(None)
                shapes.append(None)
                continue
            outer = operand[1] if isinstance(operand, tuple) else ()
            places: list[Index] = []
            for mine, theirs in zip(term.region, outer, strict=True):
                place = relative(mine, theirs)
                if place is None:
                    return None
                places.append(place)
            parts.append(tuple(places))
            shapes.append(shape_of(outer))
        if any(node + out >= len(self.values) for out in range(len(types))):
            return None
        outs = [self.values[node + out] for out in range(len(types))]
        if any(item.op != op or item.out != out for out, item in enumerate(outs)):
            return None
        derived = derive(op, given, dict(value.given), shapes, parts, [item.type.shape for item in outs])
        if derived is None or any(
            shape_of(part.region) != found.shape or item.type.dtype != found.dtype
            for part, found, item in zip(derived, types, outs, strict=True)
        ):
            return None
        return derived


def merge(parts: list[Held], dim: int) -> Relation | None:
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
                region=(
                    *column[0].region[:dim],
                    joined(term.region[dim] for term in column),
                    *column[0].region[dim + 1 :],
                ),
            )
            for column in columns
        )
    )


def _given(step: Op, operands: list[Operand]) -> dict[str, Any]:
    return bind_op(lookup(step.op), [_type(operand) for operand in operands], dict(step.attrs))


def _type(operand: Operand) -> Any:
    return operand.type if isinstance(operand, Held) else operand


def _number(value: Number) -> Key:
    """Numbers are equal when their kind is too: 1, 1.0 and True are three."""
    return ("number", type(value).__name__, repr(value))


def _base(operand: object) -> object:
    return operand[0] if isinstance(operand, tuple) and operand[0] != "number" else operand


def _but(term: Term, dim: int) -> tuple[object, ...]:
    return (term.node, term.coef, term.share, term.region[:dim], term.region[dim + 1 :])


def _form_key(form: Mapping[int, Fraction]) -> Key:
    return tuple(sorted(form.items()))


def _linear_parts(
    op: str, given: dict[str, Any], operands: list[Operand], found: TensorType
) -> list[tuple[Fraction, Relation]] | None:
    """Coefficients and relations of a linear step; None where it is not one (a bias, a broadcast)."""
    tensors = [item for item in operands if isinstance(item, Held)]
    if any(item.type != found for item in tensors) or not tensors:
        return None
    if op in ("mul", "div"):
        factor = operands[1] if isinstance(operands[0], Held) else operands[0]
        if len(tensors) != 1 or isinstance(factor, (Held, bool)) or factor is None:
            return None
        if op == "div" and (given.get("rounding_mode") is not None or not isinstance(operands[0], Held)):
            return None
        exact = _exact(factor)
        if exact is None or (op == "div" and not exact):
            return None
        return [(1 / exact if op == "div" else exact, tensors[0].relation)]
    if len(tensors) != len(operands):
        return None
    alpha = _exact(given.get("alpha", 1))
    if alpha is None:
        return None
    signs: Iterable[Fraction] = {
        "add": (ONE, alpha),
        "sub": (ONE, -alpha),
        "rsub": (-alpha, ONE),
        "neg": (-ONE,),
    }.get(op, (ONE,) * len(tensors))
    return list(zip(signs, (item.relation for item in tensors), strict=True))


def _exact(value: object) -> Fraction | None:
    if isinstance(value, (int, float)) and value == value and abs(value) < 1e300:
        return Fraction(value)
    return None
