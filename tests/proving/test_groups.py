"""Collectives among ranks of several tracks: who is a member is said by mesh coordinates alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tensure.bundle import Local, Place, Plan, Rank, Track, collect, evaluate_plan, validate_plan
from tensure.errors import EvaluationError, RecordError
from tensure.program import Body, Entry, Program, Value, digest, expr, name, op
from tensure.proving import check_certificate, prove_plan

PROGRAM = Program(
    {},
    {"x": Value((4, 6), "f64"), "w": Value((6, 3), "f64", "weight")},
    {},
    {"run": Entry((name("x"),), (op("mm", "x", "w", out="y"), op("relu", "y", out="z")), (name("z"),))},
)
BODY: Body = (
    op("mm", "x", "w", out="p"),
    op("all_reduce", "p", out="y", axes=["tp"]),
    op("relu", "y", out="z"),
)


def part(of: str, dim: int) -> Local:
    return Local((), Place(name(of), ((dim, ((expr("tp*3"), expr("tp*3+3"), 1),)),)))


def two_tracks(**changed: Track) -> Plan:
    """Each coordinate of tp is a track of its own."""
    locals_ = {"x": part("x", 1), "w": part("w", 0), "y": Local((), Place(name("y")))}
    locals_ |= {"z": Local((), Place(name("z")))}
    tracks = {f"t{at}": Track((), (("tp", at),), None, {}, {"run": BODY}) for at in (0, 1)}
    return Plan(digest(PROGRAM), None, {"tp": 2}, {}, locals_, {}, {**tracks, **changed})


def test_two_tracks_meet_in_an_all_reduce() -> None:
    plan = two_tracks()
    validate_plan(plan, PROGRAM)
    result = prove_plan(plan, PROGRAM)
    assert result.proof.values.status == "proved", result.proof.values
    assert result.certificate is not None and check_certificate(result.certificate, plan, PROGRAM).accepted
    rng = np.random.default_rng(0)
    drawn = {"x": rng.standard_normal((4, 6)), "w": rng.standard_normal((6, 3))}
    z = collect(evaluate_plan(plan, PROGRAM, drawn), PROGRAM, (name("z"),))["z"]
    assert np.allclose(z, np.maximum(drawn["x"] @ drawn["w"], 0))


def test_members_stand_in_mesh_order_whatever_the_order_of_tracks() -> None:
    plan = two_tracks()
    body: Body = (op("mm", "x", "w", out="y"), op("relu", "y", out="z_p"))
    body += (op("all_gather", "z_p", out="z", axes=["tp"], dim=0),)
    rows = Local((), Place(name("x"), ((0, ((expr("tp*2"), expr("tp*2+2"), 1),)),)))
    locals_ = {"x": rows, "w": Local((), Place(name("w"))), "z": Local((), Place(name("z")))}
    tracks = {f"t{at}": Track((), (("tp", at),), None, {}, {"run": body}) for at in (1, 0)}
    turned = replace(plan, locals=locals_, tracks=tracks)
    assert prove_plan(turned, PROGRAM).proof.values.status == "proved"
    swapped = {f"t{at}": Track((), (("tp", 1 - at),), None, {}, {"run": body}) for at in (1, 0)}
    assert prove_plan(replace(turned, tracks=swapped), PROGRAM).proof.values.status == "proved"
    wrong = replace(rows, place=Place(name("x"), ((0, ((expr("2-tp*2"), expr("4-tp*2"), 1),)),)))
    lost = prove_plan(replace(turned, locals={**locals_, "x": wrong}), PROGRAM)
    assert lost.proof.values.status == "refuted"


def test_a_member_without_the_collective_is_a_deadlock_that_names_it() -> None:
    idle = Track((), (("tp", 1),), None, {}, {"run": BODY[:1]})
    plan = two_tracks(t1=idle)
    with pytest.raises(EvaluationError, match="deadlock: t0 waits at all_reduce of y"):
        validate_plan(plan, PROGRAM)
    verdict = prove_plan(plan, PROGRAM).proof.values
    assert verdict.counterexample is not None
    assert (verdict.counterexample.rank, verdict.counterexample.local) == ("t0", "y")


@pytest.mark.parametrize(
    ("tracks", "words"),
    [
        ({"t1": Track((), (("tp", 0),), None, {}, {"run": BODY})}, "both stand at tp=0"),
        ({"t1": Track((), (), None, {}, {"run": ()})}, "nothing says where t1 stands along tp"),
        ({"t1": Track((), (("tp", 7),), None, {}, {"run": BODY})}, "tp fixed at 7"),
        ({"t1": Track(("tp",), (), None, {}, {"run": ()})}, "both stand at tp=0"),
    ],
)
def test_unclear_members_are_refused(tracks: dict[str, Track], words: str) -> None:
    plan = two_tracks(**tracks)
    with pytest.raises(RecordError, match=words):
        validate_plan(plan, PROGRAM)
    assert prove_plan(plan, PROGRAM).proof.values.status != "proved"


def test_a_place_that_is_no_rank_s_is_refused() -> None:
    plan = two_tracks()
    alone = replace(plan, tracks={"t0": plan.tracks["t0"]})
    with pytest.raises(RecordError, match="only 1 ranks, at tp=0"):
        validate_plan(alone, PROGRAM)


def test_a_second_axis_keeps_groups_apart() -> None:
    """Tracks by tp, ranks of each by dp: a reduction over tp meets the other track at the same dp."""
    rows = ((0, ((expr("dp*2"), expr("dp*2+2"), 1),)),)
    cut = (rows[0], (1, ((expr("tp*3"), expr("tp*3+3"), 1),)))
    locals_ = {"x": Local((), Place(name("x"), cut)), "w": part("w", 0)}
    locals_ |= {base: Local((), Place(name(base), rows)) for base in ("y", "z")}
    tracks = {f"t{at}": Track(("dp",), (("tp", at),), None, {}, {"run": BODY}) for at in (0, 1)}
    plan = Plan(digest(PROGRAM), None, {"dp": 2, "tp": 2}, {}, locals_, {}, tracks)
    validate_plan(plan, PROGRAM)
    assert prove_plan(plan, PROGRAM).proof.values.status == "proved"
    body = (BODY[0], replace(BODY[1], attrs=(("axes", ("dp", "tp")),)), BODY[2])
    over = {key: replace(track, bodies={"run": body}) for key, track in tracks.items()}
    assert prove_plan(replace(plan, tracks=over), PROGRAM).proof.values.status == "refuted"


def test_addends_of_several_tracks_are_one_sum() -> None:
    plan = two_tracks()
    locals_ = {**plan.locals, "p": Local((), Place(name("y"), sum=("tp",)))}
    assert prove_plan(replace(plan, locals=locals_), PROGRAM).proof.values.status == "proved"
    body = (op("mm", "x", "w", out="q"), op("mul", "q", 2, out="p"), *BODY[1:])
    wrong = Track((), (("tp", 1),), None, {}, {"run": body})
    bad = replace(two_tracks(t1=wrong), locals=locals_)
    example = prove_plan(bad, PROGRAM).proof.values.counterexample
    assert example is not None and example.local == "p" and example.rank == str(Rank("t1"))
