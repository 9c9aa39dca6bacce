"""Every golden plan evaluates equal to its Program; with a planted fault it does not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from tensure.bundle import (
    Plan,
    collect,
    compare_claims,
    evaluate_plan,
    format_plan,
    parse_plan,
    plan_digest,
    validate_plan,
)
from tensure.errors import EvaluationError, RecordError, TensureError
from tensure.program import (
    digest,
    evaluate_program,
    format_program,
    parse_program,
    state_pairs,
    validate_program,
)

from . import cnn_rows, decode_stages, int8_pool, tp_block
from .case import Golden

CASES = [cnn_rows.golden(), tp_block.golden(), decode_stages.golden(), int8_pool.golden()]
FAULTS = [(case, label) for case in CASES for label in case.faults]
STORAGE_FAULTS = [(case, label) for case in CASES for label in case.storage_faults]
by_name = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def first_difference(case: Golden, plan: Plan, *, seed: int = 0) -> str | None:
    """Run Program and Plan side by side over all invocations; the first difference in words.

    After the first invocation the Plan lives on the states its ranks kept: logical states are NaN for it.
    """
    values = case.values(seed)
    entry = case.program.entries[case.entry]
    inputs = {str(name) for name in entry.inputs}
    held: Mapping[Any, Any] = {}
    poison: dict[str, np.ndarray[Any, Any]] = {}
    for params in case.params:
        fresh = {key: value for key, value in case.values(seed + 1, params).items() if key in inputs}
        values |= fresh
        logical = evaluate_program(case.program, values, entry=case.entry, params=params)
        try:
            run = evaluate_plan(
                plan,
                case.program,
                values | poison,
                entry=case.entry,
                params=params,
                states=held,
                storage=case.storage,
            )
            wrong = compare_claims(run, logical)
            if wrong is not None:
                return wrong
            outputs = collect(run, case.program, entry.outputs)
        except TensureError as error:
            return str(error)
        for label, want in logical.outputs.items():
            if not np.allclose(outputs[label], want, rtol=1e-9, atol=1e-12):
                return f"output {label} differs"
        values |= logical.states
        poison = {label: np.full_like(array, np.nan) for label, array in logical.states.items()}
        held = run.states
    return None


@by_name
def test_program_and_plan_are_well_formed(case: Golden) -> None:
    validate_program(case.program)
    validate_plan(case.plan, case.program)


@by_name
def test_texts_parse_back_and_digests_hold(case: Golden) -> None:
    assert parse_program(format_program(case.program)) == case.program
    assert parse_plan(format_plan(case.plan)) == case.plan
    assert case.plan.program == digest(case.program)
    assert plan_digest(parse_plan(format_plan(case.plan))) == plan_digest(case.plan)


@by_name
@pytest.mark.parametrize("seed", range(3))
def test_plan_equals_program(case: Golden, seed: int) -> None:
    assert first_difference(case, case.plan, seed=seed) is None


@pytest.mark.parametrize(("case", "label"), FAULTS, ids=[f"{case.name}: {label}" for case, label in FAULTS])
def test_fault_is_seen(case: Golden, label: str) -> None:
    assert case.faults[label] != case.plan
    found = first_difference(case, case.faults[label])
    assert found is not None and re.search(case.places[label], found), found


@pytest.mark.parametrize(
    ("case", "label"), STORAGE_FAULTS, ids=[f"{case.name}: {label}" for case, label in STORAGE_FAULTS]
)
def test_storage_fault_is_seen_in_real_bytes_only(case: Golden, label: str) -> None:
    plan = case.storage_faults[label]
    found = first_difference(case, plan)
    assert found is not None and re.search(case.places[label], found), found
    values = case.values()
    clean = evaluate_plan(plan, case.program, values, entry=case.entry)  # values do not know storage
    assert compare_claims(clean, evaluate_program(case.program, values, entry=case.entry)) is None


def test_states_stay_on_their_ranks() -> None:
    case = CASES[2]
    values = case.values()
    run = evaluate_plan(case.plan, case.program, values, entry="decode", params={"pos": 0})
    pairs = {str(before) for before, _ in state_pairs(case.program.entries["decode"], run.env)}
    assert {str(local) for _, local in run.states} == pairs
    assert {(rank.track, local.index) for rank, local in run.states} == {(f"s{p}", (p,)) for p in range(3)}


def test_a_missing_message_is_a_deadlock_with_names() -> None:
    case = CASES[0]
    with pytest.raises(EvaluationError, match=r"deadlock.*dev0 waits at recv of y2_y3_from1"):
        evaluate_plan(case.faults["halo never sent"], case.program, case.values())


def test_validation_refuses_a_plan_for_another_program() -> None:
    with pytest.raises(RecordError, match="the plan is for"):
        validate_plan(CASES[0].plan, CASES[1].program)


def test_validation_refuses_a_plan_that_lost_a_message() -> None:
    with pytest.raises(EvaluationError, match="deadlock"):
        validate_plan(CASES[0].faults["halo never sent"], CASES[0].program)


def test_a_plan_without_kept_states_is_seen() -> None:
    """The harness itself: hand no states on, and the second token differs."""
    case = CASES[2]
    values = case.values()
    first = evaluate_program(case.program, values, entry="decode", params={"pos": 0})
    poison = {label: np.full_like(array, np.nan) for label, array in first.states.items()}
    second = evaluate_program(case.program, values | first.states, entry="decode", params={"pos": 1})
    run = evaluate_plan(case.plan, case.program, values | poison, entry="decode", params={"pos": 1})
    assert compare_claims(run, second) is not None
