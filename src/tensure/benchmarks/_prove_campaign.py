"""Ask the prover about correct plans, mutants of proved ones, changed certificates, and the zoo; count.

    python -m tensure.benchmarks._prove_campaign NUM_MUTANTS NUM_CERTIFICATES SEED [EVERY [WORD ...]]

Prints one JSON object; progress goes to stderr. EVERY takes one plan in so many, WORDs keep the plans
whose name has one of them. Whether a mutant is wrong is decided by a float64 replay on two draws that shares
nothing with the prover; what does not run at all is no mutant, since anything would see it. The prover under
test is handed in, so that the campaign itself can be held to one that accepts everything.
"""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch

from tensure.bundle import Plan, format_plan, plan_digest
from tensure.errors import TensureError
from tensure.program import Program, evaluate_program
from tensure.proving import CheckReport, check_certificate, prove_plan

from ._prove_certificates import KINDS as CLAIM_KINDS
from ._prove_certificates import certificate_mutant, known
from ._prove_mutants import KINDS, LEAF, Mutant, Shapes, mutant, with_track_split
from ._prove_plans import PLANS, ParallelPlan
from ._prove_replay import ACCEPTED, SEEDS, Prover, capture, draw, replay
from ._prove_zoo import zoo_part

__all__ = [
    "Certificates",
    "Mutants",
    "Plans",
    "certificate_part",
    "mutant_part",
    "plan_part",
]

Checker: TypeAlias = Callable[[bytes, Plan, Program], CheckReport]
Say: TypeAlias = Callable[[str], None]
FAMILIES = {"dp": "dp", "replica": "dp", "shard": "dp", "tp": "tp", "kv": "tp", "copy": "tp", "row": "tp"}
FAMILIES |= {"column": "tp", "pp": "pp", "cp": "cp", "ep": "ep"}


@dataclass(slots=True)
class Plans:
    """What came of correct plans: names by verdict, and what each verdict that is no proof says."""

    asked: int = 0
    verdicts: dict[str, int] = field(default_factory=dict[str, int])
    reasons: list[str] = field(default_factory=list[str])
    alarms: list[str] = field(default_factory=list[str])
    disagreements: list[str] = field(default_factory=list[str])
    """Verdicts that a replay contradicts."""
    certificates: int = 0
    accepted: int = 0


@dataclass(slots=True)
class Mutants:
    """What came of mutants. `wrong` is what replay tells from the Program; `missed` are those accepted."""

    made: int = 0
    wrong: int = 0
    refuted: int = 0
    unknown: int = 0
    equal: int = 0
    missed: list[str] = field(default_factory=list[str])
    alarms: list[str] = field(default_factory=list[str])
    by_kind: dict[str, list[int]] = field(default_factory=dict[str, list[int]])
    """Kind -> wrong, caught."""
    by_family: dict[str, int] = field(default_factory=dict[str, int])


@dataclass(slots=True)
class Certificates:
    """What came of changed certificates."""

    made: int = 0
    accepted: list[str] = field(default_factory=list[str])
    by_kind: dict[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True, slots=True)
class Proved:
    """A plan that was accepted, to be changed."""

    name: str
    plan: Plan
    program: Program
    certificate: bytes | None

    @property
    def families(self) -> set[str]:
        return {FAMILIES[axis] for axis in self.plan.mesh if axis in FAMILIES}


# --- correct plans -------------------------------------------------------------------------------------


def plan_part(
    plans: Sequence[ParallelPlan],
    *,
    prover: Prover = prove_plan,
    checker: Checker = check_certificate,
    say: Say = lambda text: None,
) -> tuple[Plans, list[Proved]]:
    """Every plan's verdict, and those that were accepted."""
    found, proved = Plans(), list[Proved]()
    for item in plans:
        found.asked += 1
        try:
            plan, program = capture(item.model, item.parallel, item.mesh)
        except (TensureError, RuntimeError) as error:
            _count(found.verdicts, "not captured")
            found.reasons.append(f"{item.name}: not captured: {error}"[:600])
            say(f"{item.name}: not captured")
            continue
        result = prover(plan, program)
        verdict = result.proof.values
        _count(found.verdicts, verdict.status)
        wrong = next((seen.wrong for seed in SEEDS if (seen := replay(plan, program, seed)).wrong), None)
        if verdict.status == "refuted":
            found.alarms.append(f"{item.name}: {verdict.counterexample}; replay: {wrong}"[:800])
        if (verdict.status == "refuted") != (wrong is not None) and verdict.status != "unknown":
            found.disagreements.append(f"{item.name}: {verdict.status}; replay: {wrong}"[:600])
        if verdict.status not in ACCEPTED:
            found.reasons.append(f"{item.name}: {verdict.status}: {verdict.reason}"[:600])
        elif wrong is None:
            proved.append(Proved(item.name, plan, program, result.certificate))
        if result.certificate is not None:
            found.certificates += 1
            found.accepted += checker(result.certificate, plan, program).accepted
        say(f"{item.name}: {verdict.status}{f', but replay: {wrong}' if wrong else ''}")
    return found, proved


# --- mutants ---------------------------------------------------------------------------------------------


