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


def sliced(net: Any, mesh: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """A mean of means over rows: right where they divide. ReLU is spelled so that no rule sees through it."""

    def step(x: Tensor, y: Tensor) -> Tensor:
        at = mesh.get_local_rank("dp")
        x, y = x.chunk(2)[at], y.chunk(2)[at]
        up = net.up(x)
        loss = (net.down((up + torch.sqrt(up * up)) / 2) - y).pow(2).sum() / (2 * len(y))
        loss.backward()
        for weight in net.parameters():
            dist.all_reduce(weight.grad)
        total: Tensor = loss.detach()
        dist.all_reduce(total)
        return total

    return step


def meaned(width: int, rows: int) -> Callable[[], Any]:
    class Mean(Net):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return super().forward(x, y) / len(y)

    return lambda: (Mean(width), (torch.randn(rows, 4), torch.randn(rows, width)))


def test_sizes_that_do_not_divide_refute_nothing() -> None:
    """On three rows the mean of means is another: that tells nothing of eight."""
    tried = tensure.prove(sliced, meaned(NARROW, 3), mesh={"dp": 2}, replay=False)
    assert tried.proof.values.status == "refuted"
    found = tensure.prove(sliced, meaned(WIDE, 8), mesh={"dp": 2}, small=meaned(NARROW, 3)).proof.values
    assert found.status == "unknown", found
    assert "test_prove_small.py" in found.reason and "is cut into parts of 2 and 1" in found.reason
    assert found.reason.endswith("choose sizes that are multiples of 2 there")
    for rows in (2, 4):  # and where they divide it is not refuted at all
        even = tensure.prove(sliced, meaned(WIDE, 8), mesh={"dp": 2}, small=meaned(NARROW, rows))
        assert even.proof.values.status == "unknown" and "refuted" not in even.proof.values.reason


def test_placements_that_do_not_divide_refute_nothing_either() -> None:
    from torch.distributed.tensor import Partial, Shard

    from tensure.capture import ParallelStep

    def placed(net: Any, mesh: Any) -> ParallelStep:
        def step(x: Tensor, y: Tensor) -> Tensor:
            up = net.up(x)
            loss: Tensor = (net.down((up + torch.sqrt(up * up)) / 2) - y).pow(2).sum() / len(y)
            loss.backward()
            for weight in net.parameters():
                dist.all_reduce(weight.grad)
                weight.grad /= 2
            return loss

        rows = {"dp": Shard(0)}
        return ParallelStep(step, inputs=(rows, rows), outputs=({"dp": Partial("avg")},))

    found = tensure.prove(placed, meaned(WIDE, 8), mesh={"dp": 2}, small=meaned(NARROW, 5)).proof.values
    assert found.status == "unknown", found
    assert "dim 0 of input_0 is cut into parts of 3 and 2" in found.reason
    # A fault that shows where sizes divide is refuted, whatever else is cut unevenly at both sizes.
    odd = tensure.prove(placed, meaned(WIDE, 7), mesh={"dp": 2}, small=meaned(NARROW, 5)).proof.values
    assert odd.status == "refuted"


def test_a_smaller_model_that_cannot_be_traced_loses_nothing() -> None:
    found = tensure.prove(sliced, meaned(WIDE, 8), mesh={"dp": 2}, small=meaned(NARROW, 1)).proof.values
    assert found.status == "unknown" and "with smaller sizes it cannot be traced" in found.reason


def test_a_smaller_model_that_is_not_there_is_refused_before_the_proof() -> None:
    def never(net: Any, mesh: Any) -> Any:
        raise AssertionError("the step is traced first")

    with pytest.raises(InputError, match="has no 'nosuch'"):
        tensure.prove(never, model(WIDE), mesh={"dp": 2}, small="tests.api.test_prove_small:nosuch")
