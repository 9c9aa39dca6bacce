"""Small models whose parallel twins are proved: a Llama-like block, a mixture of experts, a CNN, an MLP.

Letters: B batch, S sequence, H hidden, N heads, D of a head, F feed-forward, V vocabulary, T tokens,
E experts, C channels. Hooks (`enter`, `leave`, `whole`, `tables`) are places where a twin exchanges tensors;
here they do nothing. Parameters are drawn by torch's defaults; a proof does not look at them.
"""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["CNN", "MLP", "Attention", "Experts", "FeedForward", "Llama", "RMSNorm", "SGDStep"]

SEQUENCE: Final = 8
HIDDEN: Final = 16
HEADS: Final = 4
INNER: Final = 20
VOCABULARY: Final = 6
CLASSES: Final = 5


class RMSNorm(nn.Module):
    """Over the last dim."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-3) * self.weight


class Attention(nn.Module):
    """Causal, with rotary positions; queries share keys in groups when kv_heads < heads."""

    def __init__(self, kv_heads: int, sequence: int, heads: int = HEADS, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.head_size = hidden // heads
        self.group = heads // kv_heads
        self.wq = nn.Linear(hidden, heads * self.head_size, bias=False)
        self.wk = nn.Linear(hidden, kv_heads * self.head_size, bias=False)
        self.wv = nn.Linear(hidden, kv_heads * self.head_size, bias=False)
        self.wo = nn.Linear(heads * self.head_size, hidden, bias=False)
        frequency = 10.0 ** (-torch.arange(0, self.head_size, 2) / self.head_size)
        angle = torch.outer(torch.arange(sequence), torch.cat((frequency, frequency)))
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())
        self.register_buffer("future", torch.ones(sequence, sequence, dtype=torch.bool).triu(1))

    def tables(self) -> tuple[Tensor, Tensor, Tensor]:
        """Cosines and sines of this rank's positions, and which keys lie in the future of them."""
        return self.cos, self.sin, self.future  # type: ignore[return-value]

    def enter(self, x_BNSD: Tensor) -> Tensor:
        """Queries, keys and values, before positions."""
        return x_BNSD

    def whole(self, x_BNSD: Tensor) -> Tensor:
        """Keys and values, after positions."""
        return x_BNSD

    def leave(self, x_BNSD: Tensor) -> Tensor:
        """What the heads computed."""
        return x_BNSD

    def forward(self, x_BSH: Tensor) -> Tensor:
        q, k, v = (
            self.enter(layer(x_BSH).unflatten(-1, (-1, self.head_size)).transpose(1, 2))
            for layer in (self.wq, self.wk, self.wv)
        )
        cos, sin, future = self.tables()
        q, k = ((x * cos + _turned(x) * sin).to(x.dtype) for x in (q, k))
        k, v = self.whole(k), self.whole(v)
        if self.group > 1:
            k, v = (x.repeat_interleave(self.group, dim=1) for x in (k, v))
        scores = torch.matmul(q, k.transpose(-1, -2)) * self.head_size**-0.5
        weights = scores.masked_fill(future, float("-inf")).softmax(-1)
        return self.wo(self.leave(torch.matmul(weights, v)).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def _turned(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, inner: int, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.w1 = nn.Linear(hidden, inner, bias=False)
        self.w3 = nn.Linear(hidden, inner, bias=False)
        self.w2 = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and feed-forward around residuals."""

    def __init__(self, kv_heads: int, sequence: int, inner: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(HIDDEN)
        self.attention = Attention(kv_heads, sequence)
        self.ffn_norm = RMSNorm(HIDDEN)
        self.ffn = FeedForward(inner)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.ffn(self.ffn_norm(x))  # type: ignore[no-any-return]


class Llama(nn.Module):
    """Tokens and targets [B, S] in; mean cross entropy out, or over the tokens of a third input's mask."""

    def __init__(
        self,
        blocks: int = 1,
        *,
        kv_heads: int = HEADS,
        sequence: int = SEQUENCE,
        inner: int = INNER,
        vocabulary: int = VOCABULARY,
        tied: bool = False,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, HIDDEN)
        self.blocks = nn.ModuleList(Block(kv_heads, sequence, inner) for _ in range(blocks))
        self.norm = RMSNorm(HIDDEN)
        self.head = nn.Linear(HIDDEN, vocabulary, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def pieces(self) -> list[nn.Module]:
        """The modules that logits come of, in order."""
        return [self.embedding, *self.blocks, self.norm, self.head]

    def logits(self, tokens: Tensor) -> Tensor:
        """Of shape [B, S, V]."""
        x = tokens
        for piece in self.pieces():
            x = piece(x)
        return x

    def losses(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy of every token, flat."""
        return F.cross_entropy(self.logits(tokens).flatten(0, 1), targets.flatten(), reduction="none")

    def forward(self, tokens: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
        losses = self.losses(tokens, targets)
        return losses.mean() if mask is None else (losses * mask.flatten()).sum() / mask.sum()


class MLP(nn.Module):
    """Two layers with biases, mean squared error; x [B, H], target [B, H]."""

    def __init__(self, hidden: int = 6, inner: int = 12) -> None:
        super().__init__()
        self.up = nn.Linear(hidden, inner)
        self.down = nn.Linear(inner, hidden)

    def output(self, x: Tensor) -> Tensor:
        """Before the loss."""
        return self.down(F.gelu(self.up(x), approximate="tanh"))  # type: ignore[no-any-return]

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return (self.output(x) - target).pow(2).mean()


class SGDStep(nn.Module):
    """The MLP's loss, the norm of all gradients, and every parameter after one step of clipped descent."""

    RATE: Final = 0.125

    def __init__(self, hidden: int = 6, inner: int = 12) -> None:
        super().__init__()
        self.net = MLP(hidden, inner)

    def forward(self, x: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        loss = self.net(x, target)
        parameters = list(self.net.parameters())
        grads = torch.autograd.grad(loss, parameters, retain_graph=True)
        norm = torch.stack([grad.pow(2).sum() for grad in grads]).sum().sqrt()
        rate = self.RATE / (norm + 1.0)
        return loss, norm, *((p - rate * grad).detach() for p, grad in zip(parameters, grads, strict=True))


class CNN(nn.Module):
    """Two convolutions, mean over positions, cross entropy; images [B, 3, 8, 6], labels [B]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 4, 3, padding=1)
        self.head = nn.Linear(4, CLASSES)

    def features(self, x: Tensor) -> Tensor:
        """Of shape [B, 4]."""
        return self.conv2(F.relu(self.conv1(x))).mean((2, 3))  # type: ignore[no-any-return]

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.head(self.features(x)), labels)


class Experts(nn.Module):
    """Norm, router and experts around a residual; every token goes to those its row of `chosen_TE` marks."""

    TOKENS, HIDDEN, INNER, EXPERTS = 12, 10, 14, 4

    def __init__(self, shared: bool = False) -> None:
        super().__init__()
        self.norm = RMSNorm(self.HIDDEN)
        self.router = nn.Linear(self.HIDDEN, self.EXPERTS, bias=False)
        self.w1 = nn.Parameter(torch.randn(self.EXPERTS, self.HIDDEN, self.INNER))
        self.w2 = nn.Parameter(torch.randn(self.EXPERTS, self.INNER, self.HIDDEN))
        self.shared = FeedForward(self.INNER, self.HIDDEN) if shared else None

    def experts(self, x_ECH: Tensor) -> Tensor:
        """Every expert on its own rows."""
        return torch.bmm(F.silu(torch.bmm(x_ECH, self.w1)), self.w2)

    def mixed(self, x_TH: Tensor, chosen_TE: Tensor) -> Tensor:
        """The sum of the chosen experts' outputs, by the router's shares."""
        share = chosen_TE * self.router(x_TH).softmax(-1)
        x_ETH = torch.einsum("te,th->eth", chosen_TE, x_TH)
        return torch.einsum("te,eth->th", share, self.experts(x_ETH))

    def forward(self, x_TH: Tensor, chosen_TE: Tensor, target_TH: Tensor) -> Tensor:
        normed = self.norm(x_TH)
        out = x_TH + self.mixed(normed, chosen_TE)
        if self.shared is not None:
            out = out + self.shared(normed)
        return (out - target_TH).pow(2).mean()
