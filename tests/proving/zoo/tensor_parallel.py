"""Bugs of tensor parallelism: gradients of what all ranks share, losses over a cut vocabulary, scales."""

from __future__ import annotations

from functools import partial

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Partial, Shard

from tensure.capture import ParallelStep

from ._entry import Entry, Site
from ._llama import Llama, RMSNorm, llama
from ._parallel import (
    ColumnParallelLinear,
    CopyToGroup,
    ReduceFromGroup,
    RowParallelLinear,
    reduce_gradients,
    sharded,
    step_of,
    tensor_parallel,
)

__all__ = ["ENTRIES"]

TP = {"tp": 2}
BATCH, SEQUENCE, HIDDEN = 3, 7, 10


def _example() -> tuple[Tensor, Tensor]:
    return torch.randn(BATCH, SEQUENCE, HIDDEN), torch.randn(BATCH, SEQUENCE, HIDDEN)


# --- latent attention: one rotary key for all heads --------------------------------------------------


class _LatentAttention(nn.Module):
    """Keys and values of all heads come from one latent vector; a part of the key is shared by all."""

    heads, key, shared, value, latent = 8, 5, 2, 6, 9

    def __init__(self) -> None:
        super().__init__()
        self.wq = nn.Linear(HIDDEN, self.heads * (self.key + self.shared), bias=False)
        self.wkv_a = nn.Linear(HIDDEN, self.latent + self.shared, bias=False)
        self.wkv_b = nn.Linear(self.latent, self.heads * (self.key + self.value), bias=False)
        self.wo = nn.Linear(self.heads * self.value, HIDDEN, bias=False)

    def share(self, key: Tensor) -> Tensor:
        return key

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q = self.wq(x).view(batch, length, -1, self.key + self.shared).transpose(1, 2)
        latent, shared = self.wkv_a(x).split((self.latent, self.shared), dim=-1)
        kv = self.wkv_b(latent).view(batch, length, -1, self.key + self.value).transpose(1, 2)
        k, v = kv.split((self.key, self.value), dim=-1)
        shared = self.share(shared).unsqueeze(1).expand(-1, k.shape[1], -1, -1)
        scores = torch.matmul(q, torch.cat((k, shared), dim=-1).transpose(-1, -2))
        mixed = torch.matmul((scores * (self.key + self.shared) ** -0.5).softmax(-1), v)
        out = self.wo(mixed.transpose(1, 2).reshape(batch, length, -1))
        return (out - target).pow(2).mean()


def _latent_attention() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return _LatentAttention(), _example()


def _latent_twin(net: _LatentAttention, mesh: DeviceMesh, summed: bool) -> ParallelStep:
    """Heads are cut; the latent vector and the shared key are computed whole on every rank."""
    group = mesh.get_group("tp")
    net.wq = ColumnParallelLinear(net.wq, group)
    net.wkv_b = ColumnParallelLinear(net.wkv_b, group)
    net.wo = RowParallelLinear(net.wo, group)
    if summed:
        net.share = lambda key: CopyToGroup.apply(key, group)
    return ParallelStep(step_of(net), parameters=sharded(net))


# --- a norm of each head, with one weight for all ----------------------------------------------------


class _GatedHeads(nn.Module):
    head_size = 6

    def __init__(self, heads: int = 4) -> None:
        super().__init__()
        self.value = nn.Linear(HIDDEN, heads * self.head_size, bias=False)
        self.gate = nn.Linear(HIDDEN, heads * self.head_size, bias=False)
        self.out_norm = RMSNorm(self.head_size)
        self.out = nn.Linear(heads * self.head_size, HIDDEN, bias=False)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        heads = self.out_norm(self.value(x).unflatten(-1, (-1, self.head_size)))
        return (self.out(heads.flatten(-2) * F.silu(self.gate(x))) - target).pow(2).mean()


def _gated_heads() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return _GatedHeads(), _example()


def _gated_twin(net: _GatedHeads, mesh: DeviceMesh, summed: bool) -> ParallelStep:
    group = mesh.get_group("tp")
    net.value = ColumnParallelLinear(net.value, group)
    net.gate = ColumnParallelLinear(net.gate, group)
    net.out = RowParallelLinear(net.out, group)

    def step(x: Tensor, target: Tensor) -> Tensor:
        loss = net(x, target)
        loss.backward()
        if summed:
            dist.all_reduce(net.out_norm.weight.grad, group=group)
        return loss.detach()

    return ParallelStep(step, parameters=sharded(net))


# --- cross entropy over a cut vocabulary -------------------------------------------------------------


class _Smoothed(nn.Module):
    vocabulary, smoothing = 12, 0.125

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.head = nn.Linear(HIDDEN, self.vocabulary, bias=False)

    def forward(self, x: Tensor, targets: Tensor) -> Tensor:
        logits = self.head(self.dense(x)).flatten(0, 1)
        return F.cross_entropy(logits, targets.flatten(), label_smoothing=self.smoothing)


