"""A small tensor with known values, that somebody's code wrote down, as steps."""

from __future__ import annotations

from typing import Final

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils._python_dispatch import _disable_current_modes

from tensure.errors import UnsupportedError
from tensure.host import dtype_word
from tensure.program import Attrs, Ref

from ._tape import Tape

__all__ = ["MAX_LITERAL", "written_down"]

MAX_LITERAL: Final = 4096
"""Elements of a constant."""


def written_down(tape: Tape, tensor: torch.Tensor, note: Attrs) -> Ref:
    """The value of a tensor that has bytes.

    Raises:
        UnsupportedError: too many elements.
    """
    shape, dtype = tuple(tensor.shape), dtype_word(tensor.dtype)
    if tensor.numel() > MAX_LITERAL:
        raise UnsupportedError(
            f"a constant of {tensor.numel()} elements", wanted="a parameter, a buffer or an input"
        )
    with unset_fake_temporarily(), _disable_current_modes():
        values = torch._C.TensorBase.tolist(tensor.detach().reshape(-1))
    if len(set(map(repr, values))) == 1:
        return tape.step("full", (), note, size=shape, fill_value=values[0], dtype=dtype)
    parts = tuple(tape.step("full", (), note, size=(1,), fill_value=value, dtype=dtype) for value in values)
    flat = tape.step("cat", parts, note)
    return tape.step("view", (flat,), note, size=shape) if len(shape) != 1 else flat
