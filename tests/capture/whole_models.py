"""Small training steps and what makes them parallel, right and with a planted fault, as people write them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as fc
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

from tensure.capture import ParallelFunction, ParallelStep

BATCH, LENGTH, DIM, HEADS = 4, 4, 8, 4


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(DIM, DIM, bias=False) for _ in range(3))
        self.o = nn.Linear(DIM, DIM, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = (
            layer(x).view(batch, length, -1, DIM // HEADS).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        made = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(made.transpose(1, 2).reshape(batch, length, -1))


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(DIM, 2 * DIM, bias=False) for _ in range(2))
        self.down = nn.Linear(2 * DIM, DIM, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """Pre-norm block with a loss on targets."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(DIM, eps=1e-5), nn.RMSNorm(DIM, eps=1e-5)
        self.attention, self.mlp = Attention(), Mlp()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return F.mse_loss(x + self.mlp(self.norm2(x)), y)


class Net(nn.Module):
    """Two layers with biases."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(DIM, 2 * DIM), nn.Linear(2 * DIM, DIM)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(self.down(F.gelu(self.up(x))), y)


def block() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return Block(), (torch.randn(BATCH, LENGTH, DIM), torch.randn(BATCH, LENGTH, DIM))


def net() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return Net(), (torch.randn(BATCH, DIM), torch.randn(BATCH, DIM))


def backward(module: nn.Module, *inputs: Tensor) -> Tensor:
    loss: Tensor = module(*inputs)
    loss.backward()
    return loss


# --- DTensor ----------------------------------------------------------------------------------------


def tensor_parallel(module: Any, mesh: DeviceMesh) -> None:
    """The first products are cut by columns, the last by rows; the step is the usual one."""
    parallelize_module(
        module.mlp,
        mesh,
        {"gate": ColwiseParallel(), "up": ColwiseParallel(), "down": RowwiseParallel()},
    )
    parallelize_module(
        module.attention,
        mesh,
        {"q": ColwiseParallel(), "k": ColwiseParallel(), "v": ColwiseParallel(), "o": RowwiseParallel()},
    )


def _sequence_plan() -> dict[str, Any]:
    return {
        "norm1": SequenceParallel(use_local_output=False),
        "attention": PrepareModuleInput(input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),)),
        "attention.q": ColwiseParallel(),
        "attention.k": ColwiseParallel(),
        "attention.v": ColwiseParallel(),
        "attention.o": RowwiseParallel(output_layouts=Shard(1)),
        "norm2": SequenceParallel(use_local_output=False),
        "mlp": PrepareModuleInput(input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),)),
        "mlp.gate": ColwiseParallel(),
        "mlp.up": ColwiseParallel(),
        "mlp.down": RowwiseParallel(output_layouts=Shard(1)),
    }


class _Sequence(nn.Module):
    """The block on a cut sequence; the loss is this rank's share of the mean."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = x + self.block.attention(self.block.norm1(x))
        return F.mse_loss(x + self.block.mlp(self.block.norm2(x)), y)


def sequence_parallel(module: nn.Module, mesh: DeviceMesh, *, fault: str = "") -> ParallelStep:
    parallelize_module(module, mesh, _sequence_plan())
    local = _Sequence(module)
    count = 1 if fault == "the loss is not divided" else mesh.size()

    def step(x: Tensor, y: Tensor) -> Tensor:
        loss = local(x, y) / count
        loss.backward()
        for name, weight in module.named_parameters():
            if "norm" in name:
                # norm weights see a part of the sequence; their gradients are parts of a sum
                grad: Any = weight.grad
                if fault == "parts of a sum taken for the whole":
                    weight.grad = DTensor.from_local(grad.to_local(), mesh, [Replicate()], run_check=False)
                else:
                    weight.grad = grad.redistribute(placements=[Replicate()])
        return loss

    cut: Mapping[str, Any] = {"tp": Shard(1)}
    return ParallelStep(step, inputs=[cut, cut], outputs=[{"tp": Partial()}])


# --- FSDP2 ------------------------------------------------------------------------------------------

DATA: Mapping[str, Any] = {"dp": Shard(0)}
MEAN: Mapping[str, Any] = {"dp": Partial("avg")}


def fsdp(module: Any, mesh: DeviceMesh, *, fault: str = "") -> ParallelStep:
    for part in (module.attention, module.mlp):
        fully_shard(part, mesh=mesh)
    fully_shard(module, mesh=mesh)
    factor = 2.0 if fault == "the loss is doubled" else 1.0

    def step(x: Tensor, y: Tensor) -> Tensor:
        loss: Tensor = module(x, y)
        (loss * factor).backward()
        return loss

    return ParallelStep(step, inputs=[DATA, DATA], outputs=[MEAN])


