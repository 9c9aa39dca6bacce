"""Experts on their own ranks: tokens go there and back by two all-to-alls."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Partial, Shard

import tensure
from tensure.capture import ParallelStep

EXPERTS, DIM, TOKENS = 4, 4, 6
FAULTS = ("tokens in the order of ranks", "gradients of experts not averaged", "experts of the other rank")


class Experts(nn.Module):
    def __init__(self, is_dense: bool) -> None:
        super().__init__()
        self.is_dense = is_dense
        self.gate = nn.Linear(DIM, EXPERTS)
        self.weight = nn.Parameter(torch.randn(EXPERTS, DIM, DIM))

    def shares(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each token for each expert, and what multiplies what comes back: all of them, or the best."""
        gates = self.gate(x).softmax(-1)
        if self.is_dense:
            return gates, torch.ones(len(x))
        best, where = gates.max(-1)
        return F.one_hot(where, EXPERTS).to(x.dtype), best

    def forward(self, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        one, best = self.shares(x)
        made = F.relu(torch.bmm(x[None] * one.t()[..., None], self.weight))
        return ((made * one.t()[..., None]).sum(0) * best[:, None] - target).pow(2).mean()


def model(is_dense: bool = False) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    return Experts(is_dense), (torch.randn(TOKENS, DIM), torch.randn(TOKENS, DIM))


class Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: Any) -> torch.Tensor:
        ctx.group = group
        out = torch.empty_like(x)
        dist.all_to_all_single(out, x.contiguous(), group=group)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        return Exchange.apply(grad, ctx.group), None


def on_ranks(net: Any, mesh: DeviceMesh, fault: str = "") -> ParallelStep:
    group, rank, count = mesh.get_group("ep"), mesh.get_local_rank("ep"), mesh["ep"].size()
    net.weight = nn.Parameter(net.weight.detach().chunk(count)[rank].clone())

    def step(x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        one, best = net.shares(x)
        sent = x[None] * one.t()[..., None]
        if fault == "experts of the other rank":
            sent = sent.roll(EXPERTS // count, 0)
        got = Exchange.apply(sent, group).view(count, EXPERTS // count, -1, DIM)
        made = F.relu(torch.bmm(got.transpose(0, 1).reshape(EXPERTS // count, -1, DIM), net.weight))
        made = made.view(EXPERTS // count, count, -1, DIM)
        if fault != "tokens in the order of ranks":
            made = made.transpose(0, 1)
        back = Exchange.apply(made.reshape(EXPERTS, -1, DIM), group)
        loss = ((back * one.t()[..., None]).sum(0) * best[:, None] - target).pow(2).mean()
        loss.backward()
        for parameter in net.gate.parameters():
            dist.all_reduce(parameter.grad, group=group)
            parameter.grad /= count
        if fault != "gradients of experts not averaged":
            net.weight.grad /= count
        return loss

    rows = {"ep": Shard(0)}
    return ParallelStep(step, inputs=(rows, rows), outputs=({"ep": Partial("avg")},))


def test_shares_of_every_expert_are_proved() -> None:
    verdict = tensure.prove(on_ranks, partial(model, is_dense=True), mesh={"ep": 2}).proof.values
    assert verdict.status == "proved", verdict


def test_one_expert_a_token_is_right_in_the_field() -> None:
    """A one-hot row is no value that rules know of a part of the tokens."""
    verdict = tensure.prove(on_ranks, model, mesh={"ep": 2}).proof.values
    assert verdict.status in ("probable", "proved"), verdict
    assert verdict.status == "proved" or verdict.error < 1e-20


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("is_dense", [True, False], ids=["all", "best"])
def test_fault_is_refuted(fault: str, is_dense: bool) -> None:
    wrong, whole = partial(on_ranks, fault=fault), partial(model, is_dense=is_dense)
    verdict = tensure.prove(wrong, whole, mesh={"ep": 2}).proof.values
    assert verdict.status == "refuted"
