"""Bugs of expert parallelism: router gradients that stay partial, expert gradients divided by too little."""

from __future__ import annotations

from functools import partial

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Partial, Shard

from tensure.capture import ParallelStep

from ._entry import Entry, Site
from ._llama import RMSNorm
from ._parallel import CopyToGroup, Exchange, ReduceFromGroup, data_parallel_step, part, reduce_gradients

__all__ = ["ENTRIES"]

EP = {"ep": 2}
TOKENS, HIDDEN, INNER, EXPERTS, CHOSEN = 12, 9, 14, 4, 2


class _Experts(nn.Module):
    """Norm, router, and experts of two layers, around a residual.

    Letters: T tokens, E experts, H hidden, F inner. `chosen_TE` is one where a token goes to an expert.
    """

    def __init__(self) -> None:
        super().__init__()
        self.norm = RMSNorm(HIDDEN)
        self.router = nn.Linear(HIDDEN, EXPERTS, bias=False)
        self.w1 = nn.Parameter(torch.empty(EXPERTS, HIDDEN, INNER))
        self.w2 = nn.Parameter(torch.empty(EXPERTS, INNER, HIDDEN))

    def share(self, x_TH: Tensor) -> Tensor:
        return self.router(x_TH).softmax(-1)

    def experts(self, x_ETH: Tensor) -> Tensor:
        return torch.bmm(F.silu(torch.bmm(x_ETH, self.w1)), self.w2)

    def dispatched(self, x_TH: Tensor, chosen_TE: Tensor) -> Tensor:
        x_ETH = torch.einsum("te,th->eth", chosen_TE, x_TH)
        return torch.einsum("te,eth->th", chosen_TE * self.share(x_TH), self.experts(x_ETH))

    def forward(self, x_TH: Tensor, chosen_TE: Tensor, target_TH: Tensor) -> Tensor:
        return (x_TH + self.dispatched(self.norm(x_TH), chosen_TE) - target_TH).pow(2).mean()


def _chosen() -> Tensor:
    """For every token, some experts, all different; of shape [TOKENS, CHOSEN]."""
    first = torch.randint(EXPERTS, (TOKENS, 1))
    return torch.cat((first, (first + torch.randint(1, EXPERTS, (TOKENS, 1))) % EXPERTS), dim=-1)


def _experts() -> tuple[nn.Module, tuple[Tensor, ...]]:
    chosen = F.one_hot(_chosen(), EXPERTS).sum(1).to(torch.get_default_dtype())
    return _Experts(), (torch.randn(TOKENS, HIDDEN), chosen, torch.randn(TOKENS, HIDDEN))


CUT = {"w1": {"ep": Shard(0)}, "w2": {"ep": Shard(0)}}


# --- all tokens on every rank, some experts each -----------------------------------------------------


def _tokens_whole(net: _Experts, mesh: DeviceMesh, router_summed: bool) -> ParallelStep:
    """Every rank routes all tokens and runs its own experts; their outputs are summed."""
    group = mesh.get_group("ep")
    net.w1, net.w2 = part(net.w1, 0, group), part(net.w2, 0, group)

    def step(x: Tensor, chosen: Tensor, target: Tensor) -> Tensor:
        entered = CopyToGroup.apply(net.norm(x), group)
        own, share = (item.chunk(group.size(), -1)[group.rank()] for item in (chosen, net.share(entered)))
        x_ETH = torch.einsum("te,th->eth", own, entered)
        mixed = torch.einsum("te,eth->th", own * share, net.experts(x_ETH))
        loss = (x + ReduceFromGroup.apply(mixed, group) - target).pow(2).mean()
        loss.backward()
        if router_summed:
            dist.all_reduce(net.router.weight.grad, group=group)
        return loss.detach()

    return ParallelStep(step, parameters=CUT)


