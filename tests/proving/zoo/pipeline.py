"""Bugs of pipeline parallelism: a weight that two stages share."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Partial, Shard

from tensure.capture import ParallelStep

from ._entry import Entry, Site
from ._llama import HIDDEN, SEQUENCE, Llama, llama
from ._parallel import rank_at, reduce_scatter

__all__ = ["ENTRIES"]

NUM_MICRO_BATCHES = 2


def _stage(net: Llama, stage: int) -> None:
    """Leaves of the net what one of two stages needs. Both keep the tied weight."""
    net.blocks[1 - stage] = nn.Identity()
    if stage == 0:
        net.norm = net.head = None


def _run_stage(net: Llama, mesh: DeviceMesh, tokens: Tensor, targets: Tensor) -> Tensor:
    """Forward of all micro-batches, then backward of all; gives the loss on the last stage, zero before."""
    stage = mesh.get_local_rank("pp")
    peer = rank_at(mesh, pp=1 - stage)
    share = 1.0 / (NUM_MICRO_BATCHES * mesh["dp"].size())
    total = torch.zeros(())
    crossed: list[Tensor] = []
    losses: list[Tensor] = []
    for some, targets_of_some in zip(
        tokens.chunk(NUM_MICRO_BATCHES), targets.chunk(NUM_MICRO_BATCHES), strict=True
    ):
        if stage == 0:
            x = net.blocks[0](net.embedding(some))
            dist.send(x.detach(), peer)
        else:
            x = torch.empty(some.shape[0], SEQUENCE, HIDDEN)
            dist.recv(x, peer)
            logits = net.head(net.norm(net.blocks[1](x.requires_grad_())))
            losses.append(F.cross_entropy(logits.flatten(0, 1), targets_of_some.flatten()) * share)
            total = total + losses[-1].detach()
        crossed.append(x)
    for index, x in enumerate(crossed):
        if stage == 0:
            gradient = torch.empty_like(x)
            dist.recv(gradient, peer)
            x.backward(gradient)
        else:
            losses[index].backward()
            dist.send(x.grad, peer)
    return total


def _tied(net: Llama, mesh: DeviceMesh, stages_first: bool) -> ParallelStep:
    """Every replica keeps the gradients of its rows. The tied weight's are also summed over the two stages.

    Stages first: before a replica takes its rows out of the buffer, not after.
    """
    _stage(net, mesh.get_local_rank("pp"))
    group = mesh.get_group("dp")

    def own_rows(weight: nn.Parameter) -> None:
        mine = reduce_scatter(weight.grad, 0, group)
        weight.grad = torch.zeros_like(weight)
        weight.grad.chunk(group.size())[group.rank()].copy_(mine)

    def step(tokens: Tensor, targets: Tensor) -> Any:
        loss = _run_stage(net, mesh, tokens, targets)
        buffer = net.embedding.weight.grad
        if stages_first:
            dist.all_reduce(buffer, group=mesh.get_group("pp"))
        for parameter in net.parameters():
            own_rows(parameter)
        if not stages_first:
            dist.all_reduce(buffer, group=mesh.get_group("pp"))
        return loss

    rows = {"dp": Shard(0)}
    return ParallelStep(
        step,
        inputs=[rows, rows],
        outputs=[{"dp": Partial(), "pp": Partial()}],
        gradients={name: {"dp": Partial()} for name, _ in net.named_parameters()},
    )


ENTRIES = (
    Entry(
        "tied_weight_reduced_before_stages",
        "Megatron-LM#844",
        "Gradients of the tied weight are scattered over DP before they are summed over the two stages.",
        {"pp": 2, "dp": 2},
        partial(llama, batch=8, num_blocks=2, tied=True),
        partial(_tied, stages_first=True),
        partial(_tied, stages_first=False),
        Site(("embedding.weight",), "all_reduce"),
    ),
)
