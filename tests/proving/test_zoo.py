"""Every fixed twin of the zoo computes what the single device does, and no buggy one does: run for real."""

from __future__ import annotations

import inspect
import threading
from collections import Counter
from functools import partial
from math import prod

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Partial, Shard

from tensure.capture import ParallelStep
from tests.proving.zoo import ENTRIES, Entry, _threads
from tests.proving.zoo._threads import AGREE, DIFFER, OracleError, run_twin

EACH = pytest.mark.parametrize("entry", ENTRIES, ids=[entry.name for entry in ENTRIES])


@EACH
def test_fixed_twin_agrees(entry: Entry) -> None:
    distances = run_twin(entry.model, entry.fixed, entry.mesh)
    assert {name: far for name, far in distances.items() if not far <= AGREE} == {}


@EACH
def test_buggy_twin_differs_where_the_entry_says(entry: Entry) -> None:
    distances = run_twin(entry.model, entry.buggy, entry.mesh)
    wrong = {name for name, far in distances.items() if far >= DIFFER}
    assert wrong
    assert set(entry.at.wrong) <= wrong
    assert all(far <= AGREE for name, far in distances.items() if name not in wrong), "neither same nor other"


# --- the entries ---------------------------------------------------------------------------------------


def test_names_are_unique() -> None:
    assert [name for name, count in Counter(entry.name for entry in ENTRIES).items() if count > 1] == []


def test_every_bug_of_trainverify_is_here() -> None:
    numbers = [entry.source.split()[-1] for entry in ENTRIES if entry.source.startswith("TrainVerify bug ")]
    assert sorted(map(int, numbers)) == list(range(1, 15))


@EACH
def test_entry_is_well_formed(entry: Entry) -> None:
    size = prod(entry.mesh.values())
    assert 2 <= size <= 8
    assert entry.name.isidentifier() and entry.name.islower()
    assert entry.what.endswith(".") and ". " not in entry.what
    assert all(0 <= rank < size for rank in entry.at.ranks)
    for function in (entry.fixed, entry.buggy):
        inspect.signature(function).bind(None, None)


# --- the oracle ------------------------------------------------------------------------------------------


class _Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(6, 5))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = x @ self.weight
        return y.pow(2).mean(), y.detach()


def _line() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return _Line(), (torch.randn(4, 6),)


def _rows(net: nn.Module, mesh: DeviceMesh, fault: str = "") -> ParallelStep:
    """Batch cut over the ranks, with one fault or none."""
    last = mesh.get_rank() == mesh.size() - 1

    def step(x: Tensor) -> tuple[Tensor, Tensor]:
        if fault == "raises" and last:
            raise ValueError("planted")
        if fault == "hangs" and last:
            dist.recv(torch.empty(1), 0)
        loss, y = net(x)
        loss = loss / mesh.size()
        loss.backward()
        dist.all_reduce(net.weight.grad)
        if fault == "drifts" and last:
            net.weight.grad[2, 3] *= 1.001
        if fault == "forgets" and last:
            net.weight.grad = None
        if fault == "is not finite" and last:
            net.weight.grad[2, 3] = float("nan")
        return loss.detach(), y[:, :-1] if fault == "cuts" else y

    rows = {"dp": Shard(0)}
    return ParallelStep(step, inputs=[rows], outputs=[{"dp": Partial()}, rows])


def test_oracle_names_all_results() -> None:
    distances = run_twin(_line, _rows, {"dp": 2})
    assert set(distances) == {"loss", "output 1", "weight"}
    assert max(distances.values()) <= AGREE


@pytest.mark.parametrize(
    ("fault", "wrong"),
    [
        ("drifts", "weight"),
        ("forgets", "weight"),
        ("is not finite", "weight"),
        ("cuts", "output 1"),
    ],
)
def test_oracle_sees(fault: str, wrong: str) -> None:
    distances = run_twin(_line, partial(_rows, fault=fault), {"dp": 2})
    assert {name for name, far in distances.items() if not far <= AGREE} == {wrong}


def test_oracle_tells_which_rank_raised() -> None:
    with pytest.raises(OracleError, match="rank 1 raised ValueError: planted"):
        run_twin(_line, partial(_rows, fault="raises"), {"dp": 2})
    assert max(run_twin(_line, _rows, {"dp": 2}).values()) <= AGREE  # and it is fit to run again


def test_oracle_tells_which_ranks_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    before = threading.active_count()
    monkeypatch.setattr(_threads, "PATIENCE_S", 0.2)
    with pytest.raises(OracleError, match=r"ranks \[0, 1\] did not finish"):
        run_twin(_line, partial(_rows, fault="hangs"), {"dp": 2})
    assert threading.active_count() == before


def test_parts_are_joined_innermost_first() -> None:
    """On two axes that cut one dimension, the outer one cuts first; copies come back one by one."""
    whole = torch.arange(24.0).view(8, 3)
    cut = dict(enumerate(whole.chunk(4)))
    assert torch.equal(_threads._assembled(cut, [Shard(0), Shard(0)], (2, 2))[0], whole)
    sums = {rank: whole * (rank + 1) / 10 for rank in range(4)}
    copies = _threads._assembled(sums, [Partial(), _threads.Replicate()], (2, 2))
    assert [float(copy[7, 2] / 23) for copy in copies] == pytest.approx([0.4, 0.6])
