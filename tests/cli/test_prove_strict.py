"""`tensure prove --strict`: what holds only where no label is ignored is not proved."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tensure.cli import main

LABELLED = """
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.tensor import Partial, Shard

from tensure.capture import ParallelStep


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x, labels):
        return F.cross_entropy(self.layer(x), labels)


def model():
    return Net(), (torch.randn(4, 4), torch.zeros(4, dtype=torch.long))


def averaged(net, mesh):
    def step(x, labels):
        loss = net(x, labels)
        loss.backward()
        for weight in net.parameters():
            dist.all_reduce(weight.grad, group=mesh.get_group("dp"))
            weight.grad /= mesh.size()
        return loss

    rows = {"dp": Shard(0)}
    return ParallelStep(step, inputs=(rows, rows), outputs=({"dp": Partial("avg")},))
"""
LINE = "prove --model labelled:model --parallel labelled:averaged --mesh dp=2"


@pytest.fixture(autouse=True)
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "labelled.py").write_text(LABELLED)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("labelled", None)


def test_a_condition_is_said_and_strict_takes_it_for_no_proof(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(LINE.split()) == 0
    out = capsys.readouterr().out
    assert "given that no target of a loss is the class it ignores (true if no label is -100; " in out
    assert main([*LINE.split(), "--strict", "--json", "--html", "proof.html"]) == 3
    found = json.loads(capsys.readouterr().out)
    values = found["verdicts"]["values"]
    assert values["status"] == "unknown" and found["certificate"] is None
    assert values["reason"].startswith("proved only given that no target of a loss is the class it ignores")
    page = Path("proof.html").read_text()
    assert "count tokens in the model, as in (labels != -100).sum()" in page
