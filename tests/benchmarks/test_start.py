"""`start` times only what works: its own checks, seen to fail. No command's time is asserted."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tensure.benchmarks import _start
from tensure.benchmarks._records import AbsentError, Case, EngineError, Scope
from tensure.benchmarks._start import MAKE_RUN, SIGN, VERIFY, VERIFY_COMMAND, StartEngine
from tensure.bundle._receipt import sign_receipt


@pytest.fixture
def engine() -> Iterator[StartEngine]:
    made = StartEngine(quick=True)
    yield made
    made.close()
    made.close()
    assert not made._folder.exists()


def test_every_figure_of_the_issue_has_its_bar() -> None:
    bars = {case.name: case.target for case in _start._cases(Scope())}
    assert bars == {
        "tensure --help": 300.0,
        "tensure receipt verify": 500.0,
        "sign a receipt": 1.0,
        "verify a receipt": 500.0,
        "make run, again": 60_000.0,
    }


def test_signing_and_verifying(engine: StartEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_start, "_REPEATS", 2)
    for name in (SIGN, VERIFY):
        engine.check(Case(name, 1))
        timing = engine.run(Case(name, 1))
        assert timing.wall_s > 0
    assert engine.facts()["receipt_bytes"] > 1000
    assert engine._changed() != engine._signed and len(engine._changed()) == len(engine._signed)


def test_a_verifier_that_takes_anything_is_not_timed(
    engine: StartEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_start, "verify_receipt", lambda data, keys: engine._receipt)
    with pytest.raises(EngineError, match="changed byte was verified"):
        engine.check(Case(VERIFY, 1))


@pytest.mark.parametrize(("code", "message"), [(9, "the help loads torch"), (4, "boom")])
def test_help_that_is_wrong_is_not_timed(
    engine: StartEngine, monkeypatch: pytest.MonkeyPatch, code: int, message: str
) -> None:
    real = _start._finished
    bad = ["sh", "-c", f"echo boom >&2; exit {code}"]
    monkeypatch.setattr(_start, "_tensure", lambda: ["true"])
    monkeypatch.setattr(_start, "_finished", lambda words: real(words if words[0] == "true" else bad))
    with pytest.raises(EngineError, match=message):
        engine.check(Case(_start.HELP, 1))


def test_command_that_accepts_a_changed_receipt_is_not_timed(
    engine: StartEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_start, "_tensure", lambda: ["true"])
    with pytest.raises(EngineError, match="`tensure receipt` exits 0, not 1"):
        engine.check(Case(VERIFY_COMMAND, 1))


def test_command_that_hangs_is_ended() -> None:
    with pytest.raises(EngineError, match="did not finish: TimeoutExpired"):
        _start._finished(["sleep", "60"], 0.05)


def test_quick_run_leaves_make_out_and_says_so(engine: StartEngine) -> None:
    with pytest.raises(AbsentError, match="longer than a quick run"):
        engine.check(Case(MAKE_RUN, 2))


def test_the_receipt_is_of_a_usual_form(engine: StartEngine) -> None:
    again = sign_receipt(engine._receipt, engine._key)
    assert engine._verify(again) == engine._receipt
