"""Random numbers that ranks read in another way than the model: of one distribution, or not."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import Partial, Shard

import tensure
from tensure.capture import ParallelStep, one_state_a_seed
from tensure.capture._generators import Generators
from tensure.errors import UnsupportedError
from tensure.proving._ensemble import are_apart

DP = {"dp": 2}
WAY = "reads random numbers in another way"
Noise = Callable[[Tensor, int], Tensor]


class One(nn.Module):
    """One layer, and something random done to its features."""

    def __init__(self, noise: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.up, self.noise = nn.Linear(8, 8), noise

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return (self.noise(torch.relu(self.up(x))) - target).pow(2).mean()


def dropped(h: Tensor) -> Tensor:
    return nn.functional.dropout(h, 0.5, True)


def masked(h: Tensor) -> Tensor:
    return h * (torch.rand_like(h) < 0.5) * 2


def noisy(h: Tensor) -> Tensor:
    return h + torch.randn_like(h)


def verdict(
    model_noise: Callable[[Tensor], Tensor],
    own: Noise,
    seed: Callable[[int], int] = lambda rank: 1 + rank,
    *,
    reduced: bool = True,
) -> Any:
    """A rank's own noise where the model has another."""

    def model() -> Any:
        return One(model_noise), (torch.randn(8, 8), torch.randn(8, 8))

    def parallel(net: Any, mesh: Any) -> ParallelStep:
        group, rank = mesh.get_group("dp"), mesh.get_local_rank("dp")
        net.noise = lambda h: own(h, rank)

        def step(x: Tensor, target: Tensor) -> Tensor:
            torch.manual_seed(seed(rank))
            loss: Tensor = net(x, target)
            loss.backward()
            for weight in net.parameters():
                if reduced:
                    dist.all_reduce(weight.grad, group=group)
                    weight.grad /= 2
            return loss

        rows = {"dp": Shard(0)}
        return ParallelStep(step, inputs=(rows, rows), outputs=({"dp": Partial("avg")},))

    return tensure.prove(parallel, model, mesh=DP, replay=False).proof.values


SAME_LAW: dict[str, tuple[Callable[[Tensor], Tensor], Noise]] = {
    "kept where it was dropped": (masked, lambda h, _: h * (torch.rand_like(h) >= 0.5) * 2),
    "kept where it was dropped, of a shape": (dropped, lambda h, _: h * (torch.rand(h.shape) >= 0.5) * 2),
    "rounded down": (masked, lambda h, _: h * (torch.rand_like(h) + 0.5).floor() * 2),
    "the middle of the numbers": (
        masked,
        lambda h, _: h * ((torch.rand_like(h) - 0.5).abs() < 0.25) * 2,
    ),
    "subtracted": (noisy, lambda h, _: h - torch.randn_like(h)),
    "the sum of two": (noisy, lambda h, _: h + (torch.randn_like(h) + torch.randn_like(h)) / 2**0.5),
    "a half of more": (noisy, lambda h, _: h + torch.randn(8, 8)[:4]),
}


@pytest.mark.parametrize("name", SAME_LAW)
def test_numbers_of_one_law_are_not_refuted(name: str) -> None:
    found = verdict(*SAME_LAW[name])
    assert found.status == "unknown" and WAY in found.reason, found


OTHER_LAW: dict[str, tuple[Callable[[Tensor], Tensor], Noise]] = {
    "another chance, of a shape": (dropped, lambda h, _: h * (torch.rand(h.shape) >= 0.45) / 0.55),
    "larger noise": (noisy, lambda h, _: h - 1.2 * torch.randn_like(h)),
    "the sum of two, not scaled": (noisy, lambda h, _: h + torch.randn_like(h) + torch.randn_like(h)),
    "another function of the features": (
        masked,
        lambda h, _: torch.tanh(h) * (torch.rand_like(h) >= 0.5) * 2,
    ),
}


