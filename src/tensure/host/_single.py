"""One op of a Program on torch tensors of any float dtype: how a step is computed again, in float64 say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tensure.program import Arg, Cat, Op, Ref

from ._resolve import Take, TakeAll, by_name, resolve

__all__ = ["run_op"]


def run_op(item: Op, read: Callable[[str], Tensor]) -> list[Tensor]:
    """What a ground op makes of the tensors that `read` gives by printed name.

    Raises:
        UnsupportedError: torch has no counterpart.
    """
    operands = [_operand(arg, read) for arg in item.args]
    kinds = ["none" if arg is None else "tensor" if isinstance(arg, Tensor) else "number" for arg in operands]
    ranks = [arg.dim() if isinstance(arg, Tensor) else None for arg in operands]
    found = resolve(item.op, kinds, dict(item.attrs), ranks)
    call = by_name(found.call, found.keywords) if found.keywords else found.call
    given = [
        operands[slot.at]
        if isinstance(slot, Take)
        else operands[slot.at :]
        if isinstance(slot, TakeAll)
        else list(slot.value)
        if isinstance(slot.value, tuple)
        else slot.value
        for slot in found.slots
    ]
    result = call(*given)
    return [result] if isinstance(result, Tensor) else list(result)


def _operand(arg: Arg, read: Callable[[str], Tensor]) -> Any:
    if isinstance(arg, Ref):
        tensor = read(str(arg.name))
        for dim, lo, hi in arg.box:
            tensor = torch.narrow(tensor, dim, int(lo), int(hi) - int(lo))  # type: ignore[arg-type]
        return tensor
    if isinstance(arg, Cat):
        return torch.cat([_operand(part, read) for part in arg.parts], arg.dim)
    return arg
