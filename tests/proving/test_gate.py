"""The plan of many ranks that the gate proves: small, replayed, one by one; large, ranks taken together."""

from __future__ import annotations

import re

import pytest

from tensure.benchmarks._prove_gate import REPLAYED, judged
from tensure.benchmarks._prove_gate_plan import FAULTS, REAL, Shape, gate_plan, gate_program, place_of
from tensure.benchmarks._prove_gate_plot import scale_chart
from tensure.bundle import validate_plan
from tensure.proving import ProofResult, prove_plan
from tensure.proving._check_index import Index
from tensure.proving._check_piece import ONE
from tensure.proving._check_sums import of_one_part

SMALL = Shape(3, 2, 2, 2, 3)
"""Stages of two layers and of one, so that a wrong stage shows."""


def proof_of(shape: Shape, fault: str | None = None, fold: tuple[str, ...] | None = None) -> ProofResult:
    program = gate_program(shape)
    return prove_plan(gate_plan(shape, program, fault), program, fold=fold)


def test_it_is_a_valid_plan() -> None:
    program = gate_program(SMALL)
    plan = gate_plan(SMALL, program)
    validate_plan(plan, program)
    assert plan.num_ranks() == SMALL.ranks == 8
    assert gate_plan(Shape(126, 64, 8, 16, 16), gate_program(Shape(126, 64, 8, 16, 16))).num_ranks() == 8192


@pytest.mark.parametrize("fold", [(), ("dp",), ("tp",), ("pp", "dp", "tp")])
def test_it_is_proved_whichever_ranks_are_taken_together(fold: tuple[str, ...]) -> None:
    found = proof_of(SMALL, fold=fold)
    assert found.proof.values.status == "proved", found.proof.values.reason


@pytest.mark.parametrize("fold", [(), ("dp", "tp")], ids=["apart", "together"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_eight_ranks_is_refuted_at_its_stage(fault: str, fold: tuple[str, ...]) -> None:
    values = proof_of(Shape(2, 2, 2, 2, 2), fault, fold).proof.values
    assert values.status == "refuted"
    assert values.counterexample is not None
    wrong = values.counterexample
    said = f"{wrong.rank}: {wrong.local}: {wrong.step}"
    stage = place_of(Shape(2, 2, 2, 2, 2), fault).split("\\[")[0].split("_")[0]
    assert re.match(stage, said), said


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_512_ranks_is_refuted_with_its_place(fault: str) -> None:
    values = proof_of(REPLAYED, fault).proof.values
    wrong = values.counterexample
    assert wrong is not None, values.reason
    found = {"status": values.status, "where": f"{wrong.rank}: {wrong.local}: {wrong.step}"}
    assert judged(REPLAYED, fault, found) == "refuted"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_8192_ranks_is_refuted_with_its_place(fault: str) -> None:
    """A layer a stage; without norms its values overflow as they are drawn first."""
    shape = Shape(16, 64, 8, 16, 2)
    values = proof_of(shape, fault).proof.values
    wrong = values.counterexample
    assert shape.ranks == 8192 and wrong is not None, values.reason
    found = {"status": values.status, "where": f"{wrong.rank}: {wrong.local}: {wrong.step}"}
    assert judged(shape, fault, found) == "refuted"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_too_large_to_replay_is_named(fault: str) -> None:
    shape = Shape(4, 64, 4, 2, 2, sizes=REAL)
    values = proof_of(shape, fault).proof.values
    wrong = values.counterexample
    where = values.reason if wrong is None else f"{wrong.rank}: {wrong.local}: {wrong.step}"
    assert judged(shape, fault, {"status": values.status, "where": where}) in ("refuted", "named")


def test_a_fault_that_is_not_seen_or_named_elsewhere_does_not_count() -> None:
    fault = FAULTS[0]
    assert judged(SMALL, fault, {"status": "proved", "where": ""}).startswith("proved")
    assert judged(SMALL, fault, {"status": "refuted", "where": "s0[0,0]: attn[0,0]"}).startswith("refuted: ")
    assert judged(SMALL, fault, {"status": "unknown", "where": "s1[0,0]: attn[2,0]: y"}) == "named"


def test_a_thousand_ranks_are_proved_as_real_sizes_are() -> None:
    found = proof_of(Shape(4, 32, 8, 4, 4, sizes=REAL))
    assert found.proof.values.status == "proved", found.proof.values.reason
    assert "ranks along dp, pp, tp taken together" in found.proof.values.method


def test_the_chart_has_every_point_and_is_the_same_for_any_order() -> None:
    points = [(64, 50.0), (8192, 55.5), (512, 52.0)]
    drawn = scale_chart("cost", points, 60.0)
    assert drawn == scale_chart("cost", sorted(points), 60.0)
    assert drawn.count("<circle") == 3
    assert ">8,192<" in drawn and "at most 60 s" in drawn


def test_sums_of_other_parts_or_of_addends_are_not_compared_as_sums_of_one_part() -> None:
    one, two = Index(((0, 2),)), Index(((2, 4),))
    assert of_one_part(((ONE, 1, (one,), None),), ((ONE, 2, (one,), None),)) is not None
    assert of_one_part(((ONE, 1, (one,), None),), ((ONE, 2, (two,), None),)) is None
    assert of_one_part(((ONE, 1, (one,), (("b", one), ())),), ((ONE, 1, (one,), None),)) is None
