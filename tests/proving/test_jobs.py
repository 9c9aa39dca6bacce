"""Any number of processes: the same verdict, words, certificate; an error where one has no answer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import tensure
from tensure.benchmarks._prove_plans import PLANS
from tensure.bundle import Plan
from tensure.bundle._json import Json, canonical_json, parse_canonical
from tensure.errors import LimitError, RecordError, TensureError
from tensure.program import ProcessFailed, Program, spread
from tensure.proving import CheckReport, ProofResult, check_certificate, prove_plan
from tensure.proving import _check as checking
from tensure.proving import _check_shares as shares
from tensure.proving._check_shares import Share, Walked, joined_shares
from tensure.proving._check_walk import Walk
from tests.golden import cnn_rows, decode_stages, int8_pool, tp_block
from tests.proving.test_folding import by_hand

CASES = {
    case.name: case
    for case in (cnn_rows.golden(), tp_block.golden(), decode_stages.golden(), int8_pool.golden())
}
STATUSES = {
    ("cnn_rows", "halo never sent"): "refuted",
    ("tp_block", "no all-reduce of y2"): "refuted",
    ("decode_stages", "attention misses the last row"): "refuted",
}


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are dealt out in threes, so that small plans too are checked by everyone."""
    monkeypatch.setattr(shares, "BLOCK", 3)


def folded(folded: tuple[str, ...] = ("dp", "tp")) -> Callable[..., ProofResult]:
    plan, program = by_hand(spans=True)
    return lambda jobs: prove_plan(plan, program, fold=folded, jobs=jobs)


# --- processes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jobs", [1, 2, 3, 9])
def test_answers_come_in_the_order_of_the_work(jobs: int) -> None:
    works: list[Callable[[], int]] = [lambda at=at: at * at for at in range(7)]  # type: ignore[misc]
    assert spread(works, jobs) == [0, 1, 4, 9, 16, 25, 36]
    assert spread([], jobs) == []


@pytest.mark.parametrize("jobs", [1, 2, 3, 9])
def test_the_first_piece_that_fails_is_the_one_that_is_told(jobs: int) -> None:
    def work(at: int) -> int:
        if at in (2, 3, 5):
            raise RecordError(f"piece {at}", wanted="another")
        return at

    with pytest.raises(RecordError, match=r"^piece 2; wanted another"):
        spread([lambda at=at: work(at) for at in range(7)], jobs)  # type: ignore[misc]


def test_work_is_done_beside_this_process_and_changes_nothing_in_it() -> None:
    seen: list[int] = []

    def work() -> int:
        seen.append(1)
        return os.getpid()

    found = spread([work, work, work], 3)
    assert len(set(found)) == 3 and found[0] == os.getpid() and seen == [1]


@pytest.mark.parametrize("end", ["killed", "exit", "unsent"])
def test_a_process_without_an_answer_is_an_error(end: str) -> None:
    caller = os.getpid()

    def work() -> Any:
        if os.getpid() != caller:
            if end == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if end == "exit":
                os._exit(3)
        return (lambda: 0) if end == "unsent" else 0

    words = {"killed": "signal SIGKILL", "exit": "exit code 3", "unsent": "cannot send its answer"}
    with pytest.raises(ProcessFailed, match=words[end]):
        spread([work, work], 2)


def test_no_process_is_left_where_this_one_fails() -> None:
    def here() -> None:
        raise KeyboardInterrupt

    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        spread([here, lambda: time.sleep(600)], 2)
    with pytest.raises(ChildProcessError):  # none is left, so that none sleeps on
        os.waitpid(-1, os.WNOHANG)
    assert time.monotonic() - begun < 300


# --- verdicts -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("label", CASES)
def test_proofs_are_the_same(label: str) -> None:
    case = CASES[label]
    one = prove_plan(case.plan, case.program)
    assert one.proof.values.status == "proved" and one.certificate is not None
    for jobs in (2, 3):
        assert prove_plan(case.plan, case.program, jobs=jobs) == one


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(("label", "fault"), STATUSES, ids=[" ".join(key) for key in STATUSES])
def test_refutations_are_the_same(label: str, fault: str) -> None:
    case = CASES[label]
    plan = case.faults[fault]
    one = prove_plan(plan, case.program)
    assert one.proof.values.status == STATUSES[label, fault]
    for jobs in (2, 3):
        assert prove_plan(plan, case.program, jobs=jobs) == one


