"""What a batch norm in training mode writes on the side, its running statistics, is judged as results are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tensure.inspection import Difference, Recording, compare, watch

PLACE = {"running_mean": 3, "running_var": 4}
"""Among the arguments of `native_batch_norm`, and among its results as a trace has them."""


class Wrong(TorchDispatchMode):
    """Leaves a running statistic other than the op should, in one of its calls."""

    def __init__(self, what: str, turn: int, share: float) -> None:
        super().__init__()
        self.what, self.turn, self.share, self.calls = what, turn, share, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func._schema.name == "aten::native_batch_norm":
            if self.what and self.calls == self.turn:
                args[PLACE[self.what]][1] *= 1 + self.share
            self.calls += 1
        return made


def recorded(what: str = "", turn: int = 0, share: float = 1e-3, momentum: float = 0.1) -> Recording:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, momentum=momentum), nn.ReLU())
    x = torch.randn(8, 4)
    module.requires_grad_(False)
    with Wrong(what, turn, share), watch(module, inputs={"x": x}, keep=True, digest=True) as run:
        module(x)
        run.output("y", module(2 * x + 1))
    return run.recording()


def norms(found: Difference) -> list[int]:
    return [step.index for step in found.a.steps if step.op == "native_batch_norm"]


def test_without_a_fault_nothing_is_said() -> None:
    found = compare(recorded(), recorded())
    assert (found.kind, found.first) == ("identical", None)
    assert len(norms(found)) == 2


@pytest.mark.parametrize("turn", [0, 1])
@pytest.mark.parametrize("what", PLACE)
def test_a_wrong_running_statistic_is_named_once(what: str, turn: int) -> None:
    """The outputs are what they were: a norm in training does not read what it keeps for later."""
    found = compare(recorded(), recorded(what, turn))
    step = norms(found)[turn]
    first = found.first
    assert first is not None and first.step_b is not None
    assert found.findings == [first]  # the next update is judged from what B had
    assert (first.step_b.index, first.step_b.op) == (step, "native_batch_norm")
    assert first.a == found.a.steps[step].outs[PLACE[what]]
    assert first.element is not None
    assert (first.element.index, first.element.count) == ((1,), 1)
    same = next(item for item in found.verdicts if item.pair.a == found.a.steps[step].outs[0])
    assert same.kind == "identical"


@pytest.mark.parametrize("what", PLACE)
def test_a_running_statistic_within_rounding_is_no_fault(what: str) -> None:
    found = compare(recorded(), recorded(what, share=1e-7))
    assert (found.kind, found.first) == ("within", None)


def test_another_momentum_is_named() -> None:
    found = compare(recorded(), recorded(momentum=0.2))
    first = found.first
    assert first is not None and first.step_b is not None
    assert first.step_b.index == norms(found)[0]
    assert ("momentum", "0.1", "0.2") in first.arguments
