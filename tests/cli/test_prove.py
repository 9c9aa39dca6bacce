"""`tensure prove` and `tensure check` on the golden plans, through files and exit codes."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.golden import cnn_rows, int8_pool

import tensure
from tensure.bundle import Plan, format_plan
from tensure.cli import main
from tensure.errors import TensureError
from tensure.program import format_program
from tensure.proving._check_walk import Walk

Files = Callable[[Plan], list[str]]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Writes the CNN's program and a plan; gives `PLAN --program FILE`."""

    def write(plan: Plan) -> list[str]:
        (tmp_path / "net.program.txt").write_text(format_program(cnn_rows.program()))
        (tmp_path / "rows.plan.txt").write_text(format_plan(plan))
        return [str(tmp_path / "rows.plan.txt"), "--program", str(tmp_path / "net.program.txt")]

    return write


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = main(list(words))
    return code, capsys.readouterr().out


def test_a_good_plan_is_proved_and_its_certificate_checks(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = files(cnn_rows.plan())
    certificate = str(tmp_path / "rows.certificate")
    code, out = run(capsys, "prove", *words, "-o", certificate)
    assert code == 0
    assert out.startswith("values: proved") and "storage: proved" in out
    again = ["check", certificate, "--plan", *words]
    assert run(capsys, *again)[0] == 0
    data = Path(certificate).read_bytes()
    Path(certificate).write_bytes(data.replace(b"y1", b"y3", 1))
    assert run(capsys, *again)[0] in (1, 2)


@pytest.mark.parametrize("label", sorted(cnn_rows.golden().faults))
def test_a_faulty_plan_is_refuted_with_its_place(
    label: str, files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out = run(capsys, "prove", *files(cnn_rows.golden().faults[label]), "--json")
    assert code == 1
    values = json.loads(out)["verdicts"]["values"]
    assert values["status"] == "refuted" and values["counterexample"]["confirmed"]


def test_a_plan_for_another_program_is_bad_input(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "prove", *files(int8_pool.plan()))[0] == 2
    words = files(cnn_rows.plan())
    Path(words[0]).write_text("no plan")
    assert run(capsys, "prove", *words)[0] == 2


def test_the_same_in_python(files: Files) -> None:
    words = files(cnn_rows.plan())
    result = tensure.prove(words[0], words[2])
    assert (result.proof.values.status, result.proof.storage.status) == ("proved", "proved")
    with pytest.raises(TensureError, match="gone"):
        tensure.prove("gone.plan.txt", words[2])


def test_jobs_change_no_byte_and_a_killed_process_is_no_answer(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words, caller = files(cnn_rows.plan()), os.getpid()
    one, two = (str(tmp_path / f"{jobs}.certificate") for jobs in (1, 2))
    told = [
        run(capsys, "prove", *words, "-o", one),
        run(capsys, "prove", *words, "-o", two, "--jobs", "2"),
        run(capsys, "check", one, "--plan", *words),
        run(capsys, "check", one, "--plan", *words, "--jobs", "3"),
    ]
    assert told[1] == (0, told[0][1].replace(one, two)) and told[2] == told[3]
    assert Path(one).read_bytes() == Path(two).read_bytes()
    right = Walk.run

    def killed(walk: Walk) -> None:
        right(walk)
        if os.getpid() != caller:
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(Walk, "run", killed)
    assert run(capsys, "prove", *words)[0] == 0
    assert run(capsys, "prove", *words, "--jobs", "2") == (4, "")
    assert run(capsys, "check", one, "--plan", *words, "--jobs", "2") == (4, "")
