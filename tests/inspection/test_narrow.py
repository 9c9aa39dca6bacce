"""Which step is blamed for two tensors that part: the one that did it, though it only copies."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tensure.inspection import Finding, Recording, compare, watch


class Wrong(TorchDispatchMode):
    """Gives the negative of what one op should give, as a kernel might."""

    def __init__(self, op: str) -> None:
        super().__init__()
        self.op = op

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        return -made if func._schema.name == f"aten::{self.op}" else made


def recorded(op: str = "") -> Recording:
    x = torch.arange(1.0, 25.0).reshape(2, 3, 4)
    with Wrong(op), watch(inputs={"x": x}, keep=True, digest=True) as run:
        y = torch.exp(x / 8)  # 0, 1
        torch.tanh(y.transpose(0, 1).clone().squeeze(0) - 1)  # 2 transpose, 3 clone, 4 squeeze, 5, 6
    return run.recording()


def first_of(op: str) -> Finding:
    found = compare(recorded(), recorded(op))
    assert found.first is not None
    assert found.findings == [found.first]
    return found.first


@pytest.mark.parametrize("op", ["exp", "transpose", "clone", "sub", "tanh"])
def test_the_step_that_did_it_is_blamed(op: str) -> None:
    first = first_of(op)
    assert first.step_a is not None and first.step_b is not None
    assert (first.step_a.op, first.step_b.op) == (op, op), first.text
    assert first.change == "every sign is flipped"


def test_without_a_fault_nothing_is_blamed() -> None:
    assert compare(recorded(), recorded()).kind == "identical"


def test_a_copy_of_what_is_wrong_is_innocent() -> None:
    """The fault lies in the step before the copy: the copy does not hide it."""
    assert first_of("transpose").a.startswith("transpose")
