"""The checker's own table of linear ops: through which operands may addends and factors go?

Written apart from the prover's. Over the reals; the caller sees to dtypes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Final

from tensure.program import rational

from ._check_piece import ONE

_MOVES: Final = (
    "copy view reshape flatten permute transpose t unsqueeze squeeze select expand slice flip roll repeat "
    "tril triu slice_backward select_backward"
)
_OF_FIRST: Final = frozenset(
    f"{_MOVES} neg sum mean cumsum gather index index_select embedding _to_copy embedding_dense_backward "
    "sigmoid_backward tanh_backward silu_backward gelu_backward hardtanh_backward threshold_backward "
    "_softmax_backward_data _log_softmax_backward_data nll_loss_backward convolution_backward".split()
)
_OF_EITHER: Final = frozenset(["mul", "mm", "bmm", "mv", "dot", "outer", "matmul"])
_OF_ALL: Final = frozenset(["cat", "stack", "slice_scatter", "select_scatter"])


def single(op: str, attrs: dict[str, Any], operands: Sequence[Any], at: int) -> bool:
    """Is the op linear in this operand with all others held?"""
    if op in _OF_FIRST or (op == "div" and attrs.get("rounding_mode") is None):
        return at == 0
    if op in _OF_EITHER or op == "einsum":
        return op == "einsum" or at < 2
    if op in ("linear", "convolution"):
        return at < 2 and all(item is None for item in operands[2:])
    if op == "constant_pad_nd":
        return at == 0 and attrs.get("value", 0) == 0
    if op == "masked_fill":
        return at == 0 and value(operands[2]) == 0
    if op == "where":
        return at in (1, 2) and value(operands[3 - at]) == 0
    return False


def every(op: str, operands: Sequence[Any]) -> tuple[int, ...]:
    """The operands an op is a sum over; () when it is none."""
    if op in _OF_ALL:
        return tuple(range(len(operands)))
    return (1, 2) if op == "where" else ()


def signs(op: str, attrs: dict[str, Any], count: int) -> list[Fraction] | None:
    """The coefficients of a sum's or difference's operands; None where the op is none."""
    if op == "add_n":
        return [ONE] * count
    if op == "neg":
        return [-ONE]
    if op not in ("add", "sub", "rsub"):
        return None
    alpha = value(attrs["alpha"]) if "alpha" in attrs else ONE
    if not alpha:
        return None
    if op == "add":
        return [ONE, alpha]
    return [ONE, -alpha] if op == "sub" else [-alpha, ONE]


def value(item: Any) -> Fraction | None:
    """A finite number, plain or as the checker spells it, as a fraction."""
    if isinstance(item, tuple) and item[:1] == ("number",) and item[1] in ("int", "float"):
        item = float(item[2]) if item[1] == "float" else int(item[2])
    known = isinstance(item, (int, float)) and not isinstance(item, bool) and math.isfinite(item)
    return rational(item) if known and abs(item) < 1e300 else None
