"""What a terminal is told of a wrong step: lines of the code that is proved, the fact first, few lines."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tensure.bundle import Counterexample, Verdict
from tensure.cli import main
from tensure.cli._prove_words import tensor_lines, verdict_words
from tensure.proving import TensorVerdict

STEPS = '''
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import Partial, Shard

from tensure.capture import ParallelStep


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(4), nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x, y):
        return (self.down(torch.relu(self.up(self.norm(x)))) - y).pow(2).mean()


def model():
    return Net(), (torch.randn(4, 4), torch.randn(4, 4))


class Rows(nn.Module):
    """Every rank has some rows; nobody sums gradients."""

    def __init__(self, net, rank):
        super().__init__()
        self.norm, self.up, self.down = net.norm, net.up, net.down
        self.rank = rank

    def forward(self, x, y):
        x, y = x.chunk(2)[self.rank], y.chunk(2)[self.rank]
        return (self.down(torch.relu(self.up(self.norm(x)))) - y).pow(2).mean()


def a_module(net, mesh):
    return Rows(net, mesh.get_local_rank("dp"))


def twice(net, mesh):
    def step(x, y):
        loss = 2 * net(x, y)
        loss.backward()
        for p in net.parameters():
            dist.all_reduce(p.grad, dist.ReduceOp.AVG)
        return loss
    rows = {"dp": Shard(0)}
    return ParallelStep(step, inputs=(rows, rows), outputs=({"dp": Partial("avg")},))


def hang(net, mesh):
    rank = mesh.get_local_rank("dp")

    def step(x, y):
        if rank == 1:
            dist.recv(torch.empty(3), 0)
        loss = net(x, y)
        loss.backward()
        return loss
    return step
'''


@pytest.fixture(autouse=True)
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The functions, as a file of the test's own."""
    (tmp_path / "wordy.py").write_text(STEPS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    sys.modules.pop("wordy", None)


def run(capsys: pytest.CaptureFixture[str], line: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(shlex.split(f"prove --model wordy:model --mesh dp=2 {line}"))
    found = capsys.readouterr()
    return code, found.out, found.err


@pytest.mark.parametrize("jobs", [1, 2])
def test_where_we_call_backward_lines_are_the_models(jobs: int, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, f"--parallel wordy:a_module --no-replay --jobs {jobs} --json --keep kept")
    assert code == 1
    row = json.loads(out)
    sources = [item["source"] for item in row["tensors"] if item["step"]]
    sources.append(row["verdicts"]["values"]["counterexample"]["source"])
    assert len(sources) == 8 and all("wordy.py:" in source for source in sources), sources
    for text in ("plan.txt", "program.txt"):
        noted = [line for line in Path("kept", text).read_text().splitlines() if "source=" in line]
        assert len(noted) > 20 and all('source="wordy.py:' in line for line in noted), text
        # A gradient is cast for the layer that has made it, and not for whoever calls torch.
        casts = [line for line in noted if "_to_copy" in line]
        modules = {line.partition('module="')[2].partition('"')[0] for line in casts}
        assert modules == {"norm", "up", "down"}, casts


def test_one_factor_is_told_first(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "--parallel wordy:twice --no-replay --html page.html")
    assert code == 1
    first, second = out.splitlines()[:2]
    assert (
        first.startswith("values: refuted") and second == "  loss and all gradients are 2 times the model's"
    )
    assert re.search(r"^  grad\.up\.weight: refuted, \S+: it is 2 times the model's; since ", err, re.M), err
    assert "and 1 more (--verbose, --json or --html has all)" in err and "grad.down.bias" not in err
    assert Path("page.html").read_text().count("it is 2 times the model") == 7


def test_no_factor_is_told_of_what_is_off_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, err = run(capsys, "--parallel wordy:a_module --no-replay")
    assert " times the model's" not in out + err


def test_a_step_that_cannot_end_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "--parallel wordy:hang --no-replay")
    assert code == 1 and "deadlock" in out
    told = [line for line in err.splitlines() if "do not come to the end" in line]
    assert len(told) == 1 and "and 6 more: unknown" in told[0], err


# --- lines ------------------------------------------------------------------------------------------------


def wrong(name: str, **fields: Any) -> TensorVerdict:
    return TensorVerdict(name, **{"status": "refuted", "rank": "dp1", "why": "it is odd", **fields})


def test_lines_are_few_and_short_and_those_shown_wrong_come_first() -> None:
    long = "the addend (k 0:4) of a value the program does not have + " * 20
    rows = [wrong(f"a{at}", status="unknown", step="s") for at in range(6)]
    rows += [wrong(f"b{at}", why=long, step="exp_0 = exp(...)", source="it.py:3") for at in range(5)]
    told = list(tensor_lines([*rows, wrong("right", status="derived")]))
    assert [line[:2] for line in told] == ["b0", "b1", "b2", "b3", "b4", "a0", "an"]
    assert told[-1] == "and 5 more (--verbose, --json or --html has all)"
    assert all(len(line) <= 200 for line in told)
    assert told[0].endswith("...; since exp_0 = exp(...) (it.py:3)")
    full = list(tensor_lines([*rows, wrong("right", status="derived")], is_full=True))
    assert len(full) == 12 and any(long in line for line in full) and "right: derived" in full


def test_what_is_odd_beside_a_step_that_cannot_end_is_no_news() -> None:
    why = "ranks do not come to the end of the step"
    rows = [wrong("a", status="unknown", step="s"), TensorVerdict("loss", "unknown", why=why), wrong("b")]
    assert list(tensor_lines(rows)) == ["b: refuted, dp1: it is odd", f"loss and 1 more: unknown, {why}"]


def test_a_line_is_written_once() -> None:
    def told(step: str) -> str:
        example = Counterexample("dp1", "loss", "loss", (), step, "it.py:3", True)
        return verdict_words(Verdict("refuted", "replay", counterexample=example))

    assert told("x = exp(...): draws another (it.py:3)").count("(it.py:3)") == 1
    assert told("x = exp(...): draws another (it.py:31)").endswith("(it.py:31) (it.py:3)")
