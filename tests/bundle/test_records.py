"""Fleet, Plan and Proof: text and record are inverses, malformed ones are refused with their place."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensure.bundle import (
    Counterexample,
    Device,
    Fleet,
    Link,
    Local,
    Place,
    Plan,
    Proof,
    Rank,
    Track,
    Verdict,
    compare_claims,
    device_of,
    evaluate_plan,
    fleet_digest,
    format_fleet,
    format_plan,
    format_proof,
    parse_fleet,
    parse_plan,
    parse_proof,
    plan_digest,
    proof_digest,
    validate_plan,
)
from tensure.errors import EvaluationError, FormatError, LimitError, RecordError, TensureError
from tensure.program import Entry, Program, Value, axis, digest, evaluate_program, expr, name, op

from ..golden import cnn_rows, decode_stages, int8_pool, tp_block

DIGEST = "sha256:" + "0" * 64
positive = st.floats(1e-3, 1e15)
words = st.text("abcxyz", min_size=1, max_size=5)
devices = st.builds(
    Device,
    st.dictionaries(st.sampled_from(["f32", "bf16", "i8"]), positive, min_size=1),
    st.integers(1, 1 << 40),
    st.none() | positive,
    st.sampled_from(["", "x86-64-v3"]),
    st.integers(1, 9),
    st.sampled_from(["measured", "stated", "simulated"]),
)


@given(
    st.dictionaries(words, devices, min_size=1, max_size=3),
    st.lists(st.tuples(positive, st.floats(0, 1)), max_size=2),
)
def test_fleet_text_parses_back(table: dict[str, Device], rates: list[tuple[float, float]]) -> None:
    fleet = Fleet(table, tuple(Link(("*", next(iter(table))), rate, latency) for rate, latency in rates))
    assert parse_fleet(format_fleet(fleet)) == fleet
    assert fleet_digest(fleet) == fleet_digest(parse_fleet(format_fleet(fleet)))


FLEET = """[device.a]
flops = { f32 = 1e9 }
memory = 1024

[[link]]
ends = ["a", "*"]
rate = 1e6
latency_s = 0.001
"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[device", "not TOML"),
        ("", "without devices"),
        (FLEET.replace("memory", "memroy"), "unknown key 'memroy'"),
        (FLEET.replace("1024", "-1"), "memory = -1"),
        (FLEET.replace("1024", "true"), "whole number"),
        (FLEET.replace("1024", "9" * 400), "bits"),
        (FLEET.replace("1024", "9" * 5000), "not TOML"),
        (FLEET.replace("f32 = 1e9", '"x = 1.0, y" = 1e9'), "flops of dtype"),
        (FLEET.replace("device.a", 'device."\\u00e9"'), "ASCII"),
        (FLEET.replace("1e9", "inf"), "a number"),
        (FLEET.replace("1e9", "nan"), "finite"),
        (FLEET.replace("1e9", '"fast"'), "a number"),
        (FLEET.replace('"*"', '"b"'), "no device 'b'"),
        (FLEET.replace("rate = 1e6", "rate = 0"), "rate"),
        (FLEET.replace("0.001", "-1"), "latency_s"),
        (FLEET.replace("flops = { f32 = 1e9 }", "flops = 3"), "no flops"),
        ("device = 3", "another kind"),
        ("x = " + "[" * 5000, "not TOML"),
    ],
)
def test_bad_fleets_are_refused(text: str, message: str) -> None:
    parse_fleet(FLEET)
    with pytest.raises(TensureError, match=message):
        parse_fleet(text)


def test_members_and_links_are_found() -> None:
    fleet = Fleet(
        {"card": Device({"f32": 1e9}, 1, count=4), "cpu": Device({"f32": 1.0}, 1)},
        (Link(("card", "card"), 1.0, 0.0),),
    )
    assert fleet.link("card[0]", "card[3]").rate == 1.0
    for label in ("card[4]", "card[x]", "gpu"):
        with pytest.raises(RecordError):
            fleet.device(label)
    with pytest.raises(RecordError, match="no link between card\\[0\\] and cpu"):
        fleet.link("card[0]", "cpu")


