"""Layers that the named models share, and the places where a parallel twin passes tensors between ranks.

Letters: B batch, S sequence, H hidden, N heads, D of a head, V vocabulary. Weights are made and not drawn: a
proof does not look at them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "Around",
    "FeedForward",
    "Linear",
    "RMSNorm",
    "Ways",
    "attend",
    "future_of",
    "heads_of",
    "rope_tables",
    "rotate",
]


class Ways:
    """How tensors pass between the parts of the sequence and what is cut in other ways.

    On one device every part is the whole, and they stay as they are; a twin's own class exchanges them.
    """

    def whole(self, x_BSX: Tensor) -> Tensor:
        """All of the sequence, of its parts."""
        return x_BSX

    def summed(self, x_BSX: Tensor) -> Tensor:
        """The parts of the sequence, of addends over all of it."""
        return x_BSX

    def columns(self, x_BSX: Tensor) -> Tensor:
        """A part of the last dim over all of the sequence, of all of the dim over a part of the sequence."""
        return x_BSX

    def rows(self, x_BSX: Tensor) -> Tensor:
        """The way back from `columns`."""
        return x_BSX


@dataclass(frozen=True)
class Around:
    """What all layers are given besides their input: tables of all positions, and the ways."""

    cos_SD: Tensor
    sin_SD: Tensor
    future_SS: Tensor
    """Whether a key (along the last dim) lies in the future of a query."""
    ways: Ways = field(default_factory=Ways)


class Linear(nn.Linear):
    """Without a bias, and not drawn."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__(inner, outer, bias=False)

    def reset_parameters(self) -> None:
        """Nothing: weights come with a checkpoint."""


class RMSNorm(nn.Module):
    """Over the last dim."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class FeedForward(nn.Module):
    """SwiGLU: the sum over this rank's part of the inner width."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.w1 = Linear(hidden, inner)
        self.w2 = Linear(inner, hidden)
        self.w3 = Linear(hidden, inner)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))  # type: ignore[no-any-return]


def heads_of(x_BSX: Tensor, size: int) -> Tensor:
    """Heads that stand side by side, as [B, N, S, D]."""
    return x_BSX.unflatten(-1, (-1, size)).transpose(1, 2)  # type: ignore[no-untyped-call, no-any-return]


def rope_tables(length: int, size: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of all positions, of shape [length, size]; halves of a head are its coordinates."""
    frequency = theta ** (-torch.arange(0, size, 2) / size)
    angle = torch.outer(torch.arange(length), torch.cat((frequency, frequency)))
    return angle.cos(), angle.sin()


def future_of(length: int) -> Tensor:
    """Which keys are not to be seen, of shape [length, length]."""
    return torch.ones(length, length, dtype=torch.bool).triu(1)


def rotate(x_SD: Tensor, around: Around) -> Tensor:
    """Rotary positions, of a head or of many."""
    first, second = x_SD.chunk(2, dim=-1)
    return x_SD * around.cos_SD + torch.cat((-second, first), dim=-1) * around.sin_SD


def attend(q_BNSD: Tensor, k_BNSD: Tensor, v_BNSD: Tensor, scale: float, around: Around) -> Tensor:
    """Causal attention with its heads side by side, of shape [B, S, N * D]."""
    scores = torch.matmul(q_BNSD, k_BNSD.transpose(-1, -2)) * scale
    weights = scores.masked_fill(around.future_SS, float("-inf")).softmax(-1)
    return torch.matmul(weights, v_BNSD).transpose(1, 2).flatten(2)
