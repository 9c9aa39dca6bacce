"""Plans that are wrong at one place of a folded axis only, each built to slip through one shortcut.

`fold` takes ranks together; what is asked of all of them at once may be answered by how expressions are
written, and two that are written apart can be the same at one place. None of these may be proved.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from tensure.bundle import (
    Json,
    Local,
    Place,
    Plan,
    Track,
    collect,
    compare_claims,
    evaluate_plan,
    plan_digest,
)
from tensure.errors import TensureError
from tensure.program import (
    Entry,
    For,
    Op,
    Program,
    Undecided,
    Value,
    axis,
    coordinate,
    digest,
    evaluate_program,
    name,
    op,
)
from tensure.proving import check_certificate, prove_plan
from tensure.proving._certificate import Covered, write_certificate

DP = axis("dp")


def program_of(inputs: Mapping[str, tuple[int, ...]], body: list[Op], *outputs: str) -> Program:
    """A Program in f64."""
    values = {base: Value(shape, "f64") for base, shape in inputs.items()}
    entry = Entry(tuple(map(name, inputs)), tuple(body), tuple(map(name, outputs)))
    return Program({}, values, {}, {"run": entry})


def plan_of(program: Program, locals_: Mapping[str, Local], **tracks: Track) -> Plan:
    """Four places along dp."""
    return Plan(digest(program), None, {"dp": 4}, {}, dict(locals_), {}, tracks)


def whole(base: str) -> Local:
    return Local((), Place(name(base)))


def goes_wrong(plan: Plan, program: Program) -> bool:
    """Whether numpy sees a broken claim, another output, or a Plan that does not come to its end."""
    rng = np.random.default_rng(5)
    values = {
        str(x): rng.standard_normal(program.values[str(x)].shape) for x in program.entries["run"].inputs
    }
    logical = evaluate_program(program, values, entry="run")
    try:
        run = evaluate_plan(plan, program, values, entry="run")
        found = collect(run, program, program.entries["run"].outputs)
    except (TensureError, IndexError):  # a part that does not exist is no error of ours to word
        return True
    return compare_claims(run, logical) is not None or any(
        not np.allclose(found[label], want) for label, want in logical.outputs.items()
    )


def folded(plan: Plan, program: Program) -> str:
    return prove_plan(plan, program, fold=tuple(plan.mesh)).proof.values.status


# --- names, messages, meetings ------------------------------------------------------------------------------


def _two_names(second: str) -> tuple[Plan, Program]:
    program = program_of({"x": (3,)}, [op("exp", "x", out="y")], "y")
    body = (op("exp", "x", out="t[dp]"), op("exp", "x", out=second), op("copy", "t[dp]", out="y"))
    plan = plan_of(
        program,
        {"x": whole("x"), "y": whole("y"), "t": Local(("i",))},
        t=Track(("dp",), (), None, {}, {"run": body}),
    )
    return plan, program


def test_a_local_that_one_place_makes_twice() -> None:
    assert not goes_wrong(*_two_names("t[dp+4]")) and folded(*_two_names("t[dp+4]")) == "proved"
    assert goes_wrong(*_two_names("t[0]"))
    assert folded(*_two_names("t[0]")) != "proved"
    assert goes_wrong(*_two_names("t[3-dp+3-3]")) is False  # no two are one: 3-dp is never dp
    assert goes_wrong(*_two_names("t[2*dp]"))
    assert folded(*_two_names("t[2*dp]")) != "proved"


def _message(at: Any, **receiver: Any) -> tuple[Plan, Program]:
    program = program_of({"x": (3,)}, [op("exp", "x", out="y")], "y")
    sends = (op("exp", "x", out="r"), op("send", "r", key="m", to="z", at=at))
    plan = plan_of(
        program,
        {"x": whole("x"), "y": whole("y"), "r": Local()},
        a=Track(("dp",), (), None, {}, {"run": sends}),
        z=Track(device=None, bodies={"run": (op("recv", out="y", key="m"),)}, **receiver),
    )
    return plan, program


def test_one_message_of_many_ranks() -> None:
    to_all = _message((DP,), axes=("dp",))
    assert not goes_wrong(*to_all) and folded(*to_all) == "proved"
    to_one = _message(())
    assert goes_wrong(*to_one) and folded(*to_one) != "proved"


def test_one_message_of_all_but_the_first_rank_to_it() -> None:
    program = program_of({"x": (3,)}, [op("exp", "x", out="y")], "y")
    sends = (op("exp", "x", out="r"), op("send", "r", key="m", to="z", at=(0,)))
    plan = plan_of(
        program,
        {"x": whole("x"), "y": whole("y"), "r": Local()},
        a=Track(("dp",), (), None, {}, {"run": sends}, (("dp", 1, 4),)),
        z=Track(("dp",), (), None, {}, {"run": (op("recv", out="y", key="m"),)}, (("dp", 0, 1),)),
    )
    assert goes_wrong(plan, program) and folded(plan, program) != "proved"


def _keys(other: Any) -> tuple[Plan, Program]:
    program = program_of({"x": (3,)}, [op("exp", "x", out="y")], "y")
    sends = (
        op("exp", "x", out="r"),
        op("send", "r", key=("m", DP), to="z", at=(DP,)),
        op("send", "r", key=("m", other), to="z", at=(DP,)),
    )
    takes = (op("recv", out="y", key=("m", DP)), op("recv", out="again", key=("m", other)))
    plan = plan_of(
        program,
        {"x": whole("x"), "y": whole("y"), "r": Local(), "again": Local()},
        a=Track(("dp",), (), None, {}, {"run": sends}),
        z=Track(("dp",), (), None, {}, {"run": takes}),
    )
    return plan, program


def test_two_messages_under_one_key_at_one_place() -> None:
    assert not goes_wrong(*_keys(DP + 4)) and folded(*_keys(DP + 4)) == "proved"
    assert goes_wrong(*_keys(2)) and folded(*_keys(2)) != "proved"


def test_a_collective_whose_members_do_not_name_it_alike() -> None:
    program = program_of({"x": (4,)}, [op("exp", "x", out="y")], "y")
    part = Local((), Place(name("x"), ((0, ((DP, DP + 1, 1),)),)))

    def meeting(out: str) -> Plan:
        body = (
            op("exp", "x", out="r"),
            op("all_gather", "r", out=out, axes=("dp",), dim=0),
            op("copy", out, out="y"),
        )
        known = {"x": part, "y": whole("y"), "r": Local(), "g": Local(("i",))}
        return plan_of(program, known, t=Track(("dp",), (), None, {}, {"run": body}))

    assert not goes_wrong(meeting("g[3]"), program) and folded(meeting("g[3]"), program) == "proved"
    assert goes_wrong(meeting("g[dp]"), program) and folded(meeting("g[dp]"), program) != "proved"


def test_addends_of_two_sums_that_are_one_sum_at_one_place() -> None:
    program = program_of({"x": (3,)}, [op("exp", "x", out="y")], "y")

    def sums(other: str) -> Plan:
        body = (
            op("exp", "x", out="y"),
            op("copy", "y", out="s[dp,0]"),
            op("copy", "y", out=other),
        )
        known = {"x": whole("x"), "y": whole("y"), "s": Local(("i", "j"), Place(name("y"), sum=("j",)))}
        return plan_of(program, known, t=Track(("dp",), (), None, {}, {"run": body}))

    assert not goes_wrong(sums("s[dp+4,1]"), program) and folded(sums("s[dp+4,1]"), program) == "proved"
    assert goes_wrong(sums("s[0,1]"), program) and folded(sums("s[0,1]"), program) != "proved"


# --- what a certificate may say -----------------------------------------------------------------------------


def _term(coef: str, label: str, *dims: list[list[Any]]) -> Json:
    return [coef, label, list(dims), None]


def test_each_place_has_its_own_parts_of_an_all_to_all() -> None:
    """Two places claim the same join; at the second other parts arrive, of a join that has no name."""
    body = [
        op("slice", "x", out="s", dim=0, start=0, end=2),
        op("mul", "s", 2.0, out="d"),
        op("cat", "s", "s", "d", "d", out="y", dim=0),
    ]
    program = program_of({"x": (8, 3)}, body, "y")
    swap = op("all_to_all", "t", out="y", axes=("dp",), split=0, cat=0)
    plan = plan_of(
        program,
        {"x": whole("x"), "t": Local()},
        a=Track(
            ("dp",), (), None, {"y": whole("y")}, {"run": (op("copy", "x", out="t"), swap)}, (("dp", 0, 2),)
        ),
        b=Track(
            ("dp",), (), None, {"y": Local()}, {"run": (op("mul", "x", 2.0, out="t"), swap)}, (("dp", 2, 4),)
        ),
    )
    assert goes_wrong(plan, program)
    every: list[list[list[Any]]] = [[[0, 8]], [[0, 3]]]
    rows: list[Json] = [
        ["a[0:2]", "x", [_term("1/1", "x", *every)]],
        ["a[0:2]", "t", [_term("1/1", "x", *every)]],
        ["a[0:2]", "y", [_term("1/1", "y", *every)]],
        ["b[2:4]", "x", [_term("1/1", "x", *every)]],
        ["b[2:4]", "t", [_term("2/1", "x", *every)]],
    ]
    covered = Covered("run", {}, False, [], rows, ("dp",))
    certificate = write_certificate(digest(program), plan_digest(plan), [covered])
    assert not check_certificate(certificate, plan, program).accepted
    assert folded(plan, program) != "proved"


def test_an_axis_that_is_named_none_is_not_nothing() -> None:
    """A slice up to a coordinate is no slice without an end, whatever the coordinate is called."""
    program = program_of({"x": (4, 2)}, [op("exp", "x", out="y")], "y")
    body = (op("slice", "x", out="s", dim=0, start=0, end=axis("None")), op("exp", "s", out="y"))
    plan = Plan(
        digest(program),
        None,
        {"None": 4},
        {},
        {"x": whole("x"), "s": Local(), "y": whole("y")},
        {},
        {"t": Track(("None",), (), None, {}, {"run": body}, (("None", 1, 3),))},
    )
    assert goes_wrong(plan, program) and folded(plan, program) != "proved"
    every: list[list[list[Any]]] = [[[0, 4]], [[0, 2]]]
    rows: list[Json] = [
        ["t[1:3]", base, [_term("1/1", of, *every)]] for base, of in (("x", "x"), ("s", "x"), ("y", "y"))
    ]
    covered = Covered("run", {}, False, [], rows, ("None",))
    certificate = write_certificate(digest(program), plan_digest(plan), [covered])
    assert not check_certificate(certificate, plan, program).accepted


# --- the prover itself --------------------------------------------------------------------------------------


def test_what_has_no_one_answer_can_be_told_to_another_process() -> None:
    told = pickle.loads(pickle.dumps(Undecided("dp == 0", frozenset({"dp"}))))
    assert (str(told), told.axes) == ("dp == 0 has no one answer along dp", {"dp"})
    dp = coordinate("dp", 0, 4)
    assert pickle.loads(pickle.dumps(4 * dp + 1)) == 4 * dp + 1


def test_bytes_are_looked_at_rank_by_rank() -> None:
    program = program_of({"x": (3,)}, [op("exp", "x", out="y")], "y")
    body = (op("exp", "x", out="y"),)

    def pooled(at: int) -> Plan:
        known = {
            "x": replace(whole("x"), pool="p", offset=0),
            "y": replace(whole("y"), pool="p", offset=at),
        }
        plan = plan_of(program, known, t=Track(("dp",), (), None, {}, {"run": body}))
        return replace(plan, pools={"p": 48})

    for at, status in ((24, "proved"), (32, "refuted")):
        proof = prove_plan(pooled(at), program, fold=("dp",)).proof
        assert proof.storage.status == status == prove_plan(pooled(at), program).proof.storage.status
        assert proof.values.status == "proved"


# --- of too many ranks to replay, nothing right may be refuted ----------------------------------------------


def many(plan: Plan) -> Plan:
    """The same on 128 replicas."""
    tracks = {
        label: replace(
            track, axes=("replica", *track.axes), bodies={"run": tuple(map(_there, track.bodies["run"]))}
        )
        for label, track in plan.tracks.items()
    }
    return replace(plan, mesh={"replica": 128, **plan.mesh}, tracks=tracks)


def _there(item: Any) -> Any:
    """Messages stay in their replica."""
    if isinstance(item, For):
        return replace(item, body=tuple(map(_there, item.body)))
    if item.op != "send":
        return item
    attrs = tuple((key, (axis("replica"), *value) if key == "at" else value) for key, value in item.attrs)
    return replace(item, attrs=attrs)


def test_a_local_that_is_made_under_numbers_and_read_under_a_coordinate() -> None:
    program = program_of({"x": (3,)}, [op("exp", "x", out="y")], "y")

    def reading(made: int) -> Plan:
        body = (
            For("i", 0, made, (op("exp", "x", out="t[i]"),)),
            op("copy", "t[dp]", out="y"),
        )
        known = {"x": whole("x"), "y": whole("y"), "t": Local(("i",))}
        return plan_of(program, known, t=Track(("dp",), (), None, {}, {"run": body}))

    assert not goes_wrong(reading(4), program) and folded(reading(4), program) == "proved"
    assert prove_plan(many(reading(4)), program).proof.values.status == "proved"
    assert prove_plan(many(reading(3)), program).proof.values.status == "refuted"


def test_a_message_to_a_rank_at_another_coordinate() -> None:
    program = program_of({"x": (3,)}, [op("exp", "x", out="y")], "y")

    def sending(half: int, by: int) -> Plan:
        sends = (op("exp", "x", out="r"), op("send", "r", key="m", to="b", at=(DP + by,)))
        return plan_of(
            program,
            {"x": whole("x"), "y": whole("y"), "r": Local()},
            a=Track(("dp",), (), None, {}, {"run": sends}, (("dp", 0, half),)),
            b=Track(
                ("dp",), (), None, {}, {"run": (op("recv", out="y", key="m"),)}, (("dp", half, 2 * half),)
            ),
        )

    assert not goes_wrong(sending(2, 2), program) and folded(sending(2, 2), program) == "proved"
    assert goes_wrong(sending(2, 3), program) and folded(sending(2, 3), program) != "proved"
    assert prove_plan(many(sending(2, 2)), program).proof.values.status == "proved"
    assert prove_plan(many(sending(2, 1)), program).proof.values.status == "refuted"


def test_a_message_under_a_number_that_is_awaited_under_a_coordinate() -> None:
    program = program_of({"x": (3,)}, [op("exp", "x", out="y")], "y")

    def sending(keys: int) -> Plan:
        sends = (
            op("exp", "x", out="r"),
            For("i", 0, keys, (op("send", "r", key=("m", axis("i")), to="b", at=(DP,)),)),
        )
        takes = (
            op("recv", out="y", key=("m", DP)),
            For("i", 1, keys, (op("recv", out="rest[i]", key=("m", (DP + axis("i")) % keys)),)),
        )
        return plan_of(
            program,
            {"x": whole("x"), "y": whole("y"), "r": Local(), "rest": Local(("i",))},
            a=Track(("dp",), (), None, {}, {"run": sends}),
            b=Track(("dp",), (), None, {}, {"run": takes}),
        )

    assert not goes_wrong(sending(4), program) and folded(sending(4), program) == "proved"
    assert prove_plan(many(sending(4)), program).proof.values.status == "proved"


def test_each_place_holds_another_value_of_a_family() -> None:
    ends = [name(f"{base}[{at}]") for base in "xy" for at in range(4)]
    body = (For("i", 0, 4, (op("exp", "x[i]", out="y[i]"),)),)
    values = {base: Value((3,), "f64", params=(("i", 4),)) for base in "xy"}
    program = Program({}, values, {}, {"run": Entry(tuple(ends[:4]), body, tuple(ends[4:]))})

    def holding(which: str) -> Plan:
        known = {base: Local((), Place(name(f"{base}[{which}]"))) for base in "xy"}
        track = Track(("dp",), (), None, {}, {"run": (op("exp", "x", out="y"),)})
        return plan_of(program, known, t=track)

    assert folded(holding("dp"), program) == "proved" and folded(holding("dp//2"), program) == "refuted"
    assert prove_plan(many(holding("dp")), program).proof.values.status == "proved"
    assert prove_plan(many(holding("dp//2")), program).proof.values.status == "refuted"
