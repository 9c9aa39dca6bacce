"""A fault in a model too large to run, shown on a smaller one over the same mesh."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import tensure
from tensure.errors import InputError

WIDE, NARROW = 1 << 14, 4


class Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, width, bias=False), nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (self.down(torch.relu(self.up(x))) - y).pow(2).sum()


def model(width: int) -> Callable[[], Any]:
    return lambda: (Net(width), (torch.randn(8, 4), torch.randn(8, width)))


def data_parallel(act: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    """Halves of a batch on two ranks, with some function for ReLU."""

    def parallel(net: Any, mesh: Any) -> Callable[[Tensor, Tensor], Tensor]:
        def step(x: Tensor, y: Tensor) -> Tensor:
            at = mesh.get_local_rank("dp")
            x, y = x.chunk(2)[at], y.chunk(2)[at]
            loss = (net.down(act(net.up(x))) - y).pow(2).sum()
            loss.backward()
            for weight in net.parameters():
                dist.all_reduce(weight.grad)
            total: Tensor = loss.detach()
            dist.all_reduce(total)
            return total

        return step

    return parallel


def prove(act: Callable[[Tensor], Tensor], **options: Any) -> Any:
    return tensure.prove(data_parallel(act), model(WIDE), mesh={"dp": 2}, **options)


def test_a_fault_too_large_to_run_is_refuted_on_the_smaller_model() -> None:
    alone = prove(torch.abs)
    assert alone.proof.values.status == "unknown" and "too large to replay" in alone.proof.values.reason
    found = prove(torch.abs, small=model(NARROW))
    assert found.proof.values.status == "refuted" and "with smaller sizes" in found.proof.values.method
    example = found.proof.values.counterexample
    assert example is not None and example.confirmed and "abs" in example.step
    assert found.plan.program == tensure.program.digest(
        found.program
    )  # what is handed back is the smaller one's


def test_a_smaller_model_that_is_proved_proves_nothing() -> None:
    """Only a refutation is taken from it: here the larger is wrong where the smaller is not."""

    def act(x: Tensor) -> Tensor:
        return torch.abs(x) if x.shape[-1] == WIDE else torch.relu(x)

    found = prove(act, small=model(NARROW))
    assert found.proof.values.status == "unknown"
    assert found.proof.values.reason.endswith("with smaller sizes it is proved")


def test_a_right_step_is_proved_at_its_own_sizes() -> None:
    found = prove(torch.relu, small=model(NARROW))
    assert found.proof.values.status == "proved" and found.certificate is not None
    (weight,) = [value for value in found.program.values.values() if value.shape == (WIDE, WIDE)][:1]
    assert weight.role == "weight"


def test_a_smaller_model_alone_is_refused() -> None:
    with pytest.raises(InputError, match="without a mesh"):
        tensure.prove("llama3-8b@dp2", small=model(NARROW))
