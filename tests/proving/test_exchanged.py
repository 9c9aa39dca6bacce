"""Tensors cut along another dim by an exchange of rows: views and transposes around an all-to-all.

What ranks give each other lies rank by rank; a view, a transpose and a view lay it along another dim.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from tensure.bundle import canonical_json, collect, evaluate_plan, parse_plan, validate_plan
from tensure.program import digest, evaluate_program, name, parse_program
from tensure.proving import check_certificate, prove_plan

PROGRAM = parse_program("""tensure program 1
value x : f64[4,6,3]
entry run():
  input x
  y = relu(x)
  output y
""")
HEAD = f'tensure plan 1\nprogram "{digest(PROGRAM)}"\nmesh ep = 2\ntrack ranks[ep]:\n'
EXPERTS, TOKENS = "{0 ep*2:ep*2+2, 1 0:6, 2 0:3}", "{0 0:4, 1 ep*3:ep*3+3, 2 0:3}"
THERE = f"""  local x = x{TOKENS}
  local y = y{EXPERTS}
  entry run:
    a = all_to_all(x) axes=["ep"] cat=0 split=0
    b = view(a) size=[2, 2, -1, 3]
    c = transpose(b) dim0=0 dim1=1
    d = view(c) size=[2, 6, 3]
    y = relu(d)
"""
BACK = f"""  local x = x{EXPERTS}
  local y = y{TOKENS}
  entry run:
    b = view(x) size=[2, 2, -1, 3]
    c = transpose(b) dim0=0 dim1=1
    d = view(c) size=[4, 3, 3]
    a = all_to_all(d) axes=["ep"] cat=0 split=0
    y = relu(a)
"""
FAULTS = {
    "no transpose": ("c = transpose(b) dim0=0 dim1=1", "c = copy(b)"),
    "rows of ranks turned round": ("c = transpose(b) dim0=0 dim1=1", "c = permute(e) dims=[1, 0, 2, 3]"),
    "tokens in another order": ("c = transpose(b) dim0=0 dim1=1", "c = transpose(f) dim0=0 dim1=1"),
    "another dim moved": ("c = transpose(b) dim0=0 dim1=1", "c = transpose(b) dim0=1 dim1=2"),
}
EXTRA = {"(e)": "    e = flip(b) dims=[0]\n", "(f)": "    f = flip(b) dims=[2]\n"}
WAYS = pytest.mark.parametrize("text", [THERE, BACK], ids=["there", "back"])


def agrees(text: str) -> bool:
    made = parse_plan(HEAD + text)
    validate_plan(made, PROGRAM)
    values = {"x": np.random.default_rng(0).standard_normal((4, 6, 3))}
    want = evaluate_program(PROGRAM, values, entry="run").outputs["y"]
    have = collect(evaluate_plan(made, PROGRAM, values), PROGRAM, (name("y"),))["y"]
    return bool(np.array_equal(have, want))


@WAYS
def test_moved_rows_are_proved(text: str) -> None:
    assert agrees(text)
    plan = parse_plan(HEAD + text)
    assert prove_plan(plan, PROGRAM).proof.values.status == "proved"


@WAYS
@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_refuted(text: str, fault: str) -> None:
    old, new = FAULTS[fault]
    extra = "".join(line for key, line in EXTRA.items() if key in new)
    wrong = text.replace(f"    {old}\n", f"{extra}    {new}\n")
    assert wrong != text
    try:
        assert not agrees(wrong)
    except ValueError:
        pass  # claims that do not even agree among ranks
    assert prove_plan(parse_plan(HEAD + wrong), PROGRAM).proof.values.status == "refuted"


@WAYS
@pytest.mark.parametrize("fault", FAULTS)
def test_checker_refuses_the_right_claims_of_a_wrong_step(text: str, fault: str) -> None:
    """The certificate of the right plan, told of the wrong one: everything it claims but the last is so."""
    result = prove_plan(parse_plan(HEAD + text), PROGRAM)
    old, new = FAULTS[fault]
    extra = "".join(line for key, line in EXTRA.items() if key in new)
    wrong = parse_plan(HEAD + text.replace(f"    {old}\n", f"{extra}    {new}\n"))
    row = json.loads(result.certificate)
    row["plan"] = prove_plan(wrong, PROGRAM).proof.plan
    if extra:
        both = [list(claim) for claim in row["invocations"][0]["locals"] if claim[1] == "b"]
        added = [[rank, extra.split()[0], terms] for rank, _, terms in both]
        row["invocations"][0]["locals"] = sorted([*row["invocations"][0]["locals"], *added])
    report = check_certificate(canonical_json(row), wrong, PROGRAM)
    assert not report.accepted
    assert "follow" in report.reason
