"""Which ranks a traced text stands for is told with its reason: in result, certificate and page."""

from __future__ import annotations

import json

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard

import tensure
from tensure.capture import ParallelStep
from tensure.proving import check_certificate


class Net(nn.Module):
    """A mean of squares."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(x).square().mean()


def model() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """With two rows for each of 512 ranks."""
    return Net(), (torch.zeros(1024, 4),)


def replicas(net: nn.Module, mesh: DeviceMesh) -> ParallelStep:
    """Gradients averaged by hand; nobody asks for a place."""

    def step(x: Tensor) -> Tensor:
        loss = net(x)
        loss.backward()
        for parameter in net.parameters():
            assert parameter.grad is not None
            dist.all_reduce(parameter.grad, group=mesh.get_group("dp"))
            parameter.grad /= mesh.size(0)
        total = loss.detach().clone()
        dist.all_reduce(total, group=mesh.get_group("dp"))
        return total / mesh.size(0)

    return ParallelStep(step, inputs=[{"dp": Shard(0)}])


def one_scales(net: nn.Module, mesh: DeviceMesh) -> ParallelStep:
    """The same, but rank 300 counts double."""
    right = replicas(net, mesh)

    def step(x: Tensor) -> Tensor:
        if dist.get_rank() == 300:
            x = x * 2
        return right.step(x)  # type: ignore[no-any-return]

    return ParallelStep(step, inputs=right.inputs)


def test_classes_are_listed_with_their_reasons() -> None:
    result = tensure.prove(replicas, model, mesh={"dp": 512})
    assert result.proof.values.status == "proved" and result.certificate is not None
    assert [ranks for ranks, _ in result.classes] == ["dp 0:512"]
    assert "no coordinate is read along dp" in result.classes[0][1]
    assert json.loads(result.certificate)["classes"] == [list(row) for row in result.classes]
    assert check_certificate(result.certificate, result.plan, result.program).accepted
    assert "Who does the same" in tensure.api.proof_page(result)


def test_a_rank_of_its_own_is_a_class_of_its_own_and_refuted() -> None:
    result = tensure.prove(one_scales, model, mesh={"dp": 512})
    assert [ranks for ranks, _ in result.classes] == ["dp 0:300", "dp 300", "dp 301:512"]
    assert "test_prove_classes.py" in result.classes[1][1]
    found = result.proof.values
    assert found.status == "refuted" and found.counterexample is not None
    assert (
        "300" in found.counterexample.step
        and "test_prove_classes.py" in found.counterexample.step + found.counterexample.source
    )


def test_few_ranks_are_traced_by_themselves() -> None:
    result = tensure.prove(replicas, model, mesh={"dp": 2})
    assert result.classes == (("every rank", "traced by itself"),)
