"""The steps of an entry with its parameters left open where they only size boxes and attributes.

Loops and calls are expanded once, at compile time; what may vary from call to call (`pos`, `n`) stays an
expression. A parameter that a loop bound, a splice or a name depends on cannot stay open: `NeedsValue`
names it, and the caller binds it and tries again. Knows no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from tensure.errors import LimitError, RecordError
from tensure.program import Attr, Block, Body, Call, Cat, Each, Expr, For, Int, Item, Name, Op, Ref, combine

MAX_STEPS: Final = 1 << 20
MAX_DEPTH: Final = 64

Bound = Mapping[str, Int]


class NeedsValue(Exception):
    """A parameter must be bound before the entry can be expanded: a signal inside this room."""

    def __init__(self, names: frozenset[str]) -> None:
        self.names = names
        super().__init__(", ".join(sorted(names)))


def expand_open(blocks: Mapping[str, Block], body: Body, bound: Bound) -> Iterator[Op]:
    """Every op in order; names ground, boxes and attributes perhaps open.

    `bound` maps every visible name to an integer, or to an expression of open parameters.
    """
    count = 0
    stack: list[Iterator[tuple[Item, Bound]]] = [_with(body, bound)]
    while stack:
        found = next(stack[-1], None)
        if found is None:
            stack.pop()
            continue
        item, inner = found
        if isinstance(item, Op):
            count += 1
            if count > MAX_STEPS:
                raise LimitError(f"over {MAX_STEPS} steps in one entry")
            yield _op(item, inner)
        elif len(stack) > MAX_DEPTH:
            raise LimitError(f"blocks and loops nested over {MAX_DEPTH} deep")
        else:
            stack.append(_loop(item, inner) if isinstance(item, For) else _enter(blocks, item, inner))


def substitute(value: Int, bound: Bound) -> Int:
    """An expression with names replaced by what they are bound to."""
    if isinstance(value, int):
        return value
    head, parts = value.parts()
    if not parts:
        if head not in bound:
            raise RecordError(
                f"nothing binds {head!r}", wanted=f"one of {', '.join(sorted(bound)) or 'no names'}"
            )
        return bound[head]
    return combine(head, *(substitute(part, bound) for part in parts))


def closed(value: Int, bound: Bound) -> int:
    """An integer, or NeedsValue."""
    found = substitute(value, bound)
    if isinstance(found, Expr):
        raise NeedsValue(found.names)
    return found


def _with(body: Body, bound: Bound) -> Iterator[tuple[Item, Bound]]:
    return ((item, bound) for item in body)


def _loop(item: For, bound: Bound) -> Iterator[tuple[Item, Bound]]:
    for turn in range(closed(item.lo, bound), closed(item.hi, bound)):
        inner = {**bound, item.var: turn}
        for step in item.body:
            yield step, inner


def _enter(blocks: Mapping[str, Block], item: Call, bound: Bound) -> Iterator[tuple[Item, Bound]]:
    block = blocks[item.block]
    args = {key: substitute(arg, bound) for key, arg in zip(block.params, item.args, strict=True)}
    return _with(block.body, {**bound, **args})


def _op(item: Op, bound: Bound) -> Op:
    return Op(
        item.op,
        tuple(part for arg in item.args for part in _arg(arg, bound)),
        tuple(ground(out, bound) for out in item.outs),
        tuple((key, _attr(value, bound)) for key, value in item.attrs),
        item.note,
    )


def ground(name: Name, bound: Bound) -> Name:
    """A name with integer indices, or NeedsValue."""
    return Name(name.base, tuple(closed(part, bound) for part in name.index)) if name.index else name


def _arg(arg: Any, bound: Bound) -> Iterator[Any]:
    if isinstance(arg, Ref):
        box = tuple((dim, substitute(lo, bound), substitute(hi, bound)) for dim, lo, hi in arg.box)
        yield Ref(ground(arg.name, bound), box)
    elif isinstance(arg, Cat):
        yield Cat(arg.dim, tuple(part for inner in arg.parts for part in _arg(inner, bound)))
    elif isinstance(arg, Each):
        for turn in range(closed(arg.lo, bound), closed(arg.hi, bound)):
            yield from _arg(arg.item, {**bound, arg.var: turn})
    elif isinstance(arg, Expr):
        yield substitute(arg, bound)
    else:
        yield arg


def _attr(value: Attr, bound: Bound) -> Attr:
    if isinstance(value, Expr):
        return substitute(value, bound)
    if isinstance(value, tuple):
        return tuple(_attr(part, bound) for part in value)
    return value
