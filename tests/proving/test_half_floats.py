"""Casts between floats are the identity over the reals; those to integers and bools are not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tensure.bundle import Local, Place, Plan, Track, plan_digest
from tensure.bundle._json import canonical_json
from tensure.program import Entry, Op, Program, Value, digest, name, op
from tensure.proving import ProofResult, check_certificate, prove_plan
from tests.proving.test_soundness import Types, pair

X: Types = {"x": ((4,), "f32")}


def copies(*dtypes: str, types: Types = X, last: str = "f32") -> tuple[Program, Plan]:
    """y = x of the Program; on the rank by way of other dtypes."""
    steps, at = list[Op](), "x"
    for number, dtype in enumerate((*dtypes, last)):
        out = "y" if number == len(dtypes) else f"c{number}"
        steps.append(op("_to_copy", at, out=out, dtype=dtype))
        at = out
    return pair(types, [op("copy", "x", out="y")], ["y"], steps)


def asked(program: Program, plan: Plan) -> ProofResult:
    return prove_plan(plan, program)


def forged(right: tuple[Program, Plan], wrong: tuple[Program, Plan]) -> bool:
    """Whether the checker takes a right plan's certificate for a wrong one, digests put right."""
    program, plan = right
    data = prove_plan(plan, program).certificate
    assert data is not None and check_certificate(data, plan, program).accepted
    row = json.loads(data)
    row["program"], row["plan"] = digest(wrong[0]), plan_digest(wrong[1])
    return check_certificate(canonical_json(row), wrong[1], wrong[0]).accepted


@pytest.mark.parametrize("dtypes", [("bf16",), ("f16",), ("bf16", "f32", "f16"), ("f64", "bf16")])
def test_floats_by_way_of_floats_are_proved_and_told(dtypes: tuple[str, ...]) -> None:
    found = asked(*copies(*dtypes))
    assert found.proof.values.status == "proved"
    assert any(words.startswith("rounded to ") for words in found.numerics)


@pytest.mark.parametrize(
    "dtypes",
    [("i64",), ("bf16", "i64"), ("i64", "bf16"), ("bool",), ("bf16", "bool"), ("i8", "f16"), ("bf16", "u8")],
)
def test_floats_by_way_of_integers_are_refuted(dtypes: tuple[str, ...]) -> None:
    wrong = copies(*dtypes)
    found = asked(*wrong)
    assert found.proof.values.status == "refuted" and not found.numerics
    assert not forged(copies(*("bf16" for _ in dtypes)), wrong)


def test_integers_by_way_of_halves_are_not_proved() -> None:
    """bfloat16 has 8 bits: 257 is none of its numbers."""
    wrong = copies("bf16", types={"x": ((4,), "i64")}, last="i64")
    assert asked(*wrong).proof.values.status not in ("proved", "refuted")


def test_integers_held_in_halves_are_told() -> None:
    """Positions in bfloat16 are a bug of real models; over the reals they are the positions."""
    types: Types = {"x": ((4,), "i64"), "w": ((4,), "f32")}
    said = [op("_to_copy", "x", out="f", dtype="f32"), op("mul", "f", "w", out="y")]
    done = [
        op("_to_copy", "x", out="h", dtype="bf16"),
        op("_to_copy", "h", out="f", dtype="f32"),
        op("mul", "f", "w", out="y"),
    ]
    found = asked(*pair(types, said, ["y"], done))
    assert found.proof.values.status == "proved"
    (words,) = found.numerics
    assert words.startswith("integers held in bfloat16 on the ranks and not in the model: 1 tensor, first h")


def test_a_quotient_of_integers_is_a_float() -> None:
    """Cast to integers it loses what a copy keeps, whatever a certificate says."""
    types: Types = {"a": ((4,), "i64"), "b": ((4,), "i64")}

    def quotient(*rest: Op) -> tuple[Program, Plan]:
        said = [op("div", "a", "b", out="q"), op("copy", "q", out="y")]
        return pair(types, said, ["y"], [op("div", "a", "b", out="q"), *rest])

    right = quotient(op("copy", "q", out="z"), op("copy", "z", out="y"))
    wrong = quotient(op("_to_copy", "q", out="z", dtype="i64"), op("copy", "z", out="y"))
    assert asked(*wrong).proof.values.status != "proved"
    assert not forged(right, wrong)