PLACE = Place(
    name("y[l]"), ((1, ((0, 4, 1), (8, expr("n*2"), 2))),), ("tp", "mb"), ("b", ((0, 3, 1),)), Fraction(-1, 2)
)
RICH = Plan(
    DIGEST,
    DIGEST,
    {"tp": 2},
    {"ram": 64},
    {"y": Local(("l", "mb"), PLACE, "i8", "ram", expr("l*4"), (1, 0)), "bare": Local()},
    {},
    {
        "s": Track(
            ("tp",), (("p", -3),), name("card[tp]"), {"z": Local()}, {"run": (op("relu", "x", out="z"),)}
        )
    },
)


@pytest.mark.parametrize(
    "plan", [RICH, *(case.plan() for case in (cnn_rows, tp_block, decode_stages, int8_pool))]
)
def test_plan_text_parses_back(plan: Plan) -> None:
    text = format_plan(plan)
    assert parse_plan(text) == plan
    assert format_plan(parse_plan(text)) == text
    assert plan_digest(plan) == plan_digest(parse_plan(text))


TEXT = format_plan(RICH)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (TEXT.replace("plan 1", "plan 9"), "line 1"),
        (TEXT.replace(DIGEST, "sha256:00", 1), "digest"),
        (TEXT.replace(f'program "{DIGEST}"\n', ""), "no program digest"),
        (TEXT.replace("mesh tp = 2", "mesh tp = 0"), "positive"),
        (TEXT.replace("mesh tp = 2", "mesh tp = 2\nmesh tp = 2"), "positive integer"),
        (TEXT.replace("scale -1/2", "scale 2/4"), "lowest terms"),
        (TEXT.replace("scale -1/2", "scale 0/2"), "other than 0"),
        (TEXT.replace("1 0:4|", "1 0:4|8|"), "':'"),
        (TEXT.replace("local bare", "local y"), "stands twice"),
        (TEXT.replace("  entry run:", "  entry run:\n    z = relu(x)\n  entry run:"), "stands twice"),
        (TEXT + "pool b = 3\n", "after later"),
    ],
)
def test_broken_plan_text_is_refused(broken: str, message: str) -> None:
    with pytest.raises(TensureError, match=message):
        parse_plan(broken)


PROGRAM = Program(
    {}, {"x": Value((4,))}, {}, {"run": Entry((name("x"),), (op("relu", "x", out="y"),), (name("y"),))}
)
HALF = Local((), Place(name("y"), ((0, ((expr("r*2"), expr("r*2+2"), 1),)),)))
X = Local((), Place(name("x"), ((0, ((expr("r*2"), expr("r*2+2"), 1),)),)))
PLAN = Plan(
    digest(PROGRAM),
    None,
    {"r": 2},
    {},
    {"x": X, "y": HALF},
    {},
    {"s": Track(("r",), (), name("d[r]"), {}, {"run": (op("relu", "x", out="y"),)})},
)


def with_local(**locals_: Local) -> Plan:
    return replace(PLAN, locals={**PLAN.locals, **locals_})


def pooled(offset: object) -> Plan:
    return replace(with_local(y=replace(HALF, pool="ram", offset=offset)), pools={"ram": 64})  # type: ignore[arg-type]


def one_op(kind: str, dtype: str = "f32") -> Program:
    entry = Entry((name("x"),), (op(kind, "x", out="y"),), (name("y"),))
    return Program({}, {"x": Value((2, 2) if kind == "relu" else (1,), dtype)}, {}, {"run": entry})


def sends(**attrs: object) -> Plan:
    return with_body(op("relu", "x", out="y"), op("send", "y", to="s", **attrs))


def with_body(*body: object) -> Plan:
    return replace(PLAN, tracks={"s": replace(PLAN.tracks["s"], bodies={"run": body})})  # type: ignore[arg-type]


