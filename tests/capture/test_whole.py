"""Whole training steps: right ones have no wrong claim, and a planted fault makes the right one wrong."""

from __future__ import annotations

import pytest

from .steps import captured_plan, wrong_claims
from .whole_models import RIGHT, WRONG


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module:UserWarning")
@pytest.mark.parametrize("name", RIGHT)
def test_a_right_step_has_no_wrong_claim(name: str) -> None:
    case = RIGHT[name]
    captured, plan = captured_plan(case.model, case.parallel, case.mesh)
    assert wrong_claims(captured, plan) == []
    claimed = {
        str(local.place.of)
        for track in plan.tracks.values()
        for local in track.locals.values()
        if local.place
    }
    assert claimed >= {str(out) for out in captured.program.entries["step"].outputs}, (
        "every output is claimed"
    )


@pytest.mark.parametrize("fault", WRONG)
def test_a_planted_fault_is_found(fault: str) -> None:
    case, local = WRONG[fault]
    captured, plan = captured_plan(case.model, case.parallel, case.mesh)
    wrong = wrong_claims(captured, plan)
    assert any(item.startswith(f"{local} on ") for item in wrong), wrong
