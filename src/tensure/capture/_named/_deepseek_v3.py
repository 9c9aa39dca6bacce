"""DeepSeek V3 and its elder relatives: latent attention, and experts that a router picks for every token.

Every expert computes every token, and the shares of those a token does not go to are zero: the same function
as with dispatch, and no token is dropped. Left out: the losses that balance experts, and the prediction of
further tokens. Halves of a head are rotated, where DeepSeek rotates neighbours: the same up to a
permutation of weights.

Letters: B batch, S sequence, T tokens (B * S), H hidden, E experts, F their width, N heads.
"""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._config import DeepSeekConfig
from ._layers import Around, FeedForward, Linear, RMSNorm, attend, heads_of, rotate
from ._model import Decoder

__all__ = ["CUT", "deepseek_v3"]

CUT: Final = {
    "wq.weight": 0,
    "wq_b.weight": 0,
    "wkv_b.weight": 0,
    "wo.weight": 1,
    "w1.weight": 0,
    "w2.weight": 1,
    "w3.weight": 0,
    "experts.w1": 0,
    "experts.w2": 0,
    "experts.w3": 0,
    "embedding.weight": 1,
    "head.weight": 0,
}
"""The dim along which tensor parallelism cuts a parameter, by the end of its name."""


def _parts(x: Tensor, *widths: int) -> tuple[Tensor, ...]:
    """Of the last dim."""
    return x.split(widths, dim=-1)  # type: ignore[no-untyped-call, no-any-return]


class LatentAttention(nn.Module):
    """Keys and values of all heads come of one compressed vector; the rotary key is one for all heads."""

    def __init__(self, config: DeepSeekConfig) -> None:
        super().__init__()
        self.widths, self.rank = (config.nope, config.rope, config.value), config.kv_rank
        key = config.nope + config.rope
        self.scale = key**-0.5
        self.is_compressed = config.q_rank > 0
        if self.is_compressed:
            self.wq_a = Linear(config.hidden, config.q_rank)
            self.q_norm = RMSNorm(config.q_rank, config.eps)
            self.wq_b = Linear(config.q_rank, config.heads * key)
        else:
            self.wq = Linear(config.hidden, config.heads * key)
        self.wkv_a = Linear(config.hidden, config.kv_rank + config.rope)
        self.kv_norm = RMSNorm(config.kv_rank, config.eps)
        self.wkv_b = Linear(config.kv_rank, config.heads * (config.nope + config.value))
        self.wo = Linear(config.heads * config.value, config.hidden)

    def queries(self, x_BSH: Tensor, around: Around) -> Tensor:
        """Of shape [B, S, N * D], over all of the sequence; what is gathered is the narrower side."""
        if not self.is_compressed:
            return self.wq(around.ways.whole(x_BSH))  # type: ignore[no-any-return]
        return self.wq_b(around.ways.whole(self.q_norm(self.wq_a(x_BSH))))  # type: ignore[no-any-return]

    def forward(self, x_BSH: Tensor, around: Around) -> Tensor:
        nope, rope, value = self.widths
        q = heads_of(self.queries(x_BSH, around), nope + rope)
        latent, shared = _parts(around.ways.whole(self.wkv_a(x_BSH)), self.rank, rope)
        kv = heads_of(self.wkv_b(self.kv_norm(latent)), nope + value)
        (k, v), (q, q_turned) = _parts(kv, nope, value), _parts(q, nope, rope)
        turned = rotate(shared, around).unsqueeze(1).expand(-1, k.shape[1], -1, -1)
        q = torch.cat((q, rotate(q_turned, around)), dim=-1)
        return self.wo(attend(q, torch.cat((k, turned), dim=-1), v, self.scale, around))  # type: ignore[no-any-return]


