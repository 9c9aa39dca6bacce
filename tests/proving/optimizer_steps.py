"""Training steps with an optimizer: one device, its parallel twins, and twins with one mistake each.

Everything is plain PyTorch. `fault` names the mistake of a twin; a twin without is right.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Partial, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_, clip_grads_with_norm_
from torch.optim import Optimizer

from tensure.capture import ParallelStep, TrainingStep

LR: Final = 1e-3
MAX_NORM: Final = 0.5
Make = Callable[[Iterable[Any]], Optimizer]


class Net(nn.Module):
    """Two layers and a loss."""

    def __init__(self, hidden: int = 8, inner: int = 16) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.up = nn.Linear(hidden, inner)
        self.down = nn.Linear(inner, hidden)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return (x + self.down(torch.relu(self.up(self.norm(x)))) - target).pow(2).mean()


def adamw(parameters: Iterable[Any], **options: Any) -> Optimizer:
    return torch.optim.AdamW(parameters, lr=LR, **options)


def model(
    make: Make = adamw,
    *,
    clip: bool = False,
    hidden: int = 8,
    inner: int = 16,
    rows: int = 8,
    normed: bool = True,
) -> Callable[[], TrainingStep]:
    """The step on one device."""

    def single() -> TrainingStep:
        net = Net(hidden, inner)
        if not normed:
            net.norm = nn.Identity()  # type: ignore[assignment]
        optimizer = make(net.parameters())

        def step(x: Tensor, target: Tensor) -> Tensor:
            loss: Tensor = net(x, target)
            loss.backward()  # type: ignore[no-untyped-call]
            if clip:
                clip_grad_norm_(net.parameters(), MAX_NORM)
            optimizer.step()
            return loss

        return TrainingStep(net, (torch.randn(rows, hidden), torch.randn(rows, hidden)), step, optimizer)

    return single


def data_parallel(step: Callable[..., Any], **named: Any) -> ParallelStep:
    rows = {"dp": Shard(0)}
    return ParallelStep(step, inputs=(rows, rows), outputs=({"dp": Partial("avg")},), **named)


def with_options(optimizer: Optimizer, **options: Any) -> None:
    for group in optimizer.param_groups:
        group.update(options)


@contextlib.contextmanager
def ahead(optimizer: Optimizer, wrong: bool) -> Iterator[None]:
    """Count one step too many for as long as it lasts."""
    for state in optimizer.state.values() if wrong else ():
        state["step"] += 1
    yield
    for state in optimizer.state.values() if wrong else ():
        state["step"] -= 1


# --- twins ------------------------------------------------------------------------------------------


def ddp(make: Make = adamw, *, clip: bool = False, fault: str = "") -> Any:
    """DistributedDataParallel."""

    def parallel(net: Any, mesh: DeviceMesh) -> ParallelStep:
        module = DistributedDataParallel(net, process_group=mesh.get_group("dp"))
        optimizer = make(module.parameters())
        if fault == "betas swapped" and mesh.get_local_rank("dp") == 3:
            with_options(optimizer, betas=(0.999, 0.9))

        def step(x: Tensor, target: Tensor) -> Tensor:
            loss: Tensor = module(x, target)
            loss.backward()  # type: ignore[no-untyped-call]
            if clip:
                clip_grad_norm_(module.parameters(), MAX_NORM)
            with ahead(optimizer, fault == "wrong step" and mesh.get_local_rank("dp") == 2):
                optimizer.step()
            return loss

        return data_parallel(step, module=module, optimizer=optimizer)

    return parallel


def by_hand(make: Make = adamw, *, fault: str = "") -> Any:
    """Gradients averaged by hand, then clipped."""

    def parallel(net: Any, mesh: DeviceMesh) -> ParallelStep:
        optimizer = make(net.parameters())

        def step(x: Tensor, target: Tensor) -> Tensor:
            loss: Tensor = net(x, target)
            loss.backward()  # type: ignore[no-untyped-call]
            for parameter in net.parameters():
                kind = dist.ReduceOp.SUM if fault == "sum for mean" else dist.ReduceOp.AVG
                dist.all_reduce(parameter.grad, op=kind, group=mesh.get_group("dp"))
            clip_grad_norm_(net.parameters(), MAX_NORM)
            optimizer.step()
            return loss

        return data_parallel(step, optimizer=optimizer)

    return parallel


def fsdp(make: Make = adamw, *, clip: bool = False, fault: str = "") -> Any:
    """FSDP2: states on shards."""

    def parallel(net: Any, mesh: DeviceMesh) -> ParallelStep:
        fully_shard(net.up, mesh=mesh["dp"])
        fully_shard(net, mesh=mesh["dp"])
        optimizer = make(net.parameters())
        if fault == "decay on one shard" and mesh.get_local_rank("dp") != 1:
            with_options(optimizer, weight_decay=0.0)

        def step(x: Tensor, target: Tensor) -> Tensor:
            loss: Tensor = net(x, target)
            loss.backward()  # type: ignore[no-untyped-call]
            if fault == "norm of own shards":
                own = [parameter.grad.to_local() for parameter in net.parameters()]
                total = nn.utils.get_total_norm(own)
                for grad in own:
                    grad.mul_(torch.clamp(MAX_NORM / (total + 1e-6), max=1.0))
            elif clip:
                clip_grad_norm_(net.parameters(), MAX_NORM)
            optimizer.step()
            return loss

        return data_parallel(step, optimizer=optimizer)

    return parallel


def tensor_parallel(make: Make = adamw, *, clip: bool = False) -> Any:
    """DTensor: weights cut along both dims, a bias and a norm that every rank has."""

    def parallel(net: Any, mesh: DeviceMesh) -> ParallelStep:
        parallelize_module(net, mesh["tp"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
        # Plain tensors and DTensors do not stand in one list or stack: two groups.
        cut = [net.up.weight, net.up.bias, net.down.weight, net.down.bias]
        whole = list(net.norm.parameters())
        optimizer = make([{"params": cut}, {"params": whole}])

        def step(x: Tensor, target: Tensor) -> Tensor:
            loss: Tensor = net(x, target)
            loss.backward()  # type: ignore[no-untyped-call]
            if clip:
                norms = [nn.utils.get_total_norm([p.grad for p in part]) for part in (cut, whole)]
                norms = [item.full_tensor() if hasattr(item, "full_tensor") else item for item in norms]
                total = torch.linalg.vector_norm(torch.stack(norms))
                for part in (cut, whole):
                    clip_grads_with_norm_(part, MAX_NORM, total)
            optimizer.step()
            return loss

        return ParallelStep(step, optimizer=optimizer)

    return parallel


def fsdp_over_tensor_parallel() -> Any:
    """A mesh of two axes: norms are summed over both."""

    def parallel(net: Any, mesh: DeviceMesh) -> ParallelStep:
        net.norm = nn.Identity()  # every parameter a DTensor, of one list
        parallelize_module(net, mesh["tp"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
        fully_shard(net, mesh=mesh["dp"])
        optimizer = adamw(net.parameters(), foreach=True)

        def step(x: Tensor, target: Tensor) -> Tensor:
            loss: Tensor = net(x, target)
            loss.backward()  # type: ignore[no-untyped-call]
            clip_grad_norm_(net.parameters(), MAX_NORM)
            optimizer.step()
            return loss

        return data_parallel(step, optimizer=optimizer)

    return parallel


def pipeline() -> Any:
    """Two stages, each with an optimizer of its own parameters; the norm is that of both."""

    def parallel(net: Any, mesh: DeviceMesh) -> ParallelStep:
        rank, group = mesh.get_local_rank("pp"), mesh.get_group("pp")
        stage = nn.ModuleDict({"up": net.up} if rank == 0 else {"down": net.down})
        optimizer = adamw(stage.parameters())

        def step(x: Tensor, target: Tensor) -> Tensor:
            loss = torch.zeros(())
            if rank == 0:
                sent = torch.relu(net.up(x))
                dist.send(sent.detach(), 1)
                grad = torch.empty_like(sent)
                dist.recv(grad, 1)
                sent.backward(grad)  # type: ignore[no-untyped-call]
            else:
                got = torch.empty(x.shape[0], net.down.in_features)
                dist.recv(got, 0)
                got.requires_grad_()
                loss = (x + net.down(got) - target).pow(2).mean()
                loss.backward()  # type: ignore[no-untyped-call]
                assert got.grad is not None
                dist.send(got.grad, 0)
            own = [p.grad.pow(2).sum() for p in stage.parameters() if p.grad is not None]
            square = torch.stack(own).sum()
            dist.all_reduce(square, group=group)
            clip_grads_with_norm_(list(stage.parameters()), MAX_NORM, square.sqrt())
            optimizer.step()
            return loss.detach()

        return ParallelStep(step, module=stage, outputs=({"pp": Partial()},), optimizer=optimizer)

    return parallel


def cut_by_hand(*, fault: str = "") -> Any:
    """Tensor parallelism and clipping by hand: squares of shards are summed over ranks, others are not."""

    def parallel(net: Any, mesh: DeviceMesh) -> ParallelStep:
        group, rank, size = mesh.get_group("tp"), mesh.get_local_rank("tp"), mesh["tp"].size()
        net.up.weight = nn.Parameter(net.up.weight.chunk(size)[rank])
        net.up.bias = nn.Parameter(net.up.bias.chunk(size)[rank])
        net.down.weight = nn.Parameter(net.down.weight.chunk(size, dim=1)[rank])
        shards = [net.up.weight, net.up.bias, net.down.weight]
        whole = [net.norm.weight, net.norm.bias, net.down.bias]
        optimizer = adamw(net.parameters())

        def step(x: Tensor, target: Tensor) -> Tensor:
            h = Summed.apply(net.norm(x), group)
            part = nn.functional.linear(torch.relu(net.up(h)), net.down.weight)
            y = Reduced.apply(part, group) + net.down.bias
            loss: Tensor = (x + y - target).pow(2).mean()
            loss.backward()  # type: ignore[no-untyped-call]
            squares = torch.stack([p.grad.pow(2).sum() for p in shards]).sum()
            rest = torch.stack([p.grad.pow(2).sum() for p in whole]).sum()
            if fault == "replicated norm twice":
                squares, rest = squares + rest, torch.zeros(())
            if fault != "norm of own shards":
                dist.all_reduce(squares, group=group)
            clip_grads_with_norm_(net.parameters(), MAX_NORM, (squares + rest).sqrt())
            optimizer.step()
            return loss

        return ParallelStep(step, optimizer=optimizer)

    return parallel


class Summed(torch.autograd.Function):
    """The gradient is summed over the group."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        total = grads[0].clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


