"""A row-parallel layer with its bias on activations of three dims, and a loss by class."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from torch import Tensor, nn
from torch.distributed.tensor import Partial, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import tensure
from tensure.bundle import plan_digest
from tensure.bundle._json import canonical_json
from tensure.capture import ParallelStep


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        y = x + self.down(torch.relu(self.up(self.norm(x))))
        if target.dtype == torch.int64:
            return nn.functional.cross_entropy(y.flatten(0, -2), target.flatten())
        return (y - target).pow(2).mean()


def model(*shape: int, classes: bool = False) -> Callable[[], Any]:
    def made() -> Any:
        target = torch.randint(0, 16, shape) if classes else torch.randn(*shape, 16)
        return Net(), (torch.randn(*shape, 16), target)

    return made


def rows(net: Any, mesh: Any) -> None:
    parallelize_module(net, mesh["tp"], {"up": ColwiseParallel(), "down": RowwiseParallel()})


@pytest.mark.parametrize("shape", [(8,), (4, 6), (1, 8), (2, 2, 3)])
@pytest.mark.parametrize("classes", [False, True])
def test_row_parallel_with_a_bias_is_proved(shape: tuple[int, ...], classes: bool) -> None:
    found = tensure.prove(rows, model(*shape, classes=classes), mesh={"tp": 2})
    assert found.proof.values.status == "proved", found.proof.values
    assert found.certificate is not None
    assert tensure.api.check(found.certificate, found.plan, found.program).accepted


class ScatteredSum(torch.autograd.Function):
    """A sum over ranks by sequences: each rank sums its own, and all get all."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any, is_right: bool) -> Any:
        parts = x.chunk(2, 1) if is_right else x.chunk(2, 1)[::-1]
        mine = funcol.wait_tensor(funcol.reduce_scatter_single(torch.cat(parts), "sum", 0, group))  # type: ignore[no-untyped-call]
        return torch.cat(funcol.wait_tensor(funcol.all_gather_single(mine, 0, group)).chunk(2), 1)  # type: ignore[no-untyped-call]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad, None, None


class Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return funcol.wait_tensor(funcol.all_reduce(grad, "sum", ctx.group)), None  # type: ignore[no-untyped-call]


def by_sequences(share: float = 2.0, is_right: bool = True) -> Any:
    def parallel(net: Any, mesh: Any) -> Any:
        group, rank = mesh.get_group("tp"), mesh.get_local_rank("tp")
        for layer, dim in ((net.up, 0), (net.down, 1)):
            layer.weight = nn.Parameter(layer.weight.chunk(2, dim)[rank])
        net.up.bias = nn.Parameter(net.up.bias.chunk(2)[rank])

        def step(x: Tensor, target: Tensor) -> Any:
            h = Summed.apply(net.norm(x), group)  # type: ignore[no-untyped-call]
            bias = Summed.apply(net.down.bias, group) / share  # type: ignore[no-untyped-call]
            part = nn.functional.linear(torch.relu(net.up(h)), net.down.weight, bias)
            y = x + ScatteredSum.apply(part, group, is_right)  # type: ignore[no-untyped-call]
            loss = (y - target).pow(2).mean()
            loss.backward()
            return loss

        return step

    return parallel


def test_row_parallel_with_a_bias_and_a_cut_sequence_is_proved() -> None:
    """What is scattered is a join of sums: the part of a product, and the rank's share of the bias."""
    found = tensure.prove(by_sequences(), model(4, 6), mesh={"tp": 2})
    assert found.proof.values.status == "proved", found.proof.values
    assert found.certificate is not None
    assert tensure.api.check(found.certificate, found.plan, found.program).accepted


@pytest.mark.parametrize("wrong", [{"share": 1.0}, {"is_right": False}], ids=["whole", "swapped"])
def test_a_join_of_other_sums_is_refuted(wrong: Any) -> None:
    found = tensure.prove(by_sequences(**wrong), model(4, 6), mesh={"tp": 2})
    assert found.proof.values.status == "refuted"
    right = tensure.prove(by_sequences(), model(4, 6), mesh={"tp": 2}).certificate
    assert right is not None
    row = json.loads(right)
    row["plan"] = plan_digest(found.plan)
    assert not tensure.api.check(canonical_json(row), found.plan, found.program).accepted


def test_a_bias_added_once_a_rank_is_refuted() -> None:
    class Reduced(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, group: Any) -> Any:
            return funcol.all_reduce(x, "sum", group)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            return grad, None

    def by_hand(net: Any, mesh: Any) -> Any:
        group, rank = mesh.get_group("tp"), mesh.get_local_rank("tp")
        for layer, dim in ((net.up, 0), (net.down, 1)):
            layer.weight = nn.Parameter(layer.weight.chunk(2, dim)[rank])
        net.up.bias = nn.Parameter(net.up.bias.chunk(2)[rank])

        def step(x: Tensor, target: Tensor) -> Any:
            y = x + Reduced.apply(net.down(torch.relu(net.up(net.norm(x)))), group)  # type: ignore[no-untyped-call]
            loss = (y - target).pow(2).mean()
            loss.backward()
            return loss

        return step

    found = tensure.prove(by_hand, model(4, 6), mesh={"tp": 2})
    assert found.proof.values.status == "refuted"


def test_a_wrong_scale_is_named_where_it_is_and_not_at_the_loss() -> None:
    def halved(net: Any, mesh: Any) -> ParallelStep:
        def step(x: Tensor, target: Tensor) -> Tensor:
            loss = net(x, target)
            loss.backward()  # type: ignore[no-untyped-call]
            for weight in net.parameters():
                dist.all_reduce(weight.grad, group=mesh.get_group("dp"))
                weight.grad /= 4
            return loss

        cut = {"dp": Shard(0)}
        return ParallelStep(step, inputs=(cut, cut), outputs=({"dp": Partial("avg")},))

    verdict = tensure.prove(halved, model(8, classes=True), mesh={"dp": 2}).proof.values
    assert verdict.status == "refuted" and verdict.counterexample is not None
    assert "div_0 = div" in verdict.counterexample.step and "1/2 * " in verdict.counterexample.step
