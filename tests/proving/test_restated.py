"""Heads on two ranks that share one key: its copies merge with the batch, and stand where heads do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tensure.program import Op, op
from tensure.proving import prove_plan

from .test_spellings import Spelling, agrees, plan, program

B, H, S, D = 2, 4, 3, 2


def scores(heads: int) -> tuple[Op, ...]:
    """q [B, heads, S, D] times the one key's transpose, batch and heads in one dim."""
    return (
        op("view", "k", out="k1", size=[B, 1, S, D]),
        op("expand", "k1", out="ks", size=[B, heads, S, D]),
        op("view", "ks", out="km", size=[B * heads, S, D]),
        op("transpose", "km", out="kt", dim0=1, dim1=2),
        op("view", "q", out="qm", size=[B * heads, S, D]),
        op("bmm", "qm", "kt", out="s"),
        op("view", "s", out="y", size=[B, heads, S, S]),
    )


CASE = Spelling({"q": (B, H, S, D), "k": (B, S, D)}, scores(H), scores(H // 2), {"q": 1, "y": 1})
FAULTS = {
    "the other sample's key": op("flip", "ks0", out="ks", dims=[0]),
    "keys of other positions": op("flip", "km0", out="km", dims=[1]),
    "keys not copied in the order of heads": op("flip", "km0", out="km", dims=[0]),
}
EXTRA = {
    "ks0": op("expand", "k1", out="ks0", size=[B, H // 2, S, D]),
    "km0": op("view", "ks", out="km0", size=[B * H // 2, S, D]),
}


def test_a_shared_key_is_proved() -> None:
    made = plan(CASE, CASE.local)
    assert agrees(CASE, made)
    assert prove_plan(made, program(CASE)).proof.values.status == "proved"


@pytest.mark.parametrize("label", FAULTS)
def test_fault_is_refuted(label: str) -> None:
    wrong = FAULTS[label]
    body: list[Op] = []
    for step in CASE.local:
        if str(step.outs[0]) == str(wrong.outs[0]):
            body += [more for key, more in EXTRA.items() if key in {str(ref.name) for ref in wrong.reads()}]
            step = replace(wrong, outs=step.outs)
        body.append(step)
    made = plan(CASE, tuple(body))
    assert not agrees(CASE, made)
    assert prove_plan(made, program(CASE)).proof.values.status == "refuted"