def uneven_fsdp(module: Any, mesh: DeviceMesh) -> None:
    """No dim is a multiple of three; every rank sees all rows, so that gradients are their own mean."""
    for part in (module.up, module.down):
        fully_shard(part, mesh=mesh)
    fully_shard(module, mesh=mesh)


def hybrid_fsdp(module: Any, mesh: DeviceMesh) -> ParallelStep:
    """Shards along one axis, replicas along the other."""
    fully_shard(module, mesh=mesh)
    rows, mean = dict.fromkeys(("a", "b"), Shard(0)), dict.fromkeys(("a", "b"), Partial("avg"))
    return ParallelStep(lambda x, y: backward(module, x, y), inputs=[rows, rows], outputs=[mean])


def checkpointed(module: Any, mesh: DeviceMesh) -> None:
    """Recomputed in the backward pass, by wrappers that change parameters' paths, and compiled."""
    tensor_parallel(module, mesh)
    module.attention = checkpoint_wrapper(module.attention)
    module.mlp = checkpoint_wrapper(module.mlp)
    module.mlp.compile(backend="eager")


def tensor_parallel_fsdp(module: Any, mesh: DeviceMesh) -> ParallelStep:
    tensor_parallel(module, mesh["tp"])
    for part in (module.attention, module.mlp):
        fully_shard(part, mesh=mesh["dp"])
    fully_shard(module, mesh=mesh["dp"])
    return ParallelStep(lambda x, y: backward(module, x, y), inputs=[DATA, DATA], outputs=[MEAN])


# --- by hand ----------------------------------------------------------------------------------------


def data_parallel(
    module: nn.Module, mesh: DeviceMesh, microbatches: int = 2, *, fault: str = ""
) -> ParallelStep:
    """Micro-batches accumulate; then gradients are averaged."""
    group = mesh.get_group("dp")

    def step(x: Tensor, y: Tensor) -> Tensor:
        total = torch.zeros(())
        for xs, ys in zip(x.chunk(microbatches), y.chunk(microbatches), strict=True):
            loss = module(xs, ys) / microbatches
            loss.backward()
            total += loss.detach()
        for name, weight in module.named_parameters():
            assert weight.grad is not None
            if fault == "one reduction dropped" and name == "down.weight":
                continue
            dist.all_reduce(weight.grad, group=group)
            if not (fault == "one sum not divided" and name == "up.bias"):
                weight.grad.div_(mesh.size())
        return total

    return ParallelStep(step, inputs=[DATA, DATA], outputs=[MEAN])


class _Copied(torch.autograd.Function):
    """The same on all ranks; gradients are summed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        made = grads[0].contiguous().clone()
        dist.all_reduce(made, group=ctx.group)
        return made, None


class _Summed(torch.autograd.Function):
    """Parts are summed; the gradient is the same on all ranks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        made = x.clone()
        dist.all_reduce(made, group=group)
        return made

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def sliced_by_hand(module: Any, mesh: DeviceMesh, *, fault: str = "") -> ParallelStep:
    """Weights are cut in place, as scripts do it; collectives are autograd functions."""
    rank, size, group = mesh.get_local_rank("tp"), mesh.size(), mesh.get_group("tp")
    part = (2 * DIM) // size
    mine = slice(rank * part, (rank + 1) * part)
    other = slice(0, part) if fault == "a wrong slice" else mine
    up, down = module.up, module.down
    up.weight.data = up.weight.data[other]
    up.bias = nn.Parameter(up.bias[mine].detach().clone())
    down.weight.data = down.weight.data[:, mine].contiguous()

    def step(x: Tensor, y: Tensor) -> Tensor:
        x.requires_grad_(False)
        made = F.linear(F.gelu(up(_Copied.apply(x, group))), down.weight)
        made = made if fault == "the sum is dropped" else _Summed.apply(made, group)
        loss = F.mse_loss(made + down.bias, y)
        if fault == "the loss is a factor off":
            (loss * size).backward()
        else:
            loss.backward()
        return loss

    return ParallelStep(step)


