"""`prove`: what a proof of a parallel PyTorch step costs, and whether the verdicts are right.

Timed: capturing and proving a few steps. Then, not timed: every correct plan of `_prove_plans.py`, where an
alarm is a false one; mutants of the proved ones; certificates with false claims; and the zoo of bugs. Each
is held against a float64 replay that shares nothing with the prover. Last, a plan of 8,192 ranks and public
models by name: what proofs of them cost, and faults in them; and TrainVerify beside us. Knows what is asked
of each; how it is found out is in `_prove_campaign.py` and in the file of each of these.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from ._declare import benchmark
from ._prove_gate import gate_bars
from ._prove_named import named_bars
from ._prove_race import race_bars
from ._records import Bar, Case, Engine, EngineError, Json, Measured, NotMeasured, Scope, Timing

__all__ = ["campaign_bars", "prove", "prove_bars"]

TIMED: Final = ("TP2 of Llama", "FSDP2 of blocks", "replicas of 2 stages of TP2")
NUM_PLANS: Final = 60
NUM_MUTANTS: Final = 1000
NUM_CERTIFICATES: Final = 1000
FAMILIES: Final = ("dp", "tp", "pp", "cp", "ep")
SEED: Final = "20261127"
QUICK: Final = ("20", "24", SEED, "13")
FULL: Final = (str(NUM_MUTANTS), str(NUM_CERTIFICATES), SEED)
_CHILD_S: Final = 7200.0


class ProveEngine:
    """Captures and proves in this process, on one thread."""

    def check(self, case: Case) -> Json:
        """The verdict; EngineError when a correct step is refuted."""
        status: Json = self._prove(case)
        if status == "refuted":
            raise EngineError(f"{case.name} is correct and was refuted")
        return status

    def run(self, case: Case) -> Timing:
        """From the two functions to a verdict, and a re-checked certificate if it is `proved`."""
        begin, cpu = time.perf_counter(), time.process_time()
        self._prove(case)
        return Timing(time.perf_counter() - begin, time.process_time() - cpu)

    def facts(self) -> Mapping[str, Json]:
        """Nothing beside the times."""
        return {}

    def close(self) -> None:
        """Nothing is held."""

    def _prove(self, case: Case) -> str:
        from tensure.api import prove as prove_steps

        from ._prove_plans import PLANS

        plan = next(item for item in PLANS if item.name == case.name)
        return prove_steps(plan.parallel, plan.model, mesh=plan.mesh).proof.values.status


def prove_bars(cases: Sequence[Case], found: Measured) -> Sequence[Bar | NotMeasured]:
    """Every bar of the issue, by a campaign in a process of its own, which says on stderr how far it is."""
    quick = any(case.params["quick"] for case in cases)
    command = [sys.executable, "-m", "tensure.benchmarks._prove_campaign", *(QUICK if quick else FULL)]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=_CHILD_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [NotMeasured("campaign", f"did not finish: {type(error).__name__}")]
    if done.returncode:
        return [NotMeasured("campaign", f"ended with {done.returncode}", wrong=True)]
    return list(campaign_bars(json.loads(done.stdout.strip().splitlines()[-1]), quick=quick))


def campaign_bars(found: Json, *, quick: bool) -> Iterator[Bar | NotMeasured]:
    """What a campaign printed, as bars; counts are bars in a full run only."""
    yield from _plan_bars(found["plans"], quick)
    yield from _mutant_bars(found["mutants"], quick)
    yield from _certificate_bars(found["certificates"], found["plans"], quick)
    yield from _zoo_bars(found["zoo"])
    disagreements = len(found["plans"]["disagreements"])
    disagreements += len(found["mutants"]["missed"]) + len(found["mutants"]["alarms"])
    yield Bar("verdicts that a float64 replay contradicts", float(disagreements), "verdicts", 0.0, "lower")
    yield from _told(found)


def _told(found: Json) -> Iterator[NotMeasured]:
    """In words: everything that a bar counts against us, and which correct plans and twins are not proved."""
    zoo = found["zoo"] or {}
    for what, texts in (
        ("correct plan refuted", found["plans"]["alarms"]),
        ("verdict contradicted", found["plans"]["disagreements"]),
        ("wrong mutant accepted", found["mutants"]["missed"]),
        ("mutant refuted that replay cannot tell", found["mutants"]["alarms"]),
        ("false claim accepted", found["certificates"]["accepted"]),
        ("fixed twin refuted", zoo.get("alarms", [])),
        ("buggy twin accepted", zoo.get("missed", [])),
    ):
        for text in texts:
            yield NotMeasured(what, text, wrong=True)
    for text in found["plans"]["reasons"] + zoo.get("notes", []):
        yield NotMeasured("not decided", text)


def _plan_bars(plans: Json, quick: bool) -> Iterator[Bar | NotMeasured]:
    captured = plans["asked"] - plans["verdicts"].get("not captured", 0)
    yield Bar(f"{captured} correct plans: false alarms", float(len(plans["alarms"])), "alarms", 0.0, "lower")
    if not quick:
        yield Bar("correct plans that were judged", float(captured), "plans", float(NUM_PLANS), "higher")
    # No bar is set on how many are proved; without any the mutants below would say nothing.
    share = 100.0 * plans["verdicts"].get("proved", 0) / max(plans["asked"], 1)
    yield Bar(f"{plans['asked']} correct plans: proved", share, "%", 1.0, "higher")


def _mutant_bars(mutants: Json, quick: bool) -> Iterator[Bar | NotMeasured]:
    wrong = mutants["wrong"]
    if not wrong:
        yield NotMeasured("mutants", "no plan was proved, so that there was nothing to change")
        return
    caught = 100.0 * (wrong - len(mutants["missed"])) / wrong
    yield Bar(f"{wrong} wrong mutants of proved plans: not accepted", caught, "%", 99.5, "higher")
    refuted = 100.0 * mutants["refuted"] / wrong
    yield Bar(f"{wrong} wrong mutants of proved plans: refuted", refuted, "%", 99.5, "higher")
    name = f"{mutants['equal']} mutants that replay cannot tell from the program: false alarms"
    yield Bar(name, float(len(mutants["alarms"])), "alarms", 0.0, "lower")
    if not quick:
        yield Bar("wrong mutants", float(wrong), "mutants", float(NUM_MUTANTS), "higher")
        there = sum(bool(mutants["by_family"].get(family)) for family in FAMILIES)
        yield Bar(f"mutants of plans over {', '.join(FAMILIES)}", float(there), "axes", 5.0, "higher")


def _certificate_bars(certificates: Json, plans: Json, quick: bool) -> Iterator[Bar | NotMeasured]:
    if not certificates["made"]:
        yield NotMeasured("certificates", "no plan was proved, so that there was none")
        return
    share = 100.0 * plans["accepted"] / max(plans["certificates"], 1)
    yield Bar(f"{plans['certificates']} certificates: accepted when re-checked", share, "%", 100.0, "higher")
    name = f"{certificates['made']} certificates with a false claim: accepted"
    yield Bar(name, float(len(certificates["accepted"])), "certificates", 0.0, "lower")
    if not quick:
        made = float(certificates["made"])
        yield Bar("certificates with a false claim", made, "certificates", float(NUM_CERTIFICATES), "higher")


def _zoo_bars(zoo: Json) -> Iterator[Bar | NotMeasured]:
    if zoo is None:
        yield NotMeasured("zoo", "tests.proving.zoo lies with the tests: run from a checkout")
        return
    entries = zoo["entries"]
    for what, count in (
        ("buggy twins: refuted", zoo["refuted"]),
        ("buggy twins: refuted with a step, its line and the rank", zoo["named"]),
        ("fixed twins: accepted", zoo["proved"]),
    ):
        yield Bar(f"zoo, {entries} {what}", 100.0 * count / max(entries, 1), "%", 100.0, "higher")
    yield Bar(f"zoo, {entries} fixed twins: false alarms", float(len(zoo["alarms"])), "alarms", 0.0, "lower")


def _bars(cases: Sequence[Case], found: Measured) -> Sequence[Bar | NotMeasured]:
    """Those of the campaign, of the gate (a plan of 8,192 ranks), of the named plans, and of the race."""
    quick = any(case.params["quick"] for case in cases)
    return [
        *prove_bars(cases, found),
        *gate_bars(quick=quick),
        *named_bars(quick=quick),
        *race_bars(quick=quick),
    ]


def _cases(scope: Scope) -> list[Case]:
    names = TIMED[:1] if scope.quick else TIMED
    return [Case(name, 1, 1.0, {"quick": scope.quick}) for name in names]


@benchmark(
    "prove",
    about="parallel PyTorch steps, from two functions to a verdict with a re-checked certificate, one thread",
    metric="ms",
    better="lower",
    cases=_cases,
    rounds=(5, 3),
    threads=(1,),
    bars=_bars,
)
def prove(scope: Scope) -> Engine:
    """Our prover."""
    return ProveEngine()
