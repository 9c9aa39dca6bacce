"""Live ranks, apart from what is proved of them: copies of a process, messages, memory, traces as bytes."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from tensure.capture import (
    Beside,
    Exchange,
    LiveRank,
    TrainingStep,
    capture_model,
    capture_parallel,
    plan_of,
    rank_from_bytes,
    rank_to_bytes,
    without_bytes,
)
from tensure.capture._given import built
from tensure.capture._shadows import Shadows
from tensure.capture._tape import Tape
from tensure.capture._world import no_bytes
from tensure.errors import FormatError, LimitError, TensureError, UnsupportedError
from tensure.program import Name, Ref
from tensure.proving import prove_plan


@pytest.fixture
def alone() -> Iterator[None]:
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield
    dist.destroy_process_group()


# --- a copy of this process ----------------------------------------------------------------------------


def test_what_a_copy_does_is_gone_with_it() -> None:
    numbers = [1]

    def work(pipe: object) -> None:
        numbers.append(2)
        pipe.send_bytes(str(numbers).encode() + pipe.recv_bytes())  # type: ignore[attr-defined]

    beside = Beside(work, time.monotonic() + 20)
    beside.put(b" heard")
    assert beside.get("the work") == b"[1, 2] heard"
    beside.end()
    assert numbers == [1]


def test_a_copy_cannot_use_the_sockets_of_its_process() -> None:
    ours, theirs = socket.socketpair()

    def work(pipe: object) -> None:
        try:
            ours.sendall(b"stray")
            said = b"sent"
        except OSError:
            said = b"nothing to send to"
        pipe.send_bytes(said)  # type: ignore[attr-defined]

    beside = Beside(work, time.monotonic() + 20)
    assert beside.get("the work") == b"nothing to send to"
    beside.end()
    ours.sendall(b"ours")
    assert theirs.recv(16) == b"ours"
    ours.close()
    theirs.close()


def test_a_copy_that_hangs_or_dies() -> None:
    beside = Beside(lambda _: time.sleep(60), time.monotonic() + 0.2)
    with pytest.raises(LimitError, match="the work did not end in time"):
        beside.get("the work")
    beside.end()
    beside = Beside(lambda _: time.sleep(60), time.monotonic() + 0.2, purpose="a replay", wanted=None)
    with pytest.raises(LimitError) as caught:
        beside.get("it")
    beside.end()
    assert caught.value.found == "it did not end in time" and caught.value.wanted is None
    for work, why in ((lambda _: os._exit(3), "exit code 3"), (lambda _: os.kill(os.getpid(), 9), "SIGKILL")):
        beside = Beside(work, time.monotonic() + 20)
        with pytest.raises(TensureError, match=f"the work ended early: .*{why}"):
            beside.get("the work")
        beside.end()


def test_messages_are_cut_and_joined(alone: None) -> None:
    exchange = Exchange(time.monotonic() + 20)
    data = bytes(range(256)) * 9000
    exchange.put("long", data)
    exchange.put("empty", b"")
    assert exchange.get("long", "?") == data and exchange.get("empty", "?") == b""
    exchange.until = 0.0
    assert not exchange.has("never")
    with pytest.raises(LimitError, match="nobody came in 0 seconds"):
        exchange.get("never", "nobody came")


# --- memory --------------------------------------------------------------------------------------------


def test_tensors_that_share_memory_do_so_in_the_shade() -> None:
    """A write into a part of a flat buffer is read through another window on it."""
    tape = Tape()
    shadows = Shadows(tape)
    flat = torch.arange(6.0)
    square, middle = flat[:4].view(2, 2), flat[2:4]
    with no_bytes():
        left = shadows.leaf(square, Ref(Name("w")))
        assert tape.read(left, ()) == Ref(Name("w"))
        before = tape.read(shadows.of(flat), ())
        tape.write(shadows.of(middle), Ref(Name("new")), ())
        assert tape.read(shadows.of(flat), ()) != before
        assert tape.read(left, ()) != Ref(Name("w"))
        assert tape.read(shadows.of(middle), ()) == Ref(Name("new"))
        assert shadows.of(middle) is shadows.of(middle)
        assert shadows.of(left) is left  # what has no bytes stands for itself


@pytest.mark.parametrize("rest", [0.0, 1.0])
def test_zeros_after_a_shard_are_known(rest: float) -> None:
    """FSDP pads a last shard that is smaller, and gathers it with its zeros; others are not known."""
    tape = Tape()
    shadows = Shadows(tape)
    memory = torch.full((8,), rest)
    shard = memory[:6].view(3, 2)
    with no_bytes():
        shadows.leaf(shard, Ref(Name("w")))
        tape.read(shadows.of(memory), ())
    fills = [step.attr("fill_value") for step in tape.steps if step.op == "full"]
    assert len(fills) == 1 and (fills == [0.0]) == (rest == 0.0)


def test_memory_in_two_orders_is_refused() -> None:
    """Columns of a matrix have no window of their own: a write into one could not be seen in the other."""
    shadows = Shadows(Tape())
    matrix = torch.zeros(2, 4)
    columns = matrix[:, :2]
    with no_bytes():
        shadows.leaf(columns, Ref(Name("w")))
        with pytest.raises(UnsupportedError, match="in memory that others look at"):
            shadows.of(matrix)


def test_numbers_from_before_the_step_are_constants_or_refused(alone: None) -> None:
    net = nn.Linear(3, 1)
    few, many = torch.tensor([1.0, 2.0, 3.0]), torch.ones(5000)

    def plan(table: torch.Tensor) -> object:
        def step(x: torch.Tensor) -> torch.Tensor:
            loss = (net(x) * table[:3]).sum()
            loss.backward()
            return loss

        rank = LiveRank({"world": 1}, 0, captured)
        rank.observe(net, step, (torch.ones(2, 3),))
        return plan_of(captured, [rank])

    inputs = (torch.ones(2, 3),)
    captured = capture_model(without_bytes(lambda: (_Summed(nn.Linear(3, 1)), inputs)))
    assert "('fill_value', 2.0)" in repr(plan(few))
    with pytest.raises(UnsupportedError, match=r"reads a tensor of shape \(5000,\) that was made before it"):
        plan(many)


class _Summed(nn.Module):
    def __init__(self, net: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = net.weight, net.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight, self.bias).sum()


def test_inputs_made_beforehand_are_stripped_of_their_bytes() -> None:
    inputs = (torch.ones(2, 3), torch.ones(2, dtype=torch.int64))
    net = nn.Linear(3, 1)
    with no_bytes():
        for given in (without_bytes(lambda: (net, inputs)), without_bytes(lambda: TrainingStep(net, inputs))):
            found = built(given).inputs
            assert all(isinstance(item, FakeTensor) for item in found)
            assert [item.dtype for item in found] == [torch.float32, torch.int64]


class _Added(_Summed):
    def __init__(self, net: nn.Linear, more: float) -> None:
        super().__init__(net)
        self.more = more

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + self.more


@pytest.mark.parametrize("shape", [(), (1,)], ids=["a number", "a row"])
@pytest.mark.parametrize(
    ("change", "more"),
    [("add_", 2.0), ("copy_", 0.0), ("add", 0.0), ("add_", 0.0), ("copy_", 2.0)],
    ids=["added to", "written over", "left alone", "added to unsaid", "written over unsaid"],
)
def test_what_is_written_into_tensors_from_before(
    alone: None, shape: tuple[int, ...], change: str, more: float
) -> None:
    """An op in place looks at what was there, unless it only writes; a number is no exception."""
    net, total = nn.Linear(3, 1), torch.full(shape, 2.0)

    def step(x: torch.Tensor) -> torch.Tensor:
        loss = net(x).sum()
        loss.backward()
        getattr(total, change)(loss.detach())
        if change == "add":
            return loss
        return total[0] if shape else total

    inputs = (torch.ones(2, 3),)
    captured = capture_model(without_bytes(lambda: (_Added(nn.Linear(3, 1), more), inputs)))
    rank = LiveRank({"world": 1}, 0, captured)
    rank.observe(net, step, inputs)
    verdict = prove_plan(plan_of(captured, [rank]), captured.program).proof.values
    is_right = (change == "add_") == (more == 2.0)
    assert verdict.status in (("proved", "probable") if is_right else ("refuted",)), verdict


class _Two(nn.Module):
    """Two players: the gradient of each is of a loss of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.a * self.b.detach() * x).sum() + (self.b * x).sum()


