"""Whether a step's results are parts of a value that is there already; and if not, what is made of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from tensure.errors import TensureError
from tensure.program import TensorType, axes_in, infer_op

from ._index import Index, Region, free_index, length, relative, shape_of, whole, whole_region
from ._movement import viewed_whole
from ._pieces import Pieces
from ._relation import Term
from ._repeats import repeating
from ._rules import ELEMENTWISE, derive
from ._steps import Call, Number
from ._training import Derived
from ._values import Value, is_part, number

COMMUTATIVE: Final = frozenset({"add", "mul", "maximum", "minimum"})


class Matching(Pieces):
    """Values by op and operands: found by the rule for their op, or put down."""

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[object, list[Derived] | None] = {}
        self._kinds: dict[int, int] = {}
        self._numbers: dict[object, int] = {}

    def _match(
        self, call: Call, terms: list[Term | Number]
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
                # All of a value before a part of a longer one: numbers counted up are part of many.
                is_all = not terms and derived[0].region == whole_region(self.values[node].type.shape)
                if best is None or is_all:
                    best = (node, derived, order)
        return best

    def _fits(self, call: Call, terms: list[Term | Number], node: int) -> list[Derived] | None:
        """What the step makes of the value, by the rule for its op: asked once of all that are made alike."""
        if len(call.types) > 1:
            return self._derived(call, terms, node)
        held = [(t.region, self.values[t.node].free) if isinstance(t, Term) else None for t in terms]
        key = (self._kind(node), repr(call.given), call.types[0], *held)
        if key not in self._known:
            self._known[key] = self._derived(call, terms, node)
        return self._known[key]

    def _kind(self, node: int) -> int:
        """A number for all values that are made alike, but for what they are made of."""
        if node not in self._kinds:
            value = self.values[node]
            operands = [
                item[1] if isinstance(item, tuple) and is_part(item) else None for item in value.operands
            ]
            key = (value.op, repr(value.given), value.out, value.type, *operands)
            self._kinds[node] = self._numbers.setdefault(key, len(self._numbers))
        return self._kinds[node]

    def _derived(self, call: Call, terms: list[Term | Number], node: int) -> list[Derived] | None:
        value = self.values[node]
        parts: list[Region | None] = []
        shapes: list[tuple[int, ...] | None] = []
        for term, operand in zip(terms, value.operands, strict=True):
            if not isinstance(term, Term) or not isinstance(operand, tuple) or not is_part(operand):
                parts.append(None)
                shapes.append(None)
                continue
            places = self.within(term, operand[1])
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

    def within(self, term: Term, outer: Region) -> Region | None:
        """Where the region a step reads stands in the one the value was made from."""
        free = self.values[term.node].free
        places: list[Index] = []
        for dim, (mine, theirs) in enumerate(zip(term.region, outer, strict=True)):
            place = free_index(mine) if dim in free else relative(mine, theirs)
            if place is None:
                return None
            places.append(place)
        return tuple(places)

    # new values --------------------------------------------------------------------------------------

    def _new(self, call: Call, terms: list[Term | Number]) -> tuple[int, list[Derived], tuple[int, ...]]:
        """Make the step's results values of their own: of whole operands if its rule then tells the part."""
        order = tuple(range(len(terms)))
        parts = [item for item in terms if isinstance(item, Term)]
        for wholes in () if call.own else self._wider(terms, parts):
            if call.step.op in ELEMENTWISE:
                wholes = self._lengthened(wholes, terms)
            types = [
                TensorType(shape_of(t.region), self.values[t.node].type.dtype) if isinstance(t, Term) else t
                for t in wholes
            ]
            lifted = self._lifted(call, parts)
            try:
                found = infer_op(call.step.op, types, lifted)
            except TensureError:
                continue
            node = self._put(replace(call, given=lifted), wholes, found)
            derived = self._fits(call, terms, node)
            if derived is not None:
                return node, derived, order
        node = self._put(call, terms, call.types)
        return node, [Derived(whole_region(found.shape)) for found in call.types], order

    def _wider(self, terms: list[Term | Number], parts: list[Term]) -> Iterator[list[Term | Number]]:
        """Operands that these are parts of: whole, or whole along dims where each place has its own."""
        if all(self.is_whole(item.node, item.region) for item in parts):
            return
        yield [replace(t, region=self._all_of(t.node, t.region)) if isinstance(t, Term) else t for t in terms]
        if any(axes_in(item.region) for item in parts):
            yield [replace(t, region=self._all_apart(t)) if isinstance(t, Term) else t for t in terms]

    def _all_of(self, node: int, region: Region) -> Region:
        value = self.values[node]
        full = whole_region(value.type.shape)
        return tuple(region[dim] if dim in value.free else full[dim] for dim in range(len(region)))

    def _all_apart(self, term: Term) -> Region:
        full = self._all_of(term.node, term.region)
        return tuple(all_ if axes_in(index) else index for index, all_ in zip(term.region, full, strict=True))

    def _lengthened(self, wholes: list[Term | Number], parts: list[Term | Number]) -> list[Term | Number]:
        """What only repeats along a dim made as long there as its neighbour's whole."""
        sizes: dict[tuple[int, int], int] = {}  # by place from the right and size of the part
        pairs = [(w, p) for w, p in zip(wholes, parts, strict=True) if isinstance(w, Term)]
        for made, part in pairs:
            free = self.values[made.node].free
            for back in range(1, len(made.region) + 1):
                if len(made.region) - back not in free and isinstance(part, Term):
                    sizes[back, length(part.region[-back])] = length(made.region[-back])
        return [
            replace(
                item,
                region=tuple(
                    whole(sizes.get((len(item.region) - dim, length(index)), length(index)))
                    if dim in self.values[item.node].free and length(index) > 1
                    else index
                    for dim, index in enumerate(item.region)
                ),
            )
            if isinstance(item, Term)
            else item
            for item in wholes
        ]

    def _lifted(self, call: Call, parts: list[Term]) -> dict[str, Any]:
        """The attributes that the step would have on whole operands, as far as they tell a shape."""
        if call.step.op == "expand":
            (part,), size = parts, list(call.types[0].shape)
            skip, full = len(size) - len(part.region), self.values[part.node].type.shape
            for dim, index in enumerate(part.region):
                if dim not in self.values[part.node].free and length(index) == size[skip + dim]:
                    size[skip + dim] = full[dim]
            return {"size": tuple(size)}
        if call.step.op != "view":
            return call.given
        shape = viewed_whole(parts[0].region, self.values[parts[0].node].type.shape, call.types[0].shape)
        return call.given if shape is None else {"size": shape}

    def _put(self, call: Call, terms: list[Term | Number], types: list[TensorType]) -> int:
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
        fresh = False
        for out, found in enumerate(types):
            free = (
                repeating(op, given, held, found.shape) if out == 0 and len(types) == 1 else frozenset[int]()
            )
            key = (op, repr(sorted(told.items())), pairs, out, len(types))
            count = len(self.values)
            nodes.append(self.put(Value(op, given, pairs, out, found, None, free), key))
            fresh = fresh or nodes[-1] == count
        if fresh:
            for node in nodes:
                self._equate(node)
        return nodes[0]

    def _equate(self, node: int) -> None:
        """What a new value is in terms of others."""
        raise NotImplementedError
