"""A small Llama: RMSNorm, RoPE, causal attention by plain matmul and softmax, SwiGLU.

Letters: B batch, S sequence, H hidden, N heads, D of a head, F feed-forward, V vocabulary. Their sizes
differ from one another, and leave at least two of each on a rank when cut in two.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "Attention",
    "Block",
    "FeedForward",
    "Llama",
    "MaskedLlama",
    "RMSNorm",
    "llama",
    "masked_llama",
    "rotate",
]

SEQUENCE, HIDDEN, HEADS, FEED_FORWARD, VOCABULARY = 10, 24, 4, 28, 12


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float = 1e-2) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps
        self.power = 2

    def forward(self, x: Tensor) -> Tensor:
        mean = x.pow(self.power).mean(-1, keepdim=True)
        return x * torch.rsqrt(mean + self.eps) * self.weight


def rotate(x_BNSD: Tensor, cos_SD: Tensor, sin_SD: Tensor) -> Tensor:
    """Rotary position embedding: halves of the head as the two coordinates."""
    first, second = x_BNSD.chunk(2, dim=-1)
    return x_BNSD * cos_SD + torch.cat((-second, first), dim=-1) * sin_SD


def _rope_tables(length: int, size: int) -> tuple[Tensor, Tensor]:
    frequency = 10.0 ** (-torch.arange(0, size, 2) / size)
    angle = torch.outer(torch.arange(length), torch.cat((frequency, frequency)))
    return angle.cos(), angle.sin()


class Attention(nn.Module):
    def __init__(self, hidden: int, heads: int, length: int) -> None:
        super().__init__()
        self.head_size = hidden // heads
        self.scale = self.head_size**-0.5
        self.wq = nn.Linear(hidden, hidden, bias=False)
        self.wk = nn.Linear(hidden, hidden, bias=False)
        self.wv = nn.Linear(hidden, hidden, bias=False)
        self.wo = nn.Linear(hidden, hidden, bias=False)
        cos, sin = _rope_tables(length, self.head_size)
        self.register_buffer("cos", cos)
        self.register_buffer("sin", sin)
        self.register_buffer("future", torch.ones(length, length, dtype=torch.bool).triu(1))

    def tables(self) -> tuple[Tensor, Tensor, Tensor]:
        """Cosines and sines of all positions, and which keys lie in the future of which query."""
        return self.cos, self.sin, self.future

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.wq(x), self.wk(x), self.wv(x)

    def rotate_both(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        return rotate(q, cos, sin), rotate(k, cos, sin)

    def enter_heads(self, x_BNSD: Tensor) -> Tensor:
        """Queries, keys and values pass here before the attention; a place for a twin's exchange."""
        return x_BNSD

    def whole_sequence(self, x_BNSD: Tensor) -> Tensor:
        """Keys and values pass here after the rotation; a place for a twin's gather."""
        return x_BNSD

    def leave_heads(self, x_BNSD: Tensor) -> Tensor:
        """What the heads computed passes here."""
        return x_BNSD

    def forward(self, x_BSH: Tensor) -> Tensor:
        batch, length, _ = x_BSH.shape
        q, k, v = (
            self.enter_heads(projected.view(batch, length, -1, self.head_size).transpose(1, 2))
            for projected in self.project(x_BSH)
        )
        cos, sin, future = self.tables()
        q, k = self.rotate_both(q, k, cos, sin)
        k, v = self.whole_sequence(k), self.whole_sequence(v)
        scores = (torch.matmul(q, k.transpose(-1, -2)) * self.scale).masked_fill(future, float("-inf"))
        mixed = self.leave_heads(torch.matmul(scores.softmax(-1), v))
        return self.wo(mixed.transpose(1, 2).reshape(batch, length, -1))


class FeedForward(nn.Module):
    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(hidden, inner, bias=False)
        self.w3 = nn.Linear(hidden, inner, bias=False)
        self.w2 = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(HIDDEN)
        self.attention = Attention(HIDDEN, HEADS, SEQUENCE)
        self.feed_forward_norm = RMSNorm(HIDDEN)
        self.feed_forward = FeedForward(HIDDEN, FEED_FORWARD)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.feed_forward_norm(x))


class Llama(nn.Module):
    """Tokens and the ones that follow them in, mean cross entropy out."""

    def __init__(self, num_blocks: int = 1, tied: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, HIDDEN)
        self.blocks = nn.ModuleList(Block() for _ in range(num_blocks))
        self.norm = RMSNorm(HIDDEN)
        self.head = nn.Linear(HIDDEN, VOCABULARY, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def hidden(self, tokens_BS: Tensor) -> Tensor:
        x = self.embedding(tokens_BS)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def token_losses(self, tokens_BS: Tensor, targets_BS: Tensor) -> Tensor:
        logits = self.head(self.hidden(tokens_BS))
        return F.cross_entropy(logits.flatten(0, 1), targets_BS.flatten(), reduction="none")

    def forward(self, tokens_BS: Tensor, targets_BS: Tensor) -> Tensor:
        return self.token_losses(tokens_BS, targets_BS).mean()


class MaskedLlama(Llama):
    """The same, with the mean over the tokens whose mask is one, and none over those where it is zero."""

    def forward(self, tokens_BS: Tensor, targets_BS: Tensor, mask_BS: Tensor) -> Tensor:
        return (self.token_losses(tokens_BS, targets_BS) * mask_BS.flatten()).sum() / mask_BS.sum()


def llama(batch: int = 2, num_blocks: int = 1, tied: bool = False) -> tuple[Llama, tuple[Tensor, Tensor]]:
    """The model and its example inputs, of shape [batch, SEQUENCE]; tied: head and embedding share one."""
    return Llama(num_blocks, tied), (_tokens(batch), _tokens(batch))


def masked_llama(batch: int = 2) -> tuple[MaskedLlama, tuple[Tensor, Tensor, Tensor]]:
    """The model with a mask, about half of it ones, and not as many in every part."""
    mask = (torch.rand(batch, SEQUENCE) < 0.6).to(torch.get_default_dtype())
    return MaskedLlama(), (_tokens(batch), _tokens(batch), mask)


def _tokens(batch: int) -> Tensor:
    return torch.randint(VOCABULARY, (batch, SEQUENCE))
