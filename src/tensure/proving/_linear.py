"""Which ops are linear in which operands: what lets an addend or a factor pass.

`ALONE` ops are linear in each named operand while all others are held; `TOGETHER` ops are sums of what
they make of each operand, so that an addend may stand for all of them at once. Over the reals, for
operands and results of a float dtype. Knows no values.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Final

from tensure.program import rational

FIRST: Final = frozenset({0})
ALONE: Final[dict[str, frozenset[int]]] = {
    **dict.fromkeys(
        "copy view permute transpose t unsqueeze squeeze select expand slice flip roll repeat "
        "tril triu slice_backward select_backward neg sum mean cumsum gather index index_select embedding "
        "_to_copy embedding_dense_backward sigmoid_backward tanh_backward silu_backward gelu_backward "
        "hardtanh_backward threshold_backward _softmax_backward_data _log_softmax_backward_data "
        "nll_loss_backward convolution_backward".split(),
        FIRST,
    ),
    **dict.fromkeys(["mul", "mm", "bmm", "mv", "dot", "outer", "matmul"], frozenset({0, 1})),
}
TOGETHER: Final = frozenset(["cat", "stack", "slice_scatter", "select_scatter"])


def alone(op: str, given: dict[str, Any], operands: Sequence[object]) -> frozenset[int]:
    """The operands that an op is linear in, each with all others held; numbers and None never are."""
    found = ALONE.get(op, frozenset())
    if op == "div" and given.get("rounding_mode") is None:
        found = FIRST
    elif op in ("linear", "convolution") and (len(operands) < 3 or operands[2] is None):
        found = frozenset({0, 1})
    elif op == "einsum":
        found = frozenset(range(len(operands)))
    elif (op == "constant_pad_nd" and given["value"] == 0) or (
        op == "masked_fill" and not isinstance(operands[2], bool) and operands[2] == 0
    ):
        found = FIRST
    elif op == "where":
        zero = [at for at in (1, 2) if isinstance(operands[at], (int, float)) and operands[at] == 0]
        found = frozenset({3 - zero[0]}) if len(zero) == 1 else frozenset()
    elif op in ("scatter_add", "index_put"):
        found = frozenset()
    return found


def together(op: str, given: dict[str, Any], operands: Sequence[object]) -> frozenset[int]:
    """The operands that an op is a sum over, all of them at once; empty when it is none."""
    if op in TOGETHER:
        return frozenset(range(len(operands)))
    if op == "where":
        return frozenset({1, 2})
    return frozenset()


def exact(value: object) -> Fraction | None:
    """A finite number as a fraction."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if value == value and abs(value) < 1e300:
            return rational(value)
    return None
