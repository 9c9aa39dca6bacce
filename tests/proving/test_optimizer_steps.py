"""Optimizer steps are proved, certificates checked again; one mistake each is refuted at its place."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.distributed.device_mesh import DeviceMesh

import tensure
from tensure.capture import NamedPlan, ParallelStep, capture_model, capture_parallel, named_plan
from tensure.proving import ProofResult, check_certificate, prove_plan
from tests.capture.steps import wrong_claims
from tests.proving.optimizer_steps import (
    Momentum,
    Net,
    adamw,
    by_hand,
    cut_by_hand,
    data_parallel,
    ddp,
    fsdp,
    fsdp_over_tensor_parallel,
    model,
    own_momentum,
    pipeline,
    tensor_parallel,
    zero,
    zero_flat,
    zero_redundancy,
)

DP, TP = {"dp": 4}, {"tp": 4}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """torch marks its collectives on single tensors as deprecated, by newer names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def proved(single: Any, parallel: Any, mesh: dict[str, int], **named: Any) -> ProofResult:
    result = tensure.prove(parallel, single, mesh=mesh, **named)
    values = result.proof.values
    assert values.status == "proved", (values.reason, values.counterexample)
    assert result.certificate is not None
    report = check_certificate(result.certificate, result.plan, result.program)
    assert report.accepted, report.reason
    return result


def nesterov(parameters: Any, **options: Any) -> Any:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True, **options)


def foreach(parameters: Any) -> Any:
    return adamw(parameters, foreach=True)


def another_epsilon(parameters: Any) -> Any:
    return adamw(parameters, eps=1e-7)


def all_but_one(parameters: Any) -> Any:
    return adamw(list(parameters)[:-1])


def fused(parameters: Any) -> Any:
    return adamw(parameters, fused=True)


RIGHT = {
    "ddp": (model(), ddp(), DP),
    "ddp, clipped": (model(clip=True), ddp(clip=True), DP),
    "ddp, a loop and lists": (model(), ddp(foreach), DP),
    "ddp, lists and a kernel": (model(foreach), ddp(fused), DP),
    "ddp, nesterov": (model(nesterov), ddp(nesterov), DP),
    "averaged by hand, clipped": (model(clip=True), by_hand(), DP),
    "fsdp, clipped": (model(clip=True), fsdp(clip=True), DP),
    "fsdp of uneven shards, clipped": (model(clip=True, rows=9), fsdp(clip=True), {"dp": 3}),
    "fsdp over dtensor, clipped": (
        model(clip=True, normed=False),
        fsdp_over_tensor_parallel(),
        {"dp": 2, "tp": 2},
    ),
    "a pipeline, clipped": (model(clip=True, normed=False), pipeline(), {"pp": 2}),
    "fsdp, a loop and lists": (model(), fsdp(foreach), {"dp": 2}),
    "fsdp, nesterov": (model(nesterov), fsdp(nesterov), DP),
    "dtensor on two ranks, clipped": (model(clip=True), tensor_parallel(clip=True), {"tp": 2}),
    "dtensor, lists, clipped": (model(clip=True), tensor_parallel(foreach, clip=True), TP),
    "cut by hand, clipped": (model(clip=True), cut_by_hand(), TP),
    "torch's zero 1, clipped": (model(clip=True), zero_redundancy(clip=True), DP),
    "zero 1": (model(), zero(1), DP),
    "zero 2, clipped": (model(clip=True), zero(2, clip=True), DP),
    "an optimizer of one's own": (model(Momentum), own_momentum(), DP),
}


@pytest.mark.parametrize("name", RIGHT)
def test_optimizer_steps_are_proved(name: str) -> None:
    result = proved(*RIGHT[name])
    assert any(item.name == "new.down.weight" for item in result.tensors)


@pytest.mark.parametrize("name", ["fsdp, clipped", "dtensor on two ranks, clipped", "zero 2, clipped"])
def test_a_replay_finds_nothing_wrong(name: str) -> None:
    """What is proved is also so in numpy, on drawn numbers."""
    single, parallel, mesh = RIGHT[name]
    captured = capture_model(single)
    assert wrong_claims(captured, capture_parallel(single, parallel, mesh, captured)) == []


def test_flat_shards_claim_their_states_box_by_box() -> None:
    """States of several parameters, cut anywhere (more in `test_flat_steps.py`)."""
    single = model(rows=9)
    captured = capture_model(single)
    plan = capture_parallel(single, zero_flat(), {"dp": 3}, captured)
    assert wrong_claims(captured, plan) == []
    claimed = {local for track in plan.tracks.values() for local in track.locals}
    assert {"new.up.weight.exp_avg", "new.up.weight.exp_avg.1"} <= claimed  # a row is cut
    assert prove_plan(plan, captured.program).proof.values.status == "proved"
    wrong = tensure.prove(zero_flat(fault="sum for mean"), single, mesh={"dp": 3}).proof.values
    assert wrong.status == "refuted"


