"""Well-formed Programs pass; every kind of malformed one is refused with its place."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tensure.errors import RecordError, TensureError
from tensure.program import (
    Block,
    Call,
    Entry,
    Name,
    Op,
    Program,
    Ref,
    State,
    Value,
    axis,
    evaluate_program,
    expr,
    infer_program,
    name,
    op,
    ref,
    tensor_digest,
    validate_program,
)

VALUES = {
    "x": Value((expr("n"), 4)),
    "w": Value((3, 4), role="weight"),
    "S": Value((axis("C"), 3), role="state"),
}
BODY = (
    op("linear", "x", "w", None, out="y"),
    op("slice_scatter", "S", "y", out="S2", dim=0, start=expr("pos"), end=expr("pos+n")),
    op("sum", ref("S2", (0, 0, "pos+n")), out="z", dim=[0]),
)
ENTRY = Entry(
    (name("x"),),
    BODY,
    (name("z"),),
    (State(name("S"), name("S2")),),
    (("pos", 0, axis("C")), ("n", 1, expr("C-pos+1"))),
)
GOOD = Program({"C": 5}, VALUES, {}, {"run": ENTRY})


def with_body(*body: Op | Call, **change: object) -> Program:
    return replace(GOOD, entries={"run": replace(ENTRY, body=body, **change)})  # type: ignore[arg-type]


def test_a_good_program_passes_and_runs() -> None:
    validate_program(GOOD)
    rng = np.random.default_rng(0)
    given = {
        k: rng.standard_normal(s).astype(np.float32)
        for k, s in {"x": (2, 4), "w": (3, 4), "S": (5, 3)}.items()
    }
    result = evaluate_program(GOOD, given, params={"pos": 1, "n": 2})
    want = given["S"].copy()
    want[1:3] = given["x"] @ given["w"].T
    np.testing.assert_allclose(result.states["S"], want, rtol=1e-6)
    np.testing.assert_allclose(result.outputs["z"], want[:3].sum(0), rtol=1e-5)
    assert {k: str(v) for k, v in infer_program(GOOD, params={"pos": 1, "n": 2}).items()}["z"] == "f32[3]"


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (replace(GOOD, entries={}), "without entries"),
        (replace(GOOD, axes={"C": -1}), "axis C"),
        (replace(GOOD, values={**VALUES, "w": Value((3, 4), "f33", "weight")}), "dtype 'f33'"),
        (replace(GOOD, values={**VALUES, "w": Value((3, 5), role="weight")}), "linear"),
        (replace(GOOD, values={**VALUES, "w": Value((3, 4), role="weight", order=(0, 0))}), "stored order"),
        (replace(GOOD, values={**VALUES, "y": Value((1, 3))}), "as declared"),
        (replace(GOOD, values={"x": VALUES["x"], "w": VALUES["w"]}), "no declared type"),
        (with_body(*BODY, BODY[0]), "made twice"),
        (with_body(BODY[0], BODY[2], BODY[1]), "before anything made it"),
        (with_body(*BODY[:2]), "output z is never made"),
        (with_body(*BODY[:2], op("sum", ref("S2", (0, 0, "pos+n+1")), out="z", dim=[0])), "box"),
        (with_body(*BODY, states=(State(name("S"), name("y")),)), "state y"),
        (with_body(*BODY, Call("nowhere")), "nowhere"),
        (with_body(*BODY, op("frobnicate", "x", out="q")), "not in the op table"),
        (with_body(*BODY, op("send", "x", to="a", key=1)), "communication"),
        (with_body(*BODY, op("relu", "x", out=("p", "q"))), "results named"),
        (with_body(*BODY, op("relu", "x", out="q", slope=1)), "no attribute"),
        (with_body(*BODY, op("relu", out="q")), "operands"),
        (replace(GOOD, blocks={"b": Block((), (op("frob", out="q"),))}), "not in the op table"),
        (with_body(*BODY, states=(*ENTRY.states, *ENTRY.states)), "before-state S stands twice"),
        (with_body(*BODY, inputs=(name("x"), name("x"))), "input x stands twice"),
        (with_body(*BODY, inputs=(name("x"), name("w"))), "input w is a weight"),
        (with_body(*BODY, inputs=(name("x"), name("S"))), "input S is a state"),
        (with_body(*BODY, states=(State(name("S"), name("S")),)), "carried on as it came"),
        (with_body(*BODY, outputs=(), states=()), "neither an output nor a state"),
        (with_body(*BODY, fixed=(("C", 3),)), "bound twice"),
        (with_body(*BODY, params=(("pos", 4, 4), ("n", 1, 2))), "has no value"),
        (
            replace(GOOD, values={**VALUES, "w": Value((expr("n"), 4), role="weight")}),
            "entries share weights",
        ),
        (with_body(*BODY, op("relu", "x", out=Name("input"))), "a name"),
        (with_body(*BODY, op("relu", Ref(Name("x{0 0:1}")), out="q")), "does not read back"),
        (
            with_body(*BODY, Op("add", (Ref(Name("x")), 1), (Name("q"),), (("alpha", 1), ("alpha", 2)))),
            "alpha",
        ),
        (with_body(*BODY, op("full", out="q", size=[1], fill_value=1 << 70)), "64 bits|digits"),
    ],
)
def test_malformed_programs_are_refused(program: Program, message: str) -> None:
    with pytest.raises(TensureError, match=message):
        validate_program(program)


def test_a_fault_at_one_end_of_a_parameter_is_found() -> None:
    """Right at pos = 0, wrong at the greatest pos: types are inferred at both ends."""
    wrong = with_body(*BODY[:2], op("sum", ref("S2", (0, 0, "n+max(pos-1,0)*2")), out="z", dim=[0]))
    with pytest.raises(RecordError, match="pos=4"):
        validate_program(wrong)


@pytest.mark.parametrize(
    "params", [{"pos": 5, "n": 1}, {"pos": 0, "n": 6}, {"pos": 0}, {"pos": 0, "n": 1, "m": 2}]
)
def test_parameters_are_held_to_their_bounds(params: dict[str, int]) -> None:
    with pytest.raises(RecordError):
        infer_program(GOOD, params=params)


def test_leaves_are_checked_before_anything_runs() -> None:
    with pytest.raises(RecordError, match="weight 'w' is missing"):
        evaluate_program(GOOD, {"x": np.zeros((2, 4), np.float32)}, params={"pos": 0, "n": 2})
    with pytest.raises(RecordError, match=r"input x is f64\[2,4\]; wanted f32"):
        evaluate_program(GOOD, {"x": np.zeros((2, 4))}, params={"pos": 0, "n": 2})


def test_tensor_digest_knows_dtype_shape_and_bits() -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    digests = [
        tensor_digest(a) for a in (x, x.reshape(3, 2), x.astype(np.float64), -x, x.view(np.int32), x[:1])
    ]
    assert len(set(digests)) == len(digests)
    assert tensor_digest(np.asfortranarray(x)) == tensor_digest(x) == tensor_digest(x.astype(">f4"))
    nan = np.array([np.nan], np.float32)
    other = (nan.view(np.uint32) ^ 1).view(np.float32)
    assert tensor_digest(nan) != tensor_digest(other)


def test_names_print_as_they_parse() -> None:
    for text in ("x", "x[0]", "layers.0.weight", "K2[l+1,mb]"):
        assert str(name(text)) == text
    assert name("x[l]").ground({"l": 3}) == Name("x", (3,))