def test_a_sum_over_ranks_in_halves_is_told() -> None:
    types: Types = {"x": ((4, 6), "f32")}
    said = [op("sum", "x", out="y", dim=[1])]
    done = [
        op("_to_copy", "x", out="h", dtype="bf16"),
        op("sum", "h", out="part", dim=[1]),
        op("all_reduce", "part", out="all", axes=("tp",), reduce="sum"),
        op("_to_copy", "all", out="y", dtype="f32"),
    ]
    from tensure.program import expr

    cut = Place(name("x"), ((1, ((expr("3*tp"), expr("3*tp+3"), 1),)),))
    found = asked(*pair(types, said, ["y"], done, 2, x=cut))
    assert found.proof.values.status == "proved"
    summed, rounded = found.numerics
    assert summed == "summed over ranks in bfloat16: 1 tensor, first all = all_reduce(...) on t[0]"
    assert rounded.startswith("rounded to bfloat16 on the ranks and not in the model: 2 tensors, first h = ")


def test_what_a_plan_says_of_itself_does_not_count() -> None:
    """A note is outside the digest, so nobody vouches for it."""
    program, plan = copies("bf16")
    lies = [
        op("_to_copy", "x", out="c0", dtype="bf16", note=(("said", "f32"),)),
        op("_to_copy", "c0", out="y", dtype="f32"),
    ]
    other = pair(X, [op("copy", "x", out="y")], ["y"], lies)[1]
    assert asked(program, other).numerics == asked(program, plan).numerics != ()


def test_a_softmax_that_widens_is_that_of_what_was_widened() -> None:
    types: Types = {"x": ((4, 6), "f16")}
    said = [
        op("_to_copy", "x", out="w", dtype="f32"),
        op("_softmax", "w", out="y", dim=1, half_to_float=False),
    ]
    done = [op("_softmax", "x", out="y", dim=1, half_to_float=True)]
    assert asked(*pair(types, said, ["y"], done)).proof.values.status == "proved"
    other = [op("_softmax", "x", out="y", dim=0, half_to_float=True)]
    assert asked(*pair(types, said, ["y"], other)).proof.values.status == "refuted"


# --- what ranks bring to each other --------------------------------------------------------------------


def met(ours: str, theirs: str, way: str) -> tuple[Program, Plan]:
    """Two ranks that bring x, or halves of it, to each other in these dtypes."""
    program = Program(
        {},
        {"x": Value((4,), "f32")},
        {},
        {"run": Entry((name("x"),), (op("copy", "x", out="y"),), (name("y"),))},
    )
    calls = {
        "all_reduce": [op("div", "h", 2.0, out="p"), op("all_reduce", "p", out="m", axes=("tp",))],
        "reduce_scatter": [
            op("div", "h", 2.0, out="p"),
            op("reduce_scatter", "p", out="s", axes=("tp",), dim=0),
            op("all_gather", "s", out="m", axes=("tp",), dim=0),
        ],
        "all_to_all": [
            op("all_to_all", "h", out="s", axes=("tp",), split=0, cat=0),
            op("slice", "s", out="p", start=0, end=2),
            op("all_gather", "p", out="m", axes=("tp",), dim=0),
        ],
    }

    def body(dtype: str, at: int) -> tuple[Op, ...]:
        first, last = op("_to_copy", "x", out="h", dtype=dtype), op("_to_copy", "m", out="y", dtype="f32")
        if way == "all_gather":
            part = op("slice", "h", out="p", start=2 * at, end=2 * at + 2)
            return first, part, op("all_gather", "p", out="m", axes=("tp",), dim=0), last
        return (first, *calls[way], last)

    held = {base: Local((), Place(name(base))) for base in ("x", "y")}
    tracks = {
        f"t{at}": Track((), (("tp", at),), None, {}, {"run": body(dtype, at)})
        for at, dtype in enumerate((ours, theirs))
    }
    return program, Plan(digest(program), None, {"tp": 2}, {}, held, {}, tracks)


