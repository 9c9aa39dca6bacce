"""A broken claim at the end of a step leads back to the step that began it, tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from torch import nn

import tensure
from tensure.api import proof_page
from tensure.capture import ParallelStep


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8, bias=False), nn.Linear(8, 6, bias=False)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (self.second(torch.tanh(self.first(x))).exp() - y).pow(2).mean()


def model() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    return Net(), (torch.randn(4, 6), torch.randn(4, 6))


class Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: Any) -> torch.Tensor:
        return funcol.all_reduce(x, "sum", group)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad, None


def step_of(change: Callable[..., torch.Tensor]) -> Callable[..., ParallelStep]:
    """Column- and row-parallel layers; `change` has the partial outputs and says what goes on."""

    def parallel(net: Net, mesh: Any) -> ParallelStep:
        group, rank = mesh.get_group("tp"), mesh.get_local_rank("tp")
        net.first.weight = nn.Parameter(net.first.weight.chunk(2)[rank])
        net.second.weight = nn.Parameter(net.second.weight.chunk(2, dim=1)[rank])

        def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            part = net.second(torch.tanh(net.first(x)))
            loss = (change(part, group, rank).exp() - y).pow(2).mean()
            loss.backward()
            return loss

        return ParallelStep(step)

    return parallel


def right(part: torch.Tensor, group: Any, rank: int) -> torch.Tensor:
    return Summed.apply(part, group)  # type: ignore[no-any-return, no-untyped-call]


def forgotten(part: torch.Tensor, group: Any, rank: int) -> torch.Tensor:
    return part


def doubled_on_one(part: torch.Tensor, group: Any, rank: int) -> torch.Tensor:
    whole: torch.Tensor = Summed.apply(part, group)  # type: ignore[no-untyped-call]
    return whole * 2 if rank == 1 else whole * 1


def test_the_right_step_has_nothing_to_tell() -> None:
    result = tensure.prove(step_of(right), model, mesh={"tp": 2})
    assert result.proof.values.status == "proved", result.proof.values
    assert {item.status for item in result.tensors} == {"proved"}
    assert {item.name for item in result.tensors} == {"loss", "grad.first.weight", "grad.second.weight"}
    page = proof_page(result)
    assert "Proved" in page and "Where it fails" not in page
    assert page.count(">proved<") == 3


@pytest.mark.parametrize(
    ("change", "step", "words"),
    [
        (forgotten, "exp_0 = exp(...)", "the addend (k"),
        (doubled_on_one, "exp_0 = exp(...)", "2 * "),
    ],
)
def test_the_first_step_astray_is_named(change: Any, step: str, words: str) -> None:
    result = tensure.prove(step_of(change), model, mesh={"tp": 2})
    values = result.proof.values
    assert values.status == "refuted"
    found = values.counterexample
    assert found is not None
    assert step in found.step
    assert words in found.step
    assert "test_suspects.py:" in found.source
    by_name = {item.name: item for item in result.tensors}
    assert by_name["loss"].status == "refuted"
    assert by_name["loss"].step == step
    page = proof_page(result)
    assert "Where it fails" in page and ">refuted<" in page and "test_suspects.py:" in page


def test_a_rank_that_is_wrong_alone_is_named() -> None:
    result = tensure.prove(step_of(doubled_on_one), model, mesh={"tp": 2})
    found = result.proof.values.counterexample
    assert found is not None
    assert "tp1" in found.rank or "tp1" in found.step.partition("first astray on ")[2]


def test_a_collective_leads_back_to_the_member_that_went_astray() -> None:
    """What rank 0 has is wrong because of what rank 1 gave."""

    def change(part: torch.Tensor, group: Any, rank: int) -> torch.Tensor:
        given = part.square().sqrt() if rank == 1 else part
        whole = given.detach().clone()
        dist.all_reduce(whole, group=group)
        return part - part.detach() + whole

    result = tensure.prove(step_of(change), model, mesh={"tp": 2})
    loss = next(item for item in result.tensors if item.name == "loss")
    assert loss.status == "refuted"
    assert loss.step.startswith(("pow_", "square_"))


def test_what_a_page_shows_cannot_break_it() -> None:
    result = tensure.prove(step_of(forgotten), model, mesh={"tp": 2})
    from dataclasses import replace

    bad = replace(result, tensors=tuple(replace(item, why="<script>x</script>") for item in result.tensors))
    assert "<script>" not in proof_page(bad)
