"""Ranks taken together, against ranks one by one and against numpy.

Whatever is proved of folded ranks must hold of each: of correct plans, of seeded mutants of them (some of one
coordinate only), and of certificates that were made to say something false at some place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache

import numpy as np
import pytest

from tensure.benchmarks._prove_mutants import KINDS, LEAF, mutant
from tensure.benchmarks._prove_plans import PLANS
from tensure.benchmarks._prove_replay import SEEDS, capture, draw, replay
from tensure.bundle import Local, Place, Plan, Track, validate_plan
from tensure.errors import TensureError
from tensure.program import Entry, Name, Program, Value, axis, digest, evaluate_program, name, op
from tensure.proving import check_certificate, prove_plan
from tests.golden.case import Golden
from tests.proving.folding_faults import CERTIFICATE_FAULTS, at_one_place, seen, spanned
from tests.proving.test_mutants import MAKERS, numpy_differs, shorter
from tests.proving.test_mutants import mutant as golden_mutant
from tests.proving.unfolded_certificates import written_out

DP, TP = axis("dp"), axis("tp")
ACCEPTED = ("proved", "probable")
SMALL = (
    "TP2 of an MLP",
    "TP4 of an MLP",
    "weights cut both ways over two axes",
    "replicas of an MLP",
    "replicas with one flat buffer of gradients",
    "DDP of an MLP",
    "TP2 of channels",
)
CAPTURED = {item.name: item for item in PLANS}


def by_hand(*, spans: bool) -> tuple[Plan, Program]:
    """A product cut over both axes, rows over dp and columns over tp, then every kind of collective."""
    program = Program(
        {},
        {"x": Value((12, 8), "f64"), "w": Value((8, 6), "f64")},
        {},
        {
            "step": Entry(
                (name("x"), name("w")),
                (
                    op("mm", "x", "w", out="h"),
                    op("exp", "h", out="y"),
                    op("sum", "y", out="s", dim=[0]),
                    op("t", "y", out="u"),
                    op("mul", "y", "y", out="z"),
                ),
                (name("y"), name("s"), name("u"), name("z")),
            )
        },
    )
    rows = (0, ((2 * DP, 2 * DP + 2, 1),))
    locals_ = {
        "x": Local((), Place(name("x"), (rows, (1, ((4 * TP, 4 * TP + 4, 1),))))),
        "w": Local((), Place(name("w"), ((0, ((4 * TP, 4 * TP + 4, 1),)),))),
        "y": Local((), Place(name("y"), (rows,))),
        "all_y": Local((), Place(name("y"))),
        "part_s": Local((), Place(name("s"), sum=("dp",))),
        "s": Local((), Place(name("s"))),
        "u": Local((), Place(name("u"), ((0, ((DP, DP + 1, 1),)),))),
        "z": Local((), Place(name("z"), (rows,))),
        "col": Local((), Place(name("y"), ((1, ((DP, DP + 1, 1),)),))),
    }
    start = (
        op("mm", "x", "w", out="h_part"),
        op("all_reduce", "h_part", out="h", axes=("tp",), reduce="sum"),
        op("exp", "h", out="y"),
    )
    end = (
        op("all_gather", "y", out="all_y", axes=("dp",), dim=0),
        op("sum", "y", out="part_s", dim=[0]),
        op("all_reduce", "part_s", out="s", axes=("dp",), reduce="sum"),
        op("all_to_all", "y", out="col", axes=("dp",), split=1, cat=0),
        op("t", "col", out="u"),
    )
    # What a place makes for itself alone: rows of two values, and a function of them, neither the Program's.
    alone = (
        op("cat", "y", "h", out="both", dim=0),
        op("sigmoid", "both", out="of_both"),
        op("slice", "both", out="rows_again", dim=0, start=0, end=2),
    )
    tail = (op("mul", "y", "rows_again", out="z"),)
    other = (
        op("slice", "all_y", out="mine", dim=0, start=2 * DP, end=2 * DP + 2),
        op("mul", "mine", "y", out="z"),
    )
    body = (*start, *end, *alone)
    tracks = {"t": Track(("dp", "tp"), (), None, {}, {"step": (*body, *tail)})}
    if spans:
        tracks = {
            "low": Track(("dp", "tp"), (), None, {}, {"step": (*body, *tail)}, (("dp", 0, 2),)),
            "high": Track(("dp", "tp"), (), None, {}, {"step": (*body, *other)}, (("dp", 2, 6),)),
        }
    plan = Plan(digest(program), None, {"dp": 6, "tp": 2}, {}, locals_, {}, tracks)
    validate_plan(plan, program)
    return plan, program


HAND: Mapping[str, Callable[[], tuple[Plan, Program]]] = {
    "by hand": lambda: by_hand(spans=False),
    "by hand, with spans": lambda: by_hand(spans=True),
}


@cache
def plan_of(which: str) -> tuple[Plan, Program]:
    if which in HAND:
        return HAND[which]()
    item = CAPTURED[which]
    return capture(item.model, item.parallel, item.mesh)


def forms(plan: Plan) -> list[Plan]:
    """The Plan, and with tracks of their own for the places from one on along each axis."""
    found = [plan]
    for along, size in plan.mesh.items():
        for at in {1, size - 1}:
            cut = spanned(plan, along, at) if size > 1 else None
            if cut is not None:
                found.append(cut)
    return found


def right(plan: Plan, program: Program) -> bool:
    return all(replay(plan, program, seed).wrong is None for seed in SEEDS)


def shapes_of(plan: Plan, program: Program) -> dict[str, dict[Name, tuple[int, ...]]]:
    found: dict[str, dict[Name, tuple[int, ...]]] = {}
    run = replay(plan, program, SEEDS[0]).run
    assert run is not None
    for rank, table in run.made.items():
        found.setdefault(rank.track, {}).update({label: value.shape for label, value in table.items()})
    return found


def folds_as_one_by_one(plan: Plan, program: Program) -> str:
    """Hold a Plan folded against the same one by one and against numpy; what was said, in words."""
    folded = prove_plan(plan, program, fold=tuple(plan.mesh))
    status = folded.proof.values.status
    if status == "refuted":
        assert not right(plan, program)
    if status not in ACCEPTED:
        return status
    assert right(plan, program), folded.proof.values
    if status == "proved":
        assert folded.certificate is not None
        assert check_certificate(folded.certificate, plan, program).accepted
        each = check_certificate(written_out(folded.certificate, plan), plan, program)
        assert each.accepted, each.reason
    alone = prove_plan(plan, program).proof.values.status
    assert alone in (*ACCEPTED, "unknown"), alone
    return status if "taken together" in folded.proof.values.method else f"{status} one by one"


def mutants(plan: Plan, program: Program, rng: np.random.Generator, count: int) -> list[tuple[str, Plan]]:
    """Seeded faults of a Plan and of its forms with spans; every third at one coordinate only."""
    known = [(form, shapes_of(form, program)) for form in forms(plan)]
    found: list[tuple[str, Plan]] = []
    tries = 0
    while len(found) < count and tries < 40 * count:
        tries += 1
        form, shapes = known[int(rng.integers(len(known)))]
        if tries % 3 == 0:
            made = at_one_place(form, rng)
            if made is not None:
                found.append((f"at one place: {made[0]}", made[1]))
            continue
        kind = str(rng.choice([*KINDS, LEAF]))
        changed = mutant(form, shapes, kind, rng)
        if changed is not None:
            found.append((f"{kind}: {changed.where}", changed.plan))
    return found


def campaign(which: str, count: int, seed: int) -> Counter[str]:
    plan, program = plan_of(which)
    counts: Counter[str] = Counter()
    for form in forms(plan):
        counts[f"right {folds_as_one_by_one(form, program)}"] += 1
    for _, wrong in mutants(plan, program, np.random.default_rng(seed), count):
        counts[f"mutant {folds_as_one_by_one(wrong, program)}"] += 1
    return counts


@pytest.mark.parametrize("which", [*SMALL, *HAND])
def test_what_is_proved_of_ranks_together_holds_of_each(which: str) -> None:
    counts = campaign(which, 10, 7)
    assert counts["right proved"] >= 1
    assert counts["right refuted"] == counts["right unknown"] == 0
    assert counts["mutant refuted"] >= 3


@pytest.mark.parametrize("which", MAKERS)
def test_golden_plans_and_their_mutants(which: str) -> None:
    case = shorter(MAKERS[which]())
    counts = golden_campaign(case, 10, 11)
    assert counts["right proved"] == 1
    assert counts["mutant refuted"] >= 3


def golden_campaign(case: Golden, count: int, seed: int) -> Counter[str]:
    counts: Counter[str] = Counter()
    rng = np.random.default_rng(seed)
    plans = [("right", case.plan)]
    while len(plans) <= count:
        found = golden_mutant(case, rng)
        if found is not None:
            plans.append(("mutant", found[1]))
    for kind, plan in plans:
        status = prove_plan(plan, case.program, fold=tuple(plan.mesh)).proof.values.status
        if status in ACCEPTED:
            assert not numpy_differs(case, plan, storage=False)
        counts[f"{kind} {status}"] += 1
    return counts


# --- certificates -----------------------------------------------------------------------------------------


def false_certificates(which: str, count: int, seed: int) -> Counter[str]:
    """How many false certificates of each kind were tried; none may be accepted."""
    plan, program = plan_of(which)
    rng = np.random.default_rng(seed)
    counts: Counter[str] = Counter()
    for form in forms(plan):
        certificate = prove_plan(form, program, fold=tuple(form.mesh)).certificate
        assert certificate is not None and check_certificate(certificate, form, program).accepted
        run = replay(form, program, SEEDS[0]).run
        assert run is not None
        logical = evaluate_program(program, draw(program, "step", SEEDS[0]), entry="step").values
        what = seen(certificate, run, logical)
        if not what.folded:
            continue
        for kind, fault in CERTIFICATE_FAULTS.items():
            made = 0
            for _ in range(40 * count):
                data = fault(what, form, rng)
                if data is None or made >= count:
                    continue
                made += 1
                try:
                    report = check_certificate(data, form, program)
                except TensureError:
                    continue
                assert not report.accepted, (kind, data[:4000])
            counts[kind] += made
    return counts


@pytest.mark.parametrize("which", ["TP4 of an MLP", "DDP of an MLP", *HAND])
def test_no_false_certificate_is_accepted(which: str) -> None:
    counts = false_certificates(which, 6, 3)
    assert all(counts[kind] >= 6 for kind in ("expression", "other row", "cell", "folded"))
    assert which not in HAND or (counts["definition"] >= 6 and counts["where"] >= 6)


# --- the long campaign ------------------------------------------------------------------------------------


@pytest.mark.nightly
@pytest.mark.parametrize("which", sorted(CAPTURED))
def test_campaign(which: str) -> None:
    try:
        plan_of(which)
    except TensureError:
        pytest.skip("not captured")
    print(which, dict(campaign(which, 8, 2026)))


@pytest.mark.nightly
@pytest.mark.parametrize("which", sorted(CAPTURED))
def test_certificate_campaign(which: str) -> None:
    try:
        plan, program = plan_of(which)
    except TensureError:
        pytest.skip("not captured")
    if prove_plan(plan, program, fold=tuple(plan.mesh)).certificate is None:
        pytest.skip("not proved")
    print(which, dict(false_certificates(which, 6, 2026)))