@pytest.mark.usefixtures("small_blocks")
def test_clashes_in_memory_are_the_same() -> None:
    case = CASES["int8_pool"]
    for plan in case.storage_faults.values():
        one = prove_plan(plan, case.program)
        assert one.proof.storage.status == "refuted"
        assert prove_plan(plan, case.program, jobs=3) == one


def test_the_first_rank_with_a_clash_is_named() -> None:
    """Each rank in a process of its own: where both clash, it is the first that is told."""
    case = CASES["int8_pool"]
    ((label, track),) = case.plan.tracks.items()
    broken = next(iter(case.storage_faults.values()))
    (found,) = broken.tracks.values()
    wrong = replace(found, locals={**broken.locals, **found.locals})
    for tracks, named in (
        ({label: track, "other": wrong}, "other"),
        ({"other": wrong, label: wrong}, "other"),
        ({label: wrong, "other": wrong}, label),
    ):
        plan = replace(case.plan, tracks=tracks)
        one = prove_plan(plan, case.program)
        example = one.proof.storage.counterexample
        assert example is not None and example.rank.partition("[")[0] == named
        assert prove_plan(plan, case.program, jobs=2) == one


@pytest.mark.usefixtures("small_blocks")
def test_ranks_taken_together_are_the_same() -> None:
    prove = folded()
    one = prove(1)
    assert one.proof.values.status == "proved" and "taken together" in one.proof.values.method
    assert prove(2) == one == prove(3)


@pytest.mark.usefixtures("small_blocks")
def test_what_is_unknown_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["tp_block"]
    monkeypatch.setattr(checking, "_invocations", lambda program: [])
    one = prove_plan(case.plan, case.program)
    assert one.proof.values.status == "unknown" and "invocations" in one.proof.values.reason
    assert prove_plan(case.plan, case.program, jobs=2) == one


def test_a_captured_step_is_the_same() -> None:
    case = next(item for item in PLANS if item.name == "TP2 of an MLP")
    one, two = (tensure.prove(case.parallel, case.model, mesh=case.mesh, jobs=jobs) for jobs in (1, 2))
    assert one == two and one.proof.values.status == "proved"


# --- certificates ---------------------------------------------------------------------------------------


def told(certificate: bytes, plan: Plan, program: Program, jobs: int) -> CheckReport | str:
    try:
        return check_certificate(certificate, plan, program, jobs=jobs)
    except TensureError as error:
        return f"{type(error).__name__}: {error}"


def forged(certificate: bytes) -> list[bytes]:
    """Each with one false claim, in the first invocation or the last: 7 times a value, or a local less."""
    made = list[bytes]()
    for which, at in ((0, 2), (-1, 3), (0, 9), (-1, 14), (0, 20), (-1, 22)):
        row: Any = parse_canonical(certificate, max_bytes=1 << 26)
        claims = row["invocations"][which]["locals"]
        if at % 2:
            del claims[at]
        else:
            claims[at][2][0][0] = "7/1"
        made.append(canonical_json(row))
    return made


def rows(certificate: bytes) -> list[list[Json]]:
    row: Any = parse_canonical(certificate, max_bytes=1 << 26)
    return [item["locals"] for item in row["invocations"]]


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("label", [*CASES, "folded"])
def test_false_certificates_are_refused_in_the_same_words(label: str) -> None:
    if label == "folded":
        plan, program = by_hand(spans=True)
        certificate = folded()(1).certificate
    else:
        plan, program = CASES[label].plan, CASES[label].program
        certificate = prove_plan(plan, program).certificate
    assert certificate is not None
    refused = 0
    for jobs, bad in enumerate(forged(certificate), 1):
        one = told(bad, plan, program, 1)
        refused += isinstance(one, str) or not one.accepted
        assert told(bad, plan, program, 2 + jobs % 2) == one
    assert refused > 4


