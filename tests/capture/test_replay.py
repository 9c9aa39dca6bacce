"""A replay of a parallel step says what a person would see who ran it, and calls no right step wrong.

The whole zoo is replayed beside its proofs (tests/proving/test_zoo_proofs.py); here are the ways of running,
what each refuses, and planted faults in what is compared.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Partial, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import tensure
from tensure import proving
from tensure.bundle import Counterexample, Plan, Proof, Replay, Verdict
from tensure.capture import (
    ParallelStep,
    TrainingStep,
    _threaded,
    capture_model,
    capture_parallel,
    replay_step,
)
from tensure.capture import _replay as module
from tensure.cli import main
from tensure.proving import prove_plan

TWO = {"tp": 2}
ROWS = {"tp": Shard(0)}


class Net(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, width), nn.Linear(width, 4)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (self.down(torch.relu(self.up(x))) - y).pow(2).mean()


def model() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    return Net(), (torch.randn(4, 4), torch.randn(4, 4))


def by_placements(net: nn.Module, mesh: DeviceMesh, factor: float = 1.0) -> Callable[..., Any]:
    """Tensor parallelism by DTensor; a loss that backward sees `factor` times."""
    parallelize_module(net, mesh["tp"], {"up": ColwiseParallel(), "down": RowwiseParallel()})

    def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = net(x, y)
        (loss * factor).backward()
        return loss

    return step


def wrong(net: nn.Module, mesh: DeviceMesh) -> Callable[..., Any]:
    return by_placements(net, mesh, 1.5)


def fully_sharded(net: Net, mesh: DeviceMesh) -> ParallelStep:
    fully_shard(net.up, mesh=mesh["tp"])
    fully_shard(net, mesh=mesh["tp"])

    def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = net(x, y)
        loss.backward()
        return loss

    return ParallelStep(step, inputs=(ROWS, ROWS), outputs=({"tp": Partial("avg")},))


def hanging(net: Net, mesh: DeviceMesh) -> Callable[..., Any]:
    def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        loss = net(x, y)
        loss.backward()
        if mesh.get_local_rank("tp") == 1:
            dist.all_reduce(net.up.weight.grad, group=mesh.get_group("tp"))
        return loss

    return step


def forgetful(net: Net, mesh: DeviceMesh) -> Callable[..., Any]:
    def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        loss = net(x, y)
        loss.backward()
        if mesh.get_local_rank("tp") == 1:
            net.up.bias.grad = None
        return loss

    return step


def in_microbatches(net: Net, mesh: DeviceMesh) -> ParallelStep:
    def microbatch(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        loss = net(x, y) / 2
        loss.backward()
        return loss

    def step() -> None:
        for weight in net.parameters():
            assert weight.grad is not None
            dist.all_reduce(weight.grad, group=mesh.get_group("tp"))
            weight.grad /= mesh.size()

    rows = {"tp": Shard(0), "mb": Shard(0)}
    means = {"tp": Partial("avg"), "mb": Partial()}
    return ParallelStep(step, microbatch=microbatch, microbatches=2, inputs=[rows, rows], outputs=[means])


def replay(parallel: Any, **options: Any) -> Replay:
    """Of a step, with claims as they were captured of it, or of another one (`claimed`)."""
    captured = capture_model(model)
    plan = capture_parallel(model, options.pop("claimed", parallel), TWO, captured)
    return replay_step(model, parallel, plan, captured.program, **options)


# --- ways of running it ----------------------------------------------------------------------------------


@pytest.mark.parametrize("way", module.WAYS)
def test_each_way_tells_right_from_wrong(way: str) -> None:
    right, other = replay(by_placements, ways=(way,)), replay(wrong, ways=(way,))
    assert (right.status, right.how, right.outputs) == ("agrees", way, ())
    assert (other.status, other.how) == ("differs", way)
    assert {name for name, _, _ in other.outputs} == {f"grad.{p}" for p, _ in Net().named_parameters()}
    assert all(far == pytest.approx(0.5) for _, _, far in other.outputs)
    assert not dist.is_initialized() and torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_a_step_of_its_own_on_the_single_device(factor: float) -> None:
    """It is that step that is run, not a plain forward and backward."""

    def own() -> TrainingStep:
        net, inputs = model()

        def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            loss: torch.Tensor = net(x, y)
            (loss * 2).backward()
            return loss

        return TrainingStep(net, inputs, step)

    def parallel(net: nn.Module, mesh: DeviceMesh) -> Callable[..., Any]:
        return by_placements(net, mesh, factor)

    captured = capture_model(own)
    plan = capture_parallel(own, parallel, TWO, captured)
    found = replay_step(own, parallel, plan, captured.program)
    assert found.status == ("agrees" if factor == 2 else "differs"), found.reason
    assert prove_plan(plan, captured.program).proof.values.status == ("proved" if factor == 2 else "refuted")


@pytest.mark.parametrize("crashes", [1, 3])
def test_a_copy_that_crashes_is_made_again(
    crashes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = module._run

    def crashing(*args: Any) -> Any:
        if len(list(tmp_path.iterdir())) < crashes:
            (tmp_path / str(len(list(tmp_path.iterdir())))).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return run(*args)

    monkeypatch.setattr(module, "_run", crashing)
    found = replay(by_placements, ways=("threads",))
    assert found.status == ("agrees" if crashes == 1 else "none"), found
    assert ("SIGKILL" in found.reason) == (crashes == 3)


def test_micro_batches_as_an_axis() -> None:
    assert replay(in_microbatches).how == "LocalTensorMode and threads"
    assert replay(in_microbatches).status == "agrees"


def test_what_one_program_cannot_do_threads_do() -> None:
    sharded = replay(fully_sharded)
    assert (sharded.status, sharded.how) == ("agrees", "threads")
    assert sharded.reason.startswith("not by LocalTensorMode: ")


def by_rank_of_world(net: Net, mesh: DeviceMesh) -> Callable[..., Any]:
    number = dist.get_rank()
    return lambda x, y: _backward(net(x, y) * (1.0 if number == 0 else 1))


def by_rank_of_group(net: Net, mesh: DeviceMesh) -> Callable[..., Any]:
    number = mesh.get_group("tp").rank()
    return lambda x, y: _backward(net(x, y) * (1.0 if number == 0 else 1))


def by_comparison(net: Net, mesh: DeviceMesh) -> Callable[..., Any]:
    number = mesh.get_local_rank("tp")
    return lambda x, y: _backward(net(x, y) * (1.0 if number == 0 else 1))


def _backward(loss: torch.Tensor) -> torch.Tensor:
    loss.backward()
    return loss


@pytest.mark.parametrize(
    ("parallel", "why"),
    [
        (by_rank_of_world, "asks for its rank"),
        (by_rank_of_group, "asks for its rank"),
        (by_comparison, "one thing on some ranks and another on others"),
    ],
)
def test_rank_0_is_not_taken_for_all(parallel: Any, why: str) -> None:
    """One program for all ranks would be told the rank of one, or one answer for ranks that differ."""
    found = replay(parallel, ways=("LocalTensorMode",))
    assert found.status == "none" and why in found.reason
    assert replay(parallel, ways=("threads",)).status == "agrees"


def test_a_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HANG_S", 1.0)
    said = replay(hanging, claimed=by_comparison, is_stuck=True)
    assert (said.status, said.how, said.reason) == ("differs", "threads", "ranks 1 come to no end")


def test_patience_ends_once_every_rank_waits_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_threaded, "IDLE", 1e-6)
    monkeypatch.setattr(module, "HANG_S", 1e6)  # else the process is ended, and says nothing
    said = replay(hanging, claimed=by_comparison, is_stuck=True, timeout_s=30.0)
    assert (said.status, said.reason) == ("differs", "ranks 1 come to no end")


def test_one_rank_that_is_busy_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_threaded, "IDLE", 0.0)

    def run(rank: int) -> None:
        if rank == 1:
            time.sleep(3 * _threaded.LOOK_S)
        dist.all_reduce(torch.ones(2))

    assert _threaded.in_threads(run, 2, 30.0) == ([], [])


def test_no_end_is_no_answer_where_none_was_expected() -> None:
    found = replay(hanging, claimed=by_comparison, timeout_s=2.0, ways=("threads",))
    assert found.status == "none" and "come to no end" in found.reason


def test_no_end_of_what_is_proved_is_a_doubt() -> None:
    """Not silence: whoever reads that a step is proved reads there that it hung."""
    found = replay(hanging, claimed=by_comparison, timeout_s=2.0, ways=("threads",), is_proved=True)
    assert (found.status, found.how, found.reason) == ("unclear", "threads", "ranks 1 come to no end")
    assert found.confirms("proved") is None and "come to no end" in found.words("proved")


def test_a_step_that_raises_or_dies() -> None:
    def raising(net: nn.Module, mesh: DeviceMesh) -> Callable[..., Any]:
        def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            raise ValueError("planted")

        return step

    found = replay(raising, claimed=by_placements)
    assert found.status == "none" and found.reason.count("planted") == 2

    def dying(net: nn.Module, mesh: DeviceMesh) -> Callable[..., Any]:
        import os

        os._exit(7)

    assert "exit code 7" in replay(dying, claimed=by_placements).reason


def test_memory_and_size_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(net: nn.Module, mesh: DeviceMesh) -> Callable[..., Any]:
        torch.empty(1 << 33, dtype=torch.uint8)
        return by_placements(net, mesh)

    assert replay(greedy, claimed=by_placements).status == "none"
    monkeypatch.setattr(module, "MAX_BYTES", 1000)
    assert "at its own sizes it would hold" in replay(by_placements).reason
    monkeypatch.setattr(module, "MAX_REPLAYED", 1)
    assert replay(by_placements).reason == "2 ranks, and 1 are run at most"


# --- what is compared -------------------------------------------------------------------------------------


def test_a_gradient_that_is_not_there() -> None:
    found = replay(forgetful, claimed=by_comparison)
    assert (found.status, found.reason[:30]) == ("differs", "grad.up.bias is not on ranks[1")


def test_a_part_that_stands_nowhere() -> None:
    """Claims of half a result leave the other half to nobody."""
    captured = capture_model(model)
    plan = capture_parallel(model, by_placements, TWO, captured)
    (label, track), *_ = plan.tracks.items()
    local = track.locals.get("grad.up.weight") or plan.locals["grad.up.weight"]
    assert local.place is not None
    halved = dataclasses.replace(local, place=dataclasses.replace(local.place, dims=((0, ((0, 4, 1),)),)))
    tracks = {label: dataclasses.replace(track, locals={**track.locals, "grad.up.weight": halved})}
    found = replay_step(model, by_placements, dataclasses.replace(plan, tracks=tracks), captured.program)
    assert found.status == "differs" and "grad.up.weight is in part on no rank" in found.reason


@pytest.mark.parametrize("fault", [1e-12, 1e-7, 1e-3])
def test_how_far_is_other(fault: float) -> None:
    found = replay(lambda net, mesh: by_placements(net, mesh, 1 + fault), ways=("threads",))
    assert found.status == {1e-12: "agrees", 1e-7: "unclear", 1e-3: "differs"}[fault]


def test_less_than_double_precision_is_seen() -> None:
    """A step that computes in float32 is not called wrong for its rounding."""

    class Single(Net):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return super().forward(x, y).float()

    def single() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
        return Single(), (torch.randn(4, 4), torch.randn(4, 4))

    def near(net: nn.Module, mesh: DeviceMesh) -> Callable[..., Any]:
        return by_placements(net, mesh, 1 + 1e-7)

    captured = capture_model(single)
    plan = capture_parallel(single, near, TWO, captured)
    assert replay_step(single, near, plan, captured.program).status == "agrees"
    assert replay(near).status == "unclear"  # with no float32 in it, that is too far


# --- beside a verdict --------------------------------------------------------------------------------------


def test_a_right_step_that_is_called_wrong_is_not_confirmed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: a prover that lies is not borne out."""
    honest = proving.prove_plan

    def lying(plan: Plan, program: Any, **options: Any) -> Any:
        found = honest(plan, program, **options)
        example = Counterexample("ranks[0]", "grad.up.weight", "t_1", (0, 0), "copy", "", True)
        return dataclasses.replace(found, proof=_refuted(found.proof, example))

    monkeypatch.setattr(proving, "prove_plan", lying)
    result = tensure.prove(by_placements, model, mesh=TWO)
    assert result.proof.values.status == "refuted"
    assert result.replay is not None and result.replay.confirms("refuted") is False
    assert result.replay.words("refuted").startswith("not confirmed by a replay of the step itself")
    page = tensure.api.proof_page(result)
    assert "not confirmed by a replay of the step itself" in page