WAYS = ["all_reduce", "reduce_scatter", "all_to_all", "all_gather"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("ours", "theirs"), [("bf16", "f32"), ("f32", "f16"), ("f16", "bf16")])
def test_ranks_that_bring_several_dtypes_are_not_proved(way: str, ours: str, theirs: str) -> None:
    """Their bytes are not of one length, or not of one meaning: a hang or garbage, whatever the reals say."""
    right, wrong = met(ours, ours, way), met(ours, theirs, way)
    found = asked(*wrong)
    assert found.proof.values.status in ("refuted", "unknown"), found.proof.values
    assert "ranks do not make the same calls" in str(found.proof.values)
    assert not forged(right, wrong)


def sent(dtype: str, declared: str) -> tuple[Program, Plan]:
    """x sent in this dtype, and received in what is declared as another."""
    program = Program(
        {},
        {"x": Value((4,), "f32")},
        {},
        {"run": Entry((name("x"),), (op("copy", "x", out="y"),), (name("y"),))},
    )
    one = (
        op("_to_copy", "x", out="h", dtype=dtype),
        op("send", "h", to="t1", at=(), key="k"),
        op("copy", "x", out="y"),
    )
    other = (op("recv", out="got", key="k"), op("_to_copy", "got", out="y", dtype="f32"))
    held = {base: Local((), Place(name(base))) for base in ("x", "y")}
    tracks = {
        "t0": Track((), (("tp", 0),), None, {}, {"run": one}),
        "t1": Track((), (("tp", 1),), None, {"got": Local((), None, dtype=declared)}, {"run": other}),
    }
    return program, Plan(digest(program), None, {"tp": 2}, {}, held, {}, tracks)


@pytest.mark.parametrize(("dtype", "declared"), [("bf16", "f32"), ("f32", "bf16"), ("f16", "bf16")])
def test_what_is_received_in_another_dtype_than_sent_is_not_proved(dtype: str, declared: str) -> None:
    wrong = sent(dtype, declared)
    assert asked(*wrong).proof.values.status in ("refuted", "unknown")
    assert not forged(sent(declared, declared), wrong)


# --- literals ------------------------------------------------------------------------------------------


def scaled(number: float, dtype: str, wanted: float = 0.10000000149011612) -> tuple[Program, Plan]:
    """x times a literal, which is this number in a half float on the rank."""

    def steps(fill: float, kind: str) -> list[Op]:
        return [op("full", out="c", size=(), fill_value=fill, dtype=kind), op("mul", "x", "c", out="y")]

    return pair(X, steps(wanted, "f32"), ["y"], steps(number, dtype))


@pytest.mark.parametrize(("number", "dtype"), [(0.10009765625, "bf16"), (0.0999755859375, "f16")])
def test_the_rounding_of_the_models_literal_is_that_one_and_told(number: float, dtype: str) -> None:
    found = asked(*scaled(number, dtype))
    assert found.proof.values.status == "proved"
    assert any(words.startswith("rounded to ") and "c = full" in words for words in found.numerics)


@pytest.mark.parametrize(("number", "dtype"), [(0.1005859375, "bf16"), (0.099609375, "bf16"), (0.1, "bf16")])
def test_another_literal_is_not_the_models(number: float, dtype: str) -> None:
    """What has many bits may be the rounding of something else."""
    wrong = scaled(number, dtype)
    assert asked(*wrong).proof.values.status == "unknown"
    assert not forged(scaled(0.10009765625, "bf16"), wrong)


def test_a_literal_of_few_bits_is_what_is_written() -> None:
    wrong = scaled(0.125, "bf16")
    assert asked(*wrong).proof.values.status == "refuted"
    assert not forged(scaled(0.10009765625, "bf16"), wrong)
    near = scaled(3.0, "bf16", 2.998)
    assert asked(*near).proof.values.status == "unknown"
    assert not forged(scaled(2.984375, "bf16", 2.983), near)


