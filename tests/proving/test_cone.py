"""A replay of what a doubt rests on: it finds what a replay of all ranks finds, at the same place."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tensure.bundle import Local, Place, Plan, Track, Verdict
from tensure.program import Entry, Name, Op, Program, Value, axis, combine, digest, name, op
from tensure.proving import _decide, _prove, _walks, prove_plan
from tests.golden.case import Golden
from tests.golden.tp_block import golden


@pytest.fixture
def in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every Plan has too many ranks to run one by one."""
    _at_most(0, monkeypatch)


def _at_most(ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in (_decide, _prove, _walks):
        monkeypatch.setattr(part, "MAX_RANKS", ranks)


CASE: Golden = golden()


@pytest.mark.usefixtures("in_part")
@pytest.mark.parametrize("fault", sorted(CASE.faults))
def test_every_fault_of_the_block_is_refuted_where_it_is(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = prove_plan(CASE.faults[fault], CASE.program).proof.values
    _at_most(256, monkeypatch)
    whole = prove_plan(CASE.faults[fault], CASE.program).proof.values
    assert found.status == whole.status == "refuted"
    assert found.counterexample is not None and whole.counterexample is not None
    assert found.counterexample.local == whole.counterexample.local
    assert "replay of what the doubt rests on" in found.method


@pytest.mark.usefixtures("in_part")
def test_the_right_block_is_proved() -> None:
    assert prove_plan(CASE.plan, CASE.program).proof.values.status == "proved"


def program_of() -> Program:
    """The squares of the rows of x, summed up."""
    body = (op("mul", "x", "x", out="y"), op("sum", "y", out="z", dim=[0], keepdim=False))
    return Program({}, {"x": Value((512, 3))}, {}, {"step": Entry((Name("x"),), body, (Name("z"),))})


def plan_of(*tracks: tuple[int, int, int]) -> Plan:
    """One row on each of 512 ranks; in the tracks (lo, hi, factor) the squares are multiplied."""
    row = ((0, ((axis("dp"), combine("+", axis("dp"), 1), 1),)),)
    locals_ = {"x": Local((), Place(name("x"), row)), "z": Local((), Place(name("z")))}

    def body(factor: int) -> tuple[Op, ...]:
        return (
            op("mul", "x", "x", out="y"),
            op("mul", "y", factor, out="s"),
            op("sum", "s", out="p", dim=[0], keepdim=False),
            op("all_reduce", "p", out="z", axes=["dp"]),
        )

    made = {
        f"at{lo}": Track(("dp",), (), None, locals_, {"step": body(factor)}, (("dp", lo, hi),))
        for lo, hi, factor in tracks
    }
    return Plan(digest(program_of()), mesh={"dp": 512}, tracks=made)


def values_of(plan: Plan) -> Verdict:
    """The verdict on values."""
    return prove_plan(plan, program_of()).proof.values


def test_512_ranks_are_proved() -> None:
    assert values_of(plan_of((0, 512, 1))).status == "proved"
    assert values_of(plan_of((0, 300, 1), (300, 512, 1))).status == "proved"


def test_one_rank_of_512_that_scales_is_refuted() -> None:
    found = values_of(plan_of((0, 300, 1), (300, 301, 2), (301, 512, 1)))
    assert found.status == "refuted" and found.counterexample is not None
    assert found.counterexample.local == "z"
    assert "first astray on at300[300]: s = mul" in found.counterexample.step
    assert found.counterexample.confirmed


def test_a_rank_that_is_left_out_is_refuted() -> None:
    found = values_of(plan_of((0, 300, 1), (301, 512, 1)))
    assert found.status == "refuted"


def test_a_message_nobody_sends_is_refuted() -> None:
    good = plan_of((0, 512, 1))
    (track,) = good.tracks.values()
    waits = Op("recv", (), (Name("lost"),), (("key", "k"),))
    other = replace(good, tracks={"at0": replace(track, bodies={"step": (waits, *track.bodies["step"])})})
    found = values_of(other)
    assert found.status == "refuted" and found.counterexample is not None
    assert "recv" in found.counterexample.step
    assert not found.counterexample.confirmed  # who waits for whom is seen, and nothing was replayed


def test_what_a_doubted_claim_led_to_is_not_taken_from_the_program() -> None:
    good = plan_of((0, 512, 1))
    (track,) = good.tracks.values()
    row = track.locals["x"].place
    assert row is not None
    # y is claimed to be its part of the squares and is twice that; z follows from the claim, and is as wrong
    claims = {**track.locals, "s": Local((), replace(row, of=name("y")))}
    bodies = {
        "step": tuple(
            replace(s, args=(s.args[0], 2)) if s.outs == (Name("s"),) else s for s in track.bodies["step"]
        )
    }
    other = replace(good, tracks={"at0": replace(track, locals=claims, bodies=bodies)})
    found = prove_plan(other, program_of())
    assert found.proof.values.status == "refuted" and found.proof.values.counterexample is not None
    assert found.proof.values.counterexample.local == "s"


@pytest.mark.usefixtures("in_part")
@pytest.mark.parametrize("many", ["full", "expand"])
def test_more_of_what_repeats_than_the_program_has_is_replayed(many: str) -> None:
    """What only repeats is one value of any size; sin^2 + cos^2 = 1 is right, and no rule knows it."""
    ones = op("full", out="o", size=[4], fill_value=1.0, dtype="f64")
    body = (
        op("expand", "a", out="e", size=[4]),
        ones,
        op("add", "e", "x", out="s"),
        op("add", "s", "o", out="y"),
    )
    made = {
        "full": op("full", out="f", size=[8], fill_value=1.0, dtype="f64"),
        "expand": op("expand", "a", out="f", size=[8]),
    }
    own = (
        made[many],
        op("sin", "f", out="p"),
        op("square", "p", out="pp"),
        op("cos", "f", out="c"),
        op("square", "c", out="cc"),
        op("add", "pp", "cc", out="u"),
        op("slice", "u", out="v", dim=0, start=0, end=4),
        op("add", "a", "x", out="s"),
        op("add", "s", "v", out="y"),
    )
    inputs = {"x": Value((4,), "f64"), "a": Value((1,), "f64")}
    program = Program({}, inputs, {}, {"run": Entry((Name("x"), Name("a")), body, (Name("y"),))})
    locals_ = {base: Local((), Place(name(base))) for base in ("x", "a", "y")}
    tracks = {"t": Track(("dp",), bodies={"run": own})}
    plan = Plan(digest(program), None, {"dp": 4}, {}, locals_, {}, tracks)
    found = prove_plan(plan, program).proof.values
    assert found.status == "unknown"
    assert "a replay shows no difference" in found.reason
    wrong = replace(tracks["t"], bodies={"run": (*own[:-1], op("sub", "s", "v", out="y"))})
    assert prove_plan(replace(plan, tracks={"t": wrong}), program).proof.values.status == "refuted"