def _refuted(proof: Proof, example: Counterexample) -> Proof:
    return dataclasses.replace(proof, values=Verdict("refuted", "a lie", counterexample=example))


def test_a_wrong_step_is_refuted_and_confirmed() -> None:
    result = tensure.prove(wrong, model, mesh=TWO)
    assert result.proof.values.status == "refuted"
    assert result.replay is not None and result.replay.confirms("refuted")
    assert re.match(
        r"confirmed by .*LocalTensorMode and threads: grad\.\S+ on ranks\[\d\] is off by 5\.0e-01 .* 3 more",
        result.replay.words("refuted"),
    )
    assert tensure.prove(wrong, model, mesh=TWO, replay=False).replay is None
    assert tensure.prove(by_placements, model, mesh=TWO).replay is None


def test_ways_that_contradict_each_other_say_nothing() -> None:
    rows = {
        "LocalTensorMode": {"status": "agrees", "outputs": [], "reason": ""},
        "threads": {"status": "differs", "outputs": [["loss", "ranks[0]", 1.0]], "reason": ""},
    }
    found = module._joined(rows)
    assert found.status == "unclear" and found.confirms("refuted") is None
    assert "LocalTensorMode: agrees, threads: differs" in found.words("refuted")


TRAIN = """
import torch
from torch import nn
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x, y):
        return (self.down(torch.relu(self.up(x))) - y).pow(2).mean()


def model():
    return Net(), (torch.randn(4, 4), torch.randn(4, 4))


def right(net, mesh):
    parallelize_module(net, mesh["tp"], {"up": ColwiseParallel(), "down": RowwiseParallel()})


def wrong(net, mesh):
    right(net, mesh)

    def step(x, y):
        loss = net(x, y)
        (2 * loss).backward()
        return loss

    return step
"""