def test_real_sizes() -> None:
    """Clipped AdamW on shards of a layer pair of 536 million parameters, on eight ranks."""
    proved(model(clip=True, hidden=8192, inner=32768, rows=2048), fsdp(clip=True), {"dp": 8})


FAULTS = {
    "replicated norm twice": (model(clip=True), cut_by_hand(fault="replicated norm twice"), TP, "full", ""),
    "norm of own shards": (model(clip=True), cut_by_hand(fault="norm of own shards"), TP, "sqrt", ""),
    "norm of own shards, fsdp": (model(clip=True), fsdp(fault="norm of own shards"), DP, "sqrt", ""),
    "decay on one shard": (model(), fsdp(fault="decay on one shard"), DP, "add", "AdamW"),
    "unreduced gradient": (model(), zero(1, fault="unreduced gradient"), DP, "_to_copy", "AdamW"),
    "a moment of one's own": (model(Momentum), own_momentum(fault="unreduced"), DP, "add", "Momentum"),
    "sum for mean": (model(clip=True), by_hand(fault="sum for mean"), DP, "sqrt", ""),
    "stale parameter": (model(), zero(2, fault="stale parameter"), DP, "all_gather", ""),
    "betas swapped": (model(), ddp(fault="betas swapped"), DP, "_to_copy", "AdamW"),
    "wrong step": (model(), ddp(fault="wrong step"), DP, "_to_copy", "AdamW"),
    "another epsilon": (model(), ddp(another_epsilon), DP, "div", "AdamW"),
    "a parameter left out": (model(), ddp(all_but_one), DP, "_to_copy", ""),
}
WHERE = {
    "unreduced gradient": "new.up.weight",
    "stale parameter": "new.down.weight",
    "betas swapped": "dp3",
    "wrong step": "dp2",
    "decay on one shard": "new.norm.weight",
    "a parameter left out": "new.down.bias",
}


@pytest.mark.parametrize("name", FAULTS)
def test_one_mistake_is_refuted_at_its_place(name: str) -> None:
    single, parallel, mesh, step, module = FAULTS[name]
    values = tensure.prove(parallel, single, mesh=mesh).proof.values
    found = values.counterexample
    assert values.status == "refuted" and found is not None and found.confirmed
    assert f" = {step}(...)" in found.step.partition("first astray on")[2], found.step
    assert found.source is not None and "optimizer_steps.py" in found.source and module in found.source
    assert WHERE.get(name, "new.") in f"{found.rank} {found.local}"


# --- other ways to say it ---------------------------------------------------------------------------


def inputs() -> tuple[Any, ...]:
    return torch.randn(8, 8), torch.randn(8, 8)


def test_one_function_gives_both_sides_an_optimizer() -> None:
    def parallel(net: Any, mesh: DeviceMesh) -> ParallelStep:
        def step(x: Any, target: Any) -> Any:
            loss = net(x, target)
            loss.backward()
            for parameter in net.parameters():
                parameter.grad.div_(mesh.size())
                torch.distributed.all_reduce(parameter.grad, group=mesh.get_group("dp"))
            return loss

        return data_parallel(step)

    proved(lambda: (Net(), inputs()), parallel, DP, optimizer=nesterov)


def accumulated(net: Any, mesh: DeviceMesh) -> ParallelStep:
    """Two micro-batches on each of the ranks, then one step of the optimizer."""
    optimizer = adamw(net.parameters())

    def microbatch(x: Any, target: Any) -> Any:
        loss = net(x, target) / 2
        loss.backward()
        return loss

    def step() -> None:
        for parameter in net.parameters():
            parameter.grad.div_(mesh.size())
            torch.distributed.all_reduce(parameter.grad, group=mesh.get_group("dp"))
        optimizer.step()

    rows = {"dp": torch.distributed.tensor.Shard(0), "mb": torch.distributed.tensor.Shard(0)}
    means = {"dp": torch.distributed.tensor.Partial("avg"), "mb": torch.distributed.tensor.Partial()}
    return ParallelStep(
        step,
        microbatch=microbatch,
        microbatches=2,
        inputs=[rows, rows],
        outputs=[means],
        optimizer=optimizer,
    )


def test_micro_batches_and_then_a_step() -> None:
    proved(model(), accumulated, {"dp": 2})


def test_a_public_model_by_name() -> None:
    """Small, over 1,024 ranks."""
    plan = named_plan("llama3-8b@dp512-tp2-mb2")
    sizes = {"layers": 1, "hidden": 8, "heads": 4, "kv_heads": 2, "inner": 6, "vocabulary": 10, "sequence": 4}
    small = NamedPlan(plan.name, plan.config.replace(**sizes), plan.sizes)
    proved(small.model, small.parallel, dict(small.mesh), optimizer=adamw)


def test_hundreds_of_ranks() -> None:
    """Of more than 256 ranks some are traced; states on shards follow from placements."""
    large = model(clip=True, hidden=512, inner=1024, rows=512)
    result = proved(large, by_hand(), {"dp": 512})
    assert list(result.plan.tracks) == ["ranks"]
