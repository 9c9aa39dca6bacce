"""What the checker works out once: answers are kept by all that they rest on, and others get their own."""

from __future__ import annotations

from typing import Any

import pytest

from tensure.program import Affine, Loose, Op, coordinate, parse_program
from tensure.proving import check_certificate, prove_plan
from tensure.proving._check_cells import reg_at
from tensure.proving._check_index import Index
from tensure.proving._check_piece import ONE
from tensure.proving._check_steps import CheckSteps
from tensure.proving._check_sums import MINUS, CheckSums, Def


def product(size: int, equation: str = "mk,kn->mn") -> Def:
    """A product summed over a letter of some size."""
    left = (0, (Index(((0, 2),)), Index(((0, size),))), ONE)
    right = (0, (Index(((0, size),)), Index(((0, 2),))), ONE)
    return Def("einsum", {"equation": equation}, (left, right), 0, (2, 2), "f64")


def test_sums_of_the_same_slices_are_told_apart_by_how_long_the_letter_is() -> None:
    values = CheckSums()
    values.defs = [product(4), product(8), product(4)]
    items: list[Any] = [(ONE, None), (MINUS, ((("k", Index(((0, 4),))),), ()))]
    assert values._nothing(0, items)  # all of it
    assert not values._nothing(1, items)  # half of it
    assert values._nothing(2, items)
    assert len(values._vanish) == 2


def test_factors_and_slices_are_told_apart() -> None:
    values = CheckSums()
    values.defs = [product(4)]
    left, right = Index(((0, 2),)), Index(((2, 4),))
    parts = [(ONE, (("k", left),)), (ONE, (("k", right),)), (MINUS - ONE, (("k", right),))]
    one, other, twice = ((by, (shares, ())) for by, shares in parts)
    assert values._nothing(0, [one, other, (MINUS, None)])
    assert not values._nothing(0, [one, one, (MINUS, None)])
    assert not values._nothing(0, [one, other, twice, (MINUS, None)])


SQUARE = """tensure program 1
value x : f64[2,2]
value w : f64[2,2]
entry step():
  input x
  input w
  y = einsum(x, w) equation="mk,kn->mn"
  z = einsum(x, w) equation="mk,nk->mn"
  u = einsum(w, x) equation="mk,kn->mn"
  v = einsum(y, w) equation="mk,kn->mn"
  output y
  output z
  output u
  output v
"""


def test_rules_are_asked_of_each_kind_of_class_and_operands_are_looked_at_every_time() -> None:
    program = parse_program(SQUARE)
    values = CheckSteps(program, "step", {}, False)

    def read(step: Op, named: Any) -> list[Any]:
        return [named(str(ref.name)) for ref in step.reads()]

    values.read_program(read)
    x, w, y = (values.named(label) for label in "xwy")
    step = Op("einsum", (), (), (("equation", "mk,kn->mn"),))
    made = {"y": [x, w], "u": [w, x], "v": [y, w]}
    for label, own in made.items():
        (claim,) = values.named(label) or ()
        for operands in made.values():
            # Of one kind and of the same parts: only which values these are parts of tells them apart.
            assert values._fits("einsum", dict(step.attrs), operands, 0, claim) == (operands == own)
    (term,) = values.named("z") or ()
    assert not values._fits("einsum", dict(step.attrs), [x, w], 0, term)
    kinds = [values._kind((values.named(label) or ())[0][1]) for label in "yzuv"]
    assert kinds[0] == kinds[2] == kinds[3] != kinds[1]


def test_attributes_that_python_takes_for_equal_are_of_two_kinds() -> None:
    values = CheckSums()
    values.defs = [Def("f", {"a": a}, (), 0, (2,), "f64") for a in (1, True, 1.0, "1", None, 1)]
    kinds = [CheckSteps._kind(values, node) for node in range(6)]  # type: ignore[arg-type]
    assert len(set(kinds)) == 5 and kinds[0] == kinds[5]


def test_a_part_at_a_place_is_that_of_its_own_expression() -> None:
    dp, far = coordinate("dp", 0, 8), coordinate("dp", 0, 16)
    part = (Index(((dp, dp + 1),)), Index(((0, 4),)))
    for at in (0, 7):
        assert reg_at(part, {"dp": at}) == (Index(((at, at + 1),)), Index(((0, 4),)))
    assert reg_at((Index(((far, far + 1),)),), {"dp": 15}) == (Index(((15, 16),)),)
    assert reg_at(part, {"tp": 3}) == part


@pytest.mark.parametrize("kind", [Affine, Loose])
def test_expressions_of_one_kind_stay_of_it(kind: type[Affine]) -> None:
    """The prover's are equal to the checker's, as they are written, and ask for less."""
    from tensure.program import axis, name

    family = name("t[dp]")
    assert axis("dp") in family.index
    for each in (Affine, Loose, kind):
        ground = family.ground({"dp": coordinate("dp", 0, 4, each)})
        assert type(ground.index[0]) is each


def test_a_certificate_is_refused_whatever_was_checked_before() -> None:
    """Nothing that is kept outlives a check but parts at places."""
    from tensure.benchmarks._prove_gate_plan import FAULTS, Shape, gate_plan, gate_program

    shape = Shape(2, 2, 2, 2, 2)
    program = gate_program(shape)
    plan = gate_plan(shape, program)
    found = prove_plan(plan, program, fold=tuple(plan.mesh))
    assert found.certificate is not None
    assert check_certificate(found.certificate, plan, program).accepted
    for fault in FAULTS:
        wrong = gate_plan(shape, program, fault)
        body = found.certificate.replace(plan_digest_of(plan), plan_digest_of(wrong))
        assert not check_certificate(body, wrong, program).accepted, fault


def plan_digest_of(plan: Any) -> bytes:
    from tensure.bundle import plan_digest

    return plan_digest(plan).encode()