class Reduced(torch.autograd.Function):
    """The sum over the group, whose gradient is the same on every rank."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        total = x.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0], None


def zero_redundancy(*, clip: bool = False) -> Any:
    """torch's own ZeRO-1: each rank steps some of the parameters, and sends them to the others."""

    def parallel(net: Any, mesh: DeviceMesh) -> ParallelStep:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what torch itself imports there
            from torch.distributed.optim import ZeroRedundancyOptimizer
        group = mesh.get_group("dp")
        module = DistributedDataParallel(net, process_group=group)
        optimizer = ZeroRedundancyOptimizer(
            module.parameters(), torch.optim.AdamW, process_group=group, lr=LR
        )

        def step(x: Tensor, target: Tensor) -> Tensor:
            loss: Tensor = module(x, target)
            loss.backward()  # type: ignore[no-untyped-call]
            if clip:
                clip_grad_norm_(module.parameters(), MAX_NORM)
            optimizer.step()
            return loss

        return data_parallel(step, module=module, optimizer=optimizer)

    return parallel


def zero(stage: int, *, clip: bool = False, fault: str = "") -> Any:
    """ZeRO by hand: rows of every parameter are stepped on one rank each, and gathered.

    Stage 1 averages whole gradients on every rank, stage 2 scatters them.
    """

    def parallel(net: Any, mesh: DeviceMesh) -> ParallelStep:
        group, rank, size = mesh.get_group("dp"), mesh.get_local_rank("dp"), mesh["dp"].size()
        parameters = list(net.parameters())
        shards = [nn.Parameter(p.detach().chunk(size)[rank].clone()) for p in parameters]
        optimizer = adamw(shards)

        def step(x: Tensor, target: Tensor) -> Tensor:
            loss: Tensor = net(x, target)
            loss.backward()  # type: ignore[no-untyped-call]
            for whole, shard in zip(parameters, shards, strict=True):
                grad = whole.grad
                assert grad is not None
                if fault == "unreduced gradient" and whole is net.up.weight:
                    shard.grad = grad.chunk(size)[rank]
                elif stage == 1:
                    dist.all_reduce(grad, op=dist.ReduceOp.AVG, group=group)
                    shard.grad = grad.chunk(size)[rank]
                else:
                    shard.grad = torch.empty_like(shard)
                    dist.reduce_scatter_tensor(shard.grad, grad, op=dist.ReduceOp.AVG, group=group)
                    whole.grad = None
            if clip:
                squares = torch.stack([shard.grad.pow(2).sum() for shard in shards]).sum()
                dist.all_reduce(squares, group=group)
                clip_grads_with_norm_(shards, MAX_NORM, squares.sqrt())
            stale = [shard.detach().clone() for shard in shards]
            optimizer.step()
            with torch.no_grad():
                for whole, shard, old in zip(parameters, shards, stale, strict=True):
                    is_stale = fault == "stale parameter" and whole is net.down.weight
                    dist.all_gather_into_tensor(whole, old if is_stale else shard.detach(), group=group)
            return loss

        return data_parallel(step, optimizer=optimizer)

    return parallel


