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
    product = _maker(step.args[0], "mm", made) if step.op == "t" else None
    if product is None:
        return [step]
    first, second = product.args
    turned = _maker(first, "t", made)
    inner = None if turned is None else turned.args[0]
    if not _is_value(inner) or not _is_value(second):
        return [step]
    (out,) = step.outs
    label, _, count = out.base.rpartition("_")
    other = Name(f"{label}_other_{count}")
    return [
        Op("t", (second,), (other,), (), step.note),
        Op("mm", (Ref(other), inner), step.outs, (), step.note),
    ]


def _maker(arg: object, op: str, made: dict[Name, Op]) -> Op | None:
    """The step that made an operand, if it is of this op."""
    step = made.get(arg.name) if isinstance(arg, Ref) and not arg.box else None
    return step if step is not None and step.op == op else None


def _is_value(arg: object) -> bool:
    return isinstance(arg, Ref) and not arg.box
