"""Planned segments run by kernels: small networks of every step kind against torch in double precision."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from tensure.errors import UnsupportedError
from tensure.planning import plan_layouts, plan_segment
from tensure.program.from_torch import from_torch
from tensure.runtime import KERNEL_ACTIVATIONS, SegmentExecution
from tensure.runtime._execution import HostExecution


class Residual(nn.Module):
    """A residual, a depthwise convolution, pools of all kinds, a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU6())
        self.depthwise = nn.Conv2d(24, 24, 5, padding=2, groups=24)
        self.point = nn.Conv2d(24, 24, 1)
        self.head = nn.Linear(24 * 4, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.stem(x)
        y = y + self.point(torch.relu(self.depthwise(y)))
        y = torch.relu(y)
        y = torch.nn.functional.max_pool2d(y, 3, 2, 1)
        y = torch.nn.functional.avg_pool2d(y, 2)
        y = torch.nn.functional.adaptive_avg_pool2d(y, 2)
        return torch.softmax(self.head(torch.nn.functional.silu(y).flatten(1)), 1)


def made(build: Callable[[], nn.Module], *shape: int) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(3)
    module = build().eval()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    return module, torch.randn(*shape)


NETS = {
    "residual": (Residual, (2, 3, 33, 29)),
    "one convolution": (lambda: nn.Conv2d(3, 5, 3), (1, 3, 8, 8)),
    "linears": (lambda: nn.Sequential(nn.Linear(9, 33), nn.ReLU(), nn.Linear(33, 4)), (5, 9)),
}


@pytest.mark.parametrize("layout", ["NHWC", "NCHW", "CHWN"])
@pytest.mark.parametrize("name", NETS)
def test_equals_torch_in_every_layout(name: str, layout: str) -> None:
    module, x = made(*NETS[name][:1], *NETS[name][1])
    with torch.no_grad():
        model = from_torch(module, (x,), name="net")
        expected = module.double()(x.double()).numpy()
        module.float()
    weights = {key: stored.decode() for key, stored in model.weights.items()}
    segment = plan_segment(model.program, layout=layout, activations=KERNEL_ACTIVATIONS)
    (given,) = segment.inputs
    execution = SegmentExecution(segment, weights)
    for threads in (1, 2):
        (found,) = execution.run({given: x.numpy()}, threads).values()
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * max(1, np.abs(expected).max()))
    assert not np.allclose(found, np.roll(expected, 1, axis=-1), rtol=0, atol=2e-6), "the comparison sees"
    assert len(execution.time_steps({given: x.numpy()})) == len(segment.steps)


def test_callers_in_several_threads_get_their_own_answers() -> None:
    module, _ = made(*NETS["linears"][:1], *NETS["linears"][1])
    x = torch.randn(5, 9)
    with torch.no_grad():
        model = from_torch(module, (x,), name="net")
    weights = {key: stored.decode() for key, stored in model.weights.items()}
    segment = plan_segment(model.program, activations=KERNEL_ACTIVATIONS)
    execution = SegmentExecution(segment, weights)
    inputs = [np.full((5, 9), value, np.float32) for value in range(8)]
    alone = [next(iter(execution.run({segment.inputs[0]: each}).values())) for each in inputs]

    def call(number: int) -> bool:
        each = number % 8
        (found,) = execution.run({segment.inputs[0]: inputs[each]}).values()
        return np.array_equal(found, alone[each])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(call, range(400)))


def test_winograd_runs_when_it_is_asked_for() -> None:
    module, x = made(lambda: nn.Conv2d(32, 32, 3, padding=1), 1, 32, 20, 20)
    with torch.no_grad():
        model = from_torch(module, (x,), name="net")
        expected = module.double()(x.double()).numpy()
    found = plan_layouts(
        model.program,
        accuracy="1e-4",
        measure=lambda problem, way: 1.0 if way.algorithm == "winograd" else 2.0,
        activations=KERNEL_ACTIVATIONS,
    )
    assert set(found.algorithms.values()) == {"winograd"}
    weights = {key: stored.decode() for key, stored in model.weights.items()}
    execution = SegmentExecution(found.segment, weights, algorithms=found.algorithms)
    (y,) = execution.run({found.segment.inputs[0]: x.numpy()}).values()
    error = np.abs(y - expected).max() / np.abs(expected).max()
    assert 1e-8 < error < 1e-4


def test_what_has_no_kernel_is_refused_by_name_and_runs_through_torch() -> None:
    module, x = made(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU()), 1, 3, 8, 8)
    with torch.no_grad():
        model = from_torch(module, (x,), name="net")
        expected = module(x).numpy()
    segment = plan_segment(model.program, activations=KERNEL_ACTIVATIONS)
    with pytest.raises(UnsupportedError, match="gelu"):
        SegmentExecution(segment, {key: stored.decode() for key, stored in model.weights.items()})
    execution = HostExecution(model.program, model.weights)
    (entry,) = model.program.entries
    (found,) = execution.run(entry, {}, {segment.inputs[0]: x.numpy()}).values()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    assert execution._segments[entry, ()] is None
