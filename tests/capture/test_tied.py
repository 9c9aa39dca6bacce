"""One parameter under two names, embedding and head: on one rank, or on two pipeline stages."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Partial, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import tensure
from tensure.bundle import canonical_json
from tensure.capture import ParallelStep, capture_model, capture_parallel, replay_step
from tensure.proving import check_certificate

WORDS, DIM = 12, 4


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tok, self.norm = nn.Embedding(WORDS, DIM), nn.LayerNorm(DIM)
        self.head = nn.Linear(DIM, WORDS, bias=False)
        self.head.weight = self.tok.weight

    def forward(self, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self.head(self.norm(self.tok(ids))), targets)


def model() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    return Net(), (torch.randint(0, WORDS, (6,)), torch.randint(0, WORDS, (6,)))


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3)


class First(nn.Module):
    def __init__(self, net: Any) -> None:
        super().__init__()
        self.tok = net.tok


class Last(nn.Module):
    """Its only name for the tied parameter is that of the head."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.norm, self.head = net.norm, net.head


def staged(net: Any, mesh: DeviceMesh, adds: bool = True, reads: bool = True) -> ParallelStep:
    """Two stages; each adds up the gradients of the tied parameter, if `adds`.

    Args:
        reads: the last stage's part of the gradient is there, none if not.
    """
    rank, group = mesh.get_local_rank("pp"), mesh.get_group("pp")
    stage: Any = (First if rank == 0 else Last)(net)

    def step(ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if rank == 0:
            out = stage.tok(ids)
            dist.send(out.detach(), 1, group=group)
            grad = torch.empty_like(out)
            dist.recv(grad, 1, group=group)
            out.backward(grad)
            loss = torch.zeros(())
        else:
            x = torch.empty(len(ids), DIM)
            dist.recv(x, 0, group=group)
            x.requires_grad_()
            weight = stage.head.weight if reads else stage.head.weight.detach()
            loss = F.cross_entropy(F.linear(stage.norm(x), weight), targets)
            loss.backward()
            dist.send(x.grad, 0, group=group)
        weight = (stage.tok if rank == 0 else stage.head).weight
        if adds:
            dist.all_reduce(weight.grad, group=group)
        return loss.detach()

    return ParallelStep(step, module=stage, outputs=({"pp": Partial()},))


def parallelized(net: Any, mesh: DeviceMesh) -> None:
    """Each gets a distributed parameter of its own: no longer tied."""
    plan = {
        "tok": RowwiseParallel(input_layouts=Replicate()),
        "head": ColwiseParallel(output_layouts=Replicate()),
    }
    parallelize_module(net, mesh["pp"], plan)


def added(net: Any, mesh: DeviceMesh, factor: float = 1.0) -> Callable[..., torch.Tensor]:
    """Untied, but each gets the sum of the gradients of both, the head's `factor` times."""
    parallelized(net, mesh)

    def step(ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = net(ids, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        total = net.tok.weight.grad + factor * net.head.weight.grad
        net.tok.weight.grad, net.head.weight.grad = total, total.clone()
        return loss

    return step


def retied(net: Any, mesh: DeviceMesh) -> None:
    parallelized(net, mesh)
    net.head.weight = net.tok.weight


def prove(parallel: Any, optimizer: Any = None) -> Any:
    return tensure.prove(parallel, model, mesh={"pp": 2}, optimizer=optimizer)


@pytest.mark.parametrize("optimizer", [None, adamw], ids=["gradients", "optimizer"])
@pytest.mark.parametrize("parallel", [staged, added, retied], ids=["stages", "added", "tied again"])
def test_tied_gradients_added_up_are_proved(parallel: Any, optimizer: Any) -> None:
    result = prove(parallel, optimizer)
    assert result.proof.values.status == "proved", result.proof.values


def test_other_name_is_compared_too() -> None:
    result = prove(staged)
    assert {item.name for item in result.tensors} == {
        "loss",
        "grad.tok.weight",
        "grad.norm.weight",
        "grad.norm.bias",
    }
    track = result.plan.tracks
    names = {name for each in track.values() for name in (*each.locals, *result.plan.locals)}
    assert {"grad.tok.weight", "grad.head.weight"} <= names


@pytest.mark.parametrize("optimizer", [None, adamw], ids=["gradients", "optimizer"])
def test_stages_that_forget_to_add_are_refuted(optimizer: Any) -> None:
    verdict = prove(partial(staged, adds=False), optimizer).proof.values
    assert verdict.status == "refuted"
    assert verdict.counterexample.claim.startswith(("grad.tok.weight", "new.tok.weight"))


def test_stage_without_a_gradient_of_its_name_is_refuted() -> None:
    """The last stage uses the parameter and leaves no gradient of it under any name."""
    verdict = prove(partial(staged, adds=False, reads=False)).proof.values
    assert verdict.status == "refuted"


@pytest.mark.parametrize("optimizer", [None, adamw], ids=["gradients", "optimizer"])
def test_untied_silently_is_refuted_and_says_so(optimizer: Any) -> None:
    result = prove(parallelized, optimizer)
    assert result.proof.values.status == "refuted"
    wrong = next(item for item in result.tensors if item.status == "refuted")
    said = "head.weight is tok.weight in the model (tied) and no longer is after the parallel function; "
    assert wrong.name == ("grad.tok.weight" if optimizer is None else "new.tok.weight")
    assert wrong.why.startswith(said)


def test_one_of_two_counted_twice_is_refuted() -> None:
    assert prove(partial(added, factor=2.0)).proof.values.status == "refuted"


@pytest.mark.parametrize("way", ["LocalTensorMode", "threads"])
def test_replay_compares_under_every_name(way: str) -> None:
    def replayed(parallel: Any) -> Any:
        captured = capture_model(model)
        plan = capture_parallel(model, parallel, {"pp": 2}, captured)
        return replay_step(model, parallel, plan, captured.program, ways=[way])

    if way == "threads":  # ranks that do not all do the same
        assert replayed(staged).status == "agrees"
        assert replayed(partial(staged, adds=False)).status == "differs"
    assert replayed(added).status == "agrees"
    found = replayed(parallelized)
    assert (found.status, found.outputs[0][0]) == ("differs", "grad.tok.weight")


def twice(net: nn.Module, mesh: DeviceMesh, first: float = 0.5) -> ParallelStep:
    """Two micro-batches, both averaged over ranks: the first one's gradients, once more with the second's.

    Args:
        first: the share of the first one's loss.
    """
    copies = DistributedDataParallel(net, process_group=mesh.get_group("dp"))

    def step(ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(())
        for share, some, their in zip((first, 0.5), ids.chunk(2), targets.chunk(2), strict=True):
            loss = share * copies(some, their)
            loss.backward()
            total += loss.detach()
        return total

    rows = {"dp": Shard(0)}
    return ParallelStep(step, module=copies, inputs=(rows, rows), outputs=({"dp": Partial("avg")},))


def replicated(parallel: Any) -> Any:
    def even() -> Any:
        return Net(), (torch.randint(0, WORDS, (8,)), torch.randint(0, WORDS, (8,)))

    return tensure.prove(parallel, even, mesh={"dp": 2})


def test_gradients_reduced_after_every_microbatch_are_proved() -> None:
    """What is reduced last is the whole gradient of some samples and addends of others, each a sum of two."""
    result = replicated(twice)
    assert result.proof.values.status == "proved", result.proof.values
    row = json.loads(result.certificate)
    claims = [claim for claim in row["invocations"][0]["locals"] if claim[1].startswith("view")]
    some = [claim for claim in claims if len(claim[2]) == 2]
    assert some
    for claim in some:  # planted: as often the one as the other
        kept = claim[2][0][0]
        claim[2][0][0] = "3/1"
        report = check_certificate(canonical_json(row), result.plan, result.program)
        assert not report.accepted
        assert "follow" in report.reason
        claim[2][0][0] = kept
    assert check_certificate(canonical_json(row), result.plan, result.program).accepted


def test_a_share_too_much_is_refuted() -> None:
    assert replicated(partial(twice, first=1.0)).proof.values.status == "refuted"