def mutant_part(
    proved: Sequence[Proved],
    count: int,
    seed: int,
    *,
    prover: Prover = prove_plan,
    say: Say = lambda text: None,
) -> Mutants:
    """`count` mutants that run and that replay tells from the Program, spread over plans and kinds."""
    found = Mutants()
    rng = np.random.default_rng(seed)
    subjects = deque(_Subject(item) for item in proved)
    seen: set[str] = set()
    idle = 0
    while subjects and found.wrong < count and idle < 40 * len(subjects):
        idle += 1
        subjects.rotate(-1)
        subject = subjects[0]
        made = subject.next(rng)
        if made is None or (digest := plan_digest(made.plan)) in seen:
            continue
        seen.add(digest)
        looks = [replay(made.plan, subject.item.program, seed) for seed in SEEDS]
        if not all(look.ran for look in looks):
            continue
        idle = 0
        found.made += 1
        _judge(
            subject.item, made, next((look.wrong for look in looks if look.wrong), None), prover, found, say
        )
        if found.made % 25 == 0:
            say(f"{found.wrong} of {count} mutants, {found.refuted} refuted, {len(found.missed)} accepted")
    return found


class _Subject:
    """A proved plan and its form with a track split, which take turns; kinds of faults take turns too."""

    def __init__(self, item: Proved) -> None:
        self.item = item
        split = with_track_split(item.plan)
        self._forms = [plan for plan in (item.plan, split) if plan is not None]
        self._shapes: list[Shapes | None] = [None] * len(self._forms)
        self._turn = -1
        self._kinds = (*KINDS, LEAF)

    def next(self, rng: np.random.Generator) -> Mutant | None:
        self._turn += 1
        at = self._turn % len(self._forms)
        known_shapes = self._shapes[at]
        if known_shapes is None:
            self._shapes[at] = known_shapes = _shapes(self._forms[at], self.item.program)
        kind = self._kinds[int(rng.integers(len(self._kinds)))]
        return mutant(self._forms[at], known_shapes, kind, rng)


def _shapes(plan: Plan, program: Program) -> Shapes:
    run = replay(plan, program, SEEDS[0]).run
    assert run is not None
    found: dict[str, dict[Any, tuple[int, ...]]] = {}
    for rank, table in run.made.items():
        found.setdefault(rank.track, {}).update({name: value.shape for name, value in table.items()})
    return found


def _judge(item: Proved, made: Mutant, wrong: str | None, prover: Prover, found: Mutants, say: Say) -> None:
    verdict = prover(made.plan, item.program).proof.values
    words = f"{item.name}: {made.kind}: {made.where}"
    if wrong is None:
        found.equal += 1
        if verdict.status == "refuted":
            more = next(
                (w for seed in range(300, 330) if (w := replay(made.plan, item.program, seed).wrong)), None
            )
            if more is None:
                found.alarms.append(f"{words}: {verdict.counterexample}"[:800])
        return
    found.wrong += 1
    for family in item.families:
        _count(found.by_family, family)
    row = found.by_kind.setdefault(made.kind, [0, 0])
    row[0] += 1
    if verdict.status in ACCEPTED:
        found.missed.append(f"{words}: {verdict.status}, but {wrong}"[:800])
        say(f"ACCEPTED, BUT WRONG: {words}: {wrong}\n{format_plan(made.plan)}")
        return
    row[1] += 1
    found.refuted += verdict.status == "refuted"
    found.unknown += verdict.status == "unknown"


# --- certificates ------------------------------------------------------------------------------------------


def certificate_part(
    proved: Sequence[Proved],
    count: int,
    seed: int,
    *,
    checker: Checker = check_certificate,
    say: Say = lambda text: None,
) -> Certificates:
    """`count` changed certificates, spread over plans and kinds; none may be accepted."""
    found = Certificates()
    rng = np.random.default_rng(seed)
    subjects = [item for item in proved if item.certificate is not None]
    for at, item in enumerate(subjects):
        share = count // len(subjects) + (at < count % len(subjects))
        assert item.certificate is not None
        run = replay(item.plan, item.program, SEEDS[0]).run
        assert run is not None
        (entry,) = item.program.entries
        logical = evaluate_program(item.program, draw(item.program, entry, SEEDS[0]), entry=entry).values
        read, what = known(item.certificate, run, logical)
        done, idle, turn = 0, 0, 0
        while done < share and idle < 4 * len(CLAIM_KINDS):
            kind = tuple(CLAIM_KINDS)[turn % len(CLAIM_KINDS)]
            turn += 1
            made = certificate_mutant(read, what, kind, rng)
            if made is None:
                idle += 1
                continue
            idle = 0
            done += 1
            found.made += 1
            _count(found.by_kind, kind)
            try:
                accepted = checker(made.data, item.plan, item.program).accepted
            except TensureError:
                accepted = False
            if accepted:
                found.accepted.append(f"{item.name}: {kind}: {made.where}"[:800])
                say(f"ACCEPTED, BUT FALSE: {found.accepted[-1]}")
        say(f"{found.made} of {count} changed certificates, {len(found.accepted)} accepted")
    return found


def _count(table: dict[str, int], key: str) -> None:
    table[key] = table.get(key, 0) + 1


def main(argv: Sequence[str]) -> None:
    """Run all parts and print what came of them."""
    torch.set_num_threads(1)
    mutants, certificates, seed = (int(word) for word in argv[:3])
    every = int(argv[3]) if len(argv) > 3 else 1
    words = argv[4:]
    start = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - start:6.0f} s] {text}", file=sys.stderr, flush=True)

    chosen = [plan for plan in PLANS if not words or any(word in plan.name for word in words)][::every]
    plans, proved = plan_part(chosen, say=say)
    found: dict[str, Any] = {"plans": asdict(plans)}
    found["mutants"] = asdict(mutant_part(proved, mutants, seed, say=say))
    found["certificates"] = asdict(certificate_part(proved, certificates, seed, say=say))
    zoo = None if words else zoo_part(every, say=say)
    found["zoo"] = None if zoo is None else asdict(zoo)
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
