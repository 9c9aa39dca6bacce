"""A transfer that nobody waited for, where its tensors are used; and all the ways to wait for one."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Partial, Shard
from torch.nn.parallel import DistributedDataParallel

import tensure
from tensure.capture import ParallelStep
from tensure.errors import InputError

ROWS = {"dp": Shard(0)}
Grads = list[torch.Tensor]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (self.down(torch.relu(self.up(x))) - y).pow(2).mean()


def model() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    return Net(), (torch.randn(4, 4), torch.randn(4, 4))


def reduced(reduce: Callable[[Grads, Any], None]) -> Callable[[nn.Module, DeviceMesh], ParallelStep]:
    """Replicas whose gradients `reduce` makes means of."""

    def parallel(net: nn.Module, mesh: DeviceMesh) -> ParallelStep:
        def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            loss: torch.Tensor = net(x, y)
            loss.backward()  # type: ignore[no-untyped-call]
            reduce([p.grad for p in net.parameters() if p.grad is not None], mesh.get_group("dp"))
            return loss

        return ParallelStep(step, inputs=(ROWS, ROWS), outputs=({"dp": Partial("avg")},))

    return parallel


def status(parallel: Any) -> str:
    return tensure.prove(parallel, model, mesh={"dp": 2}, replay=False).proof.values.status


def waited(grads: Grads, group: Any) -> None:
    works = [dist.all_reduce(grad, group=group, async_op=True) for grad in grads]
    for grad, work in zip(grads, works, strict=True):
        work.wait()
        grad.div_(2)


def by_future(grads: Grads, group: Any) -> None:
    for grad in grads:
        dist.all_reduce(grad, group=group, async_op=True).get_future().wait()
        grad.div_(2)


def polled(grads: Grads, group: Any) -> None:
    for grad in grads:
        work = dist.all_reduce(grad, group=group, async_op=True)
        while not work.is_completed():
            pass
        grad.div_(2)


def in_turn(grads: Grads, group: Any) -> None:
    """The elements of one bucket are used while those of the next are under way; views are no use."""
    flat = torch.cat([grad.reshape(-1) for grad in grads])
    half = flat.numel() // 2
    works = [dist.all_reduce(flat[:half], group=group, async_op=True)]
    works.append(dist.all_reduce(flat[half:], group=group, async_op=True))
    pieces = flat.split([grad.numel() for grad in grads])
    works[0].wait()
    flat[:half] /= 2
    works[1].wait()
    flat[half:] /= 2
    for grad, piece in zip(grads, pieces, strict=True):
        grad.copy_(piece.view_as(grad))


def one_after_another(grads: Grads, group: Any) -> None:
    """A group does its collectives in order: a second one may take what the first one leaves."""
    for grad in grads:
        dist.all_reduce(grad, group=group, async_op=True)
        dist.broadcast(grad, group_src=0, group=group)
        dist.all_reduce(grad, group=group, async_op=True).wait()
        grad.div_(4)


@pytest.mark.parametrize("reduce", [waited, by_future, polled, in_turn])
def test_who_waits_is_heard(reduce: Callable[[Grads, Any], None]) -> None:
    assert status(reduced(reduce)) in ("proved", "probable")


def divided(grads: Grads, group: Any) -> None:
    for grad in grads:
        dist.all_reduce(grad, group=group, async_op=True)
        grad.div_(2)


def in_wrong_turn(grads: Grads, group: Any) -> None:
    flat = torch.cat([grad.reshape(-1) for grad in grads])
    half = flat.numel() // 2
    works = [dist.all_reduce(part, group=group, async_op=True) for part in (flat[:half], flat[half:])]
    works[0].wait()
    flat /= 2
    works[1].wait()


def never(grads: Grads, group: Any) -> None:
    for grad in grads:
        grad.div_(2)
        dist.all_reduce(grad, group=group, async_op=True)


def gathered(grads: Grads, group: Any) -> None:
    for grad in grads:
        both = [torch.empty_like(grad) for _ in range(2)]
        work = dist.all_gather(both, grad, group=group, async_op=True)
        grad.zero_()  # what is sent is not sent yet
        work.wait()
        grad.copy_((both[0] + both[1]) / 2)


@pytest.mark.parametrize(
    ("reduce", "words"),
    [
        (divided, "is written while allreduce at test_pending.py:"),
        (in_wrong_turn, "is written while allreduce at test_pending.py:"),
        (never, "grad.up.weight is left while allreduce at test_pending.py:"),
        (gathered, "is written while allgather at test_pending.py:"),
    ],
)
def test_who_does_not_is_told_both_lines(reduce: Callable[[Grads, Any], None], words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)) as caught:
        status(reduced(reduce))
    assert "test_pending.py:" in str(caught.value).partition(" ")[0]


def test_a_message_is_read_before_it_is_there() -> None:
    def messages(wait: bool) -> Callable[[Grads, Any], None]:
        def reduce(grads: Grads, group: Any) -> None:
            other = 1 - dist.get_rank(group)
            for grad in grads:
                theirs = torch.empty_like(grad)
                works = [dist.isend(grad, other, group), dist.irecv(theirs, other, group)]
                if wait:
                    for work in works:
                        assert work is not None
                        work.wait()
                mean = (grad + theirs) / 2
                grad.copy_(mean)

        return reduce

    assert status(reduced(messages(wait=True))) == "proved"
    with pytest.raises(InputError, match=r"is read while recv at test_pending\.py:"):
        status(reduced(messages(wait=False)))


def test_collectives_one_after_another_are_let_be() -> None:
    assert status(reduced(one_after_another)) == "proved"


def test_what_torch_starts_by_itself_is_waited_for() -> None:
    def backward(net: nn.Module) -> ParallelStep:
        def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            loss: torch.Tensor = net(x, y)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        outs = ({"dp": Partial("avg")},)
        return ParallelStep(step, module=net, inputs=(ROWS, ROWS), outputs=outs)

    def ddp(net: nn.Module, mesh: DeviceMesh) -> ParallelStep:
        return backward(DistributedDataParallel(net, process_group=mesh.get_group("dp")))

    def sharded(net: nn.Module, mesh: DeviceMesh) -> ParallelStep:
        fully_shard(net, mesh=mesh["dp"])
        return backward(net)

    assert status(ddp) == "proved" and status(sharded) == "proved"
