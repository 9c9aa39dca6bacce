"""Llama-like steps with a cut vocabulary, by loss_parallel and by hand, joined weights, or a shared key."""

from __future__ import annotations

import pytest

import tensure
from tensure.benchmarks._prove_plans import PLANS
from tensure.proving import check_certificate

NAMES = (
    "TP2 with a cut vocabulary",
    "TP2 with a cut vocabulary by hand",
    "TP2 with a cut and tied vocabulary",
    "TP4 with a cut vocabulary: 2, 2, 2, 1",
    "TP2 with one matrix for queries, keys and values",
    "TP2 of 1 key head, on 2 ranks",
)


@pytest.mark.parametrize("name", NAMES)
def test_step_is_proved(name: str) -> None:
    plan = next(plan for plan in PLANS if plan.name == name)
    result = tensure.prove(plan.parallel, plan.model, mesh=plan.mesh)
    assert result.proof.values.status == "proved", result.proof.values
    assert ("given that no target" in result.proof.values.method) == ("vocabulary" in name)
    assert result.certificate is not None
    assert check_certificate(result.certificate, result.plan, result.program).accepted