def test_a_good_plan_is_well_formed() -> None:
    validate_plan(PLAN, PROGRAM, Fleet({"d": Device({"f32": 1.0}, 1, count=2)}))
    assert [device_of(PLAN, rank) for rank in PLAN.ranks()] == ["d[0]", "d[1]"]
    assert [str(rank) for rank in PLAN.ranks()] == ["s[0]", "s[1]"]
    assert PLAN.num_ranks() == 2 and Rank("s", (1,)) in set(PLAN.ranks())


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (replace(PLAN, program=DIGEST), "the plan is for"),
        (replace(PLAN, tracks={}), "without tracks"),
        (replace(PLAN, tracks={"s": replace(PLAN.tracks["s"], axes=("q",))}), "not in the mesh"),
        (replace(PLAN, tracks={"s": replace(PLAN.tracks["s"], bodies={"walk": ()})}), "no entry 'walk'"),
        (with_local(y=replace(HALF, pool="ram", offset=0)), "no pool"),
        (with_local(y=replace(HALF, pool="ram")), "without an offset"),
        (with_local(y=replace(HALF, dtype="f64")), "as declared"),
        (with_local(y=replace(HALF, dtype="f99")), "dtype"),
        (with_local(y=Local((), Place(name("y"), ((0, ((0, 3, 1),)),)))), "its part of y"),
        (with_local(y=Local((), Place(name("nothing")))), "never makes"),
        (with_local(y=Local((), Place(name("y"), sum=("q",)))), "sum over 'q'"),
        (with_local(y=Local()), "claimed by no local"),
        (with_local(x=Local((), Place(name("x"), ((0, ((3, 6, 1),)),)))), "does not exist"),
        (with_body(op("relu", "q", out="y")), "before anything made it"),
        (with_body(op("relu", "x", out="y"), op("relu", "x", out="y")), "made twice"),
        (with_body(op("recv", out="y", key=1)), "deadlock"),
        (
            with_body(op("relu", "x", out="y"), op("send", "y", to="s", at=[0], key=1)),
            "two sends|never received",
        ),
        (with_body(op("relu", "x", out="y"), op("send", "y", to="t", key=1)), "send to 't'"),
        (with_body(op("relu", "x", out="y"), op("send", "y", to="s", at=[7], key=1)), "a rank of s"),
        (with_body(op("all_reduce", "x", out="y", axes=["q"])), "axes of track"),
        (with_body(op("frob", "x", out="y")), "not in the op table"),
        (sends(at=1, key=1), "at=1"),
        (sends(), "lacks attribute 'key'"),
        (
            with_body(op("relu", "x", out="y"), op("send", "y", out="g", to="s", at=[0], key=1)),
            "results named",
        ),
        (sends(at=[0], key=1.0), "key=1.0"),
        (
            with_body(op("all_gather", "x", out="y", axes=["r"], dim=expr("r*0"), color=1)),
            "no attribute 'color'",
        ),
        (pooled(10**9), "lies at bytes"),
        (pooled(-4), "lies at bytes"),
        (pooled(3), "multiple of 4"),
        (pooled(expr("nonsense")), "nothing binds"),
        (with_local(y=replace(HALF, order=(0, 1))), "dims as its order"),
        (with_local(y=Local((), Place(name("y"), ((0, ((0, 2, 1),)),)))), "2 elements of output y"),
        (
            with_local(y=Local((), Place(name("y"), ((0, ((expr("r*2"), expr("r*2+2"), 1),)),), ("r",)))),
            "different parts",
        ),
        (replace(PLAN, tracks={"s": replace(PLAN.tracks["s"], axes=("r", "r"))}), "each once"),
        (with_local(y=Local((), Place(name("y"), ((0, ((0, 1 << 40, 1),)),)))), "indices in one dim"),
    ],
)
def test_malformed_plans_are_refused(plan: Plan, message: str) -> None:
    with pytest.raises(TensureError, match=message):
        validate_plan(
            replace(plan, pools={"ram": 64} if "offset" in format_plan(plan) else plan.pools), PROGRAM
        )


def test_members_of_a_collective_must_agree() -> None:
    gather = op("all_gather", "x", out="g", axes=["r"], dim=expr("r"))
    program = Program(
        {}, {"x": Value((2, 2))}, {}, {"run": Entry((name("x"),), (op("relu", "x", out="y"),), (name("y"),))}
    )
    plan = Plan(
        digest(program),
        mesh={"r": 2},
        locals={"x": Local((), Place(name("x"))), "y": Local((), Place(name("y")))},
        tracks={"s": Track(("r",), bodies={"run": (gather, op("relu", "x", out="y"))})},
    )
    with pytest.raises(EvaluationError, match="another with all_gather"):
        validate_plan(plan, program)


