"""Bugs of context parallelism: the sequence is cut, and losses or gradients are normalised wrongly."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Partial, Shard

from tensure.capture import ParallelStep

from ._entry import Entry, Site
from ._llama import HIDDEN, VOCABULARY, Llama, MaskedLlama, llama, masked_llama
from ._parallel import Exchange, ReduceFromGroup, all_gather, reduce_gradients, reduce_scatter

__all__ = ["ENTRIES"]

CP, DP_CP = {"cp": 2}, {"dp": 2, "cp": 2}


class _GatherSequence(torch.autograd.Function):
    """The whole sequence of all ranks' parts; every rank used it otherwise, so its gradients are summed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, group: Any) -> Tensor:
        ctx.dim, ctx.group = dim, group
        return all_gather(x, dim, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return reduce_scatter(gradient, ctx.dim, ctx.group), None, None


def _cut_sequence(net: Llama, mesh: DeviceMesh) -> None:
    """Every rank attends from its own positions to all of them."""
    group = mesh.get_group("cp")
    for block in net.blocks:
        attention = block.attention
        whole = attention.tables()
        attention.tables = lambda whole=whole: tuple(
            table.chunk(group.size())[group.rank()] for table in whole
        )
        attention.whole_sequence = lambda x: _GatherSequence.apply(x, 2, group)


def _answer(net: Llama, mesh: DeviceMesh, step: Any, num_inputs: int = 2) -> ParallelStep:
    """Inputs are cut along batch and sequence, the loss is this rank's share of the whole."""
    axes = mesh.mesh_dim_names or ()
    cut = {axis: Shard(1 if axis == "cp" else 0) for axis in axes}
    return ParallelStep(step, inputs=[cut] * num_inputs, outputs=[{axis: Partial() for axis in axes}])


# --- losses of equally many tokens a rank ------------------------------------------------------------


def _per_token(net: Llama, mesh: DeviceMesh, scaled: bool) -> ParallelStep:
    """Losses are divided by all tokens, and gradients are summed; scaled: after a multiplication by CP."""
    _cut_sequence(net, mesh)
    size = mesh["cp"].size()

    def step(tokens: Tensor, targets: Tensor) -> Tensor:
        loss = net.token_losses(tokens, targets).sum() / (tokens.numel() * size)
        (loss * size if scaled else loss).backward()
        reduce_gradients(net, mesh.get_group("cp"))
        return loss.detach()

    return _answer(net, mesh, step)


def _averaged(net: Llama, mesh: DeviceMesh, over_cp: bool) -> ParallelStep:
    """The loss is multiplied by CP, which the average of gradients over DP and CP takes back."""
    _cut_sequence(net, mesh)
    size = mesh["cp"].size()

    def step(tokens: Tensor, targets: Tensor) -> Tensor:
        loss = net.token_losses(tokens, targets).sum() / (tokens.numel() * size)
        (loss * size).backward()
        group = None if over_cp else mesh.get_group("dp")
        for parameter in net.parameters():
            dist.all_reduce(parameter.grad, group=group)
            parameter.grad /= dist.get_world_size(group)
        return loss.detach() / mesh["dp"].size()

    return _answer(net, mesh, step)


def _loss_summed(net: Llama, mesh: DeviceMesh, differentiated: bool) -> ParallelStep:
    """The loss is summed over CP before backward. Differentiated: by a collective that sums gradients too."""
    _cut_sequence(net, mesh)
    group = mesh.get_group("cp")

    def step(tokens: Tensor, targets: Tensor) -> Tensor:
        share = net.token_losses(tokens, targets).sum() / (tokens.numel() * group.size())
        loss = funcol.all_reduce(share, "sum", group) if differentiated else None
        loss = ReduceFromGroup.apply(share, group) if loss is None else funcol.wait_tensor(loss)
        loss.backward()
        reduce_gradients(net, group)
        return loss.detach()

    cut = {"cp": Shard(1)}
    return ParallelStep(step, inputs=[cut, cut])


# --- losses of the tokens that a mask leaves ---------------------------------------------------------


def _masked(net: MaskedLlama, mesh: DeviceMesh, counted_over: tuple[str, ...]) -> ParallelStep:
    """Masked losses over the number of unmasked tokens, which is summed over the named axes."""
    _cut_sequence(net, mesh)

    def step(tokens: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
        count = mask.sum()
        for axis in counted_over:
            dist.all_reduce(count, group=mesh.get_group(axis))
        loss = (net.token_losses(tokens, targets) * mask.flatten()).sum() / count
        loss.backward()
        reduce_gradients(net, None)
        return loss.detach()

    return _answer(net, mesh, step, num_inputs=3)


def _mean_of_means(net: MaskedLlama, mesh: DeviceMesh) -> ParallelStep:
    """Every rank takes the mean over its own unmasked tokens; gradients are averaged over ranks."""
    _cut_sequence(net, mesh)
    group = mesh.get_group("cp")

    def step(tokens: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
        mean = (net.token_losses(tokens, targets) * mask.flatten()).sum() / mask.sum()
        loss = mean / group.size()
        loss.backward()
        reduce_gradients(net, group)
        return loss.detach()

    return _answer(net, mesh, step, num_inputs=3)


# --- a second loss -----------------------------------------------------------------------------------


class _TwoHeads(Llama):
    """A second head predicts the token after the next; its loss counts a third."""

    def __init__(self) -> None:
        super().__init__()
        self.second_head = nn.Linear(HIDDEN, VOCABULARY, bias=False)

    def both_losses(self, tokens: Tensor, targets: Tensor, later: Tensor) -> tuple[Tensor, Tensor]:
        x = self.hidden(tokens).flatten(0, 1)
        first = F.cross_entropy(self.head(x), targets.flatten(), reduction="sum")
        return first, F.cross_entropy(self.second_head(x), later.flatten(), reduction="sum")

    def forward(self, tokens: Tensor, targets: Tensor, later: Tensor) -> Tensor:
        first, second = self.both_losses(tokens, targets, later)
        return (first + second / 3) / tokens.numel()


def _two_heads() -> tuple[nn.Module, tuple[Tensor, ...]]:
    _, (tokens, targets) = llama()
    return _TwoHeads(), (tokens, targets, targets.roll(-1, 1))


def _second_loss(net: _TwoHeads, mesh: DeviceMesh, by_own_tokens: bool) -> ParallelStep:
    _cut_sequence(net, mesh)
    group = mesh.get_group("cp")

    def step(tokens: Tensor, targets: Tensor, later: Tensor) -> Tensor:
        first, second = net.both_losses(tokens, targets, later)
        own, every = tokens.numel(), tokens.numel() * group.size()
        loss = first / every + second / 3 / (own if by_own_tokens else every)
        loss.backward()
        reduce_gradients(net, group)
        return loss.detach()

    return _answer(net, mesh, step, num_inputs=3)


# --- sequence for heads, by all-to-all ---------------------------------------------------------------


def _ulysses(net: Llama, mesh: DeviceMesh, divisor: int) -> ParallelStep:
    """Attention over some heads and all positions, the rest the other way; losses are means of a rank."""
    group = mesh.get_group("cp")
    attention = net.blocks[0].attention
    attention.enter_heads = lambda x: Exchange.apply(x, 1, 2, group)
    attention.leave_heads = lambda x: Exchange.apply(x, 2, 1, group)

    def step(tokens: Tensor, targets: Tensor) -> Tensor:
        loss = net.token_losses(tokens, targets).mean()
        loss.backward()
        for parameter in net.parameters():
            dist.all_reduce(parameter.grad, group=group)
            parameter.grad.div_(divisor)
        return loss.detach() / group.size()

    return _answer(net, mesh, step)


ENTRIES = (
    Entry(
        "per_token_loss_times_cp",
        "Megatron-LM#673",
        "A loss over all tokens is multiplied by CP for an average never taken; gradients are CP-fold.",
        CP,
        llama,
        partial(_per_token, scaled=False),
        partial(_per_token, scaled=True),
        Site(("head.weight", "embedding.weight"), "mul"),
    ),
    Entry(
        "gradients_averaged_over_dp_only",
        "Megatron-LM#906",
        "The loss is multiplied by CP, and gradients are averaged over DP alone: CP ranks keep their own.",
        DP_CP,
        llama,
        partial(_averaged, over_cp=True),
        partial(_averaged, over_cp=False),
        Site(("head.weight", "embedding.weight"), "all_reduce"),
    ),
    Entry(
        "loss_counted_twice_over_cp",
        "SkyRL PR#1420",
        "The loss is summed over CP by a collective whose backward sums too, and gradients are summed again.",
        CP,
        llama,
        partial(_loss_summed, differentiated=False),
        partial(_loss_summed, differentiated=True),
        Site(("head.weight", "embedding.weight"), "all_reduce"),
    ),
    Entry(
        "token_count_over_dp_without_cp",
        "verl#5983",
        "The number of unmasked tokens is summed over DP and not over CP.",
        DP_CP,
        partial(masked_llama, batch=4),
        partial(_masked, counted_over=("dp", "cp")),
        partial(_masked, counted_over=("dp",)),
        Site(("loss", "head.weight"), "all_reduce"),
    ),
    Entry(
        "mean_of_means_over_cp",
        "Megatron-LM#7452 (loss normalisation under CP)",
        "Every rank averages over its own unmasked tokens, and these means are averaged with equal weights.",
        CP,
        masked_llama,
        partial(_masked, counted_over=("cp",)),
        _mean_of_means,
        Site(("loss", "head.weight"), "div"),
    ),
    Entry(
        "second_loss_over_own_tokens",
        "Megatron-LM#3959",
        "The auxiliary loss of a second head is divided by the rank's own tokens: it counts CP-fold.",
        CP,
        _two_heads,
        partial(_second_loss, by_own_tokens=False),
        partial(_second_loss, by_own_tokens=True),
        Site(("loss", "second_head.weight"), "div"),
    ),
    Entry(
        "exchange_gradients_not_averaged",
        "DeepSpeed#5248",
        "Sequence is exchanged for heads, and gradients of mean losses are summed without the division.",
        CP,
        llama,
        partial(_ulysses, divisor=2),
        partial(_ulysses, divisor=1),
        Site(("head.weight", "embedding.weight"), "div"),
    ),
)
