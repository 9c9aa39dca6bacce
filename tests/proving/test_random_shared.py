"""Generators that the model and all ranks share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import tensure
from tensure.capture import ParallelStep
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
