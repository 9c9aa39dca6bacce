"""The checker's view of numbers that are the same everywhere: masks and counts of targets that all count.

Where no target is the class that a loss ignores, whether a target is that class has one answer; what is made
of one number is one number, and a mask that holds everywhere, or nowhere, leaves one of two tensors.
Written apart from the prover.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from ._check_defined import all_defined
from ._check_linear import single
from ._check_ops import FLOATS, dtype_of, shapes_of
from ._check_piece import ONE, Reg, is_part
from ._check_sums import CheckSums, Rel, is_rel, size, spread

MAX_MOVES: Final = 16


def targets_of(values: CheckSums, rel: Rel) -> list[tuple[int, Reg]]:
    """The parts that are targets when these are: the one at hand, and what it is a view of, all of it."""
    if rel is None or len(rel) != 1 or rel[0][0] != 1 or rel[0][3] is not None:
        return []
    _, node, reg, _ = rel[0]
    found = [(node, reg)]
    while (item := values.defs[node]).op == "view" and is_part(item.operands[0]):
        inner, outer, by = item.operands[0]
        if by != 1 or not values.is_whole(node, reg):
            break
        node, reg = inner, outer
        found.append((node, reg))
    return found


def index_of(values: CheckSums, op: str, operands: Sequence[Any], dim: Any) -> tuple[Rel, int] | None:
    """The indices that a step counts from 0, and how many there may be; None of any other step."""
    at = {"gather": 1, "scatter_add": 1, "nll_loss_forward": 1, "nll_loss_backward": 2}.get(op)
    if at is None or len(operands) <= at or not is_rel(operands[0]) or not is_rel(operands[at]):
        return None
    shape = size(operands[1 if op == "nll_loss_backward" else 0][0][2])
    return operands[at], shape[dim % len(shape)] if op in ("gather", "scatter_add") else shape[-1]


def are_targets(values: Any, terms: Any, ignored: Any) -> bool:
    """Are these all targets of a loss of the Program that ignores this class?

    Args:
        terms: of a relation or of an operand, (coefficient, class, region, ...).
    """
    if not isinstance(terms, tuple) or len(terms) != 1 or terms[0][0] != 1:
        return False
    _, node, reg, *_ = terms[0]
    return _among(values, node, reg, ignored)


def _among(values: Any, node: int, reg: Reg, ignored: Any) -> bool:
    """Whether a part is one of targets, as it is or as a view of some."""
    for _ in range(MAX_MOVES):
        item = values.defs[node]
        for part in values.aims.get((node, ignored), ()):
            if all(d in item.free or at.within(part[d]) is not None for d, at in enumerate(reg)):
                return True
        if item.op == "cat":
            return all(
                is_part(o) and o[2] == 1 and _among(values, o[0], o[1], ignored) for o in item.operands
            )
        if item.op not in ("view", "permute", "expand") or not is_part(item.operands[0]):
            return False
        node, reg, by = item.operands[0]  # all that it has elements of
        if by != 1:
            return False
    return False


def constant(values: Any, op: str, attrs: dict[str, Any], operands: Sequence[Any]) -> Rel:
    """What a step makes that is one number, or that a mask of one answer leaves; None for any other."""
    first = operands[0] if operands else None
    if not is_rel(first) or first is None:
        return None
    if op in ("eq", "ne") and len(operands) == 2:
        if not _is_target(values, first, operands[1]):
            return None
        made: Rel = values.filled(op == "ne", size(first[0][2]), "bool")
        return made
    if op in ("where", "masked_fill") and len(operands) == 3:
        return _chosen(values, op, operands)
    number = _number(values, first)
    if number is None:
        return None
    shape, kind = size(first[0][2]), values.defs[first[0][1]].dtype
    if op in ("bitwise_not", "logical_not") and isinstance(number, bool):
        made = values.filled(not number, shape, "bool")
    elif op == "sum" and isinstance(number, int) and attrs.get("dtype") in (None, "i64"):
        dims = attrs["dim"]
        keep = attrs.get("keepdim", False)
        left = tuple(1 if d in dims else n for d, n in enumerate(shape) if keep or d not in dims)
        made = values.filled(int(number) * math.prod(shape[d] for d in dims), left, "i64")
    elif op == "_to_copy" and kind not in FLOATS and attrs.get("dtype") in FLOATS and abs(number) < 1 << 24:
        made = values.filled(float(number), shape, attrs["dtype"])
    else:
        return None
    return made


def zeros(values: Any, op: str, attrs: dict[str, Any], operands: Sequence[Any]) -> Rel:
    """What a step makes of an operand that is zero everywhere and that it is linear in; else None."""
    if op == "div":
        return None  # 0 / 0 is not 0
    if not any(
        is_rel(item) and all(values.zero(node) for _, node, _, _ in item) and single(op, attrs, operands, at)
        for at, item in enumerate(operands)
    ):
        return None
    rels = [item for item in operands if is_rel(item)]
    made = shapes_of(op, attrs, [size(item[0][2]) if is_rel(item) else None for item in operands])
    kinds = [values.defs[item[0][1]].dtype if is_rel(item) else None for item in operands]
    kind = dtype_of(op, attrs, kinds)
    if made is None or len(made) != 1 or kind not in FLOATS or not all_defined(values, rels):
        return None
    found: Rel = values.filled(0.0, made[0], kind)
    return found


def _number(values: CheckSums, rel: Any) -> int | float | bool | None:
    """The number that stands everywhere, of what is no multiple."""
    if not is_rel(rel) or len(rel) != 1 or rel[0][0] != ONE or rel[0][3] is not None:
        return None
    item = values.defs[rel[0][1]]
    number: int | float | bool | None = item.attrs["fill_value"] if item.op == "full" else None
    return number


def _is_target(values: Any, rel: Any, number: Any) -> bool:
    if not values.targets or len(rel) != 1 or rel[0][0] != 1 or rel[0][3] is not None:
        return False
    if not isinstance(number, int) or isinstance(number, bool):
        return False
    return are_targets(values, rel, number)


def _chosen(values: Any, op: str, operands: Sequence[Any]) -> Rel:
    mask, one, other = operands if op == "where" else (operands[1], operands[2], operands[0])
    number = _number(values, mask)
    if not isinstance(number, bool):
        return None
    kept = one if number else other
    rels = [item for item in (one, other) if is_rel(item)]
    shape = spread([size(item[0][2]) for item in (mask, *rels)])
    kinds = {values.defs[node].dtype for item in rels for _, node, _, _ in item}
    if not rels or shape is None or len(kinds) != 1:
        return None
    (kind,) = kinds
    if not is_rel(kept):
        fits = kind in FLOATS or isinstance(kept, int)
        filled: Rel = values.filled(kept, shape, kind) if fits and kept is not None else None
        return filled
    wide: Rel = tuple(kept) if size(kept[0][2]) == shape else values.widened(kept, shape, kind)
    return wide
