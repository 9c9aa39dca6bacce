"""Llama 3: grouped queries, rotary positions, SwiGLU.

Halves of a head are rotated as in the transformers library, where Meta's code rotates neighbours: the same
up to a permutation of the rows of wq and wk.
"""

from __future__ import annotations

from typing import Final

from torch import Tensor, nn

from ._config import LlamaConfig
from ._layers import Around, FeedForward, Linear, RMSNorm, attend, heads_of, rotate
from ._model import Decoder

__all__ = ["CUT", "llama3"]

CUT: Final = {
    "wq.weight": 0,
    "wk.weight": 0,
    "wv.weight": 0,
    "wo.weight": 1,
    "w1.weight": 0,
    "w2.weight": 1,
    "w3.weight": 0,
    "embedding.weight": 1,
    "head.weight": 0,
}
"""The dim along which tensor parallelism cuts a parameter, by the end of its name."""


class Attention(nn.Module):
    """Queries share keys in groups; the sum over this rank's heads."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.size, self.group = config.head, config.heads // config.kv_heads
        self.wq = Linear(config.hidden, config.heads * config.head)
        self.wk = Linear(config.hidden, config.kv_heads * config.head)
        self.wv = Linear(config.hidden, config.kv_heads * config.head)
        self.wo = Linear(config.heads * config.head, config.hidden)

    def forward(self, x_BSH: Tensor, around: Around) -> Tensor:
        q, k, v = (heads_of(layer(x_BSH), self.size) for layer in (self.wq, self.wk, self.wv))
        q, k = rotate(q, around), rotate(k, around)
        k, v = (x.repeat_interleave(self.group, dim=1) for x in (k, v))
        return self.wo(attend(q, k, v, self.size**-0.5, around))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and feed-forward around residuals."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden, config.eps)
        self.attention = Attention(config)
        self.ffn_norm = RMSNorm(config.hidden, config.eps)
        self.feed_forward = FeedForward(config.hidden, config.inner)

    def forward(self, x_BSH: Tensor, around: Around) -> Tensor:
        ways = around.ways
        x_BSH = x_BSH + ways.summed(self.attention(ways.whole(self.attention_norm(x_BSH)), around))
        return x_BSH + ways.summed(self.feed_forward(ways.whole(self.ffn_norm(x_BSH))))


def llama3(config: LlamaConfig) -> Decoder:
    """The model."""
    return Decoder(
        [Block(config) for _ in range(config.layers)],
        hidden=config.hidden,
        vocabulary=config.vocabulary,
        sequence=config.sequence,
        rope=config.head,
        theta=config.rope_theta,
        eps=config.eps,
    )