class _ByIndex(_Experts):
    """The same with the chosen experts by number, whose weights are picked for every token."""

    def picked(self, x_TH: Tensor, share_TC: Tensor, index_TC: Tensor) -> Tensor:
        inner = F.silu(torch.einsum("th,tchf->tcf", x_TH, self.w1[index_TC]))
        return torch.einsum("tc,tcf,tcfh->th", share_TC, inner, self.w2[index_TC])

    def picked_share(self, x_TH: Tensor, index_TC: Tensor) -> Tensor:
        share = self.share(x_TH).gather(-1, index_TC)
        return share / share.sum(-1, keepdim=True)

    def forward(self, x_TH: Tensor, index_TC: Tensor, target_TH: Tensor) -> Tensor:
        y = self.norm(x_TH)
        y = self.picked(y, self.picked_share(y, index_TC), index_TC)
        return (x_TH + y - target_TH).pow(2).mean()


def _by_index() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return _ByIndex(), (torch.randn(TOKENS, HIDDEN), _chosen(), torch.randn(TOKENS, HIDDEN))


def _picked_twin(net: _ByIndex, mesh: DeviceMesh, share_copied: bool) -> ParallelStep:
    """Shares of experts elsewhere are zeroed. Copied: the gradients of the shares are summed over ranks."""
    group = mesh.get_group("ep")
    net.w1, net.w2 = part(net.w1, 0, group), part(net.w2, 0, group)
    size = EXPERTS // group.size()

    def step(x: Tensor, index: Tensor, target: Tensor) -> Tensor:
        y = net.norm(x)
        share = net.picked_share(y, index)
        if share_copied:
            share = CopyToGroup.apply(share, group)
        index = index - group.rank() * size
        elsewhere = (index < 0) | (index >= size)
        share, index = share.masked_fill(elsewhere, 0.0), index.masked_fill(elsewhere, 0)
        mixed = net.picked(CopyToGroup.apply(y, group), share, index)
        loss = (x + ReduceFromGroup.apply(mixed, group) - target).pow(2).mean()
        loss.backward()
        return loss.detach()

    return ParallelStep(step, parameters=CUT)


# --- some tokens and some experts on every rank ------------------------------------------------------


def _tokens_exchanged(net: _Experts, mesh: DeviceMesh, divided_by: tuple[str, ...]) -> ParallelStep:
    """Tokens go to their experts' ranks and back; losses are means of a rank, gradients are averaged.

    Args:
        net: whole.
        mesh: tokens are cut over all axes, experts over "ep".
        divided_by: axes whose sizes divide the gradients of experts, which are sums over all tokens.
    """
    group = mesh.get_group("ep")
    axes = mesh.mesh_dim_names or ()
    net.w1, net.w2 = part(net.w1, 0, group), part(net.w2, 0, group)
    inner = net.experts
    net.experts = lambda x: Exchange.apply(inner(Exchange.apply(x, 0, 1, group)), 1, 0, group)

    def step(x: Tensor, chosen: Tensor, target: Tensor) -> Tensor:
        loss = net(x, chosen, target)
        loss.backward()
        for name, parameter in net.named_parameters():
            is_expert = name in CUT
            for axis in axes:
                if not (is_expert and axis == "ep"):
                    dist.all_reduce(parameter.grad, group=mesh.get_group(axis))
                if not is_expert or axis in divided_by:
                    parameter.grad /= mesh[axis].size()
        return loss.detach() / mesh.size()

    rows = {axis: Shard(0) for axis in axes}
    return ParallelStep(step, inputs=[rows] * 3, outputs=[{axis: Partial() for axis in axes}], parameters=CUT)


# --- a loss that balances the experts ------------------------------------------------------------------


