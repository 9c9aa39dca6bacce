"""Bugs of a whole step in TrainVerify's study: a pipeline's move, and gradients reduced too early."""

from __future__ import annotations

from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Partial, Shard

from tensure.capture import ParallelStep

from ._entry import Entry, Site
from ._llama import HIDDEN, SEQUENCE, Llama, llama
from ._parallel import data_parallel_step, rank_at, reduce_gradients, sharded, tensor_parallel

__all__ = ["ENTRIES"]


def _pipeline(net: Llama, mesh: DeviceMesh, swapped: bool) -> ParallelStep:
    """Two stages of a cut block each, twice. Swapped: activations go to the other replica's second stage."""
    stage, replica = mesh.get_local_rank("pp"), mesh.get_local_rank("dp")
    tensor_parallel(net, mesh.get_group("tp"))
    forward_peer = rank_at(mesh, pp=1 - stage, dp=1 - replica if swapped else replica)
    backward_peer = rank_at(mesh, pp=1 - stage)
    if stage == 0:
        net.blocks[1] = nn.Identity()
        net.norm = net.head = None
    else:
        net.blocks[0] = nn.Identity()
        net.embedding = None

    def first(tokens: Tensor) -> Tensor:
        x = net.blocks[0](net.embedding(tokens))
        dist.send(x.detach(), forward_peer)
        gradient = torch.empty_like(x)
        dist.recv(gradient, backward_peer)
        x.backward(gradient)
        return torch.zeros(())

    def last(tokens: Tensor, targets: Tensor) -> Tensor:
        x = torch.empty(tokens.shape[0], SEQUENCE, HIDDEN)
        dist.recv(x, forward_peer)
        x.requires_grad_()
        logits = net.head(net.norm(net.blocks[1](x)))
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()) / mesh["dp"].size()
        loss.backward()
        dist.send(x.grad, backward_peer)
        return loss.detach()

    def step(tokens: Tensor, targets: Tensor) -> Tensor:
        loss = first(tokens) if stage == 0 else last(tokens, targets)
        reduce_gradients(net, mesh.get_group("dp"))
        return loss

    rows = {"dp": Shard(0)}
    return ParallelStep(
        step,
        inputs=[rows, rows],
        outputs=[{"dp": Partial(), "pp": Partial()}],
        parameters=sharded(net),
    )


def _accumulated(net: Llama, mesh: DeviceMesh, reduce_after: int) -> ParallelStep:
    """Two micro-batches a rank, and gradients summed over ranks after micro-batch number `reduce_after`."""
    num_micro_batches = 2
    share = 1.0 / (num_micro_batches * mesh["dp"].size())

    def step(tokens: Tensor, targets: Tensor) -> Tensor:
        total = torch.zeros(())
        batches = zip(tokens.chunk(num_micro_batches), targets.chunk(num_micro_batches), strict=True)
        for index, (some_tokens, some_targets) in enumerate(batches):
            loss = net(some_tokens, some_targets) * share
            loss.backward()
            total = total + loss.detach()
            if index == reduce_after:
                reduce_gradients(net, mesh.get_group("dp"))
        return total

    return data_parallel_step(net, mesh, step)


ENTRIES = (
    Entry(
        "wrong_rank_in_pipeline_move",
        "TrainVerify bug 6",
        "The first stage of each replica hands its activations to the second stage of the other one.",
        {"dp": 2, "pp": 2, "tp": 2},
        partial(llama, batch=4, num_blocks=2),
        partial(_pipeline, swapped=False),
        partial(_pipeline, swapped=True),
        Site(("loss",), "recv"),
    ),
    Entry(
        "reducer_before_last_micro_batch",
        "TrainVerify bug 14",
        "Gradients are summed over ranks before the last micro-batch has added its own.",
        {"dp": 2},
        partial(llama, batch=8),
        partial(_accumulated, reduce_after=1),
        partial(_accumulated, reduce_after=0),
        Site(("head.weight",), "all_reduce"),
    ),
)
