"""Training steps as they are traced: addends through views, transposes and products, means over shards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tensure.bundle import Plan, collect, evaluate_plan, validate_plan
from tensure.program import Op, evaluate_program, name
from tensure.proving import check_certificate, prove_plan
from tests.proving import steps

PROGRAM = steps.program()
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "lazy": {"lazy": True},
    "sequence": {"sequence": True},
    "both": {"lazy": True, "sequence": True},
}


def drawn() -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(3)
    return {base: rng.standard_normal(shape) for base, shape in steps.SHAPES.items()}


def outputs_agree(plan: Plan) -> bool:
    values = drawn()
    want = evaluate_program(PROGRAM, values, entry="run").outputs
    have = collect(evaluate_plan(plan, PROGRAM, values), PROGRAM, tuple(map(name, steps.OUTPUTS)))
    return all(np.allclose(have[key], want[key], rtol=1e-9, atol=1e-12) for key in want)


MESHES = [(form, dp, tp) for form in ("plain", "lazy") for dp, tp in ((1, 1), (2, 2), (4, 2), (2, 4), (1, 8))]
MESHES += [(form, dp, 2) for form in ("sequence", "both") for dp in (2, 4)]


@pytest.mark.parametrize(("form", "dp", "tp"), MESHES)
def test_step_is_proved(form: str, dp: int, tp: int) -> None:
    plan = steps.plan(steps.body(dp, tp, **FORMS[form]), dp, tp)
    validate_plan(plan, PROGRAM)
    result = prove_plan(plan, PROGRAM)
    assert result.proof.values.status == "proved", result.proof.values
    assert result.certificate is not None and check_certificate(result.certificate, plan, PROGRAM).accepted
    assert outputs_agree(plan)


def _other_axis(step: Op) -> Op:
    return replace(step, attrs=(("axes", ("dp",)),))


def _by(number: float) -> Callable[[Op], Op]:
    return lambda step: replace(step, args=(step.args[0], number))


FAULTS: dict[str, tuple[str, str, Callable[[Op], Op]]] = {
    "row-parallel product not reduced": ("plain", "yvs", steps.unreduced),
    "row-parallel product reduced over dp": ("plain", "yvs", _other_axis),
    "input gradient not reduced": ("plain", "dns", steps.unreduced),
    "late input gradient not reduced": ("lazy", "dxvs", steps.unreduced),
    "gain's gradient over dp alone": ("lazy", "dgains", _other_axis),
    "gain's gradient over tp as well": (
        "plain",
        "dgains",
        lambda s: replace(s, attrs=(("axes", ("dp", "tp")),)),
    ),
    "weight's gradient of one shard": ("plain", "dw1s", steps.unreduced),
    "weight's gradient summed, not averaged": ("plain", "dw2", _by(1)),
    "weight's gradient averaged over tp as well": ("plain", "dw1", _by(4)),
    "loss not averaged": ("plain", "loss", _by(1)),
    "bias's gradient averaged twice": ("plain", "dbias", _by(4)),
    "shards of the sequence swapped": ("sequence", "yv", lambda s: replace(s, args=s.args[::-1])),
    "reduce-scatter of swapped shards": ("sequence", "pc", lambda s: replace(s, args=s.args[::-1])),
    "gradient scaled for the whole batch": ("plain", "dz", _by(2 / (steps.B * steps.S * steps.D))),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_refuted(fault: str) -> None:
    form, out, change = FAULTS[fault]
    body = steps.edited(steps.body(2, 2, **FORMS[form]), out, change)
    plan = steps.plan(body, 2, 2)
    verdict = prove_plan(plan, PROGRAM).proof.values
    assert verdict.status == "refuted", verdict
    assert not outputs_agree(plan)


def test_micro_batches_add_up_to_the_batch() -> None:
    """Two halves of the rank's rows, one after another; gradients of each are addends of one sum."""
    parts: list[Op] = []
    for half in range(2):
        made = [
            *steps.forward(2, steps.F),
            op_("copy", "yv_", "yv"),
            *steps.loss(2),
            *steps.backward(2, steps.F),
        ]
        for step in made:
            args = tuple(_renamed(arg, half) for arg in step.args)
            parts.append(replace(step, args=args, outs=tuple(name(f"{out.base}{half}") for out in step.outs)))
    names = {"dw1": "dw1_", "dw2": "dw2_", "dbias": "dbias_", "loss": "loss_"}
    cut = [
        op_("slice", base, f"{base}{half}", dim=0, start=2 * half, end=2 * half + 2)
        for base in ("x", "target")
        for half in range(2)
    ]
    sums = []
    for out, base in names.items():
        sums += [op_("add", f"{base}0", f"{base}1", f"{out}_sum"), op_("div", f"{out}_sum", 2, out)]
    keep = tuple(names)
    whole = replace(PROGRAM.entries["run"], outputs=tuple(map(name, keep)))
    program = replace(PROGRAM, entries={"run": whole})

    def planned(body: list[Op]) -> Plan:
        from tensure.program import digest

        made = steps.plan(body, 1, 1)
        return replace(
            made,
            program=digest(program),
            locals={base: local for base, local in made.locals.items() if base in (*steps.SHAPES, *keep)},
        )

    good = [*cut, *parts, *sums]
    assert prove_plan(planned(good), program).proof.values.status == "proved"
    doubled = steps.edited(good, "dw1_sum", lambda step: replace(step, args=(step.args[0], step.args[0])))
    assert prove_plan(planned(doubled), program).proof.values.status == "refuted"


def op_(kind: str, *args: Any, **attrs: Any) -> Op:
    from tensure.program import op

    *operands, out = args
    return op(kind, *operands, out=out, **attrs)


def _renamed(arg: Any, half: int) -> Any:
    base = getattr(getattr(arg, "name", None), "base", None)
    return arg if base is None or base in steps.WEIGHTS else replace(arg, name=name(f"{base}{half}"))
