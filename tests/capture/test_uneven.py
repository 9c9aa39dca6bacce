"""Shards of several sizes: flat memory with padding is taken apart, with the same values, and proved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tests.capture.steps import drawn, wrong_claims
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Partial, Shard

import tensure
from tensure.bundle import coordinates, evaluate_plan
from tensure.capture import ParallelStep, _parallel, capture_model, capture_parallel


class Net(nn.Module):
    def __init__(self, inner: int, words: int) -> None:
        super().__init__()
        self.words = nn.Embedding(words, 5)
        self.up, self.down = nn.Linear(5, inner), nn.Linear(inner, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.down(torch.tanh(self.up(self.words(tokens)))).pow(2).mean()


def net(inner: int, words: int) -> Callable[[], Any]:
    return lambda: (Net(inner, words), (torch.zeros(12, dtype=torch.int64),))


def fully_sharded(
    module: Any, mesh: Any, change: Callable[[Any, int], None] = lambda module, rank: None
) -> ParallelStep:
    fully_shard(module.up, mesh=mesh)
    fully_shard(module, mesh=mesh)

    def step(tokens: Tensor) -> Tensor:
        loss: Tensor = module(tokens)
        loss.backward()
        change(module, mesh.get_local_rank())
        return loss

    return ParallelStep(step, inputs=[{"dp": Shard(0)}], outputs=[{"dp": Partial("avg")}])


OUTCOMES = ("loss", "grad.words.weight", "grad.down.weight", "grad.up.bias")
SIZES = [(7, 7, 2), (9, 7, 4), (2, 5, 4), (10, 3, 3), (5, 11, 6)]


@pytest.mark.parametrize(("inner", "words", "ranks"), SIZES)
def test_uneven_shards_are_proved(inner: int, words: int, ranks: int) -> None:
    model, mesh = net(inner, words), {"dp": ranks}
    captured = capture_model(model)
    plan = capture_parallel(model, fully_sharded, mesh, captured, classes=False)
    assert wrong_claims(captured, plan) == []
    found = tensure.prove(fully_sharded, model, mesh=mesh).proof.values
    assert found.status == "proved", found


def _twice_on_the_last(module: Any, rank: int) -> None:
    if rank == 3:
        module.down.weight.grad._local_tensor.mul_(2)


def _row_doubled(module: Any, rank: int) -> None:
    if rank == 2 and module.up.bias.grad._local_tensor.numel():
        module.up.bias.grad._local_tensor[0] *= 2


@pytest.mark.parametrize("change", [_row_doubled, _twice_on_the_last])
def test_a_fault_on_one_rank_is_refuted(change: Any) -> None:
    def parallel(module: Any, mesh: Any) -> ParallelStep:
        return fully_sharded(module, mesh, change)

    found = tensure.prove(parallel, net(9, 7), mesh={"dp": 4}).proof.values
    is_there = change is _row_doubled  # four ranks of three rows: the last has none
    assert found.status == ("refuted" if is_there else "proved"), found


@pytest.mark.parametrize("factor", [1.0, 3.0])
@pytest.mark.parametrize(("inner", "words", "ranks"), SIZES[1:4])
def test_taken_apart_or_not_the_values_are_the_same(
    inner: int, words: int, ranks: int, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of steps that are wrong, and whatever comes of them."""

    def parallel(module: Any, mesh: Any) -> ParallelStep:
        if mesh.get_local_rank() == 1:
            module.down.bias.register_hook(lambda grad: factor * grad)
        return fully_sharded(module, mesh)

    model, mesh = net(inner, words), {"dp": ranks}
    captured = capture_model(model)
    given = drawn(captured.program, 5)

    def outcome() -> dict[Any, Any]:
        plan = capture_parallel(model, parallel, mesh, captured, classes=False)
        run = evaluate_plan(plan, captured.program, given)
        return {
            (coordinates(plan, rank)["dp"], str(name)): value
            for rank, made in run.made.items()
            for name, value in made.items()
            if str(name)
            in ("loss", *(f"grad.{label}" for label in ("words.weight", "down.weight", "up.bias")))
        }

    one = outcome()
    monkeypatch.setattr(_parallel, "apart", lambda steps, *_: (list(steps), ()))
    other = outcome()
    assert one.keys() == other.keys() and len(one) == 4 * ranks
    assert all(np.allclose(one[key], other[key], rtol=1e-4, atol=1e-6) for key in one)
