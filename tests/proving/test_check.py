"""The checker accepts what was proved and nothing near it: other plans, mutated fields, hostile bytes."""

from __future__ import annotations

import copy
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensure.proving
from tensure.bundle import Local, Place, Plan, Track
from tensure.bundle._json import canonical_json
from tensure.errors import FormatError, LimitError, TensureError
from tensure.program import Entry, Name, Program, Value, digest, expr, name, op
from tensure.proving import check_certificate, prove_plan
from tests.golden import cnn_rows, decode_stages, int8_pool, tp_block
from tests.golden.case import Golden

CASES = {
    case.name: case
    for case in (cnn_rows.golden(), tp_block.golden(), decode_stages.golden(), int8_pool.golden())
}
CERTIFICATES: dict[str, bytes] = {}
by_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def certificate_of(case: Golden) -> bytes:
    if case.name not in CERTIFICATES:
        found = prove_plan(case.plan, case.program).certificate
        assert found is not None
        CERTIFICATES[case.name] = found
    return CERTIFICATES[case.name]


def rejected(data: bytes, plan: Plan, program: Program) -> bool:
    """Refused, by a report or by a typed error."""
    try:
        report = check_certificate(data, plan, program)
    except TensureError:
        return True
    assert report.accepted == (report.reason == "")
    return not report.accepted


@by_case
def test_certificate_is_for_its_plan_alone(case: Golden) -> None:
    data = certificate_of(case)
    assert check_certificate(data, case.plan, case.program).accepted
    for other in CASES.values():
        if other.name != case.name:
            assert rejected(data, other.plan, other.program)
    for fault in case.faults.values():
        assert rejected(data, fault, case.program)


@by_case
def test_certificate_of_a_fault_with_its_digest_put_right_is_refused(case: Golden) -> None:
    """The steps themselves are checked, not only the digests."""
    from tensure.bundle import plan_digest

    row = json.loads(certificate_of(case))
    for fault in case.faults.values():
        row["plan"] = plan_digest(fault)
        assert rejected(canonical_json(row), fault, case.program)


# --- every field ---------------------------------------------------------------------------------------


def mutants(row: Any, rng: np.random.Generator) -> Iterator[tuple[str, Any]]:
    """One change at a time, at places chosen by the generator in every kind of field."""
    for key in ("format", "program", "plan"):
        yield key, {**row, key: row[key][:-1] + ("0" if row[key][-1] != "0" else "1")}
    yield "version", {**row, "version": 1}
    yield "invocation dropped", {**row, "invocations": row["invocations"][1:]}
    yield "invocation doubled", {**row, "invocations": [*row["invocations"], row["invocations"][0]]}
    yield "extra key", {**row, "extra": 1}
    labels = sorted({term[1] for item in row["invocations"] for local in item["locals"] for term in local[2]})
    for _ in range(40):
        changed = copy.deepcopy(row)
        item = changed["invocations"][rng.integers(len(changed["invocations"]))]
        locals_ = item["locals"]
        at = int(rng.integers(len(locals_)))
        rank, local, terms = locals_[at]
        term = terms[rng.integers(len(terms))]
        kind = str(
            rng.choice(
                [
                    "drop",
                    "double",
                    "rank",
                    "local",
                    "coef",
                    "label",
                    "runs",
                    "widen",
                    "share",
                    "terms",
                    "entry",
                ]
            )
        )
        if kind == "drop":
            del locals_[at]
        elif kind == "double":
            locals_.append(locals_[at])
        elif kind == "rank":
            locals_[at][0] = rank + "x"
        elif kind == "local":
            locals_[at][1] = local + "x"
        elif kind == "coef":
            term[0] = str(rng.choice(["2/1", "-1/1", "1/2", "1/0", "2/2", "x", "0/1"]))
        elif kind == "label":
            term[1] = str(rng.choice([label for label in [*labels, "nothing"] if label != term[1]]))
        elif kind in ("runs", "widen"):
            runs = [index for index in term[2] if index]
            run = runs[rng.integers(len(runs))][0]
            run[0 if kind == "runs" else 1] += int(rng.choice([-1, 1]))
        elif kind == "share":
            term[3] = [[[["h", [[0, 1]]]], []]] if term[3] is None else None
        elif kind == "terms":
            terms.append(terms[0])
        else:
            item["entry"] += "x"
        yield kind, changed


