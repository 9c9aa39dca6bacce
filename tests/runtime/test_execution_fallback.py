"""Programs that segments do not fit run through torch, as before; hostile sizes are refused.

Each was a crash, a raw error or a refusal of what torch computes.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from tensure.errors import InputError, LimitError, TensureError
from tensure.kernels import (
    Conv,
    ImageShape,
    Input,
    Slot,
    StepList,
    aligned_bytes,
    conv2d,
    conv2d_int8,
    pack_conv2d,
    pack_conv2d_int8,
)
from tensure.program.from_torch import from_torch
from tensure.runtime._execution import HostExecution


class PassThrough(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.reshape(-1), torch.relu(x)


class Sum(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + x)


FITS_NOT = {
    "an output that is an input": (PassThrough, torch.randn(2, 3)),
    "integers": (lambda: nn.Flatten(), torch.arange(12).reshape(1, 3, 4)),
    "a scalar": (Sum, torch.tensor(2.5)),
    "nothing": (Sum, torch.zeros(0, 3)),
    "a window of padding": (lambda: nn.MaxPool2d(2, 1, 1, 4), torch.randn(1, 1, 3, 3)),
    "gelu": (lambda: nn.Sequential(nn.Linear(3, 4), nn.GELU()), torch.randn(2, 3)),
}


@pytest.mark.parametrize("what", FITS_NOT)
def test_what_does_not_fit_runs_through_torch(what: str) -> None:
    build, x = FITS_NOT[what]
    torch.manual_seed(0)
    module = build()  # type: ignore[operator]
    with torch.no_grad():
        model = from_torch(module, (x,), name="net")
        expected = module(x)
    execution = HostExecution(model.program, model.weights)
    (entry,) = model.program.entries
    (name,) = map(str, model.program.entry(entry).inputs)
    found = list(execution.run(entry, {}, {name: x.numpy()}).values())
    for one, other in zip(found, expected if isinstance(expected, tuple) else (expected,), strict=True):
        np.testing.assert_allclose(one, other.numpy(), rtol=1e-6, atol=1e-6)
    assert execution._arrays is None, "weights are not held twice"


def test_threads_that_share_an_execution_and_many_entries() -> None:
    model = from_torch(nn.Linear(3, 4), (torch.randn(2, 3),), name="net")
    execution = HostExecution(model.program, model.weights)
    (entry,) = model.program.entries
    (name,) = map(str, model.program.entry(entry).inputs)
    x = np.ones((2, 3), np.float32)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: execution.run(entry, {}, {name: x}), range(64)))
    first = next(iter(found[0].values()))
    assert all(np.array_equal(first, next(iter(each.values()))) for each in found)


HUGE = (2**20 - 1, 2**20 - 1)
HOSTILE: dict[str, Callable[[], object]] = {
    "padding": lambda: Conv(1, 1, (1, 1), padding=(2**31 - 1,) * 4),
    "dilation": lambda: Conv(1, 1, (2, 2), dilation=(2**31 - 1,) * 2),
    "output": lambda: conv2d(
        np.ones((1, 1, 1, 4096), np.float32),
        pack_conv2d(
            np.ones((4096, 4096, 1, 1), np.float32), Conv(4096, 4096, (1, 1), padding=(2**20 - 1,) * 4)
        ),
    ),
    "padded input": lambda: conv2d(
        np.ones((1, 1, 1, 1), np.float32),
        pack_conv2d(
            np.ones((1, 1, 2, 2), np.float32),
            Conv(1, 1, (2, 2), HUGE, (2**20 - 1,) * 4, HUGE),
        ),
    ),
    "bytes": lambda: conv2d_int8(
        np.ones((1, 1, 1, 1), np.uint8),
        pack_conv2d_int8(
            np.ones((1, 1, 2, 2), np.int8), Conv(1, 1, (2, 2), HUGE, (2**20 - 1,) * 4, HUGE)
        ),
    ),
    "arena": lambda: StepList([(1,)], 1 << 49),
    "arena of all memory": lambda: StepList([(1,)], 1 << 70),
    "activation": lambda: StepList([(4,)], 64).add_activation(1 << 62, "relu", Input(0), Slot(0)),
    "softmax": lambda: StepList([(4,)], 64).add_softmax(1 << 32, 1 << 32, Input(0), Slot(0)),
    "mean": lambda: StepList([(4,)], 64).add_mean(
        ImageShape("NHWC", 1 << 40, 1 << 40, 2, 2), Input(0), Slot(0)
    ),
    "convolution": lambda: StepList([(4,)], 64).add_conv(
        pack_conv2d(np.ones((1, 1, 1, 1), np.float32), Conv(1, 1, (1, 1))), (1 << 62, 2, 2), Input(0), Slot(0)
    ),
    "lanes": lambda: StepList([(2,)], 256).add_conv(
        pack_conv2d(np.ones((64, 2, 1, 1), np.float32), Conv(2, 64, (1, 1)), "direct", "CHWN8"),
        (1, 1, 1), Input(0), Slot(0),
    ),
    "no weights": lambda: StepList([(2,)], 256).add_conv(None, (1, 1, 1), Input(0), Slot(0)),  # type: ignore[arg-type]
    "a number for a place": lambda: StepList([(2,)], 256).add_activation(2, "relu", 7, Slot(0)),  # type: ignore[arg-type]
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_sizes_that_do_not_fit_are_refused_with_numbers(what: str) -> None:
    """No crash, no wrapped product, no raw error."""
    with pytest.raises(TensureError) as caught:
        HOSTILE[what]()
    assert isinstance(caught.value, InputError | LimitError)
    assert any(letter.isdigit() for letter in str(caught.value)) or what == "no weights", str(caught.value)


def test_steps_of_no_floats_do_nothing() -> None:
    steps = StepList([(0,)], 0)
    steps.add_activation(0, "relu", Input(0), Slot(0))
    steps.add_pointwise(ImageShape("NHWC", 0, 1, 1, 1), "add", Input(0), Input(0), Slot(0))
    steps.run([np.zeros((0,), np.float32)], 2)


def test_a_workspace_over_an_operand_is_refused() -> None:
    conv = Conv(3, 8, (3, 3), padding=(1, 1, 1, 1))
    packed = pack_conv2d(np.ones((8, 3, 3, 3), np.float32), conv)
    x = np.ones((1, 5, 5, 3), np.float32)
    room = aligned_bytes(packed.workspace_bytes(x.shape) + 64)
    with pytest.raises(InputError, match="overlaps"):
        conv2d(x, packed, bias=room[:32].view(np.float32), workspace=room)


def test_softmax_gives_zeros() -> None:
    x = np.array([[0, -np.inf, -100, -1000, 1]], np.float32)
    steps = StepList([x.shape], 64)
    steps.add_softmax(1, 5, Input(0), Slot(0))
    steps.run([x])
    found = steps.view(Slot(0), (5,))
    assert found[1] == found[2] == found[3] == 0
    assert found.sum() == pytest.approx(1)