def zero_flat(make: Make = adamw, *, fault: str = "") -> Any:
    """All parameters one after another, filled up with zeros and cut into equal parts, wherever that is."""

    def parallel(net: Any, mesh: DeviceMesh) -> ParallelStep:
        group, rank, size = mesh.get_group("dp"), mesh.get_local_rank("dp"), mesh["dp"].size()
        parameters = list(net.parameters())

        def laid(tensors: list[Any]) -> Tensor:
            flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
            return torch.cat([flat, flat.new_zeros(-len(flat) % size)])

        shard = nn.Parameter(laid(parameters).chunk(size)[rank].clone())
        optimizer = make([shard])

        def step(x: Tensor, target: Tensor) -> Tensor:
            loss: Tensor = net(x, target)
            loss.backward()  # type: ignore[no-untyped-call]
            grads = laid([p.grad for p in parameters])
            shard.grad = torch.empty_like(shard)
            op = dist.ReduceOp.SUM if fault == "sum for mean" else dist.ReduceOp.AVG
            dist.reduce_scatter_tensor(shard.grad, grads, op=op, group=group)
            optimizer.step()
            with torch.no_grad():
                whole, at = torch.empty_like(grads), 0
                dist.all_gather_into_tensor(whole, shard.detach(), group=group)
                for parameter in parameters:
                    parameter.copy_(whole[at : at + parameter.numel()].view(parameter.shape))
                    at += parameter.numel()
            return loss

        return data_parallel(step, optimizer=optimizer)

    return parallel


