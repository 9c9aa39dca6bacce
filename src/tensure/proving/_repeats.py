"""Along which dims a value merely repeats, from how it is made.

A value that repeats along a dim is the same in any part of it, so a part needs only as many indices as
its neighbours have. Knows no values but the operands' own free dims.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

from ._contraction import TERMS, terms_of
from ._index import Shape
from ._movement import groups


class Repeats(Protocol):
    """What is asked of an operand's value."""

    @property
    def free(self) -> frozenset[int]:
        """The dims along which it repeats."""
        ...


Held: TypeAlias = "Sequence[tuple[Repeats, Shape] | None]"


def repeating(op: str, given: dict[str, Any], held: Held, out: Shape) -> frozenset[int]:
    """The free dims of an op's one result."""
    from ._rules import ELEMENTWISE

    tensors = [item for item in held if item is not None]
    if op == "expand":
        value, shape = tensors[0]
        new = len(out) - len(shape)
        return frozenset(
            dim
            for dim in range(len(out))
            if dim < new or dim - new in value.free or (shape[dim - new] == 1 and out[dim] != 1)
        )
    if not any(value.free for value, _ in tensors):
        return frozenset()
    if op in ELEMENTWISE:
        return frozenset(
            dim
            for dim in range(len(out))
            if all(_repeats(value, shape, dim - len(out) + len(shape), out[dim]) for value, shape in tensors)
        )
    if op in TERMS and (op != "linear" or len(held) < 3 or held[2] is None):
        found = terms_of(op, given, [len(shape) for _, shape in tensors])
        if found is None:
            return frozenset()
        terms, letters = found
        return frozenset(
            dim
            for dim, letter in enumerate(letters)
            if all(
                at in value.free
                for term, (value, _) in zip(terms, tensors, strict=True)
                for at, own in enumerate(term)
                if own == letter
            )
        )
    value, shape = tensors[0]
    if op == "permute":
        return frozenset(dim for dim, at in enumerate(order_of(given, len(shape))) if at in value.free)
    if op == "view":
        made: set[int] = set()
        for before, after in groups(shape, out):
            if all(dim in value.free or shape[dim] == 1 for dim in range(*before)) and any(
                dim in value.free for dim in range(*before)
            ):
                made.update(dim for dim in range(*after) if out[dim] != 1)
        return frozenset(made)
    return frozenset()


def order_of(given: dict[str, Any], rank: int) -> list[int]:
    """Which dim of the operand each dim of a permuted result is."""
    order = list(range(rank))
    if "dims" in given:
        return [dim % rank for dim in given["dims"]]
    one, other = given.get("dim0", 0) % max(rank, 1), given.get("dim1", 1) % max(rank, 1)
    if rank > 1:
        order[one], order[other] = order[other], order[one]
    return order


def _repeats(value: Repeats, shape: Shape, dim: int, size: int) -> bool:
    return dim < 0 or dim in value.free or (shape[dim] == 1 and size != 1)
