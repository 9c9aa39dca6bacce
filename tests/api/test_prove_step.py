"""`prove_step` in live processes: torchrun, two ranks over gloo; and every way to call it wrongly."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import tensure
from tensure.api import _prove_step, prove_script
from tensure.bundle import parse_plan
from tensure.capture import ParallelStep, TrainingStep
from tensure.cli import main
from tensure.errors import InputError, RefutedError, TensureError

from . import live_cases

ROOT = Path(__file__).resolve().parents[2]
SAID = {
    "tp": "^proved$",
    "fsdp": "^proved$",
    "ddp": "^proved$",
    "ddp in buckets": "^proved$",
    "": "^proved$",
    "sum": r"^RefutedError: .*grad\.up\.weight is not .*live_cases\.py:\d+",
    "warn": "^refuted$",
    "other numbers": "^InputError: parameter up.bias holds other numbers on rank 1 than on rank 0",
    "reads": r"^UnsupportedError: rank 0, live_cases\.py:\d+: the step reads a value",
    "reads a parameter": r"^UnsupportedError: rank 0, live_cases\.py:\d+: the step reads a value \(tolist\)",
    "hangs": r"^RefutedError: .*deadlock: dp1 waits at all_reduce.*live_cases\.py:\d+",
    "clears": "^InputError: .*leaves no gradients",
    "clips": r"^the step clips gradients at live_cases\.py:\d+: .* clip outside of the step",
    "mesh": "^InputError: a mesh of dp 3 in a world of 2",
    "never": "^InputError: on_refuted='never'",
    "whole inputs": r"^InputError: rank 0: input 0 of shape \[4, 4\] on rank 0; wanted \[2, 4\]",
    "an input too few": "^InputError: rank 0: 1 inputs of the step; wanted 2",
    "uneven fsdp": "^proved$",
    "uneven fsdp, one doubled": r"^RefutedError: .*dp1: .*grad\.up\.weight",
    **dict.fromkeys(("dropping", "dropping restored", "dropping recomputed", "dropping whole"), "^proved$"),
    "dropping alike": r"^RefutedError: .*draws the same numbers as .*live_cases\.py:\d+",
    "dropping alike later": r"^RefutedError: .*draws the same numbers as .*live_cases\.py:\d+",
    "dropping further": r"^UnsupportedError: random numbers of rank 1 from a generator of seed 3 that is",
    "dropping recomputed otherwise": r"^RefutedError: .*draws other numbers than .*live_cases\.py:\d+",
    "dropping whole, each its own": r"^RefutedError: .*draws other numbers than .*live_cases\.py:\d+",
    "twice": r"^InputError: a second call of tensure\.prove_step",
}
"""What both ranks are told, by case of `live_cases`."""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """What each rank was told, by case."""
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    run = subprocess.run(
        [*launcher, str(Path(__file__).with_name("live_cases.py"))],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=tmp_path_factory.mktemp("live"),
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    rows = [json.loads(line) for line in run.stdout.splitlines() if line.startswith('{"rank"')]
    return [row["found"] for row in sorted(rows, key=lambda row: row["rank"])]


@pytest.mark.parametrize("case", SAID)
def test_both_ranks_are_told(found: list[dict[str, str]], case: str) -> None:
    """Verdicts, refusals, and training that is the same to the bit with a proof in its midst."""
    told = {ranks[case] for ranks in found}
    assert len(found) == 2 and len(told) == 1
    assert re.search(SAID[case], told.pop())


def test_a_rank_that_stays_away_is_named(found: list[dict[str, str]]) -> None:
    assert re.search("^LimitError: rank 1 did not come .* in [34] seconds", found[0]["one comes"])
    assert found[1]["one comes"] == "away"


def test_every_case_is_looked_at() -> None:
    assert set(live_cases.CASES) == {*SAID, "one comes"}


# --- without torchrun ----------------------------------------------------------------------------------


def test_no_process_group() -> None:
    with pytest.raises(InputError, match=r"no process group; wanted torch.distributed.init_process_group"):
        live_cases.prove(None, live_cases.batch(4), live_cases.Net())


def test_a_world_of_one_process(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """As `python train.py` has it; what was traced can be kept, and checked again."""
    threads = torch.get_num_threads()
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    try:
        status = live_cases.prove(None, live_cases.batch(4), live_cases.Net(), keep=tmp_path)
    finally:
        dist.destroy_process_group()
    assert status == "proved" and torch.get_num_threads() == threads
    assert "proved: the loss and the gradients of this step on 1 ranks (world 1)" in capfd.readouterr().out
    report = tensure.api.check(tmp_path / "certificate", tmp_path / "plan.txt", tmp_path / "program.txt")
    assert report.accepted


def test_a_module_that_is_not_the_models() -> None:
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    try:
        with pytest.raises(InputError, match="parameter weight of the parallel module"):
            live_cases.prove(None, live_cases.batch(4), torch.nn.Linear(4, 4))
        with pytest.raises(InputError, match=r"parameter up\.weight of shape \[6, 4\] where .* \[8, 4\]"):
            net = live_cases.Net()
            net.up = torch.nn.Linear(4, 6)
            live_cases.prove(None, live_cases.batch(4), net)
    finally:
        dist.destroy_process_group()


def test_inputs_and_meshes_of_no_such_kind() -> None:
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    try:
        net = live_cases.Net()
        with pytest.raises(InputError, match="inputs of type NoneType; wanted this rank's tensors"):
            live_cases.prove(None, None, net)
        for mesh in (4, {"dp": "1"}):
            with pytest.raises(InputError, match=r"a mesh .*; wanted a DeviceMesh, or sizes by axis"):
                live_cases.prove(None, live_cases.batch(4), net, mesh=mesh)
    finally:
        dist.destroy_process_group()


def test_errors_of_other_modules_come_as_plain_ones() -> None:
    """Only those of `tensure.errors` are known to who reads them; none fails to be read."""

    class ElsewhereError(TensureError):
        pass

    for error, kind in (
        (ElsewhereError("found", wanted="w"), TensureError),
        (InputError("found"), InputError),
    ):
        read = _prove_step.read_error(_prove_step._written_error(error))
        assert type(read) is kind and read.found == "found" and read.wanted == error.wanted


def test_an_optimizer_to_be_proved_is_refused() -> None:
    """On either side: optimizers rest here, and what they do is no part of what is compared."""

    def stepped() -> TrainingStep:
        net = live_cases.Net()
        return TrainingStep(net, live_cases.batch(4), optimizer=torch.optim.SGD(net.parameters()))

    def plain() -> TrainingStep:
        return TrainingStep(live_cases.Net(), inputs)

    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    try:
        net = live_cases.Net()
        with pytest.raises(InputError, match=r"an optimizer in the proof of a live step, .*tensure\.prove\("):
            live_cases.prove(None, live_cases.batch(4), net, model=stepped)
        step = ParallelStep(lambda x, y: net(x, y), optimizer=torch.optim.SGD(net.parameters()))
        with pytest.raises(InputError, match="an optimizer in the proof of a live step"):
            live_cases.prove(step, live_cases.batch(4), net)
        inputs = live_cases.batch(4)
        assert live_cases.prove(None, inputs, net, model=plain) == "proved"
    finally:
        dist.destroy_process_group()


# --- whole scripts, as docs/proving.md has one ---------------------------------------------------------


def _script(folder: Path, old: str = "", new: str = "") -> str:
    page = (ROOT / "docs" / "proving.md").read_text()
    (text,) = re.findall(r"```py\n(# train\.py\n.*?)```", page, re.DOTALL)
    assert old in text
    path = folder / "train.py"
    path.write_text(text.replace(old, new, 1) if old else text)
    return str(path)


def test_the_script_of_the_page_is_proved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the command of the page; what it keeps can be checked again."""
    kept, certificate = tmp_path / "kept", tmp_path / "certificate"
    call = [
        "prove",
        "--script",
        _script(tmp_path),
        "--nproc",
        "2",
        "--keep",
        str(kept),
        "-o",
        str(certificate),
    ]
    assert main([*call, "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["verdicts"]["values"]["status"] == "proved" and len(row["tensors"]) == 5
    assert row["replay"] is None
    plan = parse_plan((kept / "plan.txt").read_text())
    assert dict(plan.mesh) == {"tp": 2}
    assert tensure.api.check(certificate, plan, kept / "program.txt").accepted


@pytest.mark.parametrize(
    ("call", "why"),
    [
        (["--nproc", "2"], "--nproc without --script"),
        (["--script", "train.py"], "--script without --nproc"),
        (["--script", "nowhere.py", "--nproc", "2"], "no script nowhere.py"),
        (["--script", "a 'b", "--nproc", "2"], "No closing quotation"),
        (["--script", "train.py", "--nproc", "2", "--mesh", "tp=2"], "--script with --mesh"),
    ],
)
def test_options_of_a_script_that_do_not_fit(
    call: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prove", *call]) == 2
    assert why in capsys.readouterr().err


def test_a_wrong_script_is_refuted(tmp_path: Path) -> None:
    """The optimizer rests, so what a step does to gradients before it is what is found."""
    script = _script(
        tmp_path, "    optimizer.step()\n", "    net.down.bias.grad *= 2\n    optimizer.step()\n"
    )
    verdict = prove_script([script], 2, timeout_s=200).proof.values
    assert verdict.status == "refuted"
    assert verdict.counterexample is not None and "grad.down.bias" in verdict.counterexample.local


def test_a_script_that_never_asks(tmp_path: Path) -> None:
    script = tmp_path / "idle.py"
    script.write_text("print('nothing to see')\n")
    with pytest.raises(InputError, match=r"idle\.py ended \(exit code 0\) without a proof.*nothing to see"):
        prove_script([str(script)], 1, timeout_s=200)


@pytest.mark.parametrize("begun", ["", "torch.distributed.init_process_group('gloo')"])
def test_a_script_that_fails_says_its_own_error(tmp_path: Path, begun: str) -> None:
    """The traceback of the rank that failed first, not what torchrun says of it."""
    script = tmp_path / "failing.py"
    script.write_text(
        "import os, sys, time, torch.distributed\n"
        f"{begun}\n"
        "def inner():\n"
        "    raise KeyError('my own bug')\n"
        "if os.environ['RANK'] == '1':\n"
        "    inner()\n"
        "time.sleep(60)\n"
    )
    with pytest.raises(InputError) as caught:
        prove_script([str(script)], 2, timeout_s=200)
    said = str(caught.value)
    assert "(exit code 1)" in said and "It said: rank 1: File" in said
    assert "failing.py" in said and "line 4, in inner" in said and said.endswith("KeyError: 'my own bug'")


def test_no_such_script() -> None:
    with pytest.raises(InputError, match="no script"):
        prove_script(["nowhere.py"], 2)


def test_refuted_is_an_exit_code() -> None:
    assert RefutedError("found").exit_code == 1