class Router(nn.Module):
    """The share of every expert in every token, zero but for the chosen."""

    bias: Tensor

    def __init__(self, config: DeepSeekConfig) -> None:
        super().__init__()
        self.config = config
        self.gate = Linear(config.hidden, config.experts)
        if config.score == "sigmoid":
            self.register_buffer("bias", torch.zeros(config.experts))

    def choice(self, scores_BSE: Tensor) -> Tensor:
        """Which experts a token goes to: ones and zeros, without a gradient."""
        config = self.config
        ranked = scores_BSE.detach()
        if config.score == "sigmoid":
            ranked = ranked + self.bias
        if config.groups > 1:
            in_groups = ranked.view(*ranked.shape[:-1], config.groups, -1)
            of_groups = in_groups.topk(config.group_best, -1)[0].sum(-1)
            out = ~_marked(of_groups, config.kept_groups)
            ranked = in_groups.masked_fill(out.unsqueeze(-1), float("-inf")).flatten(-2)
        return _marked(ranked, config.chosen).to(scores_BSE.dtype)

    def forward(self, x_BSH: Tensor) -> Tensor:
        logits = self.gate(x_BSH)
        scores = logits.sigmoid() if self.config.score == "sigmoid" else logits.softmax(-1)
        share: Tensor = scores * self.choice(scores)
        if self.config.normalized:
            share = share / share.sum(-1, keepdim=True)
        return share * self.config.route_scale


def _marked(x: Tensor, count: int) -> Tensor:
    """True at the `count` greatest along the last dim."""
    found = x.topk(count, -1)[1].unsqueeze(-1)
    return (found == torch.arange(x.shape[-1])).any(-2)


class Experts(nn.Module):
    """SwiGLU experts, stacked; the sum over those of this rank.

    Every expert takes every token, so all are one product: their widths side by side, and their sum the sum
    over these.
    """

    def __init__(self, experts: int, hidden: int, inner: int) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.empty(experts, hidden, inner))
        self.w2 = nn.Parameter(torch.empty(experts, inner, hidden))
        self.w3 = nn.Parameter(torch.empty(experts, hidden, inner))

    def forward(self, x_BSH: Tensor, share_BSE: Tensor) -> Tensor:
        count = len(self.w1)
        gate, up = (x_BSH @ w_EHF.transpose(0, 1).flatten(1) for w_EHF in (self.w1, self.w3))
        inner_BSEF = (F.silu(gate) * up).view(*share_BSE.shape[:-1], count, -1) * share_BSE.unsqueeze(-1)
        y_BSH: Tensor = inner_BSEF.flatten(-2) @ self.w2.flatten(0, 1)
        return y_BSH


class MixtureOfExperts(nn.Module):
    """What a token's chosen experts and the shared ones give, added up; parts of the sequence in and out."""

    def __init__(self, config: DeepSeekConfig) -> None:
        super().__init__()
        self.router = Router(config)
        self.experts = Experts(config.experts, config.hidden, config.expert_inner)
        self.shared = FeedForward(config.hidden, config.shared * config.expert_inner)

    def forward(self, x_BSH: Tensor, around: Around) -> Tensor:
        share = around.ways.columns(self.router(x_BSH))
        x_BSH = around.ways.whole(x_BSH)
        return around.ways.summed(self.experts(x_BSH, share) + self.shared(x_BSH))


class Dense(FeedForward):
    """The feed-forward of the first layers; parts of the sequence in and out."""

    def forward(self, x: Tensor, around: Around) -> Tensor:  # type: ignore[override]
        return around.ways.summed(super().forward(around.ways.whole(x)))


class Block(nn.Module):
    """Attention and feed-forward or experts around residuals."""

    def __init__(self, config: DeepSeekConfig, at: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden, config.eps)
        self.attention = LatentAttention(config)
        self.ffn_norm = RMSNorm(config.hidden, config.eps)
        is_dense = at < config.dense_layers
        self.ffn = Dense(config.hidden, config.inner) if is_dense else MixtureOfExperts(config)

    def forward(self, x_BSH: Tensor, around: Around) -> Tensor:
        x_BSH = x_BSH + around.ways.summed(self.attention(self.attention_norm(x_BSH), around))
        return x_BSH + self.ffn(self.ffn_norm(x_BSH), around)  # type: ignore[no-any-return]


def deepseek_v3(config: DeepSeekConfig) -> Decoder:
    """The model."""
    return Decoder(
        [Block(config, at) for at in range(config.layers)],
        hidden=config.hidden,
        vocabulary=config.vocabulary,
        sequence=config.sequence,
        rope=config.rope,
        theta=config.rope_theta,
        eps=config.eps,
    )
