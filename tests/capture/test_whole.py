"""Whole training steps: right ones have no wrong claim, and a planted fault makes the right one wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from tensure.capture import ParallelStep
from tensure.proving import prove_plan

from .steps import captured_plan, wrong_claims
from .whole_models import RIGHT, WRONG, data_parallel


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module:UserWarning")
@pytest.mark.parametrize("name", RIGHT)
def test_a_right_step_has_no_wrong_claim(name: str) -> None:
    """By a replay in float64, and for whoever proves it."""
    case = RIGHT[name]
    captured, plan = captured_plan(case.model, case.parallel, case.mesh)
    assert wrong_claims(captured, plan) == []
    places = [local.place for track in plan.tracks.values() for local in track.locals.values()]
    claimed = {str(place.of) for place in places if place is not None}
    assert claimed >= set(map(str, captured.program.entries["step"].outputs)), "every output is claimed"
    assert prove_plan(plan, captured.program).proof.values.status != "refuted"


@pytest.mark.parametrize("fault", WRONG)
def test_a_planted_fault_is_found(fault: str) -> None:
    """With the local that is wrong, and a line of the script."""
    case, local = WRONG[fault]
    captured, plan = captured_plan(case.model, case.parallel, case.mesh)
    wrong = wrong_claims(captured, plan)
    assert any(item.startswith(f"{local} on ") for item in wrong), wrong
    verdict = prove_plan(plan, captured.program).proof.values
    assert verdict.status == "refuted"
    found = verdict.counterexample
    assert found is not None and f"{found.local} on {found.rank}" in wrong
    assert "whole_models.py:" in found.source


@pytest.mark.parametrize("size", [2, 4])
def test_a_fault_of_one_rank_is_found_on_that_rank(size: int) -> None:
    """Nothing is assumed of one rank because of another."""

    def parallel(module: Any, mesh: DeviceMesh) -> ParallelStep:
        given = data_parallel(module, mesh, 1)

        def step(x: Tensor, y: Tensor) -> Any:
            loss = given.step(x, y)
            if dist.get_rank() == size - 1:
                module.up.bias.grad.mul_(2)
            return loss

        return ParallelStep(step, inputs=given.inputs, outputs=given.outputs)

    captured, plan = captured_plan(RIGHT["data parallel"].model, parallel, {"dp": size})
    wrong = wrong_claims(captured, plan)
    assert wrong == [f"grad.up.bias on dp{size - 1}"]