def test_the_terminal_says_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "replayed.py").write_text(TRAIN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    call = ["prove", "--model", "replayed:model", "--mesh", "tp=2", "--parallel"]
    assert main([*call, "replayed:wrong"]) == 1
    assert "replay: confirmed by a replay of the step itself in float64, by Local" in capsys.readouterr().out
    assert main([*call, "replayed:right", "--replay", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)["replay"]
    assert (
        row["status"] == "agrees" and row["confirms"] is True and row["how"] == "LocalTensorMode and threads"
    )
    assert main([*call, "replayed:wrong", "--no-replay", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["replay"] is None
    monkeypatch.setattr(
        "tensure.capture.replay_step",
        lambda *_, **__: Replay("differs", "threads", outputs=(("loss", "r", 1.0),)),
    )
    assert main([*call, "replayed:right", "--replay"]) == 4
    assert "proof and replay contradict each other" in capsys.readouterr().err


def test_a_step_that_draws_random_numbers() -> None:
    """Ranks in one process have one generator, where real ones have one each."""

    class Noisy(Net):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return super().forward(nn.functional.dropout(x), y)

    result = tensure.prove(
        lambda *_: None, lambda: (Noisy(), (torch.randn(4, 4), torch.randn(4, 4))), mesh=TWO, replay=True
    )
    assert result.proof.values.status == "proved"
    assert result.replay is not None and result.replay.confirms("proved") is None
    assert result.replay.words("proved").startswith("could not be replayed: it draws random numbers")