@pytest.mark.parametrize("name", OTHER_LAW)
def test_numbers_of_another_law_are_refuted(name: str) -> None:
    found = verdict(*OTHER_LAW[name])
    assert found.status == "refuted" and "many draws" in found.method, found


def test_what_reads_them_as_the_model_does_is_refuted_by_one_replay() -> None:
    found = verdict(dropped, lambda h, _: dropped(h), reduced=False)
    assert found.status == "refuted" and found.method == "relations and replay", found
    found = verdict(dropped, lambda h, _: dropped(torch.tanh(h)))
    assert found.status == "refuted" and found.method == "relations and replay", found
    found = verdict(dropped, lambda h, _: dropped(2 * h))
    assert found.status == "refuted" and found.method == "relations and replay", found


def test_what_is_not_read_need_not_be_apart() -> None:
    """Each rank draws for all rows and takes its own: what both drew is read of one of them."""
    own = verdict(noisy, lambda h, rank: h + torch.randn(8, 8)[4 * rank :][:4])
    assert own.status == "unknown" and "other numbers than" in own.reason, own
    one = verdict(noisy, lambda h, rank: h + torch.randn(8, 8)[4 * rank :][:4], lambda _: 1)
    assert one.status == "proved", one


def test_opposite_numbers_of_one_seed_are_not_independent() -> None:
    found = verdict(noisy, lambda h, rank: h + (1 - 2 * rank) * torch.randn_like(h), lambda _: 1)
    assert found.status == "refuted" and "the same numbers as" in str(found.counterexample), found


# --- seeds that are one on some devices ---------------------------------------------------------------


@pytest.mark.parametrize("seeds", [(7, 7 + (1 << 32)), (-1, 0xFFFFFFFF), (7 - (1 << 32), 7)])
def test_seeds_that_agree_in_their_low_bits_are_neither_one_nor_two(seeds: tuple[int, int]) -> None:
    found = verdict(noisy, lambda h, _: noisy(h), lambda rank: seeds[rank])
    assert found.status == "unknown" and "in its low 32 bits" in found.reason, found


def test_large_seeds_that_differ_there_are_two() -> None:
    found = verdict(noisy, lambda h, _: noisy(h), lambda rank: (7 + rank) << 16 | 5 << 40)
    assert found.status == "proved", found


def test_real_ranks_with_such_seeds_are_refused_by_name() -> None:
    def ranks(*seeds: int) -> Any:
        rows = []
        for rank, seed in enumerate(seeds):
            generators = Generators(is_live=True)
            own = torch.Generator().manual_seed(seed)
            generators.take("uniform", 4, torch.float32, own)
            bases = {key: sorted(found) for key, found in generators.bases.items()}
            rows.append(SimpleNamespace(rank=rank, bases=bases))
        return rows

    one_state_a_seed(ranks(7, 7, 8))
    with pytest.raises(UnsupportedError, match="seed 4294967303, and of rank 0 from one of seed 7"):
        one_state_a_seed(ranks(7, 7 + (1 << 32)))


# --- samples ------------------------------------------------------------------------------------------


def samples(seed: int, change: Callable[[Any], Any]) -> list[tuple[Any, Any]]:
    rng = np.random.default_rng(seed)
    drawn = rng.standard_normal((240, 2, 3, 4))
    return [(change(one), other) for one, other in drawn]


def test_samples_of_one_distribution_are_not_told_apart() -> None:
    for change in (lambda x: x, lambda x: -x, lambda x: x[::-1], lambda x: x * (1 + 1e-15)):
        assert not any(are_apart(samples(seed, change), 40) for seed in range(20))
    constant = [(np.ones((2, 2)) + 1e-14, np.ones((2, 2)))] * 240
    assert not are_apart(constant, 40)


def test_samples_of_two_distributions_are() -> None:
    for change in (lambda x: x + 0.5, lambda x: 1.5 * x, lambda x: x * (x > 0) * 2):
        assert are_apart(samples(1, change), 40)
    assert are_apart([(np.ones((2, 2)) + 1e-3, np.ones((2, 2)))] * 240, 40)