def pipeline(module: Any, mesh: DeviceMesh, microbatches: int = 2, *, fault: str = "") -> ParallelStep:
    """Two stages: activations go forward, gradients come back, one micro-batch after the other."""
    first = mesh.get_local_rank("pp") == 0

    def step(x: Tensor, y: Tensor) -> Tensor:
        total = torch.zeros(())
        if first:
            for xs in x.chunk(microbatches):
                made = F.gelu(module.up(xs))
                dist.send(made.detach(), 1)
                grad = torch.empty_like(made)
                dist.recv(grad, 1)
                made.backward(grad * 2 if fault == "a gradient doubled on the way" else grad)
        else:
            for ys in y.chunk(microbatches):
                got = torch.empty(ys.shape[0], 2 * DIM, requires_grad=False)
                dist.recv(got, 0)
                got.requires_grad_()
                loss = F.mse_loss(module.down(got), ys) / (1 if fault == "not divided" else microbatches)
                loss.backward()
                assert got.grad is not None
                dist.send(got.grad, 0)
                total += loss.detach()
        dist.broadcast(total, 1)
        return total

    return ParallelStep(step)


def gathered(module: Any, mesh: DeviceMesh) -> ParallelStep:
    """ZeRO by hand with functional collectives: weights are cut, gathered for use, gradients scattered."""
    group, size, rank = mesh.get_group("dp"), mesh.size(), mesh.get_local_rank("dp")
    shards = {name: weight.detach().chunk(size)[rank].clone() for name, weight in module.named_parameters()}
    holder = nn.Module()
    for name, shard in shards.items():
        path, _, leaf = name.rpartition(".")
        if not hasattr(holder, path):
            holder.add_module(path, nn.Module())
        holder.get_submodule(path).register_parameter(leaf, nn.Parameter(shard))

    def step(x: Tensor, y: Tensor) -> Tensor:
        whole = {
            name: fc.all_gather_single_autograd(shard, 0, group) / 1
            for name, shard in holder.named_parameters()
        }
        loss: Tensor = torch.func.functional_call(module, whole, (x, y))
        (loss / size).backward()
        return loss

    return ParallelStep(step, module=holder, inputs=[DATA, DATA], outputs=[MEAN])


def wrapped(module: Any, mesh: DeviceMesh, *, fault: str = "") -> ParallelStep:
    """DistributedDataParallel over two micro-batches, synchronised with the last."""
    wrapper = DistributedDataParallel(module, process_group=mesh.get_group("dp"), bucket_cap_mb=0.0001)

    def step(x: Tensor, y: Tensor) -> Tensor:
        losses = []
        for at, (xs, ys) in enumerate(zip(x.chunk(2), y.chunk(2), strict=True)):
            apart = at == 0 or fault == "never synchronised"
            with wrapper.no_sync() if apart else contextlib.nullcontext():
                loss = wrapper(xs, ys) / 2
                loss.backward()
            losses.append(loss.detach())
        return losses[0] + losses[1]

    return ParallelStep(step, module=wrapper, inputs=[DATA, DATA], outputs=[MEAN])


class _Stage(nn.Module):
    def __init__(self, module: Any, first: bool) -> None:
        super().__init__()
        self.first = first
        if first:
            self.up = module.up
        else:
            self.down = module.down

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.up(x)) if self.first else self.down(x)


def scheduled(module: Any, mesh: DeviceMesh, *, fault: str = "") -> ParallelStep:
    """torch's own one-forward-one-backward schedule."""
    rank, count = mesh.get_local_rank("pp"), 2
    rows = BATCH // count
    between = torch.empty(rows, 2 * DIM, requires_grad=True)
    ends = [(torch.empty(rows, DIM), between), (between, torch.empty(rows, DIM, requires_grad=True))][rank]
    stage = _Stage(module, rank == 0)
    schedule = Schedule1F1B(
        PipelineStage(
            stage,
            rank,
            2,
            torch.device("cpu"),
            input_args=(ends[0],),
            output_args=(ends[1],),
            group=mesh.get_group("pp"),
        ),
        n_microbatches=count,
        loss_fn=F.mse_loss,
        scale_grads=fault != "gradients not scaled",
    )

    def step(x: Tensor, y: Tensor) -> Tensor:
        if rank == 0:
            schedule.step(x)
            return torch.zeros(())
        losses: list[Tensor] = []
        schedule.step(target=y, losses=losses)
        return torch.stack(losses).mean()

    return ParallelStep(step, module=stage, outputs=[{"pp": Partial()}])


class Experts(nn.Module):
    """As many experts as rows come in blocks: block e goes to expert e."""

    def __init__(self, count: int = 2) -> None:
        super().__init__()
        self.count = count
        self.mix = nn.Linear(DIM, DIM)
        self.experts = nn.Parameter(torch.randn(count, DIM, DIM))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        # [data block, expert block, rows, dim]: each data block has rows for every expert
        rows = self.mix(x).view(2, self.count, -1, DIM)
        made = torch.einsum("deri,eio->dero", rows, self.experts)
        return F.mse_loss(F.gelu(made).reshape(x.shape), y)