class Momentum(Optimizer):
    """An optimizer of our own; its moment takes the gradient before it is reduced, if that is the fault."""

    def __init__(self, parameters: Iterable[Any], group: Any = None, fault: str = "") -> None:
        super().__init__(parameters, {"lr": LR, "momentum": 0.9})
        self.process_group, self.fault = group, fault

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                state, grad = self.state[parameter], parameter.grad
                moment = state.setdefault("moment", torch.zeros_like(parameter))
                if self.fault:
                    moment.mul_(group["momentum"]).add_(grad)
                if self.process_group is not None:
                    dist.all_reduce(grad, op=dist.ReduceOp.AVG, group=self.process_group)
                if not self.fault:
                    moment.mul_(group["momentum"]).add_(grad)
                parameter.sub_(group["lr"] * (grad + moment))


def own_momentum(*, fault: str = "") -> Any:
    """Data parallelism whose optimizer reduces the gradients."""

    def parallel(net: Any, mesh: DeviceMesh) -> ParallelStep:
        optimizer = Momentum(net.parameters(), mesh.get_group("dp"), fault)

        def step(x: Tensor, target: Tensor) -> Tensor:
            loss: Tensor = net(x, target)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            return loss

        return data_parallel(step, optimizer=optimizer)

    return parallel
