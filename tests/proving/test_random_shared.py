"""Generators that ranks share, passes of one tensor that they take in turn, numbers of several dtypes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import Partial

import tensure
from tensure.capture import ParallelStep
from tensure.proving import prove_plan
from tests.proving import random_steps as steps
from tests.proving.random_steps import replicas

DP = {"dp": 2}


# --- a generator that outlives a trace ----------------------------------------------------------------


class Masked(steps.Net):
    """The inner features are masked by a generator of the module's file."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.up(x))
        y = y * torch.empty_like(y).bernoulli_(0.5, generator=self.generator)
        loss: Tensor = self.down(y).pow(2).mean()
        return loss


@pytest.mark.parametrize(("own", "status"), [(True, "proved"), (False, "refuted")])
def test_a_generator_of_the_file_gives_every_rank_the_same_mask(own: bool, status: str) -> None:
    generator = torch.Generator().manual_seed(0)

    def masked() -> Any:
        return Masked(generator), (torch.randn(8, 8),)

    def parallel(net: Any, mesh: Any) -> ParallelStep:
        if own:
            generator.manual_seed(5 + mesh.get_local_rank("dp"))
        return replicas(None)(net, mesh)  # type: ignore[no-any-return]

    verdict = tensure.prove(parallel, masked, mesh=DP).proof.values
    assert verdict.status == status, verdict
    assert own or "the same numbers as ranks[0]" in str(verdict.counterexample)


# --- several passes of one tensor ---------------------------------------------------------------------


class Passes(nn.Module):
    """The mean of several passes, each with a mask of its own of the same input."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count, self.up, self.drop = count, nn.Linear(8, 8), nn.Dropout(0.5)

    def one(self, x: Tensor) -> Tensor:
        loss: Tensor = self.up(self.drop(x)).pow(2).mean()
        return loss

    def forward(self, x: Tensor) -> Tensor:
        return sum((self.one(x) for _ in range(1, self.count)), start=self.one(x))


def passes(count: int) -> Any:
    return lambda: (Passes(count), (torch.randn(8, 8),))


def split(seed: Callable[[int], int], each: int = 1) -> Any:
    """Each rank does its share of the passes."""

    def parallel(net: Any, mesh: Any) -> ParallelStep:
        torch.manual_seed(seed(mesh.get_local_rank("mc")))

        def step(x: Tensor) -> Tensor:
            loss: Tensor = sum((net.one(x) for _ in range(1, each)), start=net.one(x))
            loss.backward()
            for weight in net.parameters():
                dist.all_reduce(weight.grad, group=mesh.get_group("mc"))
            return loss

        return ParallelStep(step, outputs=[{"mc": Partial()}])

    return parallel


@pytest.mark.parametrize(("ranks", "each"), [(2, 1), (2, 2), (4, 1)])
def test_ranks_may_take_passes_of_one_tensor_in_turn(ranks: int, each: int) -> None:
    parallel = split(lambda rank: 5 + rank, each)
    found = tensure.prove(parallel, passes(ranks * each), mesh={"mc": ranks})
    assert found.proof.values.status == "proved", found.proof.values
    assert tensure.api.check(found.certificate, found.plan, found.program).accepted


def test_ranks_that_take_the_same_pass_are_not_proved() -> None:
    verdict = tensure.prove(split(lambda rank: 5), passes(2), mesh={"mc": 2}).proof.values
    assert verdict.status == "unknown", verdict
    verdict = tensure.prove(split(lambda rank: 5 + rank // 2), passes(4), mesh={"mc": 4}).proof.values
    assert verdict.status == "unknown", verdict


def test_a_pass_too_few_is_refuted_whatever_it_stands_for() -> None:
    verdict = tensure.prove(split(lambda rank: 5 + rank), passes(3), mesh={"mc": 2}).proof.values
    assert verdict.status == "refuted", verdict


@pytest.mark.parametrize(("own", "status"), [(True, "proved"), (False, "refuted")])
def test_rows_of_both_passes_with_one_seed_are_the_same_in_every_reading(own: bool, status: str) -> None:
    parallel = replicas(lambda rank: 5 + rank if own else 5)
    verdict = tensure.prove(parallel, passes(2), mesh=DP).proof.values
    assert verdict.status == status, verdict


def test_ranks_taken_together_that_draw_different_passes_are_taken_apart() -> None:
    found = tensure.prove(split(lambda rank: 5 + rank), passes(2), mesh={"mc": 2})
    folded = prove_plan(found.plan, found.program, fold=["mc"]).proof.values
    assert folded.status == "proved" and "taken together" not in folded.method, folded


def test_with_one_way_to_read_them_other_numbers_are_refuted() -> None:
    verdict = tensure.prove(split(lambda rank: 5 + rank), passes(1), mesh={"mc": 2}).proof.values
    assert verdict.status == "refuted" and "many draws of random numbers" in verdict.method


# --- numbers of several dtypes ------------------------------------------------------------------------


class Noisy(steps.Net):
    """The inner features' mask is drawn in one dtype or another."""

    dtype = torch.float64

    def hidden(self, x: Tensor) -> Tensor:
        y = torch.relu(self.up(x))
        return y * (torch.rand_like(y, dtype=self.dtype) < 0.5).to(y.dtype)

    def forward(self, x: Tensor) -> Tensor:
        loss: Tensor = self.down(self.hidden(x)).pow(2).mean()
        return loss


def noisy() -> Any:
    return Noisy(), (torch.randn(8, 8),)


@pytest.mark.parametrize(("both", "status"), [(True, "proved"), (False, "unknown")])
def test_numbers_of_one_seed_are_not_the_same_in_another_dtype(both: bool, status: str) -> None:
    def parallel(net: Any, mesh: Any) -> ParallelStep:
        torch.manual_seed(3)
        if not both and mesh.get_local_rank("tp") == 1:
            net.dtype = torch.float32

        def step(x: Tensor) -> Tensor:
            loss: Tensor = net(x)
            loss.backward()
            return loss

        return ParallelStep(step)

    verdict = tensure.prove(parallel, noisy, mesh={"tp": 2}).proof.values
    assert verdict.status == status, verdict
    assert both or "draws other numbers than" in verdict.reason
