"""Training steps on flat memory are proved to be those of one device, and one mistake each is refuted."""

from __future__ import annotations

import pytest

import tensure
from tensure.capture import capture_model, capture_parallel
from tests.capture.steps import wrong_claims

from .flat_steps import bucketed, fsdp_1, momentum, replicated_shards, sgd, sharded, viewed
from .optimizer_steps import model
from .test_optimizer_steps import _quiet, fused, proved  # noqa: F401

DP = {"dp": 4}
CLIPPED = model(clip=True)
RIGHT = {
    "a bucket of gradients": (model(), bucketed(), DP),
    "parts, sgd": (model(sgd), sharded(sgd), DP),
    "parts, momentum": (model(momentum), sharded(momentum), {"dp": 2}),
    "parts, adamw": (model(), sharded(), DP),
    "parts of what all reduce": (model(), sharded(scattered=False), DP),
    "parts in a kernel": (model(), sharded(fused), DP),
    "parts, clipped": (CLIPPED, sharded(clip=True), DP),
    "parts with padding, clipped": (model(clip=True, rows=9), sharded(clip=True), {"dp": 3}),
    "a layer with one output": (model(inner=1), sharded(), DP),
    "views of buffers": (model(), viewed(), DP),
    "views of buffers, each filled up": (model(momentum), viewed(momentum, align=16), {"dp": 2}),
    "torch's fsdp 1": (model(), fsdp_1(), DP),
    "torch's fsdp 1, the flat memory stepped": (model(momentum), fsdp_1(momentum, original=False), {"dp": 2}),
    "torch's fsdp 1, clipped": (CLIPPED, fsdp_1(clip=True), {"dp": 2}),
    "torch's fsdp 1 with padding alone on a rank": (
        model(sgd, hidden=2, inner=2),
        fsdp_1(sgd, original=False),
        {"dp": 8},
    ),
    "parts on replicas": (model(), replicated_shards(), {"replica": 2, "dp": 2}),
}


@pytest.mark.parametrize("name", RIGHT)
def test_flat_steps_are_proved(name: str) -> None:
    result = proved(*RIGHT[name])
    assert any(item.name == "new.down.weight" for item in result.tensors)


@pytest.mark.parametrize("name", ["parts with padding, clipped", "views of buffers, each filled up"])
def test_a_replay_finds_nothing_wrong(name: str) -> None:
    single, parallel, mesh = RIGHT[name]
    captured = capture_model(single)
    assert wrong_claims(captured, capture_parallel(single, parallel, mesh, captured)) == []


def test_real_sizes() -> None:
    """A layer pair of 33 million parameters, AdamW on an 8th of it on each rank."""
    proved(model(hidden=2048, inner=8192, rows=128), sharded(), {"dp": 8})


FAULTS = {
    "bucket, sum for mean": (model(), bucketed(fault="sum for mean"), "_to_copy"),
    "bucket, off by one": (model(), bucketed(fault="off by one"), "sub"),
    "sum for mean": (model(), sharded(fault="sum for mean"), "sub"),
    "pieces swapped": (model(), sharded(fault="pieces swapped"), "sub"),
    "a neighbour's part": (model(), sharded(scattered=False, fault="a neighbour's part"), "sub"),
    "stale part": (model(sgd), sharded(sgd, fault="stale part"), "_to_copy"),
    "off by one": (model(momentum), sharded(momentum, fault="off by one"), "view"),
    "norm of own part": (CLIPPED, sharded(clip=True, fault="norm of own part"), "sqrt"),
    "sum for mean, clipped": (CLIPPED, sharded(clip=True, fault="sum for mean"), "sqrt"),
    "fsdp 1, twice the loss": (model(), fsdp_1(fault="twice the loss"), "sub"),
    "fsdp 1, norm of own part": (CLIPPED, fsdp_1(fault="norm of own part"), "sqrt"),
    "gradient off by one": (model(), viewed(align=2, fault="gradient off by one"), "slice_scatter"),
}
WHERE = {"off by one": "new.up.weight", "bucket, off by one": "new.up.bias"}


@pytest.mark.parametrize("name", FAULTS)
def test_one_mistake_is_refuted_at_its_place(name: str) -> None:
    single, parallel, step = FAULTS[name]
    values = tensure.prove(parallel, single, mesh=DP).proof.values
    found = values.counterexample
    assert values.status == "refuted" and found is not None and found.confirmed
    assert f" = {step}(...)" in found.step.partition("first astray on")[2], found.step
    assert WHERE.get(name, "new.") in found.local
    assert found.source, "a step that only moves has the line of what it reads"
