"""Bugs of torch's own parallelisms on top of one another: FSDP over tensor parallelism."""

from __future__ import annotations

from functools import partial

import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Partial, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from tensure.capture import ParallelStep

from ._entry import Entry, Site
from ._llama import Llama, llama

__all__ = ["ENTRIES"]

MESH = {"dp": 2, "tp": 2}
ROWS = {"dp": Shard(0)}


def _layers(net: Llama, mesh: DeviceMesh) -> None:
    """Every block's layers are cut over TP, everything over DP."""
    plan = {
        "attention.wq": ColwiseParallel(),
        "attention.wk": ColwiseParallel(),
        "attention.wv": ColwiseParallel(),
        "attention.wo": RowwiseParallel(),
        "feed_forward.w1": ColwiseParallel(),
        "feed_forward.w3": ColwiseParallel(),
        "feed_forward.w2": RowwiseParallel(),
    }
    for block in net.blocks:
        parallelize_module(block, mesh["tp"], plan)
        fully_shard(block, mesh=mesh["dp"])
    fully_shard(net, mesh=mesh["dp"])


def _scaled(net: Llama, mesh: DeviceMesh, by_world: bool) -> ParallelStep:
    """Summed losses; FSDP averages their gradients, and a scale makes them those of the mean over tokens."""
    _layers(net, mesh)
    ranks = dist.get_world_size() if by_world else mesh["dp"].size()

    def step(tokens: Tensor, targets: Tensor) -> Tensor:
        mean = net(tokens, targets)
        (mean * tokens.numel()).backward()
        for parameter in net.parameters():
            parameter.grad *= ranks / (tokens.numel() * mesh["dp"].size())
        return mean.detach() / mesh["dp"].size()

    return ParallelStep(step, inputs=[ROWS, ROWS], outputs=[{"dp": Partial()}])


def _sequence_cut(net: Llama, mesh: DeviceMesh, final_norm: bool) -> ParallelStep:
    """Activations between layers are cut along the sequence. Without its place in the plan, the final norm
    works all the same: it sees plain tensors, and its weight is a plain one.
    """
    plan = {
        "attention_norm": SequenceParallel(),
        "attention": PrepareModuleInput(input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),)),
        "attention.wq": ColwiseParallel(),
        "attention.wk": ColwiseParallel(),
        "attention.wv": ColwiseParallel(),
        "attention.wo": RowwiseParallel(output_layouts=Shard(1)),
        "feed_forward_norm": SequenceParallel(),
        "feed_forward": PrepareModuleInput(input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),)),
        "feed_forward.w1": ColwiseParallel(),
        "feed_forward.w3": ColwiseParallel(),
        "feed_forward.w2": RowwiseParallel(output_layouts=Shard(1)),
    }
    around = {
        "embedding": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
        "head": ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate()),
    }
    if final_norm:
        around["norm"] = SequenceParallel()
    parallelize_module(net, mesh["tp"], around)
    for block in net.blocks:
        parallelize_module(block, mesh["tp"], plan)
        fully_shard(block, mesh=mesh["dp"])
    fully_shard(net, mesh=mesh["dp"])

    def step(tokens: Tensor, targets: Tensor) -> Tensor:
        loss = net(tokens, targets)
        loss.backward()
        return loss.detach() / mesh["dp"].size()

    return ParallelStep(step, inputs=[ROWS, ROWS], outputs=[{"dp": Partial()}])


ENTRIES = (
    Entry(
        "fsdp_gradients_scaled_by_world_size",
        "torchtune#2641",
        "FSDP averages gradients over DP; a scale takes that back by the number of all ranks, TP included.",
        MESH,
        partial(llama, batch=4),
        partial(_scaled, by_world=False),
        partial(_scaled, by_world=True),
        Site(("head.weight", "blocks.0.attention.wo.weight"), "mul"),
    ),
    Entry(
        "final_norm_left_out_of_plan",
        "Megatron-LM#1446",
        "The final norm sees a part of the sequence and is not in the plan: nothing sums its gradients.",
        MESH,
        partial(llama, batch=4),
        partial(_sequence_cut, final_norm=True),
        partial(_sequence_cut, final_norm=False),
        Site(("norm.weight",), "all_reduce"),
    ),
)
