"""Tracks whose ranks stand at some places along an axis only."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tensure.bundle import Local, Place, Plan, Rank, Track, format_plan, parse_plan, validate_plan
from tensure.errors import RecordError, TensureError
from tensure.program import Entry, Name, Op, Program, Ref, Value, axis, digest, op
from tensure.proving import prove_plan


def program_of() -> Program:
    """relu of eight numbers."""
    body = (op("relu", "x", out="y"),)
    return Program({}, {"x": Value((8,))}, {}, {"step": Entry((Name("x"),), body, (Name("y"),))})


def plan_of(*spans: tuple[int, int]) -> Plan:
    """Eight ranks, each with one number, in one track for each span."""
    row = ((0, ((axis("dp"), axis("dp") + 1, 1),)),)
    locals_ = {"x": Local((), Place(Name("x"), row)), "y": Local((), Place(Name("y"), row))}
    tracks = {
        f"at{lo}": Track(("dp",), (), None, locals_, {"step": (op("relu", "x", out="y"),)}, (("dp", lo, hi),))
        for lo, hi in spans
    }
    return Plan(digest(program_of()), mesh={"dp": 8}, tracks=tracks)


def test_the_text_reads_back() -> None:
    plan = plan_of((0, 3), (3, 8))
    assert "track at3[dp 3:8]:" in format_plan(plan)
    assert parse_plan(format_plan(plan)) == plan


def test_ranks_are_those_of_the_span() -> None:
    plan = plan_of((0, 3), (3, 8))
    assert plan.num_ranks() == 8
    assert list(plan.ranks("at0")) == [Rank("at0", (at,)) for at in range(3)]


def test_the_spans_together_are_proved_and_one_alone_is_not() -> None:
    program = program_of()
    whole = plan_of((0, 3), (3, 8))
    validate_plan(whole, program)
    assert prove_plan(whole, program).proof.values.status == "proved"
    assert prove_plan(plan_of((0, 3), (4, 8)), program).proof.values.status == "refuted"


@pytest.mark.parametrize("span", [(0, 9), (3, 3), (-1, 2)])
def test_a_span_beyond_the_mesh_is_refused(span: tuple[int, int]) -> None:
    with pytest.raises(RecordError, match="places of the mesh"):
        validate_plan(plan_of(span), program_of())


def test_a_collective_meets_ranks_of_all_tracks() -> None:
    program = program_of()
    gather = Op("all_gather", (Ref(Name("y")),), (Name("all"),), (("axes", ("dp",)), ("dim", 0)))
    whole = plan_of((0, 3), (3, 8))
    bodies = {
        label: replace(track, bodies={"step": (*track.bodies["step"], gather)})
        for label, track in whole.tracks.items()
    }
    validate_plan(replace(whole, tracks=bodies), program)
    lonely = replace(whole, tracks={**whole.tracks, "at0": bodies["at0"]})
    with pytest.raises(TensureError):
        validate_plan(lonely, program)
