"""`tensure prove NAME@SIZES`: a public model's plan by its name."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import tensure
from tensure.bundle import parse_plan
from tensure.capture import NAMED_PLANS, _named, named_plan
from tensure.cli import main
from tensure.cli._prove import NAMED_EXAMPLES
from tensure.errors import InputError


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """One of the models, shrunken under its name."""
    config = _named.MODELS["llama3-8b"].replace(
        layers=2, hidden=48, heads=8, kv_heads=4, inner=28, vocabulary=20, sequence=12
    )
    monkeypatch.setitem(_named.MODELS, "llama3-8b", config)  # type: ignore[arg-type]
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(capsys: pytest.CaptureFixture[str], line: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(shlex.split(line))
    found = capsys.readouterr()
    return code, found.out, found.err


def test_a_named_plan_is_proved_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "prove llama3-8b@tp2-mb2 --keep proof -o proof.certificate")
    assert code == 0, err
    assert out.startswith("values: proved")
    assert dict(parse_plan((tmp_path / "proof/plan.txt").read_text()).mesh)["tp"] == 2
    check = "check proof.certificate --plan proof/plan.txt --program proof/program.txt"
    assert run(capsys, check)[0] == 0


def test_examples_name_plans(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "prove --help")
    assert code == 0
    for example in NAMED_EXAMPLES:
        assert example in out
        assert named_plan(example.split()[-1]).mesh


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("prove llama9@dp2", "llama3-405b, deepseek-v3-16b"),
        ("prove llama3-8b@ep2", "NAME@dpA-tpB-ppC-mbD"),
        ("prove llama3-8b@tp2 --mesh tp=2", "options for another step"),
        ("prove llama3-8b", "NAME@dpA-tpB-ppC-mbD"),
    ],
)
def test_what_is_no_name_is_refused(line: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, line)
    assert code == 2 and said in err


def test_the_function_says_which_plans_there_are() -> None:
    with pytest.raises(InputError) as refused:
        tensure.prove("rows.plan.txt")
    assert all(name in str(refused.value) for name in NAMED_PLANS)
    with pytest.raises(InputError):
        tensure.prove("llama3-8b@tp2", mesh={"tp": 2})
