"""Casts between floats are the identity over the reals; those to integers and bools are not."""

from __future__ import annotations

import json

import pytest

from tensure.bundle import Place, Plan, plan_digest
from tensure.bundle._json import canonical_json
from tensure.program import Op, Program, digest, name, op
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