@by_case
def test_no_mutated_certificate_is_accepted(case: Golden) -> None:
    data = certificate_of(case)
    accepted = [
        kind
        for kind, row in mutants(json.loads(data), np.random.default_rng(3))
        if not rejected(canonical_json(row), case.plan, case.program)
    ]
    assert not accepted


# --- hostile bytes ---------------------------------------------------------------------------------------


HOSTILE = {
    "empty": b"",
    "not json": b"\xff\x00",
    "a list": b"[]\n",
    "deep": b"[" * 100 + b"]" * 100,
    "other format": b'{"format":"x","version":1}\n',
    "spaces": b'{ "format":"tensure-certificate" }\n',
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_bytes_get_a_typed_error(what: str) -> None:
    case = CASES["cnn_rows"]
    with pytest.raises((FormatError, LimitError)):
        check_certificate(HOSTILE[what], case.plan, case.program)


def test_runs_cannot_ask_for_more_memory_than_the_bound() -> None:
    """A trillion indices in a few bytes cost one run, and are no part of the value; past 2^48 is refused."""
    case = CASES["cnn_rows"]
    row = json.loads(certificate_of(case))
    term = row["invocations"][0]["locals"][0][2][0]
    term[2][2] = [[0, 1 << 40]]
    assert rejected(canonical_json(row), case.plan, case.program)
    term[2][2] = [[0, 1 << 50]]
    with pytest.raises((FormatError, LimitError)):
        check_certificate(canonical_json(row), case.plan, case.program)
    term[2][2] = [[0, 44], [0, 44]] * (1 << 12)
    assert rejected(canonical_json(row), case.plan, case.program)


def test_a_chain_of_many_sums_needs_no_deep_stack() -> None:
    count = sys.getrecursionlimit() + 200
    body = tuple(op("add", f"v{i}", "x", out=f"v{i + 1}") for i in range(count))
    program = Program(
        {},
        {"v0": Value((1,), "f64"), "x": Value((1,), "f64")},
        {},
        {"run": Entry((name("v0"), name("x")), body, (name(f"v{count}"),))},
    )
    locals_ = {base: Local((), Place(Name(base))) for base in ("v0", "x", f"v{count}")}
    plan = Plan(digest(program), None, {}, {}, locals_, {}, {"t": Track((), (), None, {}, {"run": body})})
    assert prove_plan(plan, program).proof.values.status == "proved"


# --- two doors where only one is honest --------------------------------------------------------------------


def test_an_addend_is_not_a_whole() -> None:
    """A certificate that calls the addend whole, with everything else consistent, is refused."""
    program = Program(
        {},
        {"x": Value((2, 4), "f64"), "w": Value((4, 3), "f64", "weight")},
        {},
        {"run": Entry((name("x"),), (op("mm", "x", "w", out="y"),), (name("y"),))},
    )
    half = expr("tp*2"), expr("tp*2+2")
    locals_ = {
        "x": Local((), Place(name("x"), ((1, ((*half, 1),)),))),
        "w": Local((), Place(name("w"), ((0, ((*half, 1),)),))),
        "y": Local((), Place(name("y"))),
    }
    track = Track(
        ("tp",),
        (),
        None,
        {},
        {"run": (op("mm", "x", "w", out="p"), op("all_reduce", "p", out="y", axes=["tp"]))},
    )
    good = Plan(digest(program), None, {"tp": 2}, {}, locals_, {}, {"t": track})
    data = prove_plan(good, program).certificate
    assert data is not None
    row = json.loads(data)
    changed = 0
    for local in row["invocations"][0]["locals"]:
        for term in local[2]:
            if term[3] is not None:
                term[3], changed = None, changed + 1
    assert changed == 2
    assert rejected(canonical_json(row), good, program)


def test_checker_shares_no_op_code() -> None:
    """Its files import neither the op table, nor inference, nor the prover's files, nor the walk."""
    room = Path(tensure.proving.__file__).parent
    files = sorted(file.name for file in room.glob("_check*.py"))
    assert "_check_values.py" in files
    for file in files:
        text = (room / file).read_text()
        lines = [line for line in text.splitlines() if line.startswith(("from", "import", "    from"))]
        imported = " ".join(lines)
        for word in (
            "_ops import",
            "_rules",
            "_logical",
            "_flow",
            "_index",
            "_movement",
            "_windows",
            "_contraction",
            "_training",
            "_linear",
            "_limit",
            "_relation",
            "_repeats",
            "_values",
            "_machine",
            "_infer",
            "_evaluate",
            "walk",
        ):
            assert word not in re.sub(r"\._check_[a-z]+ import", "", imported), (file, word)


def test_an_unsound_prover_is_stopped_by_the_checker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rule sets must agree: with padding ignored in the prover's, a wrong plan is not proved."""
    from tensure.proving import _windows

    def blind(local: Any, logical: Any, index: Any, size: int, outputs: int) -> Any:
        first = (index[0][0] - local.before + logical.before) // logical.stride
        return ((first, first + local.count(index[0][1] - index[0][0])),)

    case = CASES["cnn_rows"]
    monkeypatch.setattr(_windows, "rows_out", blind)
    assert prove_plan(case.plan, case.program).proof.values.status == "proved"
    verdict = prove_plan(case.faults["zeros for a halo"], case.program).proof.values
    assert verdict.status == "unknown"
    assert "the checker refuses: dev1: y3 does not follow" in verdict.reason


# --- real sizes ---

HIDDEN, TOKENS, HEADS, RANKS = 16384, 8192, 128, 8


def of_real_size() -> tuple[Plan, Program]:
    """Heads cut from a hidden dim and put together again, between two products of matrices, on 8 ranks."""
    body = (
        op("mm", "x", "w", out="q"),
        op("view", "q", out="h", size=[TOKENS, HEADS, HIDDEN // HEADS]),
        op("permute", "h", out="t", dims=[1, 0, 2]),
        op("permute", "t", out="b", dims=[1, 0, 2]),
        op("view", "b", out="m", size=[TOKENS, HIDDEN]),
        op("mm", "m", "o", out="y"),
    )
    sizes = {"x": (TOKENS, HIDDEN), "w": (HIDDEN, HIDDEN), "o": (HIDDEN, HIDDEN)}
    values = {base: Value(size, "f32", "input" if base == "x" else "weight") for base, size in sizes.items()}
    program = Program({}, values, {}, {"run": Entry((name("x"),), body, (name("y"),))})
    width, heads = HIDDEN // RANKS, HEADS // RANKS
    columns = (expr(f"tp*{width}"), expr(f"tp*{width}+{width}"), 1)
    some = (expr(f"tp*{heads}"), expr(f"tp*{heads}+{heads}"), 1)
    cut = {
        "w": (1, columns),
        "q": (1, columns),
        "h": (1, some),
        "t": (0, some),
        "m": (1, columns),
        "o": (0, columns),
    }
    locals_ = {base: Local((), Place(name(base), ((dim, (run,)),))) for base, (dim, run) in cut.items()}
    locals_ |= {base: Local((), Place(name(base))) for base in ("x", "y")}
    mine = (
        body[0],
        op("view", "q", out="h", size=[TOKENS, heads, HIDDEN // HEADS]),
        *body[2:4],
        op("view", "b", out="m", size=[TOKENS, width]),
        op("mm", "m", "o", out="p"),
        op("all_reduce", "p", out="y", axes=["tp"]),
    )
    track = Track(("tp",), (), None, {}, {"run": mine})
    return Plan(digest(program), None, {"tp": RANKS}, {}, locals_, {}, {"t": track}), program


def test_real_sizes_cost_what_their_runs_cost() -> None:
    """134 million elements of a result, in seconds; a part one index away is not the part."""
    plan, program = of_real_size()
    found = prove_plan(plan, program)
    assert found.proof.values.status == "proved", found.proof.values
    assert found.certificate is not None and len(found.certificate) < 1 << 16
    row = json.loads(found.certificate)
    count = 0
    for place, (_, _, terms) in enumerate(row["invocations"][0]["locals"]):
        for dim, runs in enumerate(terms[0][2]):
            for end, by in ((0, 1), (1, -1)):
                changed = copy.deepcopy(row)
                changed["invocations"][0]["locals"][place][2][0][2][dim][0][end] += by
                if place % 9 == 0 and len(runs) == 1:
                    count += 1
                    assert rejected(canonical_json(changed), plan, program)
    assert count > 20