class _Balanced(_Experts):
    """The same over unmasked tokens, and a loss that is least when all experts get as many of them."""

    def losses(self, x_TH: Tensor, chosen_TE: Tensor, mask_T: Tensor, target_TH: Tensor) -> Tensor:
        """The summed error of every unmasked token, divided by the hidden size."""
        y_TH = x_TH + self.dispatched(self.norm(x_TH), chosen_TE)
        return ((y_TH - target_TH).pow(2).mean(-1) * mask_T).sum()

    def loads(self, x_TH: Tensor, chosen_TE: Tensor, mask_T: Tensor) -> tuple[Tensor, Tensor]:
        """How many unmasked tokens go to every expert, and the sum of their shares."""
        return mask_T @ chosen_TE, mask_T @ self.share(self.norm(x_TH))

    def forward(self, x_TH: Tensor, chosen_TE: Tensor, mask_T: Tensor, target_TH: Tensor) -> Tensor:
        count = mask_T.sum()
        tokens_E, shares_E = self.loads(x_TH, chosen_TE, mask_T)
        balance = (tokens_E / count * (shares_E / count)).sum() * EXPERTS
        return self.losses(x_TH, chosen_TE, mask_T, target_TH) / count + balance


def _balanced() -> tuple[nn.Module, tuple[Tensor, ...]]:
    _, (x, chosen, target) = _experts()
    return _Balanced(), (x, chosen, (torch.rand(TOKENS) < 0.6).to(x.dtype), target)


def _balanced_twin(net: _Balanced, mesh: DeviceMesh, overwritten: bool) -> ParallelStep:
    """Tokens are cut. Overwritten: the balance counts all tokens, though it sums over unmasked ones."""
    group = mesh.get_group("dp")

    def step(x: Tensor, chosen: Tensor, mask: Tensor, target: Tensor) -> Tensor:
        tokens, shares = net.loads(x, chosen, mask)
        count = mask.sum()
        for number in (tokens, count):
            dist.all_reduce(number, group=group)
        seen = mask.numel() * group.size() if overwritten else count
        loss = net.losses(x, chosen, mask, target) / count + (tokens / seen * (shares / seen)).sum() * EXPERTS
        loss.backward()
        reduce_gradients(net, group)
        return loss.detach()

    return data_parallel_step(net, mesh, step, inputs=[{"dp": Shard(0)}] * 4)


ENTRIES = (
    Entry(
        "router_gradient_not_summed",
        "torchtitan#2416",
        "Every rank has the router's gradient through its own experts alone, and these are not summed.",
        EP,
        _experts,
        partial(_tokens_whole, router_summed=True),
        partial(_tokens_whole, router_summed=False),
        Site(("router.weight",), "all_reduce"),
    ),
    Entry(
        "router_share_not_copied",
        "transformers#48687",
        "Shares of picked experts are the same on all ranks, and their partial gradients go back unsummed.",
        EP,
        _by_index,
        partial(_picked_twin, share_copied=True),
        partial(_picked_twin, share_copied=False),
        Site(("router.weight", "norm.weight"), "all_reduce"),
    ),
    Entry(
        "expert_gradients_doubled",
        "pytorch#160285",
        "Gradients of experts sum over the tokens of all ranks, and are not divided as the others are.",
        EP,
        _experts,
        partial(_tokens_exchanged, divided_by=("ep",)),
        partial(_tokens_exchanged, divided_by=()),
        Site(("w1", "w2"), "div"),
    ),
    Entry(
        "expert_gradients_times_ep",
        "DeepSpeed#5618",
        "Gradients of experts are averaged over the replicas of experts alone: they are EP-fold.",
        {"edp": 2, "ep": 2},
        _experts,
        partial(_tokens_exchanged, divided_by=("edp", "ep")),
        partial(_tokens_exchanged, divided_by=("edp",)),
        Site(("w1", "w2"), "div"),
    ),
    Entry(
        "masked_token_count_overwritten",
        "Megatron-LM#7452 (token count of a masked router)",
        "The loss that balances experts sums over unmasked tokens, and is divided by the number of all.",
        {"dp": 2},
        _balanced,
        partial(_balanced_twin, overwritten=False),
        partial(_balanced_twin, overwritten=True),
        Site(("loss", "router.weight"), "div"),
    ),
)
