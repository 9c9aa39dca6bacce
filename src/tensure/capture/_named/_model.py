"""What the named models have in common: embedding, layers by number, norm, head, mean cross entropy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._layers import Around, Linear, RMSNorm, Ways, future_of, rope_tables

__all__ = ["Decoder"]


class Decoder(nn.Module):
    """Tokens and the ones that follow them, both [B, S], in; the mean cross entropy of all of them out.

    Layers are kept by number, so that a pipeline stage can put some away and the rest keep their names.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        *,
        hidden: int,
        vocabulary: int,
        sequence: int,
        rope: int,
        theta: float,
        eps: float,
    ) -> None:
        super().__init__()
        self.embedding: nn.Module | None = nn.Embedding(
            vocabulary, hidden, _weight=torch.empty(vocabulary, hidden)
        )
        self.layers = nn.ModuleDict({str(at): layer for at, layer in enumerate(layers)})
        self.norm: nn.Module | None = RMSNorm(hidden, eps)
        self.head: nn.Module | None = Linear(hidden, vocabulary)
        cos, sin = rope_tables(sequence, rope, theta)
        self.register_buffer("cos", cos)
        self.register_buffer("sin", sin)
        self.register_buffer("future", future_of(sequence))
        self.ways = Ways()

    def enter(self, tokens: Tensor) -> Tensor:
        """What goes into the first layer: this rank's part of the sequence, [B, S, H]."""
        assert self.embedding is not None
        return self.ways.rows(self.embedding(tokens))

    def run(self, x_BSH: Tensor) -> Tensor:
        """The layers that are here."""
        around = Around(self.cos, self.sin, self.future, self.ways)  # type: ignore[arg-type]
        for layer in self.layers.values():
            x_BSH = layer(x_BSH, around)
        return x_BSH

    def losses(self, x_BSH: Tensor, targets_BS: Tensor) -> Tensor:
        """Cross entropy of every token of this rank's part of the sequence, flat."""
        assert self.norm is not None and self.head is not None
        logits_BSV = self.ways.rows(self.head(self.ways.whole(self.norm(x_BSH))))
        return F.cross_entropy(logits_BSV.flatten(0, 1), targets_BS.flatten(), reduction="none")

    def forward(self, tokens_BS: Tensor, targets_BS: Tensor) -> Tensor:
        return self.losses(self.run(self.enter(tokens_BS)), targets_BS).mean()
