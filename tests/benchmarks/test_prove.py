"""`bench prove`: its plans are correct, its mutants wrong, and it sees a prover that is not to be trusted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
from tests.proving.zoo._threads import AGREE, run_twin

from tensure.benchmarks import names
from tensure.benchmarks._prove import NUM_MUTANTS, TIMED, ProveEngine, campaign_bars, prove_bars
from tensure.benchmarks._prove_campaign import (
    Proved,
    certificate_part,
    mutant_part,
    plan_part,
)
from tensure.benchmarks._prove_certificates import KINDS as CLAIM_KINDS
from tensure.benchmarks._prove_mutants import KINDS, LEAF, mutant, with_track_split
from tensure.benchmarks._prove_plans import PLANS
from tensure.benchmarks._prove_replay import SEEDS, capture, replay
from tensure.benchmarks._prove_zoo import zoo_part
from tensure.benchmarks._records import Bar, Case, EngineError, Measured, NotMeasured
from tensure.bundle import Counterexample, Plan, Proof, Verdict, plan_digest
from tensure.errors import UnsupportedError
from tensure.program import Op, Program, digest
from tensure.proving import CheckReport, ProofResult, prove_plan

SMALL = "TP2 of an MLP"


def plan_named(name: str) -> Any:
    return next(plan for plan in PLANS if plan.name == name)


@cache
def captured(name: str) -> tuple[Plan, Program]:
    item = plan_named(name)
    return capture(item.model, item.parallel, item.mesh)


@cache
def proved(name: str = SMALL) -> Proved:
    plan, program = captured(name)
    result = prove_plan(plan, program)
    assert result.proof.values.status == "proved"
    return Proved(name, plan, program, result.certificate)


def prover_that(status: str) -> Callable[[Plan, Program], ProofResult]:
    """One that says the same of everything."""

    def prover(plan: Plan, program: Program) -> ProofResult:
        example = Counterexample("ranks[0]", "loss", "mean_0", (), "loss = copy(...)", "", True)
        if status == "refuted":
            values = Verdict("refuted", "a whim", counterexample=example)
        else:
            error = 1e-12 if status == "probable" else None
            values = Verdict(status, "a whim", reason="none", error=error)  # type: ignore[arg-type]
        proof = Proof(digest(program), plan_digest(plan), values, Verdict("proved", "no pools"))
        return ProofResult(proof, None, plan, program)

    return prover


# --- the plans -----------------------------------------------------------------------------------------


def test_there_are_sixty_plans_with_names_of_their_own() -> None:
    assert len(PLANS) >= 60
    assert [name for name, count in Counter(plan.name for plan in PLANS).items() if count > 1] == []
    assert {axis for plan in PLANS for axis in plan.mesh} >= {"dp", "tp", "pp", "cp", "ep"}


@pytest.mark.parametrize(
    "name",
    [
        SMALL,
        "TP4 of 18 inner units: 5, 5, 5, 3",
        "weights cut both ways over two axes",
        "FSDP2 of a CNN",
        "FSDP2 of an MLP of 7 and 9 units over 4 ranks",
        "a step of clipped descent under ZeRO-1",
        "TP4 of 2 key heads, each on 2 ranks",
        "zig-zag CP2",
        "EP2 by all-to-all with a shared expert",
    ],
)
def test_plan_is_correct_when_run_for_real(name: str) -> None:
    plan = plan_named(name)
    distances = run_twin(plan.model, plan.parallel, plan.mesh)
    assert {label: far for label, far in distances.items() if not far <= AGREE} == {}


# --- the replay ------------------------------------------------------------------------------------------


def changed(plan: Plan, op: str, by: Callable[[Op], Op]) -> Plan:
    (label,) = plan.tracks
    track = plan.tracks[label]
    body = tuple(
        by(item) if isinstance(item, Op) and item.op == op else item for item in track.bodies["step"]
    )
    return replace(plan, tracks={label: replace(track, bodies={"step": body})})


def test_replay_agrees_with_a_correct_plan_and_tells_a_wrong_one() -> None:
    plan, program = captured(SMALL)
    assert all(replay(plan, program, seed).wrong is None for seed in SEEDS)
    wrong = changed(plan, "all_reduce", lambda step: Op("copy", step.args, step.outs))
    assert "is not" in (replay(wrong, program, SEEDS[0]).wrong or "")


def test_replay_tells_a_plan_that_does_not_run() -> None:
    plan, program = captured(SMALL)
    broken = changed(plan, "gelu", lambda step: replace(step, args=()))
    seen = replay(broken, program, SEEDS[0])
    assert not seen.ran and seen.wrong is not None


# --- mutants ---------------------------------------------------------------------------------------------

PLACES = {
    "other axes": "replicas of EP2 by all-to-all",
    "another micro-batch's message": "2 stages, 2 micro-batches",
    "reduced before the last addend": "micro-batches over all unmasked tokens",
}


def shapes(plan: Plan, program: Program) -> Any:
    run = replay(plan, program, SEEDS[0]).run
    assert run is not None
    return {
        rank.track: {name: value.shape for name, value in table.items()} for rank, table in run.made.items()
    }


@pytest.mark.parametrize("kind", [*KINDS, LEAF])
def test_every_kind_of_mutant_can_be_told(kind: str) -> None:
    for name in (PLACES[kind],) if kind in PLACES else (SMALL, "CP2 by gathered keys"):
        plan, program = captured(name)
        known = shapes(plan, program)
        rng = np.random.default_rng(3)
        for _ in range(12):
            made = mutant(plan, known, kind, rng)
            if made is None:
                break
            seen = replay(made.plan, program, SEEDS[0])
            if seen.ran and seen.wrong is not None:
                return
    pytest.fail(f"no mutant of kind {kind!r} is told from the program")


def test_track_split_changes_nothing() -> None:
    plan, program = captured(SMALL)
    split = with_track_split(plan)
    assert split is not None and len(split.tracks) == 2
    assert all(replay(split, program, seed).wrong is None for seed in SEEDS)
    assert prove_plan(split, program).proof.values.status == "proved"


def test_campaign_is_the_same_for_the_same_seed() -> None:
    seen: list[list[str]] = []
    for _ in range(2):
        digests: list[str] = []

        def watched(plan: Plan, program: Program, digests: list[str] = digests) -> ProofResult:
            digests.append(plan_digest(plan))
            return prover_that("unknown")(plan, program)

        mutant_part([proved()], 8, 5, prover=watched)
        seen.append(digests)
    assert seen[0] == seen[1] and len(seen[0]) >= 8


def test_our_prover_accepts_no_wrong_mutant() -> None:
    found = mutant_part([proved()], 25, 1)
    assert (found.wrong, found.missed, found.alarms) == (25, [], [])
    assert sum(caught for _, caught in found.by_kind.values()) == 25


@pytest.mark.parametrize("status", ["proved", "probable"])
def test_prover_that_accepts_everything_is_seen(status: str) -> None:
    said: list[str] = []
    found = mutant_part([proved()], 10, 1, prover=prover_that(status), say=said.append)
    assert len(found.missed) == found.wrong == 10
    assert sum("ACCEPTED, BUT WRONG" in text for text in said) == 10


def test_prover_that_refutes_everything_is_seen() -> None:
    plans, accepted = plan_part([plan_named(SMALL)], prover=prover_that("refuted"))
    assert len(plans.alarms) == len(plans.disagreements) == 1 and accepted == []


def test_prover_that_proves_a_wrong_plan_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, program = captured(SMALL)
    wrong = changed(plan, "all_reduce", lambda step: Op("copy", step.args, step.outs))
    monkeypatch.setattr("tensure.benchmarks._prove_campaign.capture", lambda *_: (wrong, program))
    plans, accepted = plan_part([plan_named(SMALL)], prover=prover_that("probable"))
    assert len(plans.disagreements) == 1 and accepted == []


def test_plan_that_cannot_be_captured_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise UnsupportedError("an op nobody knows")

    monkeypatch.setattr("tensure.benchmarks._prove_campaign.capture", refuse)
    plans, _ = plan_part([plan_named(SMALL)])
    assert plans.verdicts == {"not captured": 1} and "nobody knows" in plans.reasons[0]


# --- certificates ------------------------------------------------------------------------------------------


def test_our_checker_accepts_no_false_claim() -> None:
    found = certificate_part([proved()], 30, 2)
    assert (found.made, found.accepted) == (30, [])


def test_checker_that_accepts_everything_is_seen() -> None:
    def accepts(data: bytes, plan: Plan, program: Program) -> CheckReport:
        return CheckReport(True, "")

    found = certificate_part([proved("micro-batches over all unmasked tokens")], 20, 2, checker=accepts)
    assert len(found.accepted) == found.made == 20
    assert set(found.by_kind) == set(CLAIM_KINDS)


# --- the zoo and the bars -------------------------------------------------------------------------------


def test_zoo_sees_a_prover_that_accepts_everything_and_one_that_refutes_everything() -> None:
    accepting = zoo_part(40, prover=prover_that("proved"))
    refuting = zoo_part(40, prover=prover_that("refuted"))
    assert accepting is not None and refuting is not None
    assert len(accepting.missed) == accepting.entries >= 1 and accepting.refuted == 0
    assert len(refuting.alarms) == refuting.entries and refuting.named == 0


GOOD: dict[str, Any] = {
    "plans": {
        "asked": 70,
        "verdicts": {"proved": 69, "unknown": 1},
        "reasons": ["one: unknown: no rule"],
        "alarms": [],
        "disagreements": [],
        "certificates": 69,
        "accepted": 69,
    },
    "mutants": {
        "wrong": 1000,
        "refuted": 998,
        "unknown": 2,
        "equal": 7,
        "missed": [],
        "alarms": [],
        "by_family": {"dp": 300, "tp": 300, "pp": 200, "cp": 100, "ep": 100},
    },
    "certificates": {"made": 1000, "accepted": []},
    "zoo": {"entries": 45, "refuted": 45, "named": 45, "proved": 45, "alarms": [], "missed": [], "notes": []},
}


def with_change(part: str, **values: Any) -> Any:
    return {**GOOD, part: {**GOOD[part], **values}}


def missed(found: Any) -> list[str]:
    return [
        bar.name
        for bar in campaign_bars(found, quick=False)
        if not (bar.met if isinstance(bar, Bar) else bar.name == "not decided")
    ]


def test_all_bars_are_met_by_a_good_campaign() -> None:
    assert missed(GOOD) == []


def test_what_counts_against_us_is_told_in_words() -> None:
    found = with_change("mutants", missed=["TP2: factor dropped: ranks: div_0"])
    told = [item for item in campaign_bars(found, quick=False) if isinstance(item, NotMeasured)]
    assert [(item.name, item.wrong) for item in told] == [
        ("wrong mutant accepted", True),
        ("not decided", False),
    ]
    assert "factor dropped" in told[0].reason and "no rule" in told[1].reason


@pytest.mark.parametrize(
    "found",
    [
        with_change("plans", alarms=["x"]),
        with_change("plans", verdicts={"proved": 50, "not captured": 20}),
        with_change("plans", accepted=68),
        with_change("plans", disagreements=["x"]),
        with_change("mutants", missed=["x"] * 6),
        with_change("mutants", alarms=["x"]),
        with_change("mutants", wrong=999),
        with_change("mutants", by_family={"dp": 1000}),
        with_change("mutants", wrong=0),
        with_change("certificates", accepted=["x"]),
        with_change("certificates", made=0),
        with_change("zoo", refuted=44),
        with_change("zoo", named=44),
        with_change("zoo", proved=44),
        with_change("zoo", alarms=["x"]),
        {**GOOD, "zoo": None},
    ],
)
def test_each_bar_is_missed_by_what_it_asks_for(found: Any) -> None:
    assert missed(found)


# --- the declaration --------------------------------------------------------------------------------------


def test_bench_prove_stands() -> None:
    assert "prove" in names()
    assert set(TIMED) <= {plan.name for plan in PLANS}


def test_timed_engine_refuses_a_refuted_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(SMALL, 1, 1.0, {"quick": True})
    assert ProveEngine().check(case) == "proved"
    assert ProveEngine().run(case).wall_s > 0
    monkeypatch.setattr(
        "tensure.proving.prove_plan", lambda plan, program, **_: prover_that("refuted")(plan, program)
    )
    with pytest.raises(EngineError, match="is correct and was refuted"):
        ProveEngine().check(case)


@pytest.mark.parametrize("quick", [True, False])
def test_campaign_that_fails_is_a_failure(monkeypatch: pytest.MonkeyPatch, quick: bool) -> None:
    asked: list[str] = []

    def run(command: list[str], **_: Any) -> Any:
        asked.extend(command)
        return CompletedProcess(command, 1, "", "")

    monkeypatch.setattr("tensure.benchmarks._prove.subprocess.run", run)
    (found,) = prove_bars([Case(SMALL, 1, 1.0, {"quick": quick})], Measured())
    assert isinstance(found, NotMeasured) and found.wrong
    assert (str(NUM_MUTANTS) in asked) is not quick