def experts() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return Experts(), (torch.randn(8, DIM), torch.randn(8, DIM))


def expert_parallel(module: Any, mesh: DeviceMesh, *, fault: str = "") -> ParallelStep:
    """Rows travel to the rank of their expert and back; what is replicated averages over ranks."""
    group, size, rank = mesh.get_group("ep"), mesh.size(), mesh.get_local_rank("ep")
    module.experts = nn.Parameter(module.experts[rank : rank + 1])

    def step(x: Tensor, y: Tensor) -> Tensor:
        sent = fc.all_to_all_single_autograd(module.mix(x), None, None, group)
        made = F.gelu(sent @ module.experts[0])
        loss = F.mse_loss(fc.all_to_all_single_autograd(made, None, None, group), y) / size
        loss.backward()
        dist.all_reduce(module.mix.weight.grad, group=group)
        dist.all_reduce(module.mix.bias.grad, group=group)
        if fault == "experts summed too":
            dist.all_reduce(module.experts.grad, group=group)
        return loss

    rows: Mapping[str, Any] = {"ep": Shard(0)}
    return ParallelStep(step, inputs=[rows, rows], outputs=[{"ep": Partial()}])


@dataclass(frozen=True)
class Whole:
    """A model, what makes it parallel, a mesh."""

    model: Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]
    parallel: ParallelFunction
    mesh: Mapping[str, int]


RIGHT: dict[str, Whole] = {
    "tensor parallel": Whole(block, tensor_parallel, {"tp": 2}),
    "tensor parallel of 4": Whole(block, tensor_parallel, {"tp": 4}),
    "sequence parallel": Whole(block, sequence_parallel, {"tp": 2}),
    "fsdp": Whole(block, fsdp, {"dp": 2}),
    "fsdp of 4": Whole(block, fsdp, {"dp": 4}),
    "fsdp of uneven parts": Whole(net, uneven_fsdp, {"dp": 3}),
    "fsdp with replicas": Whole(net, hybrid_fsdp, {"a": 2, "b": 2}),
    "tensor parallel, checkpointed and compiled": Whole(block, checkpointed, {"tp": 2}),
    "tensor parallel and fsdp": Whole(block, tensor_parallel_fsdp, {"dp": 2, "tp": 2}),
    "data parallel": Whole(net, data_parallel, {"dp": 2}),
    "sliced by hand": Whole(net, sliced_by_hand, {"tp": 4}),
    "pipeline": Whole(net, pipeline, {"pp": 2}),
    "distributed data parallel": Whole(net, wrapped, {"dp": 2}),
    "torch's schedule": Whole(net, scheduled, {"pp": 2}),
    "expert parallel": Whole(experts, expert_parallel, {"ep": 2}),
    "gathered by hand": Whole(net, gathered, {"dp": 2}),
}


def _with(parallel: Any, fault: str) -> ParallelFunction:
    return lambda module, mesh: parallel(module, mesh, fault=fault)  # type: ignore[no-any-return]


WRONG: dict[str, tuple[Whole, str]] = {
    fault: (Whole(model, _with(parallel, fault), mesh), local)
    for fault, model, parallel, mesh, local in (
        ("one reduction dropped", net, data_parallel, {"dp": 2}, "grad.down.weight"),
        ("one sum not divided", net, data_parallel, {"dp": 2}, "grad.up.bias"),
        ("a wrong slice", net, sliced_by_hand, {"tp": 4}, "loss"),
        ("the sum is dropped", net, sliced_by_hand, {"tp": 4}, "loss"),
        ("the loss is a factor off", net, sliced_by_hand, {"tp": 4}, "grad.up.weight"),
        ("a gradient doubled on the way", net, pipeline, {"pp": 2}, "grad.up.weight"),
        ("not divided", net, pipeline, {"pp": 2}, "grad.down.weight"),
        ("never synchronised", net, wrapped, {"dp": 2}, "grad.up.weight"),
        ("gradients not scaled", net, scheduled, {"pp": 2}, "grad.down.weight"),
        ("experts summed too", experts, expert_parallel, {"ep": 2}, "grad.experts"),
        ("the loss is doubled", block, fsdp, {"dp": 2}, "grad.attention.q.weight"),
        ("parts of a sum taken for the whole", block, sequence_parallel, {"tp": 2}, "grad.norm1.weight"),
        ("the loss is not divided", block, sequence_parallel, {"tp": 2}, "grad.attention.q.weight"),
    )
}
"""By fault: the step, and a local that must be found wrong."""
