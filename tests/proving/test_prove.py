"""Verdicts on the golden plans, their faults at their places, and plans made for one rule each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction

import pytest

from tensure.bundle import (
    Local,
    Place,
    Plan,
    Track,
    Verdict,
    format_plan,
    format_proof,
    parse_proof,
    validate_plan,
)
from tensure.errors import RecordError
from tensure.program import Body, Entry, Op, Program, State, Value, axis, digest, expr, name, op
from tensure.proving import ProofResult, check_certificate, prove_plan
from tests.golden import cnn_rows, decode_stages, int8_pool, tp_block
from tests.golden.case import Golden, edit

CASES = {
    case.name: case
    for case in (cnn_rows.golden(), tp_block.golden(), decode_stages.golden(), int8_pool.golden())
}
# (rank, local, words of the step) of every planted fault; where two ranks go wrong alike, either is the place
PLACES: dict[tuple[str, str], tuple[set[str], str, str]] = {
    ("cnn_rows", "halo row one too high"): ({"dev2"}, "x_y1_from1", "recv"),
    ("cnn_rows", "halo never sent"): ({"dev0"}, "y2_y3_from1", "recv"),
    ("cnn_rows", "zeros for a halo"): ({"dev1"}, "y3", "convolution"),
    ("tp_block", "no all-reduce of y"): ({"s[0]", "s[1]"}, "y[0]", "copy"),
    ("tp_block", "no all-reduce of y2"): ({"s[0]", "s[1]"}, "y2[0]", "copy"),
    ("tp_block", "no all-reduce of i3"): ({"s[0]", "s[1]"}, "i3[1]", "copy"),
    ("tp_block", "no all-reduce of j2"): ({"s[0]", "s[1]"}, "j2[1]", "copy"),
    ("tp_block", "one rank's sigmoid gradient is off"): ({"s[1]"}, "om[1]", "rsub"),
    ("decode_stages", "cache written a row early"): ({"s0"}, "K2[0]", "slice_scatter(...) at pos=1"),
    ("decode_stages", "attention misses the last row"): ({"s0"}, "o[0]", "mm(...) at pos=1"),
    ("decode_stages", "attention reads the old cache"): ({"s0"}, "s[0]", "einsum(...) at pos=0"),
    ("int8_pool", "depthwise reads a row too high"): ({"mcu"}, "c[2]", "integer_convolution"),
}
STORAGE = {
    "ring one byte low": ("A", "byte 191 of pool ram now belongs to B[6]"),
    "ring of two rows": ("B[0]", "byte 192 of pool ram now belongs to B[2]"),
}


def values_of(result: ProofResult) -> Verdict:
    return result.proof.values


def refuted(result: ProofResult, local: str, *ranks: str) -> None:
    """The verdict is refuted, confirmed, at this local (of both ranks, where they go wrong alike)."""
    example = values_of(result).counterexample
    assert example is not None, values_of(result)
    assert example.rank in (ranks or ("t[0]", "t[1]"))
    assert (example.local, example.confirmed) == (local, True)


def proved(plan: Plan, program: Program) -> ProofResult:
    """Values and storage are proved and the certificate checks."""
    validate_plan(plan, program)
    result = prove_plan(plan, program)
    assert values_of(result).status == "proved", values_of(result)
    assert result.certificate is not None
    assert check_certificate(result.certificate, plan, program).accepted
    return result


# --- golden plans ------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_golden_plan_is_proved(case: Golden) -> None:
    result = proved(case.plan, case.program)
    assert result.proof.storage.status == "proved"
    assert parse_proof(format_proof(result.proof)) == result.proof


def test_every_fault_has_its_place_here() -> None:
    assert set(PLACES) == {(case.name, label) for case in CASES.values() for label in case.faults}
    assert set(STORAGE) == {label for case in CASES.values() for label in case.storage_faults}


@pytest.mark.parametrize(("case", "label"), PLACES, ids=[f"{case}: {label}" for case, label in PLACES])
def test_fault_is_refuted_at_its_place(case: str, label: str) -> None:
    golden = CASES[case]
    result = prove_plan(golden.faults[label], golden.program)
    example = values_of(result).counterexample
    assert example is not None and example.confirmed and result.certificate is None
    ranks, local, step = PLACES[case, label]
    assert example.rank in ranks
    assert example.local == local
    assert step in example.step


@pytest.mark.parametrize("label", STORAGE)
def test_storage_fault_names_byte_and_owner(label: str) -> None:
    case = CASES["int8_pool"]
    result = prove_plan(case.storage_faults[label], case.program)
    example = result.proof.storage.counterexample
    assert example is not None and example.confirmed
    assert (example.local, example.claim) == STORAGE[label]
    assert values_of(result).status == "proved"  # values do not know storage


def test_coverage_says_which_parameter_values() -> None:
    case = CASES["decode_stages"]
    assert "decode: all 6 values of pos" in values_of(prove_plan(case.plan, case.program)).method


def test_the_result_is_the_same_for_any_number_of_jobs() -> None:
    case = CASES["decode_stages"]
    for plan in (case.plan, case.faults["attention misses the last row"]):
        one, two = prove_plan(plan, case.program), prove_plan(plan, case.program, jobs=2)
        assert one == two


def test_source_line_of_the_first_wrong_step_is_named() -> None:
    case = CASES["tp_block"]

    def noted(item: Op) -> Op:
        return replace(item, note=(("source", f"block.py:{len(item.op)}"),))

    plan = edit(case.faults["no all-reduce of y"], noted)
    example = values_of(prove_plan(plan, case.program)).counterexample
    assert example is not None and example.source == "block.py:4"


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("tp", [1, 2, 4])
def test_tensor_parallel_blocks(tp: int, layers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tp_block.SIZES, "L", layers)
    monkeypatch.setitem(tp_block.SIZES, "F", 8)
    program, plan = tp_block.program(), tp_block.plan(tp)
    proved(plan, program)

    def drop(item: Op) -> Op:
        if item.op == "all_reduce" and item.outs[0].base == "j2":
            return replace(item, op="copy", attrs=())
        return item

    verdict = values_of(prove_plan(edit(plan, drop), program))
    if tp == 1:
        assert verdict.status == "proved"  # one rank has nothing to reduce
    else:
        assert verdict.counterexample is not None
        assert verdict.counterexample.local == f"j2[{layers - 1}]"


# --- one rule each -----------------------------------------------------------------------------------


def program_of(
    values: Mapping[str, tuple[int, ...]], body: Body, outputs: tuple[str, ...], weights: tuple[str, ...] = ()
) -> Program:
    declared = {
        base: Value(shape, "f64", "weight" if base in weights else "value") for base, shape in values.items()
    }
    inputs = tuple(name(base) for base in values if base not in weights)
    return Program({}, declared, {}, {"run": Entry(inputs, body, tuple(map(name, outputs)))})


def part(of: str, dim: int, size: int, axis_name: str = "tp") -> Local:
    lo, hi = expr(f"{axis_name}*{size}"), expr(f"({axis_name}+1)*{size}")
    return Local((), Place(name(of), ((dim, ((lo, hi, 1),)),)))


def whole(of: str) -> Local:
    return Local((), Place(name(of)))


def plan_of(program: Program, locals_: Mapping[str, Local], body: Body, n: int = 2) -> Plan:
    track = Track(("tp",), (), name("card[tp]"), {}, {"run": body})
    return Plan(digest(program), None, {"tp": n}, {}, dict(locals_), {}, {"t": track})


MLP = program_of(
    {"x": (4, 6), "A": (6, 8), "B": (8, 6)},
    (
        op("mm", "x", "A", out="h"),
        op("relu", "h", out="r"),
        op("mm", "r", "B", out="y"),
        op("add", "x", "y", out="z"),
    ),
    ("z",),
    ("A", "B"),
)


def sequence_parallel(scatter: str = "reduce_scatter", gather_dim: int = 0) -> Plan:
    """Rows of x on each rank, gathered for the products, scattered back."""
    body = (
        op("all_gather", "x", out="xg", axes=["tp"], dim=gather_dim),
        op("mm", "xg", "A", out="h"),
        op("relu", "h", out="r"),
        op("mm", "r", "B", out="y_p"),
        op(scatter, "y_p", out="y", axes=["tp"], dim=0)
        if scatter == "reduce_scatter"
        else op("slice", "y_p", out="y", dim=0, start=expr("tp*2"), end=expr("tp*2+2")),
        op("add", "x", "y", out="z"),
    )
    rows = {base: part(base, 0, 2) for base in ("x", "y", "z")}
    sharded = {"A": part("A", 1, 4), "B": part("B", 0, 4), "h": part("h", 1, 4), "xg": whole("x")}
    return plan_of(MLP, {**rows, **sharded, "y_p": Local((), Place(name("y"), sum=("tp",)))}, body)


def test_sequence_parallel_block_and_its_faults() -> None:
    proved(sequence_parallel(), MLP)
    refuted(prove_plan(sequence_parallel("slice"), MLP), "y")


def test_a_pinned_addend_is_the_slice_it_says() -> None:
    def plan(lo: str, hi: str) -> Plan:
        good = sequence_parallel()
        over = ("k", ((expr(lo), expr(hi), 1),))
        return replace(good, locals={**good.locals, "y_p": Local((), Place(name("y"), over=over))})

    proved(plan("tp*4", "tp*4+4"), MLP)
    verdict = values_of(prove_plan(plan("0", "4"), MLP))
    assert verdict.status == "unknown" and "y_p" in verdict.reason  # no replay knows addends


def test_all_to_all_turns_rows_into_columns() -> None:
    program = program_of({"x": (4, 6)}, (op("relu", "x", out="y"), op("exp", "y", out="z")), ("z",))
    body = (
        op("relu", "x", out="y"),
        op("all_to_all", "y", out="c", axes=["tp"], split=1, cat=0),
        op("exp", "c", out="z"),
    )
    good = {"x": part("x", 0, 2), "c": part("y", 1, 3), "z": part("z", 1, 3)}
    proved(plan_of(program, good, body), program)
    swapped = {
        **good,
        "c": Local((), Place(name("y"), ((1, ((expr("(1-tp)*3"), expr("(1-tp)*3+3"), 1),)),))),
        "z": part("z", 1, 3),
    }
    refuted(prove_plan(plan_of(program, swapped, body), program), "c")


def test_data_parallel_mean_carries_its_coefficient() -> None:
    program = program_of(
        {"x": (6, 3)}, (op("square", "x", out="s"), op("mean", "s", out="m", dim=[0])), ("m",)
    )
    body = (
        op("square", "x", out="s"),
        op("mean", "s", out="m_p", dim=[0]),
        op("all_reduce", "m_p", out="m_s", axes=["tp"]),
        op("div", "m_s", 2, out="m"),
    )
    doubled = Local((), Place(name("m"), scale=Fraction(2)))
    locals_ = {"x": part("x", 0, 3), "m_s": doubled, "m": whole("m")}
    proved(plan_of(program, locals_, body), program)
    # twice the mean where the mean was due: the classic of gradient scaling
    wrong = (*body[:3], op("copy", "m_s", out="m"))
    refuted(prove_plan(plan_of(program, locals_, wrong), program), "m")


def test_uneven_shards_are_weighted_wrongly_by_a_plain_mean() -> None:
    program = program_of({"x": (6, 3)}, (op("mean", "x", out="m", dim=[0]),), ("m",))
    rows = Local((), Place(name("x"), ((0, ((expr("tp*4"), expr("4+tp*2"), 1),)),)))
    body = (
        op("mean", "x", out="m_p", dim=[0]),
        op("all_reduce", "m_p", out="m_s", axes=["tp"]),
        op("div", "m_s", 2, out="m"),
    )
    refuted(prove_plan(plan_of(program, {"x": rows, "m": whole("m")}, body), program), "m")
    summed = (
        op("sum", "x", out="m_p", dim=[0]),
        op("all_reduce", "m_p", out="m_s", axes=["tp"]),
        op("div", "m_s", 6, out="m"),
    )
    verdict = values_of(prove_plan(plan_of(program, {"x": rows, "m": whole("m")}, summed), program))
    assert verdict.status == "proved"  # the mean is a sum over six


def test_heads_through_views_and_transposes() -> None:
    program = program_of(
        {"x": (2, 3, 8), "W": (8, 8)},
        (
            op("einsum", "x", "W", out="q", equation="bsd,de->bse"),
            op("view", "q", out="v", size=[2, 3, 4, 2]),
            op("permute", "v", out="p", dims=[0, 2, 1, 3]),
            op("softmax", "p", out="s", dim=-1),
        ),
        ("s",),
        ("W",),
    )
    body = (
        op("einsum", "x", "W", out="q", equation="bsd,de->bse"),
        op("view", "q", out="v", size=[2, 3, 2, 2]),
        op("permute", "v", out="p", dims=[0, 2, 1, 3]),
        op("softmax", "p", out="s", dim=-1),
    )
    locals_ = {"x": whole("x"), "W": part("W", 1, 4), "s": part("s", 1, 2)}
    proved(plan_of(program, locals_, body), program)
    split = {**locals_, "W": Local((), Place(name("W"), ((1, ((expr("tp"), 8, 2),)),)))}  # columns dealt out
    refuted(prove_plan(plan_of(program, split, body), program), "s")


def test_zigzag_rows_keep_their_order() -> None:
    program = program_of({"x": (8, 3)}, (op("relu", "x", out="y"),), ("y",))
    runs = ((expr("tp*2"), expr("tp*2+2"), 1), (expr("6-tp*2"), expr("8-tp*2"), 1))
    zigzag = {base: Local((), Place(name(base), ((0, runs),))) for base in ("x", "y")}
    proved(plan_of(program, zigzag, (op("relu", "x", out="y"),)), program)
    sorted_ = {**zigzag, "y": Local((), Place(name("y"), ((0, (runs[1], runs[0])),)))}
    refuted(prove_plan(plan_of(program, sorted_, (op("relu", "x", out="y"),)), program), "y")


# --- the other verdicts --------------------------------------------------------------------------------


def one_rank(program: Program, locals_: Mapping[str, Local], body: Body) -> Plan:
    return plan_of(program, locals_, body, 1)


def test_probable_comes_with_its_bound() -> None:
    powers = tuple(op("square", base, out=out) for base, out in ("xa", "ab", "bc"))  # x^8: products end here
    program = program_of({"x": (3,)}, (*powers, op("square", "c", out="y")), ("y",))
    body = (*powers, op("mul", "c", "c", out="y"))
    plan = one_rank(program, {"x": whole("x"), "y": whole("y")}, body)
    result = prove_plan(plan, program)
    verdict = values_of(result)
    assert verdict.status == "probable" and result.certificate is None
    assert verdict.error is not None and 0 < verdict.error < 1e-30
    assert values_of(prove_plan(plan, program, accept=1e-60)).status == "unknown"


def test_lookups_can_be_probable() -> None:
    powers = tuple(op("square", base, out=out) for base, out in ("ea", "ab", "bc"))
    looked = op("embedding", "T", "i", out="e")
    types = {"T": (4, 3), "i": (5,)}
    program = program_of(types, (looked, *powers, op("square", "c", out="y")), ("y",))
    program = replace(program, values={**program.values, "i": Value((5,), "i64")})
    body = (looked, *powers, op("mul", "c", "c", out="y"))
    plan = one_rank(program, {key: whole(key) for key in ("T", "i", "y")}, body)
    assert values_of(prove_plan(plan, program)).status == "probable"
    shifted = (op("add", "i", 0, out="j"), op("embedding", "T", "i", out="e"), *body[1:-1])
    wrong = (*shifted, op("mul", "c", "b", out="y"))
    refuted(prove_plan(one_rank(program, plan.locals, wrong), program), "y")


def test_true_only_of_the_real_function_is_unknown() -> None:
    """sin(2a) = 2 sin(a) cos(a): no replay refutes it and the field does not know sin."""
    program = program_of({"a": (3,)}, (op("mul", "a", 2, out="s"), op("sin", "s", out="y")), ("y",))
    body = (
        op("sin", "a", out="p"),
        op("cos", "a", out="q"),
        op("mul", "p", "q", out="h"),
        op("mul", "h", 2, out="y"),
    )
    locals_ = {base: whole(base) for base in "ay"}
    verdict = values_of(prove_plan(one_rank(program, locals_, body), program))
    assert verdict.status == "unknown"
    assert "t[0]: y" in verdict.reason and "a replay shows no difference" in verdict.reason


def test_sums_in_any_order_are_one_value() -> None:
    program = program_of(
        dict.fromkeys("abc", (3,)), (op("add", "a", "b", out="s"), op("add", "s", "c", out="y")), ("y",)
    )
    body = (op("add", "c", "b", out="s"), op("add_n", "a", "s", out="y"))
    proved(one_rank(program, {k: whole(k) for k in "abcy"}, body), program)


def test_an_output_on_no_rank_is_refuted() -> None:
    program = program_of({"x": (4, 3)}, (op("relu", "x", out="y"),), ("y",))
    half = {base: Local((), Place(name(base), ((0, ((0, 2, 1),)),))) for base in ("x", "y")}
    example = values_of(
        prove_plan(one_rank(program, half, (op("relu", "x", out="y"),)), program)
    ).counterexample
    assert example is not None and "6 elements are on no rank" in example.step


def test_a_state_must_be_left_where_it_is_read() -> None:
    program = Program(
        {},
        {"x": Value((3,), "f64"), "S": Value((3,), "f64", "state")},
        {},
        {
            "run": Entry(
                (name("x"),), (op("add", "S", "x", out="S2"),), (name("S2"),), (State(name("S"), name("S2")),)
            )
        },
    )
    kept = {base: whole(base) for base in ("x", "S", "S2")}
    proved(plan_of(program, kept, (op("add", "S", "x", out="S2"),)), program)
    track = {
        "a": Track((), (), name("a"), {}, {"run": (op("add", "S", "x", out="S2"),)}),
        "b": Track((), (), name("b"), {}, {"run": (op("relu", "S", out="idle"),)}),
    }
    verdict = values_of(prove_plan(Plan(digest(program), None, {}, {}, kept, {}, track), program))
    assert verdict.status == "unknown" and "b reads state S" in verdict.reason


def test_too_many_parameter_values_are_not_proved() -> None:
    program = Program(
        {},
        {"x": Value((axis("n"),), "f64")},
        {},
        {"run": Entry((name("x"),), (op("relu", "x", out="y"),), (name("y"),), (), (("n", 1, 100),))},
    )
    plan = one_rank(program, {"x": whole("x"), "y": whole("y")}, (op("relu", "x", out="y"),))
    verdict = values_of(prove_plan(plan, program))
    assert verdict.status == "unknown" and "only corners were walked" in verdict.reason


def test_many_ranks_are_taken_together() -> None:
    program = program_of({"x": (3,)}, (op("relu", "x", out="y"),), ("y",))
    plan = plan_of(program, {"x": whole("x"), "y": whole("y")}, (op("relu", "x", out="y"),), 1000)
    found = prove_plan(plan, program).proof.values
    assert found.status == "proved" and found.method.endswith("ranks along tp taken together")
    other = plan_of(program, {"x": whole("x"), "y": whole("y")}, (op("exp", "x", out="y"),), 1000)
    assert prove_plan(other, program).proof.values.status != "proved"


def test_a_declared_dtype_that_is_not_the_value_s_is_never_proved() -> None:
    program = program_of({"x": (3,)}, (op("relu", "x", out="y"),), ("y",))
    locals_ = {"x": whole("x"), "y": replace(whole("y"), dtype="i8")}
    result = prove_plan(one_rank(program, locals_, (op("relu", "x", out="y"),)), program)
    assert values_of(result).status == "unknown" and "y comes out as f64[3]" in values_of(result).reason


def test_a_lost_message_and_a_second_one_are_refuted() -> None:
    program = program_of({"x": (3,)}, (op("relu", "x", out="y"),), ("y",))
    send = op("send", "x", to="t", key="k")
    lost = one_rank(
        program, {"x": whole("x"), "y": whole("y")}, (replace(send, outs=()), op("relu", "x", out="y"))
    )
    example = values_of(prove_plan(lost, program)).counterexample
    assert example is not None and "never received" in example.step and example.rank == "t[0]"
    twice = one_rank(program, {"x": whole("x"), "y": whole("y")}, (replace(send, outs=()),) * 2)
    example = values_of(prove_plan(twice, program)).counterexample
    assert example is not None and "two sends" in example.step


def test_a_plan_for_another_program_is_bad_input() -> None:
    with pytest.raises(RecordError, match="the plan is for"):
        prove_plan(CASES["cnn_rows"].plan, CASES["tp_block"].program)
    with pytest.raises(RecordError, match="accept"):
        prove_plan(CASES["cnn_rows"].plan, CASES["cnn_rows"].program, accept=2.0)


def test_proof_is_of_the_plan_it_names() -> None:
    case = CASES["cnn_rows"]
    assert format_plan(case.plan) != format_plan(case.faults["halo row one too high"])
    one = prove_plan(case.plan, case.program).proof
    other = prove_plan(case.faults["halo row one too high"], case.program).proof
    assert one.plan != other.plan and one.program == other.program