def _smoothed() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return _Smoothed(), (_example()[0], torch.randint(_Smoothed.vocabulary, (BATCH, SEQUENCE)))


def _smoothed_twin(net: _Smoothed, mesh: DeviceMesh, over_all: bool) -> ParallelStep:
    """Logits stay cut; over all: the smoothing averages over the whole vocabulary."""
    group = mesh.get_group("tp")
    net.head = ColumnParallelLinear(net.head, group)
    size = net.vocabulary // group.size()
    start = group.rank() * size

    def summed(x: Tensor) -> Tensor:
        return ReduceFromGroup.apply(x, group)

    def step(x: Tensor, targets: Tensor) -> Tensor:
        logits, targets = net.head(net.dense(x)).flatten(0, 1), targets.flatten() - start
        top = logits.detach().amax(-1)
        dist.all_reduce(top, dist.ReduceOp.MAX, group=group)
        logits = logits - top[:, None]
        log_total = summed(logits.exp().sum(-1)).log()
        elsewhere = (targets < 0) | (targets >= size)
        own = logits.gather(-1, targets.masked_fill(elsewhere, 0)[:, None])[:, 0]
        hit = log_total - summed(own.masked_fill(elsewhere, 0.0))
        mean = summed(logits.sum(-1)) / net.vocabulary if over_all else logits.mean(-1)
        loss = ((1 - net.smoothing) * hit + net.smoothing * (log_total - mean)).mean()
        loss.backward()
        return loss.detach()

    return ParallelStep(step, parameters=sharded(net))


# --- scales, and a collective with a backward of its own ---------------------------------------------


def _scaled(net: Llama, mesh: DeviceMesh, by_world: bool) -> ParallelStep:
    """Gradients of summed losses, averaged over DP, then scaled to a mean over tokens."""
    tensor_parallel(net, mesh.get_group("tp"))
    group = mesh.get_group("dp")
    ranks = dist.get_world_size() if by_world else group.size()

    def step(tokens: Tensor, targets: Tensor) -> Tensor:
        count = tokens.numel() * group.size()
        total = net.token_losses(tokens, targets).sum()
        total.backward()
        reduce_gradients(net, group)
        for parameter in net.parameters():
            parameter.grad = parameter.grad / group.size() * (ranks / count)
        return total.detach() / count

    rows = {"dp": Shard(0)}
    return ParallelStep(step, inputs=[rows, rows], outputs=[{"dp": Partial()}], parameters=sharded(net))


class _DifferentiableReduce(RowParallelLinear):
    def forward(self, x: Tensor) -> Tensor:
        return funcol.wait_tensor(funcol.all_reduce(F.linear(x, self.weight), "sum", self.group))


def _reduced_by(net: Llama, mesh: DeviceMesh, layer: type[nn.Module]) -> ParallelStep:
    tensor_parallel(net, mesh.get_group("tp"), {"w2": layer})
    return ParallelStep(step_of(net), parameters=sharded(net))


ENTRIES = (
    Entry(
        "shared_key_gradient_not_summed",
        "torchtitan#1373",
        "The rotary part of the key is shared by all heads; with heads cut, its gradients are not summed.",
        {"tp": 4},
        _latent_attention,
        partial(_latent_twin, summed=True),
        partial(_latent_twin, summed=False),
        Site(("wkv_a.weight",), "all_reduce"),
    ),
    Entry(
        "head_norm_gradient_not_summed",
        "Megatron-LM#7452 (GatedDeltaNet out_norm)",
        "The norm of every head has one weight for all; with heads cut, its gradients are not summed.",
        TP,
        _gated_heads,
        partial(_gated_twin, summed=True),
        partial(_gated_twin, summed=False),
        Site(("out_norm.weight",), "all_reduce"),
    ),
    Entry(
        "label_smoothing_over_own_vocabulary",
        "Megatron-LM#7452 (label smoothing)",
        "Label smoothing averages over the rank's part of the vocabulary, not over all of it.",
        {"tp": 3},
        _smoothed,
        partial(_smoothed_twin, over_all=True),
        partial(_smoothed_twin, over_all=False),
        Site(("loss", "head.weight"), "all_reduce"),
    ),
    Entry(
        "gradients_scaled_by_world_size",
        "torchtune#2641",
        "Averaged gradients are multiplied by all ranks, those of TP included, in the place of DP alone.",
        {"dp": 2, "tp": 2},
        partial(llama, batch=4),
        partial(_scaled, by_world=False),
        partial(_scaled, by_world=True),
        Site(("head.weight", "blocks.0.attention.wo.weight"), "mul"),
    ),
    Entry(
        "all_reduce_that_sums_gradients_too",
        "pytorch functional collectives (backward of all_reduce)",
        "A row-parallel layer sums by a collective whose backward sums equal gradients: TP-fold upstream.",
        TP,
        llama,
        partial(_reduced_by, layer=RowParallelLinear),
        partial(_reduced_by, layer=_DifferentiableReduce),
        Site(("blocks.0.feed_forward.w2.weight",), "all_reduce"),
    ),
)
