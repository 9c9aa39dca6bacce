"""One spelling for a product that torch spells by memory layout.

The gradient of a matrix product's second factor is `t(mm(t(g), x))` or `mm(t(x), g)`, whichever reads memory
better. Plans have no strides, so both are the second here: (AB)^T is B^T A^T, element for element the same
sums of the same products.
"""

from __future__ import annotations

from collections.abc import Sequence

from tensure.program import Name, Op, Ref

__all__ = ["spelled"]


def spelled(steps: Sequence[Op]) -> list[Op]:
    """The same steps, a transposed product as one of transposes where a transpose goes away by that."""
    made: dict[Name, Op] = {}
    found: list[Op] = []
    for step in steps:
        turned = _turned(step, made)
        found.extend(turned)
        for item in turned:
            for out in item.outs:
                made[out] = item
    return found


def _turned(step: Op, made: dict[Name, Op]) -> list[Op]:
    product = _maker(step, "t", 0, made)
    if step.op != "t" or product is None or product.op != "mm":
        return [step]
    first, second = product.args
    inner = _under(first, made)
    if inner is None or not isinstance(second, Ref) or second.box:
        return [step]
    (out,) = step.outs
    other = Name(f"{out.base}_other")
    return [
        Op("t", (second,), (other,), (), step.note),
        Op("mm", (Ref(other), inner), step.outs, (), step.note),
    ]


def _maker(step: Op, op: str, at: int, made: dict[Name, Op]) -> Op | None:
    arg = step.args[at] if step.op == op and len(step.args) > at else None
    return made.get(arg.name) if isinstance(arg, Ref) and not arg.box else None


def _under(arg: object, made: dict[Name, Op]) -> Ref | None:
    """What a transposed operand is the transpose of."""
    step = made.get(arg.name) if isinstance(arg, Ref) and not arg.box else None
    if step is None or step.op != "t":
        return None
    (inner,) = step.args
    return inner if isinstance(inner, Ref) and not inner.box else None