def test_a_literal_or_range_that_a_half_float_does_not_hold_is_told() -> None:
    for number, is_told in ((0.10000000149011612, True), (0.5, False)):
        found = asked(*scaled(number, "bf16", number))
        assert found.proof.values.status == "proved"
        assert (
            any(words.startswith("rounded to ") and "c = full" in words for words in found.numerics)
            == is_told
        )

    def counted(dtype: str) -> list[Op]:
        return [op("arange", out="c", start=300, end=304, dtype=dtype), op("mul", "x", "c", out="y")]

    found = asked(*pair(X, counted("f32"), ["y"], counted("bf16")))
    assert found.proof.values.status == "proved"
    assert any(words.startswith("rounded to ") and "c = arange" in words for words in found.numerics)


def test_of_a_walk_with_doubts_nothing_is_said_that_it_does_not_show() -> None:
    types: Types = {"x": ((4,), "f32"), "z": ((4,), "f32")}
    said = [op("div", "x", "z", out="p"), op("div", "z", "x", out="q"), op("add", "p", "q", out="y")]
    done = [
        op("_to_copy", "x", out="h", dtype="bf16"),
        op("mul", "h", "h", out="a"),
        op("mul", "z", "z", out="b"),
        op("add", "a", "b", out="c"),
        op("div", "c", "x", out="d"),
        op("div", "d", "z", out="y"),
    ]
    found = asked(*pair(types, said, ["y"], done))
    assert found.proof.values.status == "probable"
    assert not any("where the model does" in words for words in found.numerics)


# --- integers of few bits ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["i8", "u8", "i16", "i32"])
@pytest.mark.parametrize("what", ["mul", "add", "neg", "abs", "square"])
@pytest.mark.parametrize("last", ["bf16", "f32", "i64"])
def test_integers_that_may_wrap_are_not_those_that_do_not(dtype: str, what: str, last: str) -> None:
    """3 * 100 is 44 in int8; in a float it is 300. Small draws of a replay do not show it."""
    types: Types = {"x": ((4,), "i64"), "w": ((4,), "f32"), "v": ((4,), "bf16")}

    def steps(is_wide: bool) -> list[Op]:
        rest: dict[str, tuple[Any, ...]] = {"mul": ("b", 3), "add": ("b", "b")}
        cast = op("_to_copy", "n", out="b" if is_wide else "c", dtype=last)
        made = op(what, *rest.get(what, ("b",)), out="c" if is_wide else "n")
        first = op("_to_copy", "x", out="n" if is_wide else "b", dtype=dtype)
        return [first, *((cast, made) if is_wide else (made, cast)), op("mul", "c", "w", out="y")]

    assert asked(*pair(types, steps(True), ["y"], steps(False))).proof.values.status in ("unknown", "refuted")
    assert asked(*pair(types, steps(False), ["y"], steps(True))).proof.values.status in ("unknown", "refuted")


def test_what_integers_of_few_bits_hold_is_one_function_on_both_sides() -> None:
    """Sums and products of what is left are what is left of sums and products."""
    types: Types = {"x": ((4,), "i64"), "z": ((4,), "i64"), "w": ((4,), "f32"), "v": ((4,), "bf16")}
    casts = [op("_to_copy", base, out=f"{base}n", dtype="i8") for base in ("x", "z")]
    rest = [
        op("_to_copy", "s", out="f", dtype="f32"),
        op("div", "f", "w", out="d"),
        op("mul", "d", "w", out="y"),
    ]
    said = [*casts, op("add", "xn", "zn", out="a"), op("mul", "a", "xn", out="s"), *rest]
    done = [
        *casts,
        op("mul", "xn", "xn", out="a"),
        op("mul", "zn", "xn", out="b"),
        op("add", "a", "b", out="s"),
        *rest,
    ]
    assert asked(*pair(types, said, ["y"], done)).proof.values.status in ("proved", "probable")
