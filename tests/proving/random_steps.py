"""Training steps with dropout, on one device and on ranks; each twin right, and with one fault."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Partial, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils.checkpoint import checkpoint

from tensure.capture import ParallelStep

BATCH, HIDDEN, INNER = 8, 8, 16
ROWS = {"dp": Shard(0)}


class Net(nn.Module):
    """Dropout of the inner features, and of what is added to the input."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(HIDDEN, INNER)
        self.down = nn.Linear(INNER, HIDDEN, bias=False)
        self.inner, self.outer = nn.Dropout(0.25), nn.Dropout(0.5)

    def hidden(self, x: Tensor) -> Tensor:
        return self.inner(torch.relu(self.up(x)))

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.outer(self.down(self.hidden(x)))).pow(2).mean()


def model() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return Net(), (torch.randn(BATCH, HIDDEN),)


# --- tensor parallel ----------------------------------------------------------------------------------


def by_dtensor(net: Any, mesh: DeviceMesh) -> None:
    """Distributed tensors see to their own draws: the inner features are cut, the rest is whole."""
    torch.manual_seed(1)
    parallelize_module(
        net, mesh["tp"], {"up": ColwiseParallel(use_local_output=False), "down": RowwiseParallel()}
    )


def by_dtensor_as_local(net: Any, mesh: DeviceMesh) -> None:
    """The fault: inner features are plain tensors, and nobody tells their dropout that they are cut."""
    torch.manual_seed(1)
    parallelize_module(net, mesh["tp"], {"up": ColwiseParallel(), "down": RowwiseParallel()})


class _Reduced(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        return funcol.all_reduce(x, "sum", group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad, None


class Tracker:
    """One more state of the generator, for what is cut, as Megatron keeps it."""

    def __init__(self, seed: int) -> None:
        kept = torch.get_rng_state()
        torch.manual_seed(seed)
        self.state = torch.get_rng_state()
        torch.set_rng_state(kept)

    @contextmanager
    def fork(self) -> Iterator[None]:
        kept = torch.get_rng_state()
        torch.set_rng_state(self.state)
        try:
            yield
        finally:
            self.state = torch.get_rng_state()
            torch.set_rng_state(kept)


def by_seeds(inner_seed: Callable[[int], int], outer_seed: Callable[[int], int]) -> Any:
    """Features cut by hand; a seed for each of both dropouts."""

    def parallel(net: Any, mesh: DeviceMesh) -> ParallelStep:
        group, rank, size = mesh.get_group("tp"), mesh.get_local_rank("tp"), mesh["tp"].size()
        net.up.weight = nn.Parameter(net.up.weight.chunk(size)[rank])
        net.up.bias = nn.Parameter(net.up.bias.chunk(size)[rank])
        net.down.weight = nn.Parameter(net.down.weight.chunk(size, dim=1)[rank])
        torch.manual_seed(outer_seed(rank))
        tracker = Tracker(inner_seed(rank))

        def step(x: Tensor) -> Tensor:
            h = torch.relu(net.up(x))
            with tracker.fork():
                h = net.inner(h)  # inner
            y = _Reduced.apply(F.linear(h, net.down.weight), group)
            loss: Tensor = (x + net.outer(y)).pow(2).mean()  # outer
            loss.backward()
            return loss

        return ParallelStep(step)

    return parallel


class _Scattered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group, size = group, dist.get_world_size(group)
        made = x.new_empty((x.shape[0] // size, *x.shape[1:]))
        dist.reduce_scatter_single(made, x.contiguous(), group=group)
        return made

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        size = dist.get_world_size(ctx.group)
        made = grad.new_empty((grad.shape[0] * size, *grad.shape[1:]))
        dist.all_gather_single(made, grad.contiguous(), group=ctx.group)
        return made, None


def sequence_parallel(seed: Callable[[int], int]) -> Any:
    """Between the products every rank has its own rows, and drops out of these."""

    def parallel(net: Any, mesh: DeviceMesh) -> ParallelStep:
        group, rank, size = mesh.get_group("tp"), mesh.get_local_rank("tp"), mesh["tp"].size()
        net.up.weight = nn.Parameter(net.up.weight.chunk(size)[rank])
        net.up.bias = nn.Parameter(net.up.bias.chunk(size)[rank])
        net.down.weight = nn.Parameter(net.down.weight.chunk(size, dim=1)[rank])
        torch.manual_seed(seed(rank))

        def step(x: Tensor) -> Tensor:
            h = net.inner(torch.relu(net.up(x)))
            y = _Scattered.apply(F.linear(h, net.down.weight), group)
            rows = x.chunk(size)[rank]
            loss: Tensor = (rows + net.outer(y)).pow(2).sum() / (BATCH * HIDDEN)  # outer
            loss.backward()
            return loss

        return ParallelStep(step, outputs=[{"tp": Partial()}])

    return parallel


# --- data parallel ------------------------------------------------------------------------------------


def replicas(seed: Callable[[Any], int] | None, change: Callable[[Any], Any] = lambda net: None) -> Any:
    """Each rank its own rows; gradients are averaged."""

    def parallel(net: Any, mesh: DeviceMesh) -> ParallelStep:
        if seed is not None:
            torch.manual_seed(seed(mesh.get_local_rank("dp")))
        change(net)

        def step(x: Tensor) -> Tensor:
            loss: Tensor = net(x)
            loss.backward()
            for weight in net.parameters():
                dist.all_reduce(weight.grad, group=mesh.get_group("dp"))
                weight.grad /= mesh["dp"].size()
            return loss

        return ParallelStep(step, inputs=[ROWS], outputs=[{"dp": Partial("avg")}])

    return parallel


def fully_sharded(seed: Callable[[Any], int]) -> Any:
    def parallel(net: Any, mesh: DeviceMesh) -> ParallelStep:
        torch.manual_seed(seed(mesh.get_local_rank("dp")))
        for part in (net.up, net.down, net):
            fully_shard(part, mesh=mesh["dp"])

        def step(x: Tensor) -> Tensor:
            loss: Tensor = net(x)
            loss.backward()
            return loss

        return ParallelStep(step, inputs=[ROWS], outputs=[{"dp": Partial("avg")}])

    return parallel


def recomputed(*, keep: bool) -> Callable[[Any], None]:
    """The inner features are made again in the backward pass."""

    def change(net: Any) -> None:
        net.hidden = lambda x: checkpoint(
            lambda x: Net.hidden(net, x), x, use_reentrant=False, preserve_rng_state=keep
        )

    return change


def recomputed_by_hand(*, restore: bool) -> Callable[[Any], None]:
    """Likewise, by a function of one's own, that restores the generator or forgets to."""

    class Again(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, net: Any) -> Tensor:
            ctx.net, ctx.state = net, torch.get_rng_state()
            ctx.save_for_backward(x)
            return Net.hidden(net, x)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            (x,) = ctx.saved_tensors
            kept = torch.get_rng_state()
            if restore:
                torch.set_rng_state(ctx.state)
            with torch.enable_grad():
                y = Net.hidden(ctx.net, x.detach())
            torch.set_rng_state(kept)
            weight, bias = torch.autograd.grad(y, [ctx.net.up.weight, ctx.net.up.bias], grad)
            return None, weight, bias, None

    def change(net: Any) -> None:
        net.hidden = lambda x: Again.apply(x, net.up.weight, net.up.bias, net)

    return change
