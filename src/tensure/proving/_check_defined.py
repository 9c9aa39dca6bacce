"""The checker's view of what has a value for all data: what may be multiplied by 0, or taken from itself.

Every value of the Program is taken to exist. One that only a rank makes may not: 0 / b where b is 0, or
0 log(b) where b is less than 0, is no 0. Written apart from the prover.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from ._check_ops import FLOATS
from ._check_piece import is_part

PARTIAL: Final = frozenset(
    "acos acosh addcdiv asin atanh div fmod log log10 log1p log2 pow reciprocal remainder rsqrt sqrt tan "
    "var".split()
)
"""Steps on floats that have no value for some numbers."""


def defined(values: Any, node: int) -> bool:
    """Is a class one of the Program's, or made of such by steps that have a value for every number?"""
    todo, seen = [node], {node}
    while todo:
        at = todo.pop()
        if at < values.theirs or at in values.exist:
            continue
        item = values.defs[at]
        if item.op in PARTIAL and item.dtype in FLOATS:
            return False
        inner = {part[0] for part in item.operands if is_part(part)} | set(item.form or ())
        todo.extend(inner - seen)
        seen |= inner
    values.exist |= seen
    return True


def all_defined(values: Any, rels: Iterable[Any]) -> bool:
    """Do all classes of floats of these sums of terms exist?"""
    nodes = {term[1] for rel in rels for term in rel}
    return all(values.defs[node].dtype not in FLOATS or defined(values, node) for node in nodes)