@pytest.mark.parametrize("clears", [True, False])
def test_an_optimizer_rests_from_its_own_step_on(alone: None, clears: bool) -> None:
    """One that steps later clears first what the loss of the other has left to its parameters."""
    net = _Two()
    one, two = torch.optim.SGD([net.a]), torch.optim.SGD([net.b])

    def step(x: torch.Tensor) -> torch.Tensor:
        first = (net.a * net.b * x).sum()
        first.backward()
        one.step()
        one.zero_grad()
        if clears:
            two.zero_grad()
        second = (net.b * x).sum()
        second.backward()
        two.step()
        two.zero_grad()
        return first.detach() + second.detach()

    inputs = (torch.ones(3),)
    captured = capture_model(without_bytes(lambda: (_Two(), inputs)))
    rank = LiveRank({"world": 1}, 0, captured)
    rank.observe(net, step, inputs)
    verdict = prove_plan(plan_of(captured, [rank]), captured.program).proof.values
    assert verdict.status == ("proved" if clears else "refuted"), verdict


# --- traces --------------------------------------------------------------------------------------------


def test_a_live_rank_is_traced_as_on_a_group_that_does_not_exist(alone: None) -> None:
    """And its bytes say as much."""

    def model() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
        return _Summed(nn.Linear(3, 1)), (torch.ones(2, 3),)

    captured = capture_model(model)
    net, inputs = model()
    rank = LiveRank({"world": 1}, 0, captured)
    rank.observe(net, None, inputs)
    live = plan_of(captured, [rank])
    read = rank_from_bytes(rank_to_bytes(rank), captured)
    assert read.standing == rank.standing and set(read.standing) == {"weight", "bias", *captured.inputs}
    assert live == plan_of(captured, [read])
    dist.destroy_process_group()
    expected = capture_parallel(model, lambda *_: None, {"world": 1}, captured)
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    assert [step.op for track in live.tracks.values() for step in track.bodies["step"]] == [
        step.op for track in expected.tracks.values() for step in track.bodies["step"]
    ]


def test_bytes_that_are_no_trace(alone: None) -> None:
    captured = capture_model(lambda: (_Summed(nn.Linear(3, 1)), (torch.ones(2, 3),)))
    for data in (b"", b"not zlib", rank_to_bytes(LiveRank({"world": 1}, 0, captured))[:-9]):
        with pytest.raises(FormatError, match="the trace of a rank cannot be read"):
            rank_from_bytes(data, captured)