@pytest.mark.usefixtures("small_blocks")
def test_two_faults_in_two_shares_the_first_is_told() -> None:
    case = CASES["tp_block"]
    certificate = prove_plan(case.plan, case.program).certificate
    assert certificate is not None
    words = set()
    for at in range(0, len(rows(certificate)[0]), 30):
        row: Any = parse_canonical(certificate, max_bytes=1 << 26)
        for claim in row["invocations"][0]["locals"][at:]:
            claim[2][0][0] = "3/1"
        bad = canonical_json(row)
        one = told(bad, case.plan, case.program, 1)
        assert isinstance(one, CheckReport) and not one.accepted
        assert told(bad, case.plan, case.program, 2 + at % 4 // 2) == one
        words.add(one.reason)
    assert len(words) > 2


@pytest.mark.usefixtures("small_blocks")
def test_a_bound_is_passed_in_the_same_words(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["tp_block"]
    certificate = prove_plan(case.plan, case.program).certificate
    assert certificate is not None
    right = Walk._is_covered

    def limited(walk: Walk, label: str) -> bool:
        if label == next(iter(walk.due)):
            raise LimitError("too much")
        return right(walk, label)

    monkeypatch.setattr(Walk, "_is_covered", limited)
    for jobs in (1, 2, 3):
        assert told(certificate, case.plan, case.program, jobs) == "LimitError: too much"


# --- no answer is no proof ------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_blocks")
def test_a_killed_process_is_no_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    case, caller = CASES["tp_block"], os.getpid()
    right = Walk.run

    def killed(walk: Walk) -> None:
        right(walk)
        if os.getpid() != caller:
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(Walk, "run", killed)
    assert prove_plan(case.plan, case.program).proof.values.status == "proved"
    with pytest.raises(ProcessFailed, match="SIGKILL"):
        prove_plan(case.plan, case.program, jobs=2)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("lost", [0, 1, 2])
def test_steps_that_nobody_decides_are_no_proof(lost: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A share that decides nothing of its own, and says that all is well."""
    case, right = CASES["tp_block"], Share.has

    def has(share: Share, step: int) -> bool:
        return share.number != lost and right(share, step)

    monkeypatch.setattr(Share, "has", has)
    with pytest.raises(RuntimeError, match="questions of a check"):
        prove_plan(case.plan, case.program, jobs=3)


@pytest.mark.usefixtures("small_blocks")
def test_an_answer_that_is_dropped_or_of_another_walk_is_no_proof() -> None:
    walks = [Walked(Share(at, 3), 30, 90, 30) for at in range(3)]
    assert joined_shares(walks) == walks[0]
    for wrong in (
        walks[:2],
        walks[1:],
        [walks[0], walks[0], walks[2]],
        [*walks[:2], replace(walks[2], decided=29)],
        [*walks[:2], replace(walks[2], at=31)],
        [*walks[:2], replace(walks[2], states=frozenset({"kv"}))],
        [*walks[:2], replace(walks[2], at=4, refused="not its own")],
    ):
        with pytest.raises(RuntimeError):
            joined_shares(wrong)
    stopped = replace(walks[1], at=4, refused="no")
    late = replace(walks[0], at=8, refused="nor this")
    assert joined_shares([late, stopped, walks[2]]) == stopped


SCRIPT = """
import os, signal, time
from tensure.program import spread
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs this may ignore it
def work():
    os.write(1, (str(os.getpid()) + os.linesep).encode())
    time.sleep(600)
spread([work, work], 2)
"""


def is_running(process: int) -> bool:
    """Whether it is there, and not only waits to be collected by whoever it belongs to now."""
    stat = Path(f"/proc/{process}/stat")
    return stat.exists() and ") Z " not in stat.read_text()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_who_is_interrupted_or_killed_leaves_no_process(how: signal.Signals, tmp_path: Path) -> None:
    script = tmp_path / "sleeps.py"
    script.write_text(SCRIPT)
    words = [sys.executable, str(script)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as run:
        try:
            assert run.stdout is not None
            found = {int(run.stdout.readline()) for _ in range(2)}
            run.send_signal(how)
            run.wait(60)
        finally:
            run.kill()
    (copy,) = found - {run.pid}
    until = time.monotonic() + 60
    while is_running(copy):
        assert time.monotonic() < until, "a process sleeps on"
        time.sleep(0.05)