def test_outputs_must_stand_at_the_end_of_real_bytes() -> None:
    body = (op("relu", "x", out="y"), op("neg", "x", out="z"))
    program = Program({}, {"x": Value((4,))}, {}, {"run": Entry((name("x"),), body, (name("y"), name("z")))})

    def plan(offset: int) -> Plan:
        held = {"x": Local((), Place(name("x")))}
        held["y"] = Local((), Place(name("y")), pool="ram", offset=0)
        held["z"] = Local((), Place(name("z")), pool="ram", offset=offset)
        return Plan(
            digest(program), pools={"ram": 32}, locals=held, tracks={"s": Track(bodies={"run": body})}
        )

    given = {"x": np.array([1, 2, 3, 4], np.float32)}
    logical = evaluate_program(program, given)
    for offset, wrong in ((16, False), (0, True), (12, True)):
        validate_plan(plan(offset), program)
        run = evaluate_plan(plan(offset), program, given, storage=True)
        assert (compare_claims(run, logical) is not None) == wrong
        assert compare_claims(evaluate_plan(plan(offset), program, given), logical) is None


def test_leaves_of_a_plan_are_held_to_their_types() -> None:
    with pytest.raises(RecordError, match=r"x is f64\[9\]"):
        evaluate_plan(PLAN, PROGRAM, {"x": np.zeros(9)})


def test_integers_are_compared_exactly() -> None:
    program = Program(
        {},
        {"x": Value((1,), "i32")},
        {},
        {"run": Entry((name("x"),), (op("neg", "x", out="y"),), (name("y"),))},
    )
    held = {"x": Local((), Place(name("x"))), "y": Local((), Place(name("y")))}
    plan = Plan(
        digest(program), locals=held, tracks={"s": Track(bodies={"run": program.entries["run"].body})}
    )
    run = evaluate_plan(plan, program, {"x": np.array([2_000_000_000], np.int32)})
    near = evaluate_program(program, {"x": np.array([2_000_000_001], np.int32)})
    assert compare_claims(run, near) is not None


def test_more_ranks_than_can_be_run_one_by_one_are_refused() -> None:
    with pytest.raises(LimitError, match="ranks"):
        evaluate_plan(replace(PLAN, mesh={"r": 1 << 40}), PROGRAM, {"x": np.zeros(4, np.float32)})


def test_a_device_missing_from_the_fleet_is_named() -> None:
    with pytest.raises(RecordError, match=r"device 'd\[1\]'"):
        validate_plan(PLAN, PROGRAM, Fleet({"d": Device({"f32": 1.0}, 1)}))


PROOFS = [
    Proof(
        DIGEST,
        DIGEST,
        Verdict("proved", "relations"),
        Verdict("unknown", "byte tags", reason="lanes"),
        DIGEST,
    ),
    Proof(
        DIGEST,
        DIGEST,
        Verdict("probable", "field", 2.0**-60),
        Verdict(
            "refuted",
            "tags",
            counterexample=Counterexample("s[0]", "y", "y{0 0:2}", (1, 2), "y = relu(x)", "m.py:3", True),
        ),
    ),
]


@pytest.mark.parametrize("proof", PROOFS)
def test_proof_bytes_parse_back(proof: Proof) -> None:
    assert parse_proof(format_proof(proof)) == proof
    assert proof_digest(proof) != proof_digest(replace(proof, plan="sha256:" + "1" * 64))


def test_verdicts_are_never_rounded_up() -> None:
    for broken in (("probable", None), ("proved", 0.5), ("probable", 0.0), ("probable", float("nan"))):
        with pytest.raises(FormatError):
            Verdict(broken[0], "m", broken[1])  # type: ignore[arg-type]
    with pytest.raises(FormatError):
        Verdict("refuted", "m")
    with pytest.raises(FormatError, match="status"):
        parse_proof(format_proof(PROOFS[0]).replace(b'"proved"', b'"PROVED"'))


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"{}",
        b"[]",
        format_proof(PROOFS[0])[:-2],
        format_proof(PROOFS[0]).replace(b"sha256:0", b"sha256:G"),
    ],
)
def test_broken_proofs_are_refused(broken: bytes) -> None:
    with pytest.raises(TensureError):
        parse_proof(broken)


def test_axis_names_are_identifiers() -> None:
    with pytest.raises(RecordError):
        axis("for")
